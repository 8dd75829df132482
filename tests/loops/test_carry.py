"""Problems that take turns get the answers of a batch, whatever runs beside them."""

from __future__ import annotations

from itertools import count

import pytest
import torch

from ponder import policies
from ponder.loops import Problem
from tests.loops.models import POLICIES, WIDTH, make_batch, make_loop

MAX_STEPS = 6
LENGTHS = (5, 3, 5, 1, 4, 5, 2, 5, 5, 3)


@pytest.mark.parametrize("halted", ["frozen", "hidden", "together"])
@pytest.mark.parametrize("step", ["block", "plain"])
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_carry_answers_as_a_batch_does(policy: policies.ExitPolicy, step: str, halted: str) -> None:
    loop = make_loop(step, halted)
    hidden, mask = make_batch(LENGTHS)
    with torch.no_grad():
        whole = loop(hidden, max_steps=MAX_STEPS, attention_mask=mask, policy=policy)
    problems = [Problem(row, attention_mask=real) for row, real in zip(hidden, mask, strict=True)]
    answers = list(loop.carry(problems, max_steps=MAX_STEPS, slots=3, policy=policy))
    assert sorted(answer.number for answer in answers) == list(range(len(LENGTHS)))
    for answer in answers:
        real = mask[answer.number]
        assert answer.exit_step.tolist() == whole.exit_step[answer.number].tolist()
        outputs = whole.outputs[answer.number][real]
        torch.testing.assert_close(answer.outputs[real], outputs, atol=1e-5, rtol=1e-5)


def test_a_halted_problem_makes_place_at_once() -> None:
    loop = make_loop("plain", "together")
    steps = torch.tensor([1, 6, 2, 2, 1, 1])
    rows: list[int] = []
    loop.step.register_forward_hook(lambda *call: rows.append(len(call[2])))
    taken = count()
    problems = (Problem(torch.full((2, WIDTH), float(next(taken)))) for _ in steps)

    class Drawn(policies.ExitPolicy):
        needs = frozenset({"output"})

        def init(self, first: policies.StepView) -> object:
            return steps[first.row_ids]

        def decide(self, step: policies.StepView, state: object) -> tuple[torch.Tensor, object]:
            return step.index >= torch.as_tensor(state), state

    answers = list(loop.carry(problems, max_steps=6, slots=2, policy=Drawn()))
    assert {answer.number: int(answer.exit_step[0]) for answer in answers} == dict(
        enumerate(steps.tolist())
    )
    assert sum(rows) == int(steps.sum())
    assert rows == [2] * 6 + [1]  # the last has no neighbour left


def test_no_problem_no_answer() -> None:
    assert not list(make_loop().carry([], max_steps=3))
