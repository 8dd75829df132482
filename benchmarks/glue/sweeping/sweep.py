"""A sweep: every point of a grid for each task and recipe, then the best of them with several seeds.

All state is in the files of results, so a sweep that was killed and is started again goes on where it was, and two at
once on one folder share the work: a run is done by whoever holds its lock, and the other takes its result.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table

from benchmarks import tasks
from benchmarks.command_line import check_writable
from benchmarks.glue.config import RunConfig
from benchmarks.glue.distributed import BusyError, hold
from benchmarks.glue.model_store import check_kept
from benchmarks.glue.sweeping.executors import Executor, Job, Outcome
from benchmarks.glue.sweeping.study import CellStudy, Failure
from benchmarks.glue.sweeping.suite import Cell
from benchmarks.glue.training import begins_plain, plain
from ponder import recipes
from ponder._utils.files import move, remove_leftovers
from ponder.errors import ArgumentError, PonderError

__all__ = ["LiveTable", "Snapshot", "Summary", "sweep"]


@dataclass(frozen=True)
class Snapshot:
    """A sweep at one moment: its studies, the keys of the runs at work, and how long those took that are done."""

    studies: Sequence[CellStudy]
    running: frozenset[str]
    seconds: Sequence[float]


@dataclass(frozen=True)
class Summary:
    """How a sweep ended."""

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
    text_dir: Path | None = None,
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
        text_dir: Folder of the other data, `benchmarks.text`.
        models: Folder in which the models of the chosen points are kept, for `predict`; those of all points lie in its
            folder `grid` until the choice.
        show: Called often.
    """
    for option, folder in (("--out", out), ("--work", work), ("--keep-model", models)):
        if folder is not None:
            check_writable(folder, option)
    folders = {"--glue-dir": glue_dir, "--text-dir": text_dir}
    return _Sweep([CellStudy(cell, out) for cell in cells], executor, folders, work, models, show).run()


@dataclass
class _Sweep:
    studies: list[CellStudy]
    executor: Executor
    folders: dict[str, Path | None]
    work: Path
    models: Path | None
    show: Callable[[Snapshot], object]
    of_job: dict[str, CellStudy] = field(default_factory=dict)
    elsewhere: list[Job] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def run(self) -> Summary:
        for study in self.studies:  # all of them before anything runs
            study.choose()
            self._check_models(study)
        for study in self.studies:
            self._go_on(study)
        while self.of_job:
            self._show()
            if len(self.elsewhere) == len(self.of_job):  # nothing else is left: wait for the other sweep's runs
                waiting, self.elsewhere = self.elsewhere, []
                for job in waiting:
                    self.executor.submit(replace(job, wait=True))
            for outcome in self.executor.collect(timeout=0.5):
                self._take(outcome)
        self._show()
        self._tidy()
        failures = tuple(failure for study in self.studies for failure in study.failures.values())
        done = sum(len(study.scores) for study in self.studies)
        return Summary(done, failures, sum(study.planned for study in self.studies) - done - len(failures))

    def _show(self) -> None:
        running = frozenset(job.config.key for job in self.executor.running) if self.of_job else frozenset()
        self.show(Snapshot(self.studies, running, self.seconds))

    def _go_on(self, study: CellStudy) -> None:
        """Submit what the cell needs next; the last cell of a task clears away what its runs shared."""
        if not study.open_runs():
            study.choose()
            self._check_models(study, raising=False)
        of_task = [other for other in self.studies if other.cell.task == study.cell.task]
        specs = [other.cell.spec for other in of_task]
        # Where runs of `vanilla` leave their models for other recipes of the task; None where there are none.
        shared = any(begins_plain(recipes.get(spec.recipe, **spec.options)) for spec in specs)
        stages = self.work / "stages" if shared else None
        folder = self.folders[tasks.get(study.cell.task).folder_option]
        for config in study.open_runs():
            self.of_job[config.key] = study
            self.executor.submit(Job(config, folder, study.folder, self.work, stages, self._models(study, config)))
        if not any(other.open_runs() or other.failures for other in of_task):
            for name in {plain(run).key for other in of_task for run in other.runs}:
                _remove(self.work / "stages" / name)

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
        config = outcome.job.config
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
        for key in (key for study in self.studies for key in study.scores):
            _remove(self.work / key)
        for folder in {study.out for study in self.studies}:
            for part in (folder, *(folder / name for name in ("grid", "chosen", "failed"))):
                remove_leftovers(part)


def _remove(folder: Path) -> None:
    """Remove a folder of checkpoints and its lock, but for one at which another sweep is."""
    lock = folder.with_name(f"{folder.name}.lock")
    if folder.exists() or lock.exists():
        with suppress(BusyError), hold(lock, wait=False):
            shutil.rmtree(folder, ignore_errors=True)


class LiveTable:
    """Shows every `Snapshot` in the place of the one before; where there is no terminal, the last one alone."""

    def __init__(self, console: Console, workers: int) -> None:
        self._live, self._workers = Live(console=console, auto_refresh=False), workers

    def __enter__(self) -> LiveTable:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def __call__(self, snapshot: Snapshot) -> None:
        """One line a task and recipe: runs done, running and failed, the best score that selects."""
        table = Table("task", "recipe", "phase", title="Sweep", caption=_time_left(snapshot, self._workers))
        for name in ("done", "running", "failed", "best score"):
            table.add_column(name, justify="right")
        for study in snapshot.studies:
            open_runs, failures = study.open_runs(), len(study.failures)
            phase = "grid" if study.chosen is None else "seeds"
            table.add_row(
                study.cell.task,
                study.cell.spec.label,
                phase if open_runs else "failed" if failures else "done",
                f"{len(study.scores)} of {study.planned}",
                str(sum(run.key in snapshot.running for run in open_runs)),
                f"[red]{failures}[/]" if failures else "0",
                f"{100 * max(study.scores.values()):.1f}" if study.scores else "–",
            )
        self._live.update(table, refresh=True)


def _time_left(snapshot: Snapshot, workers: int) -> str:
    """From the mean time of the runs that were done, as if all workers were kept busy."""
    left = sum(study.planned - len(study.scores) - len(study.failures) for study in snapshot.studies)
    failed = sum(len(study.failures) for study in snapshot.studies)
    if not left:
        return f"{failed} runs failed" if failed else "nothing left to do"
    if not snapshot.seconds:
        return f"{left} runs left"
    seconds = round(sum(snapshot.seconds) / len(snapshot.seconds) * left / min(workers, left))
    hours, minutes = divmod(seconds // 60, 60)
    return f"{left} runs left, about {hours} h {minutes:02d} min"
