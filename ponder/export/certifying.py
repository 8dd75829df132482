"""Choosing the threshold of an export, with a certificate: a promise made before quantisation need not hold after."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from ponder._utils.validation import check_type
from ponder.analysis.policy_grid import PolicyGridLike, as_policy_grid
from ponder.calibration import RiskControl, control_risk
from ponder.calibration.reference import ReferenceRisk, full_depth
from ponder.errors import ArgumentError
from ponder.export.manifest import Manifest
from ponder.export.runtime import OnnxModel, Record
from ponder.parts.tasks import Custom, Task
from ponder.parts.tasks.classification import Unnamed
from ponder.parts.tasks.named import task_recorded
from ponder.policies import ExitPolicy
from ponder.policies.fitted import check_unfitted
from ponder.trajectory import Trajectory

__all__ = ["certify", "to_trajectory"]


def to_trajectory(record: Record, *, task: str | None = None, labels: Any = None, first_row: int = 0) -> Trajectory:
    """A record of an exported model as a trajectory, for `ponder.calibrate`, sweeps and plots.

    Args:
        record: What `OnnxModel.record` gave.
        task: Name of the task.
        labels: Labels, one a row, or None.
        first_row: The id of the first row; the others follow.

    Example:
        >>> record = ponder.export.OnnxModel(folder).record(inputs.numpy())
        >>> to_trajectory(record, task="classification", labels=labels).sweep(policies.Confidence, [0.9]).metric
        'accuracy'
    """
    return Trajectory(
        outputs=torch.from_numpy(record.outputs),
        hazard_logits=None if record.hazard_logits is None else torch.from_numpy(record.hazard_logits),
        row_ids=torch.arange(first_row, first_row + len(record)),
        labels=None if labels is None else torch.as_tensor(np.asarray(labels)),
        features=None if record.features is None else torch.from_numpy(record.features),
        mask=None if record.mask is None else torch.from_numpy(record.mask),
        task=None if task in (None, Unnamed.name) else task,
        weights=record.weights,  # of the files: no model in PyTorch has these
    )


def certify(
    model: OnnxModel,
    reference: OnnxModel,
    examples: Any,
    policies: PolicyGridLike,
    *,
    level: float,
    confidence: float = 0.95,
    bound: str = "hoeffding_bentkus",
    grid: Iterable[float] | None = None,
    batch_size: int = 32,
) -> RiskControl:
    """Choose the cheapest threshold at which an export answers as another one does at full depth.

    The promise is about everything between the two: the early exits and the quantisation. So even full depth may fail
    it, and where no threshold passes, `RiskControl.met` is False and nothing is promised, full depth included. The
    policy is not given to the model: assign it, ``model.policy = found.policy``, and keep it with `save_policy`.

    Args:
        model: The export that will answer, with `int8`, say.
        reference: The export whose answers at full depth are the measure: that in fp32.
        examples: Examples like those to come, on which nothing else was chosen.
        policies: The policies to choose from, as for `ponder.control_risk`, of such as an export runs.
        level: Share of the answers that may differ, in (0, 1).
        confidence: Probability with which the promise holds, in (0, 1).
        bound: Name of the bound, as for `ponder.control_risk`.
        grid: Values of the threshold.
        batch_size: Rows of a batch at most.

    Raises:
        ArgumentTypeError: A folder, say, in place of an export that was opened.
        ArgumentError: Exports of different tasks, a policy that `model` cannot run (told before anything is recorded),
            or whatever `ponder.control_risk` refuses.

    Example:
        >>> exported = ponder.export.OnnxModel(folder)  # in earnest, the one with int8=True …
        >>> reference = ponder.export.OnnxModel(folder)  # … and the one without
        >>> found = certify(exported, reference, inputs.numpy(), policies.Confidence, level=0.05)
        >>> found.policy.risk, found.policy.rows
        ('disagreement_with_reference', 300)
    """
    for name, each in (("model", model), ("reference", reference)):
        check_type(name, each, OnnxModel, remedy="Open the folder: ponder.export.OnnxModel(folder).")
    own, other = model.manifest, reference.manifest
    task = _task_of(own)
    known = not own.own_answers and own.task != Custom.name and task.per_token == own.per_token
    if not known or not task.comparable:
        raise ArgumentError(
            "model",
            expected="a task whose answers can be compared without PyTorch, and are the same or not",
            got=f"{own.task!r}, which has other answers, or finds or compares them in code of its own",
            remedy="Certify the model in PyTorch, with ponder.control_risk.",
        )
    if (own.task, own.outputs, False) != (other.task, other.outputs, other.own_answers):
        raise ArgumentError(
            "reference",
            expected=f"an export of the task {own.task!r} with outputs {own.outputs}",
            got=f"{other.task!r} {other.outputs}",
            remedy="Export one model twice: with int8=True and without.",
        )
    grid = None if grid is None else list(grid)
    tried = _check_run(model, policies, grid)
    promised = to_trajectory(reference.record(examples, batch_size=batch_size), task=task.name)
    check_unfitted(promised, tried, "examples")  # on which they may be fitted: quantised, no row is known again
    reads_features = any("features" in policy.needs for policy in tried)
    record = model.record(examples, batch_size=batch_size, keep_features=reads_features)
    trajectory = to_trajectory(record, task=task.name, labels=full_depth(promised).long())
    return control_risk(
        trajectory,
        policies,
        risk=ReferenceRisk(),
        level=level,
        confidence=confidence,
        bound=bound,
        grid=grid,
    )


def _check_run(model: OnnxModel, policies: PolicyGridLike, grid: list[float] | None) -> tuple[ExitPolicy, ...]:
    """Refuse policies that the export cannot run, on a row of zeros: which they are hangs on its shape alone.

    Returns:
        The policies that will be tried.
    """
    steps, made = model.num_steps, model.manifest
    of_row = (1, *made.outputs) if made.per_position else made.outputs
    zeros = (np.zeros((1, steps, *shape), np.float32) for shape in (of_row, (), made.features))
    outputs, hazards, features = zeros
    row = Record(outputs, hazards, features=features if len(made.features) == 1 else None)
    tried = as_policy_grid(policies, grid, to_trajectory(row, task=_task_of(made).name)).policies
    for policy in tried:
        model.check(policy)
    return tuple(tried)


def _task_of(manifest: Manifest) -> Task:
    return task_recorded(
        manifest.task,
        classes=manifest.classes,
        numbers=manifest.numbers,
        per_token=manifest.per_token,
        per_position=manifest.per_position,
    )
