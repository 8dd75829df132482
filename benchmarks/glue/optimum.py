"""What a Lambda head could have learnt: the optimum of its objective, with and without a look at the example.

The evidence lower bound has its optimum at p*(n) ∝ p(n) exp(−ℓ_n / β) (`Ponder.optimum`). A head that cannot tell
examples apart does best with that of the mean losses; one that knew the losses of each, with that of its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.glue.gains import losses
from ponder import StepDistribution, Trajectory
from ponder.objectives import Objective, Ponder, Weighted
from ponder.priors import Prior

__all__ = ["optimum"]


def optimum(trajectory: Trajectory, objective: Objective, prior: Prior | None) -> dict[str, Any] | None:
    """The optimum of a split beside what was learnt.

    Args:
        trajectory: With labels.
        objective: That the model was trained with.
        prior: Of the model.

    Returns:
        `blind`, the optimum for the mean losses over the examples, `(steps,)`; `spread_learnt` and `spread_oracle`, the
        standard deviations over the examples of E[n|x] by the head, and by the optimum for each example's own losses.
        None where there is no Lambda head, or no closed optimum.
    """
    pondering = _pondering(objective)
    if trajectory.hazard_logits is None or prior is None or pondering is None:
        return None
    of_each = losses(trajectory).double()
    over_steps = StepDistribution(prior(trajectory.num_steps).log_pmf.double())
    return {
        "blind": pondering.optimum(of_each.mean(0), over_steps).pmf.tolist(),
        "spread_learnt": _spread(trajectory.halting.pmf),
        "spread_oracle": _spread(pondering.optimum(of_each, over_steps).pmf),
    }


def _pondering(objective: Objective) -> Ponder | None:
    """The term that trains the Lambda head, where it has a closed optimum."""
    terms = objective.objectives if isinstance(objective, Weighted) else (objective,)
    found = [term for term in terms if isinstance(term, Ponder)]
    closed = found and (found[0].kl, found[0].likelihood) == ("posterior_prior", "expected_log") and found[0].beta > 0
    return found[0] if closed else None


def _spread(pmf: Tensor) -> float:
    expected = pmf.double() @ torch.arange(1.0, pmf.shape[-1] + 1, dtype=torch.double)
    return expected.std().item() if len(expected) > 1 else 0.0
