"""`capture`: any module that runs a list of layers, read as stem, steps and readout by watching one call of it."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ponder._utils.trees import Tree, alike, take_rows, unwrap
from ponder.errors import ArgumentError
from ponder.model.capture_kind import KIND, CapturedReadout, CapturedStem, CapturedStep, Select, first_leaf, refusal
from ponder.model.capture_watch import Event, Given, layer_lists, outermost, private_copy, run, watch
from ponder.model.padding import REAL, Padding, join_context, join_rows
from ponder.model.steps import Steps

__all__ = ["Captured", "CapturedReadout", "CapturedStem", "CapturedStep", "capture"]


@dataclass(frozen=True)
class Captured:
    """The parts of a module, for `ponder.PonderWrapper`.

    Args:
        stem: Inputs to the hidden state h_0 and the context of the steps; it registers the module, and with it all
            weights, under ``module``.
        steps: One step a layer; one shared step where one layer runs again and again.
        readout: Hidden state to features: the first tensor of what the module would give if its layers ended there.
        padding: Where lengths lie, if the example has an `attention_mask` or `src_key_padding_mask`; else None.
        classifier: The name of the linear layer whose answer the features are, None where they are none.
    """

    stem: CapturedStem
    steps: Steps
    readout: CapturedReadout
    padding: Padding | None
    classifier: str | None = None

    def readout_of(self, select: Select) -> CapturedReadout:
        """Return a readout of another part of the module's output.

        Args:
            select: A function from the output to a tensor, ``lambda output: output.pooler_output``.
        """
        self.stem.add(select)
        return CapturedReadout(select, self.stem.kinds)


def capture(module: nn.Module, example: Any, *, layers: str | None = None) -> Captured:
    """Read a module as stem, steps and readout, and prove on an example that they compute what it computes.

    The module is not changed, but for one switch: an `nn.TransformerEncoder` no longer turns padded batches into nested
    tensors in evaluation mode, so that it answers the same with and without gradients. Weights are used, not copied.

    Args:
        module: Any module whose forward runs a list of layers one after the other.
        example: What `module` is called with, for two different rows or more: a tensor, a tuple of positional
            arguments, or a dict of keyword arguments, whose first tensor is then the `inputs` of the wrapper and the
            others its context. What is no tensor is passed in every call. A model of Transformers takes
            ``{"input_ids": ids, "attention_mask": mask, "use_cache": False}``; its features are `last_hidden_state`.
        layers: The name of the list of layers (``"encoder.layer"``), where another than the largest is meant.

    Raises:
        ArgumentError: The module cannot be read in this way; says what was met and what to do.

    Example:
        >>> layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        >>> parts = ponder.capture(nn.TransformerEncoder(layer, num_layers=3), torch.randn(2, 5, 8))
        >>> model = ponder.PonderWrapper(
        ...     parts.steps, stem=parts.stem, readout=lambda hidden: hidden.mean(1), head=nn.Linear(8, 2)
        ... )
        >>> model.eval()(torch.randn(4, 5, 8)).outputs.shape
        torch.Size([4, 2])
    """
    for part in module.modules():
        if isinstance(part, nn.TransformerEncoder):
            part.use_nested_tensor = False
    given = _arguments(module, example)
    rows = next((value.shape[0] for value in given.values() if isinstance(value, Tensor) and value.dim()), 0)
    if rows < 2:
        cure = "Pass a small batch of what the module is called with."
        raise ArgumentError("example", expected="two different rows or more, batch first", got=rows, remedy=cure)
    with torch.no_grad():
        events, output = watch(private_copy(module), given)
    if not any(isinstance(leaf, Tensor) for leaf in tree_leaves(output)):
        raise refusal(
            f"an output of type {type(output).__name__}, in which no tensor is seen",
            "Return a tensor, or a tuple or dict of them, or register the class with torch.utils._pytree.",
        )
    refused: list[ArgumentError] = []
    for path, order in layer_lists(module, events, layers):
        try:
            if layers is None:
                _check_place(module, path)
            proved = _proved(module, order, given, events)
        except Exception as error:  # of the module's own code too, which cannot go on with an earlier layer's state
            met = error if isinstance(error, ArgumentError) else refusal(f"{type(error).__name__}: {error}")
            refused.append(met)
            continue
        padding, stem = _padding(proved, given), proved.of(module)
        kinds = [kind.calls for own in stem.kinds.values() for kind in own]
        shared = len(set(order)) == 1 and all(call == calls[0] for calls in kinds for call in calls)
        steps = Steps.of(CapturedStep(0), len(order)) if shared else Steps(map(CapturedStep, range(len(order))))
        heads = [event.path for event in events if event.output is first_leaf(output)]
        linear = next((path for path in heads if isinstance(module.get_submodule(path), nn.Linear)), None)
        return Captured(stem, steps, CapturedReadout(first_leaf, stem.kinds), padding, linear)
    raise _explained(module, events, given, layers, refused)


def _arguments(module: nn.Module, example: Any) -> dict[str | int, Any]:
    """Return the arguments of an example, by name where they have one."""
    if not isinstance(example, Mapping):
        places = example if isinstance(example, tuple) else (example,)
        parameters = inspect.signature(module.forward).parameters.values()
        names = [each.name for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD]
        example = dict(zip(names if len(names) >= len(places) else range(len(places)), places, strict=False))
    return {name: value for name, value in example.items() if value is not None}


def _proved(module: nn.Module, order: list[str], given: Given, events: list[Event]) -> CapturedStem:
    """Prove that full depth is the module bit for bit, with and without gradients, and that rows may exit.

    Without gradients it is proved of the module with other numbers for parameters that are constant, as those of new
    biases and gates: what they multiply would not be seen.
    """
    end = [event.end for event in events if event.path == order[-1]][-1]
    behind = outermost(event for event in events if event.start > end)
    if sum([_weights(module, each.path) for each in behind]) > sum([_weights(module, path) for path in order]):
        raise refusal("layers that cost less than what follows them, which runs at every exit")
    stem = CapturedStem(_copy_in_training(module, order, given), order, given)
    try:
        stem(given)  # learns how layers are called in training
    except ArgumentError:
        raise
    except Exception:  # of the module's own code: labels that it misses, too few rows for statistics
        pass
    stem, read = stem.of(private_copy(module)), CapturedReadout(first_leaf, {})
    for twin, grad in ((stem.module, True), (_varied(module), False)):
        with torch.set_grad_enabled(grad):
            own = stem.of(twin)
            state, around = own(given)
            stem.kinds |= own.kinds
            whole, again = (first_leaf(run(twin, given)) for _ in range(2))
            if not alike(whole, again):
                raise refusal("a module that draws random numbers in evaluation mode", "Draw them outside of it.")
            call: dict[str, Any] = unwrap(around)
            states = [state := CapturedStep(number)(state, **call) for number in range(len(order))]
            if not alike(read(state, **call), whole):
                raise refusal("another output at full depth: code of its own around the layers")
            if any(read(early, **call).shape != whole.shape for early in states):
                raise refusal("layers whose states differ in shape", "Pass layers=… that keep the shape.")
            kept = torch.arange(1, whole.shape[0], device=whole.device)
            few = _through(take_rows(states[0], kept), take_rows(around, kept), 1)
            if not alike(few, whole[1:], _tolerance(whole)):
                raise refusal("rows that feel one another", "Keep rows apart, with the batch first.")
    return stem


def _tolerance(features: Tensor) -> float:
    return 1e-3 if features.dtype.itemsize >= 4 else 0.1


def _copy_in_training(module: nn.Module, order: list[str], given: Given) -> nn.Module:
    """Return a copy in training mode; refuse buffers that the code around the layers changes: it may run twice."""
    twin = private_copy(module, training=True)
    before = {name: buffer.clone() for name, buffer in twin.named_buffers()}
    with contextlib.suppress(Exception):  # of the module's own code: statistics of too few rows, say
        run(twin, given) if before else None
    around = {path[:end] for path in order for end, sign in enumerate(path) if sign == "."} | {""}
    kept = [name for name, value in twin.named_buffers() if name.rpartition(".")[0] in around]
    if kept := [name for name in kept if not torch.equal(twin.get_buffer(name), before[name])]:
        raise refusal(f"buffers that its forward changes in training: {', '.join(kept)}", "Keep them in a module.")
    return twin


def _varied(module: nn.Module) -> nn.Module:
    """Return a copy whose constant parameters have other numbers."""
    twin, generator = private_copy(module), torch.Generator().manual_seed(0)
    for part in twin.modules():
        for name, weight in part._parameters.items():
            if weight is not None and weight.is_floating_point() and weight.numel() and len(weight.unique()) == 1:
                noise = torch.randn(weight.shape, generator=generator).to(weight)
                part._parameters[name] = nn.Parameter(weight.detach() + 0.05 * noise * weight.abs().clamp(min=1.0))
    return twin


def _through(state: Tree, around: Mapping[str, Any], start: int = 0) -> Tensor:
    """Run the steps behind `start`, and read the features."""
    call: dict[str, Any] = unwrap(around)
    for number in range(start, len(call[KIND].order)):
        state = CapturedStep(number)(state, **call)
    features: Tensor = CapturedReadout(first_leaf, {})(state, **call)
    return features


def _padding(stem: CapturedStem, given: Given) -> Padding | None:
    """Prove, on the example with shorter rows, that batches may get narrower, and that rows of several lengths meet."""
    mask = next((name for name in REAL if isinstance(given.get(name), Tensor) and given[name].dim() == 2), "")
    if not mask:
        return None
    stem.mask, kinds, stem.kinds = mask, stem.kinds, {}
    padding = Padding(mask=mask, real=REAL[mask], context=stem.lengths)
    call: dict[str | int, Any] = {**given, mask: torch.full_like(given[mask], padding.real)}
    call[mask][1:, -2:] = not padding.real
    with torch.no_grad():
        if _holds(_narrows, stem, call, padding):
            mixed = _holds(_meet, stem, call, padding)
            optional = not mixed and _holds(_meet, stem, call, padding, True)
            return replace(padding, mixed=mixed or optional, optional=optional)
    stem.mask, stem.kinds = "", kinds
    return None


def _holds(check: Callable[..., bool], *args: Any) -> bool:
    try:
        return check(*args)
    except Exception:  # of the module's own code, which takes no such inputs
        return False


def _narrows(stem: CapturedStem, call: Given, padding: Padding) -> bool:
    """Whether short rows give the same once the long one has exited and the batch is narrower."""
    (rows, longest), (state, around) = call[padding.mask].shape, stem(call)
    kept, first = torch.arange(1, rows, device=call[padding.mask].device), CapturedStep(0)(state, **unwrap(around))
    few, fewer = padding.trim(take_rows(first, kept), take_rows(around, kept), longest - 2)
    whole, narrow = _through(first, around, 1)[1:], _through(few, fewer, 1)
    positions = whole[:, : longest - 2] if whole.shape[1] == longest else whole
    return (
        isinstance(state, Tensor) and padding.width(few) == longest - 2 and alike(narrow, positions, _tolerance(whole))
    )


def _meet(stem: CapturedStem, call: Given, padding: Padding, spare: bool = False) -> bool:
    """Whether rows that were given alone, or beside a spare one, at their own lengths, give the same in one batch."""
    rows, length = call[padding.mask].shape
    parts = []
    for row in range(rows):
        alone = {k: v[row : row + 1] if isinstance(v, Tensor) and len(v) == rows else v for k, v in call.items()}
        own = length - 2 * (row > 0)
        long = {k: v[:, :own] for k, v in alone.items() if isinstance(v, Tensor) and v.shape[1:2] == (length,)}
        given = alone | long
        if spare:
            given = {k: torch.cat([v, v]) if isinstance(v, Tensor) and len(v) == 1 else v for k, v in given.items()}
            given[padding.mask][1, 1:] = not padding.real
        own_state = stem(given)
        parts.append(take_rows(own_state, torch.zeros(1, dtype=torch.long)) if spare else own_state)
    hidden = join_rows([own for own, _ in parts], [1] * rows, lengths=padding.of_hidden, length=length)
    met = _through(hidden, join_context([own for _, own in parts], [1] * rows, padding, length))
    whole = _through(*stem(call))
    if met.shape[1] == length:
        met[1:, -2:] = whole[1:, -2:] = 0
    return alike(met, whole, _tolerance(whole))


def _check_place(module: nn.Module, path: str) -> None:
    """Refuse a list that is the lesser part of one of several layers, which are attributes."""
    names = path.split(".")
    for depth in range(1, len(names)):
        above, inner = (module.get_submodule(".".join(names[:end])) for end in (depth - 1, depth))
        alike_names = [name for name, child in above.named_children() if type(child) is type(inner)]
        in_a_list = isinstance(above, nn.ModuleList | nn.Sequential | nn.ModuleDict)
        if len(alike_names) > 1 and not in_a_list and 2 * _weights(module, path) < _weights(inner):
            raise _not_in_a_list(alike_names)


def _weights(module: nn.Module, path: str = "") -> int:
    return sum([weight.numel() for weight in module.get_submodule(path).parameters()])


def _not_in_a_list(names: list[str]) -> ArgumentError:
    return refusal(
        f"layers that are attributes: {', '.join(names)}",
        f"Put them into a list: self.layers = nn.ModuleList([self.{names[0]}, …]).",
    )


def _explained(
    module: nn.Module, events: list[Event], given: Given, layers: str | None, refused: list[ArgumentError]
) -> ArgumentError:
    """Return the refusal that names the cause."""
    if any(getattr(part, "batch_first", True) is False for part in module.modules()):
        cure = "Build them with batch_first=True; the weights are the same."
        return refusal("layers with batch_first=False, which take the length first", cure)
    if layers is not None:
        found = layer_lists(module, events)
        better = [
            path for path, order in found if _holds(lambda order=order: bool(_proved(module, order, given, events)))
        ]
        got = refused[0].got if refused else f"{layers!r}, which is no list of modules called in order"
        return refusal(got, f"Pass layers={better[0]!r}." if better else "")
    if refused:
        return refused[0]
    if any(isinstance(part, nn.RNNBase) and part.num_layers > 1 for part in module.modules()):
        cure = "Put modules of one layer each into an nn.ModuleList."
        return refusal("a recurrent module that runs its layers inside", cure)
    boxes = {path for path, box in module.named_modules() if isinstance(box, nn.ModuleList)}
    for path in [event.path.rpartition(".")[0] for event in events]:
        if path in boxes:
            return refusal(f"{path!r}, whose modules are not called once each, in order", "Remove what never runs.")
    kinds = [type(child) for child in module.children()]
    names = [name for name, child in module.named_children() if kinds.count(type(child)) > 1]
    if names:
        return _not_in_a_list(names)
    return refusal(f"a {type(module).__name__} without such a list", "Put its layers into an nn.ModuleList.")
