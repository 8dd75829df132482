"""The signal of a simulated policy in training: the certainty of a class at each step, or the halting distribution."""

from __future__ import annotations

from torch import Tensor

from ponder._utils.validation import check_choice
from ponder.errors import ArgumentError
from ponder.objectives.base import Unrolled
from ponder.parts.signals import SIGNALS

__all__ = ["certainty", "check_signal"]

_HALTING = "halting"


def check_signal(signal: str) -> None:
    """Refuse the name of a signal that is not known."""
    check_choice("signal", signal, (*SIGNALS, _HALTING))


def certainty(
    signal: str,
    unrolled: Unrolled,
    *,
    gradient: bool = False,
    remedy: str = "Give the model a Lambda head and pass signal='halting', or use DeepSupervision.",
) -> Tensor:
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
    task = unrolled.task
    if not task.one_class or not task.fits(outputs[:, -1]):
        raise ArgumentError(
            "signal",
            expected=f"a task with one class an example, outputs (batch, steps, classes ≥ 2), for signal={signal!r}",
            got=f"the task {task.name!r} with outputs of shape {tuple(outputs.shape)}",
            remedy=remedy,
        )
    return SIGNALS[signal](outputs if gradient else outputs.detach())
