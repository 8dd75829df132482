"""An adversary that orders the texts of a stream, and sees everything but the coin.

Before each block it sees the cheap model, and the reference's answer to each text that has not come yet. In the first
half of the stream it takes texts that the model gets right, so that audits become rare. After that it takes texts that
the model gets wrong, the surest first.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from benchmarks.live.cheap import FittedCheap
from benchmarks.live.streams import Corpus

__all__ = ["BLOCK", "Adversary"]

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
