"""Texts and encodings to answers: tokenizers, row ids by content, and data sets through a model with exits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

from ponder._utils.rows import content_ids
from ponder.cascade.stages import classes_of
from ponder.errors import ArgumentError, CheckpointError
from ponder.inference import predict, record
from ponder.inference.examples import examples_in
from ponder.running.loop import Answers
from ponder.tasks import Span
from ponder.trajectory import Trajectory

__all__ = [
    "Encoded",
    "answer_rows",
    "encodings_of",
    "examples_of",
    "ids_by_content",
    "load_tokenizer",
    "max_positions",
    "record_rows",
    "row_ids",
    "tokenize",
]

_FILES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    ".model",
)  # how the files of vocabularies end
_NO_LIMIT = 10**10
_FALLBACK = 512
_SPAN = ("start_positions", "end_positions")
_INPUTS = ("input_ids", "token_type_ids", "pixel_values", "input_values", "input_features")


@dataclass(frozen=True)
class Encoded:
    """Tokenised texts."""

    rows: list[dict[str, Any]]  # each with `input_ids`
    cut: list[bool]  # whether each was longer than the model takes

    @property
    def truncated(self) -> int:
        """The number of texts that were cut."""
        return sum(self.cut)


def load_tokenizer(source: str) -> Any:
    """Return the tokenizer of a folder, or of a hub name; a `CheckpointError` where none can be read."""
    folder = Path(source)
    try:
        if not source or (
            folder.is_dir() and not any(path.name.endswith(_FILES) for path in folder.iterdir())
        ):
            raise FileNotFoundError(
                folder
            )  # Transformers would make one up, in which every word is unknown
        return transformers.AutoTokenizer.from_pretrained(source)
    except Exception as error:  # the library of tokenizers raises no other class
        raise CheckpointError(
            f"tokenizer: expected the tokenizer's files in {source!r}; got none that can be read. "
            "Save them there: tokenizer.save_pretrained(folder)."
        ) from error


def max_positions(model: Any) -> int:
    """Return how many tokens an encoder takes, 10¹⁰ where it has no limit.

    In a table of positions with a row for padding they begin behind that row.
    """
    count = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(count, int) or count < 1:
        return _NO_LIMIT
    tables = [
        table
        for name, table in model.named_modules()
        if name.rpartition(".")[2] == "position_embeddings"
    ]
    padding = [getattr(table, "padding_idx", None) for table in tables]
    return count - max((row + 1 for row in padding if row is not None), default=0)


def tokenize(tokenizer: Any, texts: Sequence[str | Sequence[str]], longest: int) -> Encoded:
    """Tokenise texts, or pairs, without padding; those longer than `longest` are cut as the tokenizer cuts them."""
    limit = min(longest, tokenizer.model_max_length)
    limit = _FALLBACK if limit >= _NO_LIMIT else limit
    sides = [
        list(side)
        for side in zip(*([text] if isinstance(text, str) else text for text in texts), strict=True)
    ]
    made = tokenizer(*sides, truncation=True, max_length=limit, padding=False)
    names = [name for name in tokenizer.model_input_names if name in made]
    rows = [{name: made[name][place] for name in names} for place in range(len(texts))]
    full = [place for place, row in enumerate(rows) if len(row["input_ids"]) >= limit]
    if full:
        again = tokenizer(*[[side[place] for place in full] for side in sides], verbose=False)[
            "input_ids"
        ]
    else:
        again = []
    longer = {place for place, ids in zip(full, again, strict=True) if len(ids) > limit}
    return Encoded(rows, [place in longer for place in range(len(rows))])


def encodings_of(model: Any, rows: Any) -> list[Mapping[str, Any]] | Any:
    """Return texts, or pairs of texts, as encodings by the model's tokenizer; anything else as it is.

    Raises:
        ArgumentError: Texts for a model without a tokenizer, or one text in the place of a list.
    """
    if isinstance(rows, str) or (isinstance(rows, Sequence) and len(rows) and _is_text(rows[0])):
        if isinstance(rows, str) or model.tokenizer is None:
            expected = "a list of texts, and a tokenizer"
            got = "one text" if isinstance(rows, str) else "a model without a tokenizer"
            if isinstance(rows, str):
                remedy = "Pass [text]."
            else:
                remedy = "Set model.tokenizer, or pass encodings."
            raise ArgumentError("rows", expected=expected, got=got, remedy=remedy)
        return tokenize(model.tokenizer, rows, max_positions(model.encoder)).rows
    return rows


def answer_rows(model: Any, rows: Any, options: Mapping[str, Any]) -> Answers:
    """`ponder.predict` on texts or encodings; see `PonderPreTrainedModel.predict`."""
    found = predict(model.ponder, examples_of(model, rows), **options)
    names = classes_of(model) or ()
    outputs = found.outputs if len(found) else found.outputs.reshape(0, max(len(names), 1))
    return Answers(outputs, found.exit_step, names)


def record_rows(model: Any, rows: Any, options: Mapping[str, Any]) -> Trajectory:
    """`ponder.inference.record` on texts or encodings; see `PonderPreTrainedModel.record`."""
    return record(model.ponder, examples_of(model, rows), **options)


def examples_of(model: Any, rows: Iterable[Any]) -> list[tuple[Any, dict[str, Any]]]:
    """Return texts or encodings as examples: pairs (inputs, context), by the names of the model's inputs."""
    name = model.main_input_name
    reads = model.adapter.inputs
    of_spans = isinstance(model.ponder.task, Span)
    return [_pair(row, name, reads, of_spans) for row in examples_in(encodings_of(model, rows))]


def _pair(
    row: Mapping[str, Any], name: str, reads: frozenset[str], of_spans: bool
) -> tuple[Any, dict[str, Any]]:
    if not isinstance(row, Mapping) or row.get(name) is None or not len(row[name]):
        expected = f"dicts, each with {name!r} of one input, which is not empty"
        got = f"a dict with {', '.join(row)}" if isinstance(row, Mapping) else type(row).__name__
        remedy = "Pass texts, or [tokenizer(text) for text in texts], without padding."
        raise ArgumentError("rows", expected=expected, got=got, remedy=remedy)
    context = {key: row[key] for key in reads if key != name and row.get(key) is not None}
    labels = row.get("labels", row.get("label"))
    if labels is None and of_spans and all(row.get(place) is not None for place in _SPAN):
        labels = [int(row[place]) for place in _SPAN]
    return row[name], context if labels is None else {**context, "labels": labels}


def row_ids(rows: Sequence[Mapping[str, Any]]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return ids of encodings by their content, `(rows,)`: the numbers that the model is given at real positions."""
    return content_ids([_content(row) for row in rows])


def ids_by_content(batch: Mapping[str, Any]) -> Tensor:
    """Return ids of the rows of a batch by their content, `(batch,)`; none of inputs that are not known.

    Example:
        >>> ids = torch.tensor([[5, 6, 0], [5, 6, 7]])
        >>> beside = ids_by_content({"input_ids": ids, "attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]])})
        >>> (beside == ids_by_content({"input_ids": ids[:1, :2]})).tolist()
        [True, False]
    """
    given = {
        name: batch[name] for name in ("attention_mask", *_INPUTS) if batch.get(name) is not None
    }
    return torch.from_numpy(
        row_ids([dict(zip(given, row, strict=True)) for row in zip(*given.values(), strict=True)])
    )


def _content(row: Mapping[str, Any]) -> str:
    mask = row.get("attention_mask")
    real = None if mask is None else torch.as_tensor(mask).bool()
    parts = []
    for name in _INPUTS:
        if row.get(name) is None:
            continue
        values = torch.as_tensor(row[name])
        if real is not None and values.shape == real.shape:
            values = values[real]
        if name != "token_type_ids" or values.any():
            values = values.float() if values.is_floating_point() else values.long()
            parts.append(f"{name} {tuple(values.shape)} {values.cpu().numpy().tobytes().hex()}")
    return "|".join(parts)


def _is_text(row: Any) -> bool:
    return isinstance(row, str) or (
        isinstance(row, list | tuple) and len(row) > 0 and isinstance(row[0], str)
    )
