"""What the report says above its tables; the words are in `notes.txt`."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["NOTES"]

_PARTS = re.split(r"^\[(.+)\]\n", Path(__file__).with_suffix(".txt").read_text(encoding="utf-8"), flags=re.MULTILINE)
NOTES = {
    name: text.strip() if name == "introduction" else " ".join(text.split())
    for name, text in zip(_PARTS[1::2], _PARTS[2::2], strict=True)
}
"""Paragraphs, and the list that begins the report, by name."""
