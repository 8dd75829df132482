"""The tokenizer of an export: one `tokenizer.json`, wherever it comes from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ponder._utils.files import write_text
from ponder._utils.lengths import FALLBACK_LENGTH, length_limit
from ponder.errors import ArgumentError, ArgumentTypeError, DataError
from ponder.export.source import ExportSource

__all__ = ["TOKENIZER", "copy_tokenizer"]

TOKENIZER = "tokenizer.json"
_CONFIG = "tokenizer_config.json"  # which Transformers writes beside it: `config.json` may be that of an encoder alone
_SAID = ("model_max_length", "truncation_side", "model_input_names")


def copy_tokenizer(source: ExportSource, tokenizer: Any, max_length: int | None, folder: Path) -> dict[str, Any]:
    """Copy the tokenizer into the export.

    Args:
        source: What is exported; its own tokenizer is used where `tokenizer` is None.
        tokenizer: A file, a folder, or a fast tokenizer of Transformers or of tokenizers. A folder of Transformers is
            read by it where it is installed; a file is copied as it is.
        max_length: The number of tokens that texts are cut to, or None for what model and tokenizer take.
        folder: The export.

    Returns:
        What the manifest says of it, by name: the copy, the length that texts are cut to, where they are cut, and which
        inputs it gives; nothing without a tokenizer.

    Raises:
        ArgumentError: Texts would be longer than the model can read or have no token of their own, there are none to
            cut, or Transformers cannot read the tokenizer.
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
        if tokenizer is None and max_length is not None:
            raise ArgumentError(
                "max_length",
                expected="None for an export without a tokenizer, which cuts no texts",
                got=max_length,
                remedy="Pass tokenizer=… with it, or leave it out.",
            )
        if tokenizer is None:
            return {}
        if tokenizer.name == TOKENIZER:  # the model's folder, as what lies in it is read
            tokenizer = tokenizer.parent
    text, said = _read(tokenizer)
    if max_length is not None:
        _check_room(max_length, text)
    write_text(folder / TOKENIZER, text)
    names, limit = said.get("model_input_names"), length_limit(said.get("model_max_length"), source.max_length)
    side = said.get("truncation_side")
    if limit is None and source.max_length is not None:  # of Transformers, whose folder cuts there too
        limit = FALLBACK_LENGTH
    elif limit is None and names and isinstance(said.get("truncation"), dict):
        cut = said["truncation"]
        limit, side = length_limit(cut.get("max_length")), str(cut.get("direction")).lower()
    return {
        "tokenizer": TOKENIZER,
        "max_length": max_length or limit,
        "truncation_side": "left" if side == "left" else "right",  # as in Transformers
        "tokenizer_inputs": tuple(map(str, names)) if isinstance(names, list | tuple) else (),
    }


def _check_room(max_length: int, text: str) -> None:
    """Refuse a length that special tokens fill alone: all texts would be the same."""
    import tokenizers  # of the extra, as onnx is

    special = tokenizers.Tokenizer.from_str(text).num_special_tokens_to_add(False)
    if max_length <= special:
        raise ArgumentError(
            "max_length",
            expected=f"more than {special}, the special tokens that this tokenizer adds to each text",
            got=max_length,
            remedy="Pass the length that texts have, or leave it out.",
        )


def _read(tokenizer: Any) -> tuple[str, dict[str, Any]]:
    """The text of `tokenizer.json`, and what is said of it: see `_SAID`, and of a path the `truncation` of its file."""
    if not isinstance(tokenizer, str | Path):
        return _loaded(tokenizer)
    given = Path(tokenizer)
    path = given / TOKENIZER if given.is_dir() else given
    if not path.is_file():
        raise ArgumentError(
            "tokenizer",
            expected="a tokenizer.json, or a folder with one",
            got=str(tokenizer),
            remedy="Save a fast tokenizer there: tokenizer.save_pretrained(folder).",
        )
    text = path.read_text(encoding="utf-8")
    truncation, tokenizer = _parsed(text, path).get("truncation"), _of_transformers(path)
    if tokenizer is None:
        said = _configured(path.parent)
    else:
        made, said = _loaded(tokenizer)
        text = text if path == given else made
    return text, {**said, "truncation": truncation}


def _loaded(tokenizer: Any) -> tuple[str, dict[str, Any]]:
    """The same of a tokenizer in memory, whose truncation is that of the call before."""
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
    if path.name != TOKENIZER or not (path.parent / _CONFIG).is_file():
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


def _parsed(text: str, path: Path) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except ValueError:
        data = None
    if not isinstance(data, dict):
        raise DataError(f"{path}: no JSON, so no tokenizer. Save the tokenizer again.")
    return data


def _configured(folder: Path) -> dict[str, Any]:
    """What `tokenizer_config.json` says, as far as it goes without Transformers."""
    path = folder / _CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}
