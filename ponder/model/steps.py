"""Steps of an encoder: one shared callable, a stack of them, or a schedule over a few."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ponder._utils.checks import check_int
from ponder._utils.trees import Tree, first_tensor, tensors
from ponder.errors import ArgumentError

__all__ = ["FunctionModule", "Step", "Steps", "as_module", "parameters_of"]

Step = Callable[..., Tree]


class Steps(nn.Module):
    """N steps h_n = S_n(h_{n−1}), run by at most N callables.

    A step is any callable `step(hidden, **context) -> hidden`, a module or a pure function. A step
    that reads the input each time, h_n = f(h_{n−1}, x), finds it in the context: let the stem
    return ``(hidden, {"x": x})``.

    Args:
        fns: The callables. The same object given twice is one callable with shared weights.
        schedule: Which callable runs at which step: `schedule[n − 1]` is the index into `fns` of
            step n. None runs each once, in order.
        index: Whether every step is also called with ``index=``, the 1-based number of the step,
            `(batch,)` long: in a stream, rows at different depths share a batch. A Universal
            Transformer's step embedding reads it.
        state: Where the hidden state lies in what a step returns, an index or a key, for steps that
            return more (attention weights, an auxiliary loss); None where they return the hidden
            state alone.

    Raises:
        ArgumentError: A layer that does not take the batch first, or a function that closes over
            weights.

    Example:
        >>> steps = Steps([torch.sin, torch.cos], schedule=[0, 0, 1, 1])
        >>> steps.num_steps
        4
    """

    def __init__(
        self,
        fns: Iterable[Step],
        schedule: Sequence[int] | None = None,
        *,
        index: bool = False,
        state: int | str | None = None,
    ) -> None:
        super().__init__()
        fns = list(fns)
        unique = {id(fn): fn for fn in fns}
        places = [list(unique).index(id(fn)) for fn in fns]
        self.schedule = tuple(
            places if schedule is None else [places[position] for position in schedule]
        )
        self.num_steps = len(self.schedule)
        """N, the number of steps at full depth."""
        self.fns = nn.ModuleList(as_module("steps", fn) for fn in unique.values())
        for layer in self.fns.modules():
            if isinstance(layer, nn.MultiheadAttention) and not layer.batch_first:
                expected = "layers that take the batch first, (batch, length, width)"
                got = "attention with batch_first=False, which would take rows for positions"
                remedy = "Build it with batch_first=True; the weights are the same."
                raise ArgumentError("steps", expected=expected, got=got, remedy=remedy)
        self.index, self.state = index, state
        self.shared = len(unique) == 1
        """Whether one callable runs at every step: then it can run for any number of them."""

    @classmethod
    def of(cls, steps: Steps | Step | Sequence[Step], num_steps: int | None) -> Steps:
        """Read what a user may call steps: `Steps`, one callable with `num_steps`, or a sequence of callables."""
        if isinstance(steps, Steps):
            made = steps
        elif isinstance(steps, nn.ModuleList | Sequence):
            made = cls(steps)
        else:
            check_int(
                "num_steps",
                num_steps,
                remedy="Pass num_steps=12, say, or a list with one callable a step.",
            )
            assert num_steps is not None
            return cls([steps], schedule=[0] * num_steps)
        if num_steps is not None:
            count = made.num_steps
            check_int(
                "num_steps",
                num_steps,
                count,
                count,
                remedy="Leave num_steps out when steps is a sequence.",
            )
        return made

    def schedule_of(self, num_steps: int) -> tuple[int, ...]:
        """Return the schedule of a run of `num_steps` steps: N or, of a shared step, any other number."""
        return self.schedule if num_steps == self.num_steps else self.schedule[:1] * num_steps

    def forward(self, step: int, hidden: Tree, at: Tensor | None = None, /, **context: Any) -> Tree:
        """Run step `step` (1-based) on `hidden`; `at`, `(batch,)` long, is the step of each row where they differ."""
        if self.index:
            rows = first_tensor(hidden)
            context["index"] = (
                torch.full(rows.shape[:1], step, device=rows.device) if at is None else at
            )
        fn = self.fns._modules[
            "0" if self.shared else str(self.schedule[step - 1])
        ]  # an index is slow
        after = fn(hidden, **context)
        if self.state is not None:
            after = after[self.state]
        if not (
            isinstance(after, Tensor) and isinstance(hidden, Tensor) and after.shape == hidden.shape
        ):
            self._check_state(step, hidden, after)
        return after

    def _check_state(self, step: int, before: Tree, after: Tree) -> None:
        """Refuse a state of another kind, with other rows or, of a shared step, of another shape."""
        old, new = (
            [tuple(tensor.shape) for _, tensor in tensors(state)] for state in (before, after)
        )
        fits = (
            old == new
            if self.shared and self.num_steps > 1
            else {shape[:1] for shape in new} == {old[0][:1]}
        )
        if not fits or isinstance(before, Tensor) != isinstance(after, Tensor):
            also = " and the step is shared" if self.shared else ", or of another width"
            expected = f"a {type(before).__name__} of the shape before, {old}, since rows exit one by one{also}"
            remedy = "Where a step returns more, say where the hidden state lies: ponder.Steps([…], state=0). What "
            remedy += "grows (a memory of past states, say) belongs into a tensor of a fixed size."
            argument, got = (
                f"hidden state returned by step {step}",
                f"a {type(after).__name__}, {new}",
            )
            raise ArgumentError(argument, expected=expected, got=got, remedy=remedy)


class FunctionModule(nn.Module):
    """A pure function in the place of a module; it has no weights."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        return self.fn(*args, **kwargs)


def as_module(argument: str, fn: Callable[..., Any]) -> nn.Module:
    """Return a module, or a function as a module; refuse a function that closes over weights, which would be lost."""
    if isinstance(fn, nn.Module):
        return fn
    used = [getattr(fn, "__self__", None)]
    if inspect.isfunction(fn):
        names = inspect.getclosurevars(fn)
        used += [*names.nonlocals.values(), *names.globals.values()]
    if [value for value in used if isinstance(value, nn.Module | nn.Parameter)] or not callable(fn):
        expected = "an nn.Module, or a pure function without weights"
        got = (
            f"{getattr(fn, '__qualname__', fn)!s}, which uses a module of its surroundings"
            if callable(fn)
            else fn
        )
        remedy = "Pass the module itself, or one that holds it: what a function uses is neither trained nor saved."
        raise ArgumentError(argument, expected=expected, got=got, remedy=remedy)
    return FunctionModule(fn)


def parameters_of(part: nn.Module) -> Mapping[str, inspect.Parameter]:
    """Return the parameters that a part takes, by name; a built-in function has no signature, and takes any."""
    try:
        return inspect.signature(
            part.fn if isinstance(part, FunctionModule) else part.forward
        ).parameters
    except (TypeError, ValueError):
        return inspect.signature(lambda hidden, **context: hidden).parameters
