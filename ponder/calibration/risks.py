"""Risks: what an early exit can cost a row, as a loss per row and step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ponder.analysis.metrics import checked_labels
from ponder.errors import ArgumentError, ArgumentTypeError
from ponder.parts.recording import Recording
from ponder.parts.tasks.labels import check_labelled

__all__ = ["RecordedRisk", "RiskLike", "losses_by_step", "name_of"]


@dataclass(frozen=True)
class RecordedRisk(ABC):
    """A risk that reads more of a recording than outputs and labels: which positions are real, say.

    Args:
        name: What certificates call it.
    """

    name: str

    @abstractmethod
    def by_step(self, trajectory: Recording) -> Tensor:
        """The loss of each row, should it leave at each step, `(batch, steps)` in [0, 1]."""


RiskLike = Literal["disagreement", "error_gap", "error"] | Callable[[Tensor, Tensor], Tensor] | RecordedRisk


_NAMED = ("disagreement", "error_gap", "error")
_NAMELESS = "custom risk"


def name_of(risk: RiskLike) -> str:
    """What certificates call a risk: its own name, and ``"custom risk"`` where it has none, as a lambda has not."""
    name = risk if isinstance(risk, str) else str(getattr(risk, "name", getattr(risk, "__name__", _NAMELESS)))
    return _NAMELESS if name == "<lambda>" else name


def losses_by_step(risk: RiskLike, trajectory: Recording, low: float = 0.0) -> Tensor:
    """The loss of each row, should it leave at each step, `(batch, steps)` float64.

    Args:
        risk: ``"disagreement"``: 1 where the prediction is not that of full depth. ``"error"``: 1 where it is wrong
            (NaN always is). ``"error_gap"``: 1 where it is wrong and that of full depth right, −1 the other way
            round. Or a callable (outputs `(batch, …)`, labels) → losses in [0, 1], `(batch,)`.
        trajectory: A full-depth run. A callable is given its labels as the task takes them, ignored ones at padding.
        low: The lowest loss that the bound takes: where it is 0, negative losses are cut at 0, which can only raise the
            risk.

    Raises:
        ArgumentError: No labels where the risk needs them, rows without one, a task without right and wrong, labels
            that are no classes where the model names no task, losses out of range, or a callable that makes other
            losses of fewer rows.
    """
    if not isinstance(risk, str) and name_of(risk) in _NAMED:
        raise ArgumentError(
            "risk",
            expected="a risk of another name, by which certificates call it",
            got=f"one of your own that is called {name_of(risk)!r}",
            remedy=f"Rename it, or pass risk={name_of(risk)!r} for the one of that name.",
        )
    if isinstance(risk, RecordedRisk):
        losses = _checked(risk.by_step(trajectory), trajectory)
    elif callable(risk):
        losses = _checked(_by_callable(risk, trajectory), trajectory)
    elif risk == "disagreement":
        _check_comparable(risk, trajectory)
        losses = (~trajectory.agreement()).double()
    elif risk in ("error", "error_gap"):
        _check_comparable(risk, trajectory)
        _labels(risk, trajectory)
        wrong = (~trajectory.correct()).double()
        losses = wrong if risk == "error" else wrong - wrong[:, -1:]
    else:
        raise ArgumentError(
            "risk",
            expected="'disagreement', 'error_gap', 'error', or a callable (outputs, labels) -> losses in [0, 1]",
            got=repr(risk),
            remedy="Choose one.",
        )
    return losses.clamp(min=low).cpu()


def _by_callable(risk: Callable[[Tensor, Tensor], Tensor], trajectory: Recording) -> Tensor:
    labels = _labels("a callable", trajectory)
    if len(labels) != len(trajectory):
        raise ArgumentError(
            "trajectory",
            expected=f"a label for each of its {len(trajectory)} rows",
            got=f"{len(labels)} labels",
            remedy="Join the labels of the same rows to it: dataclasses.replace(trajectory, labels=labels).",
        )
    meaning, labels = checked_labels(trajectory, labels)
    labels = meaning.inside(labels, trajectory.mask)
    check_labelled(meaning, labels)  # what a function makes of the ignored label is no loss
    by_step = trajectory.read_outputs().unbind(1)
    each = [risk(outputs, labels) for outputs in by_step]
    for losses in each:
        if not isinstance(losses, Tensor) or losses.shape != trajectory.row_ids.shape:
            got = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
            raise ArgumentTypeError(
                "risk",
                expected=f"one loss for each row, a tensor of shape {tuple(trajectory.row_ids.shape)}",
                got=got,
                remedy="Do not reduce over the rows.",
            )
    _check_row_by_row(risk, by_step[-1], labels, each[-1])
    losses = torch.stack(each, dim=1)
    return torch.where(trajectory.answered().to(losses.device), losses, torch.ones_like(losses))  # no answer is wrong


def _check_row_by_row(risk: Callable[[Tensor, Tensor], Tensor], outputs: Tensor, labels: Tensor, whole: Tensor) -> None:
    """Refuse a function under which rows have other losses beside others: no bound holds for these.

    It holds the output of each row, `(rows, 1)`, against the labels of all, `(rows,)`, say. Or it divides by the
    largest loss, which half of the rows have without the others: so both halves are looked at.
    """
    some = (len(whole) + 1) // 2
    for which, half in (("first", slice(some)), ("last", slice(some, None))):
        try:
            part = risk(outputs[half], labels[half])
            alike = torch.allclose(part.double(), whole[half].double(), rtol=1e-4, atol=1e-6, equal_nan=True)
        except Exception:  # it takes all rows alone
            return
        if not alike:
            raise ArgumentError(
                "risk",
                expected="a loss of each row by itself",
                got=f"other losses of the {which} {len(whole[half])} rows where the others are left out; outputs are "
                f"{tuple(outputs.shape)} and labels {tuple(labels.shape)}, which PyTorch broadcasts where they differ",
                remedy="Write outputs[:, 0] - labels, say, for outputs (rows, 1), and take no mean or maximum over "
                "the rows.",
            )


def _checked(losses: Tensor, trajectory: Recording) -> Tensor:
    """What a risk of the user's own gave, in float64."""
    shape = (len(trajectory), trajectory.num_steps)
    if not isinstance(losses, Tensor) or losses.shape != shape:
        raise ArgumentTypeError(
            "risk",
            expected=f"one loss for each row and step, a tensor of shape {shape}",
            got=tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__,
            remedy="Let by_step return the loss of leaving at each step.",
        )
    losses = losses.double()
    if not bool(((losses >= 0) & (losses <= 1)).all()):
        raise ArgumentError(
            "risk",
            expected="losses in [0, 1], without which no bound holds",
            got=f"values from {float(losses.min()):.6g} to {float(losses.max()):.6g}",
            remedy="Divide them by the largest loss there can be, a number that you know without these rows.",
        )
    return losses


def _labels(risk: str, trajectory: Recording) -> Tensor:
    if trajectory.labels is None:
        raise ArgumentError(
            "trajectory",
            expected=f"labels, which the risk ({risk}) needs",
            got="none",
            remedy="Record them: model.unroll(inputs, labels=labels); or use risk='disagreement'.",
        )
    return trajectory.labels


def _check_comparable(risk: str, trajectory: Recording) -> None:
    if not trajectory.meaning.comparable:
        raise ArgumentError(
            "risk",
            expected="a callable (outputs, labels) -> losses in [0, 1]: here no prediction is simply right or wrong",
            got=f"{risk!r} with the task {trajectory.task!r}",
            remedy="For example lambda outputs, labels: (outputs[:, 0] - labels).abs().div(5).clamp(max=1).",
        )
    trajectory.check_unnamed()
