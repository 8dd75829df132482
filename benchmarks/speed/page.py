"""The figures of speed as cells of a table, and as a page of Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.files import read_json
from benchmarks.markdown import table

__all__ = ["COLUMNS", "COMMITTED", "cells", "markdown"]

COLUMNS = ("case", "figure", "median", "range", "goal", "reached")
COMMITTED = Path(__file__).parents[1] / "results" / "speed"


def cells(one: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the columns of one figure; a goal that is missed says so."""
    if one["value"] is None:
        return (one["case"], f"{one['figure']}: {one['why']}", "–", "–", "–", "–")
    goals = [f"{sign} {one[key]:g}" for key, sign in (("at_least", "≥"), ("at_most", "≤")) if one[key] is not None]
    reached = {True: "yes", False: "missed", None: "–"}[one["kept"]]
    spread = "–" if one["low"] == one["high"] else f"{_number(one['low'])}–{_number(one['high'])}"
    return (one["case"], one["figure"], _number(one["value"]), spread, ", ".join(goals) or "–", reached)


def markdown(folder: Path = COMMITTED, version: str | None = None) -> str:
    """Return a table for each section of a folder, with the version and commit that made it.

    Args:
        folder: The results.
        version: The version of the code that the page speaks of; sections that an earlier one made are marked.
    """
    blocks = []
    for result in sorted(map(read_json, folder.glob("*.json")), key=lambda result: int(result["number"])):
        made = result["environment"]
        own = made["versions"].get("ponder-torch")
        old = " **These figures are older than the code.**" if version is not None and own != version else ""
        goals = [one for one in result["figures"] if one["kept"] is not None]
        kept = f" {sum(one['kept'] for one in goals)} of {len(goals)} goals are reached." if goals else ""
        device = f"{made['device']}, {made['threads']} threads, torch {made['versions'].get('torch')}"
        line = f"Version {own}, commit {made['commit']}, {made['date']}: {device}.{kept}{old}"
        blocks += [f"### {result['section'].capitalize()}", line, table(COLUMNS, map(cells, result["figures"]))]
    return "\n\n".join(blocks)


def _number(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:,.0f}"
