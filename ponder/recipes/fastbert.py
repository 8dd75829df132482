"""FastBERT: fine-tune, then distil the last head into the early ones on a frozen encoder."""

from ponder.objectives import Distillation, FinalStep
from ponder.policies import Entropy
from ponder.recipes.base import Recipe, Stage


def fastbert(speed: float = 0.5) -> Recipe:
    """FastBERT: the early heads learn from the last one.

    Args:
        speed: Normalised entropy, in [0, 1], below which a row exits.

    Example:
        >>> recipes.get("fastbert", speed=0.4).policy
        Entropy(threshold=0.4, normalize=True)
    """
    return Recipe(
        name="fastbert",
        paper="Liu et al. 2020",
        stages=(Stage(FinalStep()), Stage(Distillation(), train="early_heads")),
        policy=Entropy(speed, normalize=True),
        per_step_heads=True,
    )
