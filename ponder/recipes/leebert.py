"""LeeBERT: per-step heads that teach one another, and patience."""

from dataclasses import replace

from ponder.objectives import DeepSupervision, MutualDistillation
from ponder.recipes.base import Recipe, Stage
from ponder.recipes.pabee import pabee


def leebert(
    weight: float = 1.0, temperature: float = 2.0, patience: int = 6, tolerance: float = 0.1
) -> Recipe:
    """A recipe in the style of LeeBERT: PABEE plus distillation between all steps.

    Args:
        weight: Weight of the distillation, relative to the losses against the labels.
        temperature: Temperature of that distillation.
        patience: Agreements in a row, for 12 steps.
        tolerance: What counts as agreement in regression, in the unit of the labels.

    Example:
        >>> recipes.get("leebert", patience=4).policy
        Patience(patience=4, tolerance=0.1)
    """
    stage = Stage(DeepSupervision("linear") + weight * MutualDistillation(temperature))
    return replace(pabee(patience, tolerance), name="leebert", paper="Zhu 2021", stages=(stage,))
