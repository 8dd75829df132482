"""The unroll: all steps for all rows, recorded, with the heads called once for all steps where nothing forbids it.

Nobody leaves, so that it is a plain loop over the steps. A head that reads pooled features, `(batch, width)`, is given
the features of all steps as `(batch · steps, width)` rows after the last step: one call instead of N. A head that must
see each step on its own says so (see `one_call`), and is called after each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint

from ponder._utils.numerics import at_least_float32
from ponder._utils.trees import Tree
from ponder.engine.loop import Exits
from ponder.engine.sources import ModelSource

__all__ = ["CheckpointedSource", "StepRecord", "no_exits", "no_steps", "one_call", "unroll"]


@dataclass(frozen=True)
class StepRecord:
    """What all steps gave.

    Args:
        outputs: `(batch, steps, …)`.
        hazard_logits: `(batch, steps)`, at least float32; None where they were not asked for.
        features: `(batch, steps, …)`; None where they were not asked for.
    """

    outputs: Tensor
    hazard_logits: Tensor | None
    features: Tensor | None


def unroll(
    source: ModelSource,
    num_steps: int,
    *,
    warm_up: int = 0,
    keep_features: bool = False,
    truncate_below: float | None = None,
) -> StepRecord:
    """Run all steps for all rows and record them.

    Args:
        source: The rows before their first step, at least one. Its `use_hazard` says whether to record hazards.
        num_steps: How many steps are recorded.
        warm_up: How many run before them, without a gradient and unrecorded.
        keep_features: Record features too.
        truncate_below: Stop after the first step n at which Π_{j≤n} (1 − λ_j) is below this in every row. Rows do not
            stop one by one: a step would see another batch than without truncation. Costs a synchronisation a step.
    """
    with torch.no_grad():
        for step in range(1, warm_up + 1):
            source.advance(step)
    recorder = _Recorder(source, keep_features, hazard_each_step=truncate_below is not None)
    log_survival: Tensor | float = 0.0
    for step in range(warm_up + 1, warm_up + num_steps + 1):
        source.advance(step)
        recorder.add()
        if truncate_below is not None and step < num_steps:
            log_survival = log_survival + F.logsigmoid(-source.hazard_logit().detach())
            if bool((log_survival.exp() < truncate_below).all()):
                break
    return recorder.record()


def no_steps(source: ModelSource, num_steps: int, *, keep_features: bool) -> StepRecord:
    """The record of no rows, with all steps, though none runs; arguments as for `unroll`."""
    outputs = no_exits(source, num_steps).outputs
    hazard_logits = outputs.new_zeros(0, num_steps, dtype=torch.float32)
    return StepRecord(
        outputs=torch.stack([outputs] * num_steps, dim=1),
        hazard_logits=None if source.parts.lambda_head is None else hazard_logits,
        features=torch.stack([source.read_out()] * num_steps, dim=1) if keep_features else None,
    )


def no_exits(source: ModelSource, num_steps: int) -> Exits:
    """The exits of no rows: no step runs, and the last head gives their outputs a shape."""
    source.step = num_steps
    outputs = source.output()
    return Exits(outputs, torch.zeros(0, dtype=torch.long, device=outputs.device))


def one_call(head: nn.Module) -> bool:
    """Whether `head` may be called once with the rows of all steps.

    A head treats each row alone, so it may, unless a module in it keeps or takes statistics over the rows of a call
    (BatchNorm in training), or declares ``steps_in_one_call = False``, as `ponder.PerStep` does and as any module can.

    Example:
        >>> one_call(nn.Linear(8, 2)), one_call(nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 2)))
        (True, False)
    """
    for part in head.modules():
        mixes_rows = isinstance(part, _NormBase) and (part.training or not part.track_running_stats)
        if mixes_rows or not getattr(part, "steps_in_one_call", True):
            return False
    return True


@dataclass
class CheckpointedSource(ModelSource):
    """Rows whose steps keep no inner activations for the backward pass, which computes them again.

    What stays is the hidden state between steps, so that memory does not grow with the depth but by those. Random
    numbers (dropout) are drawn again as they were. Steps that keep statistics (BatchNorm) update them twice.
    """

    def run_step(self, step: int) -> Tree:
        """See `ModelSource.run_step`; outside a graph it is that."""
        if not torch.is_grad_enabled():
            return super().run_step(step)
        call = self._call
        return checkpoint(lambda state: self._steps(step, state, **call), self.hidden, use_reentrant=False)


@dataclass
class _Recorder:
    """Collects the steps of an unroll.

    Args:
        source: The rows, before their first step.
        keep_features: Whether features are wanted.
        hazard_each_step: Whether hazards are read after each step anyway.
    """

    source: ModelSource
    keep_features: bool
    hazard_each_step: bool
    features: list[Tensor] = field(default_factory=list)
    halting: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    hazard_logits: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        parts, use_hazard = self.source.parts, self.source.use_hazard
        past = self.source.next_past() if self.source.step else self.source.past  # of the first step that is recorded
        self._past, self._own_halting = list(past or ()), parts.halting_readout is not None
        self._late_outputs = one_call(parts.head)
        self._late_hazards = use_hazard and not self.hazard_each_step and one_call(parts.lambda_head)
        if self._late_hazards:
            self.source.past = []  # the features of all steps are here

    def add(self) -> None:
        """Take what is wanted of the step at which the rows stand."""
        source, features = self.source, self.source.read_out()
        if features.dim() != 2:  # an answer per token: many rows in one call already, and too large to copy
            self._late_outputs = False
        if self._late_outputs or self.keep_features or (self._late_hazards and not self._own_halting):
            # A copy of its own, not a view of a hidden state that would stay alive, or be changed in place.
            self.features.append(features.clone() if features.dim() == 2 else source.lasting(features))
        if self._late_hazards and self._own_halting:
            self.halting.append(source.halting_features().clone())
        if not self._late_outputs:
            self.outputs.append(source.output())
        if source.use_hazard and not self._late_hazards:
            self.hazard_logits.append(source.hazard_logit())

    def record(self) -> StepRecord:
        """What was collected, and what the heads give for all steps at once."""
        return StepRecord(
            outputs=self._all_outputs(),
            hazard_logits=self._all_hazard_logits() if self.source.use_hazard else None,
            features=torch.stack(self.features, dim=1) if self.keep_features else None,
        )

    def _all_outputs(self) -> Tensor:
        """Outputs of all steps, `(batch, steps, …)`."""
        if not self._late_outputs:
            return torch.stack(self.outputs, dim=1)
        features = torch.stack(self.features, dim=1)
        return _of_all_steps(lambda rows: self.source.answer(rows, None), features)

    def _all_hazard_logits(self) -> Tensor:
        """Hazard logits of all steps, `(batch, steps)`."""
        if not self._late_hazards:
            return torch.stack(self.hazard_logits, dim=1)
        read = self.halting if self._own_halting else self.features
        newest_last = torch.stack([*reversed(self._past), *read], dim=1)
        history, steps = len(self._past) + 1, len(read)
        newest_first = [newest_last[:, history - 1 - age : history - 1 - age + steps] for age in range(history)]
        return at_least_float32(_of_all_steps(self.source.parts.lambda_head, torch.cat(newest_first, dim=-1)))


def _of_all_steps(head: Callable[[Tensor], Tensor], features: Tensor) -> Tensor:
    """The answers of `head` to `features`, `(batch, steps, width)`, in one call: `(batch, steps, …)`."""
    answers: Tensor = head(features.flatten(0, 1)).unflatten(0, features.shape[:2])
    return answers
