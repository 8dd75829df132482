"""Rows at different depths are decided together, in a stream and in `Loop.carry`.

    rows at their last step exit, and the policy is not asked about them
    rows at their first step get their state: policy.init of their part of the view
    the states are joined, and the policy is asked once

So a row is decided as in a batch whose rows are all at one step.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ponder._utils.arrays import as_like, concatenate_rows, select_rows
from ponder.policies.base import ExitPolicy, PolicyState, StepView
from ponder.running.loop import Decision, ask
from ponder.running.source import Array, Ints

__all__ = ["ask_at_depths"]


def ask_at_depths(policy: ExitPolicy, view: StepView, state: PolicyState, steps: Ints) -> Decision:
    """Ask a policy about rows at different steps, of which those at step 1 come last.

    Args:
        policy: The policy.
        view: The view of all rows after the step.
        state: The state of the policy, of the rows that have finished a step before.
        steps: The step that each row has just finished, `(rows,)` on the host.

    Returns:
        The exit mask, and the state of all rows; that of a row at its last step is never read.
    """
    runs_on = steps < view.num_steps
    if not runs_on.any():
        return Decision(True, state)
    fresh = np.flatnonzero(steps == 1)
    if len(fresh) == len(steps):
        state = policy.init(view)
    elif len(fresh):
        of_fresh = policy.init(_rows_of(view, as_like(fresh, view.index)))
        state = concatenate_rows([state, of_fresh])
    if runs_on.all():
        return ask(policy, view, state)
    asked = np.flatnonzero(runs_on)
    index = as_like(asked, view.index)
    decision = ask(policy, _rows_of(view, index), select_rows(state, index))
    exits = ~runs_on
    exits[asked] = decision.exits
    # Rows at their last step keep a place, with the state of some other row.
    places = np.maximum(np.cumsum(runs_on) - 1, 0)
    return Decision(exits, select_rows(decision.state, as_like(places, view.index)))


def _rows_of(view: StepView, index: Array) -> StepView:
    """Return the view of some of the rows."""
    return replace(
        view,
        index=select_rows(view.index, index),
        row_ids=select_rows(view.row_ids, index),
        readings=select_rows(view.readings, index),
        mask=select_rows(view.mask, index),
        policy_context=select_rows(view.policy_context, index),
    )
