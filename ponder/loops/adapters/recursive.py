"""TRM: an answer y and a latent z are carried, and a Q-head says whether the answer is right.

Jolicoeur-Martineau 2025, arXiv 2510.04871. One step of supervision is

    z ← f(x + y + z), n times;  y ← f(y + z);  halt where q(y) > 0

for the whole puzzle. In training the next puzzle takes the place of a halted one; at evaluation all
16 steps are run. `loop.carry` replaces it at evaluation, too.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

__all__ = ["QHead", "Recursion", "answer_of"]

State = tuple[Tensor, Tensor]
"""The answer y and the latent z, `(batch, length, width)` each."""


class Recursion(nn.Module):
    """One step of supervision, without its gradient tricks; `network` is f."""

    def __init__(self, network: Callable[[Tensor], Tensor], inner: int = 6) -> None:
        super().__init__()
        self.network = network
        self.inner = inner

    def forward(self, state: State, problem: Tensor) -> State:
        """Return y and z after a step; `problem` is the embedded puzzle x."""
        answer, latent = state
        for _ in range(self.inner):
            latent = self.network(problem + answer + latent)
        return self.network(answer + latent), latent


def answer_of(state: State) -> Tensor:
    """Return y, the readout of the state."""
    return state[0]


class QHead(nn.Module):
    """The logit q that the puzzle is solved, from the first position of y; it reads whole rows."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Return `(batch,)` from `(batch, length, width)`."""
        logit: Tensor = self.linear(features[:, 0]).squeeze(-1)
        return logit
