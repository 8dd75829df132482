"""What every policy's steps are worth in seconds: a kept model on batches of dev, timed in turn with full depth.

A run times its own policy alone, and often beside other runs. This is for a machine that does nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.glue import data as glue_data
from benchmarks.glue.curves import SPEED_UPS, candidates, read_curve
from benchmarks.glue.evaluation import batches, exits_of, spread
from benchmarks.glue.keeping import KeptModel
from benchmarks.glue.model import Collator
from benchmarks.glue.results import Result, environment
from benchmarks.glue.tasks import get
from benchmarks.seal import intact, seal
from ponder._utils.files import read_json, write_json
from ponder.analysis.sweeps import Point
from ponder.cost import wall_clock
from ponder.errors import ArgumentError, CheckpointError, DataError
from ponder.policies import ExitPolicy, LastStep

__all__ = ["Timing", "read_clock", "time_policies"]

_FOLDER, _FORMAT = "clock", "ponder-glue-clock-1"
_NEAR = 0.15


@dataclass(frozen=True)
class Timing:
    """A policy of a kept model, timed.

    Args:
        policy: Name of its family.
        point: Its knob, and what the run says of it on all of dev.
        wall_clock: Seconds at full depth ÷ seconds with the policy, the median of the pairs.
        low: The least of them.
        high: The greatest.
    """

    policy: str
    point: Point
    wall_clock: float
    low: float
    high: float


def time_policies(
    kept: KeptModel,
    results: Path,
    glue_dir: Path | None,
    *,
    batch_size: int = 32,
    pairs: int = 5,
    max_batches: int = 6,
    say: Callable[[str], object] = print,
) -> Path:
    """Time each policy that a model can be run with, at its knobs nearest to `SPEED_UPS` in steps.

    Args:
        kept: The model of a run.
        results: Folder of results, that of the run among them, whose curves say what a knob gives.
        glue_dir: GLUE's data; the hub where None.
        batch_size: Examples a batch.
        pairs: Timings of full depth and exits, taken in turn.
        max_batches: Batches that are timed, spread over the lengths.
        say: Told of each timing.

    Returns:
        The file, `<results>/clock/<key>.json`: `rows`, each with `policy`, `knob`, `wall_clock` and
        `wall_clock_range`. What a knob gives in score, steps and FLOPs is the result's to say.

    Raises:
        ArgumentError: The result is not there, or the model was trained for one depth, so that nothing can be timed.
    """
    path = results / f"{kept.config.key}.json"
    if not path.exists():
        raise ArgumentError(
            "--results",
            expected=f"the folder with the result of the model, {path.name}",
            got=results,
            remedy="Name the folder that its run wrote to.",
        )
    run = Result.of_run(path)
    task = get(kept.config.task)
    dev = glue_data.load(task, glue_dir, [task.dev_splits[0]])[task.dev_splits[0]]
    ready = glue_data.tokenize(dev, kept.tokenizer, kept.config.max_length)
    model = kept.model
    timed = spread(batches(ready, Collator(kept.tokenizer), batch_size, model.device), max_batches)
    rows = []
    chosen = list(_chosen(run, model.policy))
    if not chosen:
        raise ArgumentError(
            "--model",
            expected=f"a model that a policy takes near one of ×{', ×'.join(map(str, SPEED_UPS))} in steps",
            got=f"{kept.config.key}, with the policy {model.policy}",
            remedy="Models that were trained for one depth have no policy to time.",
        )
    for policy, point in chosen:
        clock = wall_clock(
            lambda: exits_of(model, timed, LastStep()),
            lambda policy=policy: exits_of(model, timed, policy),  # type: ignore[misc]
            pairs=pairs,
        )
        row = {"policy": policy.to_dict()["name"], "knob": point.knob}
        rows.append({**row, "wall_clock": clock.median, "wall_clock_range": [clock.low, clock.high]})
        say(f"{kept.config.key}: {policy} ×{run['num_steps'] / point.mean_exit_step:.2f} in steps, ×{clock.median:.2f}")
    made = results / _FOLDER / path.name
    places = {"batch_size": batch_size, "threads": torch.get_num_threads(), "environment": environment(model.device)}
    write_json(made, seal({"format": _FORMAT, "key": kept.config.key, **places, "rows": rows}))
    return made


def read_clock(run: Result) -> list[Timing]:
    """What was timed of a run's model, or nothing.

    Raises:
        DataError: The file is broken or foreign, or times a knob that is not on the curves of the run.
    """
    path = None if run.path is None else run.path.parent / _FOLDER / run.path.name
    if path is None or not path.exists():
        return []
    try:
        made = read_json(path)
    except CheckpointError as error:
        raise DataError(f"{error} Remove it, and time the model again.") from error
    if made.get("format") != _FORMAT or made.get("key") != path.stem:
        raise DataError(
            f"{path}: expected timings of the format {_FORMAT!r} of the run of this name; got {made.get('format')!r} "
            f"of {made.get('key')}. Remove it, and time the model again."
        )
    if not intact(made):
        raise DataError(f"{path}: expected what was timed; it was edited since. Remove it, and time the model again.")
    try:
        return [_timing(run, row) for row in made["rows"]]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path}: expected timings at knobs that the run has on its curves; got {type(error).__name__}: {error}. "
            "Remove it, and time the model again."
        ) from error


def _timing(run: Result, row: Mapping[str, Any]) -> Timing:
    curve = read_curve(run, row["policy"])
    points = {} if curve is None else {point.knob: point for point in curve.points}
    low, high = row["wall_clock_range"]
    return Timing(row["policy"], points[row["knob"]], float(row["wall_clock"]), float(low), float(high))


def _chosen(run: Result, own: ExitPolicy) -> Iterator[tuple[ExitPolicy, Point]]:
    """The policies with a curve, each at the knobs nearest to the speed-ups; none where it gets nowhere near."""
    has_hazard = run.reported[0]["halting"] is not None
    for family in candidates(own, has_hazard, get(run["task"]).kind):
        curve = read_curve(run, family.to_dict()["name"])
        points: Sequence[Point] = () if curve is None else curve.points
        nearest = [_nearest(points, run["num_steps"] / speed_up) for speed_up in SPEED_UPS]
        for point in dict.fromkeys(point for point in nearest if point is not None):
            yield family.with_threshold(point.knob), point


def _nearest(points: Sequence[Point], steps: float) -> Point | None:
    near = [point for point in points if abs(point.mean_exit_step / steps - 1) <= _NEAR]
    return min(near, key=lambda point: abs(point.mean_exit_step - steps), default=None)
