"""The smaller model at the same cost: the encoder cut after k steps, fine-tuned so, or taught by the whole one."""

from ponder.objectives import Distillation, FinalStep, OneStep
from ponder.policies import FixedStep
from ponder.recipes.base import Recipe, Stage, registry

__all__ = ["static"]


@registry.register("static")
def static(k: int = 3, taught: bool = False, temperature: float = 1.0) -> Recipe:
    """Every row leaves at step k, the only one that is trained: what any early exit has to beat.

    With `taught`, the whole encoder is fine-tuned first, and a frozen copy of it teaches step k, so that the smaller
    model starts from weights that know the task and learns soft answers, as distilled models do.

    Args:
        k: A step of the encoder at hand; not scaled.
        taught: Let the whole encoder, fine-tuned, teach step k, instead of the labels.
        temperature: With `taught`, the temperature at which the answers of teacher and step are softened before they
            are compared.

    Example:
        >>> recipes.static(k=3).policy, recipes.static(k=3).stages[0].objective
        (FixedStep(step=3), OneStep(step=3))
        >>> [stage.objective for stage in recipes.static(k=3, taught=True).stages]
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
