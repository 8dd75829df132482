"""Trajectories: what a full-depth run recorded, and policies replayed on it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ponder._utils.files import read_tensors, write_tensors
from ponder._utils.numerics import at_least_float32
from ponder.analysis.metrics import MetricLike
from ponder.analysis.policy_grid import FamilyLike
from ponder.analysis.sweeps import Curve, sweep
from ponder.distributions import StepDistribution
from ponder.engine.loop import Exits, run
from ponder.errors import ArgumentError, ArgumentTypeError, PonderError
from ponder.policies.base import Batch, ExitPolicy, Setting

__all__ = ["Trajectory"]

_FORMAT = "ponder-trajectory-1"


@dataclass(frozen=True, eq=False)
class Trajectory:
    """The record of a full-depth run.

    Args:
        outputs: The head's outputs at every step, `(batch, steps, …)`.
        hazard_logits: Logits of the hazards, `(batch, steps)`, at least float32; None without a Lambda head.
        features: The readout's features, `(batch, steps, …)`; None unless they were kept.
        labels: Labels of the examples, batch first, where they were given.
        row_ids: Who each row is, `(batch,)` long (seeded sampling depends on it).
        task: Name of the task, or None.
    """

    outputs: Tensor
    hazard_logits: Tensor | None
    row_ids: Tensor
    features: Tensor | None = None
    labels: Tensor | None = None
    task: str | None = None

    def __len__(self) -> int:
        return self.outputs.shape[0]

    @property
    def num_steps(self) -> int:
        """N."""
        return self.outputs.shape[1]

    @property
    def halting(self) -> StepDistribution:
        """The halting distribution that the hazards induce, `(batch,)` over the steps.

        Raises:
            PonderError: The model had no Lambda head.
        """
        if self.hazard_logits is None:
            raise PonderError(
                "trajectory.halting: the model that was unrolled has no Lambda head, so there are no hazards. "
                "Build it with lambda_head=ponder.LambdaHead(width)."
            )
        return StepDistribution.from_hazard_logits(self.hazard_logits)

    def replay(self, policy: ExitPolicy) -> Exits:
        """The exits that running the model with `policy` gives: `.outputs` `(batch, …)`, `.exit_step` `(batch,)`."""
        self.check(policy)
        if not len(self):
            return Exits(self.outputs[:, -1], self.row_ids.new_zeros(0))
        return self.run(policy)

    def sweep(
        self,
        policies: FamilyLike,
        grid: Iterable[float] | None = None,
        *,
        metric: MetricLike | None = None,
        costs: Sequence[float] | Tensor | None = None,
    ) -> Curve:
        """Try every value of a knob; see `ponder.analysis.sweeps.sweep`.

        Example:
            >>> from ponder.policies import Quantile
            >>> trajectory = Trajectory(torch.randn(8, 4, 3), torch.randn(8, 4), torch.arange(8))
            >>> len(trajectory.sweep(Quantile, [0.25, 0.5, 0.75]))
            3
        """
        return sweep(self, policies, grid, metric=metric, costs=costs)

    def check(self, policy: ExitPolicy) -> None:
        """Raise where `policy` cannot be replayed on what was recorded."""
        if not isinstance(policy, ExitPolicy):
            raise ArgumentTypeError(
                "policy",
                expected="an ExitPolicy",
                got=type(policy).__name__,
                remedy="Pass policies.Quantile(0.5), say.",
            )
        policy.check(Setting(self.num_steps, self.task, self.hazard_logits is not None, self.features is not None))

    def run(self, policy: ExitPolicy) -> Exits:
        """The loop over what was recorded, without checks; at least one row."""
        return run(_RecordedSource(self), policy, Batch(self.row_ids, self.num_steps, self.task))

    def map(self, fn: Callable[[Tensor], Tensor]) -> Trajectory:
        """Apply `fn` to every tensor, for example ``trajectory.map(Tensor.cpu)``."""
        changed = {name: fn(value) for name, value in self._tensors().items()}
        return dataclasses.replace(self, **changed)  # type: ignore[arg-type]

    def detach(self) -> Trajectory:
        """The trajectory outside the graph."""
        return self.map(Tensor.detach)

    @staticmethod
    def cat(trajectories: Sequence[Trajectory]) -> Trajectory:
        """Join the trajectories of several batches; row ids are kept as they are.

        Raises:
            ArgumentError: There are none, or they do not hold the same things.
        """
        if not trajectories:
            raise ArgumentError("trajectories", expected="at least one", got="none", remedy="Unroll a batch first.")
        first = trajectories[0]
        names = first._tensors().keys()
        for other in trajectories[1:]:
            if other._tensors().keys() != names or other.task != first.task or other.num_steps != first.num_steps:
                raise ArgumentError(
                    "trajectories",
                    expected=f"{sorted(names)} over {first.num_steps} steps in each, task {first.task!r}",
                    got=f"{sorted(other._tensors())} over {other.num_steps} steps, task {other.task!r}",
                    remedy="Join trajectories of one model.",
                )
        joined = {name: torch.cat([t._tensors()[name] for t in trajectories]) for name in names}
        return dataclasses.replace(first, **joined)  # type: ignore[arg-type]

    def save(self, path: str | Path) -> None:
        """Write one safetensors file (whole, or not at all)."""
        own = {name: tensor.clone() for name, tensor in self._tensors().items()}  # two may be one, as h_n with no head
        write_tensors(path, own, {"format": _FORMAT, "task": self.task or ""})

    @classmethod
    def load(cls, path: str | Path) -> Trajectory:
        """Read what `save` wrote.

        Raises:
            CheckpointError: The file is truncated, or is no trajectory.
        """
        tensors, metadata = read_tensors(path, _FORMAT, required=("outputs", "row_ids"))
        return cls(
            outputs=tensors["outputs"],
            hazard_logits=tensors.get("hazard_logits"),
            row_ids=tensors["row_ids"],
            features=tensors.get("features"),
            labels=tensors.get("labels"),
            task=metadata.get("task") or None,
        )

    def _tensors(self) -> dict[str, Tensor]:
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}


class _RecordedSource:
    """Rows of a trajectory, as a `loop.Source`."""

    def __init__(self, trajectory: Trajectory) -> None:
        self.trajectory = trajectory
        self.rows = torch.arange(len(trajectory), device=trajectory.outputs.device)
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
        rows = self.rows if index is None else self.rows[index]
        return self.trajectory.outputs[rows, self.step - 1]

    def keep(self, index: Tensor) -> None:
        self.rows = self.rows[index]
