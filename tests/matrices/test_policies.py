"""Every policy × task: the oracle's exits, the same by run, replay and stream, with nothing computed in vain."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

import ponder
from ponder import policies
from ponder.errors import ArgumentError
from tests import toys
from tests.matrices import cases, oracles
from tests.matrices.cases import CASES, KIND_OF_TASK, PAIRS, name, random_trajectory, rows_of
from tests.toys import ROWS, STEPS, Toy, build

WITH_ORACLES = [
    (policy, task)
    for policy, task in PAIRS
    if "features" not in policy.needs and not isinstance(policy, cases.Rising)
]
every_pair = pytest.mark.parametrize(("policy", "task"), PAIRS, ids=name)
every_oracle = pytest.mark.parametrize(("policy", "task"), WITH_ORACLES, ids=name)


@cache
def toy(task: str) -> Toy:
    return build(KIND_OF_TASK[task], task)


@cache
def recorded(task: str) -> Any:
    return toy(task).unroll(keep_features=True)


def assert_same(found: Any, expected: Any, rows: Tensor | None = None) -> None:
    """Exits are equal, and outputs but for rounding."""
    steps = expected.exit_step
    outputs = expected.outputs
    if rows is not None:
        steps = steps[rows]
        outputs = outputs[rows]
    assert found.exit_step.tolist() == steps.tolist()
    torch.testing.assert_close(found.outputs, outputs, rtol=1e-9, atol=1e-9)


def assert_oracle(trajectory: Any, policy: policies.ExitPolicy) -> None:
    """A replay leaves where the oracle does, with the outputs of that step."""
    exits = trajectory.replay(policy)
    for i, (row, step) in enumerate(
        zip(rows_of(trajectory), exits.exit_step.tolist(), strict=True)
    ):
        assert step in oracles.exits(policy.to_dict(), row), (policy, row)
        assert torch.equal(exits.outputs[i], trajectory.outputs[i, step - 1])


def test_every_registered_policy_has_a_case() -> None:
    covered = {leaf.to_dict()["name"] for case in CASES for leaf in [case, *cases.leaves(case)]}
    covered |= {"any", "all", "from-step"}
    assert policies._PLACES.keys() - cases.RETIRING <= covered


# -- oracles -----------------------------------------------------------------------------------------------------


@every_oracle
@settings(max_examples=8)
@given(st.integers(5, 12), st.sampled_from([0.3, 1.0, 3.0, 1e4]), st.integers(0, 10**6))
@example(60, 1.0, 1)
def test_exits_equal_the_oracle(
    policy: policies.ExitPolicy, task: str, num_steps: int, scale: float, seed: int
) -> None:
    assert_oracle(random_trajectory(task, 7, num_steps, scale, seed), policy)


@pytest.mark.parametrize("policy", CASES, ids=name)
def test_cases_let_rows_leave_at_different_steps(policy: policies.ExitPolicy) -> None:
    """Or the matrix would compare nothing."""
    tasks = [task for task in toys.TASKS if cases.serves(policy, task)]
    seen = {step for task in tasks for step in recorded(task).replay(policy).exit_step.tolist()}
    alone = isinstance(policy, policies.FixedStep | policies.LastStep) or getattr(
        policy, "q", 0.5
    ) in (0.0, 1.0)
    assert len(seen) == 1 if alone else len(seen) > 1


@every_oracle
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_extreme_hazards_and_outputs(
    policy: policies.ExitPolicy, task: str, dtype: torch.dtype
) -> None:
    trajectory = random_trajectory(task, 3, STEPS, 1.0, 0)
    levels = torch.tensor([-1e4, 0.0, 1e4])
    shape = trajectory.outputs.shape
    outputs = levels.view(3, *[1] * (len(shape) - 1)) * torch.arange(shape[-1]).expand(shape)
    made = {"outputs": outputs.to(dtype), "hazard_logits": levels[:, None].expand(3, STEPS).clone()}
    assert_oracle(
        ponder.Trajectory(**made, row_ids=torch.arange(3), task=task, mask=trajectory.mask), policy
    )


# -- run = replay = stream, for any company ------------------------------------------------------------------------


@every_pair
def test_run_replay_stream_and_any_company_agree(policy: policies.ExitPolicy, task: str) -> None:
    made = toy(task)
    replayed = recorded(task).replay(policy)
    ids = torch.arange(ROWS)
    with torch.no_grad():
        assert_same(made.call(policy=policy), replayed)
        shuffled = torch.randperm(ROWS)
        assert_same(made.call(shuffled, policy=policy, row_ids=ids[shuffled]), replayed, shuffled)
        for row in range(0, ROWS, 3):
            assert_same(
                made.call(ids[[row]], policy=policy, row_ids=ids[[row]]), replayed, ids[[row]]
            )
    with ponder.StreamEngine(made.model, policy=policy, max_batch=5) as engine:
        answers = dict(engine.run(made.examples()))
    assert [answers[row].exit_step for row in range(ROWS)] == replayed.exit_step.tolist()
    outputs = [
        cases.answered(o, task)
        for o in (torch.cat([answers[n].outputs for n in range(ROWS)]), replayed.outputs)
    ]
    torch.testing.assert_close(*outputs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", cases.KINDS)
@pytest.mark.parametrize(
    "policy",
    [policies.Bernoulli(seed=1), policies.Patience(1) | policies.Confidence(0.9), cases.Rising(1)],
    ids=name,
)
@pytest.mark.parametrize("per_step", [False, True])
def test_every_kind_of_steps_agrees(kind: str, policy: policies.ExitPolicy, per_step: bool) -> None:
    made = build(kind, per_step=per_step, policy=policy)
    replayed = made.unroll().replay(policy)
    assert len(set(replayed.exit_step.tolist())) > 1
    with torch.no_grad():
        out = made.call()
    assert_same(out, replayed)
    predicted = ponder.predict(made.model, made.examples(), batch_size=5)
    assert_same(predicted, replayed)
    with ponder.StreamEngine(made.model, max_batch=3) as engine:
        answers = dict(engine.run(made.examples()))
    assert [answers[row].exit_step for row in range(ROWS)] == replayed.exit_step.tolist()


def test_a_shared_step_runs_for_longer_or_shorter() -> None:
    made = build("shared")
    for depth in (1, 3, 40):
        for policy in (policies.Quantile(0.97), policies.LastStep(), policies.Bernoulli(seed=0)):
            out = made.call(policy=policy, num_steps=depth)
            assert_same(out, made.unroll(num_steps=depth).replay(policy))
            assert int(out.exit_step.max()) <= depth
    assert made.call(policy=policies.LastStep(), num_steps=40).exit_step.unique().tolist() == [40]


# -- nothing in vain -----------------------------------------------------------------------------------------------


@every_pair
def test_step_rows_are_the_sum_of_exit_steps_and_heads_that_are_not_read_are_not_called(
    policy: policies.ExitPolicy, task: str
) -> None:
    made = toy(task)
    model = made.model
    kinds = (toys.Tanh, torch.nn.TransformerEncoderLayer)
    modules = [part for part in model.steps.modules() if isinstance(part, kinds)]
    with torch.no_grad(), toys.counted(*modules, model.head, model.lambda_head) as calls:
        exit_step = made.call(policy=policy).exit_step
    asked = int(exit_step.sum()) - int(
        (exit_step == STEPS).sum()
    )  # at the last step no policy is asked
    assert sum(sum(calls[module]) for module in modules) == int(exit_step.sum())
    blind = isinstance(policy, policies.FixedStep | policies.LastStep)
    assert sum(calls[model.lambda_head]) == (asked if "hazard" in policy.needs else 0)
    if "output" in policy.needs and not blind:
        assert asked <= sum(calls[model.head]) <= int(exit_step.sum()) + ROWS
    else:
        assert sum(calls[model.head]) == ROWS


def test_a_stream_computes_no_step_in_vain() -> None:
    made = build("shared", policy=policies.Confidence(0.7))
    (step,) = (part for part in made.model.steps.modules() if isinstance(part, toys.Tanh))
    with ponder.StreamEngine(made.model, max_batch=5) as engine, toys.counted(step) as calls:
        answers = dict(engine.run(made.examples()))
    assert sum(calls[step]) == sum(answer.exit_step for answer in answers.values())


@dataclass(frozen=True)
class Scribbler(policies.ExitPolicy):
    """Writes into the outputs that it is shown, and leaves where they say so."""

    needs = frozenset({"output"})

    def decide(self, step: Any, state: Any) -> Any:
        leaves = (7.0 * step.output.flatten(1).amax(1)).sin() > 0.4
        step.output.fill_(7.0)
        return leaves, state


@pytest.mark.parametrize("kind", ["shared", "stacked", "nested", "transformer"])
@pytest.mark.parametrize("task", ["classification", "regression"])
def test_a_policy_that_writes_into_what_it_is_shown_changes_no_answer(kind: str, task: str) -> None:
    made = build(kind, task)
    trajectory = made.unroll()
    before = trajectory.outputs.clone()
    expected = trajectory.replay(policies.LastStep()).outputs.clone()
    exits = trajectory.replay(Scribbler())
    assert len(set(exits.exit_step.tolist())) > 1
    assert torch.equal(trajectory.outputs, before)
    rows = torch.arange(ROWS)
    assert torch.equal(exits.outputs, before[rows, exits.exit_step - 1])
    assert_same(made.call(policy=Scribbler()), exits)
    torch.testing.assert_close(made.call(policy=policies.LastStep()).outputs, expected)
    with ponder.StreamEngine(made.model, policy=Scribbler(), max_batch=4) as engine:
        answers = dict(engine.run(made.examples()))
    assert [answers[row].exit_step for row in range(ROWS)] == exits.exit_step.tolist()


# -- traps -------------------------------------------------------------------------------------------------------


def of_logits(
    *steps: list[float], task: str = "classification", hazards: list[float] | None = None
) -> Any:
    logits = None if hazards is None else torch.tensor([hazards])
    return ponder.Trajectory(
        outputs=torch.tensor([steps]), hazard_logits=logits, row_ids=torch.arange(1), task=task
    )


def numbers(*steps: float) -> Any:
    return of_logits(*([step] for step in steps), task="regression")


SURE = [[0.0, 1e4], [0.0, 1e4], [0.0, 1e4]]
NOWHERE = [[0.0, 0.0], [math.nan, 1.0], [0.0, 0.0]]
TRAPS: list[tuple[str, Any, policies.ExitPolicy, int]] = [
    ("the entropy of the surest rows is 0, not NaN", of_logits(*SURE), policies.Entropy(0.1), 1),
    ("no entropy is below 0", of_logits(*SURE), policies.Entropy(0.0), 3),
    ("no confidence is above 1", of_logits(*SURE), policies.Confidence(1.0), 3),
    ("a tie is no confidence", of_logits([0.0, 0.0], [0.0, 9.0], [0.0, 0.0]), policies.Confidence(0.5), 2),
    ("NaN is not sure", of_logits(*NOWHERE), policies.Confidence(0.0).after(2), 3),
    ("NaN has no small entropy", of_logits(*NOWHERE), policies.Entropy(5.0).after(2), 3),
    ("NaN is no answer that stays", of_logits([0.0, 1.0], [math.nan, 1.0], [0.0, 1.0]), policies.Patience(1), 3),
    ("an infinite logit is not sure", of_logits([0.0, math.inf], [0.0, 0.0], [0.0, 0.0]), policies.Margin(0.9), 3),
    ("q = 1 runs to the end", of_logits(*SURE, hazards=[1e4, 1e4, 1e4]), policies.Quantile(1.0), 3),
    ("q = 0 leaves with any mass", of_logits(*SURE, hazards=[-20.0, 0.0, 0.0]), policies.Quantile(0.0), 1),
    ("q = 0 needs some mass", of_logits(*SURE, hazards=[-1e4, 0.0, 0.0]), policies.Quantile(0.0), 2),
    ("the hazard of NaN lets no row go", of_logits(*SURE, hazards=[math.nan] * 3), policies.Quantile(0.1), 3),
    ("numbers agree within the tolerance", numbers(1.0, 1.2, 1.21), policies.Patience(1, 0.1), 3),
    ("an equal distance is not within", numbers(1.0, 1.5, 2.0), policies.Patience(1, 0.5), 3),
    ("an equal change is none", numbers(1.0, 1.5, 9.0), policies.Converged(0.5), 2),
    ("units that add up to 1 - epsilon", of_logits(*SURE, hazards=[0.0, 0.0, 0.0]), policies.ACT(0.5), 1),
    ("votes need not be in a row", of_logits([0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]), policies.Voting(2), 3),
    ("NaN has no vote", of_logits([0.0, 1.0], [0.0, math.nan], [0.0, 1.0], [0.0, 0.0]), policies.Voting(2), 3),
    ("patience is", of_logits([0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]), policies.Patience(1), 4),
    ("after keeps the state running", of_logits(*SURE, [0.0, 1.0]), policies.Patience(1).after(3), 3),
    ("before lets everything go", of_logits(*NOWHERE), policies.Patience(2).before(2), 2),
    ("before does not delay", of_logits(*SURE), policies.Confidence(0.5).before(2), 1),
]  # fmt: skip


@pytest.mark.parametrize(
    ("trajectory", "policy", "step"), [trap[1:] for trap in TRAPS], ids=[trap[0] for trap in TRAPS]
)
def test_a_trap_exits_at_its_step(trajectory: Any, policy: policies.ExitPolicy, step: int) -> None:
    exits = trajectory.replay(policy)
    assert exits.exit_step.tolist() == [step]
    torch.testing.assert_close(exits.outputs, trajectory.outputs[:, step - 1], equal_nan=True)


@pytest.mark.parametrize(
    ("policy", "task"),
    [
        (policies.Patience(2), "regression"),
        (policies.Entropy(0.5), "regression"),
        (policies.Confidence(0.5), "multilabel"),
        (policies.Margin(0.5), "span"),
    ],
    ids=name,
)
def test_policies_refuse_tasks_that_they_do_not_fit(policy: policies.ExitPolicy, task: str) -> None:
    for attempt in (lambda: recorded(task).replay(policy), lambda: toy(task).call(policy=policy)):
        with pytest.raises(ArgumentError):
            attempt()


# -- combinations, thresholds, scales ------------------------------------------------------------------------------

LAST = policies.LastStep()
SCALED: list[tuple[policies.ExitPolicy, int, int, policies.ExitPolicy]] = [
    (policies.Patience(6), 12, 6, policies.Patience(3)),
    (policies.Patience(6), 12, 24, policies.Patience(12)),
    (policies.Patience(1), 12, 3, policies.Patience(1)),
    (policies.Voting(4), 12, 6, policies.Voting(2)),
    (policies.FixedStep(9), 12, 4, policies.FixedStep(3)),
    (policies.Converged(0.1, 3), 12, 6, policies.Converged(0.1, 3)),
    (policies.Confidence(0.8), 12, 6, policies.Confidence(0.8)),
    (policies.Confidence(0.8).after(4), 12, 6, policies.Confidence(0.8).after(2)),
    (policies.Confidence(0.8).after(1), 12, 3, policies.Confidence(0.8).after(1)),
    (policies.Patience(6).before(8), 12, 6, policies.Patience(3).before(4)),
    (policies.Patience(6).after(9).before(12), 12, 24, policies.Patience(12).after(18).before(24)),
    (
        policies.Patience(4) | policies.FixedStep(6),
        12,
        6,
        policies.Patience(2) | policies.FixedStep(3),
    ),
    (
        policies.Patience(4) & policies.Quantile(0.5),
        12,
        6,
        policies.Patience(2) & policies.Quantile(0.5),
    ),
    (
        policies.PolicyWrapper(policies.Patience(6)),
        12,
        6,
        policies.PolicyWrapper(policies.Patience(3)),
    ),
]


@pytest.mark.parametrize(("policy", "tuned_for", "num_steps", "expected"), SCALED, ids=name)
def test_policies_are_rescaled_to_another_depth(
    policy: policies.ExitPolicy, tuned_for: int, num_steps: int, expected: policies.ExitPolicy
) -> None:
    assert policy.rescaled(tuned_for, num_steps) == expected
    assert policy.rescaled(tuned_for, tuned_for) == policy


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.floats(0.34, 0.95), st.integers(1, 4), st.integers(1, 6))
def test_combinations_are_what_their_parts_do(
    seed: int, threshold: float, patience: int, step: int
) -> None:
    trajectory = random_trajectory("classification", 16, 6, 1.0, seed)
    a = policies.Confidence(threshold)
    b = policies.Patience(patience)

    def exits(policy: policies.ExitPolicy) -> Tensor:
        return trajectory.replay(policy).exit_step

    one = exits(a)
    other = exits(b)
    assert torch.equal(exits(a | b), torch.minimum(one, other))
    assert bool((exits(a & b) >= torch.maximum(one, other)).all())
    assert torch.equal(exits(a & a), one)
    assert torch.equal(exits(a | LAST), one)
    assert bool((exits(a & LAST) == 6).all())
    assert torch.equal(exits(a.before(step)), one.clamp(max=step))
    after = exits(a.after(step))
    assert torch.equal(after[one >= step], one[one >= step])
    assert bool((after >= step).all())


@pytest.mark.parametrize(
    "policy",
    [
        case
        for case in CASES
        if case.tunable is not None and not isinstance(case, policies.Converged)
    ],
    ids=name,
)
def test_thresholds_move_exits_one_way(policy: policies.ExitPolicy) -> None:
    tunable = policy.tunable
    assert tunable is not None
    trajectory = recorded("classification")
    values = [1, 2, 3, 4] if tunable.whole else [0.05, 0.3, 0.6, 0.95]
    means = []
    for value in values:
        exits = trajectory.replay(policy.with_threshold(value)).exit_step
        means.append(float(exits.double().mean()))
        assert getattr(policy.with_threshold(value), tunable.field) == value
    later = tunable.leaves in ("above", "at_least")
    assert means == sorted(means, reverse=not later)
    assert means[0] != means[-1]


# -- sampling ----------------------------------------------------------------------------------------------------


def test_a_seeded_number_is_a_function_of_seed_and_row_id() -> None:
    ids = torch.tensor([0, 1, 2, 7, 2**40, -1, -(2**62), 2**63 - 1])
    for seed in (0, 1, 12345):
        first = policies.StepView(torch.ones_like(ids), ids, 4, {})
        drawn = policies.Bernoulli(seed).init(first)
        assert drawn.tolist() == [oracles.uniform(seed, row) for row in ids.tolist()]
    made = toy("classification")
    policy = policies.Bernoulli(seed=9)
    ids = 1000 + 17 * torch.arange(ROWS)
    replayed = made.unroll(row_ids=ids).replay(policy)
    assert_same(made.call(policy=policy, row_ids=ids), replayed)
    assert (
        replayed.exit_step.tolist() != recorded("classification").replay(policy).exit_step.tolist()
    )


def test_sampled_exits_have_the_law_of_the_halting_distribution() -> None:
    rows = 20_000
    hazards = [-1.0, 0.5, -0.3, 2.0]
    trajectory = ponder.Trajectory(
        outputs=torch.zeros(rows, 4, 2),
        hazard_logits=torch.tensor(hazards).expand(rows, 4).clone(),
        row_ids=torch.arange(rows),
    )
    p = oracles.pmf(hazards)
    for policy in (policies.Bernoulli(seed=4), policies.Bernoulli()):
        seen = Counter(trajectory.replay(policy).exit_step.tolist())
        for step, mass in enumerate(p, start=1):
            spread = 4 * math.sqrt(mass * (1 - mass) / rows)
            assert abs(seen[step] / rows - mass) < spread


def test_budgets_of_rows_are_read_from_the_policy_context() -> None:
    @dataclass(frozen=True)
    class Budget(policies.ExitPolicy):
        needs = frozenset({"context"})

        def decide(self, step: Any, state: Any) -> Any:
            return step.index >= step.context["budget"], state

    made = toy("classification")
    budget = torch.arange(ROWS).remainder(STEPS) + 1
    out = made.call(policy=Budget(), policy_context={"budget": budget})
    assert out.exit_step.tolist() == budget.tolist()
    assert_same(made.unroll(policy_context={"budget": budget}).replay(Budget()), out)
