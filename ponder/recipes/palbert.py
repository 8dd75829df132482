"""PonderNet, and PALBERT's four changes to it, each a switch."""

from dataclasses import replace
from typing import Literal

from ponder.objectives import Ponder
from ponder.policies import Bernoulli, Quantile
from ponder.priors import Geometric
from ponder.recipes.base import LambdaSpec, Recipe, Stage


def palbert(
    q_exit: bool = True,
    own_lambda_lr: bool = True,
    deep_lambda: bool = True,
    hidden_concat: bool = True,
    *,
    beta: float = 0.5,
    rate: float = 0.1,
    q: float = 0.5,
    likelihood: Literal["expected_log", "log_expected"] = "expected_log",
    seed: int = 0,
    detach: bool = False,
    as_released: bool = False,
) -> Recipe:
    """PALBERT (the PALBERT paper; its Table 2 is five settings of the four switches).

    The paper's text decides, unless `as_released` is set: then it is the code that the authors
    released (github.com/tinkoff-ai/palbert, commit 52a79af). There the mass that is left at the
    last step is lost, steps behind a CDF of 0.95 have the floor 0.05 / N, the divergence is
    KL(prior ‖ posterior), and the Lambda head has one layer more, all twice as wide, dropout of 0.1
    on its input, and zeros in the place of h_0.

    Args:
        q_exit: Exit at the quantile `q` of the halting distribution, or sample (with `seed`).
        own_lambda_lr: The Lambda head learns at its own rate (`Recipe.own_lambda_lr`).
        deep_lambda: Three layers with tanh, or one.
        hidden_concat: The Lambda head reads this step and the one before, or this step alone.
        beta: Weight of the divergence.
        rate: The geometric prior's hazard, for 12 steps.
        q: Q-exit's level.
        likelihood: How the objective averages over steps (`ponder.objectives.Ponder`);
            ``"log_expected"`` is the paper's Equation 2.
        seed: Seed of the sampled exits, if `q_exit` is off.
        detach: Whether no gradient flows from the hazards into the encoder.
        as_released: Follow the released code where it differs from the text.

    Example:
        >>> recipe = recipes.get("palbert", beta=0.3)
        >>> recipe.policy, recipe.lambda_head.layers, recipe.lambda_head.history
        (Quantile(q=0.5), 3, 2)
    """
    history = 2 if hidden_concat else 1
    lambda_head = LambdaSpec(3 if deep_lambda else 1, history, detach=detach)
    objective = Ponder(beta, likelihood=likelihood)
    if as_released:
        objective = replace(objective, kl="prior_posterior", mass="lost", floor=0.05)
        lambda_head = replace(
            lambda_head,
            layers=4 if deep_lambda else 1,
            initial="zeros",
            dropout=0.1,
            widening=history,
        )
    return Recipe(
        name="palbert",
        paper="PALBERT: Teaching ALBERT to Ponder, arXiv 2204.03276",
        stages=(Stage(objective),),
        policy=Quantile(q) if q_exit else Bernoulli(seed),
        lambda_head=lambda_head,
        prior=Geometric(rate),
        own_lambda_lr=own_lambda_lr,
    )


def pondernet(*, beta: float = 0.5, rate: float = 0.1, seed: int = 0) -> Recipe:
    """PonderNet: one Lambda layer on one step, one learning rate, and sampled exits.

    Args:
        beta: Weight of the divergence.
        rate: The geometric prior's hazard, for 12 steps.
        seed: Seed of the sampled exits.

    Example:
        >>> recipes.get("pondernet", seed=1).policy
        Bernoulli(seed=1)
    """
    without = palbert(False, False, False, False, beta=beta, rate=rate, seed=seed)
    return replace(without, name="pondernet", paper="Banino et al. 2021")
