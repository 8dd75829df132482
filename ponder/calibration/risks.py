"""Risks: what an early exit can cost a row, as a loss per row and step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from ponder.calibration.records import Bools, Floats, Record
from ponder.errors import ArgumentError

__all__ = ["Missed", "Risk", "RiskLike", "losses_of", "name_of"]


class Risk(ABC):
    """Base of risks that read more of a record than outputs and labels, or are about some of its rows alone.

    A leaf has a `name`, by which certificates call it, and `losses`.
    """

    name: str

    @abstractmethod
    def losses(self, record: Record) -> Floats:
        """Return the loss of each row, should it exit at each step, `(rows, steps)` in [0, 1]."""

    def rows(self, record: Record) -> Bools | None:
        """Return the rows that count, `(rows,)` bool; None for all."""
        return None


RiskLike: TypeAlias = Literal["disagreement", "error_gap", "error"] | Callable[[Any, Any], Any] | Risk
_NAMED = ("disagreement", "error_gap", "error")


@dataclass(frozen=True)
class Missed(Risk):
    """Among rows whose reference is in named classes, the share that is answered otherwise.

    It is the risk of guards and of moderation: "at most 2% of the attacks pass".

    Args:
        classes: The positive classes, by their numbers.
        reference: ``"full_depth"``, the answers of full depth, or ``"labels"``.
        name: Its name in certificates.

    Example:
        >>> found = ponder.control_risk(trajectory, policies.Confidence, risk=Missed([2]), level=0.05)
        >>> found.policy.risk, found.policy.rows
        ('missed', 100)
    """

    classes: Sequence[int]
    reference: Literal["full_depth", "labels"] = "full_depth"
    name: str = "missed"

    def losses(self, record: Record) -> Floats:
        """Return 1 where the answer is another than the reference, `(rows, steps)`."""
        same = record.agreement() if self.reference == "full_depth" else record.correct()
        return 1.0 - same

    def rows(self, record: Record) -> Bools:
        """Return which rows have a positive reference, `(rows,)`."""
        if self.reference == "labels":
            reference = np.asarray(record.labels)
        else:
            *_, last = record.views(frozenset({"output"}))
            reference = np.asarray(last.output).argmax(-1)
        return np.isin(reference, np.asarray(self.classes))


def name_of(risk: RiskLike) -> str:
    """Return the name of a risk in certificates; a lambda is a "custom risk"."""
    name = risk if isinstance(risk, str) else str(getattr(risk, "name", getattr(risk, "__name__", "<lambda>")))
    return "custom risk" if name == "<lambda>" else name


def losses_of(risk: RiskLike, record: Record, low: float = 0.0) -> tuple[Floats, Bools | None]:
    """Return the loss of each row at each step, `(rows, steps)`, and the rows that count, None for all.

    ``"disagreement"`` is 1 where the answer is not that of full depth, ``"error"`` 1 where it is wrong (NaN always is),
    ``"error_gap"`` 1 where it is wrong and that of full depth right, −1 the other way round. Losses below `low`, the
    lowest that the bound takes, are raised to it, which can only raise the risk.
    """
    rows = None
    if not isinstance(risk, str):
        if callable(risk):
            losses = np.asarray(record.losses(risk, low), dtype=np.float64)
        else:
            losses = np.asarray(risk.losses(record), dtype=np.float64)
            rows = risk.rows(record)
    elif risk == "disagreement":
        losses = 1.0 - record.agreement()
    elif risk in _NAMED:
        losses = 1.0 - record.correct()
        losses = losses if risk == "error" else losses - losses[:, -1:]
    else:
        raise ArgumentError(
            "risk",
            expected="'disagreement', 'error_gap', 'error', a callable (outputs, labels) -> losses, or a Risk",
            got=repr(risk),
            remedy="Choose one.",
        )
    if losses.shape != (len(record), record.num_steps) or not ((losses >= -1.0) & (losses <= 1.0)).all():
        raise ArgumentError(
            "risk",
            expected=f"a loss in [0, 1] for each row and step, {(len(record), record.num_steps)}",
            got=f"shape {losses.shape}, values from {losses.min():.6g} to {losses.max():.6g}",
            remedy="Do not reduce over the rows, and divide by the largest loss there can be.",
        )
    return np.maximum(losses, low), rows
