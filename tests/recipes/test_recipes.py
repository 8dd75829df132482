"""Recipes: what each trains and by what it exits, for any depth and task, as plain data."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from ponder import objectives, policies, priors, recipes
from ponder.errors import ArgumentError
from ponder.recipes import LambdaSpec, Recipe, Stage

ALL = objectives.DeepSupervision
LAST = objectives.FinalStep()
BY_LABELS = Stage(LAST)
STAGES: dict[str, tuple[Stage, ...]] = {
    "vanilla": (BY_LABELS,),
    "static": (Stage(objectives.OneStep(3)),),
    "pondernet": (Stage(objectives.Ponder(0.5)),),
    "palbert": (Stage(objectives.Ponder(0.5)),),
    "act": (Stage(objectives.ACT(0.01)),),
    "pabee": (Stage(ALL("linear")),),
    "leebert": (Stage(ALL("linear") + 1.0 * objectives.MutualDistillation(2.0)),),
    "deebert": (BY_LABELS, Stage(ALL("uniform"), train="early_heads")),
    "fastbert": (BY_LABELS, Stage(objectives.Distillation(), train="early_heads")),
    "cosee": (
        Stage(
            objectives.SimulatedExits(5, 10.0, signal="energy")
            + 0.1 * objectives.SignalCalibration(signal="energy")
        ),
    ),
    "frozen": (
        BY_LABELS,
        Stage(objectives.Distillation(), train="early_heads"),
        Stage(objectives.Ponder(0.5), train="lambda_head"),
    ),
}
FOR_TASKS: list[
    tuple[str, str, policies.ExitPolicy, int, bool]
] = [  # recipe, task, policy, stages, Lambda head
    ("frozen", "classification", policies.Confidence(0.8), 2, False),
    ("frozen", "regression", policies.Quantile(0.25), 3, True),
    ("frozen", "multilabel", policies.Quantile(0.25), 3, True),
    ("frozen", "token_classification", policies.Quantile(0.25), 3, True),
    ("palbert", "classification", policies.Quantile(0.5), 1, True),
    ("pabee", "regression", policies.Patience(6, 0.1), 1, False),
    ("deebert", "classification", policies.Entropy(0.2), 2, False),
]


def test_every_recipe_is_here() -> None:
    assert set(recipes.names()) == set(STAGES)


@pytest.mark.parametrize("name", STAGES)
def test_stages_and_round_trip(name: str) -> None:
    recipe = recipes.get(name)
    assert recipe.name == name
    assert recipe.stages == STAGES[name]
    again = Recipe.from_dict(json.loads(json.dumps(recipe.to_dict())))
    assert again == recipe
    early = any(stage.train == "early_heads" for stage in recipe.stages)
    assert recipe.per_step_heads or not early


@pytest.mark.parametrize(("name", "task", "policy", "stages", "halts"), FOR_TASKS)
def test_a_recipe_is_adapted_to_its_task(
    name: str, task: Any, policy: policies.ExitPolicy, stages: int, halts: bool
) -> None:
    recipe = recipes.get(name).for_task(task)
    assert recipe.policy == policy
    assert len(recipe.stages) == stages
    assert (recipe.lambda_head is not None) is (recipe.prior is not None) is halts
    assert recipe.for_task(task) == recipe


def test_a_policy_or_a_stage_that_reads_hazards_keeps_the_lambda_head() -> None:
    recipe = recipes.get("frozen")
    kept = replace(recipe, policy=policies.Confidence(0.8) | policies.Quantile(0.9)).for_task(
        "classification"
    )
    assert kept.lambda_head == recipe.lambda_head
    assert len(kept.stages) == 3


@pytest.mark.parametrize("num_steps", [1, 4, 6, 24])
@pytest.mark.parametrize("name", STAGES)
def test_a_recipe_is_adapted_to_its_number_of_steps(name: str, num_steps: int) -> None:
    recipe = recipes.get(name)
    made = recipe.for_steps(num_steps)
    assert made.for_steps(num_steps) == made
    assert made.policy == (
        recipe.policy if name == "static" else recipe.policy.rescaled(12, num_steps)
    )
    assert made.stages == recipe.stages
    if recipe.prior is not None:
        assert made.prior == recipe.prior.rescaled(12, num_steps)


def test_learned_priors_are_the_models_own() -> None:
    recipe = replace(recipes.get("palbert"), prior=priors.Learned(12))
    one = recipe.for_steps(12).prior
    other = recipe.for_steps(12).prior
    assert one == other == recipe.prior
    assert len({id(each.module) for each in (one, other, recipe.prior) if each is not None}) == 3


def test_palbert_with_every_switch_off_is_pondernet() -> None:
    sampled = recipes.get(
        "palbert", q_exit=False, seed=4, deep_lambda=False, hidden_concat=False, own_lambda_lr=False
    )
    assert sampled.policy == recipes.get("pondernet", seed=4).policy == policies.Bernoulli(4)
    assert sampled.lambda_head == recipes.get("pondernet").lambda_head == LambdaSpec()
    assert sampled.stages == recipes.get("pondernet").stages
    taught = recipes.get("static", k=4, taught=True, temperature=2.0)
    assert taught.stages[1].objective.depth(12).steps == 4
    assert taught.policy == policies.FixedStep(4)


def test_palbert_as_released_is_plain_json_too() -> None:
    recipe = recipes.get("palbert", as_released=True, hidden_concat=False)
    assert recipe.lambda_head == LambdaSpec(4, 1, initial="zeros", dropout=0.1, widening=1)
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    assert recipe.policy == recipes.get("palbert").policy


def test_the_default_expects_exits_at_a_share_of_the_depth() -> None:
    for num_steps in (4, 6, 12, 24):
        prior = recipes.get("frozen").for_steps(num_steps).prior
        assert prior is not None
        assert float(prior(num_steps).mean) == pytest.approx(1 + 0.55 * (num_steps - 1), rel=0.03)


@pytest.mark.parametrize(("start", "hazard"), [("half", 0.5), ("prior", 0.1)])
def test_where_a_new_lambda_head_starts(start: Any, hazard: float) -> None:
    assert LambdaSpec(start=start).hazard(priors.Geometric(0.1), 12) == pytest.approx(hazard)
    assert LambdaSpec(start="prior").hazard(None, 12) == 0.5
    certain = priors.Tabulated((1.0, 0.0))
    assert LambdaSpec(start="prior").hazard(certain, 2) < 1.0


def test_a_recipe_of_ones_own_is_registered() -> None:
    @recipes.register("mine-for-the-test")
    def mine(threshold: float = 0.9) -> Recipe:
        return Recipe("mine-for-the-test", "nowhere", (BY_LABELS,), policies.Confidence(threshold))

    try:
        assert recipes.get("mine-for-the-test", threshold=0.7).policy == policies.Confidence(0.7)
        with pytest.raises(TypeError, match="treshold"):
            recipes.get("mine-for-the-test", treshold=0.7)
    finally:
        recipes.base.registry._factories.pop("mine-for-the-test")
    with pytest.raises(ArgumentError, match="palbert"):
        recipes.get("palbrt")
    with pytest.raises(ArgumentError, match="train"):
        Stage(LAST, train="heads")  # type: ignore[arg-type]
    assert torch.is_grad_enabled()
