"""PALBERT with a prior whose mean is where we want it."""

from dataclasses import replace

from ponder.priors import AtDepth
from ponder.recipes.base import Recipe, registry
from ponder.recipes.palbert import palbert

__all__ = ["palbert_prior"]


@registry.register("palbert-prior")
def palbert_prior(depth: float = 0.4, family: str = "geometric", *, beta: float = 0.5, q: float = 0.5) -> Recipe:
    """PALBERT whose prior expects exits at a share of the depth (the paper's lies at 0.56, after the cut to N steps).

    Args:
        depth: Share of the depth, in (0, 1).
        family: Family of the prior.
        beta: Weight of the divergence, as in `palbert`.
        q: Q-exit's level, as in `palbert`.

    Example:
        >>> palbert_prior(depth=0.4, family="poisson").prior
        AtDepth(depth=0.4, family='poisson')
    """
    return replace(palbert(beta=beta, q=q), name="palbert-prior", prior=AtDepth(depth, family))
