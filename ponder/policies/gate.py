"""A fitted gate: stop where a logistic regression, fitted on a full-depth run, says that staying is no use."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ponder._utils.arrays import at_least_float32, namespace, softmax
from ponder._utils.checks import check_int, check_real
from ponder.errors import ArgumentError
from ponder.policies.base import Array, ModelSpec, PolicyBatch, StepView, Threshold, ThresholdPolicy, registry
from ponder.policies.certainty import SIGNALS, require_classes, sigmoid
from ponder.tasks import fits_positions

__all__ = ["GATE_SIGNALS", "Gate", "default_signals"]

_HAZARDS = ("hazard", "cdf", "expected")
_CLASSES = (*SIGNALS, "streak", "shift")
GATE_SIGNALS = (*_CLASSES, "movement", *_HAZARDS, "hidden")
"""The readings of a gate: certainties of a class; `streak`, the steps for which the answer has stayed; `shift`, the
total variation between this step's class probabilities and those of the step before (1 at the first step); `movement`,
the mean distance between this step's outputs and those before (0 at the first step), for any task; the hazard, the CDF,
and the mean of min(halting step, n), of the Lambda head; and `hidden`, features `(batch, width)`.

Where a row has an answer at each of its positions, the least sure one and the one that shifted most count, and padding
does not.
"""


def default_signals(classes: bool, hazards: bool) -> tuple[str, ...]:
    """Return the signals that a model has: of its classes or, without them, of its numbers, and of its Lambda head."""
    return (*(_CLASSES if classes else ("movement",)), *(_HAZARDS if hazards else ()))


@registry.register("gate")
@dataclass(frozen=True)
class Gate(ThresholdPolicy):
    r"""Stop where the probability that staying pays is below a threshold: σ(w_n · signals_n + b_n) < threshold.

    Made by `ponder.calibration.fit_gate`, which fits it to what a full-depth run on held-out data tells in hindsight,
    as in the second stage of Ouro (Zhu et al. 2025, arXiv 2510.25741).

    Args:
        num_steps: N of the model whose trajectory it was fitted on; None for a gate that all steps share.
        signals: Names from `GATE_SIGNALS`.
        tables: The weights of the signals and the bias last, for each step but the last, or once for all steps.
        threshold: The probability below which a row exits, in [0, 1]; raised, rows exit earlier.
        floor: First step at which a row may exit.
        target: The event that was fitted: ``"gain"``, ``"error"``, ``"agreement"`` or ``"unsettled"``.
        delta: The amount by which a later step has to lower the loss, for ``"gain"``.

    Example:
        >>> gate = policies.Gate(None, ("confidence",), ((-4.0, 2.0),))  # σ(2 − 4 · confidence)
        >>> trajectory.replay(gate.with_threshold(0.2)).exit_step[:3]
        tensor([1, 2, 3])
    """

    num_steps: int | None
    signals: tuple[str, ...]
    tables: tuple[tuple[float, ...], ...] = field(repr=False)
    threshold: float = 0.5
    floor: int = 1
    target: str = "gain"
    delta: float = 0.0
    tunable = Threshold("threshold", "below")

    def __post_init__(self) -> None:
        check_real("threshold", self.threshold, 0.0, 1.0)
        check_int("floor", self.floor)
        if unknown := set(self.signals) - set(GATE_SIGNALS):
            raise ArgumentError(
                "signals", expected=f"some of {', '.join(GATE_SIGNALS)}", got=sorted(unknown), remedy="Correct them."
            )

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """What the signals are computed from."""
        read = set(self.signals)
        there = {"hazard": _HAZARDS, "features": ("hidden",), "output": (*_CLASSES, "movement")}
        return frozenset(need for need, names in there.items() if read & set(names))

    def check(self, spec: ModelSpec) -> None:
        super().check(spec)
        if set(self.signals) & set(_CLASSES):
            require_classes(self, spec)
        if self.num_steps not in (None, spec.num_steps):
            raise ArgumentError(
                "policy",
                expected=f"a gate fitted on a model of {spec.num_steps} steps, as this one has",
                got=f"one fitted on {self.num_steps}",
                remedy="Fit one on this model's own trajectory with ponder.calibration.fit_gate.",
            )

    def init(self, batch: PolicyBatch) -> Any:
        zeros = at_least_float32(namespace(batch.row_ids).zeros_like(batch.row_ids))
        return {"output": None, "streak": zeros, "expected": zeros}

    def statistic(self, step: StepView, state: Any) -> tuple[Array, Any]:
        signals, state = self.read(step, state)
        xp = namespace(signals)
        tables = np.asarray(self.tables) if xp is np else signals.new_tensor(self.tables, dtype=xp.float64)
        own = tables[xp.where(step.index < len(tables), step.index, len(tables)) - 1]
        score = (signals * own[:, :-1]).sum(1) + own[:, -1]  # in float64: great weights cancel one another
        score = xp.where(xp.isfinite(signals).all(1), score, math.nan)  # such rows never exit
        return xp.where(step.index < self.floor, math.inf, sigmoid(score)), state

    def read(self, step: StepView, state: Any) -> tuple[Array, Any]:
        """Return the signals, `(batch, signals)`, and the state for the next step."""
        xp, after = namespace(step.index), dict(state)
        values: dict[str, Array] = {}
        if "output" in self.needs:
            values.update(self._of_outputs(step, state))
            after["output"], after["streak"] = step.output, values.get("streak", state["streak"])
        if "hazard" in self.needs:
            after["expected"] = state["expected"] + step.survival
            values.update(hazard=step.hazard, cdf=step.cdf, expected=after["expected"])
        columns = [values[name][:, None] for name in self.signals if name != "hidden"]
        if "hidden" in self.signals:
            columns.append(step.features)
        return xp.concatenate([at_least_float32(column) for column in columns], 1), after

    def _of_outputs(self, step: StepView, state: Any) -> dict[str, Array]:
        output, xp, first = at_least_float32(step.output), namespace(step.output), step.index == 1
        before = output if state["output"] is None else at_least_float32(state["output"])
        inside = step.mask if step.task.per_position and fits_positions(step.mask, output) else None
        values = {name: -_greatest(-SIGNALS[name](output), inside) for name in SIGNALS if name in self.signals}
        if {"streak", "shift"} & set(self.signals):
            changed = _greatest(at_least_float32(output.argmax(-1) != before.argmax(-1)), inside)
            values["streak"] = xp.where(first | (changed > 0), 0.0, state["streak"] + 1.0)
            shift = _greatest(abs(softmax(output) - softmax(before)).sum(-1) / 2.0, inside)
            values["shift"] = xp.where(first, 1.0, shift)
        if "movement" in self.signals:
            values["movement"] = xp.where(first, 0.0, _mean(abs(output - before), inside))
        return values


def _greatest(values: Array, inside: Array | None) -> Array:
    """Return the greatest value of each row's positions, `(batch,)`, of `(batch,)` or `(batch, positions)`."""
    if values.ndim == 1:
        return values
    xp = namespace(values)
    return xp.amax(values if inside is None else xp.where(inside, values, -math.inf), 1)


def _mean(values: Array, inside: Array | None) -> Array:
    """Return the mean of each row, `(batch,)`, over the positions that count."""
    if inside is None:
        return values.reshape(values.shape[0], -1).mean(1)
    of_positions = values.reshape(*values.shape[:2], -1).mean(2)
    return namespace(values).where(inside, of_positions, 0.0).sum(1) / inside.sum(1)
