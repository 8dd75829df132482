"""Examples of text tasks, from columns to a batch: held-out rows, tokens, padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from datasets import Dataset
from transformers import AutoTokenizer, DataCollatorWithPadding, PreTrainedTokenizerBase

from benchmarks import backbones
from benchmarks.files import DataError
from ponder.errors import ArgumentError, CheckpointError

__all__ = ["Collator", "features_of", "hold_out", "load_tokenizer", "read_text", "tokenize"]


def read_text(path: Path, option: str) -> str:
    """Read a file of UTF-8 text; `option` names the folder that it lies in, for errors."""
    if not path.is_file():
        raise DataError(
            f"{path}: there is no such file. Pass as {option} the folder above its own."
        )
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {line}: expected UTF-8 text. Fetch the file anew.") from None


def features_of(label_names: Sequence[str], pair: bool = False) -> datasets.Features:
    """Return the columns of examples: `idx`, one sentence or two, and a class or a number."""
    label = (
        datasets.ClassLabel(names=list(label_names)) if label_names else datasets.Value("float32")
    )
    sentences = {name: datasets.Value("string") for name in ("sentence1", "sentence2")[: 1 + pair]}
    return datasets.Features({"idx": datasets.Value("int64"), **sentences, "label": label})


def hold_out(train: Dataset, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """Split off a part of the training data, to select an epoch or a threshold on.

    The result is a function of the data, the fraction and the seed alone. Classes keep their
    proportions to within one example, and a class stays without a training example only where
    nothing else is possible.

    Returns:
        The rest for training, and the held-out part; both in the order of `train`.
    """
    if len(train) < 2:
        remedy = "Raise the limit on training examples: one part would be empty."
        raise ArgumentError(
            "train", expected="at least two examples", got=len(train), remedy=remedy
        )
    labels = np.asarray(train["label"])
    strata = np.zeros(len(labels), dtype=np.int64) if labels.dtype.kind == "f" else labels
    total = min(max(round(fraction * len(labels)), 1), len(labels) - 1)
    held = np.zeros(len(labels), dtype=bool)
    held[_draw(strata, total, np.random.default_rng(seed))] = True
    return train.select(np.flatnonzero(~held)), train.select(np.flatnonzero(held))


def _draw(strata: np.ndarray, total: int, rng: np.random.Generator) -> np.ndarray:
    """Draw `total` rows, from each stratum its share by largest remainder."""
    _, stratum, counts = np.unique(strata, return_inverse=True, return_counts=True)
    shares = counts * total / len(strata)
    taken = np.floor(shares).astype(np.int64)
    would_empty = taken + 1 >= counts
    order = np.lexsort((-(shares - taken), would_empty))
    taken[order[: total - taken.sum()]] += 1
    drawn = [
        rng.permutation(np.flatnonzero(stratum == number))[:count]
        for number, count in enumerate(taken)
    ]
    return np.concatenate(drawn)


def load_tokenizer(backbone: str) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a backbone."""
    source = str(backbones.resolve(backbone))
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"backbone: no tokenizer at {source!r} ({str(error).partition(chr(10))[0]}). Pass one of "
            f"{', '.join(backbones.names())}, a folder with a tokenizer and an encoder, or a hub name."
        ) from error
    return tokenizer


def tokenize(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
    """Turn sentences into token numbers, truncated to a length; the collator pads a batch.

    Returns:
        Columns `input_ids`, `attention_mask`, `token_type_ids` if the model wants them, `labels`,
            `idx`, and
        `length` in tokens.
    """
    columns = [name for name in ("sentence1", "sentence2") if name in dataset.column_names]

    respell = _spelling_of(tokenizer)

    def encode(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        sentences = [respell(batch[name]) for name in columns]
        encoded = tokenizer(*sentences, truncation=True, max_length=max_length)
        wanted = {name: encoded[name] for name in tokenizer.model_input_names if name in encoded}
        lengths = [len(ids) for ids in encoded["input_ids"]]
        return wanted | {"labels": batch["label"], "idx": batch["idx"], "length": lengths}

    options = {"load_from_cache_file": False, "keep_in_memory": True, "desc": "tokenize"}
    return dataset.map(encode, batched=True, remove_columns=dataset.column_names, **options)


def _spelling_of(tokenizer: PreTrainedTokenizerBase) -> Callable[[Sequence[str]], list[str]]:
    """Return how texts are written before they are tokenised: as they are, or as phonemes."""
    if tokenizer.init_kwargs.get("spelling") == "phonemes":
        return import_module("benchmarks.phonemes").to_phonemes  # type: ignore[no-any-return]
    return list


class Collator:
    """Pads a batch to its own longest example, and names its rows."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._pad = DataCollatorWithPadding(tokenizer)

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return tensors for `PonderForSequenceClassification.forward`."""
        batch = self._pad(
            [{k: v for k, v in e.items() if k not in ("idx", "length")} for e in examples]
        )
        return {**batch, "row_ids": torch.tensor([e["idx"] for e in examples])}
