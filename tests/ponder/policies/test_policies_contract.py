"""Every registered policy: oracle, extremes, batch invariance, replay and nothing wasted, on every toy.

What a policy promises on its own (purity, states, rows at different depths, round trips) is in tests/ponder/testing.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import ponder
from ponder import policies
from ponder.policies import ModelSpec
from ponder.testing.samples import row_choices
from tests.ponder import oracles
from tests.ponder.checks import assert_exits, records, refused, take, to_dtype
from tests.ponder.examples import FITTED_POLICIES, POLICIES, Example, in_turn, make_policy
from tests.toys import OUTPUTS, TOYS, Toy, make_toy, wrap

every_policy = pytest.mark.parametrize("case", POLICIES, ids=str)
every_toy = pytest.mark.parametrize("toy_name", TOYS)
BATCH = 16


def model_and_batch(
    case: Example, toy_name: str, dtype: torch.dtype = torch.float32
) -> tuple[Toy, ponder.PonderWrapper, Any, dict[str, Any]]:
    toy = make_toy(toy_name)
    model = wrap(toy, task=case.task, policy=make_policy(case)).eval().to(dtype)
    inputs, context = toy.batch(BATCH, seed=5)
    return toy, model, to_dtype(inputs, dtype), to_dtype(context, dtype)


@cache
def shared_model(task: str, toy_name: str, dtype: torch.dtype) -> tuple[ponder.PonderWrapper, Any, dict[str, Any]]:
    """A model and a batch for policies that are passed to each call, since nothing else differs between the cases."""
    toy = make_toy(toy_name)
    model = wrap(toy, task=task).eval().to(dtype)
    inputs, context = toy.batch(BATCH, seed=5)
    return model, to_dtype(inputs, dtype), to_dtype(context, dtype)


@cache
def shared_unroll(task: str, toy_name: str, dtype: torch.dtype = torch.float32) -> ponder.Trajectory:
    """What the shared model gives at all steps, which no policy changes."""
    model, inputs, context = shared_model(task, toy_name, dtype)
    return model.unroll(inputs, row_ids=torch.arange(50, 50 + BATCH), keep_features=True, **context)


@cache
def shared_records(task: str, toy_name: str) -> list[oracles.Spec]:
    return records(shared_unroll(task, toy_name))


def random_trajectory(task: str, rows: int, num_steps: int, scale: float, seed: int) -> ponder.Trajectory:
    """Hazards and outputs out of nothing; every third row repeats its answers, so that patience has something."""
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.randn(rows, num_steps, OUTPUTS[task], generator=generator) * scale
    outputs[::3] = outputs[::3, :1] + 0.05 * torch.randn(outputs[::3].shape, generator=generator)
    return ponder.Trajectory(
        outputs=outputs.clamp(-1e4, 1e4),
        hazard_logits=(torch.randn(rows, num_steps, generator=generator) * scale).clamp(-1e4, 1e4),
        row_ids=torch.randint(-(2**62), 2**62, (rows,), generator=generator),
        features=outputs,
        task=task,
    )


def test_every_policy_has_an_example_and_an_oracle() -> None:
    assert {case.name for case in POLICIES} == set(policies.names()) - FITTED_POLICIES
    assert {case.name for case in POLICIES} == set(oracles.POLICIES) - FITTED_POLICIES


# 1. Oracle


@every_policy
@settings(max_examples=15)
@given(st.integers(5, 12), st.sampled_from([0.3, 1.0, 3.0, 1e4]), st.integers(0, 10**6))
@example(100, 1.0, 1)
def test_exits_equal_the_oracle(case: Example, num_steps: int, scale: float, seed: int) -> None:
    trajectory = random_trajectory(case.task, 7, num_steps, scale, seed)
    policy = make_policy(case)
    assert_exits(trajectory.replay(policy), policy, records(trajectory))


@every_policy
@every_toy
def test_running_the_model_gives_the_oracles_exits(case: Example, toy_name: str) -> None:
    _, model, inputs, context = model_and_batch(case, toy_name)
    found = model(inputs, row_ids=torch.arange(50, 50 + BATCH), **context)
    assert_exits(found, model.policy, shared_records(case.task, toy_name))


@every_policy
def test_examples_make_rows_leave_at_different_steps(case: Example) -> None:
    """Or the contracts would compare nothing."""
    seen = set()
    for toy_name in TOYS:
        seen |= set(shared_unroll(case.task, toy_name).replay(make_policy(case)).exit_step.tolist())
    if case.name in ("last-step", "fixed-step") or case.arguments.get("q") in (0.0, 1.0):
        assert len(seen) == 1
    else:
        assert len(seen) >= 2


# 2. Extremes


@every_policy
@pytest.mark.parametrize(
    ("num_steps", "dtype"),
    [
        (5, torch.float32),
        (1000, torch.float32),
        (5, torch.float16),
        (200, torch.float16),
        (5, torch.bfloat16),
        (200, torch.bfloat16),
    ],
)
def test_extreme_hazards_and_outputs(case: Example, num_steps: int, dtype: torch.dtype) -> None:
    levels = torch.tensor([-1e4, 0.0, 1e4])[:, None].expand(3, num_steps)  # one a row
    trajectory = ponder.Trajectory(
        outputs=(levels[..., None] * torch.arange(OUTPUTS[case.task])).to(dtype),
        hazard_logits=levels.clone(),
        row_ids=torch.arange(3),
        task=case.task,
    )
    policy = make_policy(case)
    exits = trajectory.replay(policy)
    for record, step in zip(records(trajectory), exits.exit_step.tolist(), strict=True):
        assert step in oracles.exits(policy.to_dict(), record)


# 3. Batch invariance


@pytest.mark.parametrize(("toy_name", "case"), in_turn(POLICIES, list(TOYS), 5))
def test_a_row_does_not_depend_on_its_company(toy_name: str, case: Example) -> None:
    toy, model, inputs, context = model_and_batch(case, toy_name, torch.float64)
    ids = torch.arange(100, 100 + BATCH)
    whole = model(inputs, row_ids=ids, **context)
    for rows in row_choices(BATCH):
        part = model(take(inputs, rows), row_ids=ids[rows], **take(context, rows))
        assert part.exit_step.tolist() == whole.exit_step[rows].tolist()
        torch.testing.assert_close(part.outputs, whole.outputs[rows])
    others, their_context = (to_dtype(part, torch.float64) for part in toy.batch(9, seed=77))
    joined = model(join(others, inputs), row_ids=torch.cat([torch.arange(9), ids]), **join(their_context, context))
    assert joined.exit_step[9:].tolist() == whole.exit_step.tolist()
    torch.testing.assert_close(joined.outputs[9:], whole.outputs)


@every_policy
def test_a_row_does_not_depend_on_the_padding(case: Example) -> None:
    _, model, inputs, context = model_and_batch(case, "transformer", torch.float64)
    whole = model(inputs, **context)
    longer = torch.cat([inputs, torch.full_like(inputs, 3.0)], dim=1)
    mask = torch.cat([context["src_key_padding_mask"], torch.ones(BATCH, inputs.shape[1], dtype=torch.bool)], dim=1)
    padded = model(longer, src_key_padding_mask=mask)
    assert padded.exit_step.tolist() == whole.exit_step.tolist()
    torch.testing.assert_close(padded.outputs, whole.outputs)


def join(first: Any, second: Any) -> Any:
    if isinstance(first, torch.Tensor):
        return torch.cat([first, second])
    if isinstance(first, dict):
        return {key: join(first[key], second[key]) for key in first}
    if isinstance(first, list | tuple):
        return type(first)(join(a, b) for a, b in zip(first, second, strict=True))
    assert first == second
    return first


# 4. Replay = run


@every_policy
@every_toy
def test_replay_equals_run(case: Example, toy_name: str) -> None:
    assert_replay_equals_run(case, toy_name, torch.float32)


@pytest.mark.parametrize(("toy_name", "case"), in_turn(POLICIES, list(TOYS), 3))
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_replay_equals_run_in_other_types(case: Example, toy_name: str, dtype: torch.dtype) -> None:
    if toy_name == "transformer" and dtype == torch.bfloat16:
        dtype = torch.float32  # attention rounds by more than a threshold forgives when the number of rows changes
    assert_replay_equals_run(case, toy_name, dtype)


def assert_replay_equals_run(case: Example, toy_name: str, dtype: torch.dtype) -> None:
    model, inputs, context = shared_model(case.task, toy_name, dtype)
    policy = make_policy(case)
    run = model(inputs, row_ids=torch.arange(50, 50 + BATCH), policy=policy, **context)
    exits = shared_unroll(case.task, toy_name, dtype).replay(policy)
    assert exits.exit_step.tolist() == run.exit_step.tolist()
    tolerance = {} if dtype != torch.bfloat16 else {"atol": 0.05, "rtol": 0.05}
    torch.testing.assert_close(exits.outputs, run.outputs, **tolerance)


# 5. Nothing wasted


@pytest.mark.parametrize(("toy_name", "case"), in_turn(POLICIES, list(TOYS), 5))
def test_nothing_is_computed_that_no_row_needs(toy_name: str, case: Example) -> None:
    _, model, inputs, context = model_and_batch(case, toy_name)
    calls: dict[str, list[int]] = {"steps": [], "head": [], "lambda_head": []}
    for name in calls:
        getattr(model, name).register_forward_hook(
            lambda _, args, output, name=name: calls[name].append(rows_of(args[1] if name == "steps" else args[0]))
        )
    steps = model(inputs, **context).exit_step
    assert sum(calls["steps"]) == int(steps.sum())
    assert calls["steps"] == [int((steps >= n).sum()) for n in range(1, int(steps.max()) + 1)]
    reads = model.policy.needs
    assert sum(calls["head"]) == (int(steps.sum()) if "output" in reads else BATCH)
    last = model.num_steps
    assert sum(calls["lambda_head"]) == (int(steps.clamp(max=last - 1).sum()) if "hazard" in reads else 0)
    assert len(calls["lambda_head"]) == (min(last - 1, int(steps.max())) if "hazard" in reads else 0)
    assert 0 not in calls["steps"] + calls["head"] + calls["lambda_head"]


def rows_of(tree: Any) -> int:
    if isinstance(tree, dict):
        tree = tuple(tree.values())
    return rows_of(tree[0]) if isinstance(tree, tuple) else len(tree)


# What it needs, and how it scales


@every_policy
def test_needs_what_it_declares_and_says_so(case: Example) -> None:
    policy = make_policy(case)
    assert policy.needs <= {"hazard", "output", "features"}
    spec = ModelSpec(6, case.task, has_hazard=False)
    if "hazard" in policy.needs:
        with refused("policy", "needs no hazard", "lambda_head=ponder.LambdaHead(width)"):
            policy.check(spec)
    else:
        policy.check(spec)


@every_policy
def test_rescaling_to_the_same_number_changes_nothing(case: Example) -> None:
    policy = make_policy(case)
    assert policy.rescaled(12, 12) == policy
    half = policy.rescaled(12, 6)
    assert type(half) is type(policy.policy if isinstance(policy, policies.Certified) else policy)  # not certified so
    half.check(ModelSpec(6, case.task, has_hazard=True))


def test_unknown_names_list_the_known_ones() -> None:
    with refused("policy", "quantile", "'q-exit'"):
        policies.get("q-exit")


def test_wrong_arguments_name_the_fields() -> None:
    with refused("arguments of policy 'quantile'", "fields q", type_error=True):
        policies.get("quantile", threshold=0.5)
    with refused("arguments of policy 'last-step'", "(none)", type_error=True):
        policies.get("last-step", step=1)
