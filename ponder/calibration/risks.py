"""Risks: what an early exit can cost a row, as a loss per row and step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from ponder.calibration.records import Bools, Floats, Ints, Record, as_array, at_exits
from ponder.errors import ArgumentError
from ponder.policies.base import ExitPolicy, all_within

__all__ = [
    "Missed",
    "OtherAnswers",
    "Ranking",
    "Risk",
    "RiskLike",
    "bound_for",
    "loss_at",
    "losses_of",
    "name_of",
    "ranked",
    "resolved",
]


class Risk(ABC):
    """Base of risks that read more than outputs and labels, or that are about some rows only.

    A leaf has a `name`, by which certificates call it, and `losses`.
    """

    name: str

    @abstractmethod
    def losses(self, record: Record) -> Floats:
        """Return the loss of each row, should it exit at each step, `(rows, steps)` in [0, 1]."""

    def rows(self, record: Record) -> Bools | None:
        """Return the rows that count, `(rows,)` bool; None for all."""
        return None

    def is_binary(self) -> bool:
        """Return whether every loss is 0 or 1 by definition, for the exact binomial bound."""
        return False


Named: TypeAlias = Literal[
    "disagreement", "error_gap", "error", "top_k", "top_1", "ndcg", "ndcg_gap"
]
RiskLike: TypeAlias = Named | Callable[[Any, Any], Any] | Risk
_NAMED = ("disagreement", "error_gap", "error")
_RANKINGS = ("top_k", "top_1", "ndcg", "ndcg_gap")


@dataclass(frozen=True)
class Missed(Risk):
    """Among rows whose reference is in named classes, the share with another answer.

    It is the risk of guards and of moderation: "at most 2% of the attacks pass".

    Args:
        classes: The positive classes, by their numbers.
        reference: ``"full_depth"``, the answers of full depth, or ``"labels"``.
        name: Its name in certificates.

    Example:
        >>> risk = Missed([2])
        >>> found = ponder.control_risk(trajectory, policies.Confidence, risk=risk, level=0.05)
        >>> found.policy.risk, found.policy.rows
        ('missed', 100)
    """

    classes: Sequence[int]
    reference: Literal["full_depth", "labels"] = "full_depth"
    name: str = "missed"

    def is_binary(self) -> bool:
        """Return True: an answer is another, or it is not."""
        return True

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


@dataclass(frozen=True)
class OtherAnswers(Risk):
    """The risk of another answer than that of a reference, which the record has as its labels."""

    name: str = "disagreement_with_reference"

    def is_binary(self) -> bool:
        """Return True: an answer is another, or it is not."""
        return True

    def losses(self, record: Record) -> Floats:
        """Return 1 where the answer is another, `(rows, steps)`."""
        return 1.0 - record.correct()


@dataclass(frozen=True)
class Ranking(Risk):
    r"""The loss of a query, whose candidates are a group of rows, against the full order.

    Candidates that exit later rank higher, and those that exit together rank by their scores.
    ``"top_k"`` is 1 where one of the first k has a lower score at full depth than the k-th there (a
    tie is no change), and ``"top_1"`` where the first has another than the highest. ``"ndcg"`` is 1
    − nDCG@k with the gains k, k − 1, … 1 of the order at full depth; ``"ndcg_gap"`` is what nDCG@k
    loses against it with the labels as gains, below 0 where it wins.

    Args:
        name: ``"top_k"``, ``"top_1"``, ``"ndcg"`` or ``"ndcg_gap"``.
        k: How many of the candidates count.

    Example:
        >>> scores = torch.tensor([[4.0, 4.0], [3.0, 5.0], [1.0, 0.0]]).unsqueeze(-1)
        >>> groups = {"group": torch.zeros(3)}
        >>> record = Trajectory(scores, None, torch.arange(3), policy_context=groups)
        >>> first = Ranking("top_1", 1)
        >>> first.of_exits(record, [1, 1, 1]), first.of_exits(record, [1, 2, 1])
        (array([1.]), array([0.]))
    """

    name: str
    k: int

    def is_binary(self) -> bool:
        """Return whether the loss counts queries with other candidates, and not a share of nDCG."""
        return self.name in ("top_k", "top_1")

    def losses(self, record: Record) -> Floats:
        """See `Risk.losses`: a row has no loss of its own."""
        raise ArgumentError(
            "risk",
            expected="a risk of single rows",
            got=self.name,
            remedy="Use ponder.control_risk.",
        )

    def of_exits(self, record: Record, steps: Any) -> Floats:
        """Return the loss of each query, `(queries,)` in [−1, 1], for exit steps, `(rows,)`."""
        groups = np.unique(as_array((record.policy_context or {})["group"]), return_inverse=True)[1]
        scores = as_array(record.outputs)[..., 0]
        steps = np.asarray(steps)
        last = np.where(np.isnan(scores[:, -1]), -np.inf, scores[:, -1])
        found = ranked(groups, scores[np.arange(len(scores)), steps - 1], steps)
        wanted = ranked(groups, last)
        queries = int(groups.max()) + 1
        if self.is_binary():
            k = self.k if self.name == "top_k" else 1
            lowest = np.full(queries, np.inf)
            of_found = np.full(queries, np.inf)
            np.minimum.at(lowest, groups[wanted < k], last[wanted < k])
            np.minimum.at(of_found, groups[found < k], last[found < k])
            return (of_found < lowest).astype(np.float64)
        if self.name == "ndcg":
            gains = np.maximum(self.k - wanted, 0.0)
        else:
            gains = as_array(record.labels).reshape(len(scores))
        made, plain, best = (
            np.bincount(
                groups, np.where(place < self.k, gains / np.log2(place + 2.0), 0.0), queries
            )
            for place in (found, wanted, ranked(groups, gains))
        )
        lost: Floats = (plain - made) / np.where(best > 0, best, 1.0)
        return lost


def ranked(groups: Ints, scores: Floats, steps: Any = 0) -> Ints:
    """Return the place of each row in its group, from 0: by exit step, score, and position."""
    scores = np.where(np.isnan(scores), -np.inf, scores)
    order = np.lexsort((-scores, -np.broadcast_to(steps, scores.shape), groups))
    _, starts, number = np.unique(groups[order], return_index=True, return_inverse=True)
    places = np.empty(len(order), dtype=np.intp)
    places[order] = np.arange(len(order)) - starts[number]
    return places


def resolved(risk: RiskLike, policy: ExitPolicy) -> RiskLike:
    """Return a risk of queries with the k of the policy, by its name; any other as it is."""
    found = [part.k for part in all_within(policy) if hasattr(part, "k")]
    if found and isinstance(risk, str) and risk in _RANKINGS:
        return Ranking(risk, found[0])
    return risk


def bound_for(risk: RiskLike) -> str:
    """Return the name of the sharpest bound that holds for a risk by its definition.

    Losses that are 0 or 1 on some rows may be others on the next, so a callable gets the bound for
    any loss. An `"error_gap"` is cut at 0, and is then 0 or 1.

    Example:
        >>> bound_for("disagreement"), bound_for(lambda outputs, labels: 0.5 * (labels > 1))
        ('exact_binomial', 'hoeffding_bentkus')
    """
    binary = risk.is_binary() if isinstance(risk, Risk) else risk in _NAMED
    return "exact_binomial" if binary else "hoeffding_bentkus"


def loss_at(risk: RiskLike, record: Record, low: float = 0.0) -> Callable[[Ints], Floats]:
    """Return a function from exit steps, `(thresholds, rows)`, to losses of counting rows."""
    if isinstance(risk, Ranking):
        return lambda steps: np.stack(
            [np.maximum(risk.of_exits(record, each), low) for each in steps]
        )
    losses, rows = losses_of(risk, record, low)
    return lambda steps: at_exits(losses, steps)[:, slice(None) if rows is None else rows]


def name_of(risk: RiskLike) -> str:
    """Return the name of a risk in certificates; a lambda is a "custom risk"."""
    if isinstance(risk, str):
        return risk
    name = str(getattr(risk, "name", getattr(risk, "__name__", "<lambda>")))
    return "custom risk" if name == "<lambda>" else name


def losses_of(risk: RiskLike, record: Record, low: float = 0.0) -> tuple[Floats, Bools | None]:
    """Return the loss of each row at each step, `(rows, steps)`, and the rows that count.

    ``"disagreement"`` is 1 where the answer is not that of full depth, ``"error"`` 1 where it is
    wrong (NaN always is), ``"error_gap"`` 1 where it is wrong and that of full depth right, −1 the
    other way round. Losses below `low`, the lowest that the bound takes, are raised to it, which
    can only raise the risk.
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
        expected = "'disagreement', 'error_gap', 'error', a callable (outputs, labels) -> losses, "
        expected += "or a Risk"
        remedy = (
            f"Choose one; {', '.join(map(repr, _RANKINGS))} are of queries, with policies.TopK."
        )
        raise ArgumentError("risk", expected=expected, got=repr(risk), remedy=remedy)
    if (
        losses.shape != (len(record), record.num_steps)
        or not ((losses >= -1.0) & (losses <= 1.0)).all()
    ):
        expected = f"a loss in [0, 1] for each row and step, {(len(record), record.num_steps)}"
        got = f"shape {losses.shape}, values from {losses.min():.6g} to {losses.max():.6g}"
        remedy = "Do not reduce over the rows, and divide by the largest loss there can be."
        raise ArgumentError("risk", expected=expected, got=got, remedy=remedy)
    return np.maximum(losses, low), rows
