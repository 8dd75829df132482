"""What a caller may hand to an exported model: texts, arrays, dicts of arrays; read as rows, and joined to batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ponder.errors import ArgumentError, ArgumentTypeError, CheckpointError, PonderError
from ponder.export.manifest import Manifest, TensorSpec

__all__ = ["Batch", "Row", "batches", "join", "open_tokenizer", "read_rows"]

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
    """

    positions: Array
    arrays: dict[str, Array]
    lengths: Array | None


def open_tokenizer(path: Path, max_length: int | None) -> Any:
    """The tokenizer of an export: no padding, and texts cut to the length that the model was made for."""
    try:
        import tokenizers
    except ImportError as error:
        raise PonderError("reading texts needs tokenizers: pip install 'ponder-torch[onnx]'.") from error
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises the bare Exception
        raise CheckpointError(f"{path}: no tokenizer ({error}). Export again.") from error
    tokenizer.no_padding()
    if max_length is not None:
        tokenizer.enable_truncation(max_length)
    return tokenizer


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
        examples = _apart(examples)
    elif not isinstance(examples, Sequence) and not hasattr(examples, "__array__"):
        raise ArgumentTypeError(
            "examples",
            expected="texts, arrays, or a dict of arrays with the batch first",
            got=type(examples).__name__,
            remedy="Pass a list with one example each.",
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
    """A batch of rows, padded on the right to the longest."""
    longest = max(row.length for row in rows)
    arrays = {
        spec.name: np.stack([_padded(row.arrays[spec.name], spec, longest) for row in rows]) for spec in manifest.inputs
    }
    lengths = None if manifest.mask is None else np.array([row.length for row in rows])
    return Batch(np.array([row.position for row in rows], dtype=np.int64), arrays, lengths)


def _apart(batch: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Take a batch, a dict of arrays, apart into its rows."""
    sizes = {name: len(value) for name, value in batch.items()}
    if len(set(sizes.values())) != 1:
        raise ArgumentError(
            "examples",
            expected="arrays with the same number of rows",
            got=", ".join(f"{name}: {size}" for name, size in sizes.items()) or "none",
            remedy="Put the batch first in each of them.",
        )
    return [{name: value[row] for name, value in batch.items()} for row in range(next(iter(sizes.values())))]


def _row(place: int, example: Any, manifest: Manifest, tokenizer: Any) -> Row:
    if isinstance(example, str) or (isinstance(example, tuple) and example and isinstance(example[0], str)):
        example = _tokenized(place, example, tokenizer)
    elif not isinstance(example, Mapping):
        required = [spec.name for spec in manifest.inputs if spec.default is None]
        if len(required) != 1:
            raise _refusal(place, f"a dict with {', '.join(required)}", type(example).__name__)
        example = {required[0]: example}
    known = {spec.name: spec for spec in manifest.inputs}
    if unknown := sorted(example.keys() - known.keys()):
        if set(unknown) - set(_TOKENS):  # a tokenizer may give more than its model reads
            raise _refusal(place, f"the inputs {', '.join(known)}", f"also {', '.join(unknown)}")
        example = {name: value for name, value in example.items() if name in known}
    arrays = {name: _array(place, value, known[name]) for name, value in example.items()}
    length = _length(place, arrays, manifest)
    for spec in manifest.inputs:
        if spec.name in arrays:
            continue
        if spec.default is None:
            raise _refusal(place, f"the input {spec.name!r}", ", ".join(arrays) or "nothing")
        sizes = [length if dim in spec.along else size for dim, size in enumerate(spec.shape)][1:]
        arrays[spec.name] = np.full([size or 0 for size in sizes], spec.default, dtype=spec.dtype)
    return Row(place, {spec.name: arrays[spec.name] for spec in manifest.inputs}, length)


def _tokenized(place: int, text: Any, tokenizer: Any) -> dict[str, Any]:
    if tokenizer is None:
        raise _refusal(place, "arrays, since the export has no tokenizer", "a text")
    parts = (text,) if isinstance(text, str) else text
    if len(parts) > 2 or not all(isinstance(part, str) and part.strip() for part in parts):
        raise _refusal(place, "a text, or a pair of texts, that is not empty", repr(text))
    encoded = tokenizer.encode(*parts)
    return {name: getattr(encoded, attribute) for name, attribute in _TOKENS.items()}


def _array(place: int, value: Any, spec: TensorSpec) -> Array:
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise _refusal(place, f"numbers in {spec.name!r}", str(error)) from error
    wanted = np.dtype(spec.dtype)
    if array.dtype.kind not in "biuf" or (array.dtype.kind == "f" and wanted.kind in "biu" and array.size):
        raise _refusal(place, f"{spec.dtype} in {spec.name!r}", str(array.dtype))
    shape = spec.shape[1:]
    fits = array.ndim == len(shape)
    if not fits or any(own not in (None, size) for own, size in zip(shape, array.shape, strict=True)):
        named = tuple("any" if own is None else own for own in shape)
        raise _refusal(place, f"one row of {spec.name!r}, of shape {named}", f"shape {array.shape}")
    if wanted.kind == "f" and not np.isfinite(array).all():
        raise _refusal(place, f"finite numbers in {spec.name!r}", "NaN or infinity")
    return array.astype(wanted)


def _length(place: int, arrays: Mapping[str, Array], manifest: Manifest) -> int:
    """The length of a row, by its mask where it gives one; all arrays along it must be as long."""
    if manifest.mask is None:
        return 0
    sizes: dict[str, int] = {
        spec.name: arrays[spec.name].shape[dim - 1]
        for spec in manifest.inputs
        for dim in spec.along
        if spec.name in arrays
    }
    if len(set(sizes.values())) != 1 or not all(sizes.values()):
        raise _refusal(place, "one length, of at least 1, in all inputs", str(sizes))
    length = next(iter(sizes.values()))
    if manifest.mask not in arrays:
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
