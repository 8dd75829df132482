"""`capture`: any module that runs a list of layers, read as stem, steps and readout by watching it run.

The module is not changed, not even for a moment. A call makes a *twin* (`twin.py`) whose layers are stubs: the twin's
forward is the stem, the stubs note what each layer would have been called with, and a step calls the real layer with
that, for the rows that still run. Which dimension of a tensor holds the rows, and which the length of a
sequence, is learned by growth: from a call with one row more and one with one column more. What follows the layers is
read off the same forward.

Nothing of this is believed before it is proved: `capture` compares full depth with the module bit for bit, lets rows
leave, and refuses with the reason what does not hold.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ponder._utils.trees import Tree
from ponder.parts.capturing.layered import LayeredModule
from ponder.parts.capturing.learning import first_output, learn
from ponder.parts.padding import Padding
from ponder.parts.steps import Steps

__all__ = ["Captured", "CapturedStem", "capture"]


@dataclass(frozen=True)
class Captured:
    """The parts of a module, for `ponder.PonderWrapper`.

    Args:
        stem: Inputs to the hidden state h_0 and the context of the steps; it registers the module, and with it all
            weights, under ``module``.
        steps: One step a layer.
        readout: Hidden state to features: what the module itself would answer if its layers had ended there. What its
            own code does to the state between layers, outside of any module, is done there as behind the last one.
        padding: Where lengths lie, if the example had a mask that hides the ends of rows, and batches were seen to be
            able to get narrower; else None. With a readout of your own that gives features without positions, pass
            `dataclasses.replace(padding, pooled=True)`.

    Example:
        >>> layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        >>> encoder = nn.TransformerEncoder(layer, num_layers=3, enable_nested_tensor=False)
        >>> parts = capture(encoder, torch.randn(2, 5, 8))
        >>> parts.steps.num_steps, parts.padding is None
        (3, True)
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
        features: A function from the module's output to the tensor in it that the readout gives; its first tensor where
            None.

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
    features = features or first_output
    layered = learn(module, example, layers=layers, reads=features)
    return Captured(CapturedStem(layered), layered.steps(), layered.readout(features), layered.padding)


class CapturedStem(nn.Module):
    """The stem of a captured module, which registers it.

    Args:
        layered: What was learned of the module.
    """

    takes_shared = True
    """Whether the stem is called with `ponder.Shared` values as they are."""

    def __init__(self, layered: LayeredModule) -> None:
        super().__init__()
        self.module = layered.module
        self.layered = layered

    @property
    def argument_names(self) -> frozenset[str]:
        """The names of the module's own arguments, and of those that the example had, which it may hand on."""
        return frozenset(inspect.signature(self.module.forward).parameters) | self.layered.given_names

    def forward(self, inputs: Tree, **context: Any) -> tuple[Tree, dict[str, Any]]:
        """Give h_0 and the context of the steps."""
        return self.layered.stem(inputs, **context)
