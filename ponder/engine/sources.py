"""Rows whose steps are computed: the source that the loop asks when a model runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ponder._utils.numerics import at_least_float32
from ponder._utils.trees import Tree, check_rows, take_rows, tensors, unwrap
from ponder.errors import NonFiniteError
from ponder.parts.heads import LambdaHead, PerStep
from ponder.parts.padding import Padding
from ponder.parts.readouts import ReadoutCall

__all__ = ["ModelSource", "Parts", "call_stem"]


@dataclass(frozen=True)
class Parts:
    """The parts of a wrapped model that the loop calls.

    Args:
        steps: The steps, called as `steps(step, hidden, **context)`.
        readout: Hidden state to features.
        head: Features to outputs, shared or `PerStep`.
        lambda_head: Concatenated features to hazard logits, or None.
        check_finite: Whether to look for NaN and infinity after every step.
        padding: Where lengths lie in hidden state and context, or None.
    """

    steps: Callable[..., Tree]
    readout: ReadoutCall
    head: nn.Module
    lambda_head: Any
    check_finite: bool = False
    padding: Padding | None = None


def call_stem(
    stem: Callable[..., Tree] | None, inputs: Tree, context: Mapping[str, Any]
) -> tuple[Tree, Mapping[str, Any], int]:
    """h_0, the context of the steps, and the number of rows; the stem is the identity where None.

    A pair whose second item is a dict is read as (hidden, context).
    """
    hidden = inputs if stem is None else stem(inputs, **unwrap(context))
    if stem is not None and isinstance(hidden, tuple) and len(hidden) == 2 and isinstance(hidden[1], dict):
        hidden, context = hidden
    size = check_rows("inputs" if stem is None else "hidden state returned by the stem", hidden)
    check_rows("context", context, size)
    return hidden, context, size


@dataclass
class ModelSource:
    """Rows whose steps are computed; features, outputs and hazards once, and only when asked for.

    Args:
        parts: The model.
        hidden: h_0, the stem's output, for the whole batch.
        context: What every step is called with, besides the hidden state.
        use_hazard: Whether hazards will be asked for (then the past features that they read are kept).
        step: The step at which the rows stand.
        lengths: The length of each row, `(rows,)` on the host, where it is known: the batch then gets narrower.
        past: Features of the steps before, newest first, as many as the Lambda head reads; None before the first step.
    """

    parts: Parts
    hidden: Tree
    context: Mapping[str, Any]
    use_hazard: bool
    step: int = 0
    lengths: Tensor | None = None
    past: list[Tensor] | None = None
    _cache: dict[str, Tensor] = field(default_factory=dict)
    _rows: Tensor | None = None

    def __post_init__(self) -> None:
        if self.parts.check_finite:
            self._rows = torch.arange(check_rows("hidden", self.hidden))
        self._call = unwrap(self.context)
        if self.past is None:
            self.past = self._before_the_first_step() if self.use_hazard else []

    def advance(self, step: int) -> None:
        """See `Source.advance`."""
        if self.step > 0:
            self.past = self.next_past()
        self._cache.clear()
        self.step = step
        rows = check_rows("hidden", self.hidden)
        self.hidden = self.parts.steps(step, self.hidden, **self._call)
        check_rows(f"hidden state returned by step {step}", self.hidden, rows)
        if self._rows is not None:
            _check_finite(self.hidden, step, self._rows)

    def next_past(self) -> list[Tensor]:
        """The past of the next step."""
        return [self.features(), *self.past[:-1]] if self.past else []

    def features(self) -> Tensor:
        """See `Source.features`."""
        if "features" not in self._cache:
            self._cache["features"] = self.parts.readout(self.hidden, self.context)
        return self._cache["features"]

    def output(self) -> Tensor:
        """See `Source.output`."""
        if "output" not in self._cache:
            self._cache["output"] = self._head(self.features(), None)
        return self._cache["output"]

    def hazard_logit(self) -> Tensor:
        """See `Source.hazard_logit`."""
        if "hazard" not in self._cache:
            logit: Tensor = self.parts.lambda_head(torch.cat([self.features(), *(self.past or ())], dim=-1))
            self._cache["hazard"] = at_least_float32(logit)
        return self._cache["hazard"]

    def output_of(self, index: Tensor | None) -> Tensor:
        """See `Source.output_of`."""
        if index is None:
            return self.output()
        rows = self.on_device(index)
        if "output" in self._cache:
            return self._cache["output"][rows]
        if "features" in self._cache:
            return self._head(self._cache["features"][rows], index)
        read = self.parts.readout.reads(self.context)
        return self._head(self.parts.readout(take_rows(self.hidden, rows), take_rows(read, rows)), index)

    def keep(self, index: Tensor) -> None:
        """See `Source.keep`."""
        rows = self.on_device(index)
        if self.lengths is not None and self.parts.padding is not None and self.parts.padding.pooled:
            self.lengths = self.lengths[index]
            length = int(self.lengths.max())
            self.hidden, self.context = self.parts.padding.trim(self.hidden, self.context, length)
        self.hidden, self.context, self.past = take_rows((self.hidden, self.context, self.past), rows)
        self._call = unwrap(self.context)
        self._cache = {"features": self._cache["features"][rows]} if self.past else {}
        if self._rows is not None:
            self._rows = self._rows[index]

    @property
    def device(self) -> torch.device:
        """Where the rows are."""
        return next(tensor.device for _, tensor in tensors(self.hidden))

    def on_device(self, index: Tensor) -> Tensor:
        """Row numbers, from the host to where the rows are."""
        return index.to(self.device)

    def _before_the_first_step(self) -> list[Tensor]:
        head: LambdaHead | None = self.parts.lambda_head
        if head is None or head.history == 1:
            return []
        features = self.features()
        self._cache.clear()
        return [features if head.initial == "stem" else torch.zeros_like(features)] * (head.history - 1)

    def _head(self, features: Tensor, index: Tensor | None) -> Tensor:
        """The outputs of the rows `index` (None: all) from their features."""
        head = self.parts.head
        outputs: Tensor = head(features, self.step) if isinstance(head, PerStep) else head(features)
        return outputs


def _check_finite(hidden: Tree, step: int, rows: Tensor) -> None:
    for path, tensor in tensors(hidden, "hidden"):
        if tensor.is_floating_point():
            bad = ~tensor.unsqueeze(-1).flatten(1).isfinite().all(1)  # one number a row is a state too
            if bool(bad.any()):
                raise NonFiniteError(
                    f"step {step} produced NaN or infinity in {path}, rows {rows[bad.cpu()].tolist()} of the "
                    f"batch. Look at these inputs, the learning rate, or the precision."
                )
