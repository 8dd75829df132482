"""Polarity under nested negation: is the thing good, once every "not" has been undone?

A core clause praises or blames something ("the soup was delicious"). Operators are wrapped around
it, each of which reverses the polarity no, one or two times ("everyone knows that", "it is not true
that", "nobody doubts that"). The difficulty is the number of reversals; the label is the polarity
of the whole,

    polarity(sentence) = polarity(core) * (-1) ** difficulty,

so neither the number of negations nor the core word says the label alone, only both together do.
"""

from __future__ import annotations

from random import Random

from benchmarks.graded.grading import Example, GradedTask, register

__all__ = ["generate"]

_PRAISE = (
    "delicious",
    "wonderful",
    "excellent",
    "splendid",
    "superb",
    "lovely",
    "brilliant",
    "perfect",
)
_BLAME = (
    "disgusting",
    "dreadful",
    "terrible",
    "awful",
    "horrible",
    "lousy",
    "disastrous",
    "miserable",
)
_THINGS = (
    "soup", "concert", "hotel", "lecture", "novel", "garden", "exhibition", "dinner", "film", "music",
    "performance", "breakfast", "musical", "picnic", "speech", "cake", "trip", "weather", "service", "wine",
)  # fmt: skip
_WHERE = (
    "here", "in the old town", "by the lake", "in the village", "on the island", "at the castle",
    "last night", "on Monday", "last week", "on Sunday", "this summer", "yesterday",
)  # fmt: skip
_NEUTRAL = ("everyone knows that", "it is true that", "we believe that", "it is clear that")
_SINGLE = ("it is not true that", "it is false that", "nobody believes that", "we doubt that")
_DOUBLE = ("nobody doubts that", "it is not false that", "we never doubt that")


def generate(rng: Random, difficulty: int) -> Example:
    """One sentence with `difficulty` reversals around a core that praises or blames."""
    praises = rng.random() < 0.5
    adjective = rng.choice(_PRAISE if praises else _BLAME)
    remaining = difficulty
    operators: list[str] = []
    inner = remaining > 0 and rng.random() < 0.5
    remaining -= inner
    while remaining:
        double = remaining > 1 and rng.random() < 0.6
        operators.append(rng.choice(_DOUBLE if double else _SINGLE))
        remaining -= 1 + double
    if rng.random() < 0.4:
        operators.append(rng.choice(_NEUTRAL))
    rng.shuffle(operators)
    where = [rng.choice(_WHERE)] if rng.random() < 0.5 else []
    words = [*operators, "the", rng.choice(_THINGS), *where, "was", *["not"] * inner, adjective]
    text = " ".join(words)
    return Example(text[0].upper() + text[1:] + ".", int(praises) ^ (difficulty % 2))


register(
    GradedTask(
        name="negation",
        labels=("negative", "positive"),
        levels=(0, 3),
        generate=generate,
    )
)
