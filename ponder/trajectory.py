"""Trajectories: the record of a full-depth run, on which policies are replayed, swept and certified."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, get_args

import torch
from torch import Tensor

from ponder._utils.files import read_tensors, write_tensors
from ponder.calibration.records import Record
from ponder.calibration.sweeps import Curve, sweep
from ponder.distributions import StepDistribution
from ponder.errors import ArgumentError, CheckpointError, PonderError
from ponder.model.padding import Along, join_rows
from ponder.tasks import IGNORED_LABEL, Custom, TaskName

__all__ = ["Trajectory"]

_FORMAT = "ponder-trajectory-2"


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

    def sweep(self, policies: Any, grid: Any = None, **options: Any) -> Curve:
        """Try every value of a threshold; see `ponder.calibration.sweep`.

        Example:
            >>> trajectory = Trajectory(torch.randn(8, 4, 3), torch.randn(8, 4), torch.arange(8))
            >>> len(trajectory.sweep(policies.Quantile, [0.25, 0.5, 0.75]))
            3
        """
        return sweep(self, policies, grid, **options)

    def detach(self) -> Self:
        """Return the same trajectory, detached from the graph of gradients."""
        return self.map(Tensor.detach)

    @staticmethod
    def cat(trajectories: Sequence[Trajectory]) -> Trajectory:
        """Join the trajectories of several batches of one model; shorter rows are padded, and row ids stay."""
        first = trajectories[0]
        weights = {one.weights for one in trajectories}
        lengths = [_length(one) for one in trajectories]
        trajectories = [
            _with_mask(one, length) for one, length in zip(trajectories, lengths, strict=True)
        ]
        parts = [one.tensors() for one in trajectories]
        fields = {
            (one.batch.task.name, *part) for one, part in zip(trajectories, parts, strict=True)
        }
        if len(weights) > 1 or len(fields) > 1:
            got = f"{len(weights)} digests of weights, tasks and fields {sorted(map(str, fields))}"
            remedy = "Record all data with one model."
            raise ArgumentError(
                "trajectories", expected="records of one model", got=got, remedy=remedy
            )
        task = first.meaning
        along = {"mask": Along((1,), fill=False), "features": Along((2,))}
        along |= {"outputs": Along((2,), fill=task.blank)} if task.per_position else {}
        along |= {"labels": Along((1,), fill=IGNORED_LABEL)} if task.per_token else {}
        joined = join_rows(
            parts, lambda name, _: along.get(name), max(lengths), path="trajectories"
        )
        return dataclasses.replace(
            first._with(joined), training=any(one.training for one in trajectories)
        )

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, whole or not at all; a task of one's own is named by the one it derives from."""
        kinds = (kind.__dict__.get("name") for kind in type(self.meaning).__mro__)
        if self.task is None:
            task = None
        else:
            task = next((name for name in kinds if name in get_args(TaskName)), Custom.name)
        said = {
            "task": task,
            "weights": self.weights,
            "training": self.training,
            "content_ids": self.content_ids,
        }
        said["numbers"] = self.meaning.numbers
        given = {name: str(value) for name, value in said.items() if value}
        write_tensors(path, self.tensors(), {"format": _FORMAT, **given})

    @classmethod
    def load(cls, path: str | Path) -> Trajectory:
        """Read what `save` wrote."""
        tensors, said = read_tensors(path, "pt")
        if said.get("format") != _FORMAT:
            raise CheckpointError(
                f"{path}: expected a trajectory ({_FORMAT}); got {said.get('format')!r}."
            )
        task = said.get("task")
        return cls(
            tensors["outputs"],
            None,
            tensors["row_ids"],
            task=Custom(classes="numbers" not in said) if task == Custom.name else task,
            training="training" in said,
            weights=said.get("weights"),
            content_ids="content_ids" in said,
        )._with(tensors)


def _length(trajectory: Trajectory) -> int:
    """Return the number of positions of the outputs, or of the features where outputs have none; 0 without any."""
    if trajectory.meaning.per_position:
        return int(trajectory.outputs.shape[2])
    if trajectory.features is None or trajectory.features.dim() < 4:
        return 0
    return int(trajectory.features.shape[2])


def _with_mask(trajectory: Trajectory, length: int) -> Trajectory:
    """Return a trajectory whose mask is about its positions, all of them where it had none; None without any."""
    mask = trajectory.mask if length else None
    if length and (mask is None or mask.shape[1] != length):
        mask = torch.ones(
            len(trajectory), length, dtype=torch.bool, device=trajectory.outputs.device
        )
    return dataclasses.replace(trajectory, mask=mask)
