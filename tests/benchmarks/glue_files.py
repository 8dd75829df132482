"""Files in GLUE's layout, and the folder of GLUE's own where it lies beside the project."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

SHARED = Path(__file__).parents[3] / "shared"


def write(folder: Path, name: str, split: str, lines: Sequence[str], end: str = "\n") -> Path:
    """Write a file in GLUE's layout."""
    path = folder / name / f"{split}.tsv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((end.join(lines) + end).encode())
    return path
