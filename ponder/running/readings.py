r"""The view of a step, which a policy reads, and the state that a loop carries for each row.

With the hazard λ_n = σ(logit_n), the probability of not having stopped before step n is S_{n−1} =
Π_{j<n} (1 − λ_j), and that of having stopped by step n is CDF_n = 1 − S_n. The logarithm of S is
carried, so that a thousand steps lose no digits: log S_n = log S_{n−1} + log σ(−logit_n).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Self

from ponder._utils.arrays import at_least_float32, copied, namespace, select_rows
from ponder.policies.base import PolicyBatch, StepView
from ponder.running.source import Array, Source
from ponder.tasks import fits_positions

__all__ = ["Reading", "RowState", "read_step", "views"]

_FROM_CALLER = frozenset({"context", "group"})


class RowState(NamedTuple):
    """The state of each running row between two steps, besides that of the policy.

    Args:
        row_ids: The identity of each row, `(rows,)` integers.
        step: The step that each row has finished, `(rows,)` integers; 0 before the first.
        log_survival: log P(not stopped so far), `(rows,)`; None if the policy reads no hazards.
    """

    row_ids: Array
    step: Array
    log_survival: Array | None

    @classmethod
    def start(cls, row_ids: Array, needs: frozenset[str]) -> Self:
        """Return the state of rows before their first step, for a policy with these needs."""
        step = row_ids * 0
        log_survival = None
        if "hazard" in needs:
            log_survival = at_least_float32(step)
        return cls(row_ids, step, log_survival)

    def keep(self, index: Array) -> Self:
        """Return the state of some of the rows."""
        return select_rows(self, index)


class Reading(NamedTuple):
    """The view of a step, and the state of its rows after it."""

    view: StepView
    rows: RowState


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
    step = rows.step + 1
    view = StepView(step, rows.row_ids, batch.num_steps, readings, task, mask, context)
    return Reading(view, RowState(rows.row_ids, step, log_survival))


def views(source: Source, needs: frozenset[str], batch: PolicyBatch) -> Iterator[StepView]:
    """Yield the view of each step 1 … N for a policy with these needs, if no row exits."""
    rows = RowState.start(batch.row_ids, needs)
    for step in range(1, batch.num_steps + 1):
        source.advance(step)
        view, rows = read_step(source, needs, rows, batch)
        yield view
