"""The running rows of a PyTorch model: the source that computes steps.

A `ModelSource` holds the hidden states of the running rows. It computes features, outputs and
hazards on demand, once a step. `ponder.running.loop.run` takes it from the first step to the last
exit; `unroll` takes all rows through every step, for training and for records; in a stream its rows
are at different steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from einops import rearrange
from torch import Tensor, nn

from ponder._utils.trees import Tree, check_rows, first_tensor, map_tensors, take_rows, unwrap
from ponder.errors import ArgumentError
from ponder.model.heads import LambdaHead, PerStep, next_input
from ponder.model.padding import Padding
from ponder.model.readouts import ReadoutCall, mean
from ponder.model.steps import Context, Steps
from ponder.objectives import Depth
from ponder.running.source import Ints

__all__ = ["ModelSource", "Parts", "StemCall", "StepsRecord", "call_stem", "unroll"]


@dataclass(frozen=True)
class StemCall:
    """The result of a stem: h_0, the context of the steps, and the number of rows."""

    hidden: Tree
    context: Context
    rows: int


def call_stem(stem: Callable[..., Tree] | None, inputs: Tree, context: Context) -> StemCall:
    """Call the stem; None is the identity.

    An output that is a pair whose second item is a dict is read as (hidden, context).
    """
    if stem is None:
        hidden = inputs
        rows = check_rows("inputs", hidden)
    else:
        hidden = stem(inputs, **unwrap(context))
        if isinstance(hidden, tuple) and len(hidden) == 2 and isinstance(hidden[1], dict):
            hidden, context = hidden
        rows = check_rows("hidden state returned by the stem", hidden)
    if context:
        check_rows("context", context, rows)
    return StemCall(hidden, context, rows)


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
    """The running rows. Features, outputs and hazards are computed on demand, once a step.

    Args:
        parts: The parts of the model.
        hidden: The hidden state; h_0 at first.
        context: The arguments of every step, without the hidden state.
        use_hazard: Whether hazards will be read; past features are then kept.
        step: The last step that ran.
        past: The input of the Lambda head at the last step, `(rows, history · width)`; None if it
            has no history.
        mask: The positions that are not padding, `(rows, length)` bool; None if neither outputs nor
            features have positions.
        policy_context: The values that the policy reads, `(rows, …)`, by name.
        at: The step of each row after `advance`; None if all rows are at `step`.
    """

    parts: Parts
    hidden: Tree
    context: Context
    use_hazard: bool
    step: int = 0
    past: Tensor | None = None
    mask: Tensor | None = None
    policy_context: Mapping[str, Tensor] = field(default_factory=dict)
    at: Sequence[int] | None = None
    _cache: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Looked up once a call, since a module finds attributes that are modules slowly.
        parts = self.parts
        self.run_step: Callable[..., Tree] = parts.steps.forward
        """A function (step, hidden state, context) → hidden state after the step."""
        self._head = parts.head
        self._readout = parts.readout
        self.lambda_head = parts.lambda_head
        self.heads: list[nn.Module] | None = None
        if isinstance(parts.head, PerStep):
            self.heads = list(parts.head.heads)
        self.device = first_tensor(self.hidden).device
        self._bind_context()
        if self.past is None and self.use_hazard:
            self.past = self._first_past()

    def advance(self, step: int) -> None:
        """Bring all running rows to `step`."""
        self._cache.clear()
        self.step = step
        at = None
        if self.at is not None:
            at = torch.tensor(self.at, device=self.device)
        self.hidden = self.run_step(step, self.hidden, at, **self._call)

    def set_features(self, features: Tensor) -> None:
        """Set the features, of rows of several steps say, from which hazards are computed."""
        self._cache = {"features": features}

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
        """Return the outputs of the rows `index` among the running, and of no others."""
        rows = torch.as_tensor(index, device=self.device)
        if "output" in self._cache:
            return self._cache["output"][rows]
        return self.answer(self.features()[rows], rows)

    def hazard_logit(self) -> Tensor:
        """Return the hazard logits of the running rows, `(rows,)`, at least float32."""
        if "hazard" not in self._cache:
            assert self.lambda_head is not None  # the policy was checked
            read = self.halting()
            logit: Tensor = self.lambda_head(read).reshape(-1)
            if self.past is not None:
                self.past = read
            self._cache["hazard"] = logit.to(torch.promote_types(logit.dtype, torch.float32))
        return self._cache["hazard"]

    def halting(self) -> Tensor:
        """Return the input of the Lambda head: features of the last steps, the newest first.

        Of features at each position a `LambdaHead` reads the mean.
        """
        newest = self.features()
        if newest.dim() > 2 and isinstance(self.lambda_head, LambdaHead):
            newest = mean(newest, self.mask)
        if self.past is None:
            return newest
        return next_input(newest, self.past)

    def keep(self, index: Ints) -> None:
        """Keep the rows `index` among the running, in this order; the numbers are on the host."""
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
            steps = self.at
            if rows is not None:
                steps = [steps[row] for row in rows.tolist()]
            outputs = self._head(features, steps)
        if not isinstance(outputs, Tensor) or outputs.shape[:1] != features.shape[:1]:
            got = type(outputs).__name__
            if isinstance(outputs, Tensor):
                got = f"shape {tuple(outputs.shape)}"
            raise ArgumentError(
                "outputs of the head",
                expected=f"one tensor with the batch first, ({features.shape[0]}, …)",
                got=got,
                remedy="Return one tensor; concatenate several answers, and split them in the "
                "task.",
            )
        return outputs

    def _bind_context(self) -> None:
        """Unwrap the context for steps and the readout, as long as the rows are the same."""
        self._call = unwrap(self.context)
        self._read = self._readout.bind(self._call)

    def _first_past(self) -> Tensor | None:
        """Return the input of a Lambda head with a history before the first step."""
        head = self.lambda_head
        if not isinstance(head, LambdaHead) or head.history == 1:
            return None
        return head.before_first_step(self.halting())


@dataclass(frozen=True)
class StepsRecord:
    """The record of all steps of all rows.

    Args:
        outputs: `(batch, steps, …)`.
        hazard_logits: `(batch, steps)`; None if there are no hazards.
        features: `(batch, steps, …)`; None if they are not kept.
    """

    outputs: Tensor
    hazard_logits: Tensor | None = None
    features: Tensor | None = None


def unroll(source: ModelSource, depth: Depth, *, keep_features: bool = False) -> StepsRecord:
    """Run all steps for all rows.

    The steps of the warm-up come first, without a gradient and unrecorded. A shared head that reads
    pooled features, and the Lambda head, are called once with the rows of all steps, which takes
    less time.
    """
    _warm_up(source, depth.warm_up)
    # The features of all steps will be here, so the source keeps none of the steps before.
    past = source.past
    source.past = None
    outputs: list[Tensor] = []  # torch.compile traces no list[Tensor]()
    features: list[Tensor] = []
    halting: list[Tensor] = []
    for step in range(depth.steps):
        if depth.detached and step:  # the gradient of a step ends where it began, as in HRM
            source.hidden = map_tensors(Tensor.detach, source.hidden)
        source.advance(source.step + 1)
        of_step = source.features()
        # Answers at each position are many rows in one call already.
        if source.heads is not None or of_step.dim() > 2:
            outputs.append(source.output())
        if source.use_hazard:
            halting.append(source.halting().clone())
        if keep_features or not outputs:
            # A clone, since a view would keep the hidden state alive.
            features.append(of_step.clone())
    stacked = None
    if features:
        stacked = torch.stack(features, dim=1)
    if outputs or stacked is None:
        answers = torch.stack(outputs, dim=1)
    else:
        answers = source.answer(stacked.flatten(0, 1)).unflatten(0, (-1, depth.steps))
    hazard_logits = None
    if halting:
        hazard_logits = _hazards_of_steps(source, torch.stack(halting, dim=1), past)
    if not keep_features:
        stacked = None
    return StepsRecord(answers, hazard_logits, stacked)


def _hazards_of_steps(source: ModelSource, read: Tensor, past: Tensor | None) -> Tensor:
    """Return the hazard logits of all steps, `(batch, steps)`, by one call of the Lambda head.

    Args:
        source: The rows.
        read: The features of each step, `(batch, steps, width)`.
        past: The input of the head before these steps; None if it has no history.
    """
    if past is not None:
        read = _with_history(read, past)
    source.set_features(read.flatten(0, 1))
    logits: Tensor = source.hazard_logit().unflatten(0, (-1, read.shape[1]))
    return logits


def _warm_up(source: ModelSource, steps: int) -> None:
    """Run the first steps without a gradient."""
    with torch.no_grad():
        for _ in range(steps):
            source.advance(source.step + 1)
            if source.past is not None:
                source.past = source.halting()
    if steps:
        # Autocast would use the weights again that were cast without a gradient.
        torch.clear_autocast_cache()


def _with_history(read: Tensor, past: Tensor) -> Tensor:
    """Return what a Lambda head with a history reads at every step, the newest features first.

    Args:
        read: Features of the steps, `(batch, steps, width)`.
        past: Features of the steps before these, newest first, `(batch, history · width)`.

    Returns:
        Features of each step and of those before it, `(batch, steps, history · width)`.
    """
    before = rearrange(past, "batch (history width) -> batch history width", width=read.shape[2])
    history = before.shape[1]
    # Oldest first in time, so that step n and the steps before it are one window.
    in_time = torch.cat([before.flip(1)[:, 1:], read], dim=1)
    windows = in_time.unfold(1, history, 1).flip(-1)
    return rearrange(windows, "batch steps width history -> batch steps (history width)")
