"""Recursive reasoners of the literature that halt whole puzzles, against their own rule in plain loops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ponder import policies
from ponder.loops import Loop, Problem
from tests.loops.models import CLASSES, WIDTH

State = tuple[Tensor, Tensor]


class Recursion(nn.Module):
    """TRM, arXiv 2510.04871: z ← f(x + y + z) twice, then y ← f(y + z); the state is (y, z)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, state: State, problem: Tensor) -> State:
        answer, latent = state
        for _ in range(2):
            latent = self.network(problem + answer + latent)
        return self.network(answer + latent), latent


class HighLow(nn.Module):
    """HRM, arXiv 2506.21734: the low state is updated three times, then the high one; twice."""

    def __init__(self, high: nn.Module, low: nn.Module) -> None:
        super().__init__()
        self.high = high
        self.low = low

    def forward(self, state: State, problem: Tensor) -> State:
        high, low = state
        for _ in range(2):
            for _ in range(3):
                low = self.low(low + high + problem)
            high = self.high(high + low)
        return high, low


class FirstCell(nn.Module):
    """q_halt − q_continue of a whole puzzle, from its first position."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, 2)

    def forward(self, features: Tensor) -> Tensor:
        halt, go_on = self.linear(features[:, 0]).unbind(-1)
        return halt - go_on


def network() -> nn.Module:
    mixing = nn.Linear(WIDTH, WIDTH)
    nn.init.normal_(mixing.weight, std=0.6)  # wanders for long
    return nn.Sequential(mixing, nn.Tanh())


@pytest.mark.parametrize("name", ["trm", "hrm"])
@torch.no_grad()
def test_a_puzzle_halts_by_its_q_values_and_the_next_takes_its_place(name: str) -> None:
    torch.manual_seed(3)
    step = Recursion(network()) if name == "trm" else HighLow(network(), network())
    head, q_values = nn.Linear(WIDTH, CLASSES), FirstCell()
    loop = Loop(
        step,
        head,
        q_values,
        policy=policies.RightAnswer(0.5),
        readout=lambda state: state[0],
        halted="together",
    ).eval()
    puzzles = torch.randn(12, 4, WIDTH)
    zeros = torch.zeros(4, WIDTH)
    problems = [Problem((zeros, zeros), {"problem": puzzle}) for puzzle in puzzles]
    answers = {answer.number: answer for answer in loop.carry(problems, max_steps=16, slots=3)}
    steps = set()
    for number, puzzle in enumerate(puzzles):
        state = (zeros[None], zeros[None])
        taken, halted = 0, False
        while taken < 16 and not halted:
            state = step(state, puzzle[None])
            q_halt, q_continue = q_values.linear(state[0][0, 0])
            taken, halted = taken + 1, bool(q_halt > q_continue)
        steps.add(taken)
        assert set(answers[number].exit_step.tolist()) == {taken}
        expected = head(state[0])[0]
        torch.testing.assert_close(answers[number].outputs, expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(answers[number].hidden[1], state[1][0], atol=1e-5, rtol=1e-4)
    assert len(steps) > 2
