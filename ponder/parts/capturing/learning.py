"""How a module is called layer by layer: seen in calls of a copy in evaluation mode, and proved before it is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ponder._utils.trees import leaves, map_leaves, map_tensors, tensors
from ponder.errors import ArgumentError, ArgumentTypeError
from ponder.parts.capturing.ending import find_tail, numbers_apart
from ponder.parts.capturing.growth import grown_rows, one_more_column, one_more_row
from ponder.parts.capturing.joinable import joinable
from ponder.parts.capturing.layered import MASKS, LayeredModule, is_row_mask
from ponder.parts.capturing.modes import mode_now
from ponder.parts.capturing.notes import CodeBetweenError, LayerCall, Notes, first_floating, told_otherwise
from ponder.parts.capturing.proof import learned_padding, prove, reads_numbers, refusal
from ponder.parts.capturing.twin import evaluating_twin, training_twin, unbound_forwards, untraced_twin, varied_twin
from ponder.parts.capturing.watching import (
    Asked,
    Call,
    Layers,
    Mark,
    Tail,
    Watched,
    find_layers,
    same_call,
    watch,
    widened,
)

__all__ = ["first_output", "learn"]


def learn(
    module: nn.Module,
    example: Any,
    *,
    layers: str | None = None,
    count: int | None = None,
    reads: Callable[[Any], Any] | None = None,
) -> LayeredModule:
    """Learn how a module is called layer by layer, and prove it.

    Args:
        module: The module.
        example: What it is called with.
        layers: The name of the list of layers; found where None.
        count: How many layers there should be, where the caller knows.
        reads: A function from the module's output to all that readouts will read of it; its first tensor where None.

    Raises:
        ArgumentError: What `capture` refuses.
    """
    shadow = evaluating_twin(_checked(module))
    try:
        layered = _learn(shadow, _read_example(example), layers, count, reads or first_output)
    except ArgumentError as error:
        path = next(unbound_forwards(module), None) if error.argument == "module" else None
        if path is None:
            raise
        raise _unbound(path, error) from error
    layered.module = module
    return layered


def _learn(
    shadow: nn.Module,
    given: dict[str | int, Any],
    layers: str | None,
    count: int | None,
    reads: Callable[[Any], Any],
) -> LayeredModule:
    """Learn and prove it of a twin in evaluation mode."""
    with torch.inference_mode(False), torch.no_grad():  # in inference mode, nobody counts who writes into a tensor
        seen = _see(shadow, given, reads)
        with torch.random.fork_rng(_devices(seen.given)):
            layered = _first_proved(seen, find_layers(shadow, seen.watched, layers, count))
            padding = learned_padding(layered, seen.given, seen.rows, seen.reads)
            layered.padding = None if padding is None else joinable(layered, padding, seen.given, reads)
    output = seen.watched.output
    if isinstance(output, Mapping):
        layered.shapes = {name: tuple(part.shape) for name, part in output.items() if isinstance(part, Tensor)}
    layered.reads = reads
    layered.given_names = frozenset(name for name in seen.given if isinstance(name, str))
    layered.seen_keys = frozenset(seen.given)
    return layered


def first_output(output: Any) -> Any:
    """The first tensor of a module's output, or the mark that stands for it."""
    return next(leaf for leaf in leaves(output) if isinstance(leaf, Tensor | Mark))


@dataclass(frozen=True)
class _Seen:
    """A module in evaluation mode, what it was called with, and what was seen of the call."""

    module: nn.Module
    given: Mapping[str | int, Any]
    rows: int
    watched: Watched
    reads: Callable[[Any], Any]

    def again(self, given: Mapping[str | int, Any]) -> Watched:
        return _watch(self.module, given)

    def copied(self) -> dict[str | int, Any]:
        """What it was called with, for a call that may write into it."""
        given: dict[str | int, Any] = map_tensors(torch.clone, dict(self.given))
        return given

    @property
    def compiled(self) -> bool:
        """Whether layers are of `torch.compile`, which would compile for each of many calls, and no more after some."""
        return any(hasattr(part, "_orig_mod") for part in self.module.modules())

    @cached_property
    def others(self) -> list[Watched]:
        """Calls that may go otherwise: with longer rows, in training, and where a tensor says yes instead of no."""
        if self.compiled:
            return []
        first = next(tensor for _, tensor in tensors(dict(self.given)) if tensor.dim())
        longer = one_more_column(self.given, self.rows, first.shape[1]) if first.dim() > 1 else None
        asked = Asked()
        with asked:
            again = _attempt(untraced_twin(self.module), self.copied())
        calls = [again, _attempt(training_twin(self.module), self.copied())]
        calls += [_attempt(self.module, longer)] if longer is not None else []
        for question in range(asked.questions):
            with Asked(question):
                calls.append(_attempt(untraced_twin(self.module), self.copied()))
        return [call for call in calls if call is not None]

    @cached_property
    def in_modes(self) -> list[Watched]:
        """Calls with gradients and under autocast, which show where the module's own code turns these off."""
        if self.compiled:
            return []
        mode = mode_now(next(tensor for _, tensor in tensors(dict(self.given))))
        cast = mode._replace(dtype=torch.bfloat16)
        calls = [
            _attempt(untraced_twin(self.module), self.copied(), with_gradients=True),
            cast.run(_attempt, untraced_twin(self.module), self.copied()),
        ]
        return [call for call in calls if call is not None]

    def one_more(self) -> Watched:
        """Call it with one row more."""
        try:
            return self.again(one_more_row(self.given, self.rows))
        except ArgumentError as error:
            raise ArgumentError(
                "example",
                expected=f"inputs that the module takes with one row more, too: tensors whose first size is {self.rows}"
                " have a row each",
                got=error.got,
                remedy=f"Pass an example of another number of rows, where a tensor for the whole batch is {self.rows} "
                "long.",
            ) from error


def _first_proved(seen: _Seen, found: list[Layers]) -> LayeredModule:
    """The first reading of the call that is proved: of the likeliest list first, of layers called directly first.

    Layers that are told by a number what holds of some rows are read with the code between them, if they can be: it
    tells anew what holds of those that stay.
    """
    refused: ArgumentError | None = None
    for layers in found:
        told: LayeredModule | None = None
        for between in (False, True):
            try:
                layered = _read(seen, _widened(seen.watched, layers) if between else layers, between=between)
                prove(layered, seen.copied(), seen.rows, seen.watched.output, seen.reads)
                _prove_of_other_weights(layered, seen)
                _prove_of_training(layered, seen)
                layered.reads_numbers = reads_numbers(layered, seen.copied(), seen.reads)
                _check_handed(layered, seen)
            except CodeBetweenError as error:
                refusal_of_it = refusal("layers that are called with what the one before gave", error.met)
            except ArgumentError as error:
                refusal_of_it = error
            except Exception as error:  # of the module's own code, which reads what a stub does not give
                refusal_of_it = refusal("layers that can be called one by one", f"{type(error).__name__}: {error}")
            else:
                if between or not _tells_of_rows(layered, seen):
                    return layered
                told = layered
        if told is not None:
            return told
        refused = refused or refusal_of_it
    once_more, again = seen.again(seen.copied()), seen.again(seen.copied())  # a first call may set something up
    pairs = zip(_tensors(seen.reads(once_more.output)), _tensors(seen.reads(again.output)), strict=True)
    if not all(torch.equal(once, twice) for once, twice in pairs):
        raise refusal("the same output when it is called again, in evaluation mode", "another: it draws random numbers")
    assert refused is not None  # `found` is not empty
    raise refused


def _prove_of_other_weights(layered: LayeredModule, seen: _Seen) -> None:
    """Prove it where parameters that do nothing yet, as new ones of zeros or ones, do something."""
    twin = varied_twin(seen.module)
    if twin is None:
        return
    try:
        output = _watch(twin, seen.copied()).output
    except Exception:  # weights that it cannot have, whatever its own code says to them
        return
    if any(bool(tensor.isnan().any()) for tensor in _tensors(seen.reads(output))):
        return
    layered.module = twin
    try:
        prove(layered, seen.copied(), seen.rows, output, seen.reads)
    except ArgumentError as error:
        raise refusal(
            error.expected, f"{error.got}, once parameters that are one number throughout have learned others"
        ) from error
    finally:
        layered.module = seen.module


def _prove_of_training(layered: LayeredModule, seen: _Seen) -> None:
    """See that layers are called alike in training mode, where dropout between them, say, has effect."""
    layered.module = training_twin(seen.module)
    try:
        layered.dry(seen.copied())
    except CodeBetweenError:
        raise
    except Exception:  # of its own: inputs too small to be learned from, or labels that are not there
        return
    finally:
        layered.module = seen.module


def _tells_of_rows(layered: LayeredModule, seen: _Seen) -> bool:
    """Whether a number among the arguments of a layer, a flag say, hangs on what stands in tensors of the batch."""
    plain, questions = _answered(layered, seen)
    if plain is None:
        return False
    others = (_answered(layered, seen, otherwise=question)[0] for question in range(questions))
    return any(other is not None and told_otherwise(plain, other) for other in others)


def _answered(layered: LayeredModule, seen: _Seen, otherwise: int | None = None) -> tuple[Notes | None, int]:
    """What the layers are called with where one question to a tensor is answered otherwise, and how many there are."""
    layered.module, asked = untraced_twin(seen.module), Asked(otherwise)
    try:
        with asked:
            return layered.dry(seen.copied()), asked.questions
    except Exception:  # of its own, which takes this answer for wrong inputs
        return None, asked.questions
    finally:
        layered.module = seen.module


def _read(seen: _Seen, layers: Layers, *, between: bool) -> LayeredModule:
    """Read the watched call as stem, layers and tail, which is not proved yet."""
    if not between and any(len(layer) > 1 for layer in layers.calls):
        raise CodeBetweenError(f"{layers.name!r} holds lists of modules, not layers that are called")
    opening, entering = layers.calls[0][0], _entering(layers)
    calls = tuple(
        LayerCall(number, call.path, _answer(call.output, entering, call is layer[-1]), call is layer[-1])
        for number, layer in enumerate(layers.calls)
        for call in layer
    )
    closing = next(call for call in calls if call.last)
    early = [call for call in seen.watched.calls if call.path and 0 <= call.end < opening.start]
    before = dict.fromkeys(call.path for call in seen.watched.outermost(early))
    more = find_layers(seen.module, seen.one_more(), layers.name, None)[0]
    pairs = zip(
        leaves(layers.calls[0][-1].output), leaves(more.calls[0][-1].output), leaves(closing.answer), strict=True
    )
    axes = {
        mark.key: grown_rows(small, large, seen.rows, "what a layer gives")
        for small, large, mark in pairs
        if isinstance(mark, Mark)
    }
    if axes["hidden"] is None:
        raise ArgumentError(
            "module",
            expected="layers that give a hidden state with a dimension for the rows",
            got=f"one of shape {tuple(entering.shape)} for {seen.rows} rows and for one more",
            remedy="Pass an example with the batch first, of rows that the module treats one by one.",
        )
    first = next((key for key, value in seen.given.items() if isinstance(value, Tensor)), None)
    return LayeredModule(
        seen.module,
        calls,
        before=before,
        tail=_tail(seen, layers.calls[-1][-1], calls[-1]),
        axes=axes,
        between=between,
        first=first if isinstance(first, str) else None,
        constants={key: value for key, value in seen.given.items() if not isinstance(value, Tensor)},
        mask=next((name for name in MASKS if is_row_mask(seen.given.get(name), seen.rows)), None),
    )


def _tail(seen: _Seen, last: Call, layer: LayerCall) -> Tail | None:
    """What follows the layers, where it is a chain of calls, and the same in other calls; None elsewhere.

    Args:
        seen: The call that was seen.
        last: The call in it with which the layers end.
        layer: What is known of that call.
    """
    tail = find_tail(seen.watched, last, layer)
    if not tail.gives(seen.reads):
        return None
    for other in seen.others:
        end = same_call(other, seen.watched, last)
        if end is not None and not tail.is_that_of(find_tail(other, end, layer)):
            return None
    for other in [seen.watched, *seen.in_modes]:
        end = same_call(other, seen.watched, last)
        behind = [] if end is None else other.outermost([call for call in other.calls if call.start > end.end])
        if any(call.mode is not None for call in behind):
            return None
    return tail


def _check_handed(layered: LayeredModule, seen: _Seen) -> None:
    """Refuse numbers that layers hand on, which are read and are others in another call: the example's would be."""
    paths = {call.path for call in layered.calls} if layered.reads_numbers else ()
    for call in (call for call in seen.watched.calls if call.path in paths):
        for other in seen.others:
            same = same_call(other, seen.watched, call)
            apart = None if same is None else numbers_apart(call.output, same.output)
            if apart is not None:
                raise refusal(
                    "layers that hand on tensors, or numbers that are the same in every call",
                    f"{apart[0]} from {call.path!r}, and {apart[1]} in a call with longer rows or in training",
                )


def _widened(watched: Watched, layers: Layers) -> Layers:
    """`widened`, but that what makes the state before the first layer, a convolution, say, stays out of that."""
    wide = widened(watched, layers)
    own = Layers(wide.name, (layers.calls[0], *wide.calls[1:]))
    return own if not _keeps_shape(wide) and _keeps_shape(own) else wide


def _keeps_shape(layers: Layers) -> bool:
    try:
        _entering(layers)
    except ArgumentError:
        return False
    return True


def _entering(layers: Layers) -> Tensor:
    """The hidden state that enters the layers; what they give must be of its shape."""
    opening = layers.calls[0][0]
    entering = first_floating((opening.args, opening.kwargs))
    for number, layer in enumerate(layers.calls, start=1):
        left = [leaf for leaf in _tensors(layer[-1].output) if leaf.is_floating_point()]
        if not _tensors(layer[-1].output):
            raise ArgumentError(
                "module",
                expected="layers that give the hidden state as a tensor, or in a tuple, list or dict",
                got=f"a {type(layer[-1].output).__name__} from layer {number} of {layers.name!r}",
                remedy="Let the layers give one of these, or give PonderWrapper the stem and the steps yourself.",
            )
        if not any(leaf.shape == entering.shape for leaf in left):
            raise ArgumentError(
                "module",
                expected="layers that keep the shape of the hidden state",
                got=f"{tuple(left[0].shape) if left else 'integers'} after layer {number} of {layers.name!r}, where "
                f"{tuple(entering.shape)} entered",
                remedy="Name a list of layers between two changes of shape by layers=…, or give PonderWrapper the stem "
                "and the steps yourself.",
            )
    return entering


def _answer(output: Any, entering: Tensor, last: bool) -> Any:
    """`output` with marks in the place of its tensors: the hidden state, and others by their place.

    What a part of a layer gives in the shape of the hidden state is taken for one where the part is left out; where the
    layer ends, only the first is.
    """
    places, seen = iter(range(1 << 30)), False

    def mark(leaf: Any) -> Any:
        nonlocal seen
        place = str(next(places))
        if not isinstance(leaf, Tensor):
            return leaf
        if leaf.shape == entering.shape and leaf.is_floating_point() and not (last and seen):
            seen = True
            return Mark("state", "hidden")
        return Mark("state", place)

    return map_leaves(mark, output)


def _unbound(path: str, error: ArgumentError) -> ArgumentError:
    """What is said of a forward that calls the module itself, where its layers had to be watched."""
    forward = ".".join(filter(None, ("module", path, "forward")))
    return ArgumentError(
        "module",
        expected=f"{error.expected}; and forwards put on a module that are bound to it",
        got=f"{error.got.rstrip('.')}; and {forward}, a function that calls what it holds itself, where nobody watches",
        remedy=f"Write it as a function of the module, and bind it: {forward} = types.MethodType(function, "
        f"{forward.rpartition('.')[0]}).",
    )


def _checked(module: nn.Module) -> nn.Module:
    if isinstance(module, nn.Module) and hasattr(module, "_orig_mod"):
        raise ArgumentError(
            "module",
            expected="the module as it was before torch.compile, whose layers can be seen",
            got=f"a {type(module).__name__}",
            remedy="Pass module._orig_mod, and compile the steps: ponder.compile_steps(model).",
        )
    if isinstance(module, nn.Module):
        return module
    raise ArgumentTypeError(
        "module", expected="an nn.Module", got=type(module).__name__, remedy="Pass the encoder itself."
    )


def _read_example(example: Any) -> dict[str | int, Any]:
    """Read the example as arguments by name or place."""
    given: dict[str | int, Any] = {0: example}
    if isinstance(example, Mapping):
        given = {key: value for key, value in example.items() if value is not None}
    elif isinstance(example, tuple):
        given = dict(enumerate(example))
    return {key: value.clone() if isinstance(value, Tensor) else value for key, value in given.items()}


def _see(module: nn.Module, given: Mapping[str | int, Any], reads: Callable[[Any], Any]) -> _Seen:
    first = next((tensor for _, tensor in tensors(dict(given)) if tensor.dim()), None)
    if first is None or first.shape[0] < 2:
        raise ArgumentError(
            "example",
            expected="tensors of two rows or more, batch first, since rows must be seen to leave",
            got="no tensor" if first is None else f"a tensor of shape {tuple(first.shape)}",
            remedy="Pass a small batch of what the module is called with.",
        )
    for key, value in given.items():
        nested = () if isinstance(value, Tensor) else tensors(value)
        if any(tensor.dim() and tensor.shape[0] == first.shape[0] for _, tensor in nested):
            raise ArgumentError(
                "example",
                expected="tensors with rows as arguments of their own, so that rows can leave",
                got=f"some of {first.shape[0]}, as many as there are rows, within the argument {key!r}, a "
                f"{type(value).__name__}",
                remedy="Wrap the module in one whose forward takes them one by one; or, where they are for the whole "
                "batch, pass an example of another number of rows.",
            )
    with torch.random.fork_rng(_devices(given)):
        watched = _watch(module, given)
    if any(bool(tensor.isnan().any()) for tensor in _tensors(reads(watched.output))):
        raise ArgumentError(
            "example",
            expected="inputs for which the module's output is a number everywhere, to be compared with",
            got="an output with NaN",
            remedy="Look for NaN in the example and in the weights, and for rows of which everything is masked.",
        )
    return _Seen(module, given, first.shape[0], watched, reads)


def _watch(module: nn.Module, given: Mapping[str | int, Any], *, with_gradients: bool = False) -> Watched:
    args = tuple(value for key, value in given.items() if isinstance(key, int))
    named = {key: value for key, value in given.items() if isinstance(key, str)}
    try:
        return watch(module, args, named, with_gradients=with_gradients)
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError, AssertionError) as error:
        raise ArgumentError(
            "example",
            expected="inputs that the module can be called with",
            got=f"{type(error).__name__}: {error}",
            remedy="Call module(example) first, to see what it wants.",
        ) from error


def _attempt(module: nn.Module, given: Mapping[str | int, Any], *, with_gradients: bool = False) -> Watched | None:
    """The call, if the module takes it."""
    try:
        return _watch(module, given, with_gradients=with_gradients)
    except Exception:  # of its own: inputs that are too long, or an answer that it takes for wrong inputs
        return None


def _tensors(output: Any) -> list[Tensor]:
    return [leaf for leaf in leaves(output) if isinstance(leaf, Tensor)]


def _devices(given: Mapping[str | int, Any]) -> list[int]:
    first = next((tensor for _, tensor in tensors(dict(given))), None)
    return [first.device.index or 0] if first is not None and first.device.type == "cuda" else []
