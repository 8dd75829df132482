"""What plug-ins are tried on: trajectories out of nothing, a toy model, and the views that the loop would make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ponder._utils.numerics import at_least_float32
from ponder.parts.heads import LambdaHead
from ponder.parts.tasks import task_named
from ponder.policies import ExitPolicy
from ponder.testing.randomness import generator
from ponder.trajectory import Trajectory
from ponder.wrapper import PonderWrapper

__all__ = [
    "LENGTH",
    "Sizes",
    "extreme_trajectories",
    "labels",
    "random_trajectory",
    "readings_of",
    "row_choices",
    "toy_model",
]

LENGTH = 4
_MANY_OUTPUTS = 3
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def row_choices(rows: int) -> tuple[Tensor, ...]:
    """Some of `rows` rows (six or more) in other company: in another order, alone, a few, and one of them repeated."""
    return (
        torch.randperm(rows, generator=generator(3)),
        torch.tensor([3]),
        torch.arange(rows - 1, 0, -3),
        torch.tensor([5, 5, 2, 5]),
    )


@dataclass(frozen=True)
class Sizes:
    """How large the samples are.

    Args:
        task: Name of the task, or None.
        num_steps: N.
        num_outputs: Size of the last dimension of the outputs; 1 in regression and 3 elsewhere, where None.
        width: Size of the features.
        context: What policies may read of each row besides, by name: values that rows draw from.
    """

    task: str | None
    num_steps: int
    num_outputs: int | None = None
    width: int = 8
    context: Mapping[str, Tensor] | None = None

    @property
    def outputs(self) -> tuple[int, ...]:
        """Shape of the outputs of a row at a step."""
        task = task_named(self.task)
        if task.per_position and not task.per_token:
            return (LENGTH, 2)
        size = self.num_outputs or (1 if task.numbers else _MANY_OUTPUTS)
        return (LENGTH, size) if task.per_token else (size,)

    def context_of(self, rows: int, seed: int) -> dict[str, Tensor] | None:
        """The context of some rows, or None."""
        if self.context is None:
            return None
        g = generator(seed)
        return {name: values[torch.randint(len(values), (rows,), generator=g)] for name, values in self.context.items()}


def random_trajectory(sizes: Sizes, rows: int, scale: float, seed: int) -> Trajectory:
    """Hazards, outputs and features in float64; every third row hardly changes its answer, so that it can settle.

    Where outputs have positions, rows have padding too, of which a mask tells.

    Args:
        sizes: Steps, outputs, width and task.
        rows: How many rows.
        scale: Spread of logits and outputs.
        seed: Seed by which all of it is drawn.
    """
    g = generator(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(rows, sizes.num_steps, *shape, generator=g, dtype=torch.float64)

    outputs = normal(*sizes.outputs) * scale
    outputs[::3] = outputs[::3, :1] + 0.05 * normal(*sizes.outputs)[::3]
    ids = torch.randint(-(2**62), 2**62, (rows,), generator=g)
    mask = None
    if task_named(sizes.task).per_position:
        mask = torch.arange(LENGTH) < torch.randint(1, LENGTH + 1, (rows, 1), generator=g)
    hazards, features = normal() * scale, normal(sizes.width)
    context = sizes.context_of(rows, seed)
    return Trajectory(outputs, hazards, ids, features, task=sizes.task, mask=mask, policy_context=context)


def extreme_trajectories(sizes: Sizes) -> list[tuple[str, Trajectory]]:
    """Three rows each, with what they are: hazard logits and outputs of ±10⁴ and 0, in every floating-point type."""
    found = []
    base = random_trajectory(sizes, 3, 1.0, 11)
    sign = torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64)
    by_row = sign.view(3, *(1 for _ in sizes.outputs), 1)
    ramp = torch.arange(sizes.outputs[-1], dtype=torch.float64)
    ramp = ramp * min(3e3, 6e4 / max(len(ramp) - 1, 1))  # far apart, and finite in half precision
    peaks = torch.zeros_like(ramp)
    peaks[-1] = 1e4
    for dtype in _DTYPES:
        for what, logit, of_row in (
            ("of ±10⁴ and 0", 1e4 * sign[:, None], 1e4 * by_row.expand_as(base.outputs)),
            ("of 0", 0.0 * sign[:, None], 0.0 * by_row * base.outputs),
            ("with one of 10⁴ and hazard logits of -10⁴", -1e4 + 0 * sign[:, None], peaks + 0.0 * base.outputs),
            ("far apart and hazard logits of 10⁴", 1e4 + 0 * sign[:, None], by_row * ramp + 0.0 * base.outputs),
        ):
            features = None if base.features is None else base.features.to(dtype)
            if features is not None and what == "of 0":
                features = torch.zeros_like(features)
            logits = at_least_float32(logit.expand(3, sizes.num_steps).to(dtype))
            name = f"{str(dtype).removeprefix('torch.')} outputs {what}"
            found.append((name, replace(base, outputs=of_row.to(dtype), hazard_logits=logits, features=features)))
    return found


def readings_of(trajectory: Trajectory) -> dict[str, Tensor]:
    """What a policy can read at every step, `(rows, steps, …)`."""
    assert trajectory.hazard_logits is not None
    assert trajectory.features is not None
    log_survival = F.logsigmoid(-trajectory.hazard_logits).cumsum(1)
    return {
        "hazard": trajectory.hazard_logits.sigmoid(),
        "cdf": -torch.expm1(log_survival),
        "survival": F.pad(log_survival[:, :-1], (1, 0)).exp(),
        "output": trajectory.read_outputs(),
        "features": trajectory.features,
    }


def toy_model(sizes: Sizes, policy: ExitPolicy) -> PonderWrapper:
    """One shared step with heads whose weights make the exits differ, float64; draws from the global generator."""
    count = 1
    for size in sizes.outputs:
        count *= size
    step = nn.Sequential(nn.Linear(sizes.width, sizes.width), nn.Tanh())
    head = nn.Sequential(nn.Linear(sizes.width, count), nn.Unflatten(1, sizes.outputs))
    hazards = LambdaHead(sizes.width, layers=2, history=2)
    for module in (step, head, hazards):
        for weight in module.parameters():
            nn.init.normal_(weight, std=0.6)
    task = task_named(sizes.task)
    model = PonderWrapper(step, sizes.num_steps, head=head, lambda_head=hazards, policy=policy, task=task)
    return model.eval().double()


def labels(sizes: Sizes, rows: int, seed: int) -> Tensor:
    """Labels of the type and shape that the task takes."""
    g, shape, task = generator(seed), (rows, *sizes.outputs), task_named(sizes.task)
    if task.numbers:
        return torch.randn(shape, generator=g, dtype=torch.float64)
    if task.per_position and not task.per_token:
        return torch.randint(0, LENGTH, (rows, 2), generator=g)
    if task.classes:
        return torch.randint(0, sizes.outputs[-1], shape[:-1], generator=g)
    return torch.randint(0, 2, shape, generator=g).double()
