"""The figures as cells of a table, and as a part of a page."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ponder._utils.files import write_text
from ponder._utils.markdown import markdown_table

__all__ = ["COLUMNS", "MARK", "cells", "markdown", "write_page"]

COLUMNS = ("case", "figure", "median", "range", "goal", "reached")
MARK = "<!-- figures: everything below is written by `python -m benchmarks.speed --page` -->"
_READ = {"section", "number", "quick", "figures", "environment"}
TITLES = {
    "overhead": "Wrapper at full depth, compiled layers, bfloat16",
    "exiting": "Exits in wall-clock",
    "predictor": "The predictor on GLUE",
    "peers": "Other packages",
    "streaming": "Streaming",
    "training": "Training",
    "scale": "Scale",
    "device": "On an accelerator",
    "sweeps": "Sweeps",
    "exporting": "Exits and int8 in onnxruntime",
    "capturing": "Captured encoders",
}


def cells(told: dict[str, Any]) -> tuple[str, ...]:
    """The columns of one figure; a goal that is missed says so."""
    if told["value"] is None:
        return (told["case"], f"{told['figure']}: {told['why']}", "—", "—", "—", "—")
    goals = [f"{sign} {told[key]:g}" for key, sign in (("at_least", "≥"), ("at_most", "≤")) if told[key] is not None]
    reached = {True: "yes", False: "missed", None: "—"}[told["kept"]]
    spread = "—" if told["low"] == told["high"] else f"{_number(told['low'])}–{_number(told['high'])}"
    return (told["case"], told["figure"], _number(told["value"]), spread, ", ".join(goals) or "—", reached)


def markdown(results: list[dict[str, Any]]) -> str:
    """One table that says which goals are reached, and sections of results, each a table that is folded up."""
    ordered = sorted(results, key=lambda result: result["number"])
    lines = [
        *markdown_table(("what", "figures", "goals reached", "farthest from its goal"), map(_in_short, ordered)),
        "",
    ]
    for result in ordered:
        where = result["environment"]
        lines += [f"## {TITLES.get(result['section'], result['section'].capitalize())}", ""]
        lines += ["A quick run on small models: the figures mean little.", ""] if result["quick"] else []
        torch = where["versions"].get("torch", "?")
        lines += [f"{where['device']}, {where['threads']} threads, torch {torch}, {where['date']}.", ""]
        lines += [f'<details markdown="1"><summary>{len(result["figures"])} figures</summary>', ""]
        lines += markdown_table(COLUMNS, map(cells, result["figures"]))
        lines += ["", "</details>", ""]
    return "\n".join(lines)


def _in_short(result: dict[str, Any]) -> list[str]:
    """A section in one line, with a link to its table."""
    title = TITLES.get(result["section"], result["section"].capitalize())
    anchor = re.sub(r"[^\w\s-]", "", title).lower().replace(" ", "-")
    goals = [told for told in result["figures"] if told["kept"] is not None]
    missed = [told for told in goals if not told["kept"]]
    farthest = ""
    if missed:
        case, figure, median, _, goal, _ = cells(max(missed, key=_short_of_goal))
        farthest = f"{case}, {figure}: {median} for {goal}"
    reached = f"{len(goals) - len(missed)} of {len(goals)}" if goals else "none set"
    return [f"[{title}](#{anchor})", str(len(result["figures"])), reached, farthest]


def _short_of_goal(told: dict[str, Any]) -> float:
    """The factor by which a figure misses its goal."""
    value, most, least = max(told["value"], 1e-9), told["at_most"], told["at_least"]
    return max(0.0 if most is None else value / max(most, 1e-9), 0.0 if least is None else least / value)


def write_page(page: Path, folder: Path) -> None:
    """Put the results of a folder below the mark of a page; what stands above it stays."""
    read = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    results = [result for result in read if isinstance(result, dict) and result.keys() >= _READ]  # others lie beside
    before = page.read_text(encoding="utf-8").partition(MARK)[0] if page.is_file() else "# Speed\n\n"
    write_text(page, f"{before}{MARK}\n\n{markdown(results)}")


def _number(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:,.0f}"
