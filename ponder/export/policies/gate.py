"""A fitted gate: plain numbers, so that a small model of scikit-learn decides without scikit-learn and PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np

from ponder._utils.validation import check_choice, check_int, check_real
from ponder.errors import ArgumentError
from ponder.export.policies.base import Array, ModelSpec, NumpyPolicy, StepView, check_classes, registry
from ponder.export.policies.signals import (
    at_least_float32,
    confidence,
    energy,
    least,
    log_softmax,
    margin,
    negative_entropy,
    sigmoid,
)

__all__ = ["Gate"]

_OF_CLASSES = MappingProxyType(
    {"confidence": confidence, "margin": margin, "energy": energy, "negative_entropy": negative_entropy},
)
_OF_ANSWERS = frozenset({*_OF_CLASSES, "streak", "shift"})
_OF_HAZARDS = frozenset({"hazard", "cdf", "expected"})
_SIGNALS = _OF_ANSWERS | _OF_HAZARDS | {"movement", "hidden"}
_LEAF = -1


@registry.register("gate")
@dataclass(frozen=True)
class Gate(NumpyPolicy):
    """Twin of `ponder.policies.Gate`."""

    num_steps: int | None
    signals: tuple[str, ...]
    kind: str
    tables: tuple[Any, ...] = field(repr=False)
    threshold: float = 0.5
    floor: int = 1
    classes: int | None = None

    @classmethod
    def arguments(cls, fields: Mapping[str, Any]) -> dict[str, Any]:
        told = {"target", "delta"}  # what was fitted, which decides nothing
        return super().arguments({name: value for name, value in fields.items() if name not in told})

    def __post_init__(self) -> None:
        check_real("threshold", self.threshold, 0.0, 1.0)
        check_int("floor", self.floor, 1, self.num_steps)
        check_choice("kind", self.kind, ("logistic", "boosted"))
        for signal in self.signals:
            check_choice("signals", signal, sorted(_SIGNALS))
        if len(self.tables) != (1 if self.num_steps is None else self.num_steps - 1):
            raise ArgumentError(
                "tables",
                expected="one for each step before the last, or one where all steps share it",
                got=len(self.tables),
                remedy="Make gates with ponder.calibration.fit_gate.",
            )

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """What the signals are computed from."""
        read = set(self.signals)
        sources = {"hazard": read & _OF_HAZARDS, "features": read & {"hidden"}}
        sources["output"] = read - _OF_HAZARDS - {"hidden"}
        return frozenset(name for name, some in sources.items() if some)

    def check(self, model: ModelSpec) -> None:
        super().check(model)
        if self.num_steps not in (None, model.num_steps):
            raise _fitted_elsewhere(f"a model of {model.num_steps} steps, as this one has", self.num_steps)
        if _OF_ANSWERS & set(self.signals):
            check_classes(model, self)
        if self.classes is not None and self.classes != model.outputs[-1]:
            raise _fitted_elsewhere(f"a model of {model.outputs[-1]} classes, as this one has", self.classes)
        if model.task.per_position and "hidden" in self.signals:
            raise ArgumentError(
                "signals",
                expected="one number a row; features have one for each position here",
                got="'hidden'",
                remedy="Fit a gate without it.",
            )
        width = len(self.signals) + ("hidden" in self.signals) * (sum(model.features) - 1)
        fitted = self._width()
        if self.tables and (width < fitted or (self.kind == "logistic" and width != fitted)):
            raise _fitted_elsewhere(f"features of the model's width ({width} signals in all)", fitted)

    def _width(self) -> int:
        """How many signals the tables know of, at least: trees may not read the last."""
        if self.kind == "logistic":
            return len(self.tables[0]) - 1 if self.tables else 0
        return 1 + int(max((node[0] for _, trees in self.tables for tree in trees for node in tree), default=_LEAF))

    @cached_property
    def _arrays(self) -> list[tuple[Any, Array]]:
        """The bias and the weights, or trees, of each table."""
        return [
            _trees(*table) if self.kind == "boosted" else (table[-1], np.array(table[:-1])) for table in self.tables
        ]

    def init(self, row_ids: Array) -> Any:
        """Outputs and class probabilities of the step before, for how many steps the answer has stayed, and E[n]."""
        return None, None, np.zeros(len(row_ids), np.float32), np.zeros(len(row_ids), np.float32)

    def decide(self, step: StepView, state: Any) -> tuple[Array, Any]:
        signals, state = self._read(step, state)
        table = self._arrays[0 if self.num_steps is None else step.index - 1]
        score = _boosted(signals, *table) if self.kind == "boosted" else _logistic(signals, *table)
        usable = np.isfinite(signals).all(1)  # other rows taught nothing, and never leave
        return (sigmoid(score) < np.float32(self.threshold)) & usable & (step.index >= self.floor), state

    def _read(self, step: StepView, state: Any) -> tuple[Array, Any]:
        """The signals, `(rows, signals)` float32, and the state for the next step."""
        before, old, streak, expected = state
        values: dict[str, Array] = {}
        output: Array | None = None
        now: Array | None = None
        if "output" in self.needs:
            assert step.output is not None
            output = at_least_float32(step.output).astype(np.float32)
            if _OF_ANSWERS & set(self.signals):
                for name in _OF_CLASSES.keys() & set(self.signals):
                    values[name] = least(_OF_CLASSES[name](output), step.mask)
                now = np.exp(log_softmax(output))
                first = before is None
                alike = np.zeros(output.shape[:-1]) if first else (output.argmax(-1) == before.argmax(-1)) * 1.0
                stays = least(alike, step.mask) > 0
                values["streak"] = streak = np.where(stays, streak + np.float32(1), np.float32(0))
                moved = np.ones(output.shape[:-1], np.float32) if first else np.abs(now - old).sum(-1) / 2
                values["shift"] = -least(-moved, step.mask)
            if "movement" in self.signals:
                apart = np.zeros_like(output) if before is None else np.abs(output - before)
                values["movement"] = _mean(apart, step.mask)
        if "hazard" in self.needs:
            assert step.hazard is not None
            assert step.cdf is not None
            assert step.survival is not None
            values["hazard"], values["cdf"] = step.hazard, step.cdf
            values["expected"] = expected = expected + step.survival
        columns = [values[name][:, None] for name in self.signals if name != "hidden"]
        if "hidden" in self.signals:
            assert step.features is not None
            columns.append(step.features)
        return np.concatenate(columns, axis=1, dtype=np.float32), (output, now, streak, expected)


def _mean(values: Array, mask: Array | None) -> Array:
    """The mean of each row, `(rows,)`, over the positions that count."""
    rows = len(values)
    if mask is None:
        return np.asarray(values.reshape(rows, -1).mean(1))
    of_positions = values.reshape(*values.shape[:2], -1).mean(2)
    return np.asarray(np.where(mask, of_positions, np.float32(0)).sum(1) / mask.sum(1).astype(np.float32))


def _logistic(signals: Array, bias: float, weights: Array) -> Array:
    """The score of each row, `(rows,)`; in float64, since great weights cancel one another."""
    score: Array = ((signals.astype(np.float64) * weights).sum(1) + bias).astype(np.float32)
    return score


def _boosted(signals: Array, bias: np.float32, nodes: Array) -> Array:
    """The bias and what all trees add to it, `(rows,)`: each row goes down all trees at once, from root to leaf."""
    trees, rows = np.arange(len(nodes)), np.arange(len(signals))[:, None]
    place = np.zeros((len(signals), len(nodes)), dtype=np.int64)
    for _ in range(nodes.shape[1] // 2):  # no tree of so many nodes is deeper
        read, limit, left, right = np.moveaxis(nodes[trees, place, :4], -1, 0)
        below = np.where(signals[rows, np.maximum(read, 0).astype(np.int64)] <= limit, left, right).astype(np.int64)
        place = np.where(read == _LEAF, place, below)
    score: Array = nodes[trees, place, 4].astype(np.float32).sum(1) + bias
    return score


def _trees(bias: float, trees: tuple[tuple[tuple[float, ...], ...], ...]) -> tuple[np.float32, Array]:
    """The bias and the trees of a step, `(trees, nodes, 5)` float64, padded with leaves of 0."""
    nodes = np.zeros((len(trees), max(map(len, trees), default=1), 5))
    nodes[..., 0] = _LEAF
    for own, tree in zip(nodes, trees, strict=True):
        own[: len(tree)] = tree
    return np.float32(bias), nodes


def _fitted_elsewhere(expected: str, got: object) -> ArgumentError:
    return ArgumentError(
        "policy",
        expected=f"a gate fitted on {expected}",
        got=f"one fitted on {got}",
        remedy="Fit one on this model's own trajectory with ponder.calibration.fit_gate.",
    )
