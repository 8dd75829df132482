"""This library's own combination: fine-tune first, then teach every step to agree with what was fine-tuned."""

from __future__ import annotations

from typing import Literal

from ponder._utils.validation import check_choice, check_flag, check_real
from ponder.errors import ArgumentError
from ponder.objectives import Alignment, Alternating, DeepSupervision, Distillation, FinalStep, Objective, Ponder
from ponder.policies import Confidence, Quantile
from ponder.priors import AtDepth
from ponder.recipes.base import LambdaSpec, Recipe, Stage, registry

__all__ = ["ponder"]


@registry.register("ponder")
def ponder(
    joint: bool = False,
    labels: float = 0.0,
    temperature: float = 1.0,
    depth: float = 0.55,
    mixing: float = 0.7,
    *,
    alignment: float = 0.0,
    heads: Literal["own", "norms"] = "own",
    early_gradient: Literal["full", "equilibrium"] = "full",
    alternating: bool = False,
    beta: float = 0.5,
    confidence: float = 0.8,
    q: float = 0.25,
) -> Recipe:
    """A fine-tuned model whose steps learn to agree with a frozen copy of it, and leave once their answer is sure.

    1. Plain fine-tuning: the last step learns from the labels.
    2. A frozen copy of that model teaches all steps, the last included, from heads that start as copies of the last:
       each step's loss is the KL divergence to the teacher's answer. At its end the weights, those of the early heads
       excepted, are mixed with the ones that were fine-tuned (WiSE-FT, arXiv 2109.01903), so that the last step keeps
       most of what it knew.
    3. Where the task has no classes, and so no confidence: a Lambda head is fitted to the frozen steps, for Q-exit.

    Fine-tuning first keeps the last step as good as without exits; a teacher's soft answers ask less of the early steps
    than the labels do. Chosen on held-out parts of training sets; `joint` is what it was chosen over.

    Args:
        joint: One stage instead of the first two: the mean loss of all steps, distillation from the last step, and the
            last step's loss once more.
        labels: Weight of the mean loss of all steps against the labels, beside the teacher's.
        temperature: Temperature at which the answers of teacher and steps are softened before they are compared.
        depth: Share of the depth at which the prior of the Lambda head expects exits.
        mixing: α, the share of the second stage's weights in what comes out of it; 1 keeps them as they were trained.
        alignment: Weight of the distance between the features of early steps and those of the last, beside the teacher.
        heads: ``"own"``, one a step, or ``"norms"``, one that is shared behind a norm for each step
            (`ponder.NormPerStep`).
        early_gradient: ``"equilibrium"`` for early heads that teach the steps before them less
            (`ponder.parts.gradients.equilibrium`).
        alternating: Whether the last step's loss against the labels takes turns with that of all steps (BERxiT, Xin et
            al. 2021, Section 3.1).
        beta: Weight of the divergence from that prior.
        confidence: Highest class probability above which a row leaves.
        q: Q-exit's level, where the task has no classes.

    Example:
        >>> recipe = recipes.get("ponder", confidence=0.9)
        >>> recipe.policy, [stage.teacher for stage in recipe.stages]
        (Confidence(threshold=0.9), ['attached', 'previous', 'attached'])
    """
    check_flag("joint", joint)
    check_flag("alternating", alternating)
    check_choice("heads", heads, ("own", "norms"))
    check_real("labels", labels)
    for name, given, unread in (("labels", labels, (0.0,)), ("mixing", mixing, (0.7, 1.0))):
        if joint and given not in unread:
            raise ArgumentError(
                name,
                expected="nothing with joint=True, which has no teacher to mix with or to stand beside",
                got=given,
                remedy="Leave it out, or leave out joint=True.",
            )
    deep = DeepSupervision("uniform")
    taught: Objective = Distillation(temperature, teacher="frozen")
    joined: Objective = deep + Distillation(temperature) + FinalStep()
    if labels:
        taught = taught + labels * deep
    if alignment:
        taught, joined = taught + Alignment(alignment), joined + Alignment(alignment)
    if alternating:
        taught, joined = Alternating(FinalStep(), taught), Alternating(FinalStep(), joined)
    first = (
        (Stage(joined),)
        if joint
        else (Stage(FinalStep()), Stage(taught, teacher="previous", early_heads="last", mixing=mixing))
    )
    return Recipe(
        name="ponder",
        paper="this library, after Hinton et al. 2015, WiSE-FT and PALBERT, arXiv 2204.03276",
        stages=(*first, Stage(Ponder(beta), train="lambda_head")),
        policy=Confidence(confidence),
        otherwise=Quantile(q),
        lambda_head=LambdaSpec(layers=3, history=2, start="prior"),
        prior=AtDepth(depth),
        per_step_heads=True if heads == "own" else "norms",
        own_lambda_lr=True,
        early_gradient=early_gradient,
    )
