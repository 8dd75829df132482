"""The contract of exit policies."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ponder._utils.trees import Tree, alike, take_rows, tensors
from ponder.analysis.policy_grid import grids_of
from ponder.errors import ArgumentError
from ponder.parts.joining import begun, join_rows
from ponder.parts.tasks import task_named
from ponder.policies import ExitPolicy, ModelSpec
from ponder.policies.base import READINGS
from ponder.testing.contract import ContractError, require
from ponder.testing.plugin import (
    check_copies,
    check_frozen,
    check_needs,
    check_registered,
    check_remembers_nothing,
    kept,
)
from ponder.testing.policy_driver import PolicyDriver
from ponder.testing.randomness import generator, private_randomness
from ponder.testing.samples import Sizes, extreme_trajectories, random_trajectory, row_choices, toy_model
from ponder.testing.tensor_watch import DeviceWatch, NanWatch

__all__ = ["check_policy"]

_ROWS = 12
_SCALES = (0.3, 1.0, 3.0)
_TOLERANCE = 1e-4
_THRESHOLDS = 7


def check_policy(
    policy: ExitPolicy,
    *,
    task: str | None = "classification",
    num_steps: int = 6,
    num_outputs: int | None = None,
    width: int = 8,
    context: Mapping[str, Tensor] | None = None,
) -> None:
    """Check that a policy keeps its contract; return None, or raise what says which rule broke.

    The rules: a frozen dataclass that is registered and comes back from JSON, pickle and deepcopy; masks that are bool;
    states with the batch first; `decide` is pure and reads what `needs` declares; a row's exit depends on the row
    alone, also where rows at different steps share a batch, and not on its padding; tensors are made on the batch's
    device; finite answers of the model, however large, never lead to NaN; replaying a trajectory gives what running the
    model gives; where a threshold is declared, moving it moves the exits the way that is declared, and one pass tells
    the exits under all of its values, as sweeps and certificates read them.

    A policy may draw random numbers in `init` and nowhere else. The caller's generators are left as they are.

    Args:
        policy: The policy, with hyper-parameters that make some rows exit early and others late.
        task: Name of the task that it is tried on, or None.
        num_steps: N of the models that it is tried on.
        num_outputs: Numbers a row that the head gives; 1 in regression and 3 elsewhere, where None.
        width: Size of the features.
        context: Values of each name that a policy reads of the context of a call, `(values, …)`; rows draw from them.
            Needed for such a policy alone.

    Raises:
        ContractError: A rule is broken.
        ArgumentError: The policy's own `check` refuses `num_steps` or the task, or `context` is missing.

    Example:
        >>> from ponder import policies
        >>> from ponder.testing import check_policy
        >>> check_policy(policies.Quantile(0.5))
    """
    with private_randomness(0), torch.no_grad():
        check_frozen("policy", policy, ExitPolicy)
        check_needs(policy, READINGS)
        before = kept(policy)
        if "context" in policy.needs and not context:
            raise ArgumentError(
                "context",
                expected=f"values of what {policy!r} reads of each row",
                got=repr(context),
                remedy='Pass context={"budget": torch.arange(1, 7)}, say.',
            )
        policy.check(ModelSpec(num_steps, task_named(task), has_hazard=True))
        sizes = Sizes(task, num_steps, num_outputs, width, context)
        for seed, scale in enumerate(_SCALES):
            driver = PolicyDriver(policy, random_trajectory(sizes, _ROWS, scale, seed))
            _check_pure(driver)
            _check_rows_alone(driver)
            _check_depths(driver)
            _check_leaving(driver)
            _check_threshold(driver)
        _check_other_thresholds(policy, sizes)
        _check_device(policy, sizes)
        _check_extremes(policy, sizes)
        _check_padding(policy, sizes)
        _check_replay(policy, sizes)
        check_remembers_nothing(policy, before)
        check_registered(policy)
        check_copies(policy, lambda a, b: _exits(a, sizes) == _exits(b, sizes))


def _check_pure(driver: PolicyDriver) -> None:
    policy, rows = driver.policy, driver.all_rows()
    state = driver.init(rows)
    for step in range(1, driver.num_steps):
        view = driver.view(rows, torch.full_like(rows, step))
        given = (state, dict(view.readings), view.index)
        before = copy.deepcopy(given)
        first = driver.ask(view, state)
        require(
            alike(given, before),
            policy,
            "decide changes nothing that it is given",
            f"at step {step} it changed {_changed(before, given)} in place",
            "Make new tensors: state = state + 1, not state += 1.",
        )
        first = copy.deepcopy(first)
        second = driver.ask(view, state)
        require(
            alike(first, second),
            policy,
            "decide gives the same answer to the same question",
            f"two calls at step {step} gave different {'masks' if not alike(first[0], second[0]) else 'states'}",
            "Draw random numbers in init, and carry what changes in the state.",
        )
        state = second[1]


def _check_rows_alone(driver: PolicyDriver) -> None:
    """A row's answers are the same in every company and every order."""
    policy, everyone = driver.policy, driver.all_rows()
    start = driver.init(everyone)
    draws = not alike(start, driver.init(everyone))
    masks, states = driver.walk(everyone, start)
    remedy = "Reduce over every dimension but the first, and use no statistic of the batch and no batch size."
    for rows in row_choices(_ROWS):
        company = f"with rows {rows.tolist()} as the batch"
        own = take_rows(start, rows)
        if not draws:
            rule = "the first state of a row depends on its row id alone"
            made = driver.init(rows)
            require(alike(made, own, _TOLERANCE), policy, rule, f"another state {company}", remedy)
            own = made
        rule = "a row's exit does not depend on the other rows, their number or their order"
        part, their_states = driver.walk(rows, own)
        for n in range(driver.num_steps - 1):
            other = (part[:, n] != masks[rows, n]).nonzero()
            if len(other):
                row = int(rows[other[0, 0]])
                seen = f"row {row} answers {bool(masks[row, n])} at step {n + 1} among {_ROWS} rows, but not {company}"
                raise ContractError(policy, rule, seen, remedy)
            expected = take_rows(states[n + 1], rows)
            require(
                alike(their_states[n + 1], expected, _TOLERANCE),
                policy,
                rule,
                f"another state after step {n + 1} {company}",
                remedy,
            )


def _check_depths(driver: PolicyDriver) -> None:
    """Rows that start later than others, in one batch with them, exit where they exit on their own."""
    everyone, n = driver.all_rows(), driver.num_steps
    start = driver.init(everyone)
    masks, states = driver.walk(everyone, start)
    half = _ROWS // 2
    early, late = everyone[:half], everyone[half:]
    for lag in sorted({1, n // 2} & set(range(1, n - 1))):
        first = 0  # steps that the late rows have behind them when they are joined
        while first + lag < n - 1 and begun(states[first]) != begun(states[first + lag]):
            first += 1
        if first + lag >= n - 1:
            continue
        try:
            state = join_rows(
                [take_rows(states[first + lag], early), take_rows(states[first], late)],
                [half, _ROWS - half],
                absent="zeros",
                path="state",
            )
        except ArgumentError as error:
            raise ContractError(
                driver.policy,
                "states of rows at different steps fit one batch",
                f"before step {first + lag + 1} and before step {first + 1} {error.argument}: expected "
                f"{error.expected}; got {error.got}",
                "Keep one structure from init on; None stands for zeros, and what counts steps is a tensor (batch,).",
            ) from error
        _walk_together(driver, state, everyone, torch.where(everyone < half, first + lag + 1, first + 1), masks)


def _walk_together(driver: PolicyDriver, state: Tree, rows: Tensor, at: Tensor, masks: Tensor) -> None:
    while len(rows):
        mask, state = driver.decide(state, rows, at)
        other = (mask != masks[rows, at - 1]).nonzero()
        if len(other):
            row, step = int(rows[other[0, 0]]), int(at[other[0, 0]])
            raise ContractError(
                driver.policy,
                "rows at different steps can share a batch",
                f"row {row} answers {bool(masks[row, step - 1])} at step {step} among rows at the same step, and "
                f"{not bool(masks[row, step - 1])} among rows at steps {sorted(set(at.tolist()))}",
                "Ask step.index, one number per row, and do not count calls.",
            )
        at = at + 1
        staying = (at < driver.num_steps).nonzero().flatten()
        rows, at, state = take_rows((rows, at, state), staying)


def _check_leaving(driver: PolicyDriver) -> None:
    """The loop, where rows leave, gives the first step at which a row that stays would have answered yes."""
    rows, n = driver.all_rows(), driver.num_steps
    with private_randomness(1):
        masks, _ = driver.walk(rows, driver.init(rows))
    expected = [next((step for step, out in enumerate(row, start=1) if out), n) for row in masks.tolist()]
    with private_randomness(1):
        got = driver.trajectory.replay(driver.policy).exit_step.tolist()
    require(
        got == expected,
        driver.policy,
        "a row's exit does not depend on which rows have left",
        f"exits {got} where rows leave and {expected} where all stay",
        "Use no statistic of the batch and no batch size.",
    )


def _check_threshold(driver: PolicyDriver) -> None:
    """A policy that declares a threshold says how far each row is from it as it decides."""
    policy, rows, threshold = driver.policy, driver.all_rows(), driver.policy.tunable
    if threshold is None:
        return
    value = getattr(policy, threshold.field)
    bound = value if threshold.higher_exits_later else -value
    state = driver.init(rows)
    for step in range(1, driver.num_steps):
        view = driver.view(rows, torch.full_like(rows, step))
        near, _ = policy.readiness(view, state, policy)
        mask, state = driver.decide(state, rows, view.index)
        require(
            torch.equal(near >= bound if threshold.inclusive else near > bound, mask),
            policy,
            "a row leaves where its readiness passes the threshold",
            f"at step {step}, {threshold.field}={value}, readiness {near.tolist()}, but the mask {mask.tolist()}",
            "Derive from ponder.policies.threshold.ThresholdPolicy and define statistic: then they agree.",
        )


def _check_other_thresholds(policy: ExitPolicy, sizes: Sizes) -> None:
    """Statistics and states do not depend on the threshold, which moves exits the way that is declared."""
    trajectory = random_trajectory(sizes, _ROWS, 1.0, 10)
    for grid in grids_of(policy, trajectory, _THRESHOLDS):
        told = f"with {grid.threshold} at {[round(value, 3) for value in grid.values]}, rows leave on average at "
        with private_randomness(6):
            read = grid.exit_steps(trajectory, trusting=True)
        each = []
        for moved in grid.policies:
            with private_randomness(6):
                each.append(trajectory.replay(moved).exit_step)
        found = torch.stack(each)
        means, expected = ([round(mean, 3) for mean in steps.double().mean(1).tolist()] for steps in (read, found))
        require(
            torch.equal(read, found),
            policy,
            "one pass tells the exits under every threshold",
            f"{told}{expected}, and by readiness at {means}",
            "Let statistic and state not depend on the threshold, and let a wrapper change readiness as it changes "
            "decide.",
        )
        later, moves = grid.exits_get_later, found.diff(dim=0)
        require(
            later is None or bool((moves >= 0 if later else moves <= 0).all()),
            policy,
            "a threshold moves exits the way that it declares",
            f"{told}{expected}, but rows were to leave {'later and later' if later else 'earlier and earlier'}",
            "Correct how the statistic stands to the threshold of a row that leaves: "
            "Threshold(field, 'above' | 'at_least' | 'below' | 'at_most').",
        )


def _check_device(policy: ExitPolicy, sizes: Sizes) -> None:
    watch = DeviceWatch()
    driver = PolicyDriver(policy, random_trajectory(sizes, 3, 1.0, 5), watch=watch)
    rows = driver.all_rows()
    state = driver.init(rows)
    made: list[object] = [state]
    for step in range(1, sizes.num_steps):
        mask, state = driver.ask(driver.view(rows, torch.full_like(rows, step)), state)
        made += [mask, state]
    leaks = watch.leaks + [maker for _, leaf in tensors(made) if (maker := watch.maker(leaf)) is not None]
    require(
        not leaks,
        policy,
        "new tensors are made on the batch's device",
        f"{leaks[0] if leaks else ''}(…) gives what is on the CPU, beside the batch's tensors",
        "Pass device=batch.device in init and device=step.index.device in decide, or use torch.zeros_like and its kin; "
        "do not leave PyTorch.",
    )


def _check_extremes(policy: ExitPolicy, sizes: Sizes) -> None:
    rule = "finite answers of the model never lead to NaN"
    remedy = "Compute in float32 at least, from log_softmax or logsigmoid instead of raw exponentials."
    for what, trajectory in extreme_trajectories(sizes):
        watch = NanWatch()
        driver = PolicyDriver(policy, trajectory, what, watch)
        rows = driver.all_rows()
        _, states = driver.walk(rows, driver.init(rows))
        compared = watch.compared[0] if watch.compared else ""
        require(not watch.compared, policy, rule, f"{what}: {compared} was given NaN, and answers False", remedy)
        nan = [path for path, leaf in tensors(states, "states") if bool(leaf.isnan().any())]
        require(not nan, policy, rule, f"{what}: NaN in the state", remedy)
        _check_range(policy, trajectory.replay(policy).exit_step, sizes.num_steps)


def _check_padding(policy: ExitPolicy, sizes: Sizes) -> None:
    """Outputs at positions that are padding change no exit."""
    trajectory = random_trajectory(sizes, _ROWS, 1.0, 9)
    if trajectory.mask is None:
        return
    padding = ~trajectory.mask[:, None, :, None]
    other = replace(trajectory, outputs=torch.where(padding, -7.0 * trajectory.outputs, trajectory.outputs))
    with private_randomness(3):
        expected = trajectory.replay(policy).exit_step
    with private_randomness(3):
        got = other.replay(policy).exit_step
    require(
        torch.equal(got, expected),
        policy,
        "padding does not count",
        f"other outputs at padded positions gave exits {got.tolist()} instead of {expected.tolist()}",
        "Look at the positions that step.mask marks, where it is not None.",
    )


def _check_replay(policy: ExitPolicy, sizes: Sizes) -> None:
    with private_randomness(2):
        model = toy_model(sizes, policy)
    inputs = torch.randn(16, sizes.width, generator=generator(6), dtype=torch.float64)
    ids, context = torch.arange(50, 66), sizes.context_of(16, 7)
    with private_randomness(4):
        ran = model(inputs, row_ids=ids, policy_context=context)
    trajectory = model.unroll(inputs, row_ids=ids, policy_context=context, keep_features=True)
    with private_randomness(4):
        replayed = trajectory.replay(policy)
    _check_range(policy, ran.exit_step, sizes.num_steps)
    require(
        torch.equal(ran.exit_step, replayed.exit_step) and alike(ran.outputs, replayed.outputs, _TOLERANCE),
        policy,
        "replaying a trajectory gives what running the model gives",
        f"ran to {ran.exit_step.tolist()}, replayed to {replayed.exit_step.tolist()}",
        "Decide from step, state and hyper-parameters alone.",
    )


def _check_range(policy: ExitPolicy, exits: Tensor, num_steps: int) -> None:
    inside = bool(((exits >= 1) & (exits <= num_steps)).all())
    require(
        inside, policy, "exits lie between 1 and the last step", f"{exits.tolist()}", "Report this: the loop is wrong."
    )


def _exits(policy: ExitPolicy, sizes: Sizes) -> list[int]:
    with private_randomness(5):
        exits: list[int] = random_trajectory(sizes, _ROWS, 1.0, 8).replay(policy).exit_step.tolist()
    return exits


def _changed(before: tuple[Tree, ...], after: tuple[Tree, ...]) -> str:
    names = ("its state", "the readings", "step.index")
    return " and ".join(name for name, a, b in zip(names, before, after, strict=True) if not alike(a, b))
