"""The steps of an encoder: one shared callable, a stack of them, or a schedule over a few."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ponder._utils.trees import Tree, check_rows, first_tensor, tensors
from ponder._utils.validation import check_int
from ponder.errors import ArgumentError, ArgumentTypeError
from ponder.parts.callables import as_module

__all__ = ["Step", "Steps"]

Step = Callable[..., Tree]


class Steps(nn.Module):
    """N steps h_n = S_n(h_{n−1}), run by at most N callables.

    A step is any callable `step(hidden, **context) -> hidden`. Callables that are modules are registered once,
    however often the schedule names them.

    Args:
        fns: The callables. The same object given twice is one callable with shared weights.
        schedule: Which callable runs at which step: `schedule[n − 1]` is the index into `fns` of step n. None
            runs each once, in order.
        index: Whether every step is also called with ``index=``, the 1-based number of the step, `(batch,)` long:
            in a stream, rows at different depths share a batch. A Universal Transformer's step embedding reads it.
        state: Where the hidden state lies in what a step returns, an index or a key, for steps that return more
            (attention weights, an auxiliary loss); None where they return the hidden state alone.

    Raises:
        ArgumentError: No callables, a schedule that names one that does not exist or leaves one out, a whole encoder in
            place of its layers, a layer that does not take the batch first, or a function that closes over modules.

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
        for fn in fns:
            _check_step(fn)
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
        self.schedule = tuple(place[id(fns[position])] for position in schedule)
        self.num_steps = len(self.schedule)
        """N, the number of steps at full depth."""
        self.fns = nn.ModuleList(as_module("steps", fn) for fn in unique)
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
            if num_steps is None:
                raise _no_number(steps)
            check_int("num_steps", num_steps, remedy="Pass num_steps=12, say.")
            made = cls([steps], schedule=[0] * num_steps)
        if num_steps is not None and num_steps != made.num_steps:
            raise ArgumentError(
                "num_steps",
                expected=f"{made.num_steps}, the number of steps given",
                got=num_steps,
                remedy="Leave num_steps out when steps is a sequence.",
            )
        return made

    def schedule_of(self, num_steps: int) -> tuple[int, ...]:
        """The schedule of a run of `num_steps` steps, N or, of a shared step, any other number.

        Raises:
            ArgumentError: The steps are not shared, and N is another number.
        """
        if num_steps == self.num_steps:
            return self.schedule
        if not self.shared:
            raise ArgumentError(
                "num_steps",
                expected=f"{self.num_steps}, or None: each of {len(self.fns)} callables has its place in the stack",
                got=num_steps,
                remedy="One shared step can run for longer: PonderWrapper(step, num_steps=12). A stack can end earlier "
                "by a policy: policies.FixedStep(3), say.",
            )
        return self.schedule[:1] * num_steps

    def forward(self, step: int, hidden: Tree, at: Tensor | None = None, /, **context: Any) -> Tree:
        """Run step `step` (1-based) on `hidden`.

        Args:
            step: The step; where rows are at different depths, the step of any of them.
            hidden: The hidden state, batch first.
            at: The step of each row, `(batch,)` long, where they differ.
            context: What the step is called with besides.
        """
        if self.index:
            if "index" in context:
                raise ArgumentError(
                    "index",
                    expected="no value of this name in the context, where steps are told their number by it",
                    got=type(context["index"]).__name__,
                    remedy="Give it another name; or build ponder.Steps(…) without index=True.",
                )
            context["index"] = _index(step, hidden) if at is None else at
        after = self.fns[0 if self.shared else self.schedule[step - 1]](hidden, **context)
        if self.state is not None:
            after = _part_of(after, self.state, step)
        if isinstance(hidden, Tensor) and isinstance(after, Tensor) and after.shape == hidden.shape:  # nearly always
            return after
        _check_state(step, hidden, after, keeps_shape=self.shared and len(self.schedule) > 1)
        return after


def _part_of(after: Any, state: int | str, step: int) -> Tree:
    """The hidden state in what a step returned."""
    try:
        return after[state]
    except (TypeError, KeyError, IndexError) as error:
        kind = f"the keys {sorted(map(str, after))}" if isinstance(after, Mapping) else f"a {type(after).__name__}"
        raise ArgumentError(
            "state",
            expected="an index or a key of what every step returns",
            got=f"state={state!r}, where step {step} returned {kind}",
            remedy="Name where the hidden state lies; leave it out where a step returns the hidden state alone.",
        ) from error


def _index(step: int, hidden: Tree) -> Tensor:
    tensor = first_tensor(hidden)
    return torch.full((tensor.shape[0],), step, device=tensor.device)


def _check_state(step: int, before: Tree, after: Tree, *, keeps_shape: bool) -> None:
    """Refuse a state of another kind, with other rows or, of a shared step, of another shape.

    Rows at different depths share a batch where they share a step, so their states must have one shape.
    """
    if isinstance(before, Tensor) and not isinstance(after, Tensor):
        raise _other_state(step, after)
    rows = next((tensor.shape[0] for _, tensor in tensors(before)), None)
    if rows is not None:
        check_rows(f"hidden state returned by step {step}", after, rows)
    if not keeps_shape:
        return
    shapes = dict(_shapes(before))
    for path, shape in _shapes(after):
        if shape != shapes.get(path):
            raise ArgumentError(
                f"hidden state returned by step {step}{path}",
                expected=f"the shape that it had before, {shapes.get(path, 'no tensor')}, since the step is shared",
                got=shape,
                remedy="Keep what grows (a memory of past states, say) in a tensor of a fixed size.",
            )


def _shapes(state: Tree) -> Iterator[tuple[str, tuple[int, ...]]]:
    return ((path, tuple(tensor.shape)) for path, tensor in tensors(state))


def _check_step(fn: Step) -> None:
    if not callable(fn):
        raise ArgumentTypeError(
            "fns",
            expected="callables step(hidden, **context) -> hidden",
            got=type(fn).__name__,
            remedy="Pass modules or functions.",
        )
    if isinstance(fn, nn.TransformerEncoder | nn.TransformerDecoder):
        raise ArgumentError(
            "steps",
            expected="the layers of an encoder, one a step",
            got=f"a whole {type(fn).__name__} of {len(fn.layers)} layers",
            remedy="Pass encoder.layers, and its final norm, where it has one, as part of the readout.",
        )
    for layer in fn.modules() if isinstance(fn, nn.Sequential) else [fn]:
        attention = getattr(layer, "self_attn", None)
        if isinstance(attention, nn.MultiheadAttention) and not attention.batch_first:
            raise ArgumentError(
                "steps",
                expected="layers that take the batch first, (batch, length, width)",
                got=f"a {type(layer).__name__} with batch_first=False, which would take rows for positions",
                remedy="Build it with batch_first=True; the weights are the same.",
            )


def _no_number(steps: Step) -> ArgumentError:
    children = list(steps.children()) if isinstance(steps, nn.Sequential) else []
    remedy = "Pass num_steps=12, say, or a sequence with one callable for each step."
    if len(children) > 1:
        remedy = (
            f"This Sequential can be read in two ways: list(blocks) makes each of its {len(children)} modules one "
            f"step; num_steps=12 applies all {len(children)} of them, as one shared step, 12 times."
        )
    return ArgumentError(
        "num_steps", expected="the number of times that one shared step is applied", got=None, remedy=remedy
    )


def _other_state(step: int, after: object) -> ArgumentError:
    parts = f" of {len(after)}" if isinstance(after, tuple | list | dict) else ""
    return ArgumentError(
        f"step {step}",
        expected="the hidden state alone, a tensor as it was before the step",
        got=f"a {type(after).__name__}{parts}",
        remedy="Say where the hidden state lies: ponder.Steps([…], state=0), or state='hidden' in a dict.",
    )
