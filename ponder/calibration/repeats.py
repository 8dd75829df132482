r"""Repeats: rows that hold the same text, and rows that are the same row.

A promise is about rows of the traffic: at most a share `level` of them gets another answer. In real
traffic some texts come again and again. The statistics are those of rows all the same:

* Let the rows of a log be independent draws of the traffic, and deal them to sides (to teach, to
  choose, to certify) by coins that do not look at the answers (`ponder.split`). Then the rows that
    certify are independent draws of the same traffic, and independent of the rows that taught and
    chose.
  * So, given the choice, each certifying row has another answer with the probability of a row to
    come, and their number is binomial: the exact binomial bound holds, however many rows repeat
    others.
  * A text that taught and is drawn again to certify is not a leak, since it repeats in the traffic
    as often.
twentieth of the traffic counts as one among a thousand. To keep equal texts on one side gives rows
that are not independent: the fate of a frequent text hangs on one coin. Both were measured (`python
-m benchmarks.risk.repeats`).

If the rows of a log come in clumps (a user who sends one text ten times in a minute), rows are not
independent; draw one of each clump first. If a promise is about groups, such as the candidates of a
query, the groups are the rows.

What is a leak is *the same row* on two sides: a file read twice, or a file that overlaps another.
Equal texts alone do not show that, but their pattern does. If two sides of a and b rows were dealt
by coins, a text that comes twice in both together has its rows on two sides with probability p =
2ab / ((a + b)(a + b − 1)), at most about one half; rows that were used twice always have.
`share_rows` tests just that.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ponder.calibration.bounds import binomial_cdf
from ponder.calibration.records import Ints, Record, check_record
from ponder.errors import ArgumentError

__all__ = ["check_fresh", "check_rows", "fresh_rows", "share_rows"]

_CHANCE = (
    1e-6  # probability with which sides that were dealt by coins are taken for rows used twice
)
_FEWEST_DISTINCT = 8  # texts, of which coins hardly deal the same number to both sides


def share_rows(one: Any, other: Any) -> bool:
    """Return whether two sets of rows look as if some rows were in both, by their content ids.

    It is an exact test of exchangeability on the texts that come twice in both together, with a
    probability of 10⁻⁶ of a false alarm. It finds some twenty rows that are used twice, among texts
    most of which come once or twice; of traffic that is a few dozen texts it finds only a file that
    is used as a whole.

    Args:
        one: Content ids of rows, `(rows,)` integers.
        other: Those of other rows.

    Example:
        >>> import numpy as np
        >>> from ponder.calibration.repeats import share_rows
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
    count = int(pairs.sum())
    apart = int((pairs & (in_first == 1)).sum())
    if apart == 0:
        return False
    rows = len(place)
    chance = 2.0 * len(first) * len(second) / (rows * (rows - 1.0))
    if chance >= 1.0:  # two rows in all
        return False
    at_least = 1.0 - float(binomial_cdf(count, chance)[apart - 1])
    return at_least <= _CHANCE


def fresh_rows(ids: Any, used: Any) -> Ints:
    """Return the rows that may judge a promise: those that did not teach, choose or certify.

    A new log is fresh as a whole, the texts in it that were seen before included: they are a part
    of the traffic, and a check without them would judge another promise than was given. If it
    shares rows with those used, by `share_rows`, it is an older file or holds one: then each text
    is taken as often as it comes more than it was used.

    Args:
        ids: Content ids of the rows, `(rows,)` integers (`ponder._utils.rows.content_ids`).
        used: Content ids of the rows that taught, chose and certified, one for each row: repeats
            included.

    Example:
        >>> import numpy as np
        >>> from ponder.calibration.repeats import fresh_rows
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
    number = np.empty(len(rows), dtype=np.int64)  # of a row among those with its text, from 0
    number[order] = np.arange(len(rows)) - np.repeat(starts, sizes)
    place = np.minimum(np.searchsorted(values, rows), len(values) - 1)
    times_used = np.where(values[place] == rows, counts[place], 0)
    return np.flatnonzero(number >= times_used)


def check_rows(ids: Any, argument: str) -> None:
    """Refuse rows that were joined to themselves, in which each text occurs twice or more."""
    _, counts = np.unique(np.asarray(ids), return_counts=True)
    times = int(np.gcd.reduce(counts)) if len(counts) >= 4 * _FEWEST_DISTINCT else 1
    if times > 1:
        raise ArgumentError(
            argument,
            expected="rows as they were drawn: a text again only if it came again",
            got=f"each of {len(counts)} texts {times} times, or a multiple of that",
            remedy="Leave the copies out; counted twice, rows would promise more than they can.",
        )


def check_fresh(test: Record, seen: Record, argument: str = "test") -> None:
    """Refuse a record that shares rows with another one, or that is a run of other weights.

    Rows are compared if their ids are hashes of contents.
    """
    check_record(test, argument)
    weights = {test.weights, seen.weights} - {None}
    comparable = test.content_ids and seen.content_ids
    shared = comparable and share_rows(test.row_ids, seen.row_ids)
    if shared or len(weights) > 1:
        again = np.isin(np.asarray(test.row_ids), np.asarray(seen.row_ids)).sum() if shared else 0
        raise ArgumentError(
            argument,
            expected="other rows than those that chose the policy, under the same weights",
            got=f"{again} of {len(test)} rows again, weights "
            f"{' and '.join(sorted(map(str, weights)))}",
            remedy="Split the data first, ponder.split(texts), and record both sides with one "
            "model.",
        )
