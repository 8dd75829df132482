"""The rows of a PyTorch model that are still running: the source that computes steps.

A `ModelSource` holds the hidden states of the running rows, and computes features, outputs and
hazards when they are asked for. `ponder.running.loop.run` takes it from the first step to the last
exit; `unroll` takes all rows through every step, for training and for records; in a stream its rows
are at different steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from einops import rearrange
from torch import Tensor, nn

from ponder._utils.trees import Tree, check_rows, first_tensor, take_rows, unwrap
from ponder.errors import ArgumentError
from ponder.model.heads import LambdaHead, PerStep
from ponder.model.padding import Padding
from ponder.model.readouts import ReadoutCall, mean
from ponder.model.steps import Steps
from ponder.objectives import Depth
from ponder.running.source import Ints

__all__ = ["ModelSource", "Parts", "call_stem", "unroll"]


def call_stem(
    stem: Callable[..., Tree] | None, inputs: Tree, context: Mapping[str, Any]
) -> tuple[Tree, Mapping[str, Any], int]:
    """Call the stem, the identity where None, and return h_0, the context of the steps, and the number of rows.

    A pair whose second item is a dict is read as (hidden, context).
    """
    hidden = inputs if stem is None else stem(inputs, **(unwrap(context) if context else {}))
    if (
        stem is not None
        and isinstance(hidden, tuple)
        and len(hidden) == 2
        and isinstance(hidden[1], dict)
    ):
        hidden, context = hidden
    size = check_rows("inputs" if stem is None else "hidden state returned by the stem", hidden)
    if context:
        check_rows("context", context, size)
    return hidden, context, size


class Parts(Protocol):
    """The parts of a model with which a source computes; a `ponder.PonderWrapper` has them."""

    @property
    def steps(self) -> Steps:
        """The steps."""

    @property
    def head(self) -> nn.Module:
        """Features to outputs; a `PerStep` holds one head a step."""

    @property
    def lambda_head(self) -> nn.Module | None:
        """Features to hazard logits; None if there are no hazards."""

    @property
    def readout(self) -> ReadoutCall:
        """Hidden state to features."""

    @property
    def padding(self) -> Padding | None:
        """Where lengths lie in the tensors of the model; None if rows have no length."""


@dataclass
class ModelSource:
    """The running rows, whose steps are computed: features, outputs and hazards once, when asked for."""

    parts: Parts
    hidden: Tree  # h_0 at first
    context: Mapping[str, Any]  # arguments of every step besides the hidden state
    use_hazard: bool  # whether hazards will be asked for, and past features are kept
    step: int = 0
    past: Tensor | None = (
        None  # what the Lambda head read of the last step, `(rows, …)`, where it has a history
    )
    mask: Tensor | None = (
        None  # `(rows, length)` bool, where outputs or features have positions: no padding
    )
    policy_context: Mapping[str, Tensor] = field(default_factory=dict)
    at: Sequence[int] | None = (
        None  # the step of each row after `advance`, where they differ (in a stream)
    )
    _cache: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        parts = (
            self.parts
        )  # looked up once a call: the attributes of a module that are modules are slow to find
        self.run_step: Callable[..., Tree] = parts.steps.forward
        """From the number of a step, the hidden state and the context to the hidden state after that step."""
        self._head, self.lambda_head, self._readout = parts.head, parts.lambda_head, parts.readout
        self.heads = list(parts.head.heads) if isinstance(parts.head, PerStep) else None
        self.device = (
            self.hidden if isinstance(self.hidden, Tensor) else first_tensor(self.hidden)
        ).device
        self._bind_context()
        head = self.lambda_head
        if (
            self.past is None
            and self.use_hazard
            and isinstance(head, LambdaHead)
            and head.history > 1
        ):
            past = torch.cat([self.halting()] * head.history, dim=-1)
            self.past = past if head.initial == "stem" else torch.zeros_like(past)

    def advance(self, step: int) -> None:
        """Bring all running rows to `step`."""
        self._cache.clear()
        self.step = step
        at = None if self.at is None else torch.tensor(self.at, device=self.device)
        self.hidden = self.run_step(step, self.hidden, at, **self._call)

    def features(self) -> Tensor:
        """Return the features of the running rows, `(rows, …)`."""
        if "features" not in self._cache:
            self._cache["features"] = self._read(self.hidden)
        return self._cache["features"]

    def output(self) -> Tensor:
        """Return the outputs of the running rows, `(rows, …)`."""
        if "output" not in self._cache:
            if "features" not in self._cache:  # in line, since it is what most steps do
                self._cache["features"] = self._read(self.hidden)
            self._cache["output"] = self.answer(self._cache["features"])
        return self._cache["output"]

    def output_of(self, index: Ints) -> Tensor:
        """Return the outputs of the rows `index` among the running; the head is called for no others."""
        rows = torch.as_tensor(index, device=self.device)
        return (
            self._cache["output"][rows]
            if "output" in self._cache
            else self.answer(self.features()[rows], rows)
        )

    def hazard_logit(self) -> Tensor:
        """Return the hazard logits of the running rows, `(rows,)`, at least float32."""
        if "hazard" not in self._cache:
            assert self.lambda_head is not None  # the policy was checked
            read = self.halting()
            logit: Tensor = self.lambda_head(read).reshape(-1)
            self.past = None if self.past is None else read
            self._cache["hazard"] = logit.to(torch.promote_types(logit.dtype, torch.float32))
        return self._cache["hazard"]

    def halting(self) -> Tensor:
        """Return what the Lambda head reads: features, newest first; of positions a `LambdaHead` reads the mean."""
        now = self.features()
        if now.dim() > 2 and isinstance(self.lambda_head, LambdaHead):
            now = mean(now, self.mask)
        return now if self.past is None else torch.cat([now, self.past[:, : -now.shape[1]]], -1)

    def keep(self, index: Ints) -> None:
        """Go on with the rows `index` among the running, which are numbered on the host."""
        rows = torch.as_tensor(index, device=self.device)
        self.hidden = take_rows(self.hidden, rows)
        if self.past is not None:
            self.past = take_rows(self.past, rows)
        if self.mask is not None:
            self.mask = take_rows(self.mask, rows)
        if self.policy_context:
            self.policy_context = take_rows(self.policy_context, rows)
        if self.context:
            self.context = take_rows(self.context, rows)
            self._bind_context()

    def answer(self, features: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return the outputs of the running `rows` (None: all) from their features."""
        if self.heads is None:
            outputs = self._head(features)
        elif self.at is None:
            outputs = self.heads[self.step - 1](features)
        else:
            outputs = self._head(
                features, self.at if rows is None else [self.at[row] for row in rows.tolist()]
            )
        if not isinstance(outputs, Tensor) or outputs.shape[:1] != features.shape[:1]:
            expected = f"one tensor with the batch first, ({features.shape[0]}, …)"
            got = (
                f"shape {tuple(outputs.shape)}"
                if isinstance(outputs, Tensor)
                else type(outputs).__name__
            )
            remedy = (
                "Return one tensor; concatenate several answers, and take them apart in the task."
            )
            raise ArgumentError("outputs of the head", expected=expected, got=got, remedy=remedy)
        return outputs

    def _bind_context(self) -> None:
        """Make what steps and the readout are called with; it serves as long as the rows stay."""
        self._call = unwrap(self.context) if self.context else {}
        self._read = self._readout.bind(self._call)


def unroll(
    source: ModelSource, depth: Depth, *, keep_features: bool = False
) -> dict[str, Tensor | None]:
    """Run all steps for all rows and return `outputs`, `hazard_logits` and `features`, `(batch, steps, …)` or None.

    The steps of the warm-up come first, without a gradient and unrecorded. A shared head that reads
    pooled features, and the Lambda head, are called once with the rows of all steps, which takes
    less time.
    """
    with torch.no_grad():
        for _ in range(depth.warm_up):
            source.advance(source.step + 1)
            source.past = None if source.past is None else source.halting()
    if (
        depth.warm_up
    ):  # under autocast, the weights that were cast without a gradient would be used again
        torch.clear_autocast_cache()
    past, source.past = source.past, None  # the features of all steps will be here
    outputs: list[Tensor] = []  # torch.compile traces no list[Tensor]()
    features: list[Tensor] = []
    halting: list[Tensor] = []
    for _ in range(depth.steps):
        source.advance(source.step + 1)
        of_step = source._cache["features"] = source._read(source.hidden)
        has_positions = of_step.dim() > 2  # answers a token are many rows in one call already
        if source.heads is not None or has_positions:
            outputs.append(source.output())
        if source.use_hazard:
            halting.append((source.halting() if has_positions else of_step).clone())
        if keep_features or not outputs:
            features.append(of_step.clone())  # no view, by which the hidden state would stay alive
    stacked = torch.stack(features, dim=1) if features else None
    if stacked is not None and not outputs:
        answers = source.answer(stacked.flatten(0, 1)).unflatten(0, (-1, depth.steps))
    else:
        answers = torch.stack(outputs, dim=1)
    hazards = None
    if halting:
        read = torch.stack(halting, dim=1)
        if past is not None:
            read = _with_history(read, past)
        source._cache = {"features": read.flatten(0, 1)}
        hazards = source.hazard_logit().unflatten(0, (-1, depth.steps))
    return {
        "outputs": answers,
        "hazard_logits": hazards,
        "features": stacked if keep_features else None,
    }


def _with_history(read: Tensor, past: Tensor) -> Tensor:
    """Return what a Lambda head with a history reads at every step: features of the last steps, the newest first.

    Args:
        read: Features of the steps, `(batch, steps, width)`.
        past: Features of the steps before these, newest first, `(batch, history · width)`.
    """
    before = rearrange(past, "batch (history width) -> batch history width", width=read.shape[2])
    history = before.shape[1]
    # Oldest first in time, so that step n and the steps before it are one window.
    in_time = torch.cat([before.flip(1)[:, 1:], read], dim=1)
    windows = in_time.unfold(1, history, 1).flip(-1)
    return rearrange(windows, "batch steps width history -> batch steps (history width)")
