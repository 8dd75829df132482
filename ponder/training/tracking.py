"""Where training is watched: a progress bar on a terminal, and trackers of `accelerate` (TensorBoard and others)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

__all__ = ["Bar", "Tracking", "progress_of"]


class Bar:
    """A progress bar; one that is not shown does nothing."""

    def __init__(self, progress: Any = None) -> None:
        self._progress = progress
        self._task: Any = None

    def stage(self, title: str, total: int | None) -> None:
        """Begin a bar of `total` batches."""
        if self._progress is not None:
            self._task = self._progress.add_task(title, total=total, told="")

    def advance(self, told: Mapping[str, float]) -> None:
        """One batch more, and what to tell beside the bar."""
        if self._progress is not None:
            self._progress.update(self._task, advance=1, told=_line(told))

    def tell(self, told: Mapping[str, float]) -> None:
        """Tell something else beside the bar."""
        if self._progress is not None:
            self._progress.update(self._task, told=_line(told))


@contextmanager
def progress_of(shown: bool) -> Iterator[Bar]:
    """A bar on the standard error, where that is a terminal or a notebook: nothing is written into files and pipes."""
    if not shown:
        yield Bar()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not (console.is_terminal or console.is_jupyter):
        yield Bar()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[told]}"), console=console) as progress:
        yield Bar(progress)


class Tracking:
    """Sends numbers to the trackers of an accelerator; to none where it has none.

    Args:
        accelerator: The accelerator, whose trackers have been started.
    """

    def __init__(self, accelerator: Any) -> None:
        self._accelerator = accelerator
        self._step = 0

    @property
    def on(self) -> bool:
        """Whether there is a tracker."""
        return bool(self._accelerator.trackers)

    def advance(self) -> None:
        """One step of the optimiser more, over all stages."""
        self._step += 1

    def log(self, values: Mapping[str, float]) -> None:
        """Numbers of now."""
        if self.on:
            self._accelerator.log(dict(values), step=self._step)

    def histogram(self, name: str, shares: Tensor | Sequence[float]) -> None:
        """A distribution over the steps of the model: a number a step, and on TensorBoard a histogram.

        Args:
            name: Name of the distribution.
            shares: The share of each step, `(steps,)`.
        """
        if not self.on:
            return
        each = [float(share) for share in shares]
        self.log({f"{name}/step_{step}": share for step, share in enumerate(each, start=1)})
        board = next((tracker for tracker in self._accelerator.trackers if tracker.name == "tensorboard"), None)
        if board is not None:
            steps = range(1, len(each) + 1)
            board.writer.add_histogram_raw(
                name,
                min=1,
                max=len(each),
                num=1,
                sum=sum(step * share for step, share in zip(steps, each, strict=True)),
                sum_squares=sum(step**2 * share for step, share in zip(steps, each, strict=True)),
                bucket_limits=[step + 0.5 for step in steps],
                bucket_counts=each,
                global_step=self._step,
            )
            board.writer.flush()


def _line(told: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in told.items())
