"""The tokenizer of an export: one `tokenizer.json`, wherever it comes from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ponder._utils.files import write_text
from ponder._utils.lengths import FALLBACK_LENGTH, length_limit
from ponder.errors import ArgumentError, ArgumentTypeError, DataError
from ponder.export.source import ExportSource

__all__ = ["copy_tokenizer"]

_NAME = "tokenizer.json"
_OF_TRANSFORMERS = ("tokenizer_config.json", "config.json")  # by which its folders are known
_SAID = ("model_max_length", "truncation_side", "model_input_names")


def copy_tokenizer(source: ExportSource, tokenizer: Any, max_length: int | None, folder: Path) -> dict[str, Any]:
    """Copy the tokenizer into the export.

    Args:
        source: What is exported; its own tokenizer is used where `tokenizer` is None.
        tokenizer: A file, a folder, or a fast tokenizer of Transformers or of tokenizers. What lies in a folder of
            Transformers is read by it where it is installed.
        max_length: The number of tokens that texts are cut to, or None for what model and tokenizer take.
        folder: The export.

    Returns:
        What the manifest says of it, by name: the copy, the length that texts are cut to, where they are cut, and which
        inputs it gives; nothing without a tokenizer.

    Raises:
        ArgumentError: Texts would be longer than the model can read, or Transformers cannot read the tokenizer.
    """
    if max_length is not None and source.max_length is not None and max_length > source.max_length:
        raise ArgumentError(
            "max_length",
            expected=f"at most {source.max_length} tokens, which the model has positions for",
            got=max_length,
            remedy=f"Pass max_length={source.max_length}, or leave it out.",
        )
    if tokenizer is None:
        tokenizer = source.tokenizer
        if tokenizer is None:
            return {}
    text, said = _read(tokenizer)
    write_text(folder / _NAME, text)
    names, limit = said.get("model_input_names"), length_limit(said.get("model_max_length"), source.max_length)
    if limit is None and source.max_length is not None:  # of Transformers, whose folder cuts there too
        limit = FALLBACK_LENGTH
    return {
        "tokenizer": _NAME,
        "max_length": max_length or limit,
        "truncation_side": "left" if said.get("truncation_side") == "left" else "right",  # as in Transformers
        "tokenizer_inputs": tuple(map(str, names)) if isinstance(names, list | tuple) else (),
    }


def _read(tokenizer: Any) -> tuple[str, dict[str, Any]]:
    """The text of `tokenizer.json`, and what is said of it beside that: see `_SAID`."""
    if isinstance(tokenizer, str | Path):
        path = Path(tokenizer)
        path = path / _NAME if path.is_dir() else path
        if not path.is_file():
            raise ArgumentError(
                "tokenizer",
                expected="a tokenizer.json, or a folder with one",
                got=str(tokenizer),
                remedy="Save a fast tokenizer there: tokenizer.save_pretrained(folder).",
            )
        text, tokenizer = _checked(path.read_text(encoding="utf-8"), path), _of_transformers(path)
        if tokenizer is None:
            return text, _configured(path.parent)
    fast = getattr(tokenizer, "backend_tokenizer", tokenizer)  # Transformers wraps one of tokenizers
    if not hasattr(fast, "to_str"):
        raise ArgumentTypeError(
            "tokenizer",
            expected="a path, or a fast tokenizer of Transformers or of tokenizers",
            got=type(tokenizer).__name__,
            remedy="Load it with AutoTokenizer.from_pretrained(folder).",
        )
    said = {name: getattr(tokenizer, name, None) for name in _SAID}
    said["truncation_side"] = said["truncation_side"] or (getattr(fast, "truncation", None) or {}).get("direction")
    return str(fast.to_str()), said


def _of_transformers(path: Path) -> Any:
    """The tokenizer as Transformers reads its folder; None where it is no such folder, or Transformers is not there.

    Neither file says all that holds there: which inputs a tokenizer gives is known to its class, and what
    `tokenizer_config.json` says (`do_lower_case`) may change what `tokenizer.json` does.
    """
    if path.name != _NAME or not any((path.parent / name).is_file() for name in _OF_TRANSFORMERS):
        return None
    try:
        from transformers import AutoTokenizer
    except ImportError:
        return None
    try:
        return AutoTokenizer.from_pretrained(str(path.parent), trust_remote_code=False)
    except Exception as error:  # whatever Transformers stumbles over
        raise ArgumentError(
            "tokenizer",
            expected="a folder whose tokenizer Transformers reads",
            got=f"{path.parent} ({str(error).partition(chr(10))[0]})",
            remedy=f"Save it again, or pass tokenizers.Tokenizer.from_file({str(path)!r}), which is taken as it is.",
        ) from error


def _checked(text: str, path: Path) -> str:
    try:
        sound = isinstance(json.loads(text), dict)
    except ValueError:
        sound = False
    if not sound:
        raise DataError(f"{path}: no JSON, so no tokenizer. Save the tokenizer again.")
    return text


def _configured(folder: Path) -> dict[str, Any]:
    """What `tokenizer_config.json` says, as far as it goes without Transformers."""
    path = folder / "tokenizer_config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}
