"""What a caller may hand to an exported model: texts, arrays, dicts of arrays; read as rows, and joined to batches."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ponder.errors import ArgumentError, ArgumentTypeError, CheckpointError, PonderError
from ponder.export.manifest import Manifest, TensorSpec

__all__ = ["Batch", "Row", "batches", "check_texts", "encoded", "is_text", "join", "open_tokenizer", "read_rows"]

Array = NDArray[Any]
_TOKENS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}


@dataclass(frozen=True, eq=False)
class Row:
    """One example, as arrays with a batch of one row.

    Args:
        position: Where it stands among those that the caller gave.
        arrays: Its inputs by name, without a batch dimension.
        length: Its length; 0 where the model has none.
    """

    position: int
    arrays: dict[str, Array]
    length: int

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes that rows must share where the model has no lengths."""
        return tuple(array.shape for array in self.arrays.values())


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows that run together.

    Args:
        positions: Where they stand among those that the caller gave, `(rows,)`.
        arrays: Inputs by name, batch first.
        lengths: Length of each row, `(rows,)`; None where the model has none.
        mask: Which positions are no padding, `(rows, length)` bool; None where the model has no lengths.
    """

    positions: Array
    arrays: dict[str, Array]
    lengths: Array | None
    mask: Array | None


def open_tokenizer(folder: Path, manifest: Manifest) -> Any:
    """The tokenizer of an export: no padding, and texts cut to the length that the model was made for; None without."""
    if manifest.tokenizer is None:
        return None
    try:
        import tokenizers
    except ImportError as error:
        raise PonderError("reading texts needs tokenizers: pip install 'ponder-torch[onnx]'.") from error
    try:
        tokenizer = tokenizers.Tokenizer.from_buffer(_unchanged(folder / manifest.tokenizer, manifest))
    except CheckpointError:
        raise
    except Exception as error:  # tokenizers raises the bare Exception
        raise CheckpointError(f"{folder / manifest.tokenizer}: no tokenizer ({error}). Export again.") from error
    tokenizer.no_padding()
    if manifest.max_length is not None:
        tokenizer.enable_truncation(manifest.max_length, direction=manifest.truncation_side)
    elif manifest.tokenizer_inputs:  # one of Transformers: its file keeps how the call before it was saved cut
        tokenizer.no_truncation()
    return tokenizer


def _unchanged(path: Path, manifest: Manifest) -> bytes:
    """The bytes of a file of an export, which are read later than its description."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error}). Export again.") from error
    if manifest.digests and hashlib.sha256(content).hexdigest() != manifest.digests.get(path.name):
        raise CheckpointError(f"{path}: of another export than the one that was opened. Open it again.")
    return content


def check_texts(manifest: Manifest) -> None:
    """Refuse a tokenizer for a model that no text could be given to.

    Raises:
        ArgumentError: The model must be given something that a tokenizer does not make.
    """
    required = [spec for spec in manifest.inputs if spec.default is None]
    ids = main_input(required)
    missing = [spec.name for spec in required if spec.name not in _TOKENS and spec.name != ids]
    if manifest.tokenizer is not None and missing:
        raise ArgumentError(
            "tokenizer",
            expected="None, for a model that reads more than token ids and their masks",
            got=f"one for a model that must be given {', '.join(missing)}",
            remedy="Leave it out, or export a model whose input is token ids.",
        )


def read_rows(examples: Any, manifest: Manifest, tokenizer: Any) -> list[Row]:
    """The rows of what a caller gave, in his order.

    Raises:
        ArgumentError: Texts without a tokenizer, an empty text, inputs that are missing, unknown or of another shape.
    """
    if isinstance(examples, str):
        raise ArgumentTypeError(
            "examples", expected="a list of texts", got="one text", remedy="Pass [text], for a batch of one."
        )
    if isinstance(examples, Mapping):
        examples = _apart(examples, {spec.name for spec in manifest.inputs if spec.shared})
    elif not isinstance(examples, Sequence) and not hasattr(examples, "__array__"):
        raise ArgumentTypeError(
            "examples",
            expected="texts, arrays, or a dict of arrays with the batch first",
            got=type(examples).__name__,
            remedy="Pass a list with one example each.",
        )
    elif hasattr(examples, "columns"):  # a loop over a data frame gives the names of its columns
        raise ArgumentTypeError(
            "examples",
            expected="texts, arrays, or a dict of arrays with the batch first",
            got=f"{type(examples).__name__}, a table",
            remedy="Pass one column, table['text'].tolist(); pairs as list(zip(table['a'], table['b'])); numbers as "
            "table.to_numpy().",
        )
    return [_row(place, example, manifest, tokenizer) for place, example in enumerate(examples)]


def batches(rows: Sequence[Row], size: int, manifest: Manifest) -> list[list[Row]]:
    """Rows in batches, those of similar length together, the longest first."""
    if manifest.mask is not None:
        ordered = sorted(rows, key=lambda row: -row.length)
        return [ordered[start : start + size] for start in range(0, len(ordered), size)]
    alike: dict[Any, list[Row]] = {}
    for row in rows:
        alike.setdefault(row.shapes, []).append(row)
    return [group[start : start + size] for group in alike.values() for start in range(0, len(group), size)]


def join(rows: Sequence[Row], manifest: Manifest) -> Batch:
    """A batch of rows, padded on the right to the longest.

    Raises:
        ArgumentError: An input that the rows share is not the same for all of them.
    """
    longest = None if manifest.mask is None else max(row.length for row in rows)  # else all are of one shape
    arrays: dict[str, Array] = {}
    for spec in manifest.inputs:
        values = [row.arrays[spec.name] for row in rows]
        if not spec.shared:
            arrays[spec.name] = np.stack(
                [value if longest is None else _padded(value, spec, longest) for value in values]
            )
            continue
        arrays[spec.name] = values[0]
        if not all(np.array_equal(value, values[0]) for value in values[1:]):
            raise ArgumentError(
                "examples",
                expected=f"one {spec.name!r} for all rows: the model was exported with a shared one",
                got="several",
                remedy="Call predict once for each of them.",
            )
    lengths = None if manifest.mask is None else np.array([row.length for row in rows])
    mask = None if manifest.mask is None else (arrays[manifest.mask] != 0) == bool(manifest.real)
    return Batch(np.array([row.position for row in rows], dtype=np.int64), arrays, lengths, mask)


def _apart(batch: Mapping[str, Any], shared: Collection[str]) -> list[dict[str, Any]]:
    """Take a batch, a dict of arrays, apart into its rows; what these share goes to each of them whole."""
    sizes = {name: len(value) for name, value in batch.items() if name not in shared}
    if len(set(sizes.values())) != 1:
        raise ArgumentError(
            "examples",
            expected="arrays with the same number of rows",
            got=", ".join(f"{name}: {size}" for name, size in sizes.items()) or "none",
            remedy="Put the batch first in each of them.",
        )
    count = next(iter(sizes.values()))
    return [{name: value if name in shared else value[row] for name, value in batch.items()} for row in range(count)]


def is_text(example: Any) -> bool:
    """Whether an example is a text, or a pair of texts."""
    if isinstance(example, tuple | list) and example:
        return all(isinstance(part, str) for part in example)
    return isinstance(example, str)


def _is_half_text(example: Any) -> bool:
    """Whether an example is what stands for a missing text in tables, None or NaN, or a pair with one."""
    if isinstance(example, tuple | list):
        return any(isinstance(part, str) for part in example)
    return not hasattr(example, "__len__")


def _row(place: int, example: Any, manifest: Manifest, tokenizer: Any) -> Row:
    if is_text(example):
        if manifest.columns and (1 if isinstance(example, str) else len(example)) != len(manifest.columns):
            kind = "a text" if len(manifest.columns) == 1 else "a pair of texts"
            raise _refusal(place, f"{kind}, to which the exits were fitted ({', '.join(manifest.columns)})", example)
        example = _tokenized(place, example, tokenizer, manifest)
    elif manifest.tokenizer is not None and _is_half_text(example):
        raise _refusal(place, "a text, a pair of texts, or token ids", repr(example))
    elif not isinstance(example, Mapping):
        required = [spec.name for spec in manifest.inputs if spec.default is None]
        if len(required) != 1:
            raise _refusal(place, f"a dict with {', '.join(required)}", type(example).__name__)
        example = {required[0]: example}
    known = {spec.name: spec for spec in manifest.inputs}
    if unknown := sorted(example.keys() - known.keys()):
        if set(unknown) - set(_TOKENS):  # a tokenizer may give more than its model reads
            raise _refusal(place, f"the inputs {', '.join(known)}", f"also {', '.join(unknown)}")
        if "attention_mask" in unknown and not np.all(example["attention_mask"]):
            raise _refusal(place, "no padding: the model was exported without a mask", "an attention_mask with zeros")
        example = {name: value for name, value in example.items() if name in known}
    arrays = {name: _array(place, value, known[name]) for name, value in example.items()}
    main = main_input([spec for spec in manifest.inputs if spec.default is None])
    ids = {"input_ids", "token_type_ids"} if manifest.tokenizer is None else {*_TOKENS, main}
    ids |= {spec.name for spec in manifest.inputs if spec.indexes}
    for name in ids & arrays.keys():
        if arrays[name].size and arrays[name].min() < 0:  # a graph would count them from the end of its table
            raise _refusal(place, f"numbers from 0 on in {name!r}", str(arrays[name].min()))
    length = _length(place, arrays, manifest)
    for spec in manifest.inputs:
        if spec.name in arrays:
            continue
        if spec.default is None:
            raise _refusal(place, f"the input {spec.name!r}", ", ".join(arrays) or "nothing")
        sizes = [length if dim in spec.along else size for dim, size in enumerate(spec.shape)][1:]
        arrays[spec.name] = np.full([size or 0 for size in sizes], spec.default, dtype=spec.dtype)
    return Row(place, {spec.name: arrays[spec.name] for spec in manifest.inputs}, length)


def _tokenized(place: int, text: Any, tokenizer: Any, manifest: Manifest) -> dict[str, Any]:
    if tokenizer is None:
        raise ArgumentError(
            f"examples[{place}]",
            expected="arrays, since the export has no tokenizer",
            got="a text",
            remedy="Export the model again with tokenizer=…, or pass what its tokenizer gives.",
        )
    parts = (text,) if isinstance(text, str) else text
    if len(parts) > 2 or not all(isinstance(part, str) and part.strip() for part in parts):
        raise _refusal(place, "a text, or a pair of texts, that is not empty", repr(text))
    try:
        return encoded(tokenizer.encode(*parts), manifest)
    except TypeError as error:  # half of a surrogate pair
        raise _refusal(place, "a text that is Unicode", repr(text)) from error


def encoded(encoding: Any, manifest: Manifest) -> dict[str, Array]:
    """What a model reads of an encoding of tokenizers, by the names of its inputs."""
    given = manifest.tokenizer_inputs or tuple(_TOKENS)
    names = {
        spec.name: spec.name
        for spec in manifest.inputs
        if spec.name in _TOKENS and (spec.default is None or spec.name in given)
    }
    ids = main_input([spec for spec in manifest.inputs if spec.default is None])
    if ids is not None:
        names[ids] = "input_ids"
    return {name: np.asarray(getattr(encoding, _TOKENS[made])) for name, made in names.items()}


def main_input(required: Sequence[TensorSpec]) -> str | None:
    """Name of the input that takes token ids, among those that a caller must give; None where none does."""
    others = [spec for spec in required if spec.name not in _TOKENS]
    if len(others) == 1 and not any(spec.name == "input_ids" for spec in required):
        found = others[0]
        return found.name if np.dtype(found.dtype).kind in "iu" and len(found.shape) == 2 else None
    return None


def _array(place: int, value: Any, spec: TensorSpec) -> Array:
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise _refusal(place, f"numbers in {spec.name!r}", str(error)) from error
    wanted = np.dtype(spec.dtype)
    if array.dtype.kind not in "biuf" or (array.dtype.kind == "f" and wanted.kind in "biu" and array.size):
        raise _refusal(place, f"{spec.dtype} in {spec.name!r}", str(array.dtype))
    shape = spec.shape if spec.shared else spec.shape[1:]
    fits = array.ndim == len(shape)
    if not fits or any(own not in (None, size) for own, size in zip(shape, array.shape, strict=True)):
        named = tuple("any" if own is None else own for own in shape)
        raise _refusal(place, f"one row of {spec.name!r}, of shape {named}", f"shape {array.shape}")
    if wanted.kind in "iu" and array.size:
        low, high = np.iinfo(wanted).min, np.iinfo(wanted).max
        if array.min() < low or array.max() > high:
            raise _refusal(
                place, f"numbers from {low} to {high} in {spec.name!r}", f"some from {array.min()} to {array.max()}"
            )
    with np.errstate(over="ignore"):
        made = array.astype(wanted)
    if wanted.kind == "f" and not np.isfinite(made).all():
        raise _refusal(place, f"finite numbers in {spec.name!r}", f"NaN or infinity, as {spec.dtype}")
    return made


def _length(place: int, arrays: Mapping[str, Array], manifest: Manifest) -> int:
    """The length of a row, by its mask where it gives one; all arrays along it must be as long. 0 if it has none."""
    sizes: dict[str, int] = {
        spec.name: arrays[spec.name].shape[dim - 1]
        for spec in manifest.inputs
        for dim in spec.along
        if spec.name in arrays and not spec.shared
    }
    if not sizes and manifest.mask is None:
        return 0
    if len(set(sizes.values())) != 1 or not all(sizes.values()):
        raise _refusal(place, "one length, of at least 1, in all inputs", str(sizes))
    length = next(iter(sizes.values()))
    if manifest.mask is None or manifest.mask not in arrays:
        return length
    real = (arrays[manifest.mask] != 0) == bool(manifest.real)
    if not real.any():
        raise _refusal(place, "at least one real position", f"a {manifest.mask} that hides all")
    return int(np.flatnonzero(real)[-1]) + 1


def _padded(array: Array, spec: TensorSpec, length: int) -> Array:
    for dim in spec.along:
        axis = dim - 1
        if array.shape[axis] > length:
            array = array.take(np.arange(length), axis=axis)
        elif array.shape[axis] < length:
            width = [(0, length - array.shape[axis] if at == axis else 0) for at in range(array.ndim)]
            array = np.pad(array, width, constant_values=spec.fill)
    return array


def _refusal(place: int, expected: str, got: str) -> ArgumentError:
    return ArgumentError(
        f"examples[{place}]", expected=expected, got=got, remedy="Repair this example, or leave it out."
    )
