"""Adaptive Computation Time, the baseline (Graves 2016, Section 2).

A sigmoid unit gives h_n at every step. The row stops at N = min{n: Σ_{i≤n} h_i ≥ 1 − ε}, or at the last step; the
answer is the mean of the answers y_1 … y_N with the weights p_n = h_n before N, and the remainder R = 1 − Σ_{i<N} h_i
at N. Training adds τ ρ to the loss, with the ponder cost ρ = N + R, through whose R alone a gradient flows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.parity.config import ExperimentConfig
from benchmarks.parity.learners import CLASSES, Cell, Learner
from benchmarks.parity.task import Sample
from ponder.engine.loop import Exits

__all__ = ["ACT", "Weights", "act_weights"]

EPSILON = 0.01
_START_BIAS = 1.0  # Graves' start of the halting unit: no long ponder times before anything is learnt


@dataclass(frozen=True)
class Weights:
    """How ACT mixes the steps.

    Args:
        weights: p_n, `(batch, steps)`; 0 after N, and 1 in sum.
        exit_step: N, `(batch,)` long, 1-based.
        ponder_cost: ρ = N + R, `(batch,)`.
    """

    weights: Tensor
    exit_step: Tensor
    ponder_cost: Tensor


def act_weights(halting: Tensor, epsilon: float = EPSILON) -> Weights:
    """Weights, exit steps and ponder costs from the halting unit's h, `(batch, steps)`, each in [0, 1].

    Example:
        >>> mixed = act_weights(torch.tensor([[0.5, 0.25, 0.5, 0.5]]))
        >>> mixed.weights, mixed.exit_step, mixed.ponder_cost
        (tensor([[0.5000, 0.2500, 0.2500, 0.0000]]), tensor([3]), tensor([3.2500]))
    """
    enough = halting.cumsum(-1) >= 1 - epsilon
    steps = torch.arange(1, halting.shape[1] + 1, device=halting.device)
    enough = enough | (steps == halting.shape[1])
    exit_step = enough.int().argmax(-1) + 1  # the first of equals
    last = exit_step.unsqueeze(-1)
    before = torch.where(steps < last, halting, 0.0)
    remainder = 1 - before.sum(-1)
    weights = torch.where(steps == last, remainder.unsqueeze(-1), before)
    return Weights(weights, exit_step, exit_step + remainder)


class ACT(Learner):
    """The same recurrent cell and head under ACT.

    Args:
        size: Elements of a vector.
        config: Sizes and constants; `tau` weighs the ponder cost.
    """

    def __init__(self, size: int, config: ExperimentConfig) -> None:
        super().__init__()
        self.tau, self.num_steps = config.tau, config.num_steps
        self.cell = Cell(size, config.hidden)
        self.head = nn.Linear(config.hidden, CLASSES)
        self.halting = nn.Linear(config.hidden, 1)
        nn.init.constant_(self.halting.bias, _START_BIAS)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Weights]:
        """Mixed outputs, `(batch, 2)`, and how they were mixed."""
        state, context = self.cell.start(inputs)
        states = []
        for _ in range(self.num_steps):
            state = self.cell(state, **context)
            states.append(state)
        features = torch.stack(states, dim=1)
        mixed = act_weights(self.halting(features).squeeze(-1).sigmoid())
        return (mixed.weights.unsqueeze(-1) * self.head(features)).sum(1), mixed

    def loss(self, sample: Sample) -> Tensor:
        """See `Learner.loss`."""
        outputs, mixed = self(sample.inputs)
        loss: Tensor = F.cross_entropy(outputs, sample.labels) + self.tau * mixed.ponder_cost.mean()
        return loss

    def answers(self, inputs: Tensor) -> Mapping[str, Exits]:
        """The mixed answer at N."""
        outputs, mixed = self(inputs)
        return {"mixed": Exits(outputs, mixed.exit_step)}
