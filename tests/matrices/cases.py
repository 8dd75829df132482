"""The cases of the matrices: tasks, labels, random trajectories, and policies, a user's own among them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import ponder
from ponder import policies
from tests.toys import CLASSES, LENGTH, OUTPUTS, PER_POSITION, ROWS, TASKS, padding

KINDS = (
    "shared",
    "stacked",
    "scheduled",
    "nested",
    "cell",
    "transformer",
    "captured",
    "captured-mask",
)
"""Kinds of steps, of `tests.toys`."""


def answered(outputs: Tensor, task: str = "classification") -> Tensor:
    """Outputs `(rows, …)` or `(rows, steps, …)` in which padding is blank: what stands there is no answer."""
    if task not in PER_POSITION:
        return outputs
    beyond = padding(ROWS).view(ROWS, *[1] * (outputs.dim() - 3), LENGTH, 1)
    return outputs.masked_fill(beyond.to(outputs.device), 0.0)


def labels_for(task: str, rows: int = ROWS, seed: int = 0) -> Tensor:
    """Labels of the type and shape that the task takes; −100 at padding."""
    generator = torch.Generator().manual_seed(seed)
    if task == "classification":
        return torch.randint(0, CLASSES, (rows,), generator=generator)
    if task == "multilabel":
        return torch.randint(0, 2, (rows, OUTPUTS[task]), generator=generator).double()
    if task == "regression":
        return torch.randn(rows, OUTPUTS[task], generator=generator, dtype=torch.float64)
    if task == "token_classification":
        labels = torch.randint(0, CLASSES, (rows, LENGTH), generator=generator)
        return labels.masked_fill(padding(rows), -100)
    return torch.zeros(rows, 2, dtype=torch.long)


def random_trajectory(task: str, rows: int, num_steps: int, scale: float, seed: int) -> Any:
    """Hazards and outputs out of nothing; every third row repeats its answers, so that patience has something."""
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, num_steps, *((LENGTH,) if task in PER_POSITION else ()), OUTPUTS[task])
    outputs = torch.randn(shape, generator=generator) * scale
    outputs[::3] = outputs[::3, :1] + 0.05 * torch.randn(outputs[::3].shape, generator=generator)
    return ponder.Trajectory(
        outputs=outputs.clamp(-1e4, 1e4),
        hazard_logits=(torch.randn(rows, num_steps, generator=generator) * scale).clamp(-1e4, 1e4),
        row_ids=torch.randint(-(2**62), 2**62, (rows,), generator=generator),
        task=task,
        mask=~padding(rows) if task in PER_POSITION else None,
    )


def rows_of(trajectory: Any) -> list[dict[str, Any]]:
    """The rows of a trajectory, for the oracles; padding is left out."""
    rows = []
    for i in range(len(trajectory)):
        outputs = trajectory.outputs[i].double()
        if trajectory.batch.task.name in PER_POSITION:
            cells = (
                outputs if trajectory.mask is None else outputs[:, trajectory.mask[i]]
            ).tolist()
        else:
            cells = outputs.unsqueeze(1).tolist()
        hazards = trajectory.hazard_logits
        rows.append(
            {
                "outputs": cells,
                "task": trajectory.batch.task.name,
                "row_id": int(trajectory.row_ids[i]),
                "hazard_logits": None if hazards is None else hazards[i].double().tolist(),
            }
        )
    return rows


# -- policies ----------------------------------------------------------------------------------------------------


@policies.register("matrix-rising")
@dataclass(frozen=True)
class Rising(policies.ExitPolicy):
    """A user's own: leave once the hazard has risen, and the largest output with it, `times` times."""

    times: int = 1
    needs = frozenset({"hazard", "output"})

    def init(self, first: Any) -> Any:
        lowest = torch.full((first.size,), -torch.inf, dtype=torch.float64)
        return {
            "count": torch.zeros(first.size, dtype=torch.long),
            "seen": (lowest, lowest.clone()),
        }

    def decide(self, step: Any, state: Any) -> Any:
        now = step.hazard.double(), step.output.double().flatten(1).amax(1)
        risen = (now[0] > state["seen"][0]) & (now[1] > state["seen"][1]) & (step.index > 1)
        count = state["count"] + risen.long()
        return count >= self.times, {"count": count, "seen": now}


@policies.register("matrix-settled")
@dataclass(frozen=True)
class Settled(policies.ThresholdPolicy):
    """A user's own with a threshold and features: leave once they have moved little since the step before."""

    distance: float
    needs = frozenset({"features"})
    tunable = policies.Threshold("distance", "below")

    def init(self, first: Any) -> Any:
        return torch.full_like(first.features.flatten(1), torch.inf)

    def statistic(self, step: Any, state: Any) -> Any:
        now = step.features.flatten(1)
        return (now - state).norm(dim=1), now


CLASSES_ONLY = ("classification", "token_classification")
CASES: list[policies.ExitPolicy] = [
    policies.Quantile(0.5),
    policies.Quantile(0.0),
    policies.Quantile(1.0),
    policies.Bernoulli(seed=3),
    policies.ACT(0.1),
    policies.RightAnswer(0.6),
    policies.ACT(0.5) & policies.Quantile(0.3),
    policies.Patience(1, tolerance=0.5),
    policies.Patience(2, tolerance=0.9),
    policies.Converged(patience=1, tolerance=0.5),
    policies.Converged(patience=1, tolerance=0.5, on="features"),
    policies.Converged(patience=2, tolerance=0.1),
    policies.FixedStep(2),
    policies.LastStep(),
    policies.Entropy(0.6),
    policies.Entropy(0.7, normalize=True),
    policies.Confidence(0.7),
    policies.Margin(0.4),
    policies.Lead(0.9),
    policies.Energy(0.8),
    policies.Voting(3),
    policies.Quantile(0.6) | policies.Patience(2, tolerance=0.5),
    policies.Quantile(0.3) & policies.Patience(1, tolerance=0.9),
    policies.Patience(1, tolerance=0.9).after(3),
    policies.Bernoulli(seed=5).before(3),
    ((policies.Confidence(0.9) | policies.Voting(2)) & policies.Quantile(0.2)).after(2).before(4),
    Rising(1),
    Settled(1.2),
]
RETIRING = {"certified", "stage-thresholds", "standard-error", "top-k"}
"""Registered names without a case: what is made by others, or decides on groups (`tests/rerank`)."""


def leaves(policy: policies.ExitPolicy) -> list[policies.ExitPolicy]:
    """The policies that one is made of."""
    inside = [
        *getattr(policy, "policies", ()),
        *([policy.policy] if hasattr(policy, "policy") else []),
    ]
    return [leaf for part in inside for leaf in leaves(part)] or [policy]


def serves(policy: policies.ExitPolicy, task: str) -> bool:
    of_classes = (
        policies.Entropy,
        policies.Confidence,
        policies.Margin,
        policies.Lead,
        policies.Energy,
        policies.Voting,
    )
    return task in CLASSES_ONLY or not any(isinstance(leaf, of_classes) for leaf in leaves(policy))


PAIRS = [(policy, task) for policy in CASES for task in TASKS if serves(policy, task)]
KIND_OF_TASK = {
    "classification": "shared",
    "regression": "stacked",
    "multilabel": "nested",
    "token_classification": "transformer",
    "span": "transformer",
}


def name(value: Any) -> str:
    return (
        value
        if isinstance(value, str)
        else repr(value).replace("policies=", "").replace("policy=", "")
    )
