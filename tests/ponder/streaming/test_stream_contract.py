"""The stream gives what the model gives: every kind of backbone, every policy, any order, any batch, any length."""

from __future__ import annotations

import itertools
import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import ponder
from ponder import policies
from ponder.inference.batching import BatchLimits, Filling
from ponder.inference.streaming import StreamEngine
from ponder.parts.padding import Along, Padding, masked
from ponder.policies import Bernoulli, LastStep, Quantile
from tests.ponder.examples import POLICIES, Example, in_turn, make_policy
from tests.ponder.streaming.driving import Drive, assert_same, examples_of
from tests.ponder.test_loop import Appointed, Settled
from tests.toys import LENGTH, NUM_STEPS, TOYS, WIDTH, make_toy, wrap

ROWS = 11
every_toy = pytest.mark.parametrize("name", TOYS)


def answers_of(drive: Drive) -> list[Any]:
    return [request.future.result(0) for request in drive.requests]


@pytest.mark.parametrize(("name", "case"), in_turn(POLICIES, list(TOYS), 3))
def test_exits_and_outputs_are_the_models(name: str, case: Example) -> None:
    toy = make_toy(name)
    model = wrap(toy, task=case.task, policy=make_policy(case)).eval()
    inputs, context = toy.batch(ROWS, seed=3)
    with StreamEngine(model, max_batch=4) as engine:
        pairs = list(engine.run(examples_of(inputs, context), ordered=True))
    assert [key for key, _ in pairs] == list(range(ROWS))
    out = model(inputs, **context)
    assert_same([answer for _, answer in pairs], out)
    stats = engine.stats
    assert stats.row_steps == out.exit_step.sum(), "the steps that were computed are those that were needed"
    assert (stats.done, stats.waiting, stats.running) == (ROWS, 0, 0)


@pytest.mark.parametrize("name", ["shared", "stacked", "scheduled", "transformer"])
@pytest.mark.parametrize("seed", range(3))
def test_a_head_per_step(name: str, seed: int) -> None:
    toy = make_toy(name)
    head = ponder.PerStep(nn.Linear(WIDTH, 3) for _ in range(NUM_STEPS))
    model = wrap(toy, head=head).eval()
    inputs, context = toy.batch(ROWS, seed=seed)
    for policy in (Bernoulli(seed), policies.Confidence(0.5), policies.Patience(1)):
        drive = Drive(model, policy, max_batch=3)
        for example in examples_of(inputs, context):
            drive.add(example)
        drive.turns()
        assert_same(answers_of(drive), model(inputs, policy=policy, **context))


@pytest.mark.parametrize("history", [1, 2, 4])
@pytest.mark.parametrize("initial", ["stem", "zeros"])
def test_the_features_that_the_lambda_head_remembers(history: int, initial: Any) -> None:
    toy = make_toy("gru-cell")
    lambda_head = ponder.LambdaHead(WIDTH, history=history, initial=initial)
    nn.init.normal_(lambda_head.layers[-1].weight, std=0.5)
    nn.init.constant_(lambda_head.layers[-1].bias, -1.0)
    model = wrap(toy, lambda_head=lambda_head).eval()
    inputs, context = toy.batch(ROWS)
    drive = Drive(model, Bernoulli(1), max_batch=3)
    for example in examples_of(inputs, context):
        drive.add(example)
    drive.turns()
    out = model(inputs, policy=Bernoulli(1), **context)
    assert len(set(out.exit_step.tolist())) > 2
    assert_same(answers_of(drive), out)


def test_a_users_policy_on_features() -> None:
    toy = make_toy("shared")
    model = wrap(toy, policy=Settled(0.9)).eval()
    inputs, _ = toy.batch(ROWS)
    drive = Drive(model, max_batch=3)
    for row in inputs:
        drive.add(row)
    drive.turns()
    assert_same(answers_of(drive), model(inputs))


@given(
    st.sampled_from(sorted(TOYS)),
    st.randoms(use_true_random=False),
    st.integers(1, 9),
    st.integers(1, 6),
    st.sampled_from([Bernoulli(5), policies.Patience(1) | Quantile(0.6), policies.Confidence(0.6)]),
)
def test_neither_order_nor_batch_nor_arrival_changes_anything(
    name: str, rng: random.Random, max_batch: int, max_skips: int, policy: policies.ExitPolicy
) -> None:
    toy = make_toy(name)
    model = wrap(toy).eval()
    inputs, context = toy.batch(ROWS, seed=3)
    order = list(range(ROWS))
    rng.shuffle(order)
    drive = Drive(model, policy, max_batch=max_batch, max_skips=max_skips)
    examples = examples_of(inputs, context)
    for row in order:
        drive.add(examples[row], row_id=row)
        drive.turns(rng.randrange(3))
    drive.turns()
    answers = {request.row_id: request.future.result(0) for request in drive.requests}
    assert_same([answers[row] for row in range(ROWS)], model(inputs, policy=policy, **context))


def lengthy(pooled: bool = True) -> tuple[ponder.PonderWrapper, ponder.PonderWrapper, torch.Tensor, torch.Tensor]:
    """A model that declares lengths, one that does not, inputs and padding mask."""
    padding = Padding(mask="src_key_padding_mask", real=False, pooled=pooled)
    inputs, context = make_toy("transformer").batch(ROWS, seed=1)
    model, plain = (wrap(make_toy("transformer"), **parts).eval() for parts in ({"padding": padding}, {}))
    return model, plain, inputs, context["src_key_padding_mask"]


@given(st.randoms(use_true_random=False), st.integers(1, 9), st.sampled_from([None, LENGTH, 3 * LENGTH]))
def test_rows_of_all_lengths_share_batches(rng: random.Random, max_batch: int, max_tokens: int | None) -> None:
    model, plain, inputs, mask = lengthy()
    drive = Drive(model, Bernoulli(2), max_batch=max_batch, max_tokens=max_tokens)
    seen: list[tuple[int, int]] = []
    model.steps.fns[0].register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape[:2])))
    for row in range(ROWS):
        length = int((~mask[row]).sum())
        if rng.random() < 0.5:
            drive.add((inputs[row], {"src_key_padding_mask": mask[row]}))
        else:
            drive.add(inputs[row, :length])
        drive.turns(rng.randrange(2))
    drive.turns()
    assert_same(answers_of(drive), plain(inputs, policy=Bernoulli(2), src_key_padding_mask=mask))
    if max_tokens is not None:
        assert all(rows * width <= max_tokens for rows, width in seen)


@given(
    st.lists(st.lists(st.integers(1, 4), max_size=5), max_size=4),
    st.sampled_from([(3, None), (6, None), (6, 8), (None, 5)]),
)
def test_rows_taken_at_once_are_those_taken_one_by_one(cohorts: list[list[int]], limits: tuple[Any, Any]) -> None:
    together, one_by_one = Filling(BatchLimits(*limits)), Filling(BatchLimits(*limits))
    for lengths in cohorts:
        alone = list(itertools.takewhile(one_by_one.take, lengths))
        assert together.take_first(lengths) == len(alone)
        if len(alone) < len(lengths):
            return


def test_a_batch_is_as_wide_as_its_longest_row() -> None:
    model, _, inputs, _ = lengthy()
    seen: list[tuple[int, int]] = []
    model.steps.fns[0].register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape[:2])))
    drive = Drive(model, Appointed(), max_batch=2)
    for length, step in ((4, 1), (1, 3), (2, 2), (3, 1)):
        drive.add(inputs[0, :length], row_id=step)
    drive.turns()
    assert seen == [(2, 4), (2, 2), (2, 2), (1, 3)]


class Attending(nn.Module):
    """A step of attention, with a mask where there is one, which hides or is added to the scores."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        query, key, value = self.project(hidden)[:, None].chunk(3, -1)
        return hidden + nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)[:, 0]


@pytest.mark.parametrize("kind", ["hiding", "added"])
@pytest.mark.parametrize(
    ("nothing", "padding"),
    [("none", None), ("left out", None), ("none", Padding(context={"mask": Along((3,), fill=masked)}))],
    ids=["none", "left out", "none of several lengths"],
)
def test_a_mask_that_is_there_only_where_something_is_padded(kind: str, nothing: str, padding: Padding | None) -> None:
    """Trap: no mask, which hides nothing, became zeros beside others, which hide all, or nothing of the padding."""

    def stem(ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> Any:
        real = ids != 0
        if real.all():
            return table[ids], {"mask": None} if nothing == "none" else {}
        mask = real[:, None, None]
        return table[ids], {"mask": mask if kind == "hiding" else torch.where(mask, 0.0, -1e9)}

    torch.manual_seed(0)
    table, draw = torch.randn(11, WIDTH), random.Random(1)
    model = ponder.PonderWrapper(
        Attending(), 4, stem=stem, readout=ponder.readouts.first_token, padding=padding, head=nn.Linear(WIDTH, 3)
    ).eval()
    for parameter in model.steps.parameters():
        nn.init.normal_(parameter, std=0.5)
    drive = Drive(model, max_batch=3, max_skips=1)
    rows = []
    for _ in range(24):
        ids = torch.randint(1, 11, (6,))
        ids[draw.choice([6, 6, 4, 3]) :] = 0
        own = 6 if padding is None else draw.choice([6, int((ids != 0).sum())])  # some without their padding
        rows.append((ids[:own], policies.FixedStep(1 + len(rows) % 4)))
        drive.add(rows[-1][0], policy=rows[-1][1])
    drive.turns()
    for answer, (ids, policy) in zip(answers_of(drive), rows, strict=True):
        torch.testing.assert_close(answer.output, model(ids[None], policy=policy).outputs[0])


def test_without_declared_lengths_rows_of_one_shape_share_a_batch() -> None:
    toy = make_toy("transformer")
    model = wrap(toy).eval()
    inputs, _ = toy.batch(6)
    seen: list[tuple[int, int]] = []
    model.steps.fns[0].register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape[:2])))
    drive = Drive(model, LastStep())
    lengths = [3, 4, 3, 4, 4, 3]
    for row, length in enumerate(lengths):
        drive.add(inputs[row, :length])
    drive.turns()
    assert sorted(seen) == [(3, 3)] * NUM_STEPS + [(3, 4)] * NUM_STEPS
    for answer, row, length in zip(answers_of(drive), inputs, lengths, strict=True):
        torch.testing.assert_close(answer.output, model(row[None, :length], policy=LastStep()).outputs[0])


# Nothing wasted


def test_shared_steps_run_full_while_rows_wait() -> None:
    model = wrap(make_toy("shared")).eval()
    drive = Drive(model, Appointed(), max_batch=4)
    calls: list[int] = []
    model.steps.fns[0].register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    exits = [1, 5, 2, 2, 4, 1, 3, 3, 5, 1, 1, 2]
    for row, step in zip(torch.randn(len(exits), WIDTH), exits, strict=True):
        drive.add(row, row_id=step)
    drive.turns()
    assert [drive.step_of(request) for request in drive.requests] == exits
    assert sum(calls) == sum(exits)
    assert calls[:6] == [4] * 6
    stats = drive.metrics.snapshot(waiting=0, running=0, max_batch=4)
    assert (stats.steps, stats.row_steps) == (len(calls), sum(exits))
    assert stats.occupancy == sum(exits) / (4 * len(calls))


def test_stacked_steps_run_full_while_rows_wait() -> None:
    model = wrap(make_toy("stacked")).eval()
    drive = Drive(model, Appointed(), max_batch=4)
    calls: list[int] = []
    for fn in model.steps.fns:
        fn.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    exits = [1 + row % 3 for row in range(48)]
    for row, step in zip(torch.randn(len(exits), WIDTH), exits, strict=True):
        drive.add(row, row_id=step)
    drive.turns()
    assert [drive.step_of(request) for request in drive.requests] == exits
    assert sum(calls) == sum(exits)
    assert calls.count(4) >= len(calls) - 2


def test_states_are_not_copied_where_nobody_comes_or_goes() -> None:
    returned: list[int] = []

    def step(hidden: torch.Tensor, bias: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        if returned:
            assert hidden.data_ptr() == returned[-1]
            assert other.data_ptr() == contexts[-1]
        contexts.append(other.data_ptr())
        after = hidden + bias
        returned.append(after.data_ptr())
        held.append(after)
        return after

    contexts: list[int] = []
    held: list[torch.Tensor] = []
    model = ponder.PonderWrapper(step, 4, head=nn.Identity()).eval()
    drive = Drive(model)
    bias = ponder.Shared(torch.ones(WIDTH))
    for _ in range(3):
        drive.add((torch.zeros(WIDTH), {"bias": bias, "other": torch.zeros(2)}))
    drive.turns()
    assert len(returned) == 4
    assert answers_of(drive)[0].output.tolist() == [4.0] * WIDTH


def test_a_queue_that_is_passed_over_too_often_goes_first() -> None:
    model = wrap(make_toy("transformer")).eval()
    drive = Drive(model, LastStep(), max_batch=2, max_skips=3)
    for _ in range(12):
        drive.add(torch.randn(4, WIDTH))
    rare = drive.add(torch.randn(3, WIDTH))
    drive.turns(4)
    assert drive.scheduler.running == 3
    drive.turns(5 * 4)
    assert rare.future.done()
    drive.turns()
    assert all(request.future.done() for request in drive.requests)


def test_a_kind_that_only_waits_is_not_starved_by_two_that_fill_the_engine() -> None:
    drive = Drive(wrap(make_toy("transformer")).eval(), LastStep(), max_batch=2, max_skips=3)

    def crowd() -> None:
        for length in (4, 5) * 30:
            drive.add(torch.randn(length, WIDTH))

    crowd()
    rare = drive.add(torch.randn(3, WIDTH))
    crowd()
    while not rare.future.done():
        drive.turns(1)
    assert sum(request.future.done() for request in drive.requests) < 40
    drive.turns()
    assert all(request.future.done() for request in drive.requests)


# What comes out


def test_answers_are_ordinary_tensors_without_a_batch_dimension() -> None:
    toy = make_toy("shared")
    with StreamEngine(wrap(toy).eval()) as engine:
        answer = engine.submit(toy.batch(1)[0][0]).result()
    assert answer.output.shape == (3,)
    assert not answer.output.is_inference()
    assert not answer.output.requires_grad
    answer.output.add_(1)


def test_keys_and_order() -> None:
    toy = make_toy("shared")
    model = wrap(toy, policy=Appointed()).eval()
    inputs, _ = toy.batch(3)
    with StreamEngine(model, max_batch=2) as engine:
        named = list(engine.run(zip("abc", inputs, strict=True), keyed=True, ordered=True))
        assert [key for key, _ in named] == ["a", "b", "c"]
        assert [answer.exit_step for _, answer in named] == [1, 1, 2]  # the row id is the position
        numbered = dict(engine.run(zip([4, 2, 3], inputs, strict=True), keyed=True))
        for keys in (np.array([4, 2, 3]), torch.tensor([4, 2, 3])):
            alike = [answer for _, answer in engine.run(zip(keys, inputs, strict=True), keyed=True, ordered=True)]
            assert [one.exit_step for one in alike] == [numbered[key].exit_step for key in (4, 2, 3)]
        assert {key: answer.exit_step for key, answer in numbered.items()} == {4: 4, 2: 2, 3: 3}
        assert list(engine.run([])) == []


def test_a_stream_is_read_only_as_far_ahead_as_rows_may_wait_and_run() -> None:
    read = 0

    def stream() -> Any:
        nonlocal read
        for row in torch.randn(400, WIDTH):
            read += 1
            yield row

    with StreamEngine(wrap(make_toy("shared")).eval(), max_batch=2, max_waiting=3) as engine:
        for answered, _ in enumerate(engine.run(stream())):
            assert read - answered <= 3 + 2 * 2 + 1
    assert read == 400


def test_leaving_a_run_early_cancels_the_rest() -> None:
    rows = iter(torch.randn(50, WIDTH))
    with StreamEngine(wrap(make_toy("shared")).eval(), max_batch=2) as engine:
        for _ in engine.run(rows):
            break
    stats = engine.stats
    assert stats.done + stats.cancelled == 50 - len(list(rows))


def test_the_checking_mode_names_a_row_alone() -> None:
    toy = make_toy("shared")
    model = wrap(toy, check_finite=True).eval()
    inputs, _ = toy.batch(5)
    inputs[2] = torch.nan
    with StreamEngine(model) as engine:
        answers = dict(engine.run(inputs, errors="return"))
    assert isinstance(answers.pop(2), ponder.errors.NonFiniteError)
    assert len(answers) == 4
    assert all(isinstance(answer, ponder.StreamOutput) for answer in answers.values())
