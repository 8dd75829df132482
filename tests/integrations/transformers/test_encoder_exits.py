"""Every exit policy on every family of encoders: replay, batches of one, padding, and nothing computed in vain."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from ponder.errors import ArgumentError
from ponder.policies import Bernoulli, Entropy, LastStep, Patience, Quantile
from tests.integrations.transformers.encoders import (
    FAMILIES,
    layers_of,
    make_batch,
    make_model,
    model_for,
    pad,
    rows_computed,
    rows_of,
    segments,
)
from tests.ponder.examples import POLICIES, Example, make_policy

families = pytest.mark.parametrize("name", FAMILIES)
# All policies on the family with the most to it; the others share them.
policies = pytest.mark.parametrize(
    ("name", "example"),
    [
        (name, example)
        for place, name in enumerate(FAMILIES)
        for turn, example in enumerate(POLICIES)
        if place == 0 or turn % 2 == place % 2
    ],
    ids=str,
)
IDS = torch.tensor([41, 7, 1000, 3, 12, 5])


@functools.cache
def shared_model(name: str, task: str) -> Any:
    """One model for the tests that only call it."""
    return model_for(name, task)


def close(left: torch.Tensor, right: torch.Tensor) -> None:
    torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-4)


def everything(encoder: Any) -> dict[str, torch.Tensor]:
    batch = make_batch(encoder)
    return {**batch, "token_type_ids": segments(batch)}


@policies
@torch.no_grad()
def test_replay_is_run(name: str, example: Example) -> None:
    model, policy = shared_model(name, example.task), make_policy(example)
    batch = everything(model.encoder)
    out = model(**batch, policy=policy, row_ids=IDS)
    replayed = model.unroll(**batch, row_ids=IDS).replay(policy)
    assert out.exit_step.dtype == torch.long
    assert torch.equal(out.exit_step, replayed.exit_step)
    close(out.logits, replayed.outputs)


@policies
@torch.no_grad()
def test_a_row_alone_leaves_as_it_does_in_company(name: str, example: Example) -> None:
    model, policy = shared_model(name, example.task), make_policy(example)
    batch = everything(model.encoder)
    together = model(**batch, policy=policy, row_ids=IDS)
    for row in range(len(IDS)):
        index = torch.tensor([row])
        alone = model(**rows_of(batch, index), policy=policy, row_ids=IDS[index])
        assert torch.equal(alone.exit_step, together.exit_step[index]), row
        close(alone.logits, together.logits[index])


@policies
@torch.no_grad()
def test_order_and_padding_do_not_matter(name: str, example: Example) -> None:
    model, policy = shared_model(name, example.task), make_policy(example)
    batch = everything(model.encoder)
    before = model(**batch, policy=policy, row_ids=IDS)
    order = torch.tensor([4, 2, 0, 5, 3, 1])
    moved = model(**pad(rows_of(batch, order), model.encoder, 4), policy=policy, row_ids=IDS[order])
    assert torch.equal(moved.exit_step, before.exit_step[order])
    close(moved.logits, before.logits[order])


@policies
@torch.no_grad()
def test_nothing_is_computed_that_no_row_needs(name: str, example: Example) -> None:
    model, policy = shared_model(name, example.task), make_policy(example)
    batch = everything(model.encoder)
    with (
        rows_computed(layers_of(model.encoder)) as layers,
        rows_computed([model.ponder.head]) as answers,
        rows_computed([model.ponder.lambda_head]) as hazards,
    ):
        out = model(**batch, policy=policy, row_ids=IDS)
    steps, num_steps = out.exit_step, model.ponder.num_steps
    assert sum(layers) == steps.sum()
    asked = int(steps.clamp(max=num_steps - 1).sum())  # the last step belongs to the loop
    assert sum(hazards) == (asked if "hazard" in policy.needs else 0)
    assert sum(answers) == (steps.sum() if "output" in policy.needs else len(steps))


@families
@torch.no_grad()
def test_the_tests_above_see_rows_leave_at_different_steps(name: str) -> None:
    spread = set()
    for example in POLICIES:
        model = shared_model(name, example.task)
        steps = model(**everything(model.encoder), policy=make_policy(example), row_ids=IDS).exit_step
        spread.add(len(set(steps.tolist())))
    assert max(spread) >= 3, spread


@families
@torch.no_grad()
def test_sampling_without_a_seed_follows_the_global_generator(name: str) -> None:
    model = model_for(name, "classification")
    batch, drawn = everything(model.encoder), []
    for seed in (3, 3, 4, 5):
        torch.manual_seed(seed)
        out = model(**batch, policy=Bernoulli())
        torch.manual_seed(seed)
        replayed = model.unroll(**batch).replay(Bernoulli())
        assert torch.equal(out.exit_step, replayed.exit_step)
        drawn.append(out.exit_step.tolist())
    assert drawn[0] == drawn[1]
    assert any(other != drawn[0] for other in drawn[2:])


@families
@torch.no_grad()
def test_the_hazard_of_the_model_is_what_the_trajectory_records(name: str) -> None:
    model = model_for(name, "classification")
    trajectory = model.unroll(**everything(model.encoder))
    cdf = trajectory.halting.cdf_table
    first = (cdf > 0.5).float().argmax(1) + 1
    assert torch.equal(model(**everything(model.encoder), policy=Quantile(0.5)).exit_step, first)


@families
@pytest.mark.parametrize("training", [False, True])
def test_a_batch_of_no_rows(name: str, training: bool) -> None:
    model = model_for(name, "classification").train(training)
    batch = rows_of(everything(model.encoder), torch.tensor([], dtype=torch.long))
    with rows_computed(layers_of(model.encoder)) as calls:
        out = model(**batch, labels=torch.tensor([], dtype=torch.long))
    assert calls == []
    assert out.logits.shape == (0, 3)
    assert out.exit_step.shape == (0,)
    assert out.loss.item() == 0.0
    assert len(model.eval().unroll(**batch)) == 0


@families
def test_a_row_that_is_all_padding_is_refused(name: str) -> None:
    model = model_for(name, "classification")
    batch = make_batch(model.encoder)
    batch["attention_mask"][[1, 4]] = 0
    with pytest.raises(ArgumentError, match=r"attention_mask.*rows \[1, 4\].*Drop empty examples"):
        model(**batch)


@pytest.mark.parametrize(
    ("arguments", "policy"),
    [
        ({"recipe": "vanilla"}, Quantile(0.5)),
        ({"recipe": "pabee"}, Bernoulli(0)),
        ({"num_labels": 1}, Entropy(0.2)),
        ({"num_labels": 1}, Patience(2)),
        ({"num_labels": 3, "problem_type": "multi_label_classification"}, Entropy(0.2)),
        ({}, Patience(5)),
    ],
)
def test_a_policy_that_cannot_serve_is_refused_and_the_old_one_stays(arguments: dict[str, Any], policy: Any) -> None:
    model = make_model("bert", **arguments)
    before, saved = model.policy, dict(model.config.recipe)
    with pytest.raises(ArgumentError):
        model(**make_batch(model.encoder), policy=policy)
    with pytest.raises(ArgumentError):
        model.policy = policy
    assert model.policy == before
    assert model.config.recipe == saved
    model(**make_batch(model.encoder), policy=LastStep())
