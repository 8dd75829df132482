"""Risks: the loss of each row if it exits at each step.

A risk is given by name, as a callable (outputs, labels) → losses, or as a `Risk`. `losses_of` turns
any of them into a table of losses, and `loss_at` into a function of exit steps. Of a `Ranking` the
rows of a group, the candidates of a query, have one loss together.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from ponder._utils.arrays import as_array
from ponder.calibration.records import Bools, Floats, Ints, Record, at_exits
from ponder.errors import ArgumentError
from ponder.policies.base import ExitPolicy, all_within

__all__ = [
    "Missed",
    "Moved",
    "OtherAnswers",
    "Ranking",
    "Risk",
    "RiskLike",
    "RiskWords",
    "bound_for",
    "loss_at",
    "losses_of",
    "name_of",
    "ranked",
    "resolved",
    "words_of",
]


@dataclass(frozen=True)
class RiskWords:
    """How a promise names a risk.

    Args:
        change: What may happen to a row, ``"other answers"``, or the name of a mean loss.
        unit: Noun of a row.
        is_mean: Whether the level limits the mean of a loss, and not a share of rows.
    """

    change: str
    unit: str = "row"
    is_mean: bool = False


class Risk(ABC):
    """Base of risks that read more than outputs and labels, or count only some of the rows.

    A subclass has a `name`, which certificates show, and `losses`.
    """

    name: str

    @abstractmethod
    def losses(self, record: Record) -> Floats:
        """Return the loss of each row if it exits at each step, `(rows, steps)` in [0, 1]."""

    def rows(self, record: Record) -> Bools | None:
        """Return the rows that count, `(rows,)` bool; None for all."""
        return None

    def is_binary(self) -> bool:
        """Return whether every loss is 0 or 1 by definition, so that the exact bound holds."""
        return False

    def words(self) -> RiskWords:
        """Return how a promise names the risk."""
        return RiskWords(self.name, is_mean=True)


Named: TypeAlias = Literal[
    "disagreement", "error_gap", "error", "top_k", "top_1", "ndcg", "ndcg_gap"
]
RiskLike: TypeAlias = Named | Callable[[Any, Any], Any] | Risk
_NAMED = ("disagreement", "error_gap", "error")
_RANKINGS = ("top_k", "top_1", "ndcg", "ndcg_gap")
_CHANGES = {
    "disagreement": "other answers than {full_depth}",
    "error_gap": "more wrong answers than {full_depth}",
    "error": "wrong answers",
}


@dataclass(frozen=True)
class Moved(Risk):
    """Numbers that differ by more than a tolerance from those of full depth.

    Args:
        tolerance: The greatest distance that counts as the same number, ≥ 0, in their unit.
    """

    tolerance: float

    @property
    def name(self) -> str:  # type: ignore[override]
        """The name that certificates show."""
        return f"moved by more than {self.tolerance:g}"

    def losses(self, record: Record) -> Floats:
        """Return 1 where any number of a row is too far from that of full depth."""
        outputs = as_array(record.outputs).reshape(len(record), record.num_steps, -1)
        distance = np.abs(outputs - outputs[:, -1:]).max(axis=-1)
        too_far: Floats = 1.0 - (distance <= self.tolerance)
        return too_far

    def is_binary(self) -> bool:
        """Return True: every loss is 0 or 1."""
        return True


@dataclass(frozen=True)
class Missed(Risk):
    """Share of other answers among the rows whose reference is in some classes.

    It is the risk of guards and of moderation: "at most 2% of the attacks pass".

    Args:
        classes: The positive classes, by their numbers.
        reference: ``"full_depth"``, the answers of full depth, or ``"labels"``.
        name: Its name in certificates.

    Example:
        >>> risk = Missed([2])
        >>> found = ponder.control_risk(trajectory, policies.Confidence, risk=risk, level=0.05)
        >>> found.certificate.risk, found.certificate.rows
        ('missed', 100)
    """

    classes: Sequence[int]
    reference: Literal["full_depth", "labels"] = "full_depth"
    name: str = "missed"

    def is_binary(self) -> bool:
        """Return True: an answer is another, or it is not."""
        return True

    def words(self) -> RiskWords:
        """Return how a promise names the risk."""
        return RiskWords(f"{self.name} answers", "positive")

    def losses(self, record: Record) -> Floats:
        """Return 1 where the answer is another than the reference, `(rows, steps)`."""
        if self.reference == "labels":
            return 1.0 - record.correct()
        return 1.0 - record.agreement()

    def rows(self, record: Record) -> Bools:
        """Return which rows have a positive reference, or none at full depth, `(rows,)`."""
        if self.reference == "labels":
            return np.isin(np.asarray(record.labels), np.asarray(self.classes))
        *_, last = record.views(frozenset({"output"}))
        output = np.asarray(last.output)
        positive: Bools = np.isin(output.argmax(axis=-1), np.asarray(self.classes))
        positive |= np.isnan(output).any(axis=-1)
        return positive


@dataclass(frozen=True)
class OtherAnswers(Risk):
    """The share of answers that differ from those of a reference, which are the record's labels."""

    name: str = "disagreement_with_reference"

    def is_binary(self) -> bool:
        """Return True: an answer is another, or it is not."""
        return True

    def words(self) -> RiskWords:
        """Return how a promise names the risk."""
        return RiskWords("other answers than the reference's")

    def losses(self, record: Record) -> Floats:
        """Return 1 where the answer is another, `(rows, steps)`."""
        return 1.0 - record.correct()


@dataclass(frozen=True)
class Ranking(Risk):
    r"""The loss of a query against the order of full depth; the rows of a group are its candidates.

    Candidates that exit later rank higher, and those that exit together rank by their scores.

    * ``"top_k"`` is 1 if one of the first k candidates has a lower score at full depth than the
      k-th there (a tie is no change).
    * ``"top_1"`` is the same with k = 1.
    * ``"ndcg"`` is 1 − nDCG@k, with the gains k, k − 1, … 1 of the order at full depth.
    * ``"ndcg_gap"`` is nDCG@k at full depth minus nDCG@k, with the labels as gains; it is negative
      if early exits are better.

    Args:
        name: ``"top_k"``, ``"top_1"``, ``"ndcg"`` or ``"ndcg_gap"``.
        k: Number of candidates that count.

    Example:
        >>> scores = torch.tensor([[4.0, 4.0], [3.0, 5.0], [1.0, 0.0]]).unsqueeze(-1)
        >>> group = {"group": torch.zeros(3)}
        >>> record = Trajectory(scores, None, torch.arange(3), policy_context=group)
        >>> risk = Ranking("top_1", 1)
        >>> risk.of_exits(record, [1, 1, 1]), risk.of_exits(record, [1, 2, 1])
        (array([1.]), array([0.]))
    """

    name: str
    k: int

    def is_binary(self) -> bool:
        """Return whether the loss is 0 or 1, and not a share of nDCG."""
        return self.name in ("top_k", "top_1")

    def words(self) -> RiskWords:
        """Return how a promise names the risk."""
        return {
            "top_k": RiskWords(f"another set of the best {self.k}", "query"),
            "top_1": RiskWords("another best candidate", "query"),
            "ndcg": RiskWords("loss of nDCG against the full order", "query", is_mean=True),
            "ndcg_gap": RiskWords("loss of nDCG against the labels", "query", is_mean=True),
        }[self.name]

    def losses(self, record: Record) -> Floats:
        """Refuse: a single row has no loss here."""
        raise ArgumentError(
            "risk",
            expected="a risk of single rows",
            got=self.name,
            remedy="Use ponder.control_risk.",
        )

    def of_exits(self, record: Record, steps: Any) -> Floats:
        """Return the loss of each query, `(queries,)` in [−1, 1], for exit steps `(rows,)`."""
        group_of_row = as_array((record.policy_context or {})["group"])
        _, groups = np.unique(group_of_row, return_inverse=True)
        exit_steps = np.asarray(steps)
        scores = as_array(record.outputs)[..., 0]
        scores_at_exit = scores[np.arange(len(scores)), exit_steps - 1]
        full_depth = np.where(np.isnan(scores[:, -1]), -np.inf, scores[:, -1])
        places = ranked(groups, scores_at_exit, exit_steps)
        full_places = ranked(groups, full_depth)
        if self.is_binary():
            # A query has lost one of its best if a chosen row has a lower score at full depth.
            k = 1 if self.name == "top_1" else self.k
            lowest = _lowest_of_first(k, groups, places, full_depth)
            lowest_wanted = _lowest_of_first(k, groups, full_places, full_depth)
            return (lowest < lowest_wanted).astype(np.float64)
        if self.name == "ndcg":
            gains = np.maximum(self.k - full_places, 0.0)
        else:
            gains = as_array(record.labels).reshape(len(scores))
        gain = _discounted_gain(self.k, groups, places, gains)
        full_gain = _discounted_gain(self.k, groups, full_places, gains)
        best_gain = _discounted_gain(self.k, groups, ranked(groups, gains), gains)
        loss: Floats = (full_gain - gain) / np.where(best_gain > 0, best_gain, 1.0)
        return loss


def _lowest_of_first(k: int, groups: Ints, places: Ints, scores: Floats) -> Floats:
    """Return the lowest score of the first k rows of each group, `(groups,)`."""
    lowest = np.full(int(groups.max()) + 1, np.inf)
    first = places < k
    np.minimum.at(lowest, groups[first], scores[first])
    return lowest


def _discounted_gain(k: int, groups: Ints, places: Ints, gains: Floats) -> Floats:
    """Return DCG@k of each group, Σ gain / log₂(place + 2) over places from 0 to k − 1."""
    discounted = np.where(places < k, gains / np.log2(places + 2.0), 0.0)
    return np.bincount(groups, discounted, int(groups.max()) + 1)


def ranked(groups: Ints, scores: Floats, steps: Any = 0) -> Ints:
    """Return the place of each row in its group, from 0: by exit step, then score, then position.

    Args:
        groups: Number of the group of each row, `(rows,)`.
        scores: Scores, `(rows,)`; NaN ranks last.
        steps: Exit steps, `(rows,)`; later ones rank first.
    """
    scores = np.where(np.isnan(scores), -np.inf, scores)
    order = np.lexsort((-scores, -np.broadcast_to(steps, scores.shape), groups))
    _, starts, number = np.unique(groups[order], return_index=True, return_inverse=True)
    places = np.empty(len(order), dtype=np.intp)
    places[order] = np.arange(len(order)) - starts[number]
    return places


def resolved(risk: RiskLike, policy: ExitPolicy) -> RiskLike:
    """Return the `Ranking` that a name and the k of the policy give; any other risk as it is."""
    sizes = [part.k for part in all_within(policy) if hasattr(part, "k")]
    if sizes and isinstance(risk, str) and risk in _RANKINGS:
        return Ranking(risk, sizes[0])
    return risk


def bound_for(risk: RiskLike) -> str:
    """Return the name of the sharpest bound that is valid for a risk.

    It depends on the definition of the risk and not on its losses: a callable whose losses are 0 or
    1 on some rows may have others on the next, so it gets the bound for any loss. An
    `"error_gap"` is cut at 0, and is then 0 or 1.

    Example:
        >>> bound_for("disagreement"), bound_for(lambda outputs, labels: 0.5 * (labels > 1))
        ('exact_binomial', 'hoeffding_bentkus')
    """
    if isinstance(risk, Risk):
        is_binary = risk.is_binary()
    else:
        is_binary = risk in _NAMED
    return "exact_binomial" if is_binary else "hoeffding_bentkus"


def loss_at(risk: RiskLike, record: Record, low: float = 0.0) -> Callable[[Ints], Floats]:
    """Return a function from exit steps to losses.

    It takes exit steps `(thresholds, rows)`, and returns the losses of the rows or queries that
    count, `(thresholds, counted)`.
    """
    if isinstance(risk, Ranking):

        def of_queries(steps: Ints) -> Floats:
            return np.stack([np.maximum(risk.of_exits(record, each), low) for each in steps])

        return of_queries
    losses, counted = losses_of(risk, record, low)

    def of_rows(steps: Ints) -> Floats:
        of_all = at_exits(losses, steps)
        if counted is None:
            return of_all
        return of_all[:, counted]

    return of_rows


def name_of(risk: RiskLike) -> str:
    """Return the name of a risk in certificates; a lambda is a "custom risk"."""
    if isinstance(risk, str):
        return risk
    name = str(getattr(risk, "name", getattr(risk, "__name__", "<lambda>")))
    if name == "<lambda>":
        return "custom risk"
    return name


def words_of(risk: RiskLike, full_depth: str = "at full depth") -> RiskWords:
    """Return how a promise names a risk; a callable is named by its function.

    Args:
        risk: The risk.
        full_depth: What full depth is called.

    Example:
        >>> words_of("error").change, words_of(lambda outputs, labels: 0.5 * labels).change
        ('wrong answers', 'custom risk')
    """
    if isinstance(risk, Risk):
        return risk.words()
    if isinstance(risk, str) and risk in _CHANGES:
        return RiskWords(_CHANGES[risk].format(full_depth=full_depth))
    return RiskWords(name_of(risk), is_mean=True)


class RowLosses(NamedTuple):
    """The loss of each row at each step, `(rows, steps)`, and the rows that count; None for all."""

    losses: Floats
    rows: Bools | None


def losses_of(risk: RiskLike, record: Record, low: float = 0.0) -> RowLosses:
    """Return the loss of each row at each step, and the rows that count.

    ``"disagreement"`` is 1 if the answer is not that of full depth. ``"error"`` is 1 if it is wrong
    (NaN always is). ``"error_gap"`` is 1 if it is wrong and that of full depth is right, and −1 if
    it is right and that of full depth is wrong.

    Args:
        risk: The risk.
        record: The full-depth run.
        low: The lowest loss that the bound takes. Lower losses are raised to it, which can only
            raise the risk.
    """
    rows = None
    if isinstance(risk, str):
        losses = _named_losses(risk, record)
    elif callable(risk):
        losses = np.asarray(record.losses(risk, low), dtype=np.float64)
    else:
        losses = np.asarray(risk.losses(record), dtype=np.float64)
        rows = risk.rows(record)
    shape = (len(record), record.num_steps)
    if losses.shape != shape or not ((losses >= -1.0) & (losses <= 1.0)).all():
        raise ArgumentError(
            "risk",
            expected=f"a loss in [0, 1] for each row and step, {shape}",
            got=f"shape {losses.shape}, values from {losses.min():.6g} to {losses.max():.6g}",
            remedy="Do not reduce over the rows, and divide by the largest loss there can be.",
        )
    return RowLosses(np.maximum(losses, low), rows)


def _named_losses(risk: str, record: Record) -> Floats:
    if risk == "disagreement":
        return 1.0 - record.agreement()
    if risk not in _NAMED:
        rankings = ", ".join(map(repr, _RANKINGS))
        raise ArgumentError(
            "risk",
            expected="'disagreement', 'error_gap', 'error', "
            "a callable (outputs, labels) -> losses, or a Risk",
            got=repr(risk),
            remedy=f"Choose one; {rankings} are risks of queries, with policies.TopK.",
        )
    wrong: Floats = 1.0 - record.correct()
    if risk == "error":
        return wrong
    gap: Floats = wrong - wrong[:, -1:]
    return gap
