"""The committed streams, and the best of each family of ways on them: what the table and the figure show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.files import read_json

__all__ = ["TASKS", "WAYS", "Kind", "best_way", "kinds"]

RESULTS = Path(__file__).parents[1] / "results" / "live"
WAYS: Mapping[str, str] = {
    "`Live`": "Live",
    "`Live`, batch": "Live, finite",
    "fixed, chosen before": "fixed 1200/750",
    "fixed, best": "fixed ",
    "PAC labels, best": "PAC labels ",
    "BARGAIN, best": "BARGAIN ",
    "B-PAC, best": "B-PAC ",
}
"""Families of ways, and how the names of their ways begin."""
TASKS = {"banking77": "Banking77", "clinc150": "CLINC150", "sst-2": "SST-2"}


@dataclass(frozen=True)
class Kind:
    """Streams of one setting and task, one for each seed.

    Args:
        setting: The setting.
        task: The task.
        streams: The results of the streams.
    """

    setting: str
    task: str
    streams: Sequence[dict[str, Any]]


def kinds(cheap: str = "linear") -> list[Kind]:
    """Return the kinds of streams that were measured with a cheap model; those without drift first."""
    streams = [read_json(path) for path in sorted(RESULTS.glob(f"*-{cheap}-s*.json"))]
    names = dict.fromkeys((one["setting"], one["task"]) for one in streams)
    return [
        Kind(*name, [one for one in streams if (one["setting"], one["task"]) == name])
        for name in sorted(names, key=lambda name: (name[0] != "no drift", name))
    ]


def best_way(
    streams: Sequence[dict[str, Any]], level: float, family: str
) -> Sequence[dict[str, Any]]:
    """Return the rows, one a stream, of the way of a family with the fewest calls on average."""
    start = WAYS[family]
    ways = dict[str, list[dict[str, Any]]]()
    for stream in streams:
        for way in stream["ways"]:
            chosen = way["way"] == start or (start.endswith(" ") and way["way"].startswith(start))
            if chosen and way["level"] == level:
                ways.setdefault(way["way"], []).append(way)
    return min(ways.values(), key=lambda each: mean(way["asked"] for way in each))
