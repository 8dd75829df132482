"""The unroll: all steps for all rows, recorded, with the heads called once for all steps where nothing forbids it.

Nobody leaves, so that it is a plain loop over the steps. A head that reads pooled features, `(batch, width)`, is given
the features of all steps as `(batch · steps, width)` rows after the last step: one call instead of N. A head that must
see each step on its own says so (see `one_call`), and is called after each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint

from ponder._utils.numerics import at_least_float32
from ponder._utils.trees import Tree, map_tensors
from ponder.engine.loop import Exits
from ponder.engine.sources import ModelSource
from ponder.errors import ArgumentError
from ponder.parts.steps import Steps

__all__ = ["StepRecord", "checkpointed", "no_exits", "no_steps", "one_call", "unroll"]


@dataclass(frozen=True)
class StepRecord:
    """What an unroll recorded of all steps.

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
    if warm_up:  # under autocast, the weights that were cast without a gradient would be used again
        torch.clear_autocast_cache()
    parts, use_hazard = source.parts, source.use_hazard
    late_outputs = one_call(parts.head)  # after the last step, for all of them at once
    late_hazards = use_hazard and truncate_below is None and one_call(parts.lambda_head)
    past = source.next_past() if source.step else source.past  # of the first step that is recorded
    if late_hazards:
        source.past = []  # the features of all steps will be here
    outputs, hazard_logits, features = list[Tensor](), list[Tensor](), list[Tensor]()
    halting = features if parts.halting_readout is None else list[Tensor]()
    for step in range(warm_up + 1, warm_up + num_steps + 1):
        source.advance(step)
        of_step = source.read_out()
        pooled = of_step.dim() == 2
        if late_outputs and features and not pooled:
            raise _of_several_shapes(features[0], of_step)
        late_outputs = late_outputs and pooled  # an answer per token: many rows in one call already, and much to copy
        if late_outputs or keep_features or (late_hazards and halting is features):
            # A copy of its own, not a view of a hidden state that would stay alive, or be changed in place.
            features.append(of_step.clone() if pooled else source.lasting(of_step))
            if of_step.shape != features[0].shape:
                raise _of_several_shapes(features[0], of_step)
        if late_hazards and halting is not features:
            halting.append(source.halting_features().clone())
        if not late_outputs:
            outputs.append(source.output())
        if use_hazard and not late_hazards:
            hazard_logits.append(source.hazard_logit())
        if truncate_below is not None and len(hazard_logits) < num_steps and _ran_out(hazard_logits, truncate_below):
            break
    all_features = torch.stack(features, dim=1) if features else None
    of_hazards = torch.stack(hazard_logits, dim=1) if hazard_logits else None
    if late_hazards:
        of_hazards = at_least_float32(_of_all_steps(parts.lambda_head, _with_history(past or [], halting)))
    return StepRecord(
        outputs=_of_all_steps(source.answer, all_features) if late_outputs else torch.stack(outputs, dim=1),
        hazard_logits=of_hazards,
        features=all_features if keep_features else None,
    )


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
    """The exits of no rows: the last head gives their outputs a shape.

    No step runs where the head takes h_0, since many a step cannot run without rows; in stages of several widths it
    takes what the last of them gives.
    """
    source.step = num_steps
    try:
        outputs = source.output()
    except Exception:
        if source.parts.steps.shared:
            raise
        for step in range(1, num_steps + 1):
            source.advance(step)
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


def checkpointed(steps: Steps) -> Callable[..., Tree]:
    """Steps that keep no inner activations for the backward pass, which computes them again.

    What stays is the hidden state between steps, so that memory does not grow with the depth but by those. Random
    numbers (dropout) are drawn again as they were. Steps that keep statistics (BatchNorm) update them twice. A step is
    given copies, since one that changes its state in place would begin again with the changed one. Outside a graph
    nothing changes.
    """

    def run_step(step: int, hidden: Tree, at: Tensor | None = None, /, **context: Any) -> Tree:
        if not torch.is_grad_enabled():
            return steps(step, hidden, at, **context)
        return checkpoint(
            lambda state: steps(step, map_tensors(Tensor.clone, state), at, **context), hidden, use_reentrant=False
        )

    return run_step


def _with_history(past: Sequence[Tensor], features: Sequence[Tensor]) -> Tensor:
    """What a Lambda head reads of every step, newest first: `(batch, steps, history · width)`.

    Args:
        past: The features of the steps before the first, newest first.
        features: The features of each step, `(batch, width)`.
    """
    if not past:
        return torch.stack(list(features), dim=1)
    newest_last = torch.stack([*reversed(past), *features], dim=1)
    of_ages = [newest_last[:, age : age + len(features)] for age in range(len(past), -1, -1)]
    return torch.cat(of_ages, dim=-1)


def _of_several_shapes(first: Tensor, other: Tensor) -> ArgumentError:
    return ArgumentError(
        "features of the readout",
        expected="one shape at every step, where they are kept or one head reads those of all steps",
        got=f"{tuple(first.shape)} and {tuple(other.shape)}",
        remedy="Give stages of several widths a head each, ponder.PerStep([…]), and an objective and a policy that do "
        "not read features.",
    )


def _ran_out(hazard_logits: Sequence[Tensor], mass: float) -> bool:
    """Whether every row has less than `mass` left after the hazards of the steps so far, `(batch,)` each."""
    log_survival = F.logsigmoid(-torch.stack(list(hazard_logits)).detach()).sum(0)
    return bool((log_survival.exp() < mass).all())


def _of_all_steps(head: Callable[[Tensor], Tensor], features: Tensor | None) -> Tensor:
    """The answers of `head` to `features`, `(batch, steps, width)`, in one call: `(batch, steps, …)`."""
    assert features is not None  # there is one step or more
    answers: Tensor = head(features.flatten(0, 1)).unflatten(0, features.shape[:2])
    return answers
