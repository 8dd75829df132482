"""Trajectories: records of full-depth runs, on which policies are replayed and certified."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, get_args

import torch
from torch import Tensor

from ponder import calibration
from ponder._utils.seals import read_sealed, write_sealed
from ponder.calibration.records import Record
from ponder.distributions import StepDistribution
from ponder.errors import ArgumentError, PonderError
from ponder.model.padding import Along, join_rows
from ponder.objectives import Objective, Progress, Unrolled
from ponder.priors import Prior
from ponder.tasks import IGNORED_LABEL, Custom, Task, TaskName

if TYPE_CHECKING:
    from ponder.calibration.sweeps import Curve

__all__ = ["Trajectory", "objective_loss"]

_FORMAT = "ponder-trajectory-3"


class Trajectory(Record):
    """The record of a full-depth run in tensors; fields as for `Record`.

    Example:
        >>> trajectory = Trajectory(torch.randn(8, 4, 3), torch.randn(8, 4), torch.arange(8))
        >>> trajectory.replay(policies.Quantile(0.5)).exit_step.shape
        torch.Size([8])
    """

    @property
    def halting(self) -> StepDistribution:
        """The halting distribution that the hazards induce, `(batch,)` over the steps."""
        if self.hazard_logits is None:
            raise PonderError(
                "The model has no Lambda head: build it with lambda_head=ponder.LambdaHead(width)."
            )
        return StepDistribution.from_hazard_logits(self.hazard_logits)

    @property
    def expected(self) -> Tensor:
        """The mean answer Σ_n p(n|x) y_n under the halting distribution, `(batch, …)`.

        Of classes the probabilities are averaged, and their logarithm is returned.

        Example:
            >>> scores = torch.tensor([[[0.0, 2.0], [2.0, 0.0]]])
            >>> Trajectory(scores, torch.zeros(1, 2), torch.arange(1)).expected.softmax(-1)
            tensor([[0.5000, 0.5000]])
        """
        outputs = torch.as_tensor(self.outputs)
        mean = self.meaning.mean_outputs(outputs, self.halting.log_pmf)
        if self.mask is not None and self.meaning.per_position:
            mean = mean.masked_fill(~self.mask.unsqueeze(-1), self.meaning.blank)
        return mean

    def sweep(self, policies: Any, grid: Any = None, **options: Any) -> Curve:
        """Try every value of a threshold; see `ponder.calibration.sweep`.

        Example:
            >>> trajectory = Trajectory(torch.randn(8, 4, 3), torch.randn(8, 4), torch.arange(8))
            >>> len(trajectory.sweep(policies.Quantile, [0.25, 0.5, 0.75]))
            3
        """
        return calibration.sweep(self, policies, grid, **options)

    def detach(self) -> Self:
        """Return the same trajectory, detached from the graph of gradients."""
        return self.map(Tensor.detach)

    @staticmethod
    def cat(trajectories: Sequence[Trajectory]) -> Trajectory:
        """Join the trajectories of several batches of one model; shorter rows are padded."""
        first = trajectories[0]
        weights = {one.weights for one in trajectories}
        lengths = [_length(one) for one in trajectories]
        parts: list[dict[str, Tensor]] = []
        fields: set[tuple[str, ...]] = set()
        for one, length in zip(trajectories, lengths, strict=True):
            part = _with_mask(one, length).tensors()
            parts.append(part)
            fields.add((one.batch.task.name, *part))
        if len(weights) > 1 or len(fields) > 1:
            got = f"{len(weights)} digests of weights, tasks and fields {sorted(map(str, fields))}"
            remedy = "Record all data with one model."
            raise ArgumentError(
                "trajectories", expected="records of one model", got=got, remedy=remedy
            )
        task = first.meaning
        along = {"mask": Along((1,), fill=False), "features": Along((2,))}
        if task.per_position:
            along["outputs"] = Along((2,), fill=task.blank)
        if task.per_token:
            along["labels"] = Along((1,), fill=IGNORED_LABEL)
        joined = join_rows(
            parts, lambda name, _: along.get(name), max(lengths), path="trajectories"
        )
        return dataclasses.replace(
            first._with(joined), training=any(one.training for one in trajectories)
        )

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, whole or not at all.

        A task that is not of this library is named after the one that it derives from.
        """
        kinds = (kind.__dict__.get("name") for kind in type(self.meaning).__mro__)
        if self.task is None:
            task = None
        else:
            task = next((name for name in kinds if name in get_args(TaskName)), Custom.name)
        facts = {
            "task": task,
            "weights": self.weights,
            "training": self.training,
            "content_ids": self.content_ids,
            "numbers": self.meaning.numbers,
        }
        write_sealed(path, _FORMAT, facts, self.tensors())

    @classmethod
    def load(cls, path: str | Path) -> Trajectory:
        """Read a file that `save` wrote."""
        saved = read_sealed(path, _FORMAT, "trajectory", "pt")
        facts, tensors = saved.settings, saved.tensors
        task: str | Custom | None = facts["task"]
        if task == Custom.name:
            task = Custom(classes=not facts["numbers"])
        return cls(
            tensors["outputs"],
            None,
            tensors["row_ids"],
            task=task,
            training=facts["training"],
            weights=facts["weights"],
            content_ids=facts["content_ids"],
        )._with(tensors)


def objective_loss(
    objective: Objective,
    trajectory: Trajectory,
    labels: Tensor,
    task: Task,
    *,
    prior: Prior | None,
    progress: Progress | None,
    teacher_outputs: Tensor | None = None,
) -> Tensor:
    """Return an objective's loss of a training batch, averaged over its labelled rows, a scalar.

    Args:
        objective: The objective, checked against the model.
        trajectory: Every step of the batch.
        labels: The labels, checked by the task.
        task: The meaning of outputs and labels.
        prior: The model's prior; None if it has none.
        progress: The progress of training; None if it is not known.
        teacher_outputs: The answers of a teacher, if the objective needs one.
    """
    outputs = trajectory.outputs
    precision = outputs.dtype
    if trajectory.hazard_logits is not None:
        precision = trajectory.hazard_logits.dtype
    over_steps: StepDistribution | None = None
    if prior is not None and "prior" in objective.needs:
        over_steps = prior(outputs.shape[1], dtype=precision, device=outputs.device)
    unrolled = Unrolled(
        outputs,
        task.step_losses(outputs, labels),
        task,
        hazard_logits=trajectory.hazard_logits,
        prior=over_steps,
        labels=labels,
        features=trajectory.features,
        progress=progress,
        teacher_outputs=teacher_outputs,
        mask=trajectory.mask,
    )
    return task.mean_loss(objective.per_example(unrolled), labels)


def _length(trajectory: Trajectory) -> int:
    """Return the number of positions of the outputs, or else of the features; 0 without."""
    if trajectory.meaning.per_position:
        return int(trajectory.outputs.shape[2])
    if trajectory.features is None or trajectory.features.dim() < 4:
        return 0
    return int(trajectory.features.shape[2])


def _with_mask(trajectory: Trajectory, length: int) -> Trajectory:
    """Return a trajectory whose mask covers its positions; None if it has no positions."""
    mask = trajectory.mask
    if not length:
        mask = None
    elif mask is None or mask.shape[1] != length:
        device = trajectory.outputs.device
        mask = torch.ones(len(trajectory), length, dtype=torch.bool, device=device)
    return dataclasses.replace(trajectory, mask=mask)
