"""The loop and its computing source: what runs, for which rows, and what comes out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ponder
from ponder import policies
from ponder._utils.trees import map_tensors
from tests import toys
from tests.toys import CLOSE, ROWS, STEPS, WIDTH, build, by_hand, exits_by_hand

KINDS = ("shared", "stacked", "scheduled", "context", "padded")
CONFIDENT = policies.Confidence(0.75)
every_kind = pytest.mark.parametrize("kind", KINDS)
both_heads = pytest.mark.parametrize("per_step", [False, True])


@every_kind
@both_heads
def test_rows_exit_as_a_plain_loop_says(kind: str, per_step: bool) -> None:
    made = build(kind, per_step=per_step)
    policy = toys.middle(made)
    out = made.call(policy=policy)
    expected = exits_by_hand(made, policy.threshold)
    assert out.exit_step.tolist() == expected
    assert len(set(expected)) > 1
    outputs = torch.stack([by_hand(made)[step - 1][0][row] for row, step in enumerate(expected)])
    torch.testing.assert_close(out.outputs, outputs, **CLOSE)
    assert (out.loss, out.trajectory) == (None, None)


@every_kind
@both_heads
def test_an_unroll_is_the_plain_loop_over_all_steps(kind: str, per_step: bool) -> None:
    made = build(kind, per_step=per_step)
    run = made.unroll(keep_features=True)
    for step, (outputs, hazards) in enumerate(by_hand(made)):
        torch.testing.assert_close(run.outputs[:, step], outputs, **CLOSE)
        torch.testing.assert_close(run.hazard_logits[:, step], hazards, **CLOSE)
    assert run.features.shape == (ROWS, STEPS, WIDTH)


@pytest.mark.parametrize(
    "policy", [CONFIDENT, policies.Quantile(0.6), policies.Patience(1), policies.FixedStep(2)]
)
def test_only_what_some_row_needs_is_computed(policy: policies.ExitPolicy) -> None:
    head = toys.heads()["head"]
    halting = nn.Linear(WIDTH, 1)
    steps = [toys.Tanh() for _ in range(STEPS)]
    model = ponder.PonderWrapper(
        steps, head=head, lambda_head=halting, task="classification", policy=policy
    ).eval()
    with toys.counted(*steps, head, halting) as calls:
        out = model(torch.randn(ROWS, WIDTH))
    assert sum(sum(calls[step]) for step in steps) == int(out.exit_step.sum())
    asked = int(out.exit_step.clamp(max=STEPS - 1).sum())  # at the last step no row is asked
    assert sum(calls[halting]) == (asked if "hazard" in policy.needs else 0)
    last = int((out.exit_step == STEPS).sum())
    assert sum(calls[head]) == (asked + last if "output" in policy.needs else ROWS)


@dataclass(frozen=True)
class Spoiler(policies.ExitPolicy):
    """Writes into what it reads."""

    needs: frozenset[str] = frozenset({"output", "features"})

    def decide(self, step: Any, state: Any) -> tuple[Any, Any]:
        for name in self.needs:
            getattr(step, name).fill_(7.0)
        return step.index.remainder(2) == torch.arange(len(step.index)).remainder(2), state


@pytest.mark.parametrize("needs", [{"output"}, {"features"}, {"output", "features"}])
def test_a_policy_that_writes_into_what_it_reads_changes_no_answer(needs: set[str]) -> None:
    made = build("stacked")
    out = made.call(policy=Spoiler(frozenset(needs)))
    known = by_hand(made)
    expected = torch.stack(
        [known[step - 1][0][row] for row, step in enumerate(out.exit_step.tolist())]
    )
    torch.testing.assert_close(out.outputs, expected, **CLOSE)


@dataclass(frozen=True)
class Answers(policies.ExitPolicy):
    """Gives what it was made with."""

    mask: Any

    def decide(self, step: Any, state: Any) -> tuple[Any, Any]:
        return self.mask, state


@pytest.mark.parametrize(
    "mask", [torch.zeros(ROWS), torch.zeros(ROWS, 1, dtype=torch.bool), None, torch.tensor(True)]
)
def test_an_exit_mask_is_one_bool_a_row(mask: Any) -> None:
    with pytest.raises(ponder.errors.ArgumentError, match="exit mask of Answers"):
        build("shared").call(policy=Answers(mask))


@pytest.mark.parametrize(("mask", "step"), [(True, 1), (False, STEPS)])
def test_one_bool_answers_for_all_rows(mask: bool, step: int) -> None:
    assert build("shared").call(policy=Answers(mask)).exit_step.tolist() == [step] * ROWS


@dataclass(frozen=True)
class Budget(policies.ExitPolicy):
    """Reads everything that a policy may read."""

    needs = frozenset({"hazard", "output", "features", "context"})

    def decide(self, step: Any, state: Any) -> tuple[Any, Any]:
        survival = step.survival * (1 - step.hazard)
        torch.testing.assert_close(step.cdf, 1 - survival, **CLOSE)
        assert step.features.shape == (len(step.index), WIDTH)
        return step.index >= step.context["budget"], state


def test_the_context_of_a_policy_goes_with_its_rows() -> None:
    budget = 1 + torch.arange(ROWS).remainder(STEPS)
    for kind in KINDS:
        assert torch.equal(
            build(kind).call(policy=Budget(), policy_context={"budget": budget}).exit_step, budget
        )


@every_kind
def test_no_rows_have_no_exits(kind: str) -> None:
    made = build(kind)
    inputs, context = map_tensors(lambda tensor: tensor[:0], (made.inputs, made.context))
    out = made.model(inputs, labels=torch.zeros(0, dtype=torch.long), **context)
    assert (tuple(out.outputs.shape), out.exit_step.tolist(), out.loss.item()) == (
        (0, toys.CLASSES),
        [],
        0.0,
    )


@pytest.mark.parametrize("depth", [1, 2, 7])
def test_a_shared_step_runs_for_any_number_of_steps(depth: int) -> None:
    made = build("shared", policy=policies.LastStep())
    assert made.call(num_steps=depth).exit_step.tolist() == [depth] * ROWS
    torch.testing.assert_close(
        made.call(num_steps=depth).outputs, by_hand(made, depth)[-1][0], **CLOSE
    )
    assert made.unroll(num_steps=depth).num_steps == depth
    with pytest.raises(ponder.errors.ArgumentError, match="num_steps"):
        build("stacked").call(num_steps=depth)


class Failing(nn.Module):
    """A step that fails once."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = toys.Tanh()
        self.fails = True

    def forward(self, hidden: Tensor) -> Tensor:
        if self.fails:
            raise RuntimeError("no memory")
        return self.inside(hidden)


def test_after_an_exception_the_next_call_works() -> None:
    step = Failing()
    model = ponder.PonderWrapper(step, STEPS, head=nn.Linear(WIDTH, 2)).eval()
    for call in (model, model.train()):
        step.fails = True
        with pytest.raises(RuntimeError, match="no memory"):
            call(torch.randn(2, WIDTH))
        step.fails = False
        assert call(torch.randn(2, WIDTH)).exit_step.tolist() == [STEPS] * 2


def test_rows_of_an_unknown_order_come_back_in_their_own() -> None:
    made = build("padded", policy=CONFIDENT)
    whole = made.call()
    order = torch.randperm(ROWS)
    context = {name: mask[order] for name, mask in made.context.items()}
    mixed = made.model(made.inputs[order], **context)
    assert torch.equal(mixed.exit_step, whole.exit_step[order])
    torch.testing.assert_close(mixed.outputs, whole.outputs[order], **CLOSE)
