"""HRM: a slow high state and a fast low one are carried, and two Q-values say whether to halt.

Wang et al. 2025, arXiv 2506.21734. One step of supervision is

    z_L ← f_L(z_L + z_H + x), low_cycles times;  z_H ← f_H(z_H + z_L);  both high_cycles times

for the whole puzzle, which halts where q_halt(z_H) > q_continue(z_H). In training the next puzzle
takes the place of a halted one; at evaluation all 16 steps are run. `loop.carry` replaces halted
puzzles at evaluation, too, by ``policy=policies.RightAnswer(0.5)``.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

__all__ = ["HighLow", "QValues", "high_state"]

State = tuple[Tensor, Tensor]
"""The high and the low state, `(batch, length, width)` each."""


class HighLow(nn.Module):
    """One step of supervision, without its gradient tricks; `high` is f_H, and `low` is f_L."""

    def __init__(
        self,
        high: Callable[[Tensor], Tensor],
        low: Callable[[Tensor], Tensor],
        high_cycles: int = 2,
        low_cycles: int = 2,
    ) -> None:
        super().__init__()
        self.high = high
        self.low = low
        self.high_cycles = high_cycles
        self.low_cycles = low_cycles

    def forward(self, state: State, problem: Tensor) -> State:
        """Return both states after a step; `problem` is the embedded puzzle x."""
        high, low = state
        for _ in range(self.high_cycles):
            for _ in range(self.low_cycles):
                low = self.low(low + high + problem)
            high = self.high(high + low)
        return high, low


def high_state(state: State) -> Tensor:
    """Return the high state, which the heads read."""
    return state[0]


class QValues(nn.Module):
    """q_halt − q_continue, from the first position of the high state; it reads whole rows."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 2)

    def forward(self, features: Tensor) -> Tensor:
        """Return `(batch,)` from `(batch, length, width)`; above 0 the row halts."""
        halt, go_on = self.linear(features[:, 0]).unbind(-1)
        logit: Tensor = halt - go_on
        return logit
