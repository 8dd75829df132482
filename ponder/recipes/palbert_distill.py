"""PALBERT with self-distillation: earlier steps learn from the last."""

from dataclasses import replace

from ponder.objectives import Distillation, Ponder
from ponder.recipes.base import Recipe, Stage, registry
from ponder.recipes.palbert import palbert

__all__ = ["palbert_distill"]


@registry.register("palbert-distill")
def palbert_distill(weight: float = 1.0, temperature: float = 2.0, *, beta: float = 0.5, q: float = 0.5) -> Recipe:
    """PALBERT plus distillation from the last step.

    Args:
        weight: Weight of the distillation beside PALBERT's loss.
        temperature: Temperature at which the answers of teacher and steps are softened before they are compared.
        beta: Weight of the divergence, as in `palbert`.
        q: Q-exit's level, as in `palbert`.

    Example:
        >>> palbert_distill(temperature=4.0).stages[0].objective.objectives[1]
        Distillation(temperature=4.0, weight=1.0, teacher='last_step', step=None)
    """
    objective = Ponder(beta) + Distillation(temperature, weight)
    return replace(palbert(beta=beta, q=q), name="palbert-distill", stages=(Stage(objective),))
