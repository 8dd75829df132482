r"""The view of a step, which a policy reads, and the state that a loop carries for each row.

With the hazard λ_n = σ(logit_n), the probability of not having stopped before step n is S_{n−1} =
Π_{j<n} (1 − λ_j), and that of having stopped by step n is CDF_n = 1 − S_n. The logarithm of S is
carried, so that a thousand steps lose no digits: log S_n = log S_{n−1} + log σ(−logit_n).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from ponder._utils.arrays import at_least_float32, copied, namespace, select_rows
from ponder.policies.base import ExitPolicy, PolicyBatch, StepView
from ponder.running.source import Array, Source
from ponder.tasks import fits_positions

__all__ = ["Reading", "RowState", "read_step", "views"]

_FROM_CALLER = frozenset({"context", "group"})


class RowState(NamedTuple):
    """The state of each running row between two steps: a tree of arrays, batch first.

    Args:
        step: The step that each row has finished, `(rows,)` integers; 0 before the first.
        policy: The state of the policy.
        log_survival: log P(not stopped so far), `(rows,)`; None if the policy reads no hazards.
    """

    step: Array
    policy: Any
    log_survival: Array | None

    @classmethod
    def start(cls, policy: ExitPolicy, batch: PolicyBatch) -> RowState:
        """Return the state of rows before their first step."""
        step = batch.row_ids * 0
        return cls(step, policy.init(batch), _no_stop_yet(step, policy.needs))

    def keep(self, index: Array) -> RowState:
        """Return the state of some of the rows."""
        log_survival = self.log_survival
        if log_survival is not None:
            log_survival = log_survival[index]
        return RowState(self.step[index], select_rows(self.policy, index), log_survival)


class Reading(NamedTuple):
    """The view of a step, and log P(not stopped by this step), `(rows,)`, or None."""

    view: StepView
    log_survival: Array | None


def read_step(source: Source, needs: frozenset[str], rows: RowState, batch: PolicyBatch) -> Reading:
    """Return the view of the running rows for a policy with these needs, after `source.advance`.

    Args:
        source: The running rows.
        needs: The readings of the policy; no others are computed.
        rows: The state of the rows after the step before.
        batch: The batch that the rows belong to: the number of steps and the task.
    """
    readings: dict[str, Array] = {}
    log_survival = rows.log_survival
    if log_survival is not None:
        logit = source.hazard_logit()
        xp = namespace(logit)
        log_stay = -xp.logaddexp(xp.zeros_like(logit), logit)  # log σ(−logit) = log(1 − λ)
        readings["hazard"] = -xp.expm1(log_stay)
        readings["survival"] = xp.exp(log_survival)
        log_survival = log_survival + log_stay
        readings["cdf"] = -xp.expm1(log_survival)
    mask = source.mask
    task = batch.task
    # Policies get copies: one that writes into its readings would otherwise change answers.
    if "output" in needs:
        outputs = copied(source.output())
        if mask is not None:
            outputs = task.without_padding(outputs, mask)
        readings["output"] = outputs
    if "features" in needs:
        readings["features"] = copied(source.features())
    if not task.per_position and not fits_positions(mask, readings.get("features")):
        mask = None
    context = None
    if needs & _FROM_CALLER:
        context = source.policy_context
    view = StepView(rows.step + 1, batch.num_steps, readings, task, mask, context)
    return Reading(view, log_survival)


def views(source: Source, needs: frozenset[str], batch: PolicyBatch) -> Iterator[StepView]:
    """Yield the view of each step 1 … N for a policy with these needs, if no row exits."""
    start = batch.row_ids * 0
    rows = RowState(start, None, _no_stop_yet(start, needs))
    for step in range(1, batch.num_steps + 1):
        source.advance(step)
        reading = read_step(source, needs, rows, batch)
        rows = RowState(reading.view.index, None, reading.log_survival)
        yield reading.view


def _no_stop_yet(start: Array, needs: frozenset[str]) -> Array | None:
    """Return log P(not stopped) before step 1, zeros `(rows,)`; None if hazards are not read."""
    if "hazard" not in needs:
        return None
    return at_least_float32(start)
