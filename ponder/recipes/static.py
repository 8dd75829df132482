"""The smaller model at the same cost: the encoder cut after k steps, and fine-tuned so."""

from ponder.objectives import OneStep
from ponder.policies import FixedStep
from ponder.recipes.base import Recipe, Stage, registry

__all__ = ["static"]


@registry.register("static")
def static(k: int = 3) -> Recipe:
    """Every row leaves at step k, the only one that is trained: what any early exit has to beat.

    Args:
        k: A step of the encoder at hand; not scaled.

    Example:
        >>> static(k=3).policy, static(k=3).stages[0].objective
        (FixedStep(step=3), OneStep(step=3))
    """
    return Recipe(
        name="static",
        paper="the baseline of Xin et al. 2020 and of any exit at a fixed depth",
        stages=(Stage(OneStep(k)),),
        policy=FixedStep(k),
        tuned_for=None,
    )
