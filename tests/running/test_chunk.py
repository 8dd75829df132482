"""Batches that a loop runs as one: where rows are cut, which batches are merged, and in what order they are read."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest

from ponder.running.chunk import Chunk, cut

ROWS = 30


def test_batches_end_by_rows_by_positions_and_where_much_would_be_padding() -> None:
    def sizes(*case: Any) -> list[int]:
        return [part.stop - part.start for part in cut(*case)]

    assert sizes([4] * 5, 2) == [2, 2, 1]
    assert sizes([5, 5, 5], 8, 10) == [2, 1]
    assert sizes([10, 1], 4) == [1, 1]
    assert sizes([10, 10, 3, 1], 4) == [2, 1, 1]
    assert sizes([10, 9, 9, 8], 4) == [4]
    assert sizes([], 4) == []


class Numbers:
    """A batch whose rows are numbers that count steps; `log` gets the numbers of every batch that is advanced."""

    mask = None
    policy_context: ClassVar[dict[str, Any]] = {}

    def __init__(self, values: Any, log: list[list[int]]) -> None:
        self.values = values
        self.log = log

    def advance(self, step: int) -> None:
        self.values = self.values + 1
        self.log.append((self.values // 100).tolist())

    def output(self) -> Any:
        return self.values

    def output_of(self, index: Any) -> Any:
        return self.values[index]

    features = hazard_logit = output

    def keep(self, index: Any) -> None:
        self.values = self.values[index]


def made_chunk(lengths: Any, max_batch: int | None, size: int = 4) -> tuple[Chunk, list[list[int]]]:
    log: list[list[int]] = []

    def join(parts: list[tuple[Any, Any]], longest: int) -> Numbers:
        values = np.concatenate([batch.values[places] for batch, places in parts])
        assert longest == max(lengths[values // 100])  # no longer than its longest row
        return Numbers(values, log)

    order = np.argsort(-lengths, kind="stable")
    parts = [order[part] for part in cut(lengths[order].tolist(), size)]
    batches = [(part.tolist(), Numbers(100 * part, log)) for part in parts]
    context = {"number": np.arange(len(lengths))}
    return Chunk(batches, lengths.tolist(), join, max_batch, None, context), log


@pytest.mark.parametrize("max_batch", [4, None])
def test_a_chunk_is_read_in_the_order_of_its_rows_wherever_they_run(max_batch: int | None) -> None:
    rng = np.random.default_rng(0)
    rows = np.arange(ROWS)
    lengths = rng.integers(1, 20, ROWS)
    chunk, log = made_chunk(lengths, max_batch)
    for step in range(1, 6):
        chunk.advance(step)
        some = np.flatnonzero(rows % 3 == 0)
        assert chunk.output().tolist() == (100 * rows + step).tolist()
        assert chunk.hazard_logit().tolist() == chunk.features().tolist() == chunk.output().tolist()
        assert chunk.output_of(some).tolist() == (100 * rows[some] + step).tolist()
        assert chunk.policy_context["number"].tolist() == rows.tolist()
        assert sorted(number for batch in log for number in batch) == rows.tolist()
        assert max(map(len, log)) <= 4
        for batch in log:
            assert (
                max(lengths[batch]) * len(batch) <= 1.15 * lengths[batch].sum() or len(batch) == 1
            )
        log.clear()
        stays = np.flatnonzero(rng.random(len(rows)) < 0.7)
        rows = rows[stays]
        chunk.keep(stays)


def test_neighbours_that_fit_into_one_batch_are_merged_and_whole_batches_stay() -> None:
    chunk, log = made_chunk(np.full(12, 5), 4)
    chunk.advance(1)
    assert log == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    before = [part.source for part in chunk._parts]
    chunk.keep(np.array([0, 1, 2, 3, 5, 6, 9, 10]))
    log.clear()
    chunk.advance(2)
    assert log == [[0, 1, 2, 3], [5, 6, 9, 10]]
    assert chunk._parts[0].source is before[0]


def test_rows_that_may_not_be_merged_stay_in_their_batches() -> None:
    chunk, log = made_chunk(np.full(8, 5), None)
    chunk.advance(1)
    chunk.keep(np.array([0, 6]))
    log.clear()
    chunk.advance(2)
    assert log == [[0], [6]]
