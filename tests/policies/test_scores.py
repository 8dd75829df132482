"""Scores: exits under any threshold are the first crossing of one matrix, of tensors and of arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from ponder import policies
from ponder.policies.base import all_within
from tests.policies.records import (
    COMPOSED,
    EVERY,
    POSITIONS,
    SIMPLE,
    as_arrays,
    exits_of,
    name,
    of_outputs,
    record,
)

TUNABLE = [policy for policy in SIMPLE if policy.tunable is not None]
FREE: list[tuple[Any, policies.ThresholdPolicy]] = [
    (lambda p: p, policies.Confidence(0.8)),
    (lambda p: p | policies.Patience(3), policies.Confidence(0.8)),
    (lambda p: policies.Quantile(0.3) & p, policies.Confidence(0.8)),
    (lambda p: p.after(2).before(5), policies.Confidence(0.8)),
    (lambda p: (policies.Margin(0.9) | p).after(2), policies.Voting(3)),
    (lambda p: (p | policies.FixedStep(4)) & policies.Patience(1), policies.Patience(2)),
]


def crossings(scores: Any, tunable: policies.Threshold, value: float) -> list[int]:
    """The first step at which each row is above the bar, or at it."""
    bar = scores.dtype.type(value if tunable.higher_exits_later else -value)
    crossed = scores >= bar if tunable.inclusive else scores > bar
    return [int(step) + 1 for step in crossed.argmax(1)]


def values_of(scores: Any, tunable: policies.Threshold) -> list[float]:
    """Scores themselves, at which > and ≥ differ, and values between and beyond."""
    known = np.unique(scores[np.isfinite(scores)])[:: 1 if tunable.whole else 7]
    between = (known[1:] + known[:-1]) / 2
    values = [*known.tolist(), *between.tolist()]
    values = values if tunable.higher_exits_later else [-value for value in values]
    whole = {float(max(1, round(value))) for value in values} if tunable.whole else values
    return [value for value in whole if tunable.whole or 0.0 <= value <= 1.0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("policy", TUNABLE, ids=name)
@pytest.mark.parametrize("arrays", [False, True], ids=["tensors", "arrays"])
def test_exits_under_any_threshold_are_first_crossings(
    policy: policies.ThresholdPolicy, arrays: bool, dtype: torch.dtype
) -> None:
    made = as_arrays(record(dtype=dtype)) if arrays else record(dtype=dtype)
    scores = policy.scores(made)
    tunable = policy.tunable
    values = values_of(scores, tunable)
    assert scores.shape == (40, 6)
    assert (scores[:, -1] == np.inf).all()
    assert len(values) > 2 or isinstance(policy, policies.Converged)
    for value in values:
        assert crossings(scores, tunable, value) == exits_of(made, policy.with_threshold(value)), (
            value
        )


@pytest.mark.parametrize(("around", "free"), FREE, ids=[str(i) for i in range(len(FREE))])
def test_a_threshold_inside_is_swept_in_one_pass(
    around: Any, free: policies.ThresholdPolicy
) -> None:
    made = record()
    scores = around(free).scores(made, free)
    for value in values_of(free.scores(made), free.tunable):
        expected = exits_of(made, around(free.with_threshold(value)))
        assert crossings(scores, free.tunable, value) == expected, value


def test_the_outermost_threshold_is_free_by_default() -> None:
    made = record()
    free = policies.Confidence(0.8)
    for policy in (free.after(2), policies.Patience(2) & free, free | policies.Patience(2)):
        first = next(each for each in all_within(policy) if each.tunable)
        assert np.array_equal(policy.scores(made), policy.scores(made, first))
    assert set(policies.LastStep().scores(made)[:, :-1].flat) == {-np.inf}


@pytest.mark.parametrize(
    ("policy", "task"),
    [*((p, "classification") for p in EVERY), *((p, "token_classification") for p in POSITIONS)],
    ids=name,
)
def test_arrays_and_tensors_agree(policy: policies.ExitPolicy, task: str) -> None:
    made = record(task)
    exits = exits_of(made, policy)
    assert exits_of(as_arrays(made), policy) == exits
    np.testing.assert_allclose(
        policy.scores(as_arrays(made)), policy.scores(made), rtol=1e-6, atol=1e-9
    )
    blind = isinstance(policy, policies.FixedStep | policies.LastStep)
    assert (len(set(exits)) == 1) is blind, (
        "rows exit at different steps, or the matrix compares nothing"
    )


@pytest.mark.parametrize(
    "policy", [p for p in (*SIMPLE, *COMPOSED) if not isinstance(p, policies.Bernoulli)], ids=name
)
def test_a_row_does_not_depend_on_its_company(policy: policies.ExitPolicy) -> None:
    made = record()
    rows = torch.randperm(40)[:9]
    exits = exits_of(made, policy)
    assert exits_of(made.map(lambda tensor: tensor[rows]), policy) == [exits[row] for row in rows]


def test_nan_crosses_no_threshold() -> None:
    outputs = torch.full((1, 3, 2), torch.nan)
    made = of_outputs(outputs)
    for policy in (
        policies.Confidence(0.0),
        policies.Entropy(9.0),
        policies.Margin(0.0),
        policies.Quantile(0.0),
    ):
        assert policy.scores(made)[0].tolist() == [-np.inf, -np.inf, np.inf]
        with np.errstate(invalid="ignore"):
            assert exits_of(made, policy) == exits_of(as_arrays(made), policy) == [3]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_compared_in_float32(dtype: torch.dtype) -> None:
    made = record(dtype=dtype)
    for policy in (policies.Confidence(0.8), policies.Entropy(0.6), policies.Energy(0.95)):
        scores = policy.scores(made)
        assert scores.dtype == np.float32
        for value in values_of(scores, policy.tunable)[:10]:
            assert crossings(scores, policy.tunable, value) == exits_of(
                made, policy.with_threshold(value)
            )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_statistic_in_half_precision_is_compared_alike_in_run_and_sweep(
    dtype: torch.dtype,
) -> None:
    @dataclass(frozen=True)
    class Largest(policies.ThresholdPolicy):
        threshold: float
        needs = frozenset({"output"})
        tunable = policies.Threshold("threshold", "above")

        def statistic(self, step: Any, state: Any) -> Any:
            return step.output.amax(-1), state

    made = record(dtype=dtype)
    scores = Largest(0.0).scores(made)
    for value in np.unique(scores)[:-1] - 1e-6:  # which half precision does not tell from the score
        assert crossings(scores, Largest.tunable, float(value)) == exits_of(
            made, Largest(float(value))
        )


@pytest.mark.parametrize("classes", [2, 3, 77])
@pytest.mark.parametrize(
    "policy", [policies.Entropy, policies.Confidence, policies.Energy, policies.Margin]
)
def test_default_values_reach_from_the_first_step_to_no_exit(policy: Any, classes: int) -> None:
    outputs = 2 * torch.randn(50, 4, classes, dtype=torch.float64)
    made = of_outputs(outputs)
    tunable = policy.tunable
    values = tunable.values(num_steps=4, width=classes)
    assert values == sorted(values)
    assert len(values) == 201
    means = [float(np.mean(exits_of(made, policy(value)))) for value in (values[0], values[-1])]
    assert sorted(means) == [1.0, 4.0]
    assert (means[0] < means[1]) is tunable.higher_exits_later


def test_whole_values_are_all_of_them() -> None:
    assert policies.Patience.tunable.values(6, 3) == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert (
        policies.Voting.tunable.values(4, 3)
        == policies.FixedStep.tunable.values(4, 3)
        == [1.0, 2.0, 3.0, 4.0]
    )
    assert policies.Patience(2).with_threshold(3.0) == policies.Patience(3)
