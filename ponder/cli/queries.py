"""Queries with their candidates from files: of `rerank`, and of commands that take its folders."""

from __future__ import annotations

from pathlib import Path

from ponder.cli.texts import read_rows
from ponder.deploy.ranking import Pool, pools_of

__all__ = ["read_pools"]


def read_pools(path: Path, option: str = "--texts") -> list[Pool]:
    """Read queries with their candidates; a row that lacks scores or labels has none."""
    queries = [
        {name: value for name, value in row.items() if value is not None}
        for row in read_rows(path, option)
    ]
    return list(pools_of(queries))
