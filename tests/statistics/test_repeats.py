"""Rows that repeat others are rows; rows that are used twice are seen, by the pattern of the repeats."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ponder import split
from ponder._utils.rows import row_keys
from ponder.calibration.records import Record, check_fresh
from ponder.errors import ArgumentError
from ponder.statistics.repeats import check_rows, fresh_rows, share_rows

TRAFFIC = ("all different", "zipf 1.2", "zipf 2", "one text in twenty", "five texts")


def traffic(kind: str, rows: int, seed: int) -> Any:
    draw = np.random.default_rng(seed)
    unique = draw.integers(1_000, 2**62, size=rows)
    if kind.startswith("zipf"):
        return draw.zipf(float(kind.split()[1]), size=rows)
    if kind == "one text in twenty":
        return np.where(draw.uniform(size=rows) < 0.05, 7, unique)
    return draw.integers(5, size=rows) if kind == "five texts" else unique


@pytest.mark.parametrize("kind", TRAFFIC)
@pytest.mark.parametrize("share", [0.1, 0.5])
def test_sides_that_coins_dealt_are_no_alarm_and_rows_used_twice_are(
    kind: str, share: float
) -> None:
    for seed in range(100):
        ids = traffic(kind, 600, seed)
        one, other = split(ids, (share, 1 - share), seed=seed)
        assert not share_rows(ids[one], ids[other])
        assert len(fresh_rows(ids[other], ids[one])) == len(other)
    if kind == "five texts":
        return
    assert share_rows(ids, ids[np.random.default_rng(0).permutation(600)])
    assert len(fresh_rows(ids, ids)) == 0
    if kind == "zipf 2":  # of so few texts a part looks like any other draw; the whole does not
        return
    more = np.concatenate([ids, traffic(kind, 400, 999)])
    assert share_rows(more, ids)
    assert len(fresh_rows(more, ids)) == 400


def test_few_rows_are_compared_too() -> None:
    assert share_rows(np.arange(10), np.arange(10))
    assert not share_rows(np.arange(10), np.arange(9, 19))
    assert not share_rows([1], [1])
    assert not share_rows([], [1])
    assert fresh_rows(np.array([5, 5, 6, 5]), np.array([5])).tolist() == [0, 1, 2, 3]


def test_a_file_that_was_joined_to_itself_is_refused() -> None:
    for kind in TRAFFIC[:4]:
        ids = traffic(kind, 900, 0)
        check_rows(ids, "rows")
        with pytest.raises(ArgumentError, match=r"texts 2 times, or a multiple"):
            check_rows(np.concatenate([ids, ids]), "rows")
    check_rows(np.zeros(500), "rows")


def drawn(rows: range, **fields: Any) -> Record:
    outputs = np.zeros((len(rows), 2, 3))
    return Record(outputs, None, np.array(rows), **{"content_ids": True, **fields})


@pytest.mark.parametrize(
    ("test", "refused"),
    [
        (drawn(range(100, 200)), None),
        (drawn(range(50, 150)), "50 of 100 rows again"),
        (drawn(range(50, 150), content_ids=False), None),  # numbers of rows, not contents
        (drawn(range(100, 200), weights="other"), "weights other and these"),
        (drawn(range(100, 200), weights="these"), None),
    ],
)
def test_a_record_of_used_rows_or_other_weights_is_not_fresh(
    test: Record, refused: str | None
) -> None:
    seen = drawn(range(100), weights="these")
    if refused is None:
        check_fresh(test, seen)
        return
    with pytest.raises(ArgumentError, match=refused):
        check_fresh(test, seen)


def test_each_row_of_a_text_has_a_key_of_its_own_and_the_first_its_id() -> None:
    ids = np.array([7, 3, 7, 7, -(2**63), 3])
    keys = row_keys(ids)
    assert len(set(keys.tolist())) == 6
    assert keys[[0, 1, 4]].tolist() == [7, 3, -(2**63)]
    order = np.array([5, 4, 3, 2, 1, 0])
    assert set(row_keys(ids[order]).tolist()) == set(keys.tolist()), "in any order of the file"


def test_rows_of_a_frequent_text_are_dealt_one_by_one() -> None:
    ids = traffic("one text in twenty", 20_000, 1)
    one, _ = split(ids, (0.3, 0.7))
    assert len(one) == 6000
    assert abs((ids[one] == 7).mean() - 0.05) < 0.01
