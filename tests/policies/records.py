"""Full-depth runs as tensors or as NumPy arrays, and exits by asking `decide` step by step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ponder import policies
from ponder._utils.arrays import namespace
from ponder._utils.trees import take_rows
from ponder.tasks import Task, task_named

LENGTH = 5
CLASSIFICATION = task_named(None)


@dataclass
class Run:
    """Outputs, hazard logits and features `(rows, steps, …)`, and which positions count."""

    outputs: Any
    hazard_logits: Any
    features: Any
    mask: Any = None
    task: Task = CLASSIFICATION

    @property
    def num_steps(self) -> int:
        return int(self.outputs.shape[1])

    @property
    def batch(self) -> policies.PolicyBatch:
        rows = range(self.outputs.shape[0])
        ids = np.array(rows) if namespace(self.outputs) is np else torch.tensor(rows)
        return policies.PolicyBatch(ids, self.num_steps, self.task)

    def views(self, needs: frozenset[str]) -> Iterator[policies.StepView]:
        ids = self.batch.row_ids
        xp = namespace(self.outputs)
        hazard = 1.0 / (1.0 + xp.exp(-self.hazard_logits))
        stay = xp.cumprod(1.0 - hazard, 1)
        for n in range(1, self.num_steps + 1):
            survival = stay[:, n - 2] if n > 1 else xp.ones_like(stay[:, 0])
            everything = {
                "hazard": {
                    "hazard": hazard[:, n - 1],
                    "cdf": 1.0 - stay[:, n - 1],
                    "survival": survival,
                },
                "output": {"output": self.outputs[:, n - 1]},
                "features": {"features": self.features[:, n - 1]},
            }
            readings = {name: value for need in needs for name, value in everything[need].items()}
            yield policies.StepView(ids * 0 + n, self.num_steps, readings, self.task, self.mask)

    def exits(self, policy: policies.ExitPolicy) -> list[int]:
        """Exit steps by `decide`, of which no row is dropped."""
        state = policy.init(self.batch)
        exits = np.full(self.batch.size, self.num_steps)
        for n, view in zip(range(1, self.num_steps), self.views(policy.needs), strict=False):
            mask, state = policy.decide(view, state)
            exits = np.where((exits == self.num_steps) & np.asarray(mask), n, exits)
        return [int(step) for step in exits]

    def as_arrays(self) -> Run:
        """The same run in NumPy."""
        given = (self.outputs, self.hazard_logits, self.features, self.mask)
        outputs, hazards, features, mask = (
            None if each is None else each.numpy() for each in given
        )
        return replace(self, outputs=outputs, hazard_logits=hazards, features=features, mask=mask)

    def take(self, rows: Any) -> Run:
        """Some of the rows."""
        parts = (self.outputs, self.hazard_logits, self.features, self.mask)
        return Run(*take_rows(parts, rows), self.task)


def run(
    task: str = "classification", rows: int = 40, steps: int = 6, dtype: torch.dtype = torch.float64
) -> Run:
    """Random answers that grow surer; with a length, each row has at least one position that counts."""
    draw = torch.Generator().manual_seed(0)
    cells = (
        (LENGTH, 3) if task == "token_classification" else (1,) if task == "regression" else (3,)
    )
    outputs = torch.randn(rows, steps, *cells, generator=draw, dtype=torch.float64)
    outputs = (outputs + outputs[:, -1:]) * torch.linspace(0.5, 2.0, steps).view(
        1, -1, *[1] * len(cells)
    )
    hazards = torch.randn(rows, steps, generator=draw, dtype=torch.float64) - 1.0
    features = torch.randn(rows, steps, 4, generator=draw, dtype=torch.float64).cumsum(1)
    mask = None
    if task == "token_classification":
        mask = torch.arange(LENGTH) < torch.randint(1, LENGTH + 1, (rows, 1), generator=draw)
    return Run(outputs.to(dtype), hazards.to(dtype), features.to(dtype), mask, task_named(task))


def gate(threshold: float = 0.5) -> policies.Gate:
    """A gate with random weights."""
    return policies.Gate(
        tuple(map(tuple, np.random.default_rng(1).normal(size=(5, 5)).tolist())), threshold
    )


SIMPLE: list[policies.ExitPolicy] = [
    policies.Confidence(0.8),
    policies.Margin(0.5),
    policies.Entropy(0.6),
    policies.Entropy(0.5, normalize=True),
    policies.Energy(0.95),
    policies.Patience(2),
    policies.Voting(3),
    policies.Converged(patience=2),
    policies.Converged(0.3, on="features"),
    policies.Quantile(0.5),
    policies.ACT(0.1),
    policies.FixedStep(3),
    gate(),
]
CERTIFIED = policies.Certified(
    policies.Confidence(0.7),
    "promise",
    "disagreement",
    0.05,
    0.95,
    "exact",
    300,
    "threshold",
    0.7,
    0.01,
    (),
    6,
)
COMPOSED: list[policies.ExitPolicy] = [
    policies.Bernoulli(seed=3),
    policies.LastStep(),
    policies.Confidence(0.95) | policies.Patience(2),
    policies.Confidence(0.6) & policies.Quantile(0.4),
    policies.Margin(0.4).after(2).before(5),
    (policies.Entropy(0.3) | policies.Voting(3)).after(2) & policies.Quantile(0.2),
    CERTIFIED,
]
EVERY = [*SIMPLE, *COMPOSED]
POSITIONS: list[policies.ExitPolicy] = [
    policies.Confidence(0.6),
    policies.Entropy(0.8),
    policies.Patience(1),
    policies.Voting(2),
    policies.Converged(0.3),
]


def name(policy: Any) -> str:
    """The id of a case."""
    return (
        policy
        if isinstance(policy, str)
        else repr(policy).replace("policies=", "").replace("policy=", "")[:60]
    )
