"""The committed streams, and the best of each family of ways on them: what the table and the figure show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.files import read_json

__all__ = ["BATCH_WAYS", "LEVELS", "STREAM_WAYS", "TASKS", "Kind", "asked", "best_way", "kinds"]

RESULTS = Path(__file__).parents[1] / "results" / "live"
LEVELS = (0.02, 0.05)
STREAM_WAYS: Mapping[str, str] = {
    "`Live`": "Live",
    "fixed, chosen before": "fixed 1200/750",
    "fixed, best": "fixed ",
    "B-PAC, best": "B-PAC ",
}
"""Families of ways to answer a stream, and how the names of their ways begin."""
BATCH_WAYS: Mapping[str, str] = {
    "`Live`": "Live",
    "PAC labels, best": "PAC labels ",
    "BARGAIN, best": "BARGAIN ",
}
"""Families of ways to answer a batch."""
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


def kinds(cheap: str = "linear", *, model: bool = False, batch: bool = False) -> list[Kind]:
    """Return the kinds of streams that were measured; those without drift first.

    Args:
        cheap: The cheap model.
        model: Whether the reference is a fine-tuned model, and not the gold labels.
        batch: Whether the rows were answered as a batch.
    """
    name = "-".join([cheap] + ["model"] * model + ["batch"] * batch)
    streams = [read_json(path) for path in sorted(RESULTS.glob(f"*-{name}-s*.json"))]
    names = dict.fromkeys((one["setting"], one["task"]) for one in streams)
    return [
        Kind(*name, [one for one in streams if (one["setting"], one["task"]) == name])
        for name in sorted(names, key=lambda name: (name[0] != "no drift", name))
    ]


def asked(kind: Kind, level: float, start: str) -> float:
    """Return the share of calls, a mean over seeds, of the best way whose name begins so."""
    return float(mean(way["asked"] for way in best_way(kind.streams, level, start)))


def best_way(
    streams: Sequence[dict[str, Any]], level: float, start: str
) -> Sequence[dict[str, Any]]:
    """Return the rows, one a stream, of the way with the fewest calls on average.

    Args:
        streams: The results of the streams.
        level: The promised level.
        start: How the names of the ways of a family begin; or the name of a way, without a space at its end.
    """
    ways = dict[str, list[dict[str, Any]]]()
    for stream in streams:
        for way in stream["ways"]:
            chosen = way["way"] == start or (start.endswith(" ") and way["way"].startswith(start))
            if chosen and way["level"] == level:
                ways.setdefault(way["way"], []).append(way)
    return min(ways.values(), key=lambda each: mean(way["asked"] for way in each))
