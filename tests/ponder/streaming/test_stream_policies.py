"""Policies of a stream: rows with one of their own, what they may read of a row, and answers for every token."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import ponder
from ponder import policies
from ponder.inference.streaming import StreamEngine
from ponder.parts.padding import Padding
from ponder.policies import Bernoulli, ExitPolicy, LastStep, StepView
from tests.ponder.checks import refused
from tests.ponder.streaming.driving import Drive, assert_same, examples_of
from tests.toys import LENGTH, NUM_STEPS, TOYS, WIDTH, make_toy, wrap

ROWS = 12


@dataclass(frozen=True)
class Budget(ExitPolicy):
    """Each row leaves at the step that its own budget allows."""

    extra: int = 0
    needs = frozenset({"context"})

    def decide(self, step: StepView, state: Any) -> tuple[Tensor | bool, Any]:
        return step.index >= step.context["budget"] + self.extra, state


class Weighed(ExitPolicy):
    """Holds a tensor, so that it cannot be compared with another."""

    def __init__(self, step: int) -> None:
        self.step = torch.tensor([step, step])

    def decide(self, step: StepView, state: Any) -> tuple[Tensor | bool, Any]:
        return step.index >= self.step[0], state


OWN: tuple[ExitPolicy, ...] = (
    Bernoulli(5),
    policies.Patience(1),
    policies.Confidence(0.6),
    policies.Quantile(0.5) & policies.FixedStep(2),
    LastStep(),
    Weighed(3),
)


@pytest.mark.parametrize("name", TOYS)
@pytest.mark.parametrize("history", [1, 3])
def test_every_row_is_asked_its_own_policy(name: str, history: int) -> None:
    toy = make_toy(name)
    lambda_head = ponder.LambdaHead(WIDTH, history=history)
    nn.init.normal_(lambda_head.layers[-1].weight, std=0.5)
    nn.init.constant_(lambda_head.layers[-1].bias, -1.0)
    model = wrap(toy, lambda_head=lambda_head, policy=policies.FixedStep(4)).eval()
    inputs, context = toy.batch(ROWS, seed=3)
    examples = examples_of(inputs, context)
    rows = torch.arange(ROWS)
    expected = {policy: model(inputs, policy=policy, row_ids=rows, **context) for policy in (*OWN, model.policy)}
    with StreamEngine(model, max_batch=5) as engine:
        chosen = [([*OWN, None] * ROWS)[row] for row in range(ROWS)]
        futures = [engine.submit(examples[row], policy=chosen[row], row_id=row) for row in range(ROWS)]
    for row, future in enumerate(futures):
        answer, out = future.result(0), expected[model.policy if chosen[row] is None else chosen[row]]
        assert answer.exit_step == out.exit_step[row]
        torch.testing.assert_close(answer.output, out.outputs[row], atol=1e-5, rtol=1e-4)
    assert engine.stats.row_steps == sum(future.result(0).exit_step for future in futures)


def test_rows_of_different_policies_share_steps() -> None:
    model = wrap(make_toy("shared")).eval()
    calls: list[int] = []
    model.steps.fns[0].register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    drive = Drive(model, max_batch=4)
    for row, step in zip(torch.randn(4, WIDTH), (5, 3, 3, 1), strict=True):
        drive.add(row, policy=policies.FixedStep(step))
    drive.turns()
    assert calls == [4, 3, 3, 1, 1]
    assert [drive.step_of(request) for request in drive.requests] == [5, 3, 3, 1]


def test_equal_policies_are_asked_once_a_step() -> None:
    asked: list[int] = []

    @dataclass(frozen=True)
    class Counted(ExitPolicy):
        step: int

        def decide(self, step: StepView, state: Any) -> tuple[Tensor | bool, Any]:
            asked.append(len(step.index))
            return step.index >= self.step, state

    drive = Drive(wrap(make_toy("shared")).eval(), max_batch=8)
    for row in torch.randn(6, WIDTH):
        drive.add(row, policy=Counted(2))
    drive.turns()
    assert asked == [6, 6]


@dataclass(frozen=True)
class AverageDoubt(policies.ThresholdPolicy):
    """A moving average, whose state begins as None and not as zeros."""

    level: float
    needs, tunable = frozenset({"output"}), policies.Threshold("level", "below")

    def statistic(self, step: StepView, state: Any) -> tuple[Tensor, Any]:
        doubt = 1 - step.output.softmax(-1).amax(-1)
        average = doubt if state is None else 0.5 * state + 0.5 * doubt
        return average, average


@pytest.mark.parametrize("among", [False, True])
def test_a_state_that_begins_as_none_is_no_zeros_beside_others(among: bool) -> None:
    model, inputs = wrap(make_toy("stacked")).eval(), torch.randn(60, WIDTH, generator=torch.Generator().manual_seed(0))
    doubts = 1 - model.unroll(inputs).outputs.detach().softmax(-1).amax(-1)
    policy: ExitPolicy = AverageDoubt(float(doubts[:, :-1].median()))
    if among:
        policy = policy | policies.Patience(3)
    expected = model(inputs, policy=policy).exit_step.tolist()
    assert len(set(expected)) > 2
    with StreamEngine(model, max_batch=7, policy=policy) as engine:
        told = dict(engine.run(list(inputs)))
    assert [told[row].exit_step for row in range(60)] == expected


@given(st.randoms(use_true_random=False), st.integers(1, 6), st.sampled_from(["shared", "stacked", "scheduled"]))
def test_policies_read_what_was_given_for_a_row(rng: random.Random, max_batch: int, name: str) -> None:
    model = wrap(make_toy(name)).eval()
    drive = Drive(model, Budget(), max_batch=max_batch)
    budgets = [rng.randrange(1, NUM_STEPS + 3) for _ in range(ROWS)]
    for row, budget in zip(torch.randn(ROWS, WIDTH), budgets, strict=True):
        policy = rng.choice([None, Budget(), Budget(1)])
        given = {"budget": torch.tensor(budget - (0 if policy is None else policy.extra))}
        drive.add(row, policy=policy, policy_context=given)
        drive.turns(rng.randrange(3))
    drive.turns()
    assert [drive.step_of(request) for request in drive.requests] == [min(budget, NUM_STEPS) for budget in budgets]


def test_submit_and_run_take_what_policies_read() -> None:
    model = wrap(make_toy("shared")).eval()
    data, budgets = torch.randn(6, WIDTH), torch.tensor([3, 1, 5, 2, 4, 9])
    expected = model(data, policy=Budget(), policy_context={"budget": budgets}).exit_step.tolist()
    assert expected == [3, 1, 5, 2, 4, 5]
    with StreamEngine(model, Budget(), max_batch=4) as engine:
        futures = [engine.submit(x, policy_context={"budget": int(b)}) for x, b in zip(data, budgets, strict=True)]
        assert [future.result().exit_step for future in futures] == expected
        pairs = engine.run(data, ordered=True, policy_context={"budget": budgets})
        assert [answer.exit_step for _, answer in pairs] == expected
        mixed = engine.submit(data[0], policy_context={"budget": 2.5}).result()  # another type: still its own answer
        assert mixed.exit_step == 3
        fixed = engine.run(data, policy=policies.FixedStep(2))
        assert {answer.exit_step for _, answer in fixed} == {2}
        with refused("policy_context", "NoneType"):
            engine.submit(data[0])
        with refused("policy_context['budget']", "str"):
            engine.submit(data[0], policy_context={"budget": "all"})
        with refused("policy_context['budget']", "2 rows"):
            list(engine.run(data, policy_context={"budget": budgets[:2]}))
        with refused("policy_context", "each of the 4 examples", "6 rows"):
            list(engine.run(data[:4], policy_context={"budget": budgets}))
        with refused("patience"):
            engine.submit(data[0], policy=policies.Patience(50))
        with refused("policy", type_error=True):
            engine.submit(data[0], policy="patience")
        assert engine.submit(data[0], policy=LastStep()).result().exit_step == NUM_STEPS, "it reads nothing"


# An answer for every token


def tagger(lambda_head: bool = True, **padding: Any) -> tuple[ponder.PonderWrapper, Tensor, Tensor]:
    """A model that answers for every token and halts by the mean of them, inputs, and their padding mask."""
    toy = make_toy("transformer")
    inputs, context = toy.batch(ROWS, seed=1)
    declared = {"padding": Padding(mask="src_key_padding_mask", real=False, **padding)} if padding else {}
    model = wrap(
        toy,
        task="token_classification",
        readout=ponder.readouts.identity,
        halting_readout=ponder.readouts.mean,
        **declared,
    ).eval()
    return model, inputs, context["src_key_padding_mask"]


PER_TOKEN = (
    policies.Patience(1),
    policies.Voting(2),
    policies.Confidence(0.5),
    policies.Entropy(0.9),
    Bernoulli(2),
    policies.Quantile(0.5) | policies.Patience(2),
)


@pytest.mark.parametrize("policy", PER_TOKEN, ids=repr)
@pytest.mark.parametrize("padding", [{}, {"pooled": True}, {"pooled": False}])
@pytest.mark.parametrize("trimmed", [True, False])
def test_token_answers_are_those_of_a_batch(policy: ExitPolicy, padding: Any, trimmed: bool) -> None:
    model, inputs, mask = tagger(**padding)
    whole = model(inputs, policy=policy, src_key_padding_mask=mask)
    assert len(set(whole.exit_step.tolist())) > 1
    lengths = (~mask).sum(1).tolist()
    assert len(set(lengths)) > 2
    rows: list[Any] = examples_of(inputs, {"src_key_padding_mask": mask})
    if trimmed and padding:
        rows = [row[:length] for row, length in zip(inputs, lengths, strict=True)]
    with StreamEngine(model, policy, max_batch=4) as engine:
        answers = [answer for _, answer in engine.run(rows, ordered=True)]
    found = model.predict(rows, policy=policy, batch_size=5)
    assert [answer.exit_step for answer in answers] == whole.exit_step.tolist() == found.exit_step.tolist()
    for row, length in enumerate(lengths):
        expected = whole.outputs[row, :length]
        torch.testing.assert_close(answers[row].output[:length], expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found.outputs[row, :length], expected, atol=1e-5, rtol=1e-4)
        if padding:
            assert len(answers[row].output) == length
            assert not found.outputs[row, length:].any(), "beyond the end of a row there is no answer"


def test_the_mask_that_a_policy_sees_in_a_stream() -> None:
    seen: list[Any] = []

    class Looks(ExitPolicy):
        needs = frozenset({"output"})

        def decide(self, step: StepView, state: Any) -> tuple[Tensor | bool, Any]:
            seen.append(None if step.mask is None else step.mask.tolist())
            return False, state

    model, inputs, mask = tagger()
    drive = Drive(model, Looks(), max_batch=4)
    for row in (0, 3):
        drive.add((inputs[row], {"src_key_padding_mask": mask[row]}))
    drive.turns()
    assert seen == [(~mask[[0, 3]]).tolist()] * (NUM_STEPS - 1)
    seen.clear()
    pooled, _ = wrap(make_toy("transformer")).eval(), None
    drive = Drive(pooled, Looks())
    drive.add((inputs[0], {"src_key_padding_mask": mask[0]}))
    drive.turns()
    assert seen == [None] * (NUM_STEPS - 1), "one answer a row"


def test_tokens_in_a_stream_with_rows_coming_and_going() -> None:
    model, inputs, mask = tagger(pooled=False)
    policy = policies.Patience(1) | Bernoulli(3)
    out = model(inputs, policy=policy, src_key_padding_mask=mask)
    drive = Drive(model, policy, max_batch=3, max_skips=2)
    for row in range(ROWS):
        drive.add(inputs[row, : int((~mask[row]).sum())])
        drive.turns(row % 3)
    drive.turns()
    for row, request in enumerate(drive.requests):
        answer = request.future.result(0)
        assert answer.exit_step == out.exit_step[row]
        torch.testing.assert_close(answer.output, out.outputs[row, : len(answer.output)], atol=1e-5, rtol=1e-4)


# Steps that work in place


class InPlace(nn.Module):
    """h ← h · gain + 1, in the memory of h."""

    def forward(self, hidden: Tensor, gain: Tensor) -> Tensor:
        gain.mul_(1.5)
        return hidden.mul_(gain[:, None]).add_(1.0)


class Touchy(ExitPolicy):
    """Cannot bear the row `bad` after its second step; lets the others go at the end."""

    def __init__(self, bad: int) -> None:
        self.bad = bad

    def init(self, batch: Any) -> Any:
        return batch.row_ids

    def decide(self, step: StepView, state: Any) -> tuple[Tensor | bool, Any]:
        if bool(((state == self.bad) & (step.index == 2)).any()):
            raise RuntimeError("this row is bad")
        return False, state


@pytest.mark.parametrize("stacked", [False, True])
def test_steps_in_place_survive_a_row_that_fails(stacked: bool) -> None:
    steps: Any = [InPlace() for _ in range(4)] if stacked else InPlace()
    model = ponder.PonderWrapper(steps, None if stacked else 4, head=nn.Identity(), policy=Touchy(5)).eval()
    data, gains = torch.randn(8, 3), torch.rand(8) + 0.5
    kept = data.clone(), gains.clone()
    expected = model(data.clone(), gain=gains.clone(), policy=LastStep()).outputs
    drive = Drive(model, max_batch=8)
    for row in range(8):
        drive.add((data[row], {"gain": gains[row]}))
    drive.turns()
    for row, request in enumerate(drive.requests):
        if row == 5:
            with pytest.raises(RuntimeError, match="bad"):
                request.future.result(0)
        else:
            torch.testing.assert_close(request.future.result(0).output, expected[row])
    drive.add((data[0], {"gain": gains[0]}), row_id=0)
    drive.turns()
    torch.testing.assert_close(drive.requests[-1].future.result(0).output, expected[0])
    assert torch.equal(data, kept[0]), "what the caller gave is as it was"
    assert torch.equal(gains, kept[1])


def test_steps_in_place_at_mixed_depths_and_lengths() -> None:
    class Doubling(nn.Module):
        def forward(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
            return hidden.mul_(2.0).add_(attention_mask[..., None])

    def make(policy: ExitPolicy) -> ponder.PonderWrapper:
        return ponder.PonderWrapper(
            Doubling(), 6, head=nn.Identity(), readout=ponder.readouts.mean, padding=Padding(), policy=policy
        ).eval()

    data = [torch.randn(1 + row % LENGTH, 2) for row in range(9)]
    plain = make(LastStep())
    drive = Drive(make(Touchy(4)), max_batch=9)
    for row, example in enumerate(data):
        drive.add(example)
        drive.turns(row % 2)
    drive.turns()
    for row, request in enumerate(drive.requests):
        if row == 4:
            assert request.future.exception(0) is not None
        else:
            out = plain(data[row].clone()[None], attention_mask=torch.ones(1, len(data[row]), dtype=torch.long))
            torch.testing.assert_close(request.future.result(0).output, out.outputs[0])


def test_a_single_row_in_place_does_not_change_what_was_given() -> None:
    model = ponder.PonderWrapper(InPlace(), 2, head=nn.Identity()).eval()
    example = torch.ones(3), {"gain": torch.tensor(2.0)}
    with StreamEngine(model) as engine:
        assert engine.submit(example).result().output.tolist() == [4.5 * 4 + 1] * 3
        assert engine.submit(example).result().output.tolist() == [4.5 * 4 + 1] * 3
    with torch.inference_mode():
        own = torch.ones(3), {"gain": torch.tensor(2.0)}
    found = [model.predict([own]), model.predict([own, own], batch_size=1)]
    assert found[0].outputs[0].tolist() == found[1].outputs[1].tolist() == [4.5 * 4 + 1] * 3
    assert_same([], model(torch.zeros(0, 3), gain=torch.zeros(0)))
