"""The order in which `Live` decides the rows of a call.

A stream is decided in its order. The rows of a batch are all at hand, and the promise holds in any
order of them. They come in random order until a sample of them was answered, since that shows how
doubts are to be read. From then on each new cheap model sorts them by its doubt, and they are taken
from both ends:

* The most doubtful row, as long as the rule defers it. The reference would be asked about it in any
  case, and what it teaches makes the other rows easier (uncertainty sampling, Lewis and Gale 1994).
* Else the surest. If what the level allows is used up before the end, the rows that are left are
  doubtful ones.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import chain, islice

import numpy as np
from numpy.typing import NDArray

__all__ = ["SAMPLE", "Order"]

SAMPLE = 1 / 20
"""Share of a batch that is answered in random order before it is sorted."""


class Order:
    """The rows of a call that wait for their decision.

    Args:
        rows: The positions of the rows, in the order in which they are taken.
    """

    def __init__(self, rows: Sequence[int]) -> None:
        self._rows = deque(rows)
        self._places = {row: place for place, row in enumerate(rows)}
        self._put_back = deque[int]()
        self._doubts: NDArray[np.float64] | None = None
        self._taken_first = 0  # rows that were taken from the doubtful end of the sorted ones

    def __len__(self) -> int:
        return len(self._put_back) + len(self._rows)

    @property
    def doubts(self) -> NDArray[np.float64] | None:
        """The doubts of the sorted rows that wait, the largest first, `(rows,)`; else None."""
        if self._doubts is None:
            return None
        return self._doubts[self._taken_first : self._taken_first + len(self._rows)]

    @property
    def sorted(self) -> bool:
        """Whether the rows are sorted by their doubts."""
        return self._doubts is not None

    def upcoming(self, count: int) -> list[int]:
        """Return the rows that `take` would return next."""
        return list(islice(chain(self._put_back, self._rows), count))

    def take(self) -> int:
        """Take a row that was put back, or the first one; of sorted rows the most doubtful one."""
        if self._put_back:
            return self._put_back.popleft()
        self._taken_first += 1
        return self._rows.popleft()

    def take_surest(self) -> int:
        """Take a row that was put back, or the surest one of sorted rows."""
        return self._put_back.popleft() if self._put_back else self._rows.pop()

    def put_back(self, rows: Iterable[int]) -> None:
        """Put rows back that were taken; they are the next that are taken, in this order."""
        self._put_back.extendleft(reversed(list(rows)))

    def sort(self, doubts: Sequence[float]) -> None:
        """Sort the rows that wait; those that were put back stay the next ones.

        Rows of equal doubt come in the order that they had at first, so that a run that was stopped
        goes on in the order of one that was not.

        Args:
            doubts: The doubt of each, in the order of `upcoming`.
        """
        first = len(self._put_back)
        rows = list(self._rows)
        of_rows = np.asarray(doubts[first:], dtype=np.float64)
        places = np.array([self._places[row] for row in rows])
        order = np.lexsort((places, -of_rows))
        self._rows = deque(rows[place] for place in order.tolist())
        self._doubts = of_rows[order]
        self._taken_first = 0
