"""`Expected`: its tables by counting, its rule against brute force over all stopping rules, and its contracts."""

from __future__ import annotations

import copy
import itertools
import json
import math
import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ponder import Trajectory, policies
from ponder.policies import Expected, ModelSpec
from tests.ponder import oracles
from tests.ponder.checks import refused, take
from tests.ponder.test_sweep import recorded
from tests.toys import TOYS, make_toy, wrap


def normalised(rows: list[list[float]]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(value / sum(row) for value in row) for row in rows)


positive = st.floats(0.05, 1.0)
tables = st.builds(
    lambda rewards, first, second: (tuple(map(tuple, rewards)), (normalised(first), normalised(second))),
    st.lists(st.lists(st.floats(0, 1), min_size=2, max_size=2), min_size=3, max_size=3),
    st.lists(st.lists(positive, min_size=2, max_size=2), min_size=2, max_size=2),
    st.lists(st.lists(positive, min_size=2, max_size=2), min_size=2, max_size=2),
)


def worth(rewards: Any, transitions: Any, rule: Any, price: float, step: int, place: int) -> float:
    """What a rule earns from a state on, walking the whole tree."""
    if step == len(rewards) - 1 or rule[step][place]:
        return rewards[step][place]
    onward = transitions[step][place]
    return -price + math.fsum(p * worth(rewards, transitions, rule, price, step + 1, b) for b, p in enumerate(onward))


@given(tables, st.floats(0, 0.3))
def test_no_stopping_rule_earns_more(made: Any, price: float) -> None:
    rewards, transitions = made
    policy = Expected(price, ((0.5,),) * 3, rewards, transitions)
    rules = [((a, b), (c, d)) for a, b, c, d in itertools.product([False, True], repeat=4)]
    for place in (0, 1):
        best = max(worth(rewards, transitions, rule, price, 0, place) for rule in rules)
        assert worth(rewards, transitions, policy.stops, price, 0, place) == pytest.approx(best, abs=1e-12)


@given(tables)
def test_a_higher_price_never_stops_later(made: Any) -> None:
    policy = Expected(0.0, ((0.5,),) * 3, *made)
    before = torch.tensor(policy.stops)
    for price in (0.01, 0.1, 0.3, 2.0):
        now = torch.tensor(replace(policy, price=price).stops)
        assert bool((before <= now).all())
        before = now
    assert bool(before.all())


@pytest.mark.parametrize("labelled", [True, False])
def test_tables_are_counted_and_decisions_looked_up(labelled: bool) -> None:
    trajectory = recorded(60, steps=4)
    if not labelled:
        trajectory = replace(trajectory, labels=None)
    policy = Expected.fit(trajectory, price=0.03, bins=4)
    rows, steps, bins = 60, 4, 4
    sure = [[max(oracles.log_softmax(z)) for z in row] for row in trajectory.outputs.tolist()]
    sure = [[math.exp(value) for value in row] for row in sure]
    place = [[sum(sure[r][n] > edge for edge in policy.edges[n]) for n in range(steps)] for r in range(rows)]
    for n in range(steps):
        assert sorted(policy.edges[n]) == list(policy.edges[n])
        assert {sum(place[r][n] == b for r in range(rows)) for b in range(bins)} == {15}
    answers = [[z.index(max(z)) for z in row] for row in trajectory.outputs.tolist()]
    target = trajectory.labels.tolist() if labelled else [row[-1] for row in answers]
    right = [[float(a == y) for a in row] for row, y in zip(answers, target, strict=True)]
    for n, b in itertools.product(range(steps), range(bins)):
        members = [r for r in range(rows) if place[r][n] == b]
        overall = math.fsum(right[r][n] for r in range(rows)) / rows
        expected = (math.fsum(right[r][n] for r in members) + overall) / (len(members) + 1)
        assert policy.rewards[n][b] == pytest.approx(expected)
        if n < steps - 1:
            for c in range(bins):
                share = sum(place[r][n + 1] == c for r in range(rows)) / rows
                moved = sum(place[r][n + 1] == c for r in members)
                assert policy.transitions[n][b][c] == pytest.approx((moved + share) / (len(members) + 1))
    exits = trajectory.replay(policy).exit_step.tolist()
    for r in range(rows):
        leaves = [n for n in range(steps - 1) if policy.stops[n][place[r][n]]]
        assert exits[r] == (leaves[0] + 1 if leaves else steps)
    assert len(set(exits)) > 1


@pytest.mark.parametrize("toy_name", TOYS)
def test_contracts_on_every_toy(toy_name: str) -> None:
    toy = make_toy(toy_name)
    model = wrap(toy).eval()
    inputs, context = toy.batch(24, seed=5)
    fitted = model.unroll(inputs, **context)
    middle = fitted.outputs.softmax(-1).amax(-1).median(0).values.tolist()
    rewards = ((0.0, 1.0),) * model.num_steps  # what is sure is right, and what is not may become so
    moves = (((0.5, 0.5), (0.0, 1.0)),) * (model.num_steps - 1)
    policy = Expected(0.0, edges=tuple((edge,) for edge in middle), rewards=rewards, transitions=moves)
    run = model(inputs, policy=policy, **context)
    assert len(set(run.exit_step.tolist())) > 1
    replayed = model.unroll(inputs, **context).replay(policy)
    assert run.exit_step.tolist() == replayed.exit_step.tolist()
    rows = torch.tensor([7, 3, 3, 11])
    part = model(take(inputs, rows), policy=policy, **take(context, rows))
    assert part.exit_step.tolist() == run.exit_step[rows].tolist()


def test_round_trips() -> None:
    policy = Expected.fit(recorded(), price=0.02)
    for twin in (
        policies.from_dict(json.loads(json.dumps(policy.to_dict()))),
        copy.deepcopy(policy),
        pickle.loads(pickle.dumps(policy)),
        replace(policy),
    ):
        assert twin == policy
        assert hash(twin) == hash(policy)
        assert twin.stops == policy.stops


def test_bad_input() -> None:
    trajectory = recorded()
    with refused("trajectory", "regression"):
        Expected.fit(recorded(task="regression"))
    with refused("trajectory", "at least one row"):
        Expected.fit(trajectory.map(lambda tensor: tensor[:0]))
    with refused("bins", "0"):
        Expected.fit(trajectory, bins=0)
    with refused("price", "-1"):
        Expected.fit(trajectory, price=-1)
    policy = Expected.fit(trajectory)
    with refused("policy", "over 12 steps", "over 6 steps"):
        policy.check(ModelSpec(12, "classification", has_hazard=False))
    with refused("policy", "regression"):
        policy.check(ModelSpec(6, "regression", has_hazard=False))
    with refused("rewards, edges, transitions", "Expected.fit"):
        Expected(0.1, ((0.5,),), ((0.1, 0.2), (0.3, 0.4)), (((0.5, 0.5), (0.5, 0.5)),))
    with refused("rewards, edges, transitions"):
        Expected(0.1, (), (), ())


def test_one_bin_is_the_best_fixed_step() -> None:
    trajectory = recorded(80)
    policy = Expected.fit(trajectory, price=0.0, bins=1)
    steps = set(trajectory.replay(policy).exit_step.tolist())
    assert len(steps) == 1
    scores = (trajectory.outputs.argmax(-1) == trajectory.labels[:, None]).double().mean(0)
    assert scores[steps.pop() - 1] == scores.max()


def test_runs_of_training_mode_are_refused() -> None:
    trajectory = Trajectory(torch.randn(30, 3, 2), None, torch.arange(30), labels=torch.arange(30) % 2, training=True)
    with refused("trajectory", "evaluation mode"):
        Expected.fit(trajectory)
