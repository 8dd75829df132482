"""DeeBERT and FastBERT: fine-tune first, then teach the early heads on the frozen encoder."""

from ponder.objectives import DeepSupervision, Distillation, FinalStep
from ponder.policies import Entropy
from ponder.recipes.base import Recipe, Stage, registry

__all__ = ["deebert", "fastbert"]


@registry.register("deebert")
def deebert(threshold: float = 0.2) -> Recipe:
    """DeeBERT: the early heads learn from the labels.

    Args:
        threshold: Entropy below which a row exits, in nats.
    """
    return Recipe(
        name="deebert",
        paper="Xin et al. 2020",
        stages=(Stage(FinalStep()), Stage(DeepSupervision("uniform"), train="early_heads")),
        policy=Entropy(threshold),
        per_step_heads=True,
    )


@registry.register("fastbert")
def fastbert(speed: float = 0.5) -> Recipe:
    """FastBERT: the early heads learn from the last one.

    Args:
        speed: Normalised entropy, in [0, 1], below which a row exits.
    """
    return Recipe(
        name="fastbert",
        paper="Liu et al. 2020",
        stages=(Stage(FinalStep()), Stage(Distillation(), train="early_heads")),
        policy=Entropy(speed, normalize=True),
        per_step_heads=True,
    )
