"""What a training batch tells besides its loss: the task's loss of each step, expected steps, and the divergence."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributions import kl_divergence

from ponder.distributions import StepDistribution
from ponder.engine.losses import checked_labels, step_losses, with_rest
from ponder.parts.tasks import infer_task
from ponder.wrapper import PonderWrapper

__all__ = ["Means", "measured"]


@torch.no_grad()
def measured(
    model: PonderWrapper, outputs: Tensor, hazard_logits: Tensor | None, labels: Tensor | None
) -> dict[str, Tensor]:
    """What a batch tells, by name, `(batch,)` each.

    Args:
        model: The model.
        outputs: Outputs of every step, `(batch, steps, …)`.
        hazard_logits: `(batch, steps)`, or None.
        labels: Labels, or None.

    Returns:
        `loss_step_1` … (the task's loss of each step) where there are labels and the objective does not draw which
        steps are run; with hazards `expected_steps` (the mean of the halting distribution), and where the objective
        reads a prior `kl`, from that distribution to it. Where the objective draws the steps or ends before the last,
        the halting distribution is not known, and neither of these is told.

    Example:
        >>> found = measured(model, trajectory.outputs, trajectory.hazard_logits, labels)
        >>> list(found), found["loss_step_1"].shape
        (['loss_step_1', 'loss_step_2', 'loss_step_3', 'loss_step_4'], torch.Size([300]))
    """
    found: dict[str, Tensor] = {}
    if not len(outputs):
        return found
    if labels is not None and not model.objective.draws_depth:  # a step that was drawn has no number of its own
        task = model.task or infer_task(outputs[:, -1], labels)
        labels = checked_labels(task, outputs[:, -1], labels)
        rows = task.labelled(labels)
        if rows is not None:  # a row without a label counts for nothing
            outputs, labels = outputs[rows], labels[rows]
            hazard_logits = None if hazard_logits is None else hazard_logits[rows]
        losses = step_losses(task, outputs, labels)
        found = {f"loss_step_{step}": of_step for step, of_step in enumerate(losses.unbind(1), start=1)}
    if hazard_logits is None or not _reaches_the_end(model, hazard_logits.shape[1]):
        return found
    halting = StepDistribution.from_hazard_logits(hazard_logits)
    found["expected_steps"] = halting.mean
    if model.prior is not None and "prior" in model.objective.needs:
        steps = hazard_logits.shape[1]
        prior = model.prior(steps if model.truncate_below is None else model.num_steps)  # the loss asks for as many
        if prior.num_steps > steps:
            hazard_logits, prior = with_rest(hazard_logits, prior)
            halting = StepDistribution.from_hazard_logits(hazard_logits)
        log_pmf = prior.log_pmf.to(hazard_logits.device).expand(len(hazard_logits), -1)
        found["kl"] = kl_divergence(halting, StepDistribution(log_pmf, validate_args=False))
    return found


def _reaches_the_end(model: PonderWrapper, steps: int) -> bool:
    """Whether recorded steps, counted from the first, have all the mass: all N, or all but what truncation leaves."""
    return not model.objective.draws_depth and (steps >= model.num_steps or model.truncate_below is not None)


class Means:
    """Means over the examples of several batches, without waiting for the device before they are asked for.

    Example:
        >>> means = Means()
        >>> means.add({"loss": torch.tensor([1.0, 2.0])})
        >>> means.add({"loss": torch.tensor([6.0])})
        >>> means.taken()
        {'loss': 3.0}
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: Counter[str] = Counter()

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Values of a batch, `(batch,)` each."""
        for name, value in values.items():
            total = value.detach().double().sum()
            self._sums[name] = self._sums[name] + total if name in self._sums else total
            self._counts[name] += len(value)

    def taken(self, gather: Callable[[list[Any]], list[Any]] = list) -> dict[str, float]:
        """The means, which are forgotten.

        Args:
            gather: A function from a list of what this process has seen to the list of what all processes have:
                `gather_object` of accelerate where several train one model.
        """
        own = {name: (float(total), self._counts[name]) for name, total in self._sums.items()}
        self._sums, self._counts = {}, Counter()
        totals: dict[str, tuple[float, int]] = {}
        for seen in gather([own]):
            for name, (total, count) in seen.items():
                before = totals.get(name, (0.0, 0))
                totals[name] = before[0] + total, before[1] + count
        return {name: total / count if count else math.nan for name, (total, count) in totals.items()}
