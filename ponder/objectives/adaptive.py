"""Adaptive computation time: the loss of the mean answer, and a ponder cost (Graves 2016)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ponder._utils.checks import check_real
from ponder.distributions import StepDistribution
from ponder.objectives.base import Objective, Unrolled

__all__ = ["ACT"]


@dataclass(frozen=True)
class ACT(Objective):
    r"""The loss of the mean answer plus the ponder cost, L(Σ_n p_n y_n) + τ (N + R).

    Graves 2016, arXiv 1603.08983, Section 2. With halting units h_n = σ(hazard logit) and M steps
    at most,

        N = min{M, min{n : h_1 + … + h_n ≥ 1 − ε}}     R = 1 − Σ_{n<N} h_n
        p_n = h_n for n < N,   p_N = R,   p_n = 0 for n > N.

    The weights p sum to 1. The paper takes the mean of states, s = Σ p_n s_n, and that of outputs,
    y = Σ p_n y_n; here the *outputs* are averaged, logits in classification, before the task's loss
    is taken. For a linear head both are the same; for any other head only the second needs no state
    to be kept. A loss of the mean is not the mean of the losses: PonderNet's Σ p_n ℓ_n (`Ponder`)
    asks each step to be right, and ACT only their mean.

    N is constant almost everywhere, so that the gradient of the cost is −τ for h_1 … h_{N−1} and 0
    for h_N, as in the paper; h_N and all later units learn nothing. One set of weights is one row
    here, or one position of a looped model that halts per position (the Universal Transformer,
    Dehghani et al. 2019, arXiv 1807.03819).

    Args:
        cost: Time penalty τ ≥ 0.
        epsilon: ε in [0, 1), the mass that may be missing, so that one step can be enough.

    Example:
        >>> model.objective = objectives.ACT(cost=0.01)
        >>> model.train()(inputs, labels=labels).loss.shape
        torch.Size([])
    """

    cost: float = 0.01
    epsilon: float = 0.01
    needs = frozenset({"hazard"})

    def __post_init__(self) -> None:
        check_real("cost", self.cost)
        check_real("epsilon", self.epsilon, 0.0, 1.0, open_high=True)

    def per_example(self, unrolled: Unrolled) -> Tensor:
        weights, last = self._weights(unrolled.halting)
        answer = _mean(unrolled.outputs, weights)
        labels = torch.as_tensor(unrolled.labels)
        remainder = (weights * last).sum(-1)
        step = last.long().argmax(-1) + 1
        return unrolled.task.losses(answer, labels) + self.cost * (step + remainder)

    def answer(self, outputs: Tensor, halting: StepDistribution) -> Tensor:
        """Return the mean answer Σ_n p_n y_n, `(batch, …)`, of outputs `(batch, steps, …)`.

        Example:
            >>> trajectory = Trajectory(torch.randn(8, 4, 3), torch.randn(8, 4), torch.arange(8))
            >>> objectives.ACT().answer(trajectory.outputs, trajectory.halting).shape
            torch.Size([8, 3])
        """
        return _mean(outputs, self._weights(halting)[0])

    def _weights(self, halting: StepDistribution) -> tuple[Tensor, Tensor]:
        """Return the weights p, `(batch, steps)`, and a mask that is true at step N alone."""
        units = halting.hazard
        total = units.cumsum(-1)
        halted = total.detach() >= 1.0 - self.epsilon
        halted = torch.cat([halted[:, :-1], torch.ones_like(halted[:, :1])], dim=-1)
        last = halted & (halted.cumsum(-1) == 1)
        spent = total - units  # before the step
        weights = torch.where(last, 1.0 - spent, torch.where(halted, 0.0, units))
        return weights, last


def _mean(outputs: Tensor, weights: Tensor) -> Tensor:
    """Return Σ_n p_n y_n, `(batch, …)`."""
    each = weights.reshape(*weights.shape, *[1] * (outputs.dim() - 2))
    return (each.to(outputs.dtype) * outputs).sum(1)
