"""Frozen: fine-tune, then train early heads on the model's answers, on a frozen encoder."""

from ponder.objectives import Distillation, FinalStep, Ponder
from ponder.policies import Confidence, Quantile
from ponder.priors import Geometric
from ponder.recipes.base import LambdaSpec, Recipe, Stage


def frozen(*, confidence: float = 0.8, q: float = 0.25) -> Recipe:
    """A frozen fine-tuned model, whose answers early heads learn; exits once these are certain.

    What is fine-tuned first stays as it is, bit for bit at full depth; the second stage reads no
    labels. FastBERT (Liu et al. 2020) trains so and exits by entropy. Where the task has no
    classes, and so no confidence, a Lambda head is fitted to the frozen steps in a third stage, for
    Q-exit; its prior expects exits a little behind the middle.

    Args:
        confidence: Highest class probability above which a row exits.
        q: Q-exit's level, if the task has no classes.

    Example:
        >>> recipe = recipes.get("frozen", confidence=0.9)
        >>> recipe.policy, [stage.train for stage in recipe.for_task("classification").stages]
        (Confidence(threshold=0.9), ['all', 'early_heads'])
    """
    return Recipe(
        name="frozen",
        paper="this library, after FastBERT and PALBERT, arXiv 2204.03276",
        stages=(
            Stage(FinalStep()),
            Stage(Distillation(), train="early_heads"),
            Stage(Ponder(0.5), train="lambda_head"),
        ),
        policy=Confidence(confidence),
        without_classes=Quantile(q),
        lambda_head=LambdaSpec(layers=3, history=2, start="prior"),
        prior=Geometric.for_mean(7.05, num_steps=12),
        per_step_heads=True,
        own_lambda_lr=True,
    )
