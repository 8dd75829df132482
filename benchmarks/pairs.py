"""Texts of a task, in which the two sentences of a pair are one text."""

from __future__ import annotations

from datasets import Dataset

__all__ = ["texts_of"]

_SEPARATORS = {"mpnet": " </s></s> ", "e5": " </s></s> "}


def texts_of(rows: Dataset, backbone: str) -> list[str]:
    """Return the texts of rows; the backbone's tokenizer reads a joined pair as it reads a pair."""
    first = list(rows["sentence1"])
    if "sentence2" not in rows.column_names:
        return first
    separator = _SEPARATORS.get(backbone, " [SEP] ")
    pairs = zip(first, rows["sentence2"], strict=True)
    return [f"{one}{separator}{other}" for one, other in pairs]
