"""A sweep: every point of a grid for each task and recipe, then the best of them with several seeds.

All state is in the files of results, so a sweep that was killed and is started again goes on where it was, and two at
once on one folder share the work: a run is done by whoever holds its lock, and the other takes its result.
"""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from rich.table import Table

from benchmarks import tasks
from benchmarks.command_line import check_writable
from benchmarks.glue.sweeping.executors import Job, Outcome, Submit
from benchmarks.glue.sweeping.study import CellStudy, Failure
from benchmarks.glue.sweeping.suite import Cell
from benchmarks.locking import BusyError, hold
from ponder._utils.files import remove_leftovers

__all__ = ["Summary", "sweep"]


@dataclass(frozen=True)
class Summary:
    """How a sweep ended."""

    done: int
    failures: tuple[Failure, ...]
    skipped: int


def sweep(
    cells: Sequence[Cell],
    submit: Submit,
    *,
    glue_dir: Path | None,
    out: Path,
    work: Path,
    text_dir: Path | None = None,
    models: Path | None = None,
    workers: float = 1,
    show: Callable[[Table], object] = lambda table: None,
    tell: Callable[[str], object] = lambda line: None,
) -> Summary:
    """Do what is left of a sweep.

    A run that fails is recorded in `<out>/failed/`, and the others go on; the next sweep tries it again. Models of the
    chosen points are kept in `models`. So many `workers` do runs at a time (infinity where `submit` decides); `show` is
    given a table of the present state, often, and `tell` a line for each run that ended: for a log.
    """
    for option, folder in (("--out", out), ("--work", work), ("--keep-model", models)):
        check_writable(folder, option)
    folders = {"--glue-dir": glue_dir, "--text-dir": text_dir}
    studies = [CellStudy(cell, out, models) for cell in cells]
    queue, running, elsewhere = deque[Job](), dict[Future[Outcome], Job](), list[Job]()
    asked: dict[Path, CellStudy] = {}
    seconds: list[float] = []

    def go_on(study: CellStudy) -> None:
        study.look()
        data = folders[tasks.get(study.cell.task).folder_option]
        for config in study.open_runs:
            job = Job(config, data, study.folder, work, None if study.chosen is None else models)
            if job.result not in asked:
                asked[job.result] = study
                queue.append(job)

    for study in studies:
        go_on(study)
    while queue or running:
        show(_table(studies, running.values(), seconds))
        while queue and len(running) < workers:
            job = queue.popleft()
            running[submit(job)] = job
        for future in wait(running, timeout=0.5, return_when=FIRST_COMPLETED).done:
            job, outcome = running.pop(future), Outcome.of(future)
            study = asked[job.result]
            if outcome.status == "busy":
                elsewhere.append(job)
            elif outcome.status == "failed":
                study.failed(Failure(job.config, outcome.error, outcome.details))
            elif not job.result.exists():
                study.failed(Failure(job.config, "FileNotFoundError: its result is not where it should be."))
            else:
                seconds.append(outcome.seconds)
            go_on(study)
            if outcome.status != "busy":
                left = sum(study.planned - len(study.done) - len(study.failures) for study in studies)
                said = f"failed ({outcome.error})" if job.config.key in study.failures else "done"
                tell(f"{job.config.key}: {said} after {outcome.seconds:.0f} s, runs left: {left}")
        if not queue and not running:  # nothing else is left: wait for the other sweep's runs
            queue.extend(replace(job, wait=True) for job in elsewhere)
            elsewhere = []
    show(_table(studies, (), seconds))
    for key in (key for study in studies for key in study.done):  # killed between their result and their end
        _remove(work / key)
    for part in (out, *(out / name for name in ("grid", "chosen", "failed"))):
        remove_leftovers(part)
    failures = tuple(failure for study in studies for failure in study.failures.values())
    done = sum(len(study.done) for study in studies)
    return Summary(done, failures, sum(study.planned for study in studies) - done - len(failures))


def _remove(folder: Path) -> None:
    """Remove a folder of checkpoints and its lock, but for one at which another sweep is."""
    lock = folder.with_name(f"{folder.name}.lock")
    if folder.exists() or lock.exists():
        with suppress(BusyError), hold(lock, wait=False):
            shutil.rmtree(folder, ignore_errors=True)


def _table(studies: Sequence[CellStudy], running: Collection[Job], seconds: Sequence[float]) -> Table:
    """One line a task and recipe: runs done, running and failed, the best score that selects."""
    left = sum(study.planned - len(study.done) - len(study.failures) for study in studies)
    failed = sum(len(study.failures) for study in studies)
    caption = f"{left} runs left" if left else f"{failed} runs failed" if failed else "nothing left to do"
    if left and seconds:  # as if as many were always kept busy
        minutes = round(sum(seconds) / len(seconds) * left / min(max(len(running), 1), left)) // 60
        caption += f", about {minutes // 60} h {minutes % 60:02d} min"
    table = Table("task", "recipe", "phase", title="Sweep", caption=caption)
    for name in ("done", "running", "failed", "best score"):
        table.add_column(name, justify="right")
    for study in studies:
        failures = len(study.failures)
        table.add_row(
            study.cell.task,
            study.cell.spec.label,
            ("grid" if study.chosen is None else "seeds") if study.open_runs else "failed" if failures else "done",
            f"{len(study.done)} of {study.planned}",
            str(sum(job.config in study.open_runs for job in running)),
            f"[red]{failures}[/]" if failures else "0",
            f"{100 * max(study.done.values()):.1f}" if study.done else "–",
        )
    return table
