"""What is trained: something that has a loss and gives answers. PonderNet here; ACT in `act`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

import ponder
from benchmarks.parity.config import ExperimentConfig
from benchmarks.parity.task import Sample
from ponder import objectives, policies, priors
from ponder.engine.loop import Exits

__all__ = ["Cell", "Learner", "PonderNet"]

CLASSES = 2


class Learner(nn.Module, ABC):
    """A model of the benchmark."""

    @abstractmethod
    def loss(self, sample: Sample) -> Tensor:
        """What training minimises, a scalar."""

    @abstractmethod
    def answers(self, inputs: Tensor) -> Mapping[str, Exits]:
        """Outputs `(batch, 2)` and exit steps `(batch,)` by way of halting, the model's own first."""


class Cell(nn.Module):
    """One step of thought, h_n = GRU(x, h_{n−1}): the whole vector is read again at every step.

    Args:
        size: Elements of x.
        hidden: Width of h.
    """

    def __init__(self, size: int, hidden: int) -> None:
        super().__init__()
        self.gru = nn.GRUCell(size, hidden)

    def forward(self, hidden: Tensor, vector: Tensor) -> Tensor:
        """h_n, `(batch, hidden)`, from h_{n−1} and x, `(batch, size)`."""
        state: Tensor = self.gru(vector, hidden)
        return state

    def start(self, vector: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """h_0 = 0, and x as the context of every step."""
        return vector.new_zeros(vector.shape[0], self.gru.hidden_size), {"vector": vector}


class PonderNet(Learner):
    """The recurrent cell in a `ponder.PonderWrapper`, with PonderNet's objective and prior (Banino et al. 2021).

    Args:
        size: Elements of a vector.
        config: Sizes and constants.

    Example:
        >>> import torch
        >>> from benchmarks.parity.config import SMALL
        >>> list(PonderNet(8, SMALL).eval().answers(torch.zeros(3, 8)))
        ['sampled', 'Q-exit 0.5', 'last step']
    """

    def __init__(self, size: int, config: ExperimentConfig) -> None:
        super().__init__()
        cell = Cell(size, config.hidden)
        self.model = ponder.PonderWrapper(
            cell,
            num_steps=config.num_steps,
            head=nn.Linear(config.hidden, CLASSES),
            lambda_head=ponder.LambdaHead(config.hidden, start=config.rate),
            prior=priors.Geometric(config.rate),
            objective=objectives.Ponder(beta=config.beta),
            policy=policies.Bernoulli(seed=0),
            stem=cell.start,
            task="classification",
        )

    def loss(self, sample: Sample) -> Tensor:
        """See `Learner.loss`."""
        loss: Tensor | None = self.model(sample.inputs, labels=sample.labels).loss
        assert loss is not None  # there are labels
        return loss

    def answers(self, inputs: Tensor) -> Mapping[str, Exits]:
        """One full-depth run, on which three policies are replayed; PonderNet itself samples."""
        trajectory = self.model.unroll(inputs)
        ways = {"sampled": self.model.policy, "Q-exit 0.5": policies.Quantile(0.5), "last step": policies.LastStep()}
        return {name: trajectory.replay(policy) for name, policy in ways.items()}
