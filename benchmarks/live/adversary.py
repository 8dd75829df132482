"""Adversaries, who see everything but the coin: one orders the texts of a stream, one is the reference itself.

`Adversary` is made for `Live`. Before each block it sees the cheap model, and the reference's answer to each text that
has not come yet. In the first half of the stream it takes texts that the model gets right, so that audits become rare.
After that it takes texts that the model gets wrong, the surest first.

`Turncoat` is made for rules that bet on what they saw, B-PAC's: a reference that agrees for half of the stream, and
then differs on every row that would be answered. `Planned` puts it in front of `Live`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.live.cheap import FittedCheap
from benchmarks.live.streams import Corpus
from ponder.cascade.live_rule import AuditRule, Standing

__all__ = ["BLOCK", "Adversary", "Planned", "Turncoat"]

BLOCK = 32


class Adversary:
    """Chooses the next texts of a stream.

    Args:
        corpus: The texts.
        pool: The texts from which it chooses, in random order.
        rows: The length of the stream.
    """

    def __init__(self, corpus: Corpus, pool: NDArray[np.intp], rows: int) -> None:
        self._answers = corpus.answers
        self._pool = pool
        self._rows = rows
        self._order = list[int]()
        self._model: FittedCheap | None = None
        self._right = np.zeros(len(corpus.answers), dtype=bool)
        self._sure = np.zeros(len(corpus.answers))

    @property
    def order(self) -> NDArray[np.intp]:
        """The texts so far, in their order."""
        return np.array(self._order, dtype=np.intp)

    def next_block(self, model: FittedCheap | None) -> list[int]:
        """Return the next texts, none at the end; `model` is the cheap one at this moment."""
        self._look_at(model)
        strikes = len(self._order) >= self._rows // 2
        wanted = self._right[self._pool] != strikes
        first = self._pool[wanted]
        if strikes:
            first = first[np.argsort(-self._sure[first], kind="stable")]
        size = min(BLOCK, self._rows - len(self._order))
        block = np.concatenate([first, self._pool[~wanted]])[:size]
        self._pool = self._pool[~np.isin(self._pool, block)]
        self._order += block.tolist()
        return [int(row) for row in block]

    def _look_at(self, model: FittedCheap | None) -> None:
        """Note what a new model answers to the texts that have not come yet."""
        if model is None or model is self._model:
            return
        self._model = model
        shares = model.predict_proba(self._pool.tolist())
        self._sure[self._pool] = shares.max(axis=1)
        names = np.array(model.classes)[shares.argmax(axis=1)]
        self._right[self._pool] = names == self._answers[self._pool]


class Turncoat:
    """A reference that agrees with the cheap model for half of a stream, and then differs wherever it would answer.

    It sees everything but the coin. Of rows that would not be answered it says what the corpus says.

    Args:
        corpus: The texts.
        order: The texts of the stream, in their order.
    """

    def __init__(self, corpus: Corpus, order: NDArray[np.intp]) -> None:
        self._corpus = corpus
        self._places = {int(row): place for place, row in enumerate(order)}
        self._half = len(order) // 2
        self._names = [str(name) for name in np.unique(corpus.answers)]

    def answer(self, row: int, cheap: str | None) -> str:
        """Return the answer to a row; `cheap` is the answer that the cheap model would give, None if it gives none."""
        gold = str(self._corpus.answers[row])
        if cheap is None:
            return gold
        if self._places[row] < self._half:
            return cheap
        return gold if gold != cheap else next(name for name in self._names if name != cheap)


class Planned:
    """The rule of `Live` with a `Turncoat` beside it, which sees what the rule is about to do.

    A rule is told the doubt of a row and not its name: rows are decided in the order in which the cheap model was asked
    about them, so the next row with this doubt is the one.

    Args:
        turncoat: The reference.
        rule: The rule of `Live`.
    """

    def __init__(self, turncoat: Turncoat, rule: AuditRule) -> None:
        self._turncoat = turncoat
        self._rule = rule
        self._waiting = deque[tuple[int, str, float]]()
        self._answered = dict[int, str]()
        self.learn = rule.learn
        self.teaches = rule.teaches
        self.renew = rule.renew

    def watched(self, model: FittedCheap) -> FittedCheap:
        """Return a cheap model whose answers are seen."""
        self._waiting.clear()
        return _Watched(model, self._waiting)

    def audit_probability(self, doubt: float, standing: Standing) -> float:
        """Return the audit probability of the rule, and note what the row gets if it is answered."""
        probability = self._rule.audit_probability(doubt, standing)
        row, label, seen = self._waiting.popleft()
        while seen != doubt:
            row, label, seen = self._waiting.popleft()
        within = standing.level * (standing.answers + 1)
        if probability < 1.0 and standing.ledger.bound_after(probability) <= within:
            self._answered[row] = label
        return probability

    def answer(self, row: int) -> str:
        """Return the reference's answer to a row that was decided."""
        return self._turncoat.answer(row, self._answered.get(row))


class _Watched:
    """A cheap model whose answers are written down.

    Args:
        model: The model.
        seen: Rows with their answers and doubts, in the order in which they were asked.
    """

    def __init__(self, model: FittedCheap, seen: deque[tuple[int, str, float]]) -> None:
        self._model = model
        self._seen = seen
        self.classes = model.classes

    def predict_proba(self, rows: Sequence[int]) -> Any:
        """Return probabilities, `(rows, classes)`."""
        shares = np.asarray(self._model.predict_proba(rows))
        best = shares.argmax(axis=1)
        doubts = 1.0 - shares[np.arange(len(rows)), best]
        for row, place, doubt in zip(rows, best.tolist(), doubts.tolist(), strict=True):
            self._seen.append((row, self.classes[place], doubt))
        return shares
