"""`capture`: any module that runs a list of layers, read as stem, steps and readout by watching it run.

The module is not changed, not even for a moment. A call makes a *twin* (`ponder.parts.twin`) whose layers are stubs: the
twin's forward is the stem, the stubs note what each layer would have been called with, and a step calls the real layer
with that, for the rows that still run. Which dimension of a tensor holds the rows, and which the length of a sequence, is
learned by growth: from a call with one row more and one with one column more. What follows the layers is read off the
same forward.

Nothing of this is believed before it is proved: `capture` compares full depth with the module bit for bit, lets rows
leave, and refuses with the reason what does not hold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ponder._utils.trees import Tree, map_tensors, take_rows, tensors, unwrap
from ponder.errors import ArgumentError, ArgumentTypeError
from ponder.parts.growth import grown_lengths, grown_rows, one_more_column, one_more_row
from ponder.parts.layered import CodeBetweenError, LayerCall, LayeredModule, LayeredReadout, first_floating
from ponder.parts.padding import Along, Padding
from ponder.parts.steps import Steps
from ponder.parts.twin import evaluating
from ponder.parts.watching import Layers, Mark, Watched, find_layers, find_tail, leaves, map_leaves, watch

__all__ = ["Captured", "capture", "learn"]

_MASKS: Mapping[str, int | bool] = {"attention_mask": 1, "mask": 1, "src_key_padding_mask": False}
"""Names of masks `(batch, length)`, and what stands in them at real positions."""


@dataclass(frozen=True)
class Captured:
    """The parts of a module, for `ponder.PonderWrapper`.

    Args:
        stem: Inputs to the hidden state h_0 and the context of the steps; it registers the module, and with it all
            weights, under ``module``.
        steps: One step a layer.
        readout: Hidden state to features: what the module itself would answer if its layers had ended there.
        padding: Where lengths lie, if the example had a mask and batches may get narrower; else None.
    """

    stem: nn.Module
    steps: Steps
    readout: Callable[..., Tensor]
    padding: Padding | None


def capture(
    module: nn.Module,
    example: Any,
    *,
    layers: str | None = None,
    features: Callable[[Any], Any] | None = None,
) -> Captured:
    """Read a module as stem, steps and readout, and prove on an example that they compute what it computes.

    Args:
        module: Any module whose forward runs a list of layers one after the other. It is not changed, and its weights
            are used, not copied. The readout of a classifier gives its logits: wrap it with `head=nn.Identity()`.
        example: What `module` is called with, for two different rows or more, the longest first: a tensor, a tuple of
            positional arguments, or a dict of keyword arguments, whose first is then the `inputs` of the wrapper and
            the others its context. What is no tensor is passed in every call.
        layers: The name of the list of layers (``"encoder.layer"``), where another than the largest is meant.
        features: From the module's output to the tensor in it that the readout gives; its first tensor where None.

    Raises:
        ArgumentError: The module cannot be read in this way; says what was met and what to do.

    Example:
        >>> layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        >>> encoder = nn.TransformerEncoder(layer, num_layers=3, enable_nested_tensor=False)
        >>> parts = capture(encoder, torch.randn(2, 5, 8))
        >>> model = ponder.PonderWrapper(
        ...     parts.steps, stem=parts.stem, readout=lambda hidden: hidden.mean(1), head=nn.Linear(8, 2)
        ... )
        >>> model.eval()(torch.randn(4, 5, 8)).outputs.shape
        torch.Size([4, 2])
    """
    layered = learn(module, example, layers=layers)
    readout = LayeredReadout(layered, _first_tensor if features is None else features)
    return Captured(CapturedStem(layered), layered.steps(), readout, layered.padding)


class CapturedStem(nn.Module):
    """The stem of a captured module, which registers it.

    Args:
        layered: What was learned of the module.
    """

    def __init__(self, layered: LayeredModule) -> None:
        super().__init__()
        self.module = layered.module
        self.layered = layered

    def forward(self, inputs: Tree, **context: Any) -> tuple[Tree, dict[str, Any]]:
        """h_0 and the context of the steps."""
        return self.layered.stem(inputs, **context)


def learn(module: nn.Module, example: Any, *, layers: str | None = None, count: int | None = None) -> LayeredModule:
    """What `capture` learns of a module, proved; arguments as there.

    Args:
        module: The module.
        example: What it is called with.
        layers: The name of the list of layers.
        count: How many layers there must be, where the caller knows.
    """
    given, first, constants = _read_example(module, example)
    rows = _check_rows(given)
    shadow = evaluating(module)
    with torch.random.fork_rng(_devices(given)), torch.no_grad():
        watched = _watch(shadow, given)
        found = find_layers(shadow, watched, layers, count)
        layered = _read(shadow, found, watched, given, rows, first, constants)
        _prove_in_some_way(layered, found, given, rows, watched.output)
        layered.padding = _learned_padding(layered, given, rows)
    layered.module = module
    return layered


def _read_example(module: nn.Module, example: Any) -> tuple[dict[str | int, Any], str | None, dict[str, Any]]:
    if not isinstance(module, nn.Module):
        raise ArgumentTypeError(
            "module", expected="an nn.Module", got=type(module).__name__, remedy="Pass the encoder itself."
        )
    if isinstance(example, Mapping):
        given: dict[str | int, Any] = {key: value for key, value in example.items() if value is not None}
        constants = {str(key): value for key, value in given.items() if not isinstance(value, Tensor)}
        return given, next((str(key) for key, value in given.items() if isinstance(value, Tensor)), None), constants
    return dict(enumerate(example)) if isinstance(example, tuple) else {0: example}, None, {}


def _check_rows(given: Mapping[str | int, Any]) -> int:
    first = next((tensor for _, tensor in tensors(dict(given)) if tensor.dim()), None)
    if first is None or first.shape[0] < 2:
        raise ArgumentError(
            "example",
            expected="tensors of two rows or more, batch first, since rows must be seen to leave",
            got="no tensor" if first is None else f"a tensor of shape {tuple(first.shape)}",
            remedy="Pass a small batch of what the module is called with.",
        )
    return first.shape[0]


def _watch(module: nn.Module, given: Mapping[str | int, Any]) -> Watched:
    return watch(module, *_split(given))


def _split(given: Mapping[str | int, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    args = tuple(value for key, value in given.items() if isinstance(key, int))
    return args, {key: value for key, value in given.items() if isinstance(key, str)}


def _read(
    module: nn.Module,
    found: Layers,
    watched: Watched,
    given: Mapping[str | int, Any],
    rows: int,
    first: str | None,
    constants: Mapping[str, Any],
) -> LayeredModule:
    """What the watched call shows; not proved yet."""
    opening = found.calls[0][0]
    entering = _entering(found)
    calls = [
        LayerCall(number, call.path, _answer(call.output, entering, call is layer[-1]), call is layer[-1])
        for number, layer in enumerate(found.calls)
        for call in layer
    ]
    early = [call for call in watched.calls if call.path and 0 <= call.end < opening.start]
    before = dict.fromkeys(call.path for call in watched.outermost(early))
    closing = next(call for call in calls if call.last)
    tail = find_tail(watched, found, lambda output: _hidden_of(closing.answer, output))
    more = find_layers(module, _watch(module, one_more_row(given, rows)), found.name, len(found.calls))
    one, two = (list(leaves(calls_[0][-1].output)) for calls_ in (found.calls, more.calls))
    axes = {
        mark.key: grown_rows(small, large, rows, "what a layer gives")
        for mark, small, large in zip(leaves(closing.answer), one, two, strict=True)
        if isinstance(mark, Mark)
    }
    if axes["hidden"] is None:
        raise ArgumentError(
            "module",
            expected="layers that give a hidden state with a dimension for the rows",
            got=f"one of shape {tuple(entering.shape)} for {rows} rows and for {rows + 1}",
            remedy="Pass an example with the batch first, of rows that the module treats one by one.",
        )
    mask = next((name for name in _MASKS if name in given), None)
    layered = LayeredModule(module, tuple(calls), before, tail, axes, first, constants, mask)
    layered.between = any(len(layer) > 1 for layer in found.calls)
    return layered


def _entering(found: Layers) -> Tensor:
    """The hidden state that enters the layers; what they give must be of its shape."""
    opening = found.calls[0][0]
    entering = first_floating((opening.args, opening.kwargs))
    for number, layer in enumerate(found.calls, start=1):
        left = [leaf for leaf in leaves(layer[-1].output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        if not any(leaf.shape == entering.shape for leaf in left):
            raise ArgumentError(
                "module",
                expected="layers that keep the shape of the hidden state",
                got=f"{tuple(left[0].shape) if left else 'no tensor'} after layer {number} of {found.name!r}, where "
                f"{tuple(entering.shape)} entered",
                remedy="Name a list of layers between two changes of shape by layers=…, or give PonderWrapper the stem "
                "and the steps yourself.",
            )
    return entering


def _answer(output: Any, entering: Tensor, last: bool) -> Any:
    """`output` with marks in the place of its tensors: one is the hidden state, the others are known by their place."""
    place, hidden_seen = iter(range(1 << 30)), False

    def mark(leaf: Any) -> Any:
        nonlocal hidden_seen
        key = str(next(place))
        if not isinstance(leaf, Tensor):
            return leaf
        if leaf.shape == entering.shape and leaf.is_floating_point() and not (last and hidden_seen):
            hidden_seen = True
            return Mark("state", "hidden")
        return Mark("state", key)

    return map_leaves(mark, output)


def _hidden_of(answer: Any, output: Any) -> Tensor:
    pairs = zip(leaves(answer), leaves(output), strict=True)
    return next(leaf for mark, leaf in pairs if isinstance(mark, Mark) and mark.key == "hidden")


def _prove_in_some_way(
    layered: LayeredModule, found: Layers, given: Mapping[str | int, Any], rows: int, expected: Any
) -> None:
    """Prove it with layers called directly, or else with the module's own code between them."""
    if not layered.between:
        try:
            return _prove(layered, found, given, rows, expected)
        except (CodeBetweenError, ArgumentError):
            layered.between = True
    try:
        _prove(layered, found, given, rows, expected)
    except CodeBetweenError as error:
        raise _refusal("layers whose order does not depend on what they give", str(error)) from error


def _prove(layered: LayeredModule, found: Layers, given: Mapping[str | int, Any], rows: int, expected: Any) -> None:
    """Full depth is the module's own output bit for bit; rows may leave; every state can be read."""
    states, context = _run(layered, given)
    kept = torch.arange(1, rows, device=next(tensor.device for _, tensor in tensors(states[0])))
    few, there = take_rows((states[1], context), kept)
    for number in range(1, layered.num_steps):
        few = layered.step(number, few, unwrap(there))
    got = layered.read(_everything, states[-1], unwrap(context))
    for mine, own in zip(_tensors_of(got), _tensors_of(expected), strict=True):
        if mine.shape != own.shape or not torch.equal(mine, own):
            raise _refusal(
                "layers between which nothing but the hidden state is handed on",
                f"other outputs than the module's: {_distance(mine, own)} ({found.name!r} as steps)",
            )
    for part, whole in zip(tensors(few), tensors(take_rows(states[-1], kept)), strict=True):
        if not _close(part[1], whole[1]):
            raise _refusal(
                "rows that do not affect one another",
                f"other states of the rows that stay when the first row leaves: {_distance(part[1], whole[1])}",
            )
    for state in (states[0], states[1]):
        try:
            layered.read(_everything, state, unwrap(context))
            layered.read(_everything, few, unwrap(there))
        except (RuntimeError, IndexError, ValueError) as error:
            raise _refusal("a tail that can read the state of every step", str(error)) from error


def _run(layered: LayeredModule, given: Mapping[str | int, Any]) -> tuple[list[Tree], dict[str, Any]]:
    """h_0 … h_N of the example, and the context."""
    state, context = layered.stem(given)
    states = [state]
    for number in range(layered.num_steps):
        states.append(layered.step(number, states[-1], unwrap(context)))
    return states, context


def _learned_padding(layered: LayeredModule, given: Mapping[str | int, Any], rows: int) -> Padding | None:
    """Where lengths lie, if the example has a mask that hides the ends of rows and narrower batches are proved."""
    mask = given.get(layered.mask) if layered.mask is not None else None
    if layered.mask is None or not isinstance(mask, Tensor) or mask.dim() != 2:
        return None
    length = mask.shape[1]
    try:
        longer_call = one_more_column(given, rows, length)
        hidden, longer = (layered.stem(call) for call in (given, longer_call))
    except (RuntimeError, IndexError, ValueError, CodeBetweenError):  # no call with one column more
        return None
    along: dict[int, Along] = {}
    for (_, small), (_, large) in zip(tensors(hidden[0]), tensors(longer[0]), strict=True):
        if dims := grown_lengths(small, large, length):
            along[small.dim()] = Along(dims)
    layered.lengths.update(
        {f"given_{key}": Along() for key, value in given.items() if _is_long(value, rows, length)}
        | {layered.mask: Along(fill=not _MASKS[layered.mask])}
    )
    padding = LearnedPadding(
        mask=layered.mask, real=_MASKS[layered.mask], context=layered.lengths, pooled=False, state=along
    )
    return padding if along and _narrows(layered, padding, given) else None


def _narrows(layered: LayeredModule, padding: Padding, given: Mapping[str | int, Any]) -> bool:
    """Whether the states of shorter rows stay what they are when the longest rows leave and take their columns along."""
    lengths = padding.lengths(dict(given))  # type: ignore[arg-type]
    if lengths is None or not bool((lengths < lengths.max()).any()):
        return False
    states, context = _run(layered, given)
    kept = (lengths < lengths.max()).nonzero().flatten()
    longest = int(lengths[kept].max())
    kept = kept.to(next(tensor.device for _, tensor in tensors(states[0])))
    state, there = padding.trim(states[1], context, longest)
    state, there = take_rows((state, there), kept)
    try:
        for number in range(1, layered.num_steps):
            state = layered.step(number, state, unwrap(there))
        layered.read(_everything, state, unwrap(there))
    except (RuntimeError, IndexError, ValueError):
        return False
    whole, _ = padding.trim(take_rows(states[-1], kept), {}, longest)
    real = torch.arange(longest) < lengths[lengths < lengths.max()][:, None]
    return all(
        _close(mine[real.to(mine.device)], own[real.to(own.device)])
        for (_, mine), (_, own) in zip(tensors(state), tensors(whole), strict=True)
        if mine.shape[:2] == real.shape
    )


@dataclass(frozen=True)
class LearnedPadding(Padding):
    """`Padding` of a captured module, in whose state tensors of different dimensions have their lengths in other places.

    Args:
        state: By the number of dimensions of a tensor of the state, where its length is.
    """

    state: Mapping[int, Along] = field(default_factory=dict)

    def of_hidden(self, tensor: Tensor) -> Along | None:
        """See `Padding.of_hidden`."""
        return self.state.get(tensor.dim())

    def trim(self, hidden: Tree, context: Mapping[str, Any], length: int) -> tuple[Tree, dict[str, Any]]:
        """See `Padding.trim`."""
        _, context = super().trim((), context, length)

        def narrow(tensor: Tensor) -> Tensor:
            along = self.of_hidden(tensor)
            return tensor if along is None else along.narrow(tensor, length)

        return map_tensors(narrow, hidden), context


def _is_long(value: Any, rows: int, length: int) -> bool:
    return isinstance(value, Tensor) and value.dim() > 1 and value.shape[:2] == (rows, length)


def _everything(output: Any) -> Any:
    return output


def _first_tensor(output: Any) -> Any:
    return next(leaf for leaf in leaves(output) if isinstance(leaf, Tensor | Mark))


def _tensors_of(output: Any) -> list[Tensor]:
    return [leaf for leaf in leaves(output) if isinstance(leaf, Tensor)]


def _close(mine: Tensor, own: Tensor) -> bool:
    if mine.shape != own.shape:
        return False
    fine = mine.dtype in (torch.float32, torch.float64)
    scale = float(own.abs().max()) if own.is_floating_point() and own.numel() else 1.0
    return torch.allclose(mine, own, rtol=0, atol=(1e-4 if fine else 0.05) * max(scale, 1.0))


def _distance(mine: Tensor, own: Tensor) -> str:
    if mine.shape != own.shape:
        return f"shape {tuple(mine.shape)} where {tuple(own.shape)} was expected"
    return f"they differ by {float((mine.double() - own.double()).abs().max()):.2g}"


def _refusal(expected: str, got: str) -> ArgumentError:
    return ArgumentError(
        "module",
        expected=expected,
        got=got,
        remedy="It cannot be captured; give PonderWrapper its stem, steps and readout yourself.",
    )


def _devices(given: Mapping[str | int, Any]) -> list[int]:
    first = next(tensor for _, tensor in tensors(dict(given)))
    return [first.device.index or 0] if first.device.type == "cuda" else []
