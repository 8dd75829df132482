"""A fitted gate: a logistic regression that predicts whether the answer will still change."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ponder._utils.arrays import namespace, sigmoid
from ponder._utils.checks import check_real
from ponder.errors import ArgumentError
from ponder.policies.base import (
    Array,
    ModelSpec,
    PolicyBatch,
    PolicyState,
    StepView,
    Threshold,
    registry,
)
from ponder.policies.certainty import OfClasses, class_logits, confidence, margin, negative_entropy

__all__ = ["Gate"]


@registry.register("gate")
@dataclass(frozen=True)
class Gate(OfClasses):
    r"""Stop once the probability of a change is low: σ(w_n · signals_n + b_n) < threshold.

    The signals are the confidence, the margin and the negative entropy of the classes, and the
    number of steps for which the answer has stayed. Made by `ponder.calibration.fit_gate`.

    Args:
        tables: The weights of the signals and the bias last, for each step but the last.
        threshold: The probability below which a row exits, in [0, 1]; raised, rows exit earlier.

    Example:
        >>> gate = policies.Gate(((-4.0, 0.0, 0.0, 0.0, 2.0),) * 3)  # σ(2 − 4 · confidence)
        >>> trajectory.replay(gate.with_threshold(0.2)).exit_step[:3]
        tensor([1, 2, 3])
    """

    tables: tuple[tuple[float, ...], ...] = field(repr=False)
    threshold: float = 0.5
    tunable = Threshold("threshold", "below")

    def __post_init__(self) -> None:
        check_real("threshold", self.threshold, 0.0, 1.0)

    def check(self, spec: ModelSpec) -> None:
        super().check(spec)
        if not spec.task.one_class or len(self.tables) != spec.num_steps - 1:
            expected = f"a gate fitted on one class a row and {spec.num_steps} steps"
            got = f"the task {spec.task.name!r}, and a gate of {len(self.tables) + 1} steps"
            remedy = "Fit one on this model's own trajectory with ponder.calibration.fit_gate."
            raise ArgumentError("policy", expected=expected, got=got, remedy=remedy)

    def init(self, batch: PolicyBatch) -> PolicyState:
        zeros_like = namespace(batch.row_ids).zeros_like
        return {"answer": zeros_like(batch.row_ids), "streak": zeros_like(batch.row_ids)}

    def statistic(self, step: StepView, state: PolicyState) -> tuple[Array, PolicyState]:
        signals, state = self.read(step, state)
        if namespace(signals) is np:
            tables = np.asarray(self.tables, signals.dtype)
        else:
            tables = signals.new_tensor(self.tables)
        of_row = tables[step.index - 1]
        return sigmoid((signals * of_row[:, :-1]).sum(1) + of_row[:, -1]), state

    def read(self, step: StepView, state: PolicyState) -> tuple[Array, PolicyState]:
        """Return the signals, `(batch, signals)`, and the state for the next step."""
        logits = class_logits(self, step)
        xp = namespace(step.output)
        answer = logits.argmax(-1)
        streak = xp.where((answer == state["answer"]) & (step.index > 1), state["streak"] + 1, 0)
        sure = [measure(logits) for measure in (confidence, margin, negative_entropy)]
        return xp.stack([*sure, streak * 1.0], 1), {"answer": answer, "streak": streak}
