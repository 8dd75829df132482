"""`capture`: any module that runs a list of layers, read as stem, steps and readout by watching one call of it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ponder._utils.trees import Tree, alike, first_tensor, take_rows, unwrap
from ponder.errors import ArgumentError
from ponder.model.capture_calls import Layered, refusal
from ponder.model.capture_watch import Given, Mark, Select, layer_lists, private_copy, run, watch
from ponder.model.padding import Padding
from ponder.model.steps import Steps

__all__ = ["Captured", "CapturedReadout", "CapturedStem", "CapturedStep", "capture"]


@dataclass(frozen=True)
class Captured:
    """The parts of a module, for `ponder.PonderWrapper`.

    Args:
        stem: Inputs to the hidden state h_0 and the context of the steps; it registers the module, and with it all
            weights, under ``module``.
        steps: One step a layer.
        readout: Hidden state to features: the first tensor of what the module would give if its layers ended there.
        padding: Where lengths lie, if the example has an `attention_mask` or `src_key_padding_mask`; else None.
    """

    stem: CapturedStem
    steps: Steps
    readout: CapturedReadout
    padding: Padding | None

    def readout_of(self, select: Select) -> CapturedReadout:
        """Return a readout of another part of the module's output.

        Args:
            select: A function from the output to a tensor, ``lambda output: output.pooler_output``.
        """
        layered = self.stem.layered
        layered.selects.append(select)
        layered.kinds.clear()
        return CapturedReadout(layered, select)


def capture(module: nn.Module, example: Any, *, layers: str | None = None) -> Captured:
    """Read a module as stem, steps and readout, and prove on an example that they compute what it computes.

    The module is not changed, but for one switch: an `nn.TransformerEncoder` no longer turns padded batches into nested
    tensors in evaluation mode, so that it answers the same with and without gradients. Its weights are used, not copied.

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
        >>> encoder = nn.TransformerEncoder(layer, num_layers=3)
        >>> parts = ponder.capture(encoder, torch.randn(2, 5, 8))
        >>> model = ponder.PonderWrapper(
        ...     parts.steps, stem=parts.stem, readout=lambda hidden: hidden.mean(1), head=nn.Linear(8, 2)
        ... )
        >>> model.eval()(torch.randn(4, 5, 8)).outputs.shape
        torch.Size([4, 2])
    """
    for part in module.modules():
        if isinstance(part, nn.TransformerEncoder):
            part.use_nested_tensor = False
    given = _arguments(example)
    with torch.no_grad():
        events, _ = watch(private_copy(module), given)
    refused: ArgumentError | None = None
    for _, calls in layer_lists(module, events, layers):
        try:
            layered = Layered(private_copy(module), calls, given)
            layered.selects.append(_first)
            _prove(layered, given)
        except ArgumentError as error:
            refused = refused or error
            continue
        layered.module = module
        steps = Steps([CapturedStep(layered, number) for number in range(len(layered.order))])
        return Captured(CapturedStem(layered), steps, CapturedReadout(layered, _first), None)
    if refused is not None:
        raise refused
    raise refusal(f"a {type(module).__name__} without such a list", "Put the layers into an nn.ModuleList.")


class CapturedStem(nn.Module):
    """The stem of a captured module, which registers it.

    Args:
        layered: The module, layer by layer.
    """

    def __init__(self, layered: Layered) -> None:
        super().__init__()
        self.module, self.layered = layered.module, layered

    @property
    def argument_names(self) -> frozenset[str]:
        """The names of the module's own arguments."""
        return frozenset(inspect.signature(self.module.forward).parameters)

    def forward(self, inputs: Tree, **context: Any) -> tuple[Tree, dict[str, Any]]:
        """Return h_0 and the context of the steps."""
        return self.layered.stem(inputs, context)


class CapturedStep(nn.Module):
    """One layer as a step. It registers nothing: the stem has the weights.

    Args:
        layered: The module, layer by layer.
        number: The number of the layer, counted from 0.
    """

    def __init__(self, layered: Layered, number: int) -> None:
        super().__init__()
        self.layered, self.number = layered, number

    def forward(self, hidden: Tree, **context: Any) -> Tree:
        """Run the layer and return the state after it."""
        return self.layered.step(self.number, hidden, context)


class CapturedReadout(nn.Module):
    """A part of the module's own output as features.

    Args:
        layered: The module, layer by layer.
        select: From the output to that part.
    """

    def __init__(self, layered: Layered, select: Select) -> None:
        super().__init__()
        self.layered, self.select = layered, select

    def forward(self, hidden: Tree, **context: Any) -> Tensor:
        """Return the features of `hidden`."""
        features: Tensor = self.layered.read(self.select, hidden, context)
        return features


def _first(output: Any) -> Any:
    """Return the first tensor of a module's output, or its mark."""
    return next(leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor | Mark))


def _arguments(example: Any) -> dict[str | int, Any]:
    if isinstance(example, Mapping):
        return {name: value for name, value in example.items() if value is not None}
    return dict(enumerate(example if isinstance(example, tuple) else (example,)))


def _prove(layered: Layered, given: Given) -> None:
    """Prove that full depth is the module bit for bit, and that rows that remain do not feel those that exit."""
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            whole = _first(run(layered.module, given))
            _prove_once(layered, given, whole)


def _prove_once(layered: Layered, given: Given, whole: Tensor) -> None:
    inputs, context = given[layered.first], {k: v for k, v in given.items() if k != layered.first}
    try:
        state, noted = layered.stem(inputs, context)
        few, fewer = state, noted
        kept = torch.arange(1, first_tensor(state).shape[0])
        around = unwrap(noted)
        for number in range(len(layered.order)):
            state, few = layered.step(number, state, around), layered.step(number, few, unwrap(fewer))
            if number == 0:
                few, fewer = take_rows(few, kept), take_rows(noted, kept)
            early = layered.read(_first, state, around)
            if early.shape != whole.shape:
                raise refusal("states", "x")
        other = layered.read(_first, few, unwrap(fewer))
    except (RuntimeError, IndexError, TypeError, KeyError, StopIteration) as error:
        raise refusal(f"{type(error).__name__}: {error}", "x") from error
    if not torch.equal(early, whole):
        raise refusal(f"another output at full depth, apart by {(early - whole).abs().max():.2g}", "x")
    if not alike(other, early[1:], 1e-4):
        raise refusal("rows that feel one another", "x")
