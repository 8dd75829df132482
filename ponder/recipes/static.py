"""The smaller model at the same cost: the encoder cut after k steps, fine-tuned so, or taught by the whole one."""

from ponder.objectives import Distillation, FinalStep, OneStep
from ponder.policies import FixedStep
from ponder.recipes.base import Recipe, Stage, registry


@registry.register("static")
def static(k: int = 3, taught: bool = False, temperature: float = 1.0) -> Recipe:
    """The smaller model at the same cost, which early exits have to beat: step k alone is trained, and all exit there.

    Args:
        k: A step of the encoder at hand; not scaled.
        taught: Fine-tune the whole encoder first, and let a frozen copy of it teach step k instead of the labels, as
            distilled models are.
        temperature: Temperature of that distillation.

    Example:
        >>> [stage.objective for stage in recipes.get("static", k=3, taught=True).stages]
        [FinalStep(), Distillation(temperature=1.0, weight=1.0, teacher='frozen', step=3)]
    """
    paper = "the baseline of Xin et al. 2020 and of any exit at a fixed depth"
    distillation = Distillation(temperature, teacher="frozen", step=k)
    stages = (Stage(FinalStep()), Stage(distillation, teacher="previous")) if taught else (Stage(OneStep(k)),)
    return Recipe(
        name="static",
        paper=f"{paper}, taught as by Hinton et al. 2015" if taught else paper,
        stages=stages,
        policy=FixedStep(k),
        tuned_for=None,
    )
