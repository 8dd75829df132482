"""A looped solver with attention: one step, applied again and again, that reads the problem again at every step.

The state of a position is a pair in one tensor, [what was thought | the problem], `(batch, length, 2 · width)`, so that
the problem goes along wherever a position goes (recall; Bansal et al. 2022, arXiv 2202.05826). Three heads read the
first half: the answer, the halting unit (PonderNet's hazard or ACT's unit), and the Q-head, which says whether the
answer is right (as in HRM, arXiv 2506.21734, and TRM, arXiv 2510.04871).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.loops.tasks import Task
from ponder import objectives
from ponder.loops import Loop, Places
from ponder.loops.loop import LoopOutput

__all__ = ["LoopedStep", "MeanStep", "RowSolver", "RowStep", "Slice", "Solver"]

HEADS = 4
_NEAR = 2.0  # of a head's own relation at first
_SHARP = 4.0  # so that attention to one neighbour alone is a few hundred updates away


class Block(nn.Module):
    """Attention and a network of two layers, each with a norm behind it; relations of positions bias attention."""

    mask: Tensor
    relations: Tensor

    def __init__(self, width: int, relations: Tensor, causal: bool) -> None:
        super().__init__()
        self.query, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.bias = nn.Parameter(torch.randn(HEADS, int(relations.max()) + 1))
        self.register_buffer("relations", relations, persistent=False)
        mask = torch.zeros(relations.shape)
        if causal:
            mask = mask.masked_fill(torch.ones(relations.shape).triu(1).bool(), -math.inf)
        self.register_buffer("mask", mask, persistent=False)

    def biases(self) -> Tensor:
        """Return what is added to the scores of attention, `(heads, length, length)`."""
        return _SHARP * self.bias[:, self.relations] + self.mask

    def biases_at(self, places: Places) -> Tensor:
        """Return the biases of some places, laid out by row, `(batch, heads, some, length)`."""
        of_query = self.biases().transpose(0, 1).contiguous()
        position = places.pad(places.position)
        chosen = of_query.index_select(0, position.flatten())
        by_row: Tensor = chosen.unflatten(0, position.shape)
        return by_row.transpose(1, 2)

    def keys_and_values(self, hidden: Tensor) -> Tensor:
        """Return keys and values, `(…, 2 · width)`."""
        keys_and_values: Tensor = self.key_value(hidden)
        return keys_and_values

    def forward(self, hidden: Tensor, kept: Tensor, biases: Tensor) -> Tensor:
        """Return the new states of some positions.

        Args:
            hidden: States of these positions, `(batch, some, width)`.
            kept: Keys and values of all positions, `(batch, length, 2 · width)`.
            biases: Biases of these positions, `(heads, some, length)`, or with the batch first.
        """
        return self.mix(hidden, self.attend(self.query(hidden), kept, biases))

    def at(self, hidden: Tensor, kept: Tensor, biases: Tensor, places: Places) -> Tensor:
        """Return the new states `(running, width)` of some places, of which `biases` are laid out by row."""
        mixed = self.attend(places.pad(self.query(hidden)), kept, biases)
        return self.mix(hidden, places.unpad(mixed))

    def attend(self, query: Tensor, kept: Tensor, biases: Tensor) -> Tensor:
        """Return what queries, `(batch, some, width)`, read of keys and values."""
        query, key, value = (_split(each) for each in (query, *kept.chunk(2, dim=-1)))
        mixed = F.scaled_dot_product_attention(query, key, value, biases)
        return mixed.transpose(1, 2).flatten(2)

    def mix(self, hidden: Tensor, mixed: Tensor) -> Tensor:
        """Return the new states from the old and what attention read, `(…, width)`."""
        hidden = self.norms[0](hidden + self.out(mixed))
        new: Tensor = self.norms[1](hidden + self.down(F.gelu(self.up(hidden))))
        return new


def _split(states: Tensor) -> Tensor:
    split: Tensor = states.unflatten(-1, (HEADS, -1))
    return split.transpose(1, 2)


class LoopedStep(nn.Module):
    """One step of the loop: one block, or several after one another."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        relations = task.relations()
        self.blocks = nn.ModuleList(
            Block(task.width, relations, task.causal) for _ in range(task.layers)
        )

    def forward(self, state: Tensor) -> Tensor:
        """Return the next state of all positions, `(batch, length, 2 · width)`."""
        hidden = _recalled(state)
        for block in self.attention_blocks():
            hidden = block(hidden, block.keys_and_values(hidden), block.biases())
        return torch.cat([hidden, state[..., hidden.shape[-1] :]], dim=-1)

    def attention_blocks(self) -> list[Block]:
        """Return the blocks in their order."""
        return [block for block in self.blocks if isinstance(block, Block)]

    def positions(
        self, state: Tensor, places: Places, kept: Sequence[Tensor] | None
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the next states of the running positions, and the keys and values of all, those of each block.

        The blocks before the last also run positions that have just halted, of which the next block reads keys and
        values that are not there yet; from then on these stay what they are.
        """
        hidden = state
        read: Callable[[Tensor], Tensor] = _recalled
        renewed: list[Tensor] = []
        for number, block in enumerate(self.attention_blocks()):
            last = number == len(self.blocks) - 1
            at = places if last else _changed(places)
            old = None if kept is None else kept[number]
            make = _after(read, block.keys_and_values)
            renewed.append(places.renew(old, make, hidden))
            new = block.at(read(at.take(hidden)), renewed[-1], block.biases_at(at), at)
            if not last:
                hidden = at.put(torch.zeros_like(state[..., : new.shape[-1]]), new)
                read = _as_it_is
        return torch.cat([new, places.take(state)[..., new.shape[-1] :]], dim=-1), renewed


def _recalled(state: Tensor) -> Tensor:
    """Return what the first block reads: the thought and the problem."""
    thought, problem = state.chunk(2, dim=-1)
    return thought + problem


def _as_it_is(states: Tensor) -> Tensor:
    return states


def _after(
    first: Callable[[Tensor], Tensor], second: Callable[[Tensor], Tensor]
) -> Callable[[Tensor], Tensor]:
    """Return the one function after the other."""
    return lambda states: second(first(states))


def _changed(places: Places) -> Places:
    """Return the positions whose states have changed, as places."""
    flat = places.changed
    if flat is None:
        flat = torch.arange(places.rows * places.length, device=places.flat.device)
    return Places(places.rows, places.length, flat, places.changed, places.visible)


class Solver(nn.Module):
    """The stem, the step and the heads of one task."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task = task
        self.stem = nn.Linear(task.features, task.width)
        self.step = LoopedStep(task)
        self.head = nn.Linear(task.width, task.classes)
        self.gate = nn.Linear(task.width, 1)
        self.quality = nn.Linear(task.width, 1)
        nn.init.constant_(self.gate.bias, -2.0)  # a deep start: a hazard of about 0.1
        if task.neighbours:
            for block in self.step.attention_blocks():
                with torch.no_grad():
                    nn.init.eye_(block.bias).mul_(_NEAR)

    def start(self, inputs: Tensor) -> Tensor:
        """Return the first state of problems, `(batch, length, 2 · width)`."""
        problem = self.stem(inputs)
        return torch.cat([torch.zeros_like(problem), problem], dim=-1)

    def thought(self, state: Tensor) -> Tensor:
        """Return what the heads read of a state, `(…, width)`."""
        return state[..., : self.task.width]

    def forward(self, inputs: Tensor, warm_up: int, steps: int, bar: float | None = None) -> Tensor:
        """Return the thoughts of `steps` steps after a warm-up without gradient, `(batch, steps, length, width)`.

        Args:
            inputs: Features of problems.
            warm_up: Steps without a gradient.
            steps: Steps that follow.
            bar: Confidence above which a position keeps its state from then on, as at inference; None for none.
        """
        state = self.start(inputs)
        frozen = torch.zeros(state.shape[:2], dtype=torch.bool)
        thoughts = []
        for step in range(warm_up + steps):
            with torch.set_grad_enabled(step >= warm_up and torch.is_grad_enabled()):
                new = self.step(state)
            if bar is None:
                state = new
            else:
                state = torch.where(frozen.unsqueeze(-1), state, new)
                with torch.no_grad():
                    sure = self.head(self.thought(state)).softmax(-1).amax(-1)
                frozen = frozen | (sure > bar)
            if step >= warm_up:
                thoughts.append(self.thought(state))
        return torch.stack(thoughts, dim=1)


class MeanStep(nn.Module):
    """A step that carries ACT's mean state: at each position, the answer if it halted now (Graves 2016, Section 2).

    With halting units h_n and A_n = h_1 + … + h_n, the state is [s_n | the problem | a_n | m_n | A_n], where
    a_n = m_{n−1} + (1 − A_{n−1}) s_n is the mean state if step n were the last, and m_n = m_{n−1} + h_n s_n. A
    position at which A_{n−1} ≥ 1 − ε has halted, and keeps a. The head is linear, so that the output of the mean
    state is the mean of the outputs, which `objectives.ACT` trains.

    Args:
        step: The step around which the mean is carried.
        gate: From a thought to the logit of the halting unit, `(…, width)` → `(…, 1)` or `(…,)`.
        epsilon: ε, as in training.
    """

    def __init__(self, step: LoopedStep, gate: nn.Module, epsilon: float = 0.01) -> None:
        super().__init__()
        self.step, self.gate, self.epsilon = step, gate, epsilon

    def start(self, state: Tensor) -> Tensor:
        """Return the first state from that of the step inside, `(batch, length, 4 · width + 1)`."""
        zeros = torch.zeros_like(state)
        return torch.cat([state, zeros, zeros[..., :1]], dim=-1)

    def forward(self, state: Tensor) -> Tensor:
        """Return the next state of all positions."""
        width = self.width_of(state)
        return self.mean(self.step(state[..., : 2 * width]), state)

    def positions(
        self, state: Tensor, places: Places, kept: Sequence[Tensor] | None
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the next states of the running positions, and what the step inside keeps of all."""
        inner, kept = self.step.positions(state[..., : 2 * self.width_of(state)], places, kept)
        return self.mean(inner, places.take(state)), kept

    def mean(self, inner: Tensor, state: Tensor) -> Tensor:
        """Return the new state from the new state of the step inside and the old state of the same positions."""
        width = self.width_of(state)
        thought = inner[..., :width]
        old = state[..., 2 * width : 3 * width]
        mean = state[..., 3 * width : 4 * width]
        spent = state[..., -1:]
        unit = self.gate(thought).reshape(spent.shape).sigmoid()
        runs = spent < 1.0 - self.epsilon
        answer = torch.where(runs, mean + (1.0 - spent) * thought, old)
        return torch.cat([inner, answer, mean + unit * thought, spent + unit], dim=-1)

    @staticmethod
    def width_of(state: Tensor) -> int:
        """Return the width of a thought."""
        return state.shape[-1] // 4


class RowStep(nn.Module):
    """A step that carries the logit of a Q-head, which reads the mean thought of a whole problem.

    The state is [s_n | the problem | q_n], with the same q_n at each position, so that the positions of a problem halt
    together.
    """

    def __init__(self, solver: Solver) -> None:
        super().__init__()
        self.step = solver.step
        self.quality = RowMean(solver.quality)

    def start(self, state: Tensor) -> Tensor:
        """Return the first state from that of the step inside, `(batch, length, 2 · width + 1)`."""
        return torch.cat([state, torch.zeros_like(state[..., :1])], dim=-1)

    def forward(self, state: Tensor) -> Tensor:
        """Return the next state of all positions."""
        inner = self.step(state[..., :-1])
        logit = self.quality(inner[..., : inner.shape[-1] // 2])
        return torch.cat([inner, logit[:, None, None].expand_as(state[..., :1])], dim=-1)


class RowMean(nn.Module):
    """A head that reads the mean of the positions of a problem."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, thoughts: Tensor) -> Tensor:
        """Return logits, `(batch,)`, of thoughts `(batch, length, width)`."""
        logits: Tensor = self.head(thoughts.mean(1)).squeeze(-1)
        return logits


class _ProblemStep(nn.Module):
    """The looped step on thoughts, with the problem as an argument, which gets a gradient at every step."""

    def __init__(self, step: LoopedStep) -> None:
        super().__init__()
        self.step = step

    def forward(self, thought: Tensor, problem: Tensor) -> Tensor:
        """Return the next thoughts, `(batch, length, width)`."""
        state: Tensor = self.step(torch.cat([thought, problem], dim=-1))
        return state[..., : thought.shape[-1]]


class RowSolver(nn.Module):
    """A solver in training with the objective of HRM and TRM: a whole problem halts, and its state is carried."""

    def __init__(self, solver: Solver) -> None:
        super().__init__()
        self.solver = solver
        step = _ProblemStep(solver.step)
        self.loop = Loop(step, solver.head, RowMean(solver.quality), halted="together")

    def forward(self, inputs: Tensor, labels: Tensor | None = None) -> LoopOutput:
        """Return the loop's output; `inputs` are features of problems, `(batch, length, features)`."""
        problem = self.solver.stem(inputs)
        return self.loop(
            torch.zeros_like(problem),
            problem=problem,
            max_steps=self.solver.task.num_steps,
            labels=labels,
            objective=objectives.AllRight(),
        )


class Slice(nn.Module):
    """A head that reads a part of the state."""

    def __init__(self, head: nn.Module, start: int, stop: int) -> None:
        super().__init__()
        self.head = head
        self.start = start
        self.stop = stop

    def forward(self, state: Tensor) -> Tensor:
        """Return the outputs of the head."""
        outputs: Tensor = self.head(state[..., self.start : self.stop])
        return outputs
