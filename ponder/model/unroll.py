"""Rows whose steps are computed: one at a time for the loop, or all of them in one unroll."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from ponder._utils.trees import Shared, Tree, check_rows, first_tensor, take_rows, unwrap
from ponder.errors import ArgumentError
from ponder.model.heads import LambdaHead, PerStep

__all__ = ["ModelSource", "call_stem", "unroll"]


def call_stem(
    stem: Callable[..., Tree] | None, inputs: Tree, context: Mapping[str, Any]
) -> tuple[Tree, Mapping[str, Any], int]:
    """Call the stem, the identity where None, and return h_0, the context of the steps, and the number of rows.

    A pair whose second item is a dict is read as (hidden, context). A `ponder.Shared` value that the stem hands on
    under its name is shared again.
    """
    hidden = inputs if stem is None else stem(inputs, **(unwrap(context) if context else {}))
    if stem is not None and isinstance(hidden, tuple) and len(hidden) == 2 and isinstance(hidden[1], dict):
        hidden, after = hidden
        for name, given in context.items():
            if isinstance(given, Shared) and after.get(name) is given.value:
                after = {**after, name: given}
        context = after
    size = check_rows("inputs" if stem is None else "hidden state returned by the stem", hidden)
    if context:
        check_rows("context", context, size)
    return hidden, context, size


@dataclass
class ModelSource:
    """The running rows, whose steps are computed: features, outputs and hazards once, when asked for."""

    parts: Any  # a `ponder.PonderWrapper`
    hidden: Tree  # h_0 at first
    context: Mapping[str, Any]  # arguments of every step besides the hidden state
    use_hazard: bool  # whether hazards will be asked for, and past features are kept
    step: int = 0
    lengths: Tensor | None = None  # of the rows, `(rows,)` on the host, where the batch is to get narrower
    past: list[Tensor] | None = None  # features that the Lambda head reads of earlier steps, newest first
    mask: Tensor | None = None  # `(rows, length)` bool, where outputs or features have positions: no padding
    policy_context: Mapping[str, Tensor] = field(default_factory=dict)
    at: Sequence[int] | None = None  # the step of each row after `advance`, where they differ (in a stream)
    _cache: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        parts = self.parts  # looked up once a call: the attributes of a module that are modules are slow to find
        self.run_step: Callable[..., Tree] = parts.steps.forward
        """From the number of a step, the hidden state and the context to the hidden state after that step."""
        self._head, self._lambda_head = parts.head, parts.lambda_head
        self._heads = list(parts.head.heads) if isinstance(parts.head, PerStep) else None
        self._readout, self._halting_readout = parts.readout, parts.halting_readout
        self.device = (self.hidden if isinstance(self.hidden, Tensor) else first_tensor(self.hidden)).device
        self._bind_context()
        if self.past is None:
            head, self.past = self._lambda_head, []
            if self.use_hazard and isinstance(head, LambdaHead) and head.history > 1:
                features = self.halting_features()
                self.past = [features if head.initial == "stem" else torch.zeros_like(features)] * (head.history - 1)

    def advance(self, step: int) -> None:
        """Bring all running rows to `step`."""
        if self.step and self.past:
            self.past = self.next_past()
        self._cache.clear()
        self.step = step
        indexed = self.at is not None and self.parts.steps.index
        at = torch.tensor(self.at, device=self.device) if indexed else None
        self.hidden = self.run_step(step, self.hidden, at, **self._call)

    def next_past(self) -> list[Tensor]:
        """Return the past of the next step."""
        return [self.halting_features(), *self.past[:-1]] if self.past else []

    def features(self) -> Tensor:
        """Return the features of the running rows, `(rows, …)`."""
        if "features" not in self._cache:
            self._cache["features"] = self._read(self.hidden)
        return self._cache["features"]

    def halting_features(self) -> Tensor:
        """Return what the Lambda head reads of this step: the features, unless it has a readout of its own."""
        if self._halting_read is None:
            return self.features()
        if "halting_features" not in self._cache:
            self._cache["halting_features"] = self._halting_read(self.hidden)
        return self._cache["halting_features"]

    def output(self) -> Tensor:
        """Return the outputs of the running rows, `(rows, …)`."""
        if "output" not in self._cache:
            if "features" not in self._cache:  # in line, since it is what most steps do
                self._cache["features"] = self._read(self.hidden)
            self._cache["output"] = self.answer(self._cache["features"])
        return self._cache["output"]

    def hazard_logit(self) -> Tensor:
        """Return the hazard logits of the running rows, `(rows,)`, at least float32."""
        if "hazard" not in self._cache:
            now, head = self.halting_features(), self._lambda_head
            assert head is not None  # policies and objectives were checked
            logit = head(torch.cat([now, *self.past], dim=-1) if self.past else now).reshape(now.shape[0])
            self._cache["hazard"] = logit if logit.dtype == torch.float64 else logit.float()
        return self._cache["hazard"]

    def output_of(self, index: Tensor | None) -> Tensor:
        """Return the outputs of the rows `index` among the running (None: all), computed for no others."""
        if index is None:
            return self.output()
        rows = torch.as_tensor(index, device=self.device)
        if "output" in self._cache:
            return self._cache["output"][rows]
        if "features" in self._cache:
            return self.answer(self._cache["features"][rows], index)
        read = self._readout.bind(unwrap(take_rows(self.context, rows))) if self.context else self._read
        return self.answer(read(take_rows(self.hidden, rows)), index)

    def keep(self, index: Tensor) -> None:
        """Go on with the rows `index` among the running; row numbers are given on the host."""
        rows, padding = torch.as_tensor(index, device=self.device), self.parts.padding
        if self.lengths is not None and padding is not None:
            before, self.lengths = int(self.lengths.max()), self.lengths[index]
            if (length := int(self.lengths.max())) < before:
                self.hidden, self.context = padding.trim(self.hidden, self.context, length)
        kept = ("features", "halting_features") if self.past else ()  # which the past of the next step will hold
        self._cache = {name: value[rows] for name, value in self._cache.items() if name in kept}
        self.hidden, self.mask = take_rows(self.hidden, rows), None if self.mask is None else self.mask[rows]
        if self.past:
            self.past = take_rows(self.past, rows)
        if self.context:
            self.context = take_rows(self.context, rows)
            self._bind_context()
        if self.policy_context:
            self.policy_context = take_rows(self.policy_context, rows)

    def answer(self, features: Tensor, index: Tensor | None = None) -> Tensor:
        """Return the outputs of the rows `index` (None: all) from their features."""
        if self._heads is None:
            outputs = self._head(features)
        elif self.at is None:
            outputs = self._heads[self.step - 1](features)
        else:
            outputs = self._head(features, self.at if index is None else [self.at[row] for row in index.tolist()])
        if not isinstance(outputs, Tensor) or outputs.shape[:1] != features.shape[:1]:
            raise ArgumentError(
                "outputs of the head",
                expected=f"one tensor with the batch first, ({features.shape[0]}, …)",
                got=f"shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__,
                remedy="Return one tensor; concatenate several answers, and take them apart in the task.",
            )
        return outputs

    def _bind_context(self) -> None:
        """Make what steps and readouts are called with; it serves as long as the rows stay."""
        self._call = unwrap(self.context) if self.context else {}
        self._read = self._readout.bind(self._call)
        self._halting_read = None if self._halting_readout is None else self._halting_readout.bind(self._call)


def unroll(
    source: ModelSource, num_steps: int, *, warm_up: int = 0, keep_features: bool = False
) -> dict[str, Tensor | None]:
    """Run all steps for all rows and return `outputs`, `hazard_logits` and `features`, `(batch, steps, …)` or None.

    A head that reads pooled features, `(batch, width)`, is called once, after the last step, with the features of all
    steps as `(batch · steps, width)` rows, unless it takes statistics over its rows. The `warm_up` steps come first,
    without a gradient and unrecorded.
    """
    with torch.no_grad():
        for step in range(1, warm_up + 1):
            source.advance(step)
    if warm_up:  # under autocast, the weights that were cast without a gradient would be used again
        torch.clear_autocast_cache()
    parts = source.parts
    late_outputs, late_hazards = _one_call(parts.head), source.use_hazard and _one_call(parts.lambda_head)
    past = source.next_past() if source.step else source.past or []  # of the first step that is recorded
    if late_hazards:
        source.past = []  # the features of all steps will be here
    outputs: list[Tensor] = []
    hazards: list[Tensor] = []
    features: list[Tensor] = []
    halting: list[Tensor] = []
    for step in range(warm_up + 1, warm_up + num_steps + 1):
        source.advance(step)
        of_step = source._cache["features"] = source._read(source.hidden)
        late_outputs = late_outputs and of_step.dim() == 2  # an answer per token: many rows in one call already
        if late_outputs or keep_features:
            features.append(of_step.clone())  # no view, by which the hidden state would stay alive
        if late_hazards:
            halting.append((of_step if parts.halting_readout is None else source.halting_features()).clone())
        elif source.use_hazard:
            hazards.append(source.hazard_logit())
        if not late_outputs:
            outputs.append(source.output())
    stacked = torch.stack(features, dim=1) if features else None
    logits = torch.stack(hazards, dim=1) if hazards else None
    if late_hazards and parts.lambda_head is not None:
        newest_last = torch.stack([*reversed(past), *halting], dim=1)
        read = torch.cat([newest_last[:, age : age + num_steps] for age in range(len(past), -1, -1)], dim=-1)
        logits = parts.lambda_head(read.flatten(0, 1)).reshape(-1, num_steps)
        logits = logits if logits.dtype == torch.float64 else logits.float()
    if late_outputs and stacked is not None:
        answers = source.answer(stacked.flatten(0, 1)).unflatten(0, stacked.shape[:2])
    else:
        answers = torch.stack(outputs, dim=1)
    return {"outputs": answers, "hazard_logits": logits, "features": stacked if keep_features else None}


def _one_call(head: nn.Module | None) -> bool:
    """Whether a head may be called once with the rows of all steps."""
    return head is not None and not [part for part in head.modules() if isinstance(part, PerStep | _NormBase)]
