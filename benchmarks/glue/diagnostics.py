"""Whether going on pays for some examples more than for others, and what a Lambda head could have learnt of it.

The *gain* of an example is how much its loss falls a step: minus the slope of a straight line through its losses over
the steps (least squares). Exits per example can beat one fixed step only as far as what a policy sees ranks examples by
gain.

The evidence lower bound has its *optimum* at p*(n) ∝ p(n) exp(−ℓ_n / β) (`Ponder.optimum`). A head that cannot tell
examples apart does best with that of the mean losses; one that knew the losses of each, with that of its own.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor

from ponder import StepDistribution, Trajectory
from ponder.objectives import Objective, Ponder, Weighted
from ponder.priors import Prior

__all__ = ["gains", "optimum"]


def gains(trajectory: Trajectory) -> dict[str, Any]:
    """The gains of a split, and how they go together with what policies see.

    Returns:
        `mean` and `deviation` of the gain over the examples, in nats a step (squared error in regression); `halting`,
        the rank correlation (Spearman) of E[n|x] with the gain, None without hazards; `unsure`, for each step but the
        last, that of one minus the highest class probability there, None in regression. A correlation is None where
        one of the two is the same for all examples.
    """
    centred = torch.arange(float(trajectory.num_steps)) - (trajectory.num_steps - 1) / 2
    gain = -(_losses(trajectory) @ centred) / centred.square().sum()
    expected = None if trajectory.hazard_logits is None else _expected_step(trajectory.halting.pmf.float())
    unsure = None
    if trajectory.task != "regression":
        unsure = 1.0 - trajectory.outputs.float().softmax(-1).amax(-1)[:, :-1]
    return {
        "mean": gain.mean().item(),
        "deviation": _deviation(gain),
        "halting": None if expected is None else _correlation(expected, gain),
        "unsure": None if unsure is None else [_correlation(at_step, gain) for at_step in unsure.unbind(1)],
    }


def optimum(trajectory: Trajectory, objective: Objective, prior: Prior | None) -> dict[str, Any] | None:
    """The optimum of a split beside what was learnt.

    Returns:
        `blind`, the optimum for the mean losses over the examples, `(steps,)`; `spread_learnt` and `spread_oracle`, the
        standard deviations over the examples of E[n|x] by the head, and by the optimum for each example's own losses.
        None where there is no Lambda head, or no closed optimum.
    """
    pondering = _pondering(objective)
    if trajectory.hazard_logits is None or prior is None or pondering is None:
        return None
    of_each = _losses(trajectory).double()
    over_steps = StepDistribution(prior(trajectory.num_steps).log_pmf.double())
    oracle = pondering.optimum(of_each, over_steps).pmf
    return {
        "blind": pondering.optimum(of_each.mean(0), over_steps).pmf.tolist(),
        "spread_learnt": _deviation(_expected_step(trajectory.halting.pmf.double())),
        "spread_oracle": _deviation(_expected_step(oracle.double())),
    }


def _losses(trajectory: Trajectory) -> Tensor:
    """Cross-entropy, or squared error, of every example at every step, `(examples, steps)`."""
    assert trajectory.labels is not None
    outputs, labels = trajectory.outputs.float(), trajectory.labels
    if trajectory.task == "regression":
        return (outputs.squeeze(-1) - labels.float()[:, None]).square()
    return F.cross_entropy(outputs.movedim(-1, 1), labels[:, None].expand(outputs.shape[:2]), reduction="none")


def _pondering(objective: Objective) -> Ponder | None:
    """The term that trains the Lambda head, where it has a closed optimum."""
    terms = objective.objectives if isinstance(objective, Weighted) else (objective,)
    found = [term for term in terms if isinstance(term, Ponder)]
    closed = found and (found[0].kl, found[0].likelihood) == ("posterior_prior", "expected_log") and found[0].beta > 0
    return found[0] if closed else None


def _expected_step(pmf: Tensor) -> Tensor:
    """E[n|x], `(examples,)`."""
    return pmf @ torch.arange(1.0, pmf.shape[-1] + 1, dtype=pmf.dtype)


def _deviation(values: Tensor) -> float:
    return values.std().item() if len(values) > 1 else 0.0


def _correlation(seen: Tensor, gain: Tensor) -> float | None:
    if seen.unique().numel() < 2 or gain.unique().numel() < 2:
        return None
    value = float(spearmanr(seen.numpy(), gain.numpy()).statistic)
    return None if math.isnan(value) else round(value, 4)
