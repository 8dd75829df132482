"""A looped solver: one convolutional step, applied again and again, that reads the problem again at every step.

h_n = F([h_{n−1}, x]) (recall; Bansal et al. 2022, arXiv 2202.05826). The problem travels in the context, row by row, so
that it goes along when rows exit. The solver learns to go on from any depth (progressive loss).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

import ponder
from benchmarks.loops.problems import PUZZLES, Puzzle
from ponder import objectives

__all__ = ["SETTINGS", "Setting", "solver", "train"]

_RISE, _FALL = (
    200,
    0.4,
)  # updates over which the rate rises, and the last part of training, over which it falls


@dataclass(frozen=True)
class Setting:
    """Sizes and constants.

    Args:
        puzzle: Name of the puzzle.
        width: Width of the solver's state.
        num_steps: N, the deepest run of training.
        run_steps: The deepest run that is reported: more steps than trained, so that larger problems can be solved.
        updates: Number of updates of the weights.
        batch_size: Problems of an update, all of one level.
        learning_rate: Adam's, after a short rise and before it falls to 0 over the last part.
        gradient_steps: Most steps through which a gradient flows; earlier ones run without.
        examples: Problems of every level in each of the sets that choose and report.
        bf16: Whether training computes in bfloat16 where autocast lets it.
    """

    puzzle: str
    width: int = 32
    num_steps: int = 20
    run_steps: int = 60
    updates: int = 3000
    batch_size: int = 64
    learning_rate: float = 1e-3
    gradient_steps: int = 20
    examples: int = 500
    bf16: bool = False

    @property
    def task(self) -> Puzzle:
        """The puzzle itself."""
        return PUZZLES[self.puzzle]


_DEEP: dict[str, Any] = {"num_steps": 24, "gradient_steps": 24, "run_steps": 80}
SETTINGS = {
    "prefix-sums": Setting("prefix-sums"),
    "mazes": Setting("mazes", updates=12000, batch_size=32, examples=125, bf16=True, **_DEEP),
}


class Stem(nn.Module):
    """Inputs `(batch, channels, …)` to the first state, and the inputs as the context of every step."""

    def __init__(self, channels: int, width: int, dims: int) -> None:
        super().__init__()
        self.layer = _convolution(channels, width, dims)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Mapping[str, Any]]:
        """Return the state `(batch, width, …)` and the context."""
        return F.relu(self.layer(inputs)), {"problem": inputs}


class Step(nn.Module):
    """One step: recall, and two residual blocks of two convolutions each."""

    def __init__(self, channels: int, width: int, dims: int) -> None:
        super().__init__()
        self.recall = _convolution(width + channels, width, dims)
        self.blocks = nn.ModuleList(_convolution(width, width, dims) for _ in range(4))

    def forward(self, hidden: Tensor, problem: Tensor) -> Tensor:
        """Return the next state, of the same shape."""
        hidden = self.recall(torch.cat([hidden, problem], dim=1))
        for first, second in zip(self.blocks[::2], self.blocks[1::2], strict=True):
            hidden = F.relu(hidden + second(F.relu(first(hidden))))
        return hidden


class Head(nn.Module):
    """The class of every position, by one linear layer: `(batch, width, …)` → `(batch, positions, classes)`."""

    def __init__(self, width: int, classes: int = 2) -> None:
        super().__init__()
        self.layer = nn.Linear(width, classes)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits; each position alone."""
        logits: Tensor = self.layer(rearrange(features, "batch width ... -> batch (...) width"))
        return logits


def solver(setting: Setting) -> ponder.PonderWrapper:
    """Return a new solver that learns to go on from any depth."""
    shape = (setting.task.channels, setting.width, setting.task.dims)
    return ponder.PonderWrapper(
        Step(*shape),
        num_steps=setting.num_steps,
        stem=Stem(*shape),
        readout=ponder.readouts.identity,
        head=Head(setting.width),
        task="token_classification",
        objective=objectives.RandomDepth(1, setting.gradient_steps, warm_up=setting.num_steps - 1),
    )


def train(
    model: ponder.PonderWrapper,
    setting: Setting,
    seed: int,
    advance: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Train a solver in place; every update's problems and random numbers follow from the seed and its number alone.

    Returns:
        The updates, their seconds of processor time, and the mean loss of the last hundred.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=setting.learning_rate)
    start = time.process_time()
    losses = list[float]()
    model.train()
    levels = setting.task.trained
    for done in range(setting.updates):
        number = (seed * 10_000_019 + done) % 2**63
        torch.manual_seed(number)
        rate = min(
            1.0,
            (done + 1) / min(_RISE, setting.updates),
            (setting.updates - done) / (_FALL * setting.updates),
        )
        for group in optimizer.param_groups:
            group["lr"] = setting.learning_rate * rate
        # The harder, the more often: it takes longer to learn.
        level = levels[int(torch.tensor(levels, dtype=torch.float).multinomial(1))]
        problems = setting.task.draw(level, setting.batch_size, number)
        with torch.autocast("cpu", torch.bfloat16, enabled=setting.bf16):
            loss = model(problems.inputs, labels=problems.labels).loss
        assert loss is not None  # there are labels
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
        advance()
    model.train(False)
    last = losses[-100:]
    seconds = round(time.process_time() - start, 1)
    return {"updates": setting.updates, "seconds": seconds, "last_loss": sum(last) / len(last)}


def _convolution(inputs: int, outputs: int, dims: int) -> nn.Module:
    return (nn.Conv1d, nn.Conv2d)[dims - 1](inputs, outputs, 3, padding=1, bias=False)
