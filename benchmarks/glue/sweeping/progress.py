"""A sweep as one live table, for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table

from benchmarks.glue.sweeping.study import CellStudy
from benchmarks.glue.sweeping.sweep import Snapshot

__all__ = ["LiveTable", "table", "time_left"]


class LiveTable:
    """Shows every `Snapshot` in the place of the one before; where there is no terminal, the last one alone.

    Args:
        console: Where.
        workers: Runs at a time, for the time that is left.
    """

    def __init__(self, console: Console, workers: int) -> None:
        self._live = Live(console=console, auto_refresh=False)
        self._workers = workers

    def __enter__(self) -> LiveTable:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def __call__(self, snapshot: Snapshot) -> None:
        """Show it."""
        self._live.update(table(snapshot, self._workers), refresh=True)


def table(snapshot: Snapshot, workers: int) -> Table:
    """One line a task and recipe: runs done, running and failed, the best score that selects, and what is chosen."""
    made = Table("task", "recipe", "phase", title="Sweep", caption=time_left(snapshot, workers))
    for name in ("done", "running", "failed", "best score"):
        made.add_column(name, justify="right")
    for study in snapshot.studies:
        made.add_row(*_row(study, snapshot.running))
    return made


def time_left(snapshot: Snapshot, workers: int) -> str:
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


def _row(study: CellStudy, running: frozenset[str]) -> Sequence[str]:
    open_runs = study.open_runs()
    at_work = sum(run.key in running for run in open_runs)
    phase = "grid" if study.chosen is None else "seeds"
    if not open_runs:
        phase = "failed" if study.failures else "done"
    best = f"{100 * max(study.scores.values()):.1f}" if study.scores else "–"
    failed = f"[red]{len(study.failures)}[/]" if study.failures else "0"
    done = f"{len(study.scores)} of {study.planned}"
    return study.cell.task, study.cell.spec.label, phase, done, str(at_work), failed, best
