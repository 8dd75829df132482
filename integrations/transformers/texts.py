"""Texts and encodings to answers: tokenizers, row ids by content, and data sets of a model.

Texts become encodings (`tokenize`), and these become examples of the wrapper (`examples_of`), which
`ponder.predict` and `record` read. A row has one id in every batch: the hash of its encoding at
positions that are not padding (`row_ids`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ponder._utils.rows import Ints, check_rows, content_ids
from ponder.cascade.stages import classes_of
from ponder.errors import ArgumentError, CheckpointError
from ponder.inference import predict, record
from ponder.inference.examples import DataSet, Indexed, examples_in
from ponder.model.steps import ContextDict
from ponder.running.loop import Answers
from ponder.tasks import Span
from ponder.trajectory import Trajectory

if TYPE_CHECKING:
    from ponder.integrations.transformers.modeling import PonderPreTrainedModel

__all__ = [
    "Encoded",
    "Encoding",
    "HasTokenizer",
    "Rows",
    "TextOrPair",
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

_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", ".model")
"""The ends of the names of vocabulary files."""
_NO_LIMIT = 10**10
_FALLBACK = 512
"""The number of tokens to which texts are cut if neither model nor tokenizer has a limit."""
_EXPECTED_TEXTS = "a list of texts, and a tokenizer"
_SPAN = ("start_positions", "end_positions")
_INPUTS = ("input_ids", "token_type_ids", "pixel_values", "input_values", "input_features")
Encoding: TypeAlias = Mapping[str, Any]
"""The inputs of a row by name, as a tokenizer or a processor returns them."""
TextOrPair: TypeAlias = str | Sequence[str]
"""A text, or a pair of texts."""
Rows: TypeAlias = Iterable[TextOrPair | Encoding] | Indexed
"""Texts, pairs of texts, or encodings."""


class HasTokenizer(Protocol):
    """A model of texts."""

    @property
    def encoder(self) -> PreTrainedModel:
        """The encoder, which limits the length of texts."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """Its tokenizer."""


@dataclass(frozen=True)
class Encoded:
    """Tokenised texts.

    Args:
        rows: The encodings, each with `input_ids`.
        cut: Whether each text was longer than the model takes.
    """

    rows: list[Encoding]
    cut: list[bool]

    @property
    def truncated(self) -> int:
        """The number of texts that were cut."""
        return sum(self.cut)


def load_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a folder or of a hub name.

    Raises:
        CheckpointError: No tokenizer can be read.
    """
    try:
        if not _may_have_tokenizer(source):
            # Transformers would make one up, for which every word is unknown.
            raise FileNotFoundError(source)
        tokenizer: PreTrainedTokenizerBase = transformers.AutoTokenizer.from_pretrained(source)
        if not tokenizer.model_max_length >= 1:
            raise ValueError(f"model_max_length: {tokenizer.model_max_length}")
    except Exception as error:  # the library of tokenizers raises no other class
        raise CheckpointError(
            f"tokenizer: expected the tokenizer's files in {source!r}; got none that can be read. "
            "Save them there: tokenizer.save_pretrained(folder)."
        ) from error
    return tokenizer


def _may_have_tokenizer(source: str) -> bool:
    """Whether a source is a hub name, or a folder with vocabulary files."""
    folder = Path(source)
    if not source or not folder.is_dir():
        return bool(source)
    return any(path.name.endswith(_FILES) for path in folder.iterdir())


def max_positions(model: PreTrainedModel) -> int:
    """Return the number of tokens that an encoder takes, 10¹⁰ if it has no limit.

    In a table of positions with a row for padding, the first position is behind that row.
    """
    count = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(count, int) or count < 1:
        return _NO_LIMIT
    unused = 0
    for name, table in model.named_modules():
        padding_row = getattr(table, "padding_idx", None)
        is_table = name.rpartition(".")[2] == "position_embeddings"
        if is_table and isinstance(padding_row, int):
            unused = max(unused, padding_row + 1)
    return count - unused


def tokenize(
    tokenizer: PreTrainedTokenizerBase | None, texts: Sequence[TextOrPair], longest: int
) -> Encoded:
    """Tokenise texts, or pairs of texts, without padding.

    Texts of more than `longest` tokens are cut as the tokenizer cuts them.

    Raises:
        ArgumentError: The model has no tokenizer.
    """
    if tokenizer is None:
        raise ArgumentError(
            "rows",
            expected=_EXPECTED_TEXTS,
            got="a model without a tokenizer",
            remedy="Set model.tokenizer, or pass encodings.",
        )
    limit = min(longest, tokenizer.model_max_length)
    if limit >= _NO_LIMIT:
        limit = _FALLBACK
    columns = _as_columns(texts)
    encoded = tokenizer(*columns, truncation=True, max_length=limit, padding=False)
    names = [name for name in tokenizer.model_input_names if name in encoded]
    rows = [{name: encoded[name][place] for name in names} for place in range(len(texts))]
    # A text as long as the limit was cut, or fits exactly: it is tokenised once more, without one.
    at_limit = [place for place, row in enumerate(rows) if len(row["input_ids"]) >= limit]
    cut = [False] * len(rows)
    for place, length in zip(at_limit, _lengths(tokenizer, columns, at_limit), strict=True):
        cut[place] = length > limit
    return Encoded(list(rows), cut)


def _lengths(
    tokenizer: PreTrainedTokenizerBase, columns: Sequence[Sequence[str]], places: Sequence[int]
) -> list[int]:
    """Return the number of tokens of some of the texts, without a limit."""
    if not places:
        return []
    some = [[column[place] for place in places] for column in columns]
    return [len(ids) for ids in tokenizer(*some, verbose=False)["input_ids"]]


def _as_columns(texts: Sequence[TextOrPair]) -> list[list[str]]:
    """Return texts as one list, or pairs of texts as two, as tokenizers take them.

    Example:
        >>> _as_columns(["yes", "no"]), _as_columns([("a", "b"), ("c", "d")])
        ([['yes', 'no']], [['a', 'c'], ['b', 'd']])
    """
    rows = [(text,) if isinstance(text, str) else tuple(text) for text in texts]
    return [list(column) for column in zip(*rows, strict=True)]


def encodings_of(model: HasTokenizer, rows: Rows) -> DataSet:
    """Return texts, or pairs of texts, as encodings; rows that are encodings already, unchanged.

    Raises:
        ArgumentError: The model has no tokenizer.
        ArgumentTypeError: `rows` is one text, a mapping or a table instead of a list.
    """
    check_rows("rows", rows)
    if not isinstance(rows, Sequence) or not len(rows) or not _is_text(rows[0]):
        return rows
    return tokenize(model.tokenizer, rows, max_positions(model.encoder)).rows


def answer_rows(model: PonderPreTrainedModel, rows: Rows, **options: Any) -> Answers:
    """Answer texts or encodings; see `PonderPreTrainedModel.predict`."""
    answers = predict(model.ponder, examples_of(model, rows), **options)
    names = classes_of(model) or ()
    outputs = answers.outputs
    if not len(answers):
        outputs = outputs.reshape(0, max(len(names), 1))
    return Answers(outputs, answers.exit_step, names)


def record_rows(model: PonderPreTrainedModel, rows: Rows, **options: Any) -> Trajectory:
    """Record all steps of texts or encodings; see `PonderPreTrainedModel.record`."""
    return record(model.ponder, examples_of(model, rows), **options)


def examples_of(model: PonderPreTrainedModel, rows: Rows) -> list[tuple[object, ContextDict]]:
    """Return texts or encodings as examples: pairs (inputs, context) for the model's stem."""
    name = model.main_input_name
    names = model.adapter.inputs - {name}
    has_spans = isinstance(model.ponder.task, Span)
    examples: list[tuple[object, ContextDict]] = []
    for row in examples_in(encodings_of(model, rows)):
        _check_encoding(row, name)
        context = {key: row[key] for key in names if row.get(key) is not None}
        labels = row.get("labels", row.get("label"))
        if labels is None and has_spans:
            labels = _span_of(row)
        if labels is not None:
            context["labels"] = labels
        examples.append((row[name], context))
    return examples


def _check_encoding(row: object, name: str) -> None:
    """Refuse a row that is not a dict with the main input, or whose main input is empty."""
    got = type(row).__name__
    if isinstance(row, Mapping):
        if row.get(name) is not None and len(row[name]):
            return
        got = f"a dict with {', '.join(row)}"
    raise ArgumentError(
        "rows",
        expected=f"dicts, each with {name!r} of one input, which is not empty",
        got=got,
        remedy="Pass texts, or [tokenizer(text) for text in texts], without padding.",
    )


def _span_of(row: Encoding) -> list[int] | None:
    """Return the first and the last token of the answer; None if they are not labelled."""
    if any(row.get(name) is None for name in _SPAN):
        return None
    return [int(row[name]) for name in _SPAN]


def row_ids(rows: Sequence[Encoding]) -> Ints:
    """Return ids of encodings by their content at real positions, `(rows,)`."""
    return content_ids([_content(row) for row in rows])


def ids_by_content(batch: Encoding) -> Tensor:
    """Return ids of the rows of a batch by their content, `(batch,)`.

    Example:
        >>> ids = torch.tensor([[5, 6, 0], [5, 6, 7]])
        >>> mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
        >>> padded = ids_by_content({"input_ids": ids, "attention_mask": mask})
        >>> (padded == ids_by_content({"input_ids": ids[:1, :2]})).tolist()
        [True, False]
    """
    names = [name for name in ("attention_mask", *_INPUTS) if batch.get(name) is not None]
    columns = [batch[name] for name in names]
    rows = [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]
    return torch.from_numpy(row_ids(rows))


def _content(row: Encoding) -> str:
    """Return the inputs of a row as text.

    Padding is left out, and so are segments that are all 0, which many callers omit.
    """
    mask = row.get("attention_mask")
    real: Tensor | None = None
    if mask is not None:
        real = torch.as_tensor(mask).bool()
    parts: list[str] = []
    for name in _INPUTS:
        if row.get(name) is None:
            continue
        values = torch.as_tensor(row[name])
        if real is not None and values.shape == real.shape:
            values = values[real]
        if name != "token_type_ids" or values.any():
            parts.append(f"{name} {_as_text(values)}")
    return "|".join(parts)


def _as_text(values: Tensor) -> str:
    """Return the shape and the bytes of a tensor, in one type, since callers may pass others."""
    dtype = torch.float32 if values.is_floating_point() else torch.int64
    content = values.to(dtype).cpu().numpy().tobytes()
    return f"{tuple(values.shape)} {content.hex()}"


def _is_text(row: object) -> bool:
    """Whether a row is a text or a pair of texts."""
    if isinstance(row, list | tuple) and row:
        row = row[0]
    return isinstance(row, str)
