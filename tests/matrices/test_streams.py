"""Streams: rows at different depths share steps, whenever they arrive, within the limits, and answer for themselves."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ponder
from ponder import policies
from tests import toys
from tests.matrices import cases
from tests.matrices.cases import name
from tests.toys import LENGTH, STEPS, WIDTH, Toy, build

MANY = 40
POLICIES = [
    policies.Patience(1),
    policies.Patience(2) | policies.Quantile(0.8),
    policies.Bernoulli(seed=4),
    policies.Voting(2),
    policies.Converged(patience=1),
    cases.Rising(1),
    cases.Settled(1.2),
]


def rows(count: int = MANY, seed: int = 1) -> Tensor:
    return torch.randn(
        count, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )


def assert_answers(futures: list[Future[Any]], expected: Any) -> None:
    """Row by row what a call of the model gives."""
    answers = [future.result(60) for future in futures]
    assert [answer.exit_step for answer in answers] == expected.exit_step.tolist()
    torch.testing.assert_close(
        torch.cat([answer.outputs for answer in answers]), expected.outputs, rtol=1e-9, atol=1e-9
    )


class Arrivals:
    """Rows that are handed in one after the other, by the test and from within steps."""

    def __init__(self, inputs: Tensor) -> None:
        self.inputs = inputs
        self.futures = list[Future[Any]]()
        self.engine = None
        self._turn = threading.Lock()

    def submit(self, count: int) -> None:
        """Hand in the next rows, where there are any."""
        with self._turn:
            for row in self.inputs[len(self.futures) : len(self.futures) + count]:
                self.futures.append(self.engine.submit(row))


def before_steps(made: Toy, act: Callable[[int, int], None]) -> list[int]:
    """Call `act(number of the call, place of the step)` before every step, and list the sizes of their batches."""
    steps = [part for part in made.model.steps.modules() if isinstance(part, toys.Tanh)]
    sizes: list[int] = []

    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        sizes.append(len(args[0]))
        act(len(sizes), steps.index(module))

    for step in steps:
        step.register_forward_pre_hook(hook)
    return sizes


@pytest.mark.parametrize("kind", ["shared", "stacked", "scheduled"])
@pytest.mark.parametrize("policy", POLICIES, ids=name)
@pytest.mark.parametrize("max_batch", [3, 64])
def test_rows_that_arrive_late_join_rows_that_have_begun(
    kind: str, policy: policies.ExitPolicy, max_batch: int
) -> None:
    """Rows with a policy's state, and rows without one yet, are asked together, and answer as alone."""
    made = build(kind)
    inputs = rows()
    expected = made.model(inputs, policy=policy)
    arrivals = Arrivals(inputs)
    sizes = before_steps(made, lambda call, place: arrivals.submit(2))
    with ponder.StreamEngine(made.model, policy=policy, max_batch=max_batch) as arrivals.engine:
        while len(arrivals.futures) < MANY:
            arrivals.submit(1)
            for future in list(arrivals.futures):
                future.result(60)
        assert_answers(arrivals.futures, expected)
    assert max(sizes) <= max_batch
    assert sum(sizes) == int(expected.exit_step.sum())
    if kind == "shared":  # of shared weights, every step takes all that is there
        assert max(sizes) > 2
        assert len(sizes) < int(expected.exit_step.sum()) / 2


@pytest.mark.parametrize("seed", range(6))
def test_neither_order_nor_batch_nor_arrival_changes_an_answer(seed: int) -> None:
    rng = random.Random(seed)
    kind = rng.choice(["shared", "stacked", "scheduled"])
    policy = rng.choice(POLICIES)
    made = build(kind, per_step=seed % 2 == 0)
    inputs = rows(seed=seed)
    order = list(range(MANY))
    expected = made.model(inputs, policy=policy)
    if not isinstance(policy, policies.Bernoulli):  # whose numbers go by the place in the stream
        rng.shuffle(order)
    futures = {}
    with ponder.StreamEngine(made.model, policy=policy, max_batch=rng.randint(1, 9)) as engine:
        for row in order:
            futures[row] = engine.submit(inputs[row])
            if rng.random() < 0.2:
                futures[row].result(60)
        assert_answers([futures[row] for row in range(MANY)], expected)


def sizes_of_all_at_once(made: Toy, inputs: Tensor, max_batch: int) -> list[int]:
    """The batches of a stream in which the first row runs its first step alone, and all others wait together."""
    expected = made.model(inputs)
    begun = threading.Event()
    gate = threading.Event()

    def wait(call: int, place: int) -> None:
        begun.set()
        assert gate.wait(60)

    sizes = before_steps(made, wait)
    with ponder.StreamEngine(made.model, max_batch=max_batch) as engine:
        first = engine.submit(inputs[0])
        assert begun.wait(60)
        futures = [engine.submit(row) for row in inputs[1:]]
        gate.set()
        assert_answers([first, *futures], expected)
    assert (engine.stats.done, engine.stats.row_steps) == (
        len(inputs),
        int(expected.exit_step.sum()),
    )
    return sizes


@pytest.mark.parametrize("kind", ["shared", "stacked"])
@pytest.mark.parametrize("max_batch", [1, 4, 7])
def test_batches_are_as_full_as_the_limit(kind: str, max_batch: int) -> None:
    sizes = sizes_of_all_at_once(build(kind, policy=policies.LastStep()), rows(28), max_batch)
    assert max(sizes) == max_batch
    assert sizes.count(max_batch) >= len(sizes) - 2  # all but the first row's, and a rest


def test_the_last_rows_of_a_stack_meet() -> None:
    made = build("stacked", policy=policies.Patience(1))
    inputs = rows(64)
    at_steps = [int((made.model(inputs).exit_step >= step).sum()) for step in range(1, STEPS + 1)]
    assert (
        len(sizes_of_all_at_once(made, inputs, 16))
        <= sum(-(-count // 16) for count in at_steps) + 1
    )


def test_rows_that_began_early_are_not_passed_over_for_ever() -> None:
    """While rows keep arriving, fuller queues in front of the first step do not starve the last ones."""
    made = build("stacked", policy=policies.LastStep())
    arrivals = Arrivals(rows(400))
    unfinished: list[int] = []

    def arrive(call: int, place: int) -> None:
        arrivals.submit(8)
        if call == 48:
            unfinished.extend(
                n for n, future in enumerate(arrivals.futures[:8]) if not future.done()
            )

    before_steps(made, arrive)
    with ponder.StreamEngine(made.model, max_batch=4) as arrivals.engine:
        arrivals.submit(8)
        while len(arrivals.futures) < 400 or not all(future.done() for future in arrivals.futures):
            for future in list(arrivals.futures):
                future.result(60)
    assert not unfinished


def test_a_row_that_fails_fails_alone() -> None:
    made = build("shared")
    inputs = rows(9)
    policy = policies.Confidence(0.7)
    bad = [torch.randn(WIDTH + 1, dtype=torch.float64), "no tensor"]
    with ponder.StreamEngine(made.model, policy=policy, max_batch=4) as engine:
        futures = []
        for place, row in enumerate(inputs):
            futures.append(engine.submit(row))
            if place % 4 == 1:
                failing = engine.submit(bad[place % 2])
                with pytest.raises(Exception, match=r".+"):
                    failing.result(60)
        assert_answers(futures, made.model(inputs, policy=policy))
        cancelled = engine.submit(inputs[0])
        assert cancelled.cancel() or cancelled.result(60).exit_step >= 1
        assert engine.submit(inputs[1]).result(60).exit_step == int(
            made.model(inputs, policy=policy).exit_step[1]
        )
    with pytest.raises(ponder.errors.PonderError):
        engine.submit(inputs[0])


def test_rows_of_several_lengths_share_a_stream_within_its_limits() -> None:
    made = build("captured-mask", policy=policies.Confidence(0.7))
    count = 24
    lengths = [1 + row % LENGTH for row in range(count)]
    inputs = torch.randn(count, LENGTH, WIDTH, dtype=torch.float64)
    mask = torch.arange(LENGTH) >= torch.tensor(lengths)[:, None]
    expected = made.model(inputs, src_key_padding_mask=mask)
    shapes: list[tuple[int, ...]] = []
    for again in (False, True):  # the first time, the captured module learns calls it has not seen
        if again:
            for layer in made.plain.layers:
                layer.register_forward_pre_hook(
                    lambda module, args: shapes.append(tuple(args[0].shape[:2]))
                )
        with ponder.StreamEngine(made.model, max_batch=5, max_tokens=3 * LENGTH) as engine:
            futures = []
            for row, length in enumerate(lengths):
                whole = (inputs[row], {"src_key_padding_mask": mask[row]})
                futures.append(engine.submit(whole if row % 2 else inputs[row, :length]))
            assert_answers(futures, expected)
    assert 1 < max(batch for batch, _ in shapes) <= 5
    assert max(batch * length for batch, length in shapes) <= 3 * LENGTH
