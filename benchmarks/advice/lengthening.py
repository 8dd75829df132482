"""Long texts, each made of short texts of one class.

The class of a long text is that of a short text drawn at random. Short texts of this class, in
random order and without repetition, are joined until the next one would exceed the number of tokens.
A short text may occur in several long ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["LongTexts", "lengthen"]


@dataclass(frozen=True)
class LongTexts:
    """Long texts with their classes.

    Args:
        texts: The texts.
        labels: Names of their classes.
        mean_tokens: Mean number of tokens.
    """

    texts: list[str]
    labels: list[str]
    mean_tokens: float


def lengthen(
    texts: Sequence[str],
    labels: Sequence[str],
    sizes: Sequence[int],
    tokens: int,
    count: int,
    seed: int,
) -> LongTexts:
    """Return long texts, each made of short texts of one class.

    Args:
        texts: Short texts.
        labels: Names of their classes.
        sizes: Their numbers of tokens.
        tokens: Largest number of tokens of a long text.
        count: Number of long texts.
        seed: Seed of the draws.
    """
    draw = np.random.default_rng(seed)
    of_class: dict[str, list[int]] = {}
    for place, label in enumerate(labels):
        of_class.setdefault(label, []).append(place)
    long_labels = [labels[place] for place in draw.integers(0, len(labels), count)]
    long_texts: list[str] = []
    long_sizes: list[int] = []
    for label in long_labels:
        places = draw.permutation(of_class[label])
        ends = np.cumsum([sizes[place] for place in places])
        number = max(int(np.searchsorted(ends, tokens, side="right")), 1)
        long_texts.append(" ".join(texts[place] for place in places[:number]))
        long_sizes.append(int(ends[number - 1]))
    return LongTexts(long_texts, long_labels, float(np.mean(long_sizes)))
