"""The library's own combination of version 0.1: PALBERT, deep supervision and distillation, all trained together."""

from __future__ import annotations

from ponder.objectives import DeepSupervision, Distillation, Ponder
from ponder.policies import Confidence, Quantile
from ponder.priors import AtDepth
from ponder.recipes.base import LambdaSpec, Recipe, Stage, registry

__all__ = ["palbert_joint"]


@registry.register("palbert-joint")
def palbert_joint(
    deep: float = 1.0,
    distill: float = 0.5,
    depth: float = 0.55,
    per_step_heads: bool = True,
    start: bool = False,
    *,
    beta: float = 0.5,
    confidence: float = 0.8,
    q: float = 0.25,
) -> Recipe:
    """PALBERT with a head a step, the losses of all steps, and distillation; classes leave once the answer is sure.

    Chosen on held-out parts of GLUE's training sets. There the posterior of the Lambda head hardly differs between
    examples, so that Q-exit is all but one fixed step, and a confident answer is the better sign at the same cost.
    Where the task is not classification there is no confidence, and Q-exit stays. The losses of all steps pay there; in
    classification PALBERT's own training, left by confidence, is as good. Until version 0.1 this was `ponder`.

    Args:
        deep: Weight of PABEE's weighted mean of the steps' losses.
        distill: Weight of the distillation from the last step.
        depth: Share of the depth at which the prior expects exits.
        per_step_heads: One head a step, or one for all.
        start: Let the Lambda head start at the prior's hazard, or at one half, as in the committed runs.
        beta: Weight of the divergence.
        confidence: Highest class probability above which a row leaves.
        q: Q-exit's level, where the task is not classification.

    Example:
        >>> recipe = palbert_joint()
        >>> recipe.for_task("classification").policy, recipe.for_task("regression").policy
        (Confidence(threshold=0.8), Quantile(q=0.25))
    """
    objective = Ponder(beta) + deep * DeepSupervision("linear") + Distillation(2.0, distill)
    return Recipe(
        name="palbert-joint",
        paper="PALBERT, arXiv 2204.03276, with Zhou et al. 2020 and Liu et al. 2020",
        stages=(Stage(objective),),
        policy=Confidence(confidence),
        otherwise=Quantile(q),
        lambda_head=LambdaSpec(layers=3, history=2, start="prior" if start else "half"),
        prior=AtDepth(depth),
        per_step_heads=per_step_heads,
        own_lambda_lr=True,
    )
