"""One stream or batch, answered by `Live` and by its rivals.

A stream is answered in its order, by `Live`, by a fixed threshold and by B-PAC's rule. The rows of a batch are all at
hand: `Live` answers them with `finite=True`, and BARGAIN's rule and PAC labels draw from all of them. The order of a
batch is random for each.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

import ponder
from benchmarks.live import rivals, streams
from benchmarks.live.adversary import Adversary
from benchmarks.live.cheap import FittedCheap, Teach
from benchmarks.live.rivals import Result

__all__ = ["LEVELS", "Trial"]

LEVELS = (0.02, 0.05)
_TAUGHT = (600, 1200, 2400)
_CERTIFY = (750, 1500)
_AUDITS = (0.1, 0.3)

Way = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Trial:
    """A setting with its texts, cheap model and seed.

    Args:
        corpus: The texts.
        setting: The setting, of `streams.SETTINGS`.
        teach: Teaches a cheap model.
        rows: The length of the stream.
        seed: Seed of the order, and of what the rivals draw.
    """

    corpus: streams.Corpus
    setting: str
    teach: Teach
    rows: int
    seed: int

    def stream_ways(self) -> Iterator[Way]:
        """Yield a row of the results for each level and way, on the stream in its order."""
        order = None
        if self.setting != streams.ADVERSARY:
            order = streams.order_of(self.corpus, self.setting, self.rows, self.seed)
        views = list[_View]()
        for level in LEVELS:
            start = time.process_time()
            live = _LiveRun(self.corpus, self.teach, level)
            if order is None:
                seen, found = live.against_adversary(self.rows, self.seed)
            else:
                seen = order
                found = live.answer(order)
            yield _row(level, "Live", found) | _seconds(start)
            if order is None or not views:
                views = list(self._views(seen))
            for view in views:
                yield from _stream_rivals(level, view, self.seed)

    def batch_ways(self) -> Iterator[Way]:
        """Yield a row of the results for each level and way, on the rows of the stream as a batch."""
        order = streams.order_of(self.corpus, self.setting, self.rows, self.seed)
        order = np.random.default_rng(self.seed).permutation(order)
        views = list(self._views(order))
        for level in LEVELS:
            start = time.process_time()
            found = _LiveRun(self.corpus, self.teach, level).answer(order, finite=True)
            yield _row(level, "Live", found) | _seconds(start)
            for view in views:
                yield from _batch_rivals(level, view, self.seed)

    def _views(self, order: NDArray[np.intp]) -> Iterator[_View]:
        """Yield what rivals see of the stream, for each number of rows that teach."""
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


class _LiveRun:
    """A stream answered by `Live`."""

    def __init__(self, corpus: streams.Corpus, teach: Teach, level: float) -> None:
        self._corpus = corpus
        self._teach = teach
        self._model: FittedCheap | None = None
        self._live = ponder.Live(self._ask, level, teach=self._taught)

    def answer(self, order: NDArray[np.intp], *, finite: bool = False) -> Result:
        """Answer a stream whose order is known."""
        found = self._live.answer(order.tolist(), finite=finite)
        return self._result(order, found.labels, found.source)

    def against_adversary(self, rows: int, seed: int) -> tuple[NDArray[np.intp], Result]:
        """Answer a stream that an adversary orders; return its order, too."""
        pool = streams.order_of(self._corpus, "no drift", len(self._corpus.texts), seed)
        adversary = Adversary(self._corpus, pool, rows)
        labels = list[str]()
        source = list[str]()
        while block := adversary.next_block(self._model):
            found = self._live.answer(block)
            labels += found.labels
            source += found.source
        return adversary.order, self._result(adversary.order, labels, source)

    def _ask(self, rows: Sequence[int]) -> list[str]:
        return [str(self._corpus.answers[row]) for row in rows]

    def _taught(self, rows: Sequence[int], names: Sequence[str]) -> FittedCheap:
        # The last of the three models of a teaching is the one that answers.
        self._model = self._teach(self._corpus, rows, names)
        return self._model

    def _result(self, order: Any, labels: Sequence[str], source: Sequence[str]) -> Result:
        wrong = np.array(labels) != self._corpus.answers[order]
        return Result.of(np.array(source) == "reference", wrong)


def _stream_rivals(level: float, view: _View, seed: int) -> Iterator[Way]:
    """Yield a row for each rival that answers a stream in its order."""
    sure = view.sure
    for certify in _CERTIFY:
        found = rivals.fixed(sure, view.differs, level, view.taught, certify)
        yield _row(level, f"fixed {view.taught}/{certify}", found)
    for audit in _AUDITS:
        found = rivals.bpac(sure, view.differs, level, view.taught, audit, seed)
        yield _row(level, f"B-PAC {view.taught}/{audit:g}", found)


def _batch_rivals(level: float, view: _View, seed: int) -> Iterator[Way]:
    """Yield a row for each rival that draws from a whole batch."""
    for draws in _CERTIFY:
        found = rivals.pac_labels(view.sure, view.differs, level, view.taught, draws, seed)
        yield _row(level, f"PAC labels {view.taught}/{draws}", found)
    found = rivals.bargain(view.sure, view.differs, level, view.taught, seed)
    yield _row(level, f"BARGAIN {view.taught}", found)


def _row(level: float, way: str, found: Result) -> Way:
    numbers = {name: round(value, 5) for name, value in vars(found).items()}
    return {"level": level, "way": way, **numbers}


def _seconds(start: float) -> Way:
    return {"processor_seconds": round(time.process_time() - start, 1)}
