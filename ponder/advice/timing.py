"""Seconds of the ways of a race.

All ways answer the same texts in turn, so that load from other processes affects all alike.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ponder._utils.rows import Text
from ponder.calibration.records import Floats

__all__ = [
    "ALONE",
    "ROUNDS",
    "TIMED",
    "Seconds",
    "Waiting",
    "clock",
    "padded_positions",
    "rounds",
    "sample",
    "seconds_of",
]

ROUNDS = 4
ALONE = 12
"""Number of single texts in a round."""
TIMED = 128
"""Texts of a round, in batches; `benchmarks.advice` times fewer if they are long."""
_WARM_UP = 32
"""Texts that are answered before the first round."""
_DRAWS = 500
"""Samples of texts, of which the most representative is timed."""
clock = time.perf_counter
"""The clock, in seconds; `benchmarks.advice` replaces it by that of the processor."""


@dataclass(frozen=True)
class Seconds:
    """Seconds of one way for a text.

    Args:
        batches: In batches of 32: median, lowest and highest of the rounds.
        alone: For a text by itself: median and 95th percentile.
        speed_up: Seconds of the first way ÷ these, of the same rounds: median, lowest and highest.
    """

    batches: tuple[float, float, float]
    alone: tuple[float, float]
    speed_up: tuple[float, float, float]


@dataclass(eq=False)
class _Measured:
    """The seconds of one way in the rounds so far."""

    batches: list[float] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)


class Waiting:
    """The share of the time in which this thread did not run, since it was made.

    A race keeps its thread at work, so on a quiet machine the share is near 0. If other processes
    use the cores, it is the part of the time in which they had this thread's.
    """

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._own_start = time.thread_time()

    @property
    def share(self) -> float:
        """The share, in [0, 1]."""
        elapsed = time.perf_counter() - self._start
        own = time.thread_time() - self._own_start
        return min(max(1.0 - own / max(elapsed, 1e-9), 0.0), 1.0)


class Answering(Protocol):
    """A model that answers texts."""

    def predict(self, texts: Sequence[Text], /) -> object:
        """Answer texts."""


def rounds(models: Sequence[Answering], texts: Sequence[Text]) -> Iterator[list[Seconds]]:
    """Time all models in turn, and yield the seconds of each after every round.

    Speed-ups are those over the first model.
    """
    measured = [_Measured() for _ in models]
    for model in models:
        model.predict(texts[:_WARM_UP])
    for _ in range(ROUNDS):
        for model, one in zip(models, measured, strict=True):
            one.batches.append(seconds_of(model, texts) / len(texts))
            one.alone += [seconds_of(model, [text]) for text in texts[:ALONE]]
        yield [_summary(one, measured[0]) for one in measured]


def seconds_of(model: Answering, texts: Sequence[Text]) -> float:
    """Return the seconds in which a model answers texts."""
    start = clock()
    model.predict(texts)
    return clock() - start


def sample(columns: Floats, seed: int) -> NDArray[np.int64]:
    """Return positions of texts to be timed.

    Of many random samples it is the one whose means are nearest to those of all texts.

    Args:
        columns: Length of each text, and its depth under each way, on which its seconds depend,
            `(texts, columns)`.
        seed: Seed of the samples.
    """
    scaled = (columns - columns.mean(axis=0)) / np.maximum(columns.std(axis=0), 1e-9)
    draw = np.random.default_rng(seed)
    size = min(TIMED, len(columns))
    samples = [draw.choice(len(columns), size, replace=False) for _ in range(_DRAWS)]

    def distance(rows: NDArray[np.int64]) -> float:
        """Return the squared distance of the means of a sample from those of all, which are 0."""
        return float((scaled[rows].mean(axis=0) ** 2).sum())

    return min(samples, key=distance)


def padded_positions(lengths: NDArray[np.int64]) -> float:
    """Return the number of positions, with padding, in batches of 32 texts in this order."""
    batches = np.array_split(lengths, range(32, len(lengths), 32))
    return float(sum(len(batch) * batch.max() for batch in batches))


def _summary(one: _Measured, first: _Measured) -> Seconds:
    ratios = np.array(first.batches[: len(one.batches)]) / np.array(one.batches)
    return Seconds(
        batches=(float(np.median(one.batches)), min(one.batches), max(one.batches)),
        alone=(float(np.median(one.alone)), float(np.quantile(one.alone, 0.95))),
        speed_up=(float(np.median(ratios)), float(ratios.min()), float(ratios.max())),
    )
