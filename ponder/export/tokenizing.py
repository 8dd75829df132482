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
) -> tuple[str | None, int | None]:
    """Copy the tokenizer into the export.

    Args:
        source: What is exported; its own tokenizer is used where `tokenizer` is None.
        tokenizer: A file, a folder, or a fast tokenizer of Transformers or of tokenizers.
        max_length: The number of tokens that texts are cut to, or None for what the tokenizer says.
        folder: The export.

    Returns:
        Name of the copy and the length that texts are cut to; None and None without a tokenizer.
    """
    if tokenizer is None:
        tokenizer = source.tokenizer
        if tokenizer is None:
            return None, None
    text, limits = _read(tokenizer)
    write_text(folder / _NAME, text)
    known = [limit for limit in (*limits, source.max_length) if limit is not None and 0 < limit < _NO_LIMIT]
    return _NAME, max_length or min(known, default=None)


def _read(tokenizer: Any) -> tuple[str, list[int | None]]:
    """The text of `tokenizer.json`, and the lengths that texts may have."""
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
        return _checked(path.read_text(encoding="utf-8"), path), [_configured(path.parent)]
    fast = getattr(tokenizer, "backend_tokenizer", tokenizer)  # Transformers wraps one of tokenizers
    if not hasattr(fast, "to_str"):
        raise ArgumentTypeError(
            "tokenizer",
            expected="a path, or a fast tokenizer of Transformers or of tokenizers",
            got=type(tokenizer).__name__,
            remedy="Load it with AutoTokenizer.from_pretrained(folder).",
        )
    return str(fast.to_str()), [getattr(tokenizer, "model_max_length", None)]


def _checked(text: str, path: Path) -> str:
    try:
        sound = isinstance(json.loads(text), dict)
    except ValueError:
        sound = False
    if not sound:
        raise DataError(f"{path}: no JSON, so no tokenizer. Save the tokenizer again.")
    return text


def _configured(folder: Path) -> int | None:
    """What `tokenizer_config.json` says of the longest text."""
    path = folder / "tokenizer_config.json"
    try:
        limit = json.loads(path.read_text(encoding="utf-8")).get("model_max_length")
    except (OSError, ValueError, AttributeError):
        return None
    return int(limit) if isinstance(limit, int | float) else None
