"""The unroll: all steps for all rows, recorded, with the heads called once for all steps where nothing forbids it.

It is the loop with nobody leaving early. A head that reads pooled features, `(batch, width)`, is given
the features of all steps as `(batch · steps, width)` rows after the last step: one call instead of N. A head that must
see each step on its own says so (see `one_call`), and is called after each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint

from ponder._utils.numerics import at_least_float32
from ponder._utils.trees import Tree
from ponder.engine.loop import Exits, Source, run
from ponder.engine.sources import ModelSource
from ponder.parts.steps import Steps
from ponder.policies import Batch, ExitPolicy, LastStep, StepView
from ponder.trajectory import Trajectory

__all__ = ["CheckpointedSteps", "UnrolledSource", "no_exits", "no_steps", "one_call", "unroll"]


def unroll(
    source: UnrolledSource, batch: Batch, *, keep_features: bool = False, truncate_below: float | None = None
) -> Trajectory:
    """Run all steps for all rows and record them.

    Args:
        source: The rows before their first step, at least one. Its `use_hazard` says whether to record hazards.
        batch: Who the rows are.
        keep_features: Record features too.
        truncate_below: Stop after the first step at which no row has this much mass left (see `MassLeft`).
    """
    record = _Recorder(source, keep_features, hazard_each_step=truncate_below is not None)
    run(source, LastStep() if truncate_below is None else MassLeft(truncate_below), batch, record)
    return Trajectory(
        outputs=record.all_outputs(),
        hazard_logits=record.all_hazard_logits() if source.use_hazard else None,
        row_ids=batch.row_ids,
        features=torch.stack(record.features, dim=1) if keep_features else None,
        task=batch.task,
    )


def no_steps(source: UnrolledSource, batch: Batch, *, keep_features: bool) -> Trajectory:
    """The trajectory of no rows, with all steps, though none runs; arguments as for `unroll`."""
    outputs, steps = no_exits(source, batch.num_steps).outputs, batch.num_steps
    return Trajectory(
        outputs=torch.stack([outputs] * steps, dim=1),
        hazard_logits=None if source.parts.lambda_head is None else torch.zeros(0, steps, device=batch.device),
        row_ids=batch.row_ids,
        features=torch.stack([source.features()] * steps, dim=1) if keep_features else None,
        task=batch.task,
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
    return all(getattr(part, "steps_in_one_call", True) and not _mixes_rows(part) for part in head.modules())


def _mixes_rows(part: nn.Module) -> bool:
    return isinstance(part, _NormBase) and (part.training or not part.track_running_stats)


class UnrolledSource(ModelSource):
    """The rows of an unroll. Nobody reads the outputs at their exits: the record has those of all steps."""

    def output_of(self, index: Tensor | None) -> Tensor:
        """Stands for outputs, which would cost a call of the head."""
        return self.features()


@dataclass(frozen=True)
class CheckpointedSteps:
    """Steps whose inner activations are computed again in the backward pass instead of being kept.

    What stays is the hidden state between steps, so that memory does not grow with the depth but by those. Random
    numbers (dropout) are drawn again as they were. Steps that keep statistics (BatchNorm) update them twice.

    Args:
        steps: The steps.
    """

    steps: Steps

    def __call__(self, step: int, hidden: Tree, **context: Any) -> Tree:
        """See `Steps.forward`; outside a graph it is that."""
        if not torch.is_grad_enabled():
            return self.steps(step, hidden, **context)
        return checkpoint(lambda state: self.steps(step, state, **context), hidden, use_reentrant=False)


@dataclass(frozen=True)
class MassLeft(ExitPolicy):
    """All rows leave together, after the first step n at which Π_{j≤n} (1 − λ_j) < `below` in every row.

    Rows do not leave one by one: the step would see another batch than without truncation.

    Args:
        below: ε in (0, 1).
    """

    below: float
    needs = frozenset({"hazard"})

    def decide(self, step: StepView, state: Tree) -> tuple[Tensor | bool, Tree]:
        """One synchronisation."""
        left = step.survival.detach() * (1.0 - step.hazard.detach())
        return bool((left < self.below).all()), state


@dataclass
class _Recorder:
    """Collects the steps of an unroll (a `loop.Record`).

    Args:
        source: The rows, before their first step.
        keep_features: Whether features are wanted.
        hazard_each_step: Whether hazards are read after each step anyway.
    """

    source: ModelSource
    keep_features: bool
    hazard_each_step: bool
    features: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    hazard_logits: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        parts, self._past = self.source.parts, list(self.source.past or ())
        self._late_outputs = one_call(parts.head)
        self._late_hazards = self.source.use_hazard and not self.hazard_each_step and one_call(parts.lambda_head)

    def add(self, source: Source) -> None:
        """See `loop.Record`."""
        features = source.features()
        if features.dim() != 2:  # an answer per token: many rows in one call already, and too large to copy
            self._late_outputs = self._late_hazards = False
        if self._late_outputs or self._late_hazards or self.keep_features:
            # A copy of its own, not a view of a hidden state that would stay alive, or be changed in place.
            self.features.append(features.clone() if features.dim() == 2 else features)
        if not self._late_outputs:
            self.outputs.append(source.output())
        if self.source.use_hazard and not self._late_hazards:
            self.hazard_logits.append(source.hazard_logit())

    def all_outputs(self) -> Tensor:
        """Outputs of all steps, `(batch, steps, …)`."""
        if not self._late_outputs:
            return torch.stack(self.outputs, dim=1)
        return _of_all_steps(self.source.parts.head, torch.stack(self.features, dim=1))

    def all_hazard_logits(self) -> Tensor:
        """Hazard logits of all steps, `(batch, steps)`."""
        if not self._late_hazards:
            return torch.stack(self.hazard_logits, dim=1)
        seen = torch.stack([*reversed(self._past), *self.features], dim=1)
        history, steps = len(self._past) + 1, len(self.features)
        newest_first = [seen[:, history - 1 - age : history - 1 - age + steps] for age in range(history)]
        return at_least_float32(_of_all_steps(self.source.parts.lambda_head, torch.cat(newest_first, dim=-1)))


def _of_all_steps(head: Callable[[Tensor], Tensor], features: Tensor) -> Tensor:
    """The answers of `head` to `features`, `(batch, steps, width)`, in one call: `(batch, steps, …)`."""
    answers: Tensor = head(features.flatten(0, 1)).unflatten(0, features.shape[:2])
    return answers
