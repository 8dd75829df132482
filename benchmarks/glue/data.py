"""GLUE's data behind one interface, whether they come from a folder or from the hub.

Both sources give the same splits, columns and labels. In a folder, GLUE's own files have quirks that are read
here as they are meant: a byte-order mark, quotes that are part of the text, files without a header, lines
without a final newline, blanks at the ends of a sentence. Labels that GLUE keeps to itself are -1.

A line with too few or too many columns is an error that names file and line, except in the labelled splits of
QQP: its official dump has a few such lines, which are left out and named in the log, up to
`GlueTask.malformed_lines` a split. The hub's copy leaves them out as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
from datasets import Dataset, DatasetDict

from benchmarks.glue.tasks import GlueSplit, GlueTask
from benchmarks.glue.tsv import read_split
from ponder.errors import ArgumentError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["MissingDataError", "hold_out", "load", "tokenize"]

_HUB = "nyu-mll/glue"


class MissingDataError(DataError):
    """A split is not there: no file, or no hub."""


def load(task: GlueTask, glue_dir: Path | None, only: Sequence[str] = ()) -> DatasetDict:
    """Load a task.

    Args:
        task: The task.
        glue_dir: A folder in GLUE's layout, `<glue_dir>/<task>/<split>.tsv`; None to load from the hub.
        only: Names of the splits to load; all where empty. No other file need be there.

    Returns:
        Of the splits `train`, `dev` and `test` (MNLI: `dev_matched`, `dev_mismatched`, and likewise `test_…`).
        Columns: `idx`, the row number (in test splits of a folder the number that the file gives, which is
        the one that GLUE's server asks for); `sentence1`; `sentence2` where the task has pairs; `label`, a
        class number or a 32-bit score, and -1 where it is hidden.

    Raises:
        MissingDataError: A file is missing, or the hub cannot be reached.
        DataError: A file cannot be read as what it should be.
    """
    splits = [split for split in task.splits if split.name in only or not only]
    if glue_dir is None:
        source = _from_hub(task)
        return DatasetDict({split.name: _hub_split(task, split, source) for split in splits})
    folder = Path(glue_dir) / task.name
    return DatasetDict({split.name: _folder_split(task, split, folder) for split in splits})


def hold_out(train: Dataset, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """Split off a part of the training data, to select an epoch or a threshold on.

    The result is a function of the data, the fraction and the seed alone. Classes keep their proportions
    to within one example, and a class is only left without a training example where nothing else is
    possible. Neither part is ever empty.

    Args:
        train: Data with a column `label`.
        fraction: Share that is held out, in (0, 1).
        seed: Which examples are drawn.

    Returns:
        What is left for training, and what is held out; both in the order of `train`.

    Raises:
        ArgumentError: The fraction is outside (0, 1), or there are fewer than two examples.
    """
    if not 0.0 < fraction < 1.0:
        raise ArgumentError(
            "fraction", expected="a number in (0, 1)", got=fraction, remedy="Pass 0.1 to hold out a tenth."
        )
    if len(train) < 2:
        raise ArgumentError(
            "train",
            expected="at least two examples",
            got=len(train),
            remedy="Raise the limit on training examples: one part would be empty.",
        )
    labels = np.asarray(train["label"])
    strata = np.zeros(len(labels), dtype=np.int64) if labels.dtype.kind == "f" else labels
    total = min(max(round(fraction * len(labels)), 1), len(labels) - 1)
    held = np.zeros(len(labels), dtype=bool)
    held[_draw(strata, total, np.random.default_rng(seed))] = True
    return train.select(np.flatnonzero(~held)), train.select(np.flatnonzero(held))


def tokenize(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
    """Turn sentences into token numbers, truncated to a length but not padded to one.

    Padding is left to the collator, which pads a batch to its own longest example.

    Args:
        dataset: What `load` gives.
        tokenizer: The tokenizer of the backbone.
        max_length: Most tokens of an example; of a pair the longer sentence loses tokens first.

    Returns:
        Columns `input_ids`, `attention_mask`, `token_type_ids` if the model wants them, `labels`, `idx`, and
        `length` in tokens.

    Raises:
        ArgumentError: The length leaves no room for text.
    """
    columns = [name for name in ("sentence1", "sentence2") if name in dataset.column_names]
    special = tokenizer.num_special_tokens_to_add(pair=len(columns) == 2)
    if max_length <= special:
        raise ArgumentError(
            "max_length",
            expected=f"more than the {special} special tokens of this tokenizer",
            got=max_length,
            remedy="Pass 128, the length of most work on GLUE.",
        )

    def encode(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        encoded = tokenizer(*(batch[name] for name in columns), truncation=True, max_length=max_length)
        wanted = {name: encoded[name] for name in tokenizer.model_input_names if name in encoded}
        lengths = [len(ids) for ids in encoded["input_ids"]]
        return wanted | {"labels": batch["label"], "idx": batch["idx"], "length": lengths}

    options = {"load_from_cache_file": False, "keep_in_memory": True, "desc": "tokenize"}
    return dataset.map(encode, batched=True, remove_columns=dataset.column_names, **options)


def _features(task: GlueTask) -> datasets.Features:
    label = (
        datasets.Value("float32") if task.kind == "regression" else datasets.ClassLabel(names=list(task.label_names))
    )
    sentences = {"sentence1": datasets.Value("string")}
    if task.is_pair:
        sentences["sentence2"] = datasets.Value("string")
    return datasets.Features({"idx": datasets.Value("int64"), **sentences, "label": label})


def _folder_split(task: GlueTask, split: GlueSplit, folder: Path) -> Dataset:
    path = folder / split.file
    if not path.is_file():
        raise MissingDataError(
            f"{path}: expected the {split.name} split of {task.name}; there is no such "
            f"{'file' if folder.is_dir() else 'folder'}. Pass as GLUE_DIR (--glue-dir) the folder that holds "
            f"{task.name}/{split.file}, or leave it out to load {task.name} from the hub."
        )
    return Dataset.from_dict(read_split(task, split, path), features=_features(task))


def _from_hub(task: GlueTask) -> DatasetDict:
    try:
        return datasets.load_dataset(_HUB, task.hub_name)
    except Exception as error:  # whatever keeps the hub away, the remedy is the same
        raise MissingDataError(
            f"{task.name}: no folder was given, and the hub's {_HUB} ({task.hub_name}) could not be loaded "
            f"({type(error).__name__}: {error}). Either pass GLUE_DIR (--glue-dir), a folder that holds "
            f"{task.name}/{task.splits[0].file}, or allow access to the hub (with HF_HUB_OFFLINE unset)."
        ) from error


def _hub_split(task: GlueTask, split: GlueSplit, source: DatasetDict) -> Dataset:
    features = _features(task)
    if split.hub not in source:
        raise DataError(f"{_HUB} ({task.hub_name}): expected a split {split.hub}; got {', '.join(source)}.")
    rows = source[split.hub]
    sentences = task.hub_columns or task.columns
    missing = [name for name in (*sentences, "label") if name not in rows.column_names]
    if missing:
        raise DataError(
            f"{_HUB} ({task.hub_name}, {split.hub}): expected the columns {', '.join(missing)}; "
            f"got {', '.join(rows.column_names)}."
        )
    classes = getattr(rows.features["label"], "names", None)
    if task.label_names and classes != list(task.label_names):
        raise DataError(f"{_HUB} ({task.hub_name}): expected the classes {', '.join(task.label_names)}; got {classes}.")
    columns: dict[str, Any] = {"idx": range(len(rows))}
    for number, name in enumerate(sentences, start=1):
        columns[f"sentence{number}"] = [text.strip() for text in rows[name]]
    columns["label"] = rows["label"][:]
    return Dataset.from_dict(columns, features=features)


def _draw(strata: np.ndarray, total: int, rng: np.random.Generator) -> np.ndarray:
    """Draw `total` rows, from each stratum its share by largest remainder."""
    _, stratum, counts = np.unique(strata, return_inverse=True, return_counts=True)
    shares = counts * total / len(strata)
    taken = np.floor(shares).astype(np.int64)
    would_empty = taken + 1 >= counts
    order = np.lexsort((-(shares - taken), would_empty))
    taken[order[: total - taken.sum()]] += 1
    drawn = [rng.permutation(np.flatnonzero(stratum == number))[:count] for number, count in enumerate(taken)]
    return np.concatenate(drawn)
