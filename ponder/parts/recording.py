"""What a full-depth run recorded: plain data, which everything that looks at trajectories reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ponder.distributions import StepDistribution
from ponder.errors import PonderError
from ponder.parts.tasks import Task, task_named

__all__ = ["Recording"]


@dataclass(frozen=True, eq=False)
class Recording:
    """The record of a full-depth run.

    Args:
        outputs: The head's outputs at every step, `(batch, steps, …)`.
        hazard_logits: Logits of the hazards, `(batch, steps)`, at least float32; None without a Lambda head.
        row_ids: Who each row is, `(batch,)` long (seeded sampling depends on it).
        features: The readout's features, `(batch, steps, …)`; None unless they were kept.
        labels: Labels of the examples, batch first, where they were given.
        task: Name of the task, or None.
        mask: Which positions are no padding, `(batch, length)` bool, where a row has an answer at each of them.
        policy_context: What the caller gave for policies to read, by name, `(batch, …)` each.
        training: Whether the run was one of training mode, with dropout and the statistics of the batch: such answers
            are not those that the model gives, and no certificate is based on them.
        task_object: The task itself, where `task` is no name of the library's; not written to files.
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

    def __len__(self) -> int:
        return self.outputs.shape[0]

    @property
    def num_steps(self) -> int:
        """N."""
        return self.outputs.shape[1]

    @property
    def meaning(self) -> Task:
        """What the outputs mean; that of classes where the model named no task."""
        return self.task_object or task_named(self.task)

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

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor, by name; those of `policy_context` as ``policy_context.NAME``."""
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        given = {f"policy_context.{name}": value for name, value in (self.policy_context or {}).items()}
        return {name: value for name, value in {**own, **given}.items() if isinstance(value, Tensor)}
