"""Losses: from an unrolled batch to the objective's number, and from the outputs at the exits to the task's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ponder._utils.validation import check_share, check_type
from ponder.distributions import StepDistribution
from ponder.errors import ArgumentError
from ponder.objectives import Objective, Progress, Unrolled
from ponder.objectives.base import no_loss_of_each
from ponder.parts.recording import Recording
from ponder.parts.tasks import Task, infer_task

__all__ = [
    "check_drawn",
    "check_truncation",
    "checked_labels",
    "collected",
    "count_labelled",
    "exit_loss",
    "no_loss",
    "of_joined",
    "step_losses",
    "training_loss",
    "with_rest",
]


def training_loss(
    recording: Recording,
    task: Task | None,
    objective: Objective,
    prior: StepDistribution | None,
    *,
    progress: Progress | None = None,
    teacher_outputs: Tensor | None = None,
) -> Tensor | None:
    """The objective's mean over the rows that have a label; None where no labels were given.

    All terms have this one denominator: the task's losses, the divergence from the prior, alignment, and what a teacher
    teaches. A row without a label counts for nothing in any of them. Where a batch comes in parts (processes, gradient
    accumulation), this is the mean over one part, and `of_joined` weighs it.

    Args:
        recording: The unrolled batch, at least one row.
        task: What outputs and labels mean; inferred where None.
        objective: The objective.
        prior: The prior over all N steps, or None. Where the recording was truncated, what is left of both
            distributions is one step more (`with_rest`), at which the answer is that of the last step that ran.
        progress: How far training has come, or None.
        teacher_outputs: Outputs of a frozen teacher, `(batch, …)`, or None.
    """
    outputs, labels = recording.outputs, recording.labels
    if labels is None:
        return None
    task = task or infer_task(outputs[:, -1], labels)
    losses, hazards, features = step_losses(task, outputs, labels), recording.hazard_logits, recording.features
    if prior is not None and hazards is not None and prior.num_steps > recording.num_steps:
        hazards, prior = with_rest(hazards, prior)
        outputs, losses = _last_twice(outputs), _last_twice(losses)
        features = None if features is None else _last_twice(features)
    unrolled = Unrolled(
        outputs,
        losses,
        task,
        None if hazards is None else StepDistribution.from_hazard_logits(hazards),
        prior,
        labels=labels,
        features=features,
        progress=progress,
        teacher_outputs=teacher_outputs,
        mask=recording.mask,
    )
    objective.check_batch(unrolled)
    labelled = task.labelled(labels)
    if objective.reads_whole_batch and labelled is not None and not bool(labelled.all()):
        raise ArgumentError(
            "labels",
            expected=f"a label for every row: {objective!r} compares the rows of a batch with one another",
            got=f"none for {int((~labelled).sum())} of {len(labelled)} rows",
            remedy="Leave those rows out of the batch.",
        )
    each: object = objective.per_example(unrolled)
    if not isinstance(each, Tensor) or each.shape != losses.shape[:1]:
        raise no_loss_of_each(objective, each, losses.shape[0])
    return _mean(each, labelled)


def count_labelled(task: Task, labels: Tensor) -> Tensor:
    """How many rows have a label, and so count in the mean over a batch; a scalar where the labels are."""
    labelled = task.labelled(labels)
    return labels.new_tensor(len(labels), dtype=torch.long) if labelled is None else labelled.sum()


def of_joined(loss: Tensor, labelled: Tensor, total: Tensor, parts: int) -> Tensor:
    """The loss of one of several parts of a batch, weighed by its rows: the mean over the parts is that over all rows.

    Parts of as many labelled rows keep their losses to the last bit.

    Args:
        loss: The mean over the labelled rows of this part.
        labelled: How many those are, `count_labelled`.
        total: How many labelled rows all parts have together.
        parts: How many parts there are, over which losses or gradients are then averaged.

    Example:
        >>> total = torch.tensor(4)  # of two parts: a row of loss 4, and three of mean loss 2
        >>> [of_joined(torch.tensor(loss), torch.tensor(rows), total, 2).item() for loss, rows in ((4.0, 1), (2.0, 3))]
        [2.0, 3.0]
    """
    return loss * ((labelled * parts).to(loss.dtype) / total.clamp(min=1))


def no_loss(outputs: Tensor, model: nn.Module) -> Tensor:
    """The loss of no rows: 0, with a gradient of 0 for every parameter that is trained.

    In data-parallel training every rank waits for the gradients of all others, also of one whose batch is empty.
    """
    trained = (parameter for parameter in model.parameters() if parameter.requires_grad)
    return outputs.sum() * 0.0 + sum(parameter.sum() * 0.0 for parameter in trained)


def exit_loss(task: Task | None, outputs: Tensor, labels: Tensor | None) -> Tensor | None:
    """The task's mean loss of the outputs at the exits, `(batch, …)`: 0 for no rows, None without labels."""
    if labels is None:
        return None
    labels = checked_labels(task, outputs, labels)
    task = task or infer_task(outputs, labels)
    return _mean(task.losses(outputs, labels), task.labelled(labels)) if outputs.shape[0] else outputs.sum() * 0.0


def checked_labels(task: Task | None, outputs: Tensor, labels: Tensor) -> Tensor:
    """Bring labels into the form that the task takes, or refuse them; `outputs` are those of one step."""
    check_type("labels", labels, Tensor)
    return (task or infer_task(outputs, labels)).check(outputs, labels)


def step_losses(task: Task, outputs: Tensor, labels: Tensor) -> Tensor:
    """The task's losses of every step, `(batch, steps)`, in one call where the task says that it takes each row alone.

    Args:
        task: The task.
        outputs: Outputs, `(batch, steps, …)`.
        labels: Checked labels, batch first.
    """
    if not task.each_row_alone:
        return torch.stack([task.losses(of_step, labels) for of_step in outputs.unbind(1)], dim=1)
    steps = outputs.shape[1]
    repeated = labels.unsqueeze(1).expand(-1, steps, *labels.shape[1:]).flatten(0, 1)
    losses: Tensor = task.losses(outputs.flatten(0, 1), repeated).unflatten(0, (-1, steps))
    return losses


def _mean(losses: Tensor, labelled: Tensor | None) -> Tensor:
    """The mean over the labelled rows, `(batch,)` bool, or over all where None; 0 where no row has a label."""
    if labelled is None:
        return losses.mean()
    return torch.where(labelled, losses, 0.0).sum() / labelled.sum().clamp(min=1)


def with_rest(hazard_logits: Tensor, prior: StepDistribution) -> tuple[Tensor, StepDistribution]:
    """Hazards of the first K of N steps, and the prior over all N, both over K + 1 steps: the last is what is left.

    Were that put onto step K, the last hazard would count for nothing: a posterior that is sure of step K would be as
    close to the prior's whole tail as one can be, and the divergence gone. Now KL(posterior ‖ prior) lacks
    S KL(posterior ‖ prior, both beyond K), where S, the mass of the posterior beyond K, is what truncation keeps small.

    Args:
        hazard_logits: `(batch, K)`, with K < N.
        prior: The prior over N steps.

    Returns:
        Hazard logits, `(batch, K + 1)`, and a prior over as many steps.

    Example:
        >>> hazards, prior = with_rest(torch.zeros(1, 2), StepDistribution(torch.tensor([0.5, 0.2, 0.2, 0.1]).log()))
        >>> StepDistribution.from_hazard_logits(hazards).pmf, prior.pmf
        (tensor([[0.5000, 0.2500, 0.2500]]), tensor([0.5000, 0.2000, 0.3000]))
    """
    return F.pad(hazard_logits, (0, 1)), collected(prior, hazard_logits.shape[1] + 1)


def _last_twice(of_steps: Tensor) -> Tensor:
    return torch.cat([of_steps, of_steps[:, -1:]], dim=1)


def collected(distribution: StepDistribution, num_steps: int) -> StepDistribution:
    """The distribution over the first `num_steps` steps, the last with all the mass from there on.

    Example:
        >>> collected(StepDistribution(torch.tensor([0.5, 0.25, 0.25]).log()), 2).pmf
        tensor([0.5000, 0.5000])
    """
    log_pmf = distribution.log_pmf
    if num_steps == distribution.num_steps:
        return distribution
    tail = log_pmf[..., num_steps - 1 :].logsumexp(-1, keepdim=True)
    return StepDistribution(torch.cat([log_pmf[..., : num_steps - 1], tail], dim=-1), validate_args=False)


def check_drawn(objective: Objective, shared: bool, num_steps: int) -> None:
    """Refuse an objective that draws its depth where steps or heads are not shared, or where N leaves no room.

    Args:
        objective: The objective.
        shared: Whether one step and one head serve all depths.
        num_steps: N.
    """
    if not shared:
        raise ArgumentError(
            "objective",
            expected="an objective that runs all steps: these, or their heads, are not shared",
            got=repr(objective),
            remedy="Wrap one shared step with one head, or use objectives.OneStep to train a stack that is cut short.",
        )
    objective.check_depth(num_steps)


def check_truncation(truncate_below: float | None, objective: Objective, has_hazard: bool) -> None:
    """Refuse a threshold that means nothing, and models for which a truncated unroll is another training.

    Args:
        truncate_below: ε, or None.
        objective: The objective.
        has_hazard: Whether there is a Lambda head.
    """
    if truncate_below is None:
        return
    check_share("truncate_below", truncate_below)
    if not has_hazard:
        raise ArgumentError(
            "truncate_below",
            expected="None without a Lambda head: there is no mass that could run out",
            got=repr(truncate_below),
            remedy="Pass lambda_head=ponder.LambdaHead(width), or leave it out.",
        )
    if not objective.truncatable:
        raise ArgumentError(
            "truncate_below",
            expected="an objective for which steps hardly count that the halting distribution hardly reaches, as "
            "Ponder with the divergence KL(posterior ‖ prior) is",
            got=f"{objective!r}, which reads the last of all N steps, or the mass of the prior behind those that ran",
            remedy="Use objectives.Ponder(beta), or train with truncate_below=None.",
        )
