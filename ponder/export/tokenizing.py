"""The tokenizer of an export: one `tokenizer.json`, wherever it comes from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ponder._utils.files import write_text
from ponder.errors import ArgumentError, ArgumentTypeError, DataError
from ponder.export.source import ExportSource

__all__ = ["copy_tokenizer"]

_NAME = "tokenizer.json"
_NO_LIMIT = 1_000_000  # what tokenizers without a limit have is larger still


def copy_tokenizer(
    source: ExportSource, tokenizer: Any, max_length: int | None, folder: Path
) -> tuple[str | None, int | None, str]:
    """Copy the tokenizer into the export.

    Args:
        source: What is exported; its own tokenizer is used where `tokenizer` is None.
        tokenizer: A file, a folder, or a fast tokenizer of Transformers or of tokenizers.
        max_length: The number of tokens that texts are cut to, or None for what the tokenizer says.
        folder: The export.

    Returns:
        Name of the copy, the length that texts are cut to, and where they are cut; None, None and ``"right"`` without
        a tokenizer.

    Raises:
        ArgumentError: Texts would be longer than the model can read.
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
            return None, None, "right"
    text, limits, side = _read(tokenizer)
    write_text(folder / _NAME, text)
    known = [limit for limit in (*limits, source.max_length) if limit is not None and 0 < limit < _NO_LIMIT]
    return _NAME, max_length or min(known, default=None), side


def _read(tokenizer: Any) -> tuple[str, list[int | None], str]:
    """The text of `tokenizer.json`, the lengths that texts may have, and the side on which they are cut."""
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
        config = _configured(path.parent)
        limit, side = config.get("model_max_length"), config.get("truncation_side")
        text = _checked(path.read_text(encoding="utf-8"), path)
        return text, [int(limit) if isinstance(limit, int | float) else None], _side(side)
    fast = getattr(tokenizer, "backend_tokenizer", tokenizer)  # Transformers wraps one of tokenizers
    if not hasattr(fast, "to_str"):
        raise ArgumentTypeError(
            "tokenizer",
            expected="a path, or a fast tokenizer of Transformers or of tokenizers",
            got=type(tokenizer).__name__,
            remedy="Load it with AutoTokenizer.from_pretrained(folder).",
        )
    side = getattr(tokenizer, "truncation_side", None) or (getattr(fast, "truncation", None) or {}).get("direction")
    return str(fast.to_str()), [getattr(tokenizer, "model_max_length", None)], _side(side)


def _side(side: object) -> str:
    return "left" if side == "left" else "right"  # which Transformers takes where nothing is said


def _checked(text: str, path: Path) -> str:
    try:
        sound = isinstance(json.loads(text), dict)
    except ValueError:
        sound = False
    if not sound:
        raise DataError(f"{path}: no JSON, so no tokenizer. Save the tokenizer again.")
    return text


def _configured(folder: Path) -> dict[str, Any]:
    """What `tokenizer_config.json` says of the longest text, and of the side on which longer ones are cut."""
    path = folder / "tokenizer_config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}
