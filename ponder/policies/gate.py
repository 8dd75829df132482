"""A fitted gate: stop where a small model, fitted on a frozen model's trajectory, says that staying does not pay."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor

from ponder._utils.numerics import at_least_float32
from ponder._utils.trees import Tree
from ponder._utils.validation import check_choice, check_int, check_real
from ponder.errors import ArgumentError, ArgumentTypeError
from ponder.parts.signals import confidence, energy, margin, negative_entropy
from ponder.parts.tasks.base import fits_positions
from ponder.policies.base import ModelSpec, PolicyBatch, StepView, ThresholdPolicy, has_classes, registry
from ponder.policies.threshold import Threshold

__all__ = ["GATE_SIGNALS", "Gate", "GateReader", "LinearTable", "TreeTable", "default_signals"]

LinearTable = tuple[float, ...]
"""Weights of the signals, and the bias last."""
TreeTable = tuple[float, tuple[tuple[tuple[float, ...], ...], ...]]
"""A bias and trees; a node is (signal, threshold, left, right, value), a leaf has the signal −1."""

_OF_CLASSES: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {"confidence": confidence, "margin": margin, "energy": energy, "negative_entropy": negative_entropy}
)
_OF_HAZARDS = ("hazard", "cdf", "expected")
GATE_SIGNALS = (*_OF_CLASSES, "streak", "shift", "movement", *_OF_HAZARDS, "hidden")
"""What a gate can read of a step: certainties of a class; `streak`, the steps for which the answer has stayed; `shift`,
the total variation between this step's class probabilities and those of the step before (1 at the first step);
`movement`, the mean distance between this step's outputs and those before (0 at the first step), for any task; the
hazard, the CDF, and the mean of min(halting step, n), of the Lambda head; and the features themselves.

Where a row has an answer at each of its positions, the least sure one and the one that shifted most count, and padding
does not; `hidden` is read of features that have no positions, `(batch, width)`.
"""


def default_signals(classes: bool, hazards: bool) -> tuple[str, ...]:
    """The signals that a model has: of its classes or, without them, of its numbers, and of its Lambda head."""
    return (*((*_OF_CLASSES, "streak", "shift") if classes else ("movement",)), *(_OF_HAZARDS if hazards else ()))


@dataclass(frozen=True)
class GateReader:
    """Reads the signals of a step, in the same way where a gate is fitted and where it decides.

    Args:
        signals: Names, from `GATE_SIGNALS`.
    """

    signals: tuple[str, ...]

    @property
    def needs(self) -> frozenset[str]:
        """What the signals are computed from."""
        needs = set()
        if set(self.signals) - {*_OF_HAZARDS, "hidden"}:
            needs.add("output")
        if set(self.signals) & set(_OF_HAZARDS):
            needs.add("hazard")
        if "hidden" in self.signals:
            needs.add("features")
        return frozenset(needs)

    @property
    def reads_classes(self) -> bool:
        """Whether any signal looks at the logits of classes."""
        return bool(set(self.signals) & {*_OF_CLASSES, "streak", "shift"})

    def init(self, batch: PolicyBatch) -> Tree:
        """State before the first step."""
        zeros = torch.zeros(batch.size, device=batch.device)
        return {"output": None, "probabilities": None, "streak": zeros, "expected": zeros}

    def read(self, step: StepView, state: Tree) -> tuple[Tensor, Tree]:
        """The signals, `(batch, signals)` float32, and the state for the next step."""
        values: dict[str, Tensor] = {}
        first = step.index == 1
        after = dict(state)
        if "output" in self.needs:
            output = at_least_float32(step.output).float()
            before = output if state["output"] is None else state["output"]
            after["output"] = output
            inside = step.mask if step.task.per_position and fits_positions(step.mask, output) else None
            if self.reads_classes:
                for name in set(_OF_CLASSES) & set(self.signals):
                    values[name] = -_greatest(-_OF_CLASSES[name](output), inside)
                changed = _greatest((output.argmax(-1) != before.argmax(-1)).float(), inside)
                after["streak"] = values["streak"] = torch.where(first | (changed > 0), 0.0, state["streak"] + 1.0)
                after["probabilities"] = now = output.softmax(-1)
                old = now if state["probabilities"] is None else state["probabilities"]
                moved = _greatest((now - old).abs().sum(-1) / 2.0, inside)
                values["shift"] = torch.where(first, 1.0, moved)
            if "movement" in self.signals:
                values["movement"] = torch.where(first, 0.0, _mean((output - before).abs(), inside))
        if "hazard" in self.needs:
            values["hazard"], values["cdf"] = step.hazard.float(), step.cdf.float()
            after["expected"] = values["expected"] = state["expected"] + step.survival.float()
        columns = [values[name].unsqueeze(1) for name in self.signals if name != "hidden"]
        if "hidden" in self.signals:
            if step.features.dim() > 2:
                raise _positions()
            columns.append(step.features.float().flatten(1))
        return torch.cat(columns, dim=1), after


def _greatest(values: Tensor, inside: Tensor | None) -> Tensor:
    """The greatest value of each row's positions, `(batch,)`, of `(batch,)` or `(batch, positions)`."""
    if values.dim() == 1:
        return values
    return (values if inside is None else torch.where(inside, values, -torch.inf)).amax(1)


def _mean(values: Tensor, inside: Tensor | None) -> Tensor:
    """The mean of each row, `(batch,)`, over the positions that count."""
    if inside is None:
        return values.flatten(1).mean(1)
    of_positions = values.flatten(2).mean(2)
    return torch.where(inside, of_positions, 0.0).sum(1) / inside.sum(1)


@registry.register("gate")
@dataclass(frozen=True)
class Gate(ThresholdPolicy):
    r"""Stop where the probability that staying pays is below a threshold: σ(score_n(signals of step n)) < threshold.

    Made by `ponder.calibration.fit_gate`, which fits one small model a step to what a full-depth run on held-out data
    tells in hindsight, as in the second stage of Ouro (Zhu et al. 2025, "Scaling Latent Reasoning via Looped Language
    Models", arXiv 2510.25741). All of it is plain numbers: nothing of scikit-learn is needed to use or to load one.

    Args:
        num_steps: N of the model whose trajectory it was fitted on; None for a gate that all steps share.
        signals: What it reads, names from `GATE_SIGNALS`.
        kind: ``"logistic"`` or ``"boosted"``.
        tables: The fitted model of each step but the last, or the one of all steps: a `LinearTable` or a `TreeTable`.
        threshold: The probability below which a row leaves, in [0, 1]; raised, rows leave earlier.
        floor: No row leaves before this step.
        target: What was fitted: ``"gain"``, ``"error"``, ``"agreement"`` or ``"unsettled"``.
        delta: The amount by which a later step has to lower the loss, for ``"gain"``.
        fitted_on: Some of the rows that it was fitted on, each as its id and a sum of its record: by these a threshold
            must not be chosen, nor anything promised.
        classes: How many classes the model had on which it was fitted; None where it reads none of them, and for gates
            that were saved before this was kept.

    Example:
        >>> gate = ponder.calibration.fit_gate(trajectory, target="error")
        >>> gate.signals
        ('confidence', 'margin', 'energy', 'negative_entropy', 'streak', 'shift')
        >>> trajectory.replay(gate.with_threshold(0.2)).exit_step[:3]
        tensor([1, 2, 3])
    """

    num_steps: int | None
    signals: tuple[str, ...]
    kind: Literal["logistic", "boosted"]
    tables: tuple[Any, ...] = field(repr=False)
    threshold: float = 0.5
    floor: int = 1
    target: str = "gain"
    delta: float = 0.0
    fitted_on: tuple[tuple[float, ...], ...] = field(default=(), repr=False, compare=False)
    classes: int | None = field(default=None, repr=False)
    tunable = Threshold("threshold", "below")

    def __post_init__(self) -> None:
        check_real("threshold", self.threshold, 0.0, 1.0)
        check_int("floor", self.floor, 1, self.num_steps)
        listed: Any = self.signals
        if isinstance(listed, str):
            raise ArgumentTypeError(
                "signals", expected="several names", got=repr(listed), remedy=f"Pass signals=({listed!r},)."
            )
        object.__setattr__(self, "signals", tuple(self.signals))
        unknown = sorted(set(self.signals) - set(GATE_SIGNALS))
        if unknown or not self.signals:
            raise ArgumentError(
                "signals", expected=f"some of {', '.join(GATE_SIGNALS)}", got=repr(self.signals), remedy="Correct them."
            )
        check_choice("kind", self.kind, ("logistic", "boosted"))
        if len(self.tables) != (1 if self.num_steps is None else self.num_steps - 1):
            before = "all steps" if self.num_steps is None else f"each of {self.num_steps - 1} steps before the last"
            raise ArgumentError(
                "tables",
                expected=f"one for {before}",
                got=len(self.tables),
                remedy="Make gates with ponder.calibration.fit_gate.",
            )

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """What the signals of the gate are computed from."""
        return self.reader.needs

    @property
    def reader(self) -> GateReader:
        """The reader of the gate's signals."""
        return GateReader(self.signals)

    def check(self, spec: ModelSpec) -> None:
        super().check(spec)
        if self.num_steps not in (None, spec.num_steps):
            raise ArgumentError(
                "policy",
                expected=f"a gate fitted on a model of {spec.num_steps} steps, as this one has",
                got=f"one fitted on {self.num_steps}",
                remedy="Fit one on this model's own trajectory with ponder.calibration.fit_gate.",
            )
        if self.reader.reads_classes and not has_classes(spec, self):
            raise ArgumentError(
                "policy",
                expected="classes, of which a gate can read how sure they are",
                got=f"the task {spec.task.name!r}",
                remedy="Fit the gate on a trajectory of this task: it then reads what the task has.",
            )
        if spec.task.per_position and "hidden" in self.signals:
            raise _positions()

    def init(self, batch: PolicyBatch) -> Tree:
        return self.reader.init(batch)

    def statistic(self, step: StepView, state: Tree) -> tuple[Tensor, Tree]:
        if self.classes is not None and step.output.shape[-1] != self.classes:
            raise ArgumentError(
                "policy",
                expected=f"a gate fitted on a model of {step.output.shape[-1]} classes, as this one has",
                got=f"one fitted on {self.classes}",
                remedy="Fit one on this model's own trajectory with ponder.calibration.fit_gate.",
            )
        signals, state = self.reader.read(step, state)
        place = (step.index - 1).clamp(max=len(self.tables) - 1)
        score = self._trees(signals, place) if self.kind == "boosted" else self._line(signals, place)
        score = score.masked_fill(~signals.isfinite().all(1), torch.nan)  # such rows taught nothing, and never leave
        return torch.where(step.index < self.floor, torch.inf, score.sigmoid()), state

    def _line(self, signals: Tensor, place: Tensor) -> Tensor:
        exact = torch.float32 if signals.device.type == "mps" else torch.float64  # great weights cancel one another
        tables = _arrays(self.kind, self.tables)["tables"].to(signals.device, exact)[place]
        self._check_width(signals, tables.shape[1] - 1)
        return ((signals.to(exact) * tables[:, :-1]).sum(1) + tables[:, -1]).float()

    def _trees(self, signals: Tensor, place: Tensor) -> Tensor:
        """Walk down all trees of all rows at once, from the root to the leaves."""
        found = _arrays(self.kind, self.tables)
        self._check_width(signals, int(found["width"]))
        arrays = {name: array.to(signals.device)[place] for name, array in found.items() if name != "width"}
        signal, limit, left, right = (arrays[name] for name in ("signal", "limit", "left", "right"))
        node = torch.zeros(signal.shape[:2], dtype=torch.long, device=signals.device).unsqueeze(-1)
        for _ in range(signal.shape[2] // 2):  # no tree of so many nodes is deeper
            at = signal.gather(2, node)
            value = signals.unsqueeze(1).expand(-1, signal.shape[1], -1).gather(2, at.clamp(min=0))
            below = torch.where(value <= limit.gather(2, node), left.gather(2, node), right.gather(2, node))
            node = torch.where(at < 0, node, below)
        return arrays["value"].gather(2, node).squeeze(-1).sum(1) + arrays["bias"]

    def _check_width(self, signals: Tensor, fitted: int) -> None:
        """Features of another width are another model's; `fitted` may be less where trees do not read the last."""
        if signals.shape[1] < fitted or (self.kind == "logistic" and signals.shape[1] != fitted):
            raise ArgumentError(
                "policy",
                expected=f"a gate fitted on features of the model's width ({signals.shape[1]} signals in all)",
                got=f"one fitted on {fitted}",
                remedy="Fit one on this model's own trajectory with ponder.calibration.fit_gate.",
            )


def _positions() -> ArgumentError:
    """The error of features that have positions, of which some are padding."""
    return ArgumentError(
        "signals",
        expected="one number a row; features have one for each position here",
        got="'hidden'",
        remedy="Leave it out, or build a model whose readout gives one vector a row: ponder.readouts.mean, say.",
    )


@lru_cache(maxsize=32)
def _arrays(kind: str, tables: tuple[Any, ...]) -> dict[str, Tensor]:
    """The tables as tensors, `(steps − 1, …)`; trees padded with leaves of 0."""
    if kind == "logistic":
        return {"tables": torch.tensor(tables, dtype=torch.float64)}
    trees = [table[1] for table in tables]
    many, nodes = max(map(len, trees), default=0), max((len(tree) for of in trees for tree in of), default=1)
    padded = torch.zeros(len(trees), max(many, 1), nodes, 5, dtype=torch.float64)
    padded[..., 0] = -1.0
    for n, of_step in enumerate(trees):
        for t, tree in enumerate(of_step):
            padded[n, t, : len(tree)] = torch.tensor(tree, dtype=torch.float64)
    signal, limit, left, right, value = padded.unbind(-1)
    return {
        "signal": signal.long(),
        "limit": limit,
        "left": left.long(),
        "right": right.long(),
        "value": value.float(),
        "bias": torch.tensor([table[0] for table in tables]),
        "width": signal.max().long() + 1,
    }
