"""A sweep: every point of a grid for each task and recipe, then the best of them with several seeds.

All state is in the files of results, so a sweep that was killed and is started again goes on where it was, and two at
once on one folder share the work: a run is done by whoever holds its lock, and the other takes its result.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.folders import check_writable
from benchmarks.glue.config import RunConfig
from benchmarks.glue.keeping import check_kept
from benchmarks.glue.locks import BusyError, hold
from benchmarks.glue.sweeping.executors import Executor, Job, Outcome
from benchmarks.glue.sweeping.study import CellStudy, Failure
from benchmarks.glue.sweeping.suite import Cell
from benchmarks.glue.training import begins_plain, plain
from ponder import recipes
from ponder._utils.files import move, remove_leftovers
from ponder.errors import ArgumentError, PonderError

__all__ = ["Snapshot", "Summary", "sweep"]


@dataclass(frozen=True)
class Snapshot:
    """A sweep at one moment, for whoever shows it.

    Args:
        studies: One a cell.
        running: Keys of the runs that are at work.
        seconds: How long the runs took that this sweep has done.
    """

    studies: Sequence[CellStudy]
    running: frozenset[str]
    seconds: Sequence[float]


@dataclass(frozen=True)
class Summary:
    """How a sweep ended.

    Args:
        done: Number of runs with a result, those from before included.
        failures: Runs without one.
        skipped: Runs that were not tried, since no point of their grid was chosen.
    """

    done: int
    failures: tuple[Failure, ...]
    skipped: int


def sweep(
    cells: Sequence[Cell],
    executor: Executor,
    *,
    glue_dir: Path | None,
    out: Path,
    work: Path,
    models: Path | None = None,
    show: Callable[[Snapshot], object] = lambda snapshot: None,
) -> Summary:
    """Do what is left of a sweep.

    A run that fails is recorded in `<out>/failed/`, and the others go on; the next sweep tries it again.

    Args:
        cells: What to do; see `Suite.cells`.
        executor: Where runs are done.
        glue_dir: Folder in GLUE's layout; None for the hub.
        out: Folder of results, of this and other sweeps.
        work: Folder of checkpoints.
        models: Folder in which the models of the chosen points are kept, for `predict`; those of all points lie in its
            folder `grid` until the choice.
        show: Called often.

    Raises:
        ArgumentError: A run that is to be reported has a result already, and its model was not kept.
        DataError: A result in `out` is half-written, edited, or of another version.
    """
    for option, folder in (("--out", out), ("--work", work), ("--keep-model", models)):
        if folder is not None:
            check_writable(folder, option)
    return _Sweep([CellStudy(cell, out) for cell in cells], executor, glue_dir, work, models, show).run()


class _Sweep:
    def __init__(
        self,
        studies: list[CellStudy],
        executor: Executor,
        glue_dir: Path | None,
        work: Path,
        models: Path | None,
        show: Callable[[Snapshot], object],
    ) -> None:
        self.studies, self.executor, self.glue_dir, self.show = studies, executor, glue_dir, show
        self.work, self.models = work, models
        self.of_job: dict[str, CellStudy] = {}
        self.elsewhere: list[Job] = []
        self.seconds: list[float] = []

    def run(self) -> Summary:
        for study in self.studies:  # all of them before anything runs
            study.choose()
            self._check_models(study)
        for study in self.studies:
            self._go_on(study)
        while self.of_job:
            self.show(Snapshot(self.studies, self._running(), self.seconds))
            if len(self.elsewhere) == len(self.of_job):  # nothing else is left: wait for the other sweep's runs
                waiting, self.elsewhere = self.elsewhere, []
                for job in waiting:
                    self.executor.submit(replace(job, wait=True))
            for outcome in self.executor.collect(timeout=0.5):
                self._take(outcome)
        self.show(Snapshot(self.studies, frozenset(), self.seconds))
        self._tidy()
        failures = tuple(failure for study in self.studies for failure in study.failures.values())
        done = sum(len(study.scores) for study in self.studies)
        planned = sum(study.planned for study in self.studies)
        return Summary(done, failures, planned - done - len(failures))

    def _go_on(self, study: CellStudy) -> None:
        """Submit what the cell needs next; the last cell of a task clears away what its runs shared."""
        if not study.open_runs():
            study.choose()
            self._check_models(study, raising=False)
        for config in study.open_runs():
            self.of_job[config.key] = study
            models = self._models(study, config)
            self.executor.submit(Job(config, self.glue_dir, study.folder, self.work, self._stages(study), models))
        of_task = self._of_task(study)
        if all(other.finished and not other.failures for other in of_task):
            for name in {plain(run).key for other in of_task for run in other.runs}:
                _remove(self.work / "stages" / name)

    def _of_task(self, study: CellStudy) -> list[CellStudy]:
        return [other for other in self.studies if other.cell.task == study.cell.task]

    def _stages(self, study: CellStudy) -> Path | None:
        """Where runs of `vanilla` leave their models for other recipes of the task; None where there are none."""
        specs = [other.cell.spec for other in self._of_task(study)]
        shared = any(begins_plain(recipes.get(spec.recipe, **spec.options)) for spec in specs)
        return self.work / "stages" if shared else None

    def _models(self, study: CellStudy, config: RunConfig) -> Path | None:
        """Where the model of a run is kept: as its result, in `grid` until there is a choice."""
        if self.models is None or study.finals:
            return self.models
        # A run of an early rung, with a part of the epochs, is never what is reported.
        return self.models / "grid" if config in study.cell.points else None

    def _check_models(self, study: CellStudy, raising: bool = True) -> None:
        """The models of the chosen point have to be there, or raise or note it; once chosen, those of others go."""
        if self.models is None:
            return
        tried = self.models / "grid"
        # Before there is a choice all points are needed, unless there was one before: then most were removed.
        needed = study.finals or ([] if study.chosen_before else study.cell.points)
        for config in [each for each in needed if each.key in study.scores]:
            try:
                if study.finals and not (self.models / config.key).exists():
                    move(tried / config.key, self.models / config.key)
                check_kept(config, self.models if study.finals else tried)
            except ArgumentError as error:
                if raising:
                    raise
                study.failed(Failure(config, f"{type(error).__name__}: {error}"))
        if study.finals:
            for config in study.runs:
                shutil.rmtree(tried / config.key, ignore_errors=True)
            with suppress(OSError):  # others are still to be chosen from
                tried.rmdir()

    def _take(self, outcome: Outcome) -> None:
        config: RunConfig = outcome.job.config
        if outcome.status == "busy":
            self.elsewhere.append(outcome.job)
            return
        study = self.of_job.pop(config.key)
        if outcome.status == "done":
            self.seconds.append(outcome.seconds)
            try:
                study.succeeded(config)
            except PonderError as error:  # the file was changed or removed behind the run's back
                outcome = replace(outcome, status="failed", error=f"{type(error).__name__}: {error}")
        if outcome.status == "failed":
            study.failed(Failure(config, outcome.error, outcome.details))
        if not study.open_runs():
            self._go_on(study)

    def _tidy(self) -> None:
        """Remove what runs left that were killed between their result and their end."""
        for study in self.studies:
            for key in study.scores:
                _remove(self.work / key)
        for folder in {study.out for study in self.studies}:
            for part in (folder, *(folder / name for name in ("grid", "chosen", "failed"))):
                remove_leftovers(part)

    def _running(self) -> frozenset[str]:
        return frozenset(job.config.key for job in self.executor.running)


def _remove(folder: Path) -> None:
    """Remove a folder of checkpoints and its lock, but for one at which another sweep is."""
    lock = folder.with_name(f"{folder.name}.lock")
    if folder.exists() or lock.exists():
        with suppress(BusyError), hold(lock, wait=False):
            shutil.rmtree(folder, ignore_errors=True)
