"""DeeBERT: fine-tune first, then teach the early heads from the labels, on the frozen encoder."""

from ponder.objectives import DeepSupervision, FinalStep
from ponder.policies import Entropy
from ponder.recipes.base import Recipe, Stage


def deebert(threshold: float = 0.2) -> Recipe:
    """The recipe DeeBERT, in which the early heads learn from the labels.

    Args:
        threshold: Entropy below which a row exits, in nats.

    Example:
        >>> recipes.get("deebert", threshold=0.3).policy
        Entropy(threshold=0.3, normalize=False)
    """
    return Recipe(
        name="deebert",
        paper="Xin et al. 2020",
        stages=(Stage(FinalStep()), Stage(DeepSupervision("uniform"), train="early_heads")),
        policy=Entropy(threshold),
        per_step_heads=True,
    )
