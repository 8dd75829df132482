"""The contract of a policy's twin in numpy, by which exports decide."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ponder.export.policies import ModelSpec, NumpyPolicy, StepView, TaskSpec, read_policy
from ponder.export.policies.base import ask, registry, take
from ponder.parts.tasks import Task, task_named
from ponder.policies import ExitPolicy
from ponder.testing.contract import ContractError, require
from ponder.testing.plugin import check_frozen
from ponder.testing.randomness import private_randomness
from ponder.testing.samples import Sizes, extreme_trajectories, random_trajectory, readings_of, row_choices
from ponder.trajectory import Trajectory

__all__ = ["check_twin", "twin_exits"]

Array = NDArray[Any]
_ROWS = 24
_SCALES = (0.3, 1.0, 3.0)


def check_twin(
    policy: ExitPolicy,
    *,
    task: str | None = "classification",
    num_steps: int = 6,
    num_outputs: int | None = None,
    width: int = 8,
) -> None:
    """Check that the twin of a policy in numpy decides as the policy does; return None, or raise what says it does not.

    The rules: the twin is made of what `to_dict` gives; it reads what the policy reads; it keeps its state as arrays
    with the rows first, changes nothing that it is given, and decides for each row alone; and rows leave at the same
    steps under both, also where outputs are very large, NaN or infinite.

    Args:
        policy: The policy, with hyper-parameters that make some rows exit early and others late.
        task: Name of the task that it is tried on, or None.
        num_steps: N of the models that it is tried on.
        num_outputs: Numbers that the head gives a row, or a position; 1 in regression and 3 elsewhere, where None.
        width: Size of the features.

    Raises:
        ContractError: A rule is broken.
        ArgumentError: The policy has no twin, or its `check` refuses `num_steps` or the task.

    Example:
        >>> from ponder import policies
        >>> from ponder.testing import check_twin
        >>> check_twin(policies.Quantile(0.5) | policies.Patience(3))
    """
    sizes, meaning = Sizes(task, num_steps, num_outputs, width), task_named(task)
    check_frozen("policy", policy, ExitPolicy)
    twin = _twin_of(policy)
    require(
        twin.needs == policy.needs,
        policy,
        "a twin reads what its policy reads",
        f"{sorted(twin.needs)} instead of {sorted(policy.needs)}",
        "Set needs on both classes alike; what an export has not, such as a context, cannot be read.",
    )
    outputs = sizes.outputs[1:] if meaning.per_position else sizes.outputs
    twin.check(ModelSpec(num_steps, _spec_of(meaning), True, outputs, (width,)))
    with private_randomness(0), torch.no_grad():
        tried = [
            (f"outputs of scale {scale}", random_trajectory(sizes, _ROWS, scale, seed).map(_in_float32))
            for seed, scale in enumerate(_SCALES)
        ]
        tried.append(("outputs of which some are NaN or infinite", _poisoned(tried[1][1])))
        tried += [(what, rows) for what, rows in extreme_trajectories(sizes) if rows.outputs.dtype == torch.float32]
        for what, trajectory in tried:
            own = twin_exits(policy, trajectory)
            expected = trajectory.replay(policy).exit_step.tolist()
            require(
                own == expected,
                policy,
                "rows leave where they leave in PyTorch",
                f"{what}: {own} instead of {expected}",
                "Compute in float32 at least, compare as the policy does, and treat NaN as it does.",
            )
        _check_rows_alone(policy, twin, tried[1][1])


def _twin_of(policy: ExitPolicy) -> NumpyPolicy:
    """The twin, which has the fields of the policy."""
    data = policy.to_dict()
    if data["name"] in registry.names():
        kind: Any = registry.find(data["name"])
        given = set(kind.arguments({name: value for name, value in data.items() if name != "name"}))
        known = {field.name for field in dataclasses.fields(kind)}
        require(
            given == known,
            policy,
            "a twin has the fields of its policy",
            f"{sorted(known)} instead of {sorted(given)}",
            "Give both classes the same fields; what decides nothing, arguments() leaves out.",
        )
    return read_policy(data)


def _poisoned(trajectory: Trajectory) -> Trajectory:
    """The same rows, of which every third has NaN or infinity at one step or more."""
    assert trajectory.hazard_logits is not None
    assert trajectory.features is not None
    outputs, hazards, features = (
        values.clone() for values in (trajectory.outputs, trajectory.hazard_logits, trajectory.features)
    )
    for place, row in enumerate(range(0, len(trajectory), 3)):
        steps = (slice(0, 1), slice(1, 3), slice(2, None), slice(0, None))[place % 4]
        outputs[row, steps] = (torch.nan, torch.inf, -torch.inf)[place % 3]
        hazards[row, steps] = features[row, steps] = torch.nan
    outputs[1, :, 0] = torch.inf  # one of several
    outputs[2, 1:, 0] = -torch.inf
    return replace(trajectory, outputs=outputs, hazard_logits=hazards, features=features)


def twin_exits(policy: ExitPolicy, trajectory: Trajectory) -> list[int]:
    """The step at which each row of a trajectory leaves, as the twin of a policy decides, and as exports run it."""
    twin = read_policy(policy.to_dict())
    rows = np.arange(len(trajectory))
    left, state = np.full(len(rows), trajectory.num_steps), twin.init(trajectory.row_ids.numpy())
    for step in range(1, trajectory.num_steps):
        if not len(rows):
            break
        mask, state = _answer(policy, twin, _view(twin, trajectory, rows, step), state)
        left[rows[mask]] = step
        rows, state = rows[~mask], take(state, np.flatnonzero(~mask))
    exit_step: list[int] = left.tolist()
    return exit_step


def _check_rows_alone(policy: ExitPolicy, twin: NumpyPolicy, trajectory: Trajectory) -> None:
    """A row's answers are the same in every company."""
    everyone, ids = np.arange(_ROWS), trajectory.row_ids.numpy()
    for rows in (chosen.numpy() for chosen in row_choices(_ROWS)):
        state, own = twin.init(ids), twin.init(ids[rows])
        for step in range(1, trajectory.num_steps):
            masks, state = _answer(policy, twin, _view(twin, trajectory, everyone, step), state)
            mask, own = _answer(policy, twin, _view(twin, trajectory, rows, step), own)
            require(
                mask.tolist() == masks[rows].tolist(),
                policy,
                "a row's exit does not depend on the other rows, their number or their order",
                f"at step {step}, rows {rows.tolist()} by themselves answer {mask.tolist()}, and "
                f"{masks[rows].tolist()} among all",
                "Reduce over every dimension but the first, and use no statistic of the batch.",
            )


def _answer(policy: ExitPolicy, twin: NumpyPolicy, view: StepView, state: Any) -> tuple[Array, Any]:
    """What the twin decides, as exports ask it, and whether it changed what it was given."""
    before = copy.deepcopy((view, state))
    try:
        mask, new = ask(twin, view, state)
    except Exception as error:
        raise ContractError(
            policy,
            "a twin answers wherever its policy does, with a bool for each running row, or one for all",
            f"at step {view.index}: {type(error).__name__}: {error}",
            "Refuse what cannot work in check(model), and read what is in needs alone: the rest is None.",
        ) from error
    require(
        _alike(before, (view, state)),
        policy,
        "a twin changes nothing that it is given",
        f"another {'state' if _alike(before[0], view) else 'view'} after step {view.index}",
        "Make new arrays: state = state + 1, not state += 1.",
    )
    return mask, new


def _view(twin: NumpyPolicy, trajectory: Trajectory, rows: Array, step: int) -> StepView:
    """What the rows that still run show of a step, as far as the twin needs it."""
    task, at = trajectory.meaning, torch.from_numpy(rows)
    seen: dict[str, Array] = {}
    for name, values in readings_of(trajectory).items() if twin.needs else ():
        if _NEED_OF.get(name, name) in twin.needs:
            seen[name] = _array(values[at, step - 1])
    if trajectory.mask is not None:
        seen["mask"] = trajectory.mask[at].numpy()
    return StepView(step, trajectory.num_steps, len(rows), _spec_of(task), **seen)


def _spec_of(task: Task) -> TaskSpec:
    """What an export says of a task."""
    answers = (task.classes, task.numbers, False, task.per_token, task.per_position)
    return TaskSpec(task.name, *answers, task.blank)


_NEED_OF = {"cdf": "hazard", "survival": "hazard"}


def _array(values: Tensor) -> Array:
    array: Array = values.numpy()
    return array


def _in_float32(values: Tensor) -> Tensor:
    """In the precision of most exports."""
    return values.float() if values.is_floating_point() else values


def _alike(one: Any, other: Any) -> bool:
    """Whether nested values are the same, NaN too."""
    if isinstance(one, np.ndarray):
        return isinstance(other, np.ndarray) and np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(_alike, one, other))
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(_alike(one[name], other[name]) for name in one)
    if isinstance(one, StepView):
        return _alike(tuple(vars(one).values()), tuple(vars(other).values()))
    return bool(one == other)
