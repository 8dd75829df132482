"""This library's own combination: fine-tune first, then teach every step to agree with what was fine-tuned."""

from __future__ import annotations

from ponder.objectives import DeepSupervision, Distillation, FinalStep, Objective, Ponder
from ponder.policies import Confidence, Quantile
from ponder.priors import Geometric
from ponder.recipes.base import LambdaSpec, Recipe, Stage, registry


@registry.register("ponder")
def ponder(
    labels: float = 0.0,
    temperature: float = 1.0,
    depth: float = 0.55,
    mixing: float = 0.7,
    *,
    beta: float = 0.5,
    confidence: float = 0.8,
    q: float = 0.25,
) -> Recipe:
    """A fine-tuned model whose steps learn to agree with a frozen copy of it, and exits once the answer is sure.

    1. Plain fine-tuning: the last step learns from the labels.
    2. A frozen copy of that model teaches all steps, the last included, from heads that start as copies of the last:
       each step's loss is the KL divergence to the teacher's answer. At its end the weights, those of the early heads
       excepted, are mixed with the ones that were fine-tuned (WiSE-FT, arXiv 2109.01903), so that the last step keeps
       most of what it knew.
    3. Where the task has no classes, and so no confidence: a Lambda head is fitted to the frozen steps, for Q-exit.

    Args:
        labels: Weight of the mean loss of all steps against the labels, beside the teacher's.
        temperature: Temperature of the distillation.
        depth: Share of the depth at which the prior of the Lambda head expects exits.
        mixing: α, the share of the second stage's weights in what comes out of it; 1 keeps them as they were trained.
        beta: Weight of the divergence from that prior.
        confidence: Highest class probability above which a row exits.
        q: Q-exit's level, where the task has no classes.

    Example:
        >>> recipe = recipes.get("ponder", confidence=0.9)
        >>> recipe.policy, [stage.teacher for stage in recipe.stages]
        (Confidence(threshold=0.9), ['attached', 'previous', 'attached'])
    """
    taught: Objective = Distillation(temperature, teacher="frozen")
    if labels:
        taught = taught + labels * DeepSupervision("uniform")
    return Recipe(
        name="ponder",
        paper="this library, after Hinton et al. 2015, WiSE-FT and PALBERT, arXiv 2204.03276",
        stages=(
            Stage(FinalStep()),
            Stage(taught, teacher="previous", early_heads="last", mixing=mixing),
            Stage(Ponder(beta), train="lambda_head"),
        ),
        policy=Confidence(confidence),
        without_classes=Quantile(q),
        lambda_head=LambdaSpec(layers=3, history=2, start="prior"),
        prior=Geometric.for_mean(1 + 11 * depth, num_steps=12),
        per_step_heads=True,
        own_lambda_lr=True,
    )
