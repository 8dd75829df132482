r"""Repeats: rows that hold the same text, and rows that are the same row.

A promise is about rows of the traffic: at most a share `level` of them gets another answer. In real
traffic some texts occur many times. The statistics are those of rows nevertheless:

* Let the rows of a log be independent draws of the traffic, and let coins that do not depend on the
  answers assign them to sides (to teach, to choose, to certify), as `ponder.split` does. Then the
  certifying rows are independent draws of the same traffic, and independent of all that was taught
  and chosen.
* So, given the choice, each certifying row has another answer with the probability of a new row,
  and the number of other answers is binomial: the exact binomial bound holds, however many rows
  repeat others.
* A text that taught and is drawn again to certify is no leak, since it occurs again in the traffic
  just as often.

If each text is counted once, the mean over distinct texts is certified instead, and a text that is
a twentieth of the traffic counts as one among a thousand. If equal texts are kept on one side, rows
are not independent: one coin decides for all rows of a frequent text. Both were measured (`python
-m benchmarks.risk.repeats`).

If the rows of a log come in clumps (a user who sends one text ten times in a minute), rows are not
independent; draw one of each clump first. If a promise is about groups, such as the candidates of a
query, the groups are the rows.

A leak is *the same row* on two sides: a file that was read twice, or that overlaps another. Equal
texts alone do not show that, but their pattern does. If coins assigned a rows to one side and b to
the other, a text that occurs twice in all has its rows on both sides with probability p =
2ab / ((a + b)(a + b − 1)), at most about one half; a row that was used twice always has.
`share_rows` tests this.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ponder._utils.arrays import Ints
from ponder.errors import ArgumentError
from ponder.statistics.bounds import binomial_cdf

__all__ = ["check_rows", "fresh_rows", "share_rows"]

_FALSE_ALARM = 1e-6  # probability with which independent sides are taken for rows used twice
_FEWEST_DISTINCT = 8  # texts, whose numbers on two sides hardly agree by chance


def share_rows(one: Any, other: Any) -> bool:
    """Return whether some rows seem to be in both of two sets, by their content ids.

    It is an exact test of exchangeability on the texts that occur twice in the union, with a
    probability of 10⁻⁶ of a false alarm. It detects some twenty rows that are used twice, among
    texts most of which occur once or twice. In traffic of a few dozen texts it detects only a file
    that is used as a whole.

    Args:
        one: Content ids of rows, `(rows,)` integers.
        other: Those of other rows.

    Example:
        >>> import numpy as np
        >>> from ponder.statistics.repeats import share_rows
        >>> traffic = np.random.default_rng(0).zipf(1.5, size=2000)  # few texts make up most of it
        >>> share_rows(traffic[:1000], traffic[1000:]), share_rows(traffic[:1000], traffic[500:])
        (False, True)
    """
    first = np.asarray(one)
    second = np.asarray(other)
    if len(first) == 0 or len(second) == 0:
        return False
    ids, place = np.unique(np.concatenate([first, second]), return_inverse=True)
    in_first = np.bincount(place[: len(first)], minlength=len(ids))
    in_second = np.bincount(place[len(first) :], minlength=len(ids))
    if len(ids) >= _FEWEST_DISTINCT and np.array_equal(in_first, in_second):
        return True
    pairs = in_first + in_second == 2
    on_both_sides = int((pairs & (in_first == 1)).sum())
    if on_both_sides == 0:
        return False
    rows = len(place)
    chance = 2.0 * len(first) * len(second) / (rows * (rows - 1.0))
    if chance >= 1.0:  # two rows in all
        return False
    fewer = float(binomial_cdf(int(pairs.sum()), chance)[on_both_sides - 1])
    return 1.0 - fewer <= _FALSE_ALARM


def fresh_rows(ids: Any, used: Any) -> Ints:
    """Return the rows that may judge a promise, as rising positions.

    A row may judge if it is exchangeable with those that certified, and was not one of them. In a
    new log all rows are, including those of texts that were seen before: they are a part of the
    traffic, and a check without them would judge another promise.

    If a file shares rows with those used, by `share_rows`, it contains all of an older file, or a
    part. Rows of one text cannot be distinguished, and need not be, since they get one answer. So
    of each text as many rows are left out as were used, times the share of the used rows that the
    file contains; this share is estimated by the texts used once. A log that has grown is judged
    by its new rows.

    The share of other answers among these rows is not biased, whichever texts occur again
    (`python -m benchmarks.risk.checks`). If a file contains a part of the used rows, the estimate
    is a little too high, since texts used once occur again too.

    Args:
        ids: Content ids of the rows, `(rows,)` integers (`ponder._utils.rows.content_ids`).
        used: Content ids of the rows that taught, chose and certified, one for each row, with
            repeats.

    Example:
        >>> import numpy as np
        >>> from ponder.statistics.repeats import fresh_rows
        >>> used = np.arange(100)
        >>> fresh_rows(np.arange(90, 200), used)[:3], fresh_rows(np.array([7, 7, 500, 501]), used)
        (array([0, 1, 2]), array([0, 1, 2, 3]))
        >>> len(fresh_rows(np.append(used, [7, 500]), used))
        2
    """
    rows = np.asarray(ids)
    if not share_rows(rows, used):
        return np.arange(len(rows))
    values, counts = np.unique(np.asarray(used), return_counts=True)
    order = np.argsort(rows, kind="stable")
    _, starts, sizes = np.unique(rows[order], return_index=True, return_counts=True)
    occurrence = np.empty(len(rows), dtype=np.int64)  # number of earlier rows with the same text
    occurrence[order] = np.arange(len(rows)) - np.repeat(starts, sizes)
    place = np.minimum(np.searchsorted(values, rows), len(values) - 1)
    once = values[counts == 1]
    share = 1.0
    if len(once):
        share = float(np.isin(once, rows).mean())
    used_again = np.maximum(np.rint(share * counts), 1)  # used rows of each text in the file
    times_used = np.where(values[place] == rows, used_again[place], 0)
    return np.flatnonzero(occurrence >= times_used)


def check_rows(ids: Any, argument: str) -> None:
    """Refuse copies of a whole set: each text occurs twice, or three times, never so by chance."""
    _, counts = np.unique(np.asarray(ids), return_counts=True)
    if len(counts) < 4 * _FEWEST_DISTINCT:
        return
    times = int(np.gcd.reduce(counts))
    if times > 1:
        raise ArgumentError(
            argument,
            expected="rows as they were drawn, in which a text is repeated only if it came again",
            got=f"each of {len(counts)} texts {times} times, or a multiple of that",
            remedy="Leave the copies out; counted twice, rows would promise more than they can.",
        )
