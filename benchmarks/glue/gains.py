"""Whether going on pays for some examples more than for others, and whether a model can tell which.

The *gain* of an example is how much its loss falls a step: minus the slope of a straight line through its losses over
the steps (least squares). Exits per example can beat one fixed step only as far as what a policy sees ranks examples by
gain.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor

from ponder import Trajectory
from ponder.parts.tasks import as_task

__all__ = ["gains", "losses"]


def gains(trajectory: Trajectory) -> dict[str, Any]:
    """The gains of a split, and how they go together with what policies see.

    Args:
        trajectory: With labels, of at least two steps.

    Returns:
        `mean` and `deviation` of the gain over the examples, in nats a step (squared error in regression); `halting`,
        the rank correlation (Spearman) of E[n|x] with the gain, None without hazards; `unsure`, for each step but the
        last, that of one minus the highest class probability there, None in regression. A correlation is None where
        one of the two is the same for all examples.
    """
    gain = _gain(trajectory)
    steps = torch.arange(1.0, trajectory.num_steps + 1)
    expected = None if trajectory.hazard_logits is None else trajectory.halting.pmf.float() @ steps
    unsure = None
    if trajectory.task != "regression":
        unsure = 1.0 - trajectory.outputs.float().softmax(-1).amax(-1)[:, :-1]
    return {
        "mean": gain.mean().item(),
        "deviation": gain.std().item() if len(gain) > 1 else 0.0,
        "halting": None if expected is None else _correlation(expected, gain),
        "unsure": None if unsure is None else [_correlation(at_step, gain) for at_step in unsure.unbind(1)],
    }


def losses(trajectory: Trajectory) -> Tensor:
    """The task's loss of every example at every step, `(examples, steps)`."""
    task = as_task(trajectory.task)  # type: ignore[arg-type]
    assert task is not None
    assert trajectory.labels is not None
    labels = task.check(trajectory.outputs[:, 0], trajectory.labels)
    return torch.stack([task.losses(outputs, labels) for outputs in trajectory.outputs.unbind(1)], dim=1).float()


def _gain(trajectory: Trajectory) -> Tensor:
    """`(examples,)`."""
    steps = torch.arange(float(trajectory.num_steps))
    steps = steps - steps.mean()
    return -(losses(trajectory) @ steps) / steps.square().sum()


def _correlation(seen: Tensor, gain: Tensor) -> float | None:
    if seen.unique().numel() < 2 or gain.unique().numel() < 2:
        return None
    value = float(spearmanr(seen.numpy(), gain.numpy()).statistic)
    return None if math.isnan(value) else round(value, 4)
