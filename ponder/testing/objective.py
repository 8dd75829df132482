"""The contract of objectives."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from ponder._utils.trees import alike, take_rows
from ponder.distributions import StepDistribution
from ponder.errors import ArgumentError
from ponder.objectives import NEEDS, Depth, Objective, Progress, Unrolled
from ponder.parts.tasks import TaskName, as_task
from ponder.parts.tasks.base import IGNORED_LABEL
from ponder.priors import Geometric
from ponder.testing.contract import ContractError, require
from ponder.testing.plugin import check_copies, check_frozen, check_needs, check_registered, kept
from ponder.testing.randomness import private_randomness
from ponder.testing.samples import Sizes, labels, random_trajectory

__all__ = ["check_objective"]

_ROWS = 5
_FIELDS = {
    "features": "features",
    "hazard": "halting",
    "labels": "labels",
    "prior": "prior",
    "progress": "progress",
    "teacher": "teacher_outputs",
}
_TOLERANCE = 1e-6


def check_objective(objective: Objective, *, task: TaskName = "classification", num_steps: int = 6) -> None:
    """Check that an objective keeps its contract; return None, or raise what says which rule broke.

    The rules: a frozen dataclass that is registered and comes back from JSON, pickle and deepcopy; it reads what
    `needs` declares; one finite loss per example, with finite gradients, for hazard logits of ±10⁴, outputs of any
    floating-point type, and other numbers of steps, or an `ArgumentError`; `depth` gives a `Depth` that a model of N
    steps has, and no step behind it is read; a row's loss depends on the row alone, or, where the objective says that
    it `reads_whole_batch`, not on the order of the rows, and not on the padding of a text; the losses can be learnt
    from; `per_example` is pure.

    Args:
        objective: The objective.
        task: Name of the task that it is tried on.
        num_steps: N. One step, and one more than N, are tried as well; the objective may refuse those.

    Raises:
        ContractError: A rule is broken.
        ArgumentError: The objective refuses the task, or N steps.

    Example:
        >>> from ponder import objectives
        >>> from ponder.testing import check_objective
        >>> check_objective(objectives.Ponder(0.5))
    """
    with private_randomness(0):
        check_frozen("objective", objective, Objective)
        check_needs(objective, NEEDS)
        sizes = _sizes(objective, task, num_steps)
        _check_declared(objective, _batch(sizes))
        _check_pure(objective, _batch(sizes))
        _check_rows_alone(objective, _batch(sizes))
        _check_padding(objective, sizes)
        _check_depth(objective, sizes, num_steps)
        others = [n for n in (1, num_steps + 1) if n != num_steps and _serves(objective, task, n)]
        for tried in (sizes, *(_sizes(objective, task, n) for n in others)):
            for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
                for level in (None, -1e4, 1e4):
                    _check_finite(objective, tried, dtype, level)
        check_registered(objective)
        check_copies(objective, lambda a, b: alike(a.per_example(_batch(sizes)), b.per_example(_batch(sizes))))


def _sizes(objective: Objective, task: TaskName, num_steps: int) -> Sizes:
    """The sizes of a batch as a model of `num_steps` steps shows it to the objective."""
    made = objective.depth(num_steps)
    fits = type(made) is Depth and made.warm_up >= 0 < made.steps
    require(
        fits and (objective.draws_depth or made.total <= num_steps),
        objective,
        "depth gives a Depth that the model has",
        f"{made!r} for {num_steps} steps",
        "Return Depth(0, num_steps), or fewer steps. One that draws more says draws_depth = True.",
    )
    return Sizes(task, made.steps)


def _serves(objective: Objective, task: TaskName, num_steps: int) -> bool:
    """Whether an objective takes that many steps; it may refuse them with an `ArgumentError`."""
    try:
        _losses(objective, _batch(_sizes(objective, task, num_steps)), f"{num_steps} steps")
    except ArgumentError:
        return False
    return True


def _batch(sizes: Sizes) -> Unrolled:
    """A random training batch, float64."""
    return _batch_of_logits(sizes, torch.float64, None)[0]


def _batch_of_logits(sizes: Sizes, dtype: torch.dtype, level: float | None) -> tuple[Unrolled, Tensor]:
    """A training batch of `dtype`, and its hazard logits, of `level` or random; all that is read takes gradients."""
    trajectory = random_trajectory(sizes, _ROWS, 1.0, 2)
    outputs, logits = trajectory.outputs.to(dtype).requires_grad_(), trajectory.hazard_logits
    assert logits is not None
    if level is not None:
        logits = torch.full_like(logits, level)
        logits[0, ::2] *= -1  # and one row where both signs meet
    task, of_rows = as_task(sizes.task), labels(sizes, _ROWS, 3)  # type: ignore[arg-type]
    assert task is not None
    of_rows = task.check(outputs[:, -1], of_rows)
    losses = torch.stack([task.losses(of_step, of_rows) for of_step in outputs.unbind(1)], dim=1)
    logits = logits.to(losses.dtype).requires_grad_()
    halting = StepDistribution.from_hazard_logits(logits)
    batch = Unrolled(
        outputs,
        losses,
        task,
        halting,
        Geometric(0.2)(sizes.num_steps, dtype=losses.dtype),
        labels=of_rows,
        features=None if trajectory.features is None else trajectory.features.to(dtype).requires_grad_(),
        progress=Progress(3, 5),
        teacher_outputs=random_trajectory(sizes, _ROWS, 1.0, 4).outputs[:, 0].to(dtype),
    )
    return batch, logits


def _losses(objective: Objective, batch: Unrolled, what: str = "a random batch") -> Tensor:
    try:
        losses = objective.per_example(batch)
    except ArgumentError:
        raise  # the objective refuses the task, in its own words
    except Exception as error:
        raise ContractError(
            objective,
            "per_example answers for every finite batch",
            f"{what}: {type(error).__name__}: {error}",
            "Use what unrolled gives, and serve any number of steps from 1 on, or refuse it with an ArgumentError.",
        ) from error
    form = f"shape {tuple(losses.shape)}" if isinstance(losses, Tensor) else type(losses).__name__
    require(
        isinstance(losses, Tensor) and losses.shape == (len(batch.losses),) and losses.is_floating_point(),
        objective,
        "per_example gives one loss per example",
        f"{form} for {len(batch.losses)} examples, {what}",
        "Reduce over every dimension but the first; the model averages over the batch.",
    )
    return losses


def _check_declared(objective: Objective, batch: Unrolled) -> None:
    needs = objective.needs
    missing: dict[str, Any] = {field: None for need, field in _FIELDS.items() if need not in needs}
    declared = dataclasses.replace(batch, **missing)
    try:
        objective.per_example(declared)
    except Exception as error:
        _losses(objective, batch)  # fails with everything given too: another fault, in its own words
        raise ContractError(
            objective,
            "what per_example reads is declared in needs",
            f"without what is not declared: {type(error).__name__}: {error}",
            f"Add the one of {_FIELDS} that it reads; now it has {sorted(needs)}.",
        ) from error


def _check_pure(objective: Objective, batch: Unrolled) -> None:
    held = kept(objective)
    before = [tensor.detach().clone() for tensor in _tensors(batch)]
    first = _losses(objective, batch).detach().clone()
    second = _losses(objective, batch)
    changed = not alike(before, [tensor.detach() for tensor in _tensors(batch)]) or held != kept(objective)
    require(
        not changed and alike(first, second.detach()),
        objective,
        "per_example is pure",
        "it changed what it was given, or itself" if changed else "two calls gave different losses",
        "Make new tensors, draw no random numbers, and keep nothing.",
    )


def _check_rows_alone(objective: Objective, batch: Unrolled) -> None:
    whole = _losses(objective, batch)
    trials = (torch.tensor([3]), torch.tensor([4, 2, 0, 1, 3]), torch.tensor([1, 1, 4]))
    for rows in trials[1:2] if objective.reads_whole_batch else trials:
        part = _losses(objective, _take(batch, rows))
        require(
            alike(part.detach(), whole[rows].detach(), _TOLERANCE),
            objective,
            "a row's loss does not depend on the other rows, their number or their order",
            f"rows {rows.tolist()} have losses {part.tolist()} alone, and among {len(whole)} {whole[rows].tolist()}",
            "Reduce over every dimension but the first, and do not divide by the batch size; or, where the loss is "
            "meant to depend on statistics of the batch, write reads_whole_batch = True on the class.",
        )


def _check_padding(objective: Objective, sizes: Sizes) -> None:
    """The padding of a text, which has no label, is not learnt from."""
    batch = _batch(sizes)
    if not batch.task.per_token:
        return
    assert batch.labels is not None
    of_rows, other = batch.labels.clone(), batch.outputs.detach().clone()
    of_rows[:, -1] = IGNORED_LABEL
    mask = torch.ones(of_rows.shape, dtype=torch.bool)
    mask[:, -1] = False
    other[:, :, -1] *= -7.0
    found = []
    for outputs in (batch.outputs, other):
        losses = torch.stack([batch.task.losses(of_step, of_rows) for of_step in outputs.unbind(1)], dim=1)
        given = dataclasses.replace(batch, outputs=outputs, losses=losses, labels=of_rows, mask=mask)
        found.append(_losses(objective, given, f"a batch with labels of {IGNORED_LABEL}").detach())
    require(
        alike(found[0], found[1], _TOLERANCE),
        objective,
        f"padding, with the label {IGNORED_LABEL}, counts for nothing",
        f"losses {found[0].tolist()}, and with other outputs there {found[1].tolist()}",
        "Build on unrolled.losses, or look where unrolled.mask is True, or unrolled.labels no ignored label.",
    )


def _check_depth(objective: Objective, sizes: Sizes, num_steps: int) -> None:
    """No step behind those of `depth` is read: beside another objective, in a sum, there are more."""
    depth, reads_distributions = objective.depth(num_steps), objective.needs & {"hazard", "prior"}
    if objective.draws_depth or reads_distributions or depth.warm_up or depth.steps == num_steps:
        return  # distributions are others where there are more steps
    deeper = _batch(dataclasses.replace(sizes, num_steps=num_steps))
    cut = {name: getattr(deeper, name)[:, : sizes.num_steps] for name in ("outputs", "losses", "features")}
    of_those = _losses(objective, dataclasses.replace(deeper, **cut))
    try:
        of_all = _losses(objective, deeper)
    except ArgumentError:
        return  # a sum is refused, too
    require(
        alike(of_all.detach(), of_those.detach(), _TOLERANCE),
        objective,
        "no step behind those of depth is read",
        f"losses {of_those.tolist()} of {sizes.num_steps} steps, and of {num_steps} {of_all.tolist()}",
        "Let depth give every step that is read, and count steps from the first: a sum with other objectives has more.",
    )


def _check_finite(objective: Objective, sizes: Sizes, dtype: torch.dtype, level: float | None) -> None:
    name = str(dtype).removeprefix("torch.")
    hazards = "random" if level is None else f"{level:+.0e}"
    what = f"{name} outputs, {sizes.num_steps} steps, hazard logits {hazards}"
    batch, logits = _batch_of_logits(sizes, dtype, level)
    losses = _losses(objective, batch, what)
    remedy = "Compute in log space and in float32 at least: unrolled.halting.log_pmf, log_softmax, logsumexp."
    require(bool(losses.isfinite().all()), objective, "losses are finite", f"{losses.tolist()}, {what}", remedy)
    require(
        losses.requires_grad or sizes.num_steps == 1,  # a teacher that is the last step has nobody to teach
        objective,
        "losses can be learnt from",
        f"they have no gradient, {what}",
        "Stay with tensors, and detach only what is to stay as it is.",
    )
    if not losses.requires_grad:
        return
    read = [batch.outputs, logits, *([] if batch.features is None else [batch.features])]
    gradients = torch.autograd.grad(losses.sum(), read, allow_unused=True)
    sound = all(g is None or bool(g.isfinite().all()) for g in gradients)
    require(sound, objective, "gradients are finite", what, remedy)


def _take(batch: Unrolled, rows: Tensor) -> Unrolled:
    assert batch.halting is not None
    return dataclasses.replace(
        batch,
        outputs=take_rows(batch.outputs, rows),
        losses=take_rows(batch.losses, rows),
        halting=StepDistribution(batch.halting.log_pmf[rows], validate_args=False),
        labels=take_rows(batch.labels, rows),
        features=take_rows(batch.features, rows),
        teacher_outputs=take_rows(batch.teacher_outputs, rows),
        mask=take_rows(batch.mask, rows),
    )


def _tensors(batch: Unrolled) -> list[Tensor]:
    assert batch.halting is not None
    assert batch.prior is not None
    given = (batch.outputs, batch.losses, batch.halting.log_pmf, batch.prior.log_pmf)
    return [*given, *(t for t in (batch.labels, batch.features, batch.teacher_outputs) if t is not None)]
