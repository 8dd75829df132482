"""What every policy's steps are worth in seconds: a kept model on batches of dev, timed in turn with full depth.

A run times its own policy alone, and often beside other runs. This is for a machine that does nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import tasks
from benchmarks.checksum import is_intact, with_checksum
from benchmarks.glue.data import tokenize
from benchmarks.glue.evaluation import batches, time_exits
from benchmarks.glue.model import Collator
from benchmarks.glue.model_store import KeptModel
from benchmarks.glue.results import Result, environment
from benchmarks.glue.thresholds import SPEED_UPS, candidates, read_curve
from ponder._utils.files import read_json, write_json
from ponder.analysis.sweeps import Point
from ponder.errors import ArgumentError, CheckpointError, DataError
from ponder.policies import ExitPolicy

__all__ = ["Timing", "read_timings", "time_policies"]

_FOLDER, _FORMAT = "clock", "ponder-glue-clock-1"
_NEAR = 0.15


@dataclass(frozen=True)
class Timing:
    """A policy of a kept model, timed."""

    policy: str
    point: Point
    wall_clock: float
    low: float
    high: float


def time_policies(
    kept: KeptModel,
    results: Path,
    folder: Path | None,
    *,
    batch_size: int = 32,
    pairs: int = 5,
    say: Callable[[str], object] = print,
) -> Path:
    """Time each policy that a model can be run with, at its thresholds nearest to `SPEED_UPS` in steps.

    Args:
        kept: The model of a run.
        results: Folder of results, that of the run among them, whose curves say what a threshold gives.
        folder: Where the data lie; the hub where None.
        batch_size: Examples a batch.
        pairs: Timings of full depth and exits, taken in turn.
        say: Told of each timing.

    Returns:
        The file, `<results>/clock/<key>.json`: `rows`, each with `policy`, `knob` (its threshold), `wall_clock` and
        `wall_clock_range`. What a threshold gives in score, steps and FLOPs is the result's to say.
    """
    key, model = kept.config.key, kept.model
    path = results / f"{key}.json"
    if not path.exists():
        expected = f"the folder with the result of the model, {path.name}"
        remedy = "Name the folder that its run wrote to."
        raise ArgumentError("--results", expected=expected, got=results, remedy=remedy)
    run, task = Result.of_run(path), tasks.get(kept.config.task)
    chosen = list(_chosen(run, model.policy))
    if not chosen:
        raise ArgumentError(
            "--model",
            expected=f"a model that a policy takes near one of ×{', ×'.join(map(str, SPEED_UPS))} in steps",
            got=f"{key}, with the policy {model.policy}",
            remedy="Models that were trained for one depth have no policy to time.",
        )
    split = task.dev_splits[0]
    ready = tokenize(task.load(folder, [split])[split], kept.tokenizer, kept.config.max_length)
    data = batches(ready, Collator(kept.tokenizer), batch_size, model.device)
    rows = []
    for policy, point in chosen:
        clock = time_exits(model, data, policy, pairs=pairs)
        row = {"policy": policy.to_dict()["name"], "knob": point.threshold, "wall_clock": clock.median}
        rows.append({**row, "wall_clock_range": [clock.low, clock.high]})
        say(f"{key}: {policy} ×{run['num_steps'] / point.mean_exit_step:.2f} in steps, ×{clock.median:.2f}")
    made = results / _FOLDER / path.name
    places = {"batch_size": batch_size, "threads": torch.get_num_threads(), "environment": environment(model.device)}
    write_json(made, with_checksum({"format": _FORMAT, "key": key, **places, "rows": rows}))
    return made


def read_timings(run: Result) -> list[Timing]:
    """What was timed of a run's model, or nothing."""
    path = None if run.path is None else run.path.parent / _FOLDER / run.path.name
    if path is None or not path.exists():
        return []
    remedy = "Remove it, and time the model again."
    try:
        made = read_json(path)
    except CheckpointError as error:
        raise DataError(f"{error} {remedy}") from error
    if made.get("format") != _FORMAT or made.get("key") != path.stem:
        raise DataError(
            f"{path}: expected timings of the format {_FORMAT!r} of the run of this name; got {made.get('format')!r} "
            f"of {made.get('key')}. {remedy}"
        )
    if not is_intact(made):
        raise DataError(f"{path}: expected what was timed; it was edited since. {remedy}")
    try:
        return [_timing(run, row) for row in made["rows"]]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path}: expected timings at thresholds that the run has on its curves; got {type(error).__name__}: "
            f"{error}. {remedy}"
        ) from error


def _timing(run: Result, row: Mapping[str, Any]) -> Timing:
    curve = read_curve(run, row["policy"])
    points = {} if curve is None else {point.threshold: point for point in curve.points}
    low, high = row["wall_clock_range"]
    return Timing(row["policy"], points[row["knob"]], float(row["wall_clock"]), float(low), float(high))


def _chosen(run: Result, own: ExitPolicy) -> Iterator[tuple[ExitPolicy, Point]]:
    """The policies with a curve, each at the thresholds nearest to the speed-ups; none where it gets nowhere near."""
    for family in candidates(own, run.reported[0]["halting"] is not None, tasks.get(run["task"]).kind):
        curve, nearest = read_curve(run, family.to_dict()["name"]), []
        for steps in (run["num_steps"] / speed_up for speed_up in SPEED_UPS):
            near = [p for p in (curve.points if curve else ()) if abs(p.mean_exit_step / steps - 1) <= _NEAR]
            nearest += sorted(near, key=lambda point: abs(point.mean_exit_step - steps))[:1]
        for point in dict.fromkeys(nearest):
            yield family.with_threshold(point.threshold), point
