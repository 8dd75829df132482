"""One stream or batch, answered by `Live` and by its rivals, as `rule.md` says.

A stream is answered in its order, by `Live`, by fixed thresholds and by B-PAC's rule. The rows of a batch are all at
hand: `Live` answers them with `finite=True`, and BARGAIN's rule and PAC labels draw from all of them. The order of a
batch is random for each.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

import ponder
from benchmarks.live import rivals, streams
from benchmarks.live.adversary import Adversary, Planned, Turncoat
from benchmarks.live.cheap import FittedCheap, Teach
from benchmarks.live.rivals import BPac, Result
from ponder.cascade.live_rule import AuditRule

__all__ = ["LEVELS", "Trial"]

LEVELS = (0.02, 0.05)
_TAUGHT = (600, 1200, 2400)
_CERTIFY = (750, 1500)
_DRAWN = (0.1, 0.2)

Way = dict[str, Any]
Order = NDArray[np.intp]


@dataclass(eq=False)
class Trial:
    """A setting with its texts, cheap model and seed.

    Args:
        corpus: The texts.
        setting: The setting, of `streams.SETTINGS`.
        teach: Teaches a cheap model.
        rows: The length of the stream, at most.
        seed: Seed of the order.
    """

    corpus: streams.Corpus
    setting: str
    teach: Teach
    rows: int
    seed: int
    _views: dict[bytes, list[_View]] = field(default_factory=dict)

    @cached_property
    def order(self) -> Order:
        """The texts of the stream, in their order; of an adversary, its pool."""
        setting = self.setting
        if setting in streams.ADVERSARIES:
            setting = "no drift"
        rows = self.rows
        if self.setting == streams.ADVERSARY:
            rows = len(self.corpus.texts)
        return streams.order_of(self.corpus, setting, rows, self.seed)

    def stream_ways(self, coin: int) -> Iterator[Way]:
        """Yield a row of the results for each level and way, on the stream in its order."""
        for level in LEVELS:
            start = time.process_time()
            live = _LiveRun(self, level, coin)
            if self.setting == streams.ADVERSARY:
                order, found = live.against_adversary()
            elif self.setting == streams.TURNCOAT:
                order = self.order
                found = live.against_turncoat(order)
            else:
                order = self.order
                found = live.answer(order)
            yield _row(level, "Live", found) | _seconds(start)
            yield from self._stream_rivals(level, order, live.moments, coin)

    def batch_ways(self, coin: int) -> Iterator[Way]:
        """Yield a row of the results for each level and way, on the rows of the stream as a batch."""
        order = np.random.default_rng(self.seed).permutation(self.order)
        for level in LEVELS:
            start = time.process_time()
            found = _LiveRun(self, level, coin).answer(order, finite=True)
            yield _row(level, "Live", found) | _seconds(start)
            for view in self._views_of(order):
                yield from _batch_rivals(level, view, _seed_of(self.seed, coin))

    def _stream_rivals(
        self, level: float, order: Order, moments: Sequence[int], coin: int
    ) -> Iterator[Way]:
        """Yield a row for each rival that answers a stream in its order.

        Args:
            level: The level.
            order: The texts.
            moments: Rows at which `Live` was taught.
            coin: Seed of the coin.
        """
        seed = _seed_of(self.seed, coin)
        yield _row(level, "B-PAC", self._bpac(level, order, moments, seed))
        if coin > 0:
            return
        for view in self._views_of(order):
            if self.setting != streams.TURNCOAT:
                for certify in _CERTIFY:
                    if view.taught + certify < len(order):
                        found = rivals.fixed(view.sure, view.differs, level, view.taught, certify)
                        yield _row(level, f"fixed {view.taught}/{certify}", found)
            found = self._bpac(level, order, [view.taught], seed)
            yield _row(level, f"B-PAC fixed {view.taught}", found)

    def _bpac(self, level: float, order: Order, moments: Sequence[int], seed: int) -> Result:
        """Answer a stream by B-PAC's rule, taught at some rows by the rows that it asked."""
        rule = BPac(level, seed)
        truth: Truth = _Gold(self.corpus)
        if self.setting == streams.TURNCOAT:
            truth = Turncoat(self.corpus, order)
        ends = [*moments, len(order)]
        names = [truth.answer(int(row), None) for row in order[: ends[0]]]
        asked = np.ones(len(order), dtype=bool)
        differs = np.zeros(len(order), dtype=bool)
        for start, end in pairwise(ends):
            known = np.flatnonzero(asked[:start])
            model = self.teach(self.corpus, order[known].tolist(), [names[each] for each in known])
            shares = model.predict_proba(order[start:end].tolist())
            cheap = np.array(model.classes)[shares.argmax(axis=1)].tolist()
            for place, doubt in enumerate((1.0 - shares.max(axis=1)).tolist(), start=start):
                label = cheap[place - start]
                seen = label if doubt < rule.threshold else None
                names.append(truth.answer(int(order[place]), seen))
                differs[place] = names[place] != label
                asked[place] = rule.asks(doubt)
                rule.learn(doubt, asked=bool(asked[place]), differs=bool(differs[place]))
        return Result.of(asked, differs & ~asked)

    def _views_of(self, order: Order) -> list[_View]:
        """Return what rivals see of a stream, for each number of rows that teach."""
        key = order.tobytes()
        if key not in self._views:
            self._views = {key: list(self._new_views(order))}
        return self._views[key]

    def _new_views(self, order: Order) -> Iterator[_View]:
        answers = self.corpus.answers[order]
        for taught in _TAUGHT:
            model = self.teach(self.corpus, order[:taught].tolist(), answers[:taught].tolist())
            shares = model.predict_proba(order.tolist())
            names = np.array(model.classes)[shares.argmax(axis=1)]
            yield _View(taught, shares.max(axis=1), names != answers)


@dataclass(frozen=True, eq=False)
class _View:
    """A stream through a cheap model that its first rows taught.

    Args:
        taught: How many rows taught it.
        sure: Its confidence in its answer, `(rows,)`.
        differs: Whether the reference's answer is another, `(rows,)`.
    """

    taught: int
    sure: NDArray[np.float64]
    differs: NDArray[np.bool_]


class _Gold:
    """A reference that knows the corpus, and no more."""

    def __init__(self, corpus: streams.Corpus) -> None:
        self._answers = corpus.answers

    def answer(self, row: int, cheap: str | None) -> str:
        """Return the answer of the corpus."""
        return str(self._answers[row])


Truth = _Gold | Turncoat


class _LiveRun:
    """A stream answered by `Live`.

    Attributes:
        moments: Rows that had an answer when the cheap model was taught.
    """

    def __init__(self, trial: Trial, level: float, coin: int) -> None:
        self._corpus = trial.corpus
        self._rows = trial.rows
        self._pool = trial.order
        self._teach = trial.teach
        self._model: FittedCheap | None = None
        self._turncoat: Planned | None = None
        self._rule = AuditRule()
        if trial.setting == streams.TURNCOAT:
            self._turncoat = Planned(Turncoat(trial.corpus, trial.order), self._rule)
        draw = random.Random(_seed_of(trial.seed, coin))
        self._live = ponder.Live(
            self._ask,
            level,
            teach=self._taught,
            rule=self._turncoat or self._rule,
            coin=draw.random,
        )
        self.moments: list[int] = []

    def answer(self, order: Order, *, finite: bool = False) -> Result:
        """Answer a stream whose order is known."""
        found = self._live.answer(order.tolist(), finite=finite)
        return self._result(order, found.labels, found.source)

    def against_adversary(self) -> tuple[Order, Result]:
        """Answer a stream that an adversary orders; return its order, too."""
        adversary = Adversary(self._corpus, self._pool, self._rows)
        labels = list[str]()
        source = list[str]()
        while block := adversary.next_block(self._model):
            found = self._live.answer(block)
            labels += found.labels
            source += found.source
        return adversary.order, self._result(adversary.order, labels, source)

    def against_turncoat(self, order: Order) -> Result:
        """Answer a stream whose reference changes sides."""
        assert self._turncoat is not None
        found = self._live.answer(order.tolist())
        names = [self._turncoat.answer(row) for row in order.tolist()]
        return Result.of(np.array(found.source) == "reference", np.array(found.labels) != names)

    def _ask(self, rows: Sequence[int]) -> list[str]:
        if self._turncoat is not None:
            return [self._turncoat.answer(row) for row in rows]
        return [str(self._corpus.answers[row]) for row in rows]

    def _taught(self, rows: Sequence[int], names: Sequence[str]) -> FittedCheap:
        # The last of the three models of a teaching is the one that answers.
        self._model = self._teach(self._corpus, rows, names)
        moment = self._live.account.answers
        if moment not in self.moments:
            self.moments.append(moment)
        if self._turncoat is not None:
            return self._turncoat.watched(self._model)
        return self._model

    def _result(self, order: Any, labels: Sequence[str], source: Sequence[str]) -> Result:
        wrong = np.array(labels) != self._corpus.answers[order]
        return Result.of(np.array(source) == "reference", wrong)


def _batch_rivals(level: float, view: _View, seed: int) -> Iterator[Way]:
    """Yield a row for each rival that draws from a whole batch."""
    sure = view.sure
    for share in _DRAWN:
        for weighted in (False, True):
            draws = round(share * len(sure))
            found = rivals.pac_labels(sure, view.differs, level, view.taught, draws, weighted, seed)
            kind = "weighted" if weighted else "equal"
            yield _row(level, f"PAC labels {view.taught}/{share:g}/{kind}", found)
    found = rivals.bargain(sure, view.differs, level, view.taught, seed)
    yield _row(level, f"BARGAIN {view.taught}", found)


def _seed_of(seed: int, coin: int) -> int:
    """Return the seed of a coin in a stream."""
    return 1000 * seed + coin + 1


def _row(level: float, way: str, found: Result) -> Way:
    numbers = {name: round(value, 5) for name, value in vars(found).items()}
    return {"level": level, "way": way, **numbers}


def _seconds(start: float) -> Way:
    return {"processor_seconds": round(time.process_time() - start, 1)}
