"""A gate fitted afterwards, on the frozen solver: is the answer right now, and will it stay so?"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ponder
from benchmarks.puzzles.puzzle import Problems
from benchmarks.puzzles.solvers import PooledLambda
from ponder.parts.tasks import task_named

__all__ = ["fit_gate", "settled"]

_ITERATIONS = 200
_RIDGE = 1e-4  # of the squared weights: where a line parts right from wrong, they would grow for ever


def settled(right: Tensor) -> Tensor:
    """Whether the answer is right at a step and at all later ones, `(problems, steps)` bool.

    Example:
        >>> settled(torch.tensor([[True, False, True, True]]))
        tensor([[False, False,  True,  True]])
    """
    return right.flip(1).int().cummin(1).values.flip(1).bool()


def fit_gate(model: ponder.PonderWrapper, gate: PooledLambda, problems: list[Problems], *, seed: int) -> float:
    """Fit the hazard λ_n = P(the answer of step n is right and stays right) by logistic regression.

    Args:
        model: The frozen solver, without a Lambda head.
        gate: The Lambda head to fit, in place.
        problems: Of one level each, none of them reported.
        seed: Of the first weights.

    Returns:
        The last loss.
    """
    torch.manual_seed(seed)
    gate.layer.reset_parameters()
    pooled, targets = [], []
    with torch.no_grad():
        for of_level in problems:
            trajectory = model.unroll(of_level.inputs, keep_features=True)
            assert trajectory.features is not None
            right = task_named("token_classification").correct(trajectory.outputs, of_level.labels)
            pooled.append(gate.pooled(trajectory.features.flatten(0, 1)))
            targets.append(settled(right).flatten().float())
    inputs, target = torch.cat(pooled), torch.cat(targets)
    mean, std = inputs.mean(0), inputs.std(0).clamp(min=1e-6)
    scaled = (inputs - mean) / std
    optimizer = torch.optim.LBFGS(gate.layer.parameters(), max_iter=_ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        return F.binary_cross_entropy_with_logits(gate.layer(scaled).squeeze(-1), target)

    def closure() -> Tensor:
        optimizer.zero_grad()
        penalised = loss() + _RIDGE * gate.layer.weight.square().sum()
        penalised.backward()
        return penalised

    optimizer.step(closure)
    last = float(loss().detach())
    _fold(gate.layer, mean, std)
    return last


@torch.no_grad()
def _fold(layer: nn.Linear, mean: Tensor, std: Tensor) -> None:
    """Let the layer take inputs as they are instead of scaled ones."""
    layer.weight.div_(std)
    layer.bias.sub_((layer.weight * mean).sum(1))
