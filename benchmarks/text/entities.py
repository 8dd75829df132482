"""Named entities as spans, and their F1: an entity counts where its start, its end and its type are right."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["EntityScore", "score", "spans"]


@dataclass(frozen=True)
class EntityScore:
    """How well entities were found, over all types together (micro-averaged).

    Args:
        f1: Harmonic mean of precision and recall; 0 where nothing was found or nothing was there.
        precision: Share of the found entities that are there.
        recall: Share of the entities that were found.
    """

    f1: float
    precision: float
    recall: float


def spans(tags: Sequence[str]) -> set[tuple[int, int, str]]:
    """The entities of a sentence as (first word, word behind the last, type).

    Tags are `O`, `B-type` at the first word of an entity and `I-type` at the others. As in the evaluation script of the
    CoNLL-2000 shared task, an `I` that continues nothing starts an entity.

    Example:
        >>> sorted(spans(["B-place", "I-place", "O", "I-name", "B-name"]))
        [(0, 2, 'place'), (3, 4, 'name'), (4, 5, 'name')]
    """
    found, start, kind = set(), 0, ""
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, own = tag.partition("-")
        if kind and (prefix != "I" or own != kind):
            found.add((start, place, kind))
            kind = ""
        if not kind and prefix != "O":
            start, kind = place, own
    return found


def score(predicted: Iterable[Sequence[str]], gold: Iterable[Sequence[str]]) -> EntityScore:
    """The score of predicted tags against those of the data, sentence by sentence.

    Example:
        >>> score([["B-name", "O"]], [["B-name", "B-name"]])
        EntityScore(f1=0.6666666666666666, precision=1.0, recall=0.5)
    """
    right = found = there = 0
    for ours, theirs in zip(predicted, gold, strict=True):
        one, other = spans(ours), spans(theirs)
        right, found, there = right + len(one & other), found + len(one), there + len(other)
    precision, recall = right / found if found else 0.0, right / there if there else 0.0
    return EntityScore(2 * right / (found + there) if right else 0.0, precision, recall)
