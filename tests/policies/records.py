"""Random records of full-depth runs, in tensors or in NumPy arrays, and a list of policies of every kind."""

from __future__ import annotations

from typing import Any

import torch

from ponder import policies
from ponder.calibration import Record
from ponder.statistics.certificate import Certificate

LENGTH = 5


def record(
    task: str = "classification", rows: int = 40, steps: int = 6, dtype: torch.dtype = torch.float64
) -> Record:
    """Return random outputs that become more confident; each row has at least one real position."""
    draw = torch.Generator().manual_seed(0)
    cells = {"token_classification": (LENGTH, 3), "regression": (1,)}.get(task, (3,))
    growth = torch.linspace(0.5, 2.0, steps).view(1, -1, *[1] * len(cells))
    outputs = torch.randn(rows, steps, *cells, generator=draw, dtype=torch.float64)
    outputs = (outputs + outputs[:, -1:]) * growth
    hazards = torch.randn(rows, steps, generator=draw, dtype=torch.float64) - 1.0
    features = torch.randn(rows, steps, 4, generator=draw, dtype=torch.float64).cumsum(1)
    mask = None
    if task == "token_classification":
        mask = torch.arange(LENGTH) < torch.randint(1, LENGTH + 1, (rows, 1), generator=draw)
    return of_outputs(
        outputs.to(dtype), hazards.to(dtype), features=features.to(dtype), mask=mask, task=task
    )


def of_outputs(outputs: Any, hazards: Any = None, **options: Any) -> Record:
    """Return a record of outputs `(rows, steps, …)`, which stand for hazards and features too."""
    options = {"features": outputs, "task": "classification", **options}
    hazards = outputs[..., 0] if hazards is None else hazards
    return Record(outputs, hazards, torch.arange(len(outputs)), **options)


def as_arrays(record: Record) -> Record:
    """Return the same record in NumPy arrays."""
    return record.map(lambda tensor: tensor.numpy())


def exits_of(record: Record, policy: policies.ExitPolicy) -> list[int]:
    """Return the exit step of each row, replayed."""
    return record.exit_steps(policy).tolist()


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
]
CERTIFIED = policies.Certified(
    policies.Confidence(0.7),
    Certificate(
        "Stop",
        "other answers",
        0.05,
        0.95,
        300,
        threshold_value=0.7,
        path=((0.7, 0.0, 0.01),),
        num_steps=6,
    ),
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
    if isinstance(policy, str):
        return policy
    return repr(policy).replace("policies=", "").replace("policy=", "")[:60]
