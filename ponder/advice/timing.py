"""Seconds of ways to answer: the same texts in turn, so that other load affects all alike."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ALONE",
    "ROUNDS",
    "Seconds",
    "clock",
    "padded_positions",
    "rounds",
    "sample",
    "seconds_of",
]

ROUNDS = 4
ALONE = 12
"""Texts that are answered by themselves in a round."""
_TIMED = 128  # texts of a round, in batches
_WARM_UP = 32  # texts
_DRAWS = 500  # samples, of which one is taken
clock = time.perf_counter
"""Seconds of the wall clock; `benchmarks.advice` uses those of the processor."""


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
class _Taken:
    """The seconds that one way took so far."""

    batches: list[float] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)


def rounds(models: Sequence[Any], texts: Sequence[Any]) -> Iterator[list[Seconds]]:
    """Time all models in turn, and yield the seconds after each round.

    Other models are compared with the first one.
    """
    taken = [_Taken() for _ in models]
    for model in models:
        model.predict(texts[:_WARM_UP])
    for _ in range(ROUNDS):
        for model, one in zip(models, taken, strict=True):
            one.batches.append(seconds_of(model, texts) / len(texts))
            one.alone += [seconds_of(model, [text]) for text in texts[:ALONE]]
        yield [_summary(one, taken[0]) for one in taken]


def seconds_of(model: Any, texts: Sequence[Any]) -> float:
    """Return the seconds in which a model answers texts."""
    start = clock()
    model.predict(texts)
    return clock() - start


def sample(columns: NDArray[Any], seed: int) -> NDArray[np.int64]:
    """Return positions of texts to be timed: a sample whose means are nearest to those of all.

    Args:
        columns: What decides on the seconds of a text: its length, and its depth under each way,
            `(texts, columns)`.
        seed: Seed of the samples.
    """
    scaled = (columns - columns.mean(0)) / np.maximum(columns.std(0), 1e-9)
    draw = np.random.default_rng(seed)
    size = min(_TIMED, len(columns))
    samples = [draw.choice(len(columns), size, replace=False) for _ in range(_DRAWS)]
    return min(samples, key=lambda rows: float((scaled[rows].mean(0) ** 2).sum()))


def padded_positions(lengths: Any) -> float:
    """Return the number of positions in batches of 32 texts, in this order."""
    batches = np.array_split(lengths, range(32, len(lengths), 32))
    return float(sum(len(batch) * batch.max() for batch in batches))


def _summary(one: _Taken, first: _Taken) -> Seconds:
    ratios = np.array(first.batches[: len(one.batches)]) / np.array(one.batches)
    return Seconds(
        batches=(float(np.median(one.batches)), min(one.batches), max(one.batches)),
        alone=(float(np.median(one.alone)), float(np.quantile(one.alone, 0.95))),
        speed_up=(float(np.median(ratios)), float(ratios.min()), float(ratios.max())),
    )
