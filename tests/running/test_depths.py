"""Rows at different steps are decided as in batches of their own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ponder import policies
from ponder._utils.arrays import concatenate_rows, select_rows
from ponder.policies import ExitPolicy, StepView
from ponder.running.depths import ask_at_depths
from tests.policies.records import as_arrays, record

STEPS = 6
BY_DEPTH = [
    policies.Patience(1),
    policies.Voting(2),
    policies.ACT(0.4),
    policies.Bernoulli(seed=3),
    policies.Confidence(0.6),
    policies.Patience(1) | policies.Quantile(0.5),
]


def rows_of(view: StepView, rows: list[int]) -> StepView:
    index = np.array(rows)
    readings = select_rows(view.readings, index)
    return replace(view, index=view.index[index], row_ids=view.row_ids[index], readings=readings)


def joined(views: list[StepView]) -> StepView:
    readings = concatenate_rows([dict(view.readings) for view in views])
    index, row_ids = concatenate_rows([(view.index, view.row_ids) for view in views])
    return replace(views[0], index=index, row_ids=row_ids, readings=readings)


def state_after(policy: ExitPolicy, views: list[StepView], steps: int) -> Any:
    state = policy.init(views[0])
    for view in views[:steps]:
        _, state = policy.decide(view, state)
    return state


@pytest.mark.parametrize("policy", BY_DEPTH, ids=lambda policy: type(policy).__name__)
def test_rows_at_different_steps_are_decided_as_alone(policy: ExitPolicy) -> None:
    views = list(as_arrays(record(steps=STEPS)).views(policy.needs))
    third = list(range(10))
    last = [10, 11, 12]
    first = list(range(13, 40))
    view = joined([rows_of(views[2], third), rows_of(views[-1], last), rows_of(views[0], first)])
    before = concatenate_rows(
        [
            select_rows(state_after(policy, views, 2), np.array(third)),
            select_rows(state_after(policy, views, STEPS - 1), np.array(last)),
        ]
    )
    decision = ask_at_depths(policy, view, before, view.index)
    alone = policy.decide(views[2], state_after(policy, views, 2))
    alone_at_first = policy.decide(views[0], policy.init(views[0]))
    assert np.array_equal(decision.exits[:10], alone[0][third])
    assert decision.exits[10:13].all()
    assert np.array_equal(decision.exits[13:], alone_at_first[0][first])
    index = np.array([*range(10), *range(13, 40)])
    after = concatenate_rows(
        [
            select_rows(alone[1], np.array(third)),
            select_rows(alone_at_first[1], np.array(first)),
        ]
    )
    np.testing.assert_equal(select_rows(decision.state, index), after)


def test_a_policy_is_not_asked_about_rows_at_their_last_step() -> None:
    class Never(policies.ExitPolicy):
        def init(self, first: StepView) -> Any:
            raise AssertionError

        decide = init  # type: ignore[assignment]

    view = StepView(np.array([4, 4]), np.arange(2), 4, {})
    assert ask_at_depths(Never(), view, None, view.index).exits is True
