"""One cell of a sweep on disk: what is finished, which point is chosen, what failed.

In the folder of results lie `<key>.json`, the chosen point with each seed; `grid/<key>.json`, the points that were
tried; `chosen/<cell>.json`, which was chosen and why; and `failed/<key>.json`, the errors of runs with no result yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.glue.config import RunConfig
from benchmarks.glue.results import Result
from benchmarks.glue.sweeping.suite import Cell
from ponder._utils.files import move, read_json, write_json
from ponder.errors import CheckpointError, PonderError

__all__ = ["CellStudy", "Failure"]


@dataclass(frozen=True)
class Failure:
    """A run that has no result: what went wrong in one line, and the traceback."""

    config: RunConfig
    error: str
    details: str = ""


@dataclass
class CellStudy:
    """A cell and how far it is; `models` is the folder in which models of the chosen point are kept."""

    cell: Cell
    out: Path
    models: Path | None = None
    failures: dict[str, Failure] = field(default_factory=dict)
    chosen: RunConfig | None = None
    open_runs: list[RunConfig] = field(default_factory=list)
    _scores: dict[Path, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        finals = [run for point in self.cell.points for run in self.cell.finals(point)]
        tried = self.cell.points if len(self.cell.points) > 1 else ()
        paths = [self.out / f"{run.key}.json" for run in finals]
        for path in (*paths, *(self.out / "grid" / f"{run.key}.json" for run in tried)):
            if path.exists():
                Result.of_run(path)  # refuses now, and not once it is needed, what is none
        self.look()

    @property
    def folder(self) -> Path:
        """Where the results of the present phase lie."""
        return self.out if self.chosen is not None else self.out / "grid"

    @property
    def planned(self) -> int:
        """Runs in all; the first seed of the chosen point is one of the grid."""
        return len(self.cell.points) + self.cell.seeds - 1

    @property
    def done(self) -> dict[str, float]:
        """The scores of all runs that have a result, by key."""
        return {path.stem: score for path, score in self._scores.items() if path.stem not in self.failures}

    def look(self) -> None:
        """See what is finished, choose once all points were tried, and find the runs that are to be done now.

        They are those of the present phase with neither a result nor a failure. A choice that cannot be written down (a
        full disk) is a failure of the chosen run, and the next best is no choice.
        """
        if len(self.cell.points) == 1:
            self.chosen = self.cell.points[0]
        elif self.chosen is None:
            scores = [self._score(self.out / "grid", run) for run in self.cell.points]
            known = {place: score for place, score in enumerate(scores) if score is not None}
            open_runs = [run for run, score in zip(self.cell.points, scores, strict=True) if score is None]
            if known and all(run.key in self.failures for run in open_runs):
                self._choose(self.cell.points[max(known, key=lambda place: known[place])], known)  # of equals the first
        runs = self.cell.points if self.chosen is None else self.cell.finals(self.chosen)
        self.open_runs = [run for run in runs if run.key not in self.failures and self._score(self.folder, run) is None]

    def failed(self, failure: Failure) -> None:
        """Take note of a failure; the next sweep tries again."""
        config = failure.config
        self.failures[config.key] = failure
        told = {"error": failure.error, "details": failure.details, "config": config.to_dict()}
        with suppress(PonderError):  # a disk so full that not even this can be written down; the summary says it
            write_json(self.out / "failed" / f"{config.key}.json", {"format": "ponder-glue-failure-1", **told})

    def _score(self, folder: Path, run: RunConfig) -> float | None:
        path = folder / f"{run.key}.json"
        if folder != self.out and not path.exists():  # what a sweep of fewer points has done
            path = self.out / path.name
        kept = folder != self.out or self.models is None or (self.models / run.key).exists()
        if path not in self._scores and path.exists() and kept:
            self._scores[path] = Result.of_run(path).selection_score
            (self.out / "failed" / path.name).unlink(missing_ok=True)
        return self._scores.get(path)

    def _is_own(self, key: str) -> bool:
        """Whether a result is of a point of this cell, with any seed: others are of a sweep with other settings."""
        path = self.out / f"{key}.json"
        if not path.exists():
            return False
        config = {**Result.of_run(path)["config"], "seed": None}
        return any({**point.to_dict(), "seed": None} == config for point in self.cell.points)

    def _choose(self, best: RunConfig, scores: Mapping[int, float]) -> None:
        """Write the choice down, and put the results where they belong after it."""
        if best.key in self.failures:
            return
        path, own = self.out / "chosen" / f"{self.cell.name}.json", [run.key for run in self.cell.finals(best)]
        try:
            last = read_json(path)
        except CheckpointError:  # there was no choice before, or its record is broken
            last = {}
        before = [str(key) for key in last.get("runs", [])]
        finals = list(dict.fromkeys([*own, *before])) if last.get("chosen") == best.key else own  # more seeds stay
        tried = []
        for place, point in enumerate(self.cell.points):
            error = self.failures[point.key].error if point.key in self.failures else None
            varied = {name: getattr(point, name) for name in self.cell.varied}
            tried.append({"key": point.key, **varied, "score": scores.get(place), "error": error})
        record = {
            "format": "ponder-glue-choice-1",
            "task": self.cell.task,
            "recipe": self.cell.spec.recipe,
            "recipe_options": dict(self.cell.spec.options),
            "backbone": best.backbone,
            "selection": best.selection,
            "chosen": best.key,
            "runs": finals,
            "tried": tried,
        }
        try:
            for key in (key for key in before if key not in finals and self._is_own(key)):  # no longer reported
                move(self.out / f"{key}.json", self.out / "grid" / f"{key}.json")
            write_json(path, record)
            for key in own:  # the first from the grid; others where the same point was chosen before
                if not (self.out / f"{key}.json").exists() and (self.out / "grid" / f"{key}.json").exists():
                    Result.of_run(self.out / "grid" / f"{key}.json").save(self.out / f"{key}.json")
            self.chosen = best
        except PonderError as error:
            self.failed(Failure(best, f"{type(error).__name__}: {error}"))
