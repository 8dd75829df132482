"""Texts to token ids: the tokenizer of a folder, how long a text may be, and which texts were cut."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from ponder._utils.lengths import FALLBACK_LENGTH, length_limit
from ponder._utils.modes import evaluating
from ponder.errors import CheckpointError
from ponder.integrations.transformers.loading import check_reached

__all__ = ["Encoded", "load_tokenizer", "max_positions", "tokenize", "zero_types"]

_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", ".model")  # how the files of vocabularies end
_NO_LIMIT = 10**10


@dataclass(frozen=True)
class Encoded:
    """What the tokenizer made of texts.

    Args:
        rows: One dict each, with `input_ids`.
        cut: Whether each text was longer than the model takes, and was cut.
    """

    rows: list[dict[str, Any]]
    cut: list[bool]

    @property
    def truncated(self) -> int:
        """How many texts were cut."""
        return sum(self.cut)


def load_tokenizer(source: str) -> Any:
    """The tokenizer of a folder, or of a hub name.

    Raises:
        CheckpointError: There is none that can be read.
    """
    folder = Path(source)
    try:
        if folder.is_dir() and not any(path.name.endswith(_FILES) for path in folder.iterdir()):
            raise FileNotFoundError(folder)  # Transformers would make one up, in which every word is unknown
        if not folder.is_dir():
            check_reached(source)
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # whatever Transformers stumbles over
        raise CheckpointError(
            f"tokenizer: expected the tokenizer's files in {source}; got none that can be read. "
            "Save them there: tokenizer.save_pretrained(folder)."
        ) from error


def max_positions(model: Any) -> int:
    """How many tokens an encoder takes, 10¹⁰ where it has no limit.

    In a table of positions with a row for padding they begin behind that row.
    """
    count = length_limit(getattr(model.config, "max_position_embeddings", None)) or _NO_LIMIT
    tables = [table for name, table in model.named_modules() if name.rpartition(".")[2] == "position_embeddings"]
    padding = [getattr(table, "padding_idx", None) for table in tables]
    return count - max((row + 1 for row in padding if row is not None), default=0)


def zero_types(model: Any, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Token types of zeros, where a model takes them and means by them what it means by none; else nothing.

    In GPT-2, say, they are tokens, and the embedding of token 0 is added at every position.

    Args:
        model: A model of Transformers.
        ids: Tokens, `(batch, length)`.
        mask: Which of them are no padding.
    """
    if "token_type_ids" not in inspect.signature(model.forward).parameters:
        return {}
    zeros = {"token_type_ids": torch.zeros_like(ids)}
    with evaluating(model), torch.no_grad():
        without, given = (model(input_ids=ids, attention_mask=mask, **types)[0] for types in ({}, zeros))
    return zeros if torch.allclose(without, given, atol=1e-5, equal_nan=True) else {}


def tokenize(tokenizer: Any, texts: Sequence[tuple[str, ...]], longest: int) -> Encoded:
    """Tokenise without padding; texts that are too long are cut as the tokenizer cuts them, and named.

    Args:
        tokenizer: A tokenizer of Transformers.
        texts: One or two each, all as many.
        longest: How many positions the model has.
    """
    limit = length_limit(longest, tokenizer.model_max_length) or FALLBACK_LENGTH
    sides = [list(side) for side in zip(*texts, strict=True)]
    made = tokenizer(*sides, truncation=True, max_length=limit, padding=False)
    names = [name for name in tokenizer.model_input_names if name in made]
    rows = [{name: made[name][place] for name in names} for place in range(len(texts))]
    full = [place for place, row in enumerate(rows) if len(row["input_ids"]) >= limit]
    again = tokenizer(*[[side[place] for place in full] for side in sides], verbose=False)["input_ids"] if full else []
    longer = {place for place, ids in zip(full, again, strict=True) if len(ids) > limit}
    return Encoded(rows, [place in longer for place in range(len(rows))])
