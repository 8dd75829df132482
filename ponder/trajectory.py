"""Trajectories: what a full-depth run recorded, with policies replayed and swept on it."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from ponder._utils.files import read_tensors, write_tensors
from ponder.analysis.metrics import MetricLike
from ponder.analysis.overthinking import Overthinking, overthinking_of
from ponder.analysis.policy_grid import PolicyGridLike
from ponder.analysis.reliability import Reliability, reliability_of
from ponder.analysis.sweeps import Costs, Curve, sweep
from ponder.engine.loop import Exits
from ponder.engine.replay import check_replay, replay
from ponder.errors import ArgumentError, ArgumentTypeError, CheckpointError
from ponder.parts.joining import join_rows, with_lengths
from ponder.parts.padding import Along
from ponder.parts.recording import Recording
from ponder.parts.tasks import Custom, Task, TaskName, task_named
from ponder.parts.tasks.base import IGNORED_LABEL
from ponder.parts.tasks.named import answers_as, answers_otherwise, kind_of
from ponder.policies.base import ExitPolicy

__all__ = ["Trajectory"]

_FORMAT = "ponder-trajectory-1"
_CONTEXT = "policy_context."
_LENGTHS = {  # where the length lies, where outputs or features have positions
    "outputs": Along((2,)),
    "features": Along((2,)),
    "labels": Along((1,), fill=IGNORED_LABEL),
    "mask": Along((1,), fill=False),
}


@dataclass(frozen=True, eq=False)
class Trajectory(Recording):
    """The record of a full-depth run; see `ponder.parts.recording.Recording` for its fields.

    Example:
        >>> trajectory = Trajectory(torch.randn(8, 4, 3), torch.randn(8, 4), torch.arange(8))
        >>> trajectory.replay(policies.Quantile(0.5)).exit_step.shape
        torch.Size([8])
    """

    def __repr__(self) -> str:
        parts = [name for name in ("hazard_logits", "features", "labels", "mask") if getattr(self, name) is not None]
        kept = f" with {', '.join(parts)}" if parts else ""
        shape = tuple(self.outputs.shape[2:])
        return f"Trajectory({len(self)} rows, {self.num_steps} steps, outputs {shape}{kept}, task {self.task!r})"

    def replay(self, policy: ExitPolicy) -> Exits:
        """The exits that running the model with `policy` gives: `.outputs` `(batch, …)`, `.exit_step` `(batch,)`."""
        check_replay(self, policy)
        return replay(self, policy)

    def check(self, policy: ExitPolicy) -> None:
        """Raise where `policy` cannot be replayed on what was recorded."""
        check_replay(self, policy)

    def sweep(
        self,
        policies: PolicyGridLike,
        grid: Iterable[float] | None = None,
        *,
        metric: MetricLike | None = None,
        costs: Costs | None = None,
        full_cost: float | None = None,
    ) -> Curve:
        """Try every value of a threshold; see `ponder.analysis.sweeps.sweep`.

        Example:
            >>> from ponder.policies import Quantile
            >>> trajectory = Trajectory(torch.randn(8, 4, 3), torch.randn(8, 4), torch.arange(8))
            >>> len(trajectory.sweep(Quantile, [0.25, 0.5, 0.75]))
            3
        """
        return sweep(self, policies, grid, metric=metric, costs=costs, full_cost=full_cost)

    def reliability(self, bins: int = 10) -> list[Reliability]:
        """Confidence against accuracy at each step; `ponder.plots.reliability` draws it."""
        return reliability_of(self, bins)

    def overthinking(self) -> Overthinking:
        """What the right step of each row would be worth; `ponder.plots.overthinking` draws it."""
        return overthinking_of(self)

    def map(self, fn: Callable[[Tensor], Tensor]) -> Trajectory:
        """Apply `fn` to every tensor, for example ``trajectory.map(Tensor.cpu)``.

        Ids, masks and labels that are integers stay so: under ``trajectory.map(Tensor.half)`` rows keep their ids.
        """
        return self._with({name: _mapped(value, fn(value)) for name, value in self.tensors().items()})

    def detach(self) -> Trajectory:
        """The same trajectory, detached from the graph of gradients."""
        return self.map(Tensor.detach)

    @staticmethod
    def cat(trajectories: Sequence[Trajectory]) -> Trajectory:
        """Join the trajectories of several batches; row ids are kept as they are (`model.record` counts on).

        Raises:
            ArgumentError: There are none, or they do not hold the same things.
        """
        if not trajectories:
            raise ArgumentError("trajectories", expected="at least one", got="none", remedy="Unroll a batch first.")
        trajectories = _with_masks(trajectories)
        # One that was loaded knows a user's own task by its name alone.
        first = next((one for one in trajectories if one.meaning.name == one.task), trajectories[0])
        parts = [trajectory.tensors() for trajectory in trajectories]
        for other, tensors in zip(trajectories, parts, strict=True):
            alike = _same_task(first, other) and other.num_steps == first.num_steps
            if not alike or tensors.keys() != parts[0].keys():
                tasks = [f"task {each.task!r} ({type(each.meaning).__name__})" for each in (first, other)]
                raise ArgumentError(
                    "trajectories",
                    expected=f"{sorted(parts[0])} over {first.num_steps} steps in each, {tasks[0]}",
                    got=f"{sorted(tensors)} over {other.num_steps} steps, {tasks[1]}",
                    remedy="Join trajectories of one model.",
                )
        sizes = [len(trajectory) for trajectory in trajectories]
        task = first.meaning
        length = max(_length(t) for t in trajectories)
        along = {**_LENGTHS, "outputs": Along((2,), fill=task.blank)}
        if not task.per_token:
            del along["labels"]
        if not task.per_position:  # features alone have a length, if any
            del along["outputs"]
        joined = {
            name: join_rows(
                [tensors[name] for tensors in parts],
                sizes,
                lengths=with_lengths(along.get(name) if length else None),
                length=length,
                path=name,
            )
            for name in parts[0]
        }
        training = any(trajectory.training for trajectory in trajectories)
        known = {trajectory.weights for trajectory in trajectories}
        if len(known - {None}) > 1:
            raise ArgumentError(
                "trajectories",
                expected="runs of one model, with the same weights",
                got="runs of other weights, by their digests",
                remedy="Record all data with the model as it is now.",
            )
        weights = known.pop() if len(known) == 1 else None
        return dataclasses.replace(first._with(joined), training=training, weights=weights)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file (whole, or not at all)."""
        own = {name: tensor.clone() for name, tensor in self.tensors().items()}  # two may be one, as h_n with no head
        task = Custom.name if self.task and answers_otherwise(self.meaning) else self.task or ""
        told = {"format": _FORMAT, "task": task, **({"training": "true"} if self.training else {})}
        told |= {} if self.weights is None else {"weights": self.weights}
        write_tensors(path, own, told | _said(task, self.meaning))

    @classmethod
    def load(cls, path: str | Path) -> Trajectory:
        """Read what `save` wrote.

        Raises:
            CheckpointError: The file is truncated, or is no trajectory.
        """
        tensors, metadata = read_tensors(path, _FORMAT, required=("outputs", "row_ids"))
        _check_saved(path, tensors)
        kind, said, own = (metadata.get(name) for name in ("kind", "classes", "answers"))
        custom = Custom(classes=None if said is None else said == "true")
        custom.told = own is None
        task = task_named(kind) if kind else custom if said or own else None
        empty = cls(
            outputs=tensors["outputs"],
            hazard_logits=None,
            row_ids=tensors["row_ids"],
            task=metadata.get("task") or None,
            training=metadata.get("training") == "true",
            task_object=task,
            weights=metadata.get("weights"),
        )
        if own:
            warnings.warn(
                f"{path} was recorded with a task of your own, {empty.task!r}, that answers in a way of its own, which "
                "a file does not hold: the answer is taken to be the most probable class. Give the task back: "
                "dataclasses.replace(trajectory, task_object=MyTask()).",
                stacklevel=2,
            )
        return empty._with(tensors)

    def _with(self, tensors: Mapping[str, Tensor]) -> Trajectory:
        """The trajectory with other tensors, named as `tensors` names them."""
        given = {name.removeprefix(_CONTEXT): value for name, value in tensors.items() if name.startswith(_CONTEXT)}
        own = {name: value for name, value in tensors.items() if not name.startswith(_CONTEXT)}
        return dataclasses.replace(self, **own, policy_context=given or None)  # type: ignore[arg-type]


def _mapped(value: Tensor, made: Tensor) -> Tensor:
    """What a function made of a tensor; of integers and flags no other kind of number, which would round them."""
    if value.is_floating_point() or not made.is_floating_point():
        return made
    if made.shape != value.shape or not torch.equal(made, value.to(made)):  # other rows, or others in their places
        shape = "" if made.shape == value.shape else f" of another shape, {tuple(made.shape)}"
        raise ArgumentTypeError(
            "fn",
            expected=f"integers and flags that stay {value.dtype}, as ids and masks are",
            got=f"other numbers, in {made.dtype}{shape}",
            remedy="Take rows first, and change the type of the numbers after that: two calls of map.",
        )
    return value.to(made.device)


def _said(name: str, task: Task) -> dict[str, str]:
    """What a user's own task says and its name does not tell: of which kind it is, or that outputs are numbers, say."""
    if not name or not isinstance(task_named(name), Custom):
        return {}
    kind = kind_of(task)
    if kind is not None and answers_as(task, task_named(kind)):
        return {"kind": kind}
    own = {} if isinstance(task, Custom) and task.told else {"answers": "own"}
    if task.supposed or task.classes == task.numbers:
        return own
    return own | {"classes": "true" if task.classes else "false"}


def _same_task(one: Trajectory, other: Trajectory) -> bool:
    """Whether two have one task: of a name, and of a class, or of one that a file did not tell."""
    kinds = {type(one.meaning), type(other.meaning)}
    own = one.task not in get_args(TaskName)
    told = len(kinds) == 1 or (own and (Custom in kinds or len({kind_of(each.meaning) for each in (one, other)}) == 1))
    return one.task == other.task and told


def _length(trajectory: Trajectory) -> int:
    """How many positions the outputs have, or the features where outputs have none; 0 where neither has any."""
    if trajectory.meaning.per_position:
        return trajectory.outputs.shape[2] if trajectory.outputs.dim() > 2 else 0
    features = trajectory.features
    return 0 if features is None or features.dim() < 4 else features.shape[2]


def _with_masks(trajectories: Sequence[Trajectory]) -> Sequence[Trajectory]:
    """Trajectories without masks, with masks where their lengths differ: what pads the shorter ones is no answer.

    A mask of another length than the outputs is of other positions, and would pass for theirs if it were padded.
    """
    lengths = [_length(t) for t in trajectories]
    if not all(lengths):
        return trajectories
    trajectories = [
        t if t.mask is None or t.mask.shape[1] == length else dataclasses.replace(t, mask=None)
        for t, length in zip(trajectories, lengths, strict=True)
    ]
    bare = [t for t in trajectories if t.mask is None]
    if not bare:
        return trajectories
    if len(set(lengths)) == 1 and len(bare) == len(trajectories):
        return trajectories
    whole = [torch.ones(len(t), length, dtype=torch.bool) for t, length in zip(trajectories, lengths, strict=True)]
    return [
        t if t.mask is not None else dataclasses.replace(t, mask=own.to(t.outputs.device))
        for t, own in zip(trajectories, whole, strict=True)
    ]


def _check_saved(path: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse a file whose tensors are not those of one trajectory."""
    outputs, known = tensors["outputs"], {field.name for field in dataclasses.fields(Trajectory)}
    steps = tuple(outputs.shape[:2])
    faults = [name for name in tensors if not name.startswith(_CONTEXT) and name not in known]
    faults += [name for name, tensor in tensors.items() if tensor.dim() == 0 or len(tensor) != outputs.shape[0]]
    faults += [
        name
        for name, tensor in tensors.items()
        if (name in ("outputs", "features") and (tensor.dim() < 2 or tuple(tensor.shape[:2]) != steps))
        or (name == "hazard_logits" and tuple(tensor.shape) != steps)
        or (name == "row_ids" and (tensor.dim() != 1 or tensor.is_floating_point() or tensor.is_complex()))
    ]
    if faults:
        raise CheckpointError(f"{path}: no trajectory: {', '.join(dict.fromkeys(faults))} do not fit the outputs.")
