"""One cell of a sweep on disk: what is finished, which point is chosen, what failed.

In the folder of results lie `<key>.json`, the chosen point with each seed; `grid/<key>.json`, the points that were
tried; `chosen/<cell>.json`, which was chosen and why; and `failed/<key>.json`, the errors of runs with no result yet.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.glue.config import RunConfig
from benchmarks.glue.results import Result
from benchmarks.glue.sweeping.search import FAILED, replay
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
    """A cell and how far it is."""

    cell: Cell
    out: Path
    scores: dict[str, float] = field(default_factory=dict)
    failures: dict[str, Failure] = field(default_factory=dict)
    chosen: RunConfig | None = None
    tried: tuple[tuple[RunConfig, ...], ...] = ()
    _given_up: bool = False

    def __post_init__(self) -> None:
        alone = len(self.cell.points) == 1
        finals = [run for point in self.cell.points for run in self.cell.finals(point)]
        for folder, runs in ((self.out, finals), (self.out / "grid", [] if alone else self.cell.tries)):
            for path in (folder / f"{run.key}.json" for run in runs):
                if path.exists():
                    Result.of_run(path)  # refuses now, and not once it is needed, what is none
        if alone:
            self.chosen = self.cell.points[0]
            self._read_finals()
        else:
            self._search()

    @property
    def folder(self) -> Path:
        """Where the results of the present phase lie."""
        return self.out if self.chosen is not None else self.out / "grid"

    @property
    def planned(self) -> int:
        """Runs in all; the first seed of the chosen point is one of the grid."""
        return sum(runs for runs, _ in self.cell.rungs) + self.cell.seeds - 1

    @property
    def finals(self) -> list[RunConfig]:
        """The runs of the chosen point; none while there is no choice."""
        return [] if self.chosen is None else self.cell.finals(self.chosen)

    @property
    def runs(self) -> list[RunConfig]:
        """All runs that are known of so far, finished or not."""
        return [*(run for rung in self.tried for run in rung), *self.finals]

    @property
    def chosen_before(self) -> bool:
        """Whether an earlier sweep came to a choice, perhaps another."""
        return self._choice.exists()

    def open_runs(self) -> list[RunConfig]:
        """Runs of the present phase with neither a result nor a failure."""
        runs = self.tried[-1] if self.chosen is None else self.finals
        return [run for run in runs if run.key not in self.scores and run.key not in self.failures]

    def succeeded(self, config: RunConfig) -> None:
        """Take note of a result that was written."""
        self.scores[config.key] = Result.of_run(self.folder / f"{config.key}.json").selection_score
        (self.out / "failed" / f"{config.key}.json").unlink(missing_ok=True)

    def failed(self, failure: Failure) -> None:
        """Take note of a failure; the next sweep tries again."""
        config = failure.config
        self.scores.pop(config.key, None)
        self.failures[config.key] = failure
        told = {"error": failure.error, "details": failure.details, "config": config.to_dict()}
        with suppress(PonderError):  # a disk so full that not even this can be written down; the summary says it
            write_json(self.out / "failed" / f"{config.key}.json", {"format": "ponder-glue-failure-1", **told})

    def choose(self) -> None:
        """Choose the best point, once the search is at its end; with halving, go on to the next rung.

        A choice that cannot be written down (a full disk) is a failure of the chosen run, and the end of this study:
        the next best is no choice.
        """
        if self.chosen is not None or self._given_up:
            return
        best = self._search()
        if best is not None:
            try:
                self._record(best)
                self.chosen = best
                self._read_finals()
            except PonderError as error:
                self._given_up, self.chosen = True, None
                self.failed(Failure(best, f"{type(error).__name__}: {error}"))

    def _search(self) -> RunConfig | None:
        """Follow the search as far as there are results and failures; the best point, where it is at its end."""

        def score(run: RunConfig) -> float | None:
            if run.key in self.failures:
                return FAILED
            self._look_for(run)
            return self.scores.get(run.key)

        found = replay(self.cell.points, self.cell.halving, score)
        self.tried = found.rungs
        return found.best

    def _read_finals(self) -> None:
        for run in self.open_runs():
            self._look_for(run)

    def _look_for(self, run: RunConfig) -> None:
        path = self.folder / f"{run.key}.json"
        if run.key not in self.scores and path.exists():
            self.scores[run.key] = Result.of_run(path).selection_score

    @property
    def _choice(self) -> Path:
        return self.out / "chosen" / f"{self.cell.name}.json"

    def _record(self, best: RunConfig) -> None:
        """Write the choice down, and put the results where they belong after it."""
        chosen, before = _choice_of(self._choice)
        own = [run.key for run in self.cell.finals(best)]
        finals = (
            list(dict.fromkeys([*own, *before])) if chosen == best.key else own
        )  # with more seeds before, they stay
        for key in before:
            if key not in finals and (self.out / f"{key}.json").exists():
                # Another point was chosen before, from fewer results: its runs are no longer what is reported.
                move(self.out / f"{key}.json", self.out / "grid" / f"{key}.json")
        points = [run for rung in self.tried for run in rung]
        tried = [
            {
                "key": point.key,
                **{name: getattr(point, name) for name in _varied(points)},
                "score": self.scores.get(point.key),
                "error": self.failures[point.key].error if point.key in self.failures else None,
            }
            for point in points
        ]
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
        write_json(self._choice, record)
        for key in own:  # the first from the grid; others where the same point was chosen before
            if not (self.out / f"{key}.json").exists() and (self.out / "grid" / f"{key}.json").exists():
                Result.of_run(self.out / "grid" / f"{key}.json").save(self.out / f"{key}.json")


def _varied(points: Sequence[RunConfig]) -> list[str]:
    """The fields in which runs differ."""
    names = [each.name for each in dataclasses.fields(RunConfig)]
    return [name for name in names if len({repr(getattr(point, name)) for point in points}) > 1]


def _choice_of(path: Path) -> tuple[str | None, list[str]]:
    """The run of the point that was chosen before, and all its runs; nothing where the record is missing or broken."""
    try:
        record = read_json(path)
    except CheckpointError:
        return None, []
    return record.get("chosen"), [str(key) for key in record.get("runs", [])]
