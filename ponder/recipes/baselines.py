"""Baselines: plain fine-tuning, and the encoder cut after k steps, fine-tuned or distilled."""

from ponder.objectives import Distillation, FinalStep, OneStep
from ponder.policies import FixedStep, LastStep
from ponder.recipes.base import Recipe, Stage


def vanilla() -> Recipe:
    """The recipe of a plain model: the loss of the last step, and no early exit.

    Example:
        >>> recipes.get("vanilla").policy
        LastStep()
    """
    return Recipe("vanilla", "Devlin et al. 2019", (Stage(FinalStep()),), LastStep())


def static(k: int = 3, taught: bool = False, temperature: float = 1.0) -> Recipe:
    """The smaller model of the same cost: step k alone is trained, and all rows exit there.

    Args:
        k: A step of the encoder, which is not scaled.
        taught: Fine-tune the whole encoder first, and let a frozen copy of it teach step k instead
            of the labels, as distilled models are.
        temperature: Temperature of that distillation.

    Example:
        >>> [stage.objective for stage in recipes.get("static", k=3, taught=True).stages]
        [FinalStep(), Distillation(temperature=1.0, weight=1.0, teacher='frozen', step=3)]
    """
    distillation = Distillation(temperature, teacher="frozen", step=k)
    stages: tuple[Stage, ...] = (Stage(OneStep(k)),)
    if taught:
        stages = (Stage(FinalStep()), Stage(distillation, teacher="previous"))
    return Recipe(
        name="static",
        paper="the baseline of Xin et al. 2020; taught as by Hinton et al. 2015",
        stages=stages,
        policy=FixedStep(k),
        tuned_for=None,
    )
