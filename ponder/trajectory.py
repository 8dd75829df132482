"""Trajectories: the record of a full-depth run, on which policies are replayed, swept and certified."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor

from ponder._utils.arrays import at_least_float32
from ponder._utils.checks import check_type
from ponder._utils.files import read_tensors, write_tensors
from ponder._utils.trees import take_rows
from ponder.calibration.sweeps import Curve, sweep
from ponder.distributions import StepDistribution
from ponder.errors import ArgumentError, CheckpointError, PonderError
from ponder.model.loop import Exits, Running, ask, run
from ponder.model.padding import Along, join_rows, with_lengths
from ponder.policies.base import ExitPolicy, ModelSpec, PolicyBatch, StepView
from ponder.tasks import IGNORED_LABEL, Custom, Task, TaskName, infer_task, task_named

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Trajectory"]

_FORMAT = "ponder-trajectory-2"
_CONTEXT = "policy_context."


@dataclass(frozen=True, eq=False)
class Trajectory:
    """The record of a full-depth run.

    Args:
        outputs: The head's outputs at every step, `(batch, steps, …)`.
        hazard_logits: Logits of the hazards, `(batch, steps)`, at least float32; None without a Lambda head.
        row_ids: Identity of each row, `(batch,)` long (seeded sampling depends on it).
        features: The readout's features, `(batch, steps, …)`; None unless they were kept.
        labels: Labels of the examples, batch first, where they were given.
        task: Name of the task, or None.
        mask: The positions that are no padding, `(batch, length)` bool, where outputs or features have positions.
        policy_context: Values that the caller gave for policies to read, by name, `(batch, …)` each.
        training: Whether the run was one of training mode, whose answers are not those that the model gives.
        task_object: The task itself, where `task` is no name of the library's; not written to files.
        weights: SHA-256 of the weights that gave the outputs, as `model.record` notes it. A certificate is about these.
        content_ids: Whether row ids are hashes of the rows' contents, so that equal ids are equal rows.

    Example:
        >>> trajectory = Trajectory(torch.randn(8, 4, 3), torch.randn(8, 4), torch.arange(8))
        >>> trajectory.replay(policies.Quantile(0.5)).exit_step.shape
        torch.Size([8])
    """

    outputs: Tensor
    hazard_logits: Tensor | None
    row_ids: Tensor
    features: Tensor | None = None
    labels: Tensor | None = None
    task: str | None = None
    mask: Tensor | None = None
    policy_context: Mapping[str, Tensor] | None = None
    training: bool = False
    task_object: Task | None = None
    weights: str | None = None
    content_ids: bool = False

    def __post_init__(self) -> None:
        steps = self.outputs.shape[:2]
        hazards, features, mask = self.hazard_logits, self.features, self.mask
        if (  # no loop, since a trajectory is made in every training step
            self.row_ids.shape != steps[:1]
            or (hazards is not None and hazards.shape != steps)
            or (features is not None and features.shape[:2] != steps)
            or (mask is not None and mask.shape[:1] != steps[:1])
        ):
            got = {name: tuple(tensor.shape) for name, tensor in self.tensors().items()}
            expected, remedy = "tensors (batch, steps, …) of the same rows and steps", "Take the same of all of them."
            raise ArgumentError("trajectory", expected=expected, got=got, remedy=remedy)

    def __len__(self) -> int:
        return self.outputs.shape[0]

    def __repr__(self) -> str:
        parts = [name for name in ("hazard_logits", "features", "labels", "mask") if getattr(self, name) is not None]
        kept = f" with {', '.join(parts)}" if parts else ""
        shape = tuple(self.outputs.shape[2:])
        return f"Trajectory({len(self)} rows, {self.num_steps} steps, outputs {shape}{kept}, task {self.task!r})"

    @property
    def num_steps(self) -> int:
        """The number of steps N."""
        return self.outputs.shape[1]

    @property
    def is_training_run(self) -> bool:
        """Whether the run was one of training mode."""
        return self.training

    @property
    def width(self) -> int:
        """The size of the last dimension of the outputs."""
        return self.outputs.shape[-1]

    @property
    def meaning(self) -> Task:
        """The task; where the model named none, the one that the labels show, and classification without labels."""
        if self.task_object is None and self.task is None and self.labels is not None:
            return infer_task(self.outputs[:, -1], self.labels)
        return self.task_object or task_named(self.task)

    @property
    def halting(self) -> StepDistribution:
        """The halting distribution that the hazards induce, `(batch,)` over the steps."""
        if self.hazard_logits is None:
            raise PonderError("The model has no Lambda head: build it with lambda_head=ponder.LambdaHead(width).")
        return StepDistribution.from_hazard_logits(self.hazard_logits)

    @property
    def batch(self) -> PolicyBatch:
        """The rows, as policies see them."""
        return PolicyBatch(self.row_ids, self.num_steps, self.task_object or task_named(self.task))

    def check(self, policy: ExitPolicy) -> None:
        """Raise where `policy` cannot be replayed on this record."""
        check_type("policy", policy, ExitPolicy)
        policy.check(
            ModelSpec(
                self.num_steps,
                self.batch.task,
                has_hazard=self.hazard_logits is not None,
                has_features=self.features is not None,
                has_context=self.policy_context is not None,
            )
        )

    def replay(self, policy: ExitPolicy) -> Exits:
        """Return the exits of running the model with `policy`: `.outputs` `(batch, …)`, `.exit_step` `(batch,)`."""
        self.check(policy)
        if not len(self):
            return Exits(self.outputs[:, -1], self.row_ids.new_zeros(0))
        return run(_RecordedSource(self), policy, self.batch)

    def exit_steps(self, policy: ExitPolicy) -> NDArray[np.int64]:
        """Return the exit step of each row, `(rows,)`, as an array."""
        return _array(self.replay(policy).exit_step)

    def views(self, needs: frozenset[str]) -> Iterator[StepView]:
        """Yield what a policy with these `needs` sees of all rows after each step 1 … N."""
        source, reader, batch = _RecordedSource(self), _Reader(needs), self.batch
        running = Running.start(reader, batch)
        for step in range(1, self.num_steps + 1):
            source.advance(step)
            _, running = ask(source, reader, running, batch)
            yield reader.view

    def scores(self, policy: ExitPolicy, free: ExitPolicy | None = None) -> NDArray[np.float64]:
        """Return the readiness of `policy` to exit, `(rows, steps)`; see `ExitPolicy.scores`."""
        self.check(policy)
        scores: NDArray[np.float64] = policy.scores(self, free)
        return scores

    def sweep(self, policies: Any, grid: Any = None, **options: Any) -> Curve:
        """Try every value of a threshold; see `ponder.calibration.sweep`.

        Example:
            >>> trajectory = Trajectory(torch.randn(8, 4, 3), torch.randn(8, 4), torch.arange(8))
            >>> len(trajectory.sweep(policies.Quantile, [0.25, 0.5, 0.75]))
            3
        """
        return sweep(self, policies, grid, **options)

    def agreement(self) -> NDArray[np.bool_]:
        """Return whether the answer of each step is that of full depth, `(rows, steps)`; padding does not count.

        NaN is no answer, so it agrees with none; full depth agrees with itself.
        """
        answered = self._answered()
        agrees = self.meaning.agreement(self._read_outputs(), self.mask) & answered & answered[:, -1:]
        agrees[:, -1] = True
        return _array(agrees)

    def correct(self) -> NDArray[np.bool_]:
        """Return whether the answer of each step is right, `(rows, steps)`; padding does not count, NaN is wrong."""
        if not self.meaning.comparable:
            got, remedy = f"the task {self.meaning.name!r}", "Use its metric, or a risk or metric of your own."
            raise ArgumentError("trajectory", expected="answers that are right or wrong", got=got, remedy=remedy)
        return _array(self.meaning.correct(self._read_outputs(), self._checked_labels()) & self._answered())

    def score_name(self, metric: str | Callable[..., Any] | None = None) -> str:
        """Return the name of a score: the task's own, ``"exact_match"`` where all of several answers must be right."""
        if callable(metric):
            return getattr(metric, "__name__", "score")
        task = self.meaning
        own = "exact_match" if task.several_answers and task.metric == "accuracy" else task.metric
        if own is None or metric not in (None, own, task.metric):
            expected, got = f"{own!r}, or a callable (outputs, labels) -> float", f"{metric!r} with task {task.name!r}"
            raise ArgumentError("metric", expected=expected, got=got, remedy="Choose one of them.")
        return own

    def score_table(self, metric: str | Callable[..., Any] | None = None) -> NDArray[np.float64] | None:
        """Return the score of each row at each step, `(rows, steps)`, whose mean over rows is the metric.

        Args:
            metric: ``"accuracy"``, ``"exact_match"`` (tokens, several labels) or ``"negative_squared_error"``; None for
                the task's own. A callable is no mean over rows, and gives None: see `answers_at`.
        """
        if callable(metric):
            return None
        self.score_name(metric)
        scores = self.meaning.scores(self._read_outputs(), self._checked_labels())
        without = 0.0 if self.meaning.metric == "accuracy" else float("nan")  # of other scores 0 may be the best
        return _array(scores.masked_fill(~self._answered(), without))

    def answers_at(self, steps: Any) -> tuple[Tensor, Tensor]:
        """Return the outputs at exits, `(rows,)`, and the labels, as a metric takes them: labelled rows or tokens."""
        task, labels = self.meaning, self._checked_labels()
        at = torch.as_tensor(steps, device=self.outputs.device)
        outputs = self.outputs[torch.arange(len(self), device=at.device), at - 1]
        outputs = at_least_float32(task.without_padding(outputs, self.mask))
        labelled = labels != IGNORED_LABEL if task.per_token else task.labelled(labels)
        return (outputs, labels) if labelled is None else (outputs[labelled], labels[labelled])

    def losses(self, risk: Callable[[Tensor, Tensor], Tensor], low: float = 0.0) -> NDArray[np.float64]:
        """Return a risk of each row, should it exit at each step, `(rows, steps)`; 1 where there is no answer.

        Args:
            risk: Losses `(rows,)` in [0, 1] from outputs of one step, `(rows, …)`, and labels.
            low: The lowest loss; lower ones are raised to it.
        """
        labels = self._checked_labels()
        each = torch.stack([risk(outputs, labels) for outputs in self._read_outputs().unbind(1)], dim=1).double()
        return _array(each.masked_fill(~self._answered(), 1.0).clamp(min=low))

    def _read_outputs(self) -> Tensor:
        outputs: Tensor = self.meaning.without_padding(self.outputs, self.mask)
        return outputs

    def _answered(self) -> Tensor:
        """Return where outputs are no NaN, `(batch, steps)` bool."""
        return torch.stack([self.meaning.answered(outputs, self.mask) for outputs in self.outputs.unbind(1)], dim=1)

    def _checked_labels(self) -> Tensor:
        """Return labels as the task takes them, those of padding ignored."""
        if self.labels is None:
            remedy = "Record them: model.unroll(inputs, labels=labels)."
            raise ArgumentError("trajectory", expected="labels", got="a trajectory without", remedy=remedy)
        checked = self.meaning.check(self.outputs[:, -1], self.labels.to(self.outputs.device))
        labels: Tensor = self.meaning.inside(checked, self.mask)
        return labels

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor by name; those of `policy_context` as ``policy_context.NAME``."""
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        given = {_CONTEXT + name: value for name, value in (self.policy_context or {}).items()}
        return {name: value for name, value in {**own, **given}.items() if isinstance(value, Tensor)}

    def map(self, fn: Callable[[Tensor], Tensor]) -> Trajectory:
        """Apply `fn` to every tensor, for example ``trajectory.map(Tensor.half)``; integers and flags stay such."""

        def apply(value: Tensor) -> Tensor:
            made = fn(value)
            return made.to(value.dtype) if made.is_floating_point() and not value.is_floating_point() else made

        return self._with({name: apply(value) for name, value in self.tensors().items()})

    def detach(self) -> Trajectory:
        """Return the same trajectory, detached from the graph of gradients."""
        return self.map(Tensor.detach)

    @staticmethod
    def cat(trajectories: Sequence[Trajectory]) -> Trajectory:
        """Join the trajectories of several batches of one model; shorter rows are padded, and row ids stay."""
        first = trajectories[0]
        weights = {one.weights for one in trajectories}
        lengths = [_length(one) for one in trajectories]
        masked = [one.mask is not None for one in trajectories]
        if any(lengths) and len({*zip(lengths, masked, strict=True)}) > 1:
            trajectories = [_with_mask(one, length) for one, length in zip(trajectories, lengths, strict=True)]
        parts = [one.tensors() for one in trajectories]
        fields = {(one.task, *part) for one, part in zip(trajectories, parts, strict=True)}
        if len(weights) > 1 or len(fields) > 1:
            got = f"{len(weights)} digests of weights, tasks and fields {sorted(map(str, fields))}"
            remedy = "Record all data with one model."
            raise ArgumentError("trajectories", expected="records of one model", got=got, remedy=remedy)
        task, sizes = first.meaning, [len(one) for one in trajectories]
        along = {"mask": Along((1,), fill=False), "features": Along((2,))}
        along |= {"outputs": Along((2,), fill=task.blank)} if task.per_position else {}
        along |= {"labels": Along((1,), fill=IGNORED_LABEL)} if task.per_token else {}
        joined = {
            name: join_rows(
                [part[name] for part in parts],
                sizes,
                lengths=with_lengths(along.get(name) if max(lengths) else None),
                length=max(lengths),
                path=name,
            )
            for name in parts[0]
        }
        return dataclasses.replace(first._with(joined), training=any(one.training for one in trajectories))

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, whole or not at all; a task of one's own is named by the one it derives from."""
        own = {name: tensor.clone() for name, tensor in self.tensors().items()}  # two may share memory
        kinds = (kind.__dict__.get("name") for kind in type(self.meaning).__mro__)
        task = None if self.task is None else next((name for name in kinds if name in get_args(TaskName)), Custom.name)
        said = {"task": task, "weights": self.weights, "training": self.training, "content_ids": self.content_ids}
        said["numbers"] = self.meaning.numbers
        write_tensors(path, own, {"format": _FORMAT, **{name: str(value) for name, value in said.items() if value}})

    @classmethod
    def load(cls, path: str | Path) -> Trajectory:
        """Read what `save` wrote."""
        tensors, said = read_tensors(path, "pt")
        if said.get("format") != _FORMAT:
            raise CheckpointError(f"{path}: expected a trajectory ({_FORMAT}); got {said.get('format')!r}.")
        task = said.get("task")
        empty = cls(
            tensors["outputs"],
            None,
            tensors["row_ids"],
            task=task,
            training="training" in said,
            weights=said.get("weights"),
            content_ids="content_ids" in said,
            task_object=Custom(classes="numbers" not in said) if task == Custom.name else None,
        )
        return empty._with(tensors)

    def _with(self, tensors: Mapping[str, Tensor]) -> Trajectory:
        given = {name.removeprefix(_CONTEXT): value for name, value in tensors.items() if name.startswith(_CONTEXT)}
        own: dict[str, Any] = {name: value for name, value in tensors.items() if not name.startswith(_CONTEXT)}
        return dataclasses.replace(self, **own, policy_context=given or None)


class _Reader(ExitPolicy):
    """Keeps every row, and what it was shown last."""

    view: StepView

    def __init__(self, needs: frozenset[str]) -> None:
        self.needs = needs

    def decide(self, step: StepView, state: Any) -> tuple[bool, Any]:
        self.view = step
        return False, state


class _RecordedSource:
    """The rows of a trajectory, as a `loop.Source`."""

    def __init__(self, trajectory: Trajectory) -> None:
        self.trajectory = trajectory
        self.rows = torch.arange(len(trajectory), device=trajectory.outputs.device)
        self.mask = trajectory.mask
        self.policy_context: Mapping[str, Tensor] = trajectory.policy_context or {}
        self.step = 0

    def advance(self, step: int) -> None:
        self.step = step

    def features(self) -> Tensor:
        assert self.trajectory.features is not None  # the policy was checked
        return self.trajectory.features[self.rows, self.step - 1]

    def output(self) -> Tensor:
        return self.trajectory.outputs[self.rows, self.step - 1]

    def hazard_logit(self) -> Tensor:
        assert self.trajectory.hazard_logits is not None  # the policy was checked
        return at_least_float32(self.trajectory.hazard_logits[self.rows, self.step - 1])

    def output_of(self, index: Tensor | None) -> Tensor:
        rows = self.rows if index is None else self.rows[index.to(self.rows.device)]
        return self.trajectory.outputs[rows, self.step - 1]

    def keep(self, index: Tensor) -> None:
        rows = index.to(self.rows.device)
        self.rows, self.mask, self.policy_context = take_rows((self.rows, self.mask, self.policy_context), rows)


def _array(tensor: Tensor) -> NDArray[Any]:
    return tensor.detach().cpu().numpy()


def _length(trajectory: Trajectory) -> int:
    """Return the number of positions of the outputs, or of the features where outputs have none; 0 without any."""
    if trajectory.meaning.per_position:
        return trajectory.outputs.shape[2]
    return 0 if trajectory.features is None or trajectory.features.dim() < 4 else trajectory.features.shape[2]


def _with_mask(trajectory: Trajectory, length: int) -> Trajectory:
    """Return a trajectory whose mask is about its positions: all of them, where it had none or one of others."""
    if trajectory.mask is not None and trajectory.mask.shape[1] == length:
        return trajectory
    whole = torch.ones(len(trajectory), length, dtype=torch.bool, device=trajectory.outputs.device)
    return dataclasses.replace(trajectory, mask=whole)
