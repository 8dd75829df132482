"""PALBERT with the losses of all steps beside its own."""

from dataclasses import replace

from ponder.objectives import DeepSupervision, Ponder
from ponder.recipes.base import Recipe, Stage, registry
from ponder.recipes.palbert import palbert

__all__ = ["palbert_deep"]


@registry.register("palbert-deep")
def palbert_deep(weight: float = 1.0, per_step_heads: bool = False, *, beta: float = 0.5, q: float = 0.5) -> Recipe:
    """PALBERT plus PABEE's weighted mean of the steps' losses.

    Args:
        weight: Weight of PABEE's mean beside PALBERT's loss.
        per_step_heads: One head a step instead of one for all.
        beta: Weight of the divergence, as in `palbert`.
        q: Q-exit's level, as in `palbert`.

    Example:
        >>> palbert_deep(weight=0.5).stages[0].objective.weights
        (1.0, 0.5)
    """
    objective = Ponder(beta) + weight * DeepSupervision("linear")
    made = palbert(beta=beta, q=q)
    return replace(made, name="palbert-deep", stages=(Stage(objective),), per_step_heads=per_step_heads)
