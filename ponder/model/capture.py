"""`capture`: read any module that runs a list of layers as stem, steps and readout.

It watches calls of the module; nothing is patched. The work is split over five files:

* `twins` makes copies of a module in which *stubs* answer for its layers.
* `readings` reads with them what each layer is called with.
* `captured` holds the stem, which reads every call, the steps, which call the layers, and the
  readout, which runs what follows them.
* `proving` compares them with the module on an example.
* This file finds the lists of layers, and returns the first that is proved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ponder._utils.trees import Tree
from ponder.errors import ArgumentError
from ponder.model.captured import CapturedReadout, CapturedStem, CapturedStep
from ponder.model.padding import Padding
from ponder.model.proving import prove, prove_padding, weights_of
from ponder.model.readings import Select
from ponder.model.steps import Steps
from ponder.model.twins import (
    Arguments,
    Example,
    WatchedCall,
    arguments_of,
    first_tensor_or_slot,
    private_copy,
    refusal,
    watch,
)

__all__ = ["Captured", "capture"]


@dataclass(frozen=True)
class Captured:
    """The parts of a module, for `ponder.PonderWrapper`.

    Args:
        stem: Inputs to the hidden state h_0 and the context of the steps; it registers the module,
            and with it all weights, under ``module``.
        steps: One step a layer, or one shared step if one layer runs again and again.
        readout: Hidden state to features: the first tensor of the module's output if its layers
            ended there.
        padding: Where lengths lie, if the example has an `attention_mask` or
            `src_key_padding_mask`. None if it has no mask, or if padding changes the answers; only
            rows of one length then share a batch.
        classifier: Name of the final linear layer if the module is a classifier, else None.
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
        self.stem.selects.append(select)
        self.stem.kinds.clear()  # they are learned again with what this one needs
        return CapturedReadout(select)


def capture(module: nn.Module, example: Example, *, layers: str | None = None) -> Captured:
    """Read a module as stem, steps and readout, and prove on an example that they compute the same.

    The module is changed in two settings only: an `nn.TransformerEncoder` no longer turns padded
    batches into nested tensors in evaluation mode, so that it answers the same with and without
    gradients; and a `layerdrop` becomes 0, since every step runs in training. Weights are used, not
    copied.

    Args:
        module: Any module whose forward runs a list of layers one after the other.
        example: The arguments of a call, for two or more different rows: a tensor, a tuple of
            positional arguments, or a dict of keyword arguments. The first tensor becomes the
            `inputs` of the wrapper, the others its context; other values are passed in every call.
            A model of Transformers takes ``{"input_ids": ids, "attention_mask": mask,
            "use_cache": False}``; its features are `last_hidden_state`.
        layers: The name of the list of layers (``"encoder.layer"``); None takes the largest.

    Raises:
        ArgumentError: The module cannot be read in this way; the message says why, and what to do.

    Example:
        >>> layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        >>> parts = ponder.capture(nn.TransformerEncoder(layer, num_layers=3), torch.randn(2, 5, 8))
        >>> head = nn.Linear(8, 2)
        >>> model = ponder.PonderWrapper(
        ...     parts.steps, stem=parts.stem, readout=lambda hidden: hidden.mean(1), head=head
        ... )
        >>> model.eval()(torch.randn(4, 5, 8)).outputs.shape
        torch.Size([4, 2])
    """
    _make_deterministic(module)
    arguments = arguments_of(module, example)
    _check_rows(arguments)
    with torch.no_grad():
        calls, output = watch(private_copy(module), arguments)
    if not any(isinstance(leaf, Tensor) for leaf in tree_leaves(output)):
        got = f"an output of type {type(output).__name__}, in which no tensor is seen"
        cure = "Return a tensor, or a tuple or dict of them, or register the class with "
        raise refusal(got, cure + "torch.utils._pytree.")
    refused: list[ArgumentError] = []
    for order in _lists_of_layers(module, [call.path for call in calls], layers):
        try:
            stem = prove(module, order, arguments, calls)
        except ArgumentError as error:
            refused.append(error)
        except Exception as error:  # code of the module's own, which takes no earlier layer's state
            refused.append(refusal(f"{type(error).__name__}: {error}"))
        else:
            if layers is None:
                _check_no_stages(module, order)
            return Captured(
                stem=stem,
                steps=_steps_of(stem),
                readout=CapturedReadout(first_tensor_or_slot),
                padding=prove_padding(stem, arguments),
                classifier=_classifier_of(module, calls, output),
            )
    if layers is None:
        raise _explained(module, refused)
    # If no list can be captured at all, this call raises, and says why.
    largest = capture(module, example).stem.contract.order[0].rpartition(".")[0]
    got = f"{layers!r}, which is no list of modules called in order"
    if refused:
        got = refused[0].got
    raise refusal(got, f"Pass layers={largest!r}.")


def _make_deterministic(module: nn.Module) -> None:
    """Switch off nested tensors and dropped layers, in a module and in its config."""
    for part in module.modules():
        if isinstance(part, nn.TransformerEncoder):
            part.use_nested_tensor = False
        config = getattr(vars(part).get("config"), "__dict__", {})
        for attributes in (vars(part), config):
            if "layerdrop" in attributes:
                attributes["layerdrop"] = 0.0


def _check_rows(arguments: Arguments) -> None:
    """Refuse an example of less than two rows, which could not show that rows do not mix."""
    batches = [value for value in arguments.values() if isinstance(value, Tensor) and value.dim()]
    rows = 0
    if batches:
        rows = batches[0].shape[0]
    if rows < 2:
        cure = "Pass a small batch of what the module is called with."
        raise ArgumentError(
            "example", expected="two different rows or more, batch first", got=rows, remedy=cure
        )


def _check_no_stages(module: nn.Module, order: Sequence[str]) -> None:
    """Refuse the layers of one of several stages, as in a ResNet: the others would not be steps."""
    path = order[0].rpartition(".")[0]
    if any(not name.startswith(f"{path}.") for name in order):
        return
    own = path
    while path:
        stage = module.get_submodule(path)
        path = path.rpartition(".")[0]
        container = module.get_submodule(path)
        if not isinstance(container, nn.ModuleList | nn.Sequential):
            continue
        # Groups of layers of one width, as in ALBERT, hand on states of one shape.
        widths = {
            frozenset(weight.shape for weight in child.parameters())
            for child in container
            if type(child) is type(stage)
        }
        if len(widths) > 1:
            got = f"layers inside of stages, {path}.0, {path}.1 …, whose states differ in shape"
            cure = f"Pass layers={own!r} for the layers of one stage, after which rows may exit; "
            raise refusal(got, f"{cure}or write the steps, and a readout of one width.")


def _steps_of(stem: CapturedStem) -> Steps:
    """Return one step a layer; a shared step if one layer is called in the same way each time."""
    count = len(stem.contract.order)
    is_shared = len(set(stem.contract.order)) == 1 and all(
        call == known.reading.calls[0] for known in stem.kinds for call in known.reading.calls
    )
    if is_shared:
        return Steps.of(CapturedStep(0), count)
    return Steps(map(CapturedStep, range(count)))


def _classifier_of(module: nn.Module, calls: Sequence[WatchedCall], output: Tree) -> str | None:
    """Return the path of the linear layer whose output is the module's; None if there is none."""
    features = first_tensor_or_slot(output)
    for call in calls:
        if call.output is features and isinstance(module.get_submodule(call.path), nn.Linear):
            return call.path
    return None


def _lists_of_layers(module: nn.Module, calls: list[str], name: str | None) -> list[list[str]]:
    """Find lists of modules that were called in order, as paths; the largest comes first.

    Neighbours of one class in an `nn.Sequential`, or in a list of several classes, are a list of
    their own.

    Args:
        module: The module.
        calls: The paths of its modules, in the order of their calls.
        name: The name of the list that is meant; None for all.
    """
    paths = {id(part): path for path, part in module.named_modules()}
    found: list[_CalledList] = []
    for path, container in module.named_modules():
        if name not in (None, path):
            continue
        for layers in _candidates(container, is_meant=name is not None):
            order = [paths[id(layer)] for layer in layers]
            called = [call for call in calls if call in order]
            rounds = len(called) // len(order)
            if len(called) > 1 and called == order * rounds:
                found.append(_CalledList(called, weights_of(layers)))
    found.sort(key=lambda layers: layers.weights, reverse=True)
    return [layers.calls for layers in found]


@dataclass(frozen=True)
class _CalledList:
    """A list of layers that were called in order: the paths of the calls, and its size."""

    calls: list[str]
    weights: int


def _candidates(container: nn.Module, *, is_meant: bool) -> list[list[nn.Module]]:
    """Return the lists of layers that a container may hold; an empty list for another module.

    They are its runs of one class, and before them the whole of a mixed list. A mixed
    `nn.Sequential` as a whole (embeddings, blocks, a head) is a candidate only if it is meant.
    """
    if not isinstance(container, nn.ModuleList | nn.Sequential):
        return []
    runs = [list(group) for _, group in groupby(container, key=type)]
    is_mixed = len(runs) > 1
    if is_mixed and (is_meant or isinstance(container, nn.ModuleList)):
        return [list(container), *runs]
    return runs


def _explained(module: nn.Module, refused: list[ArgumentError]) -> ArgumentError:
    """Return the refusal that names the cause."""
    parts = list(module.modules())
    if any(getattr(part, "batch_first", True) is False for part in parts):
        cure = "Build them with batch_first=True; the weights are the same."
        return refusal("layers with batch_first=False, which take the length first", cure)
    if refused:
        return refused[0]
    if any(isinstance(part, nn.RNNBase) and part.num_layers > 1 for part in parts):
        cure = "Put several modules of one layer each into a list."
        return refusal("a recurrent module that runs its layers inside", cure)
    kinds = [type(child) for child in module.children()]
    names = [name for name, child in module.named_children() if kinds.count(type(child)) > 1]
    if names:
        cure = f"Put them into a list: self.layers = nn.ModuleList([self.{names[0]}, …])."
        return refusal(f"layers that are attributes: {', '.join(names)}", cure)
    got = f"a {type(module).__name__} without such a list"
    return refusal(got, "Put its layers into an nn.ModuleList.")
