"""Adaptive computation time: a halting unit, the loss of the mean answer, and a sum that stops."""

from ponder.objectives import adaptive
from ponder.policies import halting
from ponder.recipes.base import LambdaSpec, Recipe, Stage


def act(*, cost: float = 0.01, epsilon: float = 0.01) -> Recipe:
    """The recipe ACT, the origin of the field.

    The Universal Transformer trains so at every position.

    Args:
        cost: Time penalty: the cost of one more step in the unit of the loss.
        epsilon: A row stops once its halting units add up to 1 − epsilon.

    Example:
        >>> recipes.get("act", cost=0.001).policy
        ACT(epsilon=0.01)
    """
    return Recipe(
        name="act",
        paper="Graves 2016, arXiv 1603.08983",
        stages=(Stage(adaptive.ACT(cost, epsilon)),),
        policy=halting.ACT(epsilon),
        lambda_head=LambdaSpec(),
        tuned_for=None,
    )
