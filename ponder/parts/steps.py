"""The steps of an encoder: one shared callable, a stack of them, or a schedule over a few."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import nn

from ponder._utils.trees import Tree
from ponder.errors import ArgumentError, ArgumentTypeError

__all__ = ["Steps"]

Step = Callable[..., Tree]


class Steps(nn.Module):
    """N steps h_n = S_n(h_{n−1}), run by at most N callables.

    A step is any callable `step(hidden, **context) -> hidden`. Callables that are modules are registered once,
    however often the schedule names them.

    Args:
        fns: The callables. The same object given twice is one callable with shared weights.
        schedule: Which callable runs at which step: `schedule[n − 1]` is the index into `fns` of step n. None
            runs each once, in order.

    Raises:
        ArgumentError: No callables, or a schedule that names one that does not exist or leaves one out.

    Example:
        >>> steps = Steps([torch.sin, torch.cos], schedule=[0, 0, 1, 1])
        >>> steps.num_steps
        4
    """

    def __init__(self, fns: Iterable[Step], schedule: Sequence[int] | None = None) -> None:
        super().__init__()
        fns = list(fns)
        for fn in fns:
            if not callable(fn):
                raise ArgumentTypeError(
                    "fns",
                    expected="callables step(hidden, **context) -> hidden",
                    got=type(fn).__name__,
                    remedy="Pass modules or functions.",
                )
        schedule = list(range(len(fns))) if schedule is None else list(schedule)
        if not fns or set(schedule) != set(range(len(fns))):
            raise ArgumentError(
                "schedule",
                expected=f"indices that name each of the {len(fns)} callables at least once",
                got=schedule,
                remedy="Give every step the index of one callable; drop callables that no step uses.",
            )
        unique = list({id(fn): fn for fn in fns}.values())
        place = {id(fn): position for position, fn in enumerate(unique)}
        self.schedule = tuple(place[id(fns[index])] for index in schedule)
        self.fns = nn.ModuleList(fn if isinstance(fn, nn.Module) else _Function(fn) for fn in unique)

    @classmethod
    def of(cls, steps: Steps | Step | Sequence[Step], num_steps: int | None) -> Steps:
        """Read what a user may call steps: `Steps`, one callable with `num_steps`, or a sequence of callables."""
        if isinstance(steps, Steps):
            made = steps
        elif isinstance(steps, nn.ModuleList | Sequence):
            made = cls(steps)
        elif num_steps is None:
            raise ArgumentError(
                "num_steps",
                expected="the number of times that one shared step is applied",
                got=None,
                remedy="Pass num_steps=12, say, or a sequence with one callable for each step.",
            )
        else:
            _check_count(num_steps)
            made = cls([steps], schedule=[0] * num_steps)
        if num_steps is not None and num_steps != made.num_steps:
            raise ArgumentError(
                "num_steps",
                expected=f"{made.num_steps}, the number of steps given",
                got=num_steps,
                remedy="Leave num_steps out when steps is a sequence.",
            )
        return made

    @property
    def num_steps(self) -> int:
        """N, the number of steps at full depth."""
        return len(self.schedule)

    def forward(self, step: int, hidden: Tree, **context: Any) -> Tree:
        """Run step `step` (1-based) on `hidden`."""
        return self.fns[self.schedule[step - 1]](hidden, **context)


class _Function(nn.Module):
    """A plain callable as a module, so that the list of callables can be one."""

    def __init__(self, fn: Step) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, hidden: Tree, **context: Any) -> Tree:
        return self.fn(hidden, **context)


def _check_count(num_steps: object) -> None:
    if isinstance(num_steps, bool) or not isinstance(num_steps, int) or num_steps < 1:
        raise ArgumentError(
            "num_steps", expected="a whole number ≥ 1", got=repr(num_steps), remedy="Pass num_steps=12, say."
        )
