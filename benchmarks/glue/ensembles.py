"""Would the answers of the steps so far, averaged, be better than the answer of the step at which a row leaves?

In the place of the probabilities p_n of step n stands Σ_m w_nm p_m over the steps m ≤ n, with weights that sum to 1:
alike, rising with the step, or fitted on other rows. Rows then leave by the confidence of that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ponder import Trajectory

__all__ = ["averaged", "ensembles", "fitted_weights"]

_LEAST = 1e-12  # of a probability, whose logarithm is taken


def ensembles(fitting: Trajectory, trajectory: Trajectory) -> Iterator[tuple[str, Trajectory]]:
    """A trajectory of classes whose steps answer with those before them, by the name of the weights.

    Args:
        fitting: Other rows with labels, on which weights are fitted.
        trajectory: The rows.
    """
    steps = trajectory.num_steps
    each = torch.arange(1, steps + 1, dtype=torch.float64).expand(steps, steps)
    yield "uniform", averaged(trajectory, torch.ones_like(each).tril())
    yield "linear", averaged(trajectory, each.tril())
    yield "fitted", averaged(trajectory, fitted_weights(fitting))


def averaged(trajectory: Trajectory, weights: Tensor) -> Trajectory:
    """The trajectory with averaged answers: its outputs are the logarithms of their probabilities.

    Args:
        trajectory: Outputs `(batch, steps, classes)`.
        weights: A row for each step n, a column for each step m, `(steps, steps)`, of any sum; 0 where m > n.
    """
    shares = weights / weights.sum(1, keepdim=True)
    mixed = torch.einsum("nm,bmc->bnc", shares.double(), trajectory.outputs.double().softmax(-1))
    return replace(trajectory, outputs=mixed.clamp(min=_LEAST).log().float())


def fitted_weights(trajectory: Trajectory) -> Tensor:
    """The weights under which every step's average has the least mean cross-entropy, `(steps, steps)` float64."""
    assert trajectory.labels is not None
    p, steps = trajectory.outputs.double().softmax(-1), trajectory.num_steps
    of_label = p.gather(2, trajectory.labels.view(-1, 1, 1).expand(-1, steps, 1)).squeeze(2)
    later = torch.ones(steps, steps, dtype=torch.bool).triu(1)
    logits = torch.zeros(steps, steps, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        shares = logits.masked_fill(later, -torch.inf).softmax(1)
        mean: Tensor = -(of_label @ shares.T).clamp(min=_LEAST).log().mean()
        mean.backward()
        return mean

    optimizer.step(loss)
    return logits.detach().masked_fill(later, -torch.inf).softmax(1)
