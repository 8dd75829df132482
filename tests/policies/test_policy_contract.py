"""Policies as plain data, what they refuse, and what the matrices do not reach."""

from __future__ import annotations

import copy
import json
import math
import pickle
import subprocess
import sys
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from ponder import policies
from ponder.calibration import Record
from ponder.errors import ArgumentError, PonderError
from ponder.policies import ModelSpec, StepView
from ponder.tasks import task_named
from tests.matrices import oracles
from tests.policies.records import (
    CERTIFIED,
    EVERY,
    POSITIONS,
    as_arrays,
    exits_of,
    name,
    of_outputs,
    record,
)


@pytest.mark.parametrize("policy", EVERY, ids=name)
def test_a_policy_survives_json_pickle_and_copies(policy: policies.ExitPolicy) -> None:
    again = [policies.from_dict(json.loads(json.dumps(policy.to_dict())))]
    again += [pickle.loads(pickle.dumps(policy)), copy.deepcopy(policy)]
    assert again == [policy] * 3
    assert {type(each) for each in again} == {type(policy)}
    assert exits_of(record(), again[0]) == exits_of(record(), policy)


@pytest.mark.parametrize("policy", [*EVERY, *POSITIONS], ids=name)
def test_nothing_that_was_passed_in_is_changed(policy: policies.ExitPolicy) -> None:
    made = record("token_classification" if policy in POSITIONS else "classification")
    views = list(made.views(policy.needs))
    state = policy.init(views[0])
    for view in views[:-1]:
        kept = copy.deepcopy((view.readings, view.index, state))
        _, new = policy.decide(view, state)
        torch.testing.assert_close((view.readings, view.index, state), kept, rtol=0, atol=0)
        state = new


@pytest.mark.parametrize("policy", EVERY, ids=name)
def test_needs_are_all_that_is_read(policy: policies.ExitPolicy) -> None:
    made = record()
    assert exits_of(made, policy)  # with what it needs alone
    for need in policy.needs:
        view = next(made.views(policy.needs - {need}))
        with pytest.raises(PonderError, match=f"needs = frozenset.*{need}"):
            policy.decide(view, policy.init(view))


def spec(task: str = "classification", num_steps: int = 6, **has: bool) -> ModelSpec:
    return ModelSpec(num_steps, task_named(task), **{"has_hazard": True, **has})


REFUSED: list[tuple[policies.ExitPolicy, ModelSpec]] = [
    (policies.Quantile(0.5), spec(has_hazard=False)),
    (policies.Confidence(0.5) | policies.Quantile(0.5), spec(has_hazard=False)),
    (policies.Converged(0.1, on="features"), spec(has_features=False)),
    (policies.Entropy(0.5), spec("regression")),
    (policies.Margin(0.5).after(2), spec("multilabel")),
    (policies.Voting(2).after(2), spec("span")),
    (policies.Patience(2), spec("regression")),
    (policies.Converged(), spec("regression")),
    (policies.FixedStep(7), spec()),
    (CERTIFIED, spec(num_steps=5)),
]


@pytest.mark.parametrize(("policy", "wrong"), REFUSED, ids=name)
def test_what_a_model_cannot_serve_is_refused_at_the_door(
    policy: policies.ExitPolicy, wrong: ModelSpec
) -> None:
    with pytest.raises(ArgumentError):
        policy.check(wrong)


@pytest.mark.parametrize("policy", EVERY, ids=name)
def test_a_model_that_has_everything_serves_all(policy: policies.ExitPolicy) -> None:
    policy.check(spec())
    policy.check(ModelSpec(6, has_hazard=True))


def test_unknown_needs_and_words_that_drop_a_policy_are_refused() -> None:
    @dataclass(frozen=True)
    class Typo(policies.ExitPolicy):
        needs = frozenset({"cdf"})

        def decide(self, step: Any, state: Any) -> Any:
            return False, state

    with pytest.raises(ArgumentError, match="'hazard'"):
        Typo().check(spec())
    with pytest.raises(TypeError, match="a & b"):
        policies.Confidence(0.9) and policies.Patience(2)
    with pytest.raises(ArgumentError, match="confidence"):
        policies.get("confidense", threshold=0.5)


@pytest.mark.parametrize(
    "policy", [policies.Entropy(0.2), policies.Confidence(0.5), policies.Voting(2)], ids=name
)
def test_one_output_is_no_class(policy: policies.ExitPolicy) -> None:
    """Its entropy is 0 and its confidence 1: every row would exit at step 1."""
    ids = torch.arange(2)
    view = StepView(torch.ones_like(ids), ids, 4, {"output": torch.zeros(2, 1)})
    with pytest.raises(ArgumentError, match="class logits"):
        policy.decide(view, policy.init(view))


@pytest.mark.parametrize(
    "policy", [policies.Entropy(0.1), policies.Confidence(0.9), policies.Energy(0.9)], ids=name
)
def test_the_surest_rows_exit_and_an_overflow_is_no_certainty(policy: policies.ExitPolicy) -> None:
    for top, exit_step in ((1e4, 1), (math.inf, 3)):
        outputs = torch.tensor([[[0.0, top], [0.0, top], [0.0, 0.0]]])
        made = of_outputs(outputs)
        with np.errstate(invalid="ignore"):
            assert exits_of(made, policy) == exits_of(as_arrays(made), policy) == [exit_step]


def test_steps_are_rescaled_to_one_at_least() -> None:
    for policy in (
        policies.Patience(1),
        policies.Voting(1),
        policies.FixedStep(1),
        policies.Confidence(0.5).after(1),
    ):
        assert policy.rescaled(12, 3) == policy


def test_a_certificate_is_about_its_number_of_steps() -> None:
    assert CERTIFIED.rescaled(6, 6) is CERTIFIED
    assert CERTIFIED.rescaled(6, 12) == policies.Confidence(0.7)
    assert exits_of(record(), CERTIFIED) == exits_of(record(), policies.Confidence(0.7))


def test_numbers_within_the_tolerance_agree_in_all_parts() -> None:
    outputs = torch.tensor([[[1.0, 5.0], [1.05, 6.0], [1.06, 6.01], [1.07, 6.02]]])
    made = of_outputs(outputs, task="regression")
    assert exits_of(made, policies.Patience(1, tolerance=0.1)) == [3]
    assert exits_of(made, policies.Patience(2, tolerance=0.1)) == [4]
    assert exits_of(made, policies.Converged(1.1)) == [2]


def test_features_converge_by_their_residual() -> None:
    made = record()
    for tolerance in (0.1, 0.3, 0.6):
        for patience in (1, 2):
            expected = []
            for row in made.features.tolist():
                count = 0
                step = 6
                for n in range(1, 5):
                    moved = (
                        sum((a - b) ** 2 for a, b in zip(row[n], row[n - 1], strict=True)) ** 0.5
                    )
                    count = (
                        count + 1 if moved <= tolerance * sum(a * a for a in row[n]) ** 0.5 else 0
                    )
                    if count == patience:
                        step = n + 1
                        break
                expected.append(step)
            assert (
                exits_of(made, policies.Converged(tolerance, patience, on="features")) == expected
            )
    zeros = torch.zeros(1, 4, 3)
    assert exits_of(of_outputs(zeros), policies.Converged(on="features")) == [2]


@pytest.mark.parametrize(
    ("policy", "task"),
    [
        *((policy, "token_classification") for policy in POSITIONS),
        (policies.Converged(0.3, on="features"), "token_classification"),
        (policies.Converged(0.3, on="features"), "classification"),  # positions in features alone
    ],
    ids=name,
)
def test_padding_does_not_count(policy: policies.ExitPolicy, task: str) -> None:
    tokens = record("token_classification")
    assert tokens.mask is not None
    made = replace(record(task), features=tokens.outputs, mask=tokens.mask)
    padding = ~tokens.mask[:, None, :, None]
    noise = torch.where(padding, 50.0 * torch.randn(tokens.outputs.shape), 0.0)
    noisy = replace(made, features=made.features + noise)
    if made.outputs.shape == noise.shape:
        noisy = replace(noisy, outputs=made.outputs + noise)
    unmasked = replace(made, mask=torch.ones_like(tokens.mask))
    assert exits_of(noisy, policy) == exits_of(made, policy) != exits_of(unmasked, policy)


def test_unseeded_sampling_draws_anew() -> None:
    first = next(record(rows=1000).views(frozenset()))
    one = policies.Bernoulli().init(first)
    other = policies.Bernoulli().init(first)
    assert not torch.equal(one, other)
    assert 0.45 < float(one.mean()) < 0.55
    of_arrays = next(as_arrays(record()).views(frozenset()))
    assert policies.Bernoulli().init(of_arrays).shape == (40,)


def oracle_exits(policy: policies.ExitPolicy, made: Record) -> list[set[int]]:
    """The steps at which each row may exit, by the plain loops of the matrices."""
    found = []
    for row, outputs in enumerate(made.outputs):
        cells = outputs.unsqueeze(1) if made.mask is None else outputs[:, made.mask[row]]
        given = {"outputs": cells.tolist(), "task": made.batch.task.name, "row_id": row}
        found.append(
            oracles.exits(
                policy.to_dict(), given | {"hazard_logits": made.hazard_logits[row].tolist()}
            )
        )
    return found


@pytest.mark.parametrize(
    ("policy", "task"),
    [*((p, "classification") for p in EVERY), *((p, "token_classification") for p in POSITIONS)],
    ids=name,
)
def test_exits_are_the_oracles(policy: policies.ExitPolicy, task: str) -> None:
    if "features" in policy.needs:
        return  # a loop of its own
    made = record(task)
    for exits in (exits_of(made, policy), exits_of(as_arrays(made), policy)):
        assert all(
            step in allowed for step, allowed in zip(exits, oracle_exits(policy, made), strict=True)
        )


def test_nan_is_no_answer_and_equals_none() -> None:
    nan = math.nan
    outputs = torch.tensor(
        [[[nan, 1.0], [9.0, 0.0], [nan, 1.0], [8.0, 0.0], [7.0, 0.0], [0.0, 0.0]]]
    )
    made = of_outputs(outputs)
    for policy in (policies.Patience(1), policies.Converged(), policies.Voting(3)):
        assert exits_of(made, policy) == exits_of(as_arrays(made), policy) == [5]
    assert (
        exits_of(made, policies.Confidence(0.9))
        == exits_of(as_arrays(made), policies.Energy(0.9))
        == [2]
    )


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from ponder import policies, tasks
import numpy as np

policy = policies.from_dict((policies.Confidence(0.9) | policies.Patience(2).after(2)).to_dict())
outputs = np.array([[0.0, 9.0], [0.0, 1.0]])
step = policies.StepView(np.array([1, 1]), np.arange(2), 3, {"output": outputs})
mask, _ = policy.decide(step, policy.init(step))
assert mask.tolist() == [True, False]
assert "top-k" in policies.names()
"""


def test_policies_decide_where_torch_is_not_installed() -> None:
    subprocess.run([sys.executable, "-c", WITHOUT_TORCH], check=True)
