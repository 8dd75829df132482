"""The signal of a simulated policy in training: the certainty of a class at each step, or the halting distribution."""

from __future__ import annotations

from torch import Tensor

from ponder._utils.validation import check_choice
from ponder.errors import ArgumentError
from ponder.objectives.base import Unrolled
from ponder.parts.signals import SIGNALS
from ponder.parts.tasks import Task

__all__ = ["certainty", "check_one_class", "check_signal"]

_HALTING = "halting"
_REMEDY = "Give the model a Lambda head and pass signal='halting', or use DeepSupervision."


def check_signal(signal: str) -> None:
    """Refuse the name of a signal that is not known."""
    check_choice("signal", signal, (*SIGNALS, _HALTING))


def check_one_class(signal: str, task: Task, remedy: str = _REMEDY, outputs: Tensor | None = None) -> None:
    """Refuse a signal that is that of a class where the task's answers are no classes.

    Args:
        signal: Its name.
        task: The task.
        remedy: What to do.
        outputs: Outputs of one step, `(batch, …)`, where there are some; they may be of another shape than the task's.
    """
    if signal == _HALTING or (task.one_class and (outputs is None or task.fits(outputs))):
        return
    raise ArgumentError(
        "signal",
        expected=f"a task with one class an example, outputs (batch, steps, classes ≥ 2), for signal={signal!r}",
        got=f"the task {task.name!r}" + ("" if outputs is None else f" with outputs of shape {tuple(outputs.shape)}"),
        remedy=remedy,
    )


def certainty(signal: str, unrolled: Unrolled, *, gradient: bool = False, remedy: str = _REMEDY) -> Tensor:
    """The signal of every row at every step, `(batch, steps)`, growing with certainty.

    Args:
        signal: Its name.
        unrolled: The training batch.
        gradient: Whether it stays in the graph.
        remedy: What to do where the task has no such signal.

    Raises:
        ArgumentError: The signal is that of a class, and the task's answers are no classes.
    """
    if signal == _HALTING:
        assert unrolled.halting is not None  # `needs` names the hazard
        sure = unrolled.halting.pmf.cumsum(-1)
        return sure if gradient else sure.detach()
    outputs = unrolled.outputs
    check_one_class(signal, unrolled.task, remedy, outputs[:, -1])
    return SIGNALS[signal](outputs if gradient else outputs.detach())
