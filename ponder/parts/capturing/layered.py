"""A module called layer by layer: what `capture` learns of it, and how stem, steps and tail run from that."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from dataclasses import dataclass
from functools import partial
from inspect import Parameter, Signature
from typing import Any

import torch
from torch import Tensor, nn

from ponder._utils.trees import Shared, Tree, leaves, map_leaves, map_tensors, take_rows, tensors, unwrap
from ponder.errors import ArgumentError
from ponder.parts.capturing.closeness import close
from ponder.parts.capturing.ending import Reading, goes_alike
from ponder.parts.capturing.growth import (
    Arguments,
    Axis,
    grown_lengths,
    grown_rows,
    has_rows,
    is_long,
    merge_rows,
    one_column_less,
    one_more_column,
    one_more_row,
    split_rows,
)
from ponder.parts.capturing.modes import Mode, mode_now
from ponder.parts.capturing.notes import (
    CodeBetweenError,
    EnoughError,
    LayerCall,
    Notes,
    is_state,
    told_otherwise,
)
from ponder.parts.capturing.twin import branches_to, evaluating_twin, twin_of, untraced_twin
from ponder.parts.capturing.watching import Mark, Tail, watch
from ponder.parts.padding import Along, Padding
from ponder.parts.steps import Steps

__all__ = [
    "MASKS",
    "PLAN",
    "LayeredModule",
    "LayeredReadout",
    "LayeredStep",
    "is_row_mask",
]

PLAN, _FIRST = "plan", Axis()
_KINDS = 1000  # of calls that were looked at, and are remembered
_ENOUGH = 50  # whole numbers that were looked at, and went alike, all else being equal: the next ones are taken to


MASKS = ("attention_mask", "mask", "src_key_padding_mask", "key_padding_mask")
"""Names of masks `(batch, length)` among the arguments of a module."""

_Kind = tuple[frozenset[str | int], frozenset[tuple[str | int, tuple[Any, ...]]]]
"""The arguments that a call has and the example had not, or the other way round; and plain values that differ."""
_Learned = tuple[tuple[str, ...], tuple[Axis | None, ...], bool]
"""The names of the noted tensors of a kind of call, where their rows are, and whether batches may get narrower."""


@dataclass(frozen=True)
class _Plan:
    """What the steps of one call need, besides tensors. Equal plans can share a batch.

    Args:
        calls: Arguments and keyword arguments of each layer, with marks for tensors; None for a layer left out.
        handed: What each layer hands on besides the hidden state.
        modes: The mode of each layer around which the module's own code sets another than that of the call.
        names: The names that the noted tensors have in the context.
        rows: The dimension of the rows in each noted tensor; None for a tensor of the whole batch.
        before: The answers of the modules that ran before the layers, by path.
        given: The module's own arguments.
        narrows: Whether it is known where the lengths of all tensors lie, so that they can be cut off.
    """

    calls: tuple[Any, ...]
    handed: tuple[frozenset[str], ...]
    modes: Mapping[int, Mode]
    names: tuple[str, ...]
    rows: tuple[Axis | None, ...]
    before: Mapping[str, list[Any]]
    given: Mapping[str | int, Any]
    narrows: bool


class LayeredModule:
    """A module as stem, steps and tail. It holds no tensors of its own, and calls the module's layers where they are.

    Args:
        module: The module.
        calls: The calls that its layers consist of, in order.
        before: The paths of the modules that end before the first layer begins.
        tail: What follows the layers, where it is a chain of modules.
        axes: Where the rows are in what a layer hands on.
        between: Whether code of the module's own stands between the layers: a step then runs the module's forward
            again, from the end of one layer to the end of the next, with stubs for what is not needed.
        first: The name of the argument that a wrapper's `inputs` are; None where it is passed by its place.
        constants: Arguments of every call.
        mask: The name of the mask `(batch, length)` among the arguments, or None.
    """

    reads_numbers = False
    """Whether numbers that layers hand on are read by others, or behind them."""

    seen_keys: frozenset[str | int] | None = None
    """The names and places of the arguments of the example; None before it is learned, and of one saved without."""

    reads: Callable[[Any], Any] | None = None
    """What readouts read of the module's output; None of one saved without."""

    def __init__(
        self,
        module: nn.Module,
        calls: tuple[LayerCall, ...],
        *,
        before: Iterable[str],
        tail: Tail | None,
        axes: Mapping[str, Axis | None],
        between: bool,
        first: str | None,
        constants: Mapping[str | int, Any],
        mask: str | None,
    ) -> None:
        self.module, self.calls, self.before, self.tail = module, calls, tuple(before), tail
        self.axes, self.between = dict(axes), between
        self.first, self.constants, self.mask = first, dict(constants), mask
        self.padding: Padding | None = None
        self.shapes: dict[str, tuple[int, ...]] = {}  # of the named tensors of the output, for the example
        self.lengths: dict[str, Along] = {}
        self.given_names: frozenset[str] = frozenset()  # of the arguments of the example
        self._known: dict[Any, _Learned] = {}
        self._ends: set[Any] = set()  # kinds of calls that were seen to end as the example did
        self._kinds: dict[tuple[tuple[Axis | None, ...], tuple[torch.dtype, ...]], int] = {}
        paths = dict.fromkeys(call.path for call in calls)
        self._to_layers = branches_to(module, paths)
        self._to_all = branches_to(module, [*paths, *self.before])

    @property
    def num_steps(self) -> int:
        """The number of layers."""
        return self.calls[-1].layer + 1

    def steps(self) -> Steps:
        """The layers as steps, one each."""
        return Steps([LayeredStep(self, number) for number in range(self.num_steps)])

    def readout(self, select: Callable[[Any], Any]) -> LayeredReadout:
        """The readout that gives `select` of the module's output."""
        return LayeredReadout(self, select)

    @property
    def replays(self) -> bool:
        """Whether a step or the tail needs the module's own arguments again."""
        return self.between or self.tail is None

    def stem(self, inputs: Tree, **named: Any) -> tuple[Tree, dict[str, Any]]:
        """The module's arguments to h_0 and the context of the steps; `ponder.Shared` ones have no rows."""
        shared = frozenset(name for name, value in named.items() if isinstance(value, Shared))
        given = self._arguments(inputs, unwrap(named))
        rows = self._rows(given)
        if rows:
            return self._stem(given, rows, shared)
        some = {
            key: value.new_ones(1, *value.shape[1:]) if has_rows(value, 0) else value for key, value in given.items()
        }
        one = self._untraced()._stem(some, 1, shared)
        hidden, context = take_rows(one, torch.arange(0, device=_first(given).device))
        return hidden, context

    def step(self, number: int, state: Tree, context: Mapping[str, Any]) -> Tree:
        """Layer `number`, counted from 0, on what the layers before gave."""
        plan: _Plan = context[PLAN]
        if self.between:
            return self._split(self._replay(number, state, context), state)
        if plan.calls[number] is None:
            return state
        call = self.calls[number]
        fill = partial(self._fill, state, context)
        args, kwargs = map_leaves(lambda leaf: fill(leaf) if type(leaf) is Mark else leaf, plan.calls[number])
        part, mode = _part(self.module, call.path), plan.modes.get(number)
        out = part(*args, **kwargs) if mode is None else mode.run(part, *args, **kwargs)
        hidden = self._split(out if isinstance(out, Tensor) else call.hidden_in(out), state)
        if not isinstance(state, dict):
            return hidden
        pairs = zip(leaves(call.answer), leaves(out), strict=True)
        given = {mark.key: leaf for mark, leaf in pairs if isinstance(mark, Mark)}
        return {"hidden": hidden} | {key: self._hand_on(key, given[key], state) for key in plan.handed[number]}

    def read(self, select: Callable[[Any], Any], state: Tree, context: Mapping[str, Any]) -> Any:
        """`select` of the module's output, as if its layers had ended with `state`; nothing else is computed."""
        if not _hidden(state).shape[0]:  # the answer for one row, without that row
            one = map_tensors(lambda tensor: tensor.new_ones(1, *tensor.shape[1:]), (state, dict(context)))
            return map_leaves(lambda leaf: leaf[:0] if isinstance(leaf, Tensor) else leaf, self.read(select, *one))
        if self.tail is None:
            return select(self._replay(self.num_steps, state, context))
        return map_leaves(Reading(self.module, self.tail, self.merged(state)).value, select(self.tail.output))

    def dry(self, given: Arguments) -> Notes:
        """One forward with stubs for layers, up to the last of them (the first, where code stands between)."""
        notes = Notes(self.module, self.calls, self.between, mode_now(_first(given)))
        answers: dict[str, Callable[..., Any]] = dict.fromkeys((call.path for call in self.calls), notes.layer)
        if self.replays:
            answers |= dict.fromkeys(self.before, notes.earlier)
        twin = twin_of(self.module, self._to_all if self.replays else self._to_layers, answers)
        with contextlib.suppress(EnoughError):
            twin(*_positional(given), **_named(given))
        if notes.hidden is None:
            raise CodeBetweenError("the layers were not called")
        return notes

    def merged(self, state: Tree) -> Tensor:
        """The hidden state of `state`, as the layers have it."""
        return merge_rows(_hidden(state), self.axis)

    @property
    def axis(self) -> Axis:
        """Where the rows are in the hidden state, as the layers have it."""
        axis = self.axes["hidden"]
        assert axis is not None  # `learn` refuses a hidden state without rows
        return axis

    def _arguments(self, inputs: Tree, named: Mapping[str, Any]) -> dict[str | int, Any]:
        given: dict[str | int, Any] = dict(self.constants)
        given.update(named)
        if isinstance(inputs, Mapping):
            given |= inputs
        elif isinstance(inputs, tuple):
            given |= dict(enumerate(inputs))
        else:
            name = 0 if self.first is None else self.first
            if given.get(name) is not None and name in named:
                raise ArgumentError(
                    str(name),
                    expected="it once: the inputs fill it",
                    got="another as well, which would not be read",
                    remedy=f"Call the model with {name} as the inputs, and leave it out of the context.",
                )
            given[name] = inputs
        # None in a place keeps those behind it in theirs.
        return {key: value for key, value in given.items() if value is not None or isinstance(key, int)}

    def _rows(self, given: Arguments) -> int:
        first = given.get(0 if self.first is None else self.first)
        if not isinstance(first, Tensor) or not first.dim():
            first = next((tensor for _, tensor in tensors(dict(given)) if tensor.dim()), None)
        if first is None:
            raise ArgumentError(
                "inputs", expected="tensors, batch first", got="none", remedy=f"Pass {self.first or 'one'}."
            )
        return first.shape[0]

    def _stem(self, given: Arguments, rows: int, shared: frozenset[str]) -> tuple[Tree, dict[str, Any]]:
        self._check_lengths(given)
        notes = self.dry(given)
        self._check_kind(given, rows, shared)
        names, axes, narrows = self._learned(notes, given, rows, shared)
        context: dict[str, Any] = {
            name: Shared(tensor) if axis is None else split_rows(tensor, axis, rows)
            for name, axis, tensor in zip(names, axes, notes.tensors, strict=True)
        }
        for name in MASKS:  # for readouts, also where the example had none
            if name not in given:
                continue
            if name in shared:
                if is_row_mask(given[name], 1):  # one mask for all rows, and none of pairs of positions
                    context[name] = Shared(given[name])
            elif name == self.mask or is_row_mask(given[name], rows):
                context[name] = given[name]
        kept = {}
        if self.replays:
            for key, value in given.items():
                kept[key] = Mark("given", f"given_{key}") if isinstance(value, Tensor) else value
                if isinstance(value, Tensor):
                    context[f"given_{key}"] = value if has_rows(value, rows) and key not in shared else Shared(value)
        calls = (*notes.calls, *[None] * (self.num_steps - len(notes.calls)))
        plan = _Plan(calls, self._handed(notes), notes.modes, names, axes, notes.before, kept, narrows)
        hidden = split_rows(notes.hidden, self.axis, rows)
        return {"hidden": hidden} if any(plan.handed) else hidden, {**context, PLAN: Shared(plan)}

    def _learned(self, notes: Notes, given: Arguments, rows: int, shared: frozenset[str]) -> _Learned:
        """Names of the noted tensors, and where their rows are: learned once for calls of one kind."""
        key = (frozenset(given), shared, tuple(_kind(tensor, rows) for tensor in notes.tensors))
        if key not in self._known:
            with torch.no_grad(), torch.random.fork_rng(_cuda(notes.hidden)):
                own = {name: value for name, value in given.items() if name not in shared}
                more = self._like(notes, {**given, **one_more_row(own, rows)})
                pairs = zip(notes.tensors, _counted(notes, more), strict=True)
                axes = tuple(grown_rows(small, large, rows, "an argument") for small, large in pairs)
                likes = axes, tuple(tensor.dtype for tensor in notes.tensors)  # what may share a batch has one name
                kind = self._kinds.setdefault(likes, len(self._kinds)) or ""
                names = tuple(f"noted{kind}_{slot}" for slot in range(len(axes)))
                narrows = self._learn_lengths(notes, given, rows, names, axes, shared)
            self._known[key] = names, axes, narrows
        return self._known[key]

    def _learn_lengths(
        self,
        notes: Notes,
        given: Arguments,
        rows: int,
        names: tuple[str, ...],
        axes: tuple[Axis | None, ...],
        shared: frozenset[str],
    ) -> bool:
        """Learn where the lengths of the noted tensors lie; whether that could be seen, where there is a mask."""
        mask = given.get(self.mask) if self.mask else None
        if mask is None or mask.dim() != 2:
            return True
        length = mask.shape[1]
        own = {name: value for name, value in given.items() if name not in shared}
        for key, value in own.items():
            known = self.seen_keys is not None and key in self.seen_keys  # of those it was seen whether they are long
            if not known and is_long(value, rows, length):
                self.lengths.setdefault(f"given_{key}", Along())
        own = {key: value for key, value in own.items() if f"given_{key}" in self.lengths}
        for change in (one_more_column, one_column_less):  # the longest that a module takes grows no more
            try:
                others = notes.tensors_in(self._like(notes, {**given, **change(own, rows, length)}))
            except (RuntimeError, IndexError, ValueError):
                continue
            if others is not None:
                break
        else:
            return False
        for name, axis, one, two in zip(names, axes, notes.tensors, others, strict=True):
            if axis is not None:
                one, two = split_rows(one, axis, rows), split_rows(two, axis, rows)
            small, large, shorter = (one, two, length) if change is one_more_column else (two, one, length - 1)
            dims = grown_lengths(small, large, shorter)
            if dims and (name not in self.lengths or self.lengths[name].dims != dims):
                self.lengths[name] = Along(dims, fill=_no_fill)
        return True

    def _check_lengths(self, given: Arguments) -> None:
        """Refuse what was as long as the sequences in the example, and is not so now: it would be cut with them."""
        mask = given.get(self.mask) if self.mask else None
        if self.padding is None or not isinstance(mask, Tensor) or mask.dim() != 2 or torch.compiler.is_compiling():
            return  # while it is traced, each has a size of its own
        for key, value in given.items():
            long = isinstance(value, Tensor) and value.dim() > 1 and f"given_{key}" in self.lengths
            if long and value.shape[1] != mask.shape[1]:
                raise ArgumentError(
                    str(key),
                    expected=f"{mask.shape[1]} positions, as {self.mask!r} has: they were equally many in the example "
                    "that the module was captured with",
                    got=f"shape {tuple(value.shape)}",
                    remedy="Capture the module with an example in which the two have different lengths.",
                )

    def _check_kind(self, given: Arguments, rows: int, shared: frozenset[str]) -> None:
        """See that a call with other arguments than the example goes as that did, once for each kind of call."""
        kind = self._kind_of(given)
        if kind is None or kind in self._ends or _but_for_numbers(kind) in self._ends:
            return
        two = {key: value[:2] if has_rows(value, rows) and key not in shared else value for key, value in given.items()}
        twins = [untraced_twin(self.module)]
        if any(module.training for module in self.module.modules()):  # where numbers may be drawn by chance
            twins.append(evaluating_twin(twins[0]))
        # Outside of inference mode, in which nobody sees what is written in place.
        with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(_cuda(_first(two))):
            alike = all(self._goes_alike(twin, two, shared, by_numbers=twin is twins[-1]) for twin in twins)
        torch.clear_autocast_cache()  # of weights that were cast without a gradient
        if not alike:
            raise ArgumentError(
                "inputs",
                expected="arguments with which the module does around and behind its layers, and hands on as numbers "
                "between them, what it did in the example that it was captured with",
                got=f"{', '.join(sorted(map(str, given)))}, with which it does something else",
                remedy="Capture the module with an example that has these arguments and no others, and these values of "
                "those that are no tensors.",
            )
        if len(self._ends) >= _KINDS:
            self._ends.clear()
        self._ends.add(kind)
        known = list(self._ends)  # other threads may add theirs
        if sum(_but_for_numbers(each) == _but_for_numbers(kind) for each in known) >= _ENOUGH:
            self._ends.add(_but_for_numbers(kind))

    def _goes_alike(self, twin: nn.Module, given: Arguments, shared: frozenset[str], *, by_numbers: bool) -> bool:
        """Whether a call of a twin goes as the example did; and whether full depth then is the module's own output.

        Nothing is said of a module that cannot be watched: one that is elsewhere, whose layers alone are fetched where
        they are called.
        """

        def copies() -> dict[str | int, Any]:  # since a call may write into them
            return {key: map_tensors(torch.clone, value) for key, value in given.items()}

        try:
            with torch.random.fork_rng(_cuda(_first(given))):  # full depth then draws the same
                watched = watch(twin, _positional(copies()), _named(copies()))
        except Exception:
            return True
        if not goes_alike(self.calls, self.tail, watched, reads_numbers=self.reads_numbers):
            return False
        if not by_numbers or self.reads is None:
            return True
        other = copy(self)
        other.module, other._ends = twin, {self._kind_of(given)}
        other._known, other._kinds, other.lengths = {}, {}, dict(self.lengths)
        with contextlib.suppress(Exception):  # of what is read otherwise
            state, noted = other._stem(copies(), self._rows(given), shared)
            context = unwrap(noted)
            for number in range(self.num_steps):
                state = other.step(number, state, context)
            pairs = zip(leaves(other.read(self.reads, state, context)), leaves(self.reads(watched.output)), strict=True)
            return all(close(mine, own) for mine, own in pairs if isinstance(mine, Tensor) and isinstance(own, Tensor))
        return True

    def _kind_of(self, given: Arguments) -> _Kind | None:
        """What tells a call from the example, by names and plain values, where that could matter; None elsewhere."""
        if self.seen_keys is None or torch.compiler.is_compiling():
            return None
        told = {
            key: _told(value)
            for key, value in given.items()
            if not (isinstance(value, Tensor) and key not in self.constants)
            and not _same_value(value, self.constants.get(key))
        }
        other = given.keys() ^ self.seen_keys
        return (frozenset(other), frozenset(told.items())) if other or told else None

    def _like(self, notes: Notes, given: Arguments) -> Notes:
        """A dry run with other arguments, which has the layers of `notes`: in evaluation if chance left some out."""
        layered = self._untraced()
        with contextlib.suppress(CodeBetweenError):  # of all layers, say
            other = layered.dry(given)
            if notes.ran <= other.ran:
                return other
        layered = copy(layered)
        layered.module = evaluating_twin(layered.module)
        return layered.dry(given)

    def _untraced(self) -> LayeredModule:
        """The same, whose calls in training mode leave no trace in the module: running statistics stay as they are."""
        if not any(module.training for module in self.module.modules()):
            return self
        other = copy(self)
        other.module = untraced_twin(self.module)
        return other

    def _handed(self, notes: Notes) -> tuple[frozenset[str], ...]:
        """What later layers read of what each layer hands on, besides the hidden state."""
        if not any(notes.reads):
            return (frozenset(),) * self.num_steps
        reads = [*notes.reads, *[frozenset()] * (self.num_steps - len(notes.reads))]
        return tuple(frozenset[str]().union(*reads[number + 1 :]) for number in range(self.num_steps))

    def _fill(self, state: Tree, context: Mapping[str, Any], leaf: Any) -> Any:
        """The tensor that a mark stands for, with the rows that still run."""
        if not isinstance(leaf, Mark):
            return leaf
        if leaf.kind == "given":
            return context[leaf.key]
        if leaf.kind == "noted":
            plan: _Plan = context[PLAN]
            axis, value = plan.rows[leaf.key], context[plan.names[leaf.key]]
            return value if axis is None else merge_rows(value, axis)
        if leaf.key == "hidden":
            return self.merged(state)
        handed = state[leaf.key]
        axis = self.axes[leaf.key]
        return handed.value if isinstance(handed, Shared) or axis is None else merge_rows(handed, axis)

    def _split(self, hidden: Tensor, state: Tree) -> Tensor:
        return hidden if self.axis == _FIRST else split_rows(hidden, self.axis, _hidden(state).shape[0])

    def _hand_on(self, key: str, tensor: Tensor, state: Tree) -> Tensor | Shared:
        axis, rows = self.axes[key], _hidden(state).shape[0]
        if axis is None or tensor.shape[axis.dim] % rows or (tensor.shape[axis.dim] < rows):
            return Shared(tensor)
        return split_rows(tensor, axis, rows)

    def _replay(self, upto: int, state: Tree, context: Mapping[str, Any]) -> Any:
        """The module's forward again: layers before `upto` answer `state`, and what layer `upto` gives is returned.

        Beyond the last layer, it is the module's own output.
        """
        plan: _Plan = context[PLAN]
        hidden = self.merged(state)
        expected, left = iter(self.calls), {path: list(answers) for path, answers in plan.before.items()}
        found: list[Any] = []

        spare = hidden.clone()  # some forwards write into what layers give

        def fake(leaf: Any, standing: Tensor) -> Any:
            if not is_state(leaf):
                return leaf
            return standing if leaf.key == "hidden" else hidden.new_zeros(())

        ended = False

        def layer(path: str, *args: Any, **kwargs: Any) -> Any:
            nonlocal ended
            if ended:  # a module that stands between the layers follows the last of them, too
                return _part(self.module, path)(*args, **kwargs)
            call = next(expected, None)
            while call is not None and call.path != path:
                if call.last and self.module.training:
                    raise CodeBetweenError(
                        f"{call.path} was left out in training; let its code leave none out by chance"
                    )
                call = next(expected, None)
            if call is None:
                raise CodeBetweenError(f"{path} was called once more")
            if call.layer < upto:
                ended = call.last and call.layer + 1 == self.num_steps
                standing = hidden.clone() if call.layer == upto - 1 and call.last else spare
                return map_leaves(lambda leaf: fake(leaf, standing), call.answer)
            answer = _part(self.module, path)(*args, **kwargs)
            if call.last:
                found.append(call.hidden_in(answer))
                raise EnoughError
            return answer

        def earlier(path: str, *args: Any, **kwargs: Any) -> Any:
            if not left.get(path):
                return self.module.get_submodule(path)(*args, **kwargs)
            answer = left[path].pop(0)  # copies, since some forwards write into them
            return map_leaves(lambda leaf: _copied(self._fill(state, context, leaf)), answer)

        answers: dict[str, Callable[..., Any]] = dict.fromkeys((call.path for call in self.calls), layer)
        twin = twin_of(self.module, self._to_all, answers | dict.fromkeys(self.before, earlier))
        given = map_leaves(partial(self._fill, state, context), dict(plan.given))
        try:
            return twin(*_positional(given), **_named(given))
        except EnoughError:
            return found[0]


class LayeredStep:
    """One layer as a step. An object without weights, so that copies of a model copy the module with it.

    Args:
        layered: The module.
        number: Which layer, counted from 0.
    """

    borrows_modules = True

    def __init__(self, layered: LayeredModule, number: int) -> None:
        self.layered, self.number = layered, number

    def __call__(self, hidden: Tree, **context: Any) -> Tree:
        """Run the layer and give the state after it."""
        return self.layered.step(self.number, hidden, context)


class LayeredReadout:
    """A part of the module's own output as features.

    Its signature says whether it reads the context: only where the module's code must run again, with its arguments.

    Args:
        layered: The module.
        select: A function from the module's output to the part that is read.
    """

    borrows_modules = True

    def __init__(self, layered: LayeredModule, select: Callable[[Any], Any]) -> None:
        self.layered, self.select = layered, select
        self.__signature__ = Signature([_HIDDEN] if layered.tail is not None else [_HIDDEN, _CONTEXT])

    def __call__(self, hidden: Tree, **context: Any) -> Tensor:
        """Read the features of `hidden`."""
        features: Tensor = self.layered.read(self.select, hidden, context)
        return features


_HIDDEN = Parameter("hidden", Parameter.POSITIONAL_OR_KEYWORD)
_CONTEXT = Parameter("context", Parameter.VAR_KEYWORD)


def _part(module: Any, path: str) -> Any:
    """`module.get_submodule(path)`, without its checks."""
    for name in path.split("."):
        module = module._modules[name]
    return module


def _hidden(state: Tree) -> Tensor:
    hidden: Tensor = state["hidden"] if isinstance(state, dict) else state
    return hidden


def _no_fill(_: Tensor) -> float:
    """What stands at padding in a noted tensor is not known: it may be a mask, a table or a state."""
    raise ArgumentError(
        "stream",
        expected="rows of one length, for a captured module",
        got="rows of different lengths in one batch",
        remedy="Pad the examples of a stream to one length, or write an adapter that declares ponder.Padding.",
    )


def _kind(tensor: Tensor, rows: int) -> Any:
    return tensor.dtype, tuple((_equal(size, 1), _equal(size, rows)) for size in tensor.shape)


def _told(value: Any) -> tuple[Any, ...]:
    """What tells plain values apart; of numbers with a point, which may differ from call to call, the type alone."""
    if isinstance(value, Mapping):
        return type(value), frozenset((key, _told(each)) for key, each in value.items())
    if isinstance(value, list | tuple):
        return type(value), tuple(map(_told, value))
    return (type(value), value) if isinstance(value, int | str) else (type(value),)


def _but_for_numbers(kind: _Kind) -> _Kind:
    """A kind of call whatever its whole numbers are, of which one may count something and differ in every call."""
    other, told = kind
    return other, frozenset((key, value[:1] if value[0] is int else value) for key, value in told)


def _same_value(value: Any, other: Any) -> bool:
    return value is other or (
        isinstance(value, bool | int | float | str) and type(other) is type(value) and value == other
    )


def _equal(size: Any, other: Any) -> bool:
    """Whether two sizes are equal; while a module is traced, whether they are the same symbol, which bounds nothing."""
    symbolic = isinstance(size, torch.SymInt), isinstance(other, torch.SymInt)
    if any(symbolic):
        return all(symbolic) and bool(size.node.expr == other.node.expr)
    return bool(size == other)


def _counted(notes: Notes, more: Notes) -> list[Tensor]:
    """The tensors of a call with one row more; refuse numbers among the arguments of a layer that follow the rows."""
    found = notes.tensors_in(more)
    if found is None or told_otherwise(notes, more):
        raise ArgumentError(
            "module",
            expected="layers whose arguments, but for tensors, do not depend on the number of rows",
            got="other arguments with one row more",
            remedy="Rows cannot leave; give PonderWrapper a stem and steps that know how to tell their layers.",
        )
    return found


def is_row_mask(value: Any, rows: int) -> bool:
    """Whether an argument is a mask `(rows, length)`, and no causal one `(length, length)` of the whole batch."""
    return isinstance(value, Tensor) and value.dim() == 2 and value.shape[0] == rows


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _positional(given: Arguments) -> tuple[Any, ...]:
    return tuple(given[place] for place in sorted(key for key in given if isinstance(key, int)))


def _named(given: Arguments) -> dict[str, Any]:
    return {key: value for key, value in given.items() if isinstance(key, str)}


def _first(given: Arguments) -> Tensor:
    return tensors(dict(given))[0][1]


def _cuda(tensor: Tensor) -> list[int]:
    return [tensor.device.index or 0] if tensor.device.type == "cuda" else []
