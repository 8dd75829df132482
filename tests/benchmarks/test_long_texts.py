"""Long texts, joined of short ones for the measurements of advise."""

from __future__ import annotations

from benchmarks.advice.lengthening import lengthen


def test_long_texts_hold_parts_of_one_class_without_repetition() -> None:
    texts = [f"{label}{number}" for label in "ab" for number in range(10)]
    labels = [text[0] for text in texts]
    sizes = [1 + place % 3 for place in range(len(texts))]
    size_of = dict(zip(texts, sizes, strict=True))
    made = lengthen(texts, labels, sizes, tokens=9, count=40, seed=0)
    assert len(made.texts) == len(made.labels) == 40
    assert set(made.labels) == {"a", "b"}
    long_sizes = []
    for text, label in zip(made.texts, made.labels, strict=True):
        parts = text.split()
        assert {part[0] for part in parts} == {label}
        assert len(set(parts)) == len(parts)
        long_sizes.append(sum(size_of[part] for part in parts))
    assert max(long_sizes) == 9
    assert min(long_sizes) > 9 - 3  # the next part would exceed the limit
    assert made.mean_tokens == sum(long_sizes) / 40
    assert made == lengthen(texts, labels, sizes, tokens=9, count=40, seed=0)
    assert made.texts != lengthen(texts, labels, sizes, tokens=9, count=40, seed=1).texts


def test_a_text_longer_than_the_limit_stays_alone() -> None:
    made = lengthen(["long", "text"], ["a", "a"], [5, 5], tokens=3, count=4, seed=0)
    assert set(made.texts) <= {"long", "text"}
