"""Steps of an encoder: one shared callable, a stack of them, or a schedule over a few."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ponder._utils.checks import check_int
from ponder._utils.trees import Tree, first_tensor, tensors
from ponder.errors import ArgumentError

__all__ = [
    "Context",
    "ContextDict",
    "FunctionModule",
    "Step",
    "Steps",
    "as_module",
    "optional_module",
    "parameters_of",
]

Step = Callable[..., Tree]
ContextDict: TypeAlias = dict[str, Any]
"""A context that is being put together."""
Context: TypeAlias = Mapping[str, Any]
"""Arguments of the steps by name, besides the hidden state: trees of tensors, batch first, and
values that all rows share."""


class Steps(nn.Module):
    """N steps h_n = S_n(h_{n−1}), run by at most N callables.

    A step is any callable `step(hidden, **context) -> hidden`, a module or a pure function. A step
    that reads the input each time, h_n = f(h_{n−1}, x), gets it from the context: let the stem
    return ``(hidden, {"x": x})``.

    Args:
        fns: The callables. An object that is given twice is one callable with shared weights.
        schedule: Which callable runs at which step: `schedule[n − 1]` is the index into `fns` of
            step n. None runs each once, in order.
        index: Whether every step is also called with ``index=``, the 1-based number of the step of
            each row, `(batch,)` long: in a stream, rows at different depths share a batch. The step
            embedding of a Universal Transformer reads it.
        state: The index or key of the hidden state in the output of a step that returns more
            (attention weights, an auxiliary loss); None if the output is the hidden state.

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
        numbers = [list(unique).index(id(fn)) for fn in fns]
        if schedule is not None:
            numbers = [numbers[position] for position in schedule]
        self.schedule = tuple(numbers)
        self.num_steps = len(self.schedule)
        """N, the number of steps at full depth."""
        self.fns = nn.ModuleList(as_module("steps", fn) for fn in unique.values())
        for layer in self.fns.modules():
            if isinstance(layer, nn.MultiheadAttention) and not layer.batch_first:
                expected = "layers that take the batch first, (batch, length, width)"
                got = "attention with batch_first=False, which would take rows for positions"
                remedy = "Build it with batch_first=True; the weights are the same."
                raise ArgumentError("steps", expected=expected, got=got, remedy=remedy)
        self.index = index
        self.state = state
        self.shared = len(unique) == 1
        """Whether one callable runs at every step: then it can run for any number of them."""

    @classmethod
    def of(cls, steps: Steps | Step | Sequence[Step], num_steps: int | None) -> Steps:
        """Return `Steps` of a callable with `num_steps`, a sequence of callables, or `Steps`."""
        if isinstance(steps, Steps):
            stack = steps
        elif isinstance(steps, nn.ModuleList | Sequence):
            stack = cls(steps)
        else:
            remedy = "Pass num_steps=12, say, or a list with one callable a step."
            check_int("num_steps", num_steps, remedy=remedy)
            assert num_steps is not None
            return cls([steps], schedule=[0] * num_steps)
        if num_steps is not None:
            remedy = "Leave num_steps out when steps is a sequence."
            check_int("num_steps", num_steps, stack.num_steps, stack.num_steps, remedy=remedy)
        return stack

    def schedule_of(self, num_steps: int) -> tuple[int, ...]:
        """Return the schedule of a run of `num_steps` steps: N, or any number of a shared step."""
        return self.schedule if num_steps == self.num_steps else self.schedule[:1] * num_steps

    def forward(self, step: int, hidden: Tree, at: Tensor | None = None, /, **context: Any) -> Tree:
        """Run step `step` (1-based) on `hidden`.

        If rows are at different steps, `at` is the step of each, `(batch,)` long.
        """
        if self.index:
            rows = first_tensor(hidden)
            if at is None:
                at = torch.full(rows.shape[:1], step, device=rows.device)
            context["index"] = at
        # `_modules` by name, since the index of a module list is slow.
        fn = self.fns._modules["0" if self.shared else str(self.schedule[step - 1])]
        after = fn(hidden, **context)
        if self.state is not None:
            after = after[self.state]
        if not (
            isinstance(after, Tensor) and isinstance(hidden, Tensor) and after.shape == hidden.shape
        ):
            self._check_state(step, hidden, after)
        return after

    def _check_state(self, step: int, before: Tree, after: Tree) -> None:
        """Refuse a state of another kind, with other rows, or (a shared step) of another shape."""
        old = [tuple(tensor.shape) for _, tensor in tensors(before)]
        new = [tuple(tensor.shape) for _, tensor in tensors(after)]
        if self.shared and self.num_steps > 1:
            fits = old == new
        else:
            fits = {shape[:1] for shape in new} == {old[0][:1]}
        if fits and isinstance(before, Tensor) == isinstance(after, Tensor):
            return
        reason = "since rows exit one by one"
        reason += " and the step is shared" if self.shared else ", or of another width"
        raise ArgumentError(
            f"hidden state returned by step {step}",
            expected=f"a {type(before).__name__} of the shape before, {old}, {reason}",
            got=f"a {type(after).__name__}, {new}",
            remedy="If a step returns more, say where the hidden state lies: "
            "ponder.Steps([…], state=0). A state that grows (a memory of past states, say) needs "
            "a tensor of a fixed size.",
        )


class FunctionModule(nn.Module):
    """A pure function in the place of a module; it has no weights."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        return self.fn(*args, **kwargs)


def as_module(argument: str, fn: Callable[..., Any]) -> nn.Module:
    """Return a module, or a function as a module.

    A function that closes over weights is refused: they would be neither trained nor saved.
    """
    if isinstance(fn, nn.Module):
        return fn
    used = [getattr(fn, "__self__", None)]
    if inspect.isfunction(fn):
        names = inspect.getclosurevars(fn)
        used += [*names.nonlocals.values(), *names.globals.values()]
    if [value for value in used if isinstance(value, nn.Module | nn.Parameter)] or not callable(fn):
        got: Any = fn
        if callable(fn):
            name = str(getattr(fn, "__qualname__", fn))
            got = f"{name}, which uses a module of its surroundings"
        raise ArgumentError(
            argument,
            expected="an nn.Module, or a pure function without weights",
            got=got,
            remedy="Pass the module itself, or one that holds it: the weights that a function uses "
            "are neither trained nor saved.",
        )
    return FunctionModule(fn)


def optional_module(argument: str, fn: Callable[..., Any] | None) -> nn.Module | None:
    """Return a part that a model may lack as a module; None if there is none."""
    if fn is None:
        return None
    return as_module(argument, fn)


def parameters_of(part: nn.Module) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a part; a built-in function, without a signature, takes any."""
    called = part.fn if isinstance(part, FunctionModule) else part.forward
    try:
        return inspect.signature(called).parameters
    except (TypeError, ValueError):
        return inspect.signature(lambda hidden, **context: hidden).parameters
