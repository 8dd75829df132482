"""PABEE: a head a step, trained together, and patience."""

from ponder.objectives import DeepSupervision
from ponder.policies import Patience
from ponder.recipes.base import Recipe, Stage


def pabee(patience: int = 6, tolerance: float = 0.1) -> Recipe:
    """PABEE: a head at each step, trained together, and exits once several answers agree.

    Args:
        patience: Agreements in a row, for 12 steps.
        tolerance: What counts as agreement in regression, in the unit of the labels.

    Example:
        >>> recipes.get("pabee").for_steps(6).policy  # patience 6 of 12 steps is 3 of 6
        Patience(patience=3, tolerance=0.1)
    """
    return Recipe(
        name="pabee",
        paper="Zhou et al. 2020",
        stages=(Stage(DeepSupervision("linear")),),
        policy=Patience(patience, tolerance),
        per_step_heads=True,
    )
