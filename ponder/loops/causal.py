"""Greedy generation with halting per token, and a cache with a slot for every pass.

In a causal loop a token is not changed by those behind it, so that its states may be kept. At pass
n a token attends to the keys and values of h_{n−1} of itself and of every token before it. One that
halted at step m < n − 1 keeps h_m, so that its slots from m + 1 on are all those of h_m:

    slot n of a token:  keys and values of h_{n−1} for n ≤ m,  of h_m for n > m

A new token runs pass after pass until it halts, and fills its slots. The result is that of
computing everything anew for every token, with halted positions frozen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ponder._utils.checks import check_int, check_type
from ponder.errors import ArgumentError
from ponder.loops.blocks import Block
from ponder.loops.loop import Loop
from ponder.loops.slots import run
from ponder.policies import ExitPolicy

__all__ = ["Generated", "greedy"]


@dataclass(frozen=True, eq=False)
class Generated:
    """Tokens and the steps that each took.

    Args:
        tokens: The prompt and the new tokens, `(batch, length)` long.
        exit_step: The exit step of each token that was read, `(batch, length − 1)` long: the last
            was only written.
    """

    tokens: Tensor
    exit_step: Tensor


@torch.no_grad()
def greedy(
    loop: Loop,
    embed: Callable[[Tensor, Tensor], Tensor],
    prompt: Tensor,
    *,
    new_tokens: int,
    max_steps: int,
    policy: ExitPolicy | None = None,
) -> Generated:
    """Append the most probable token repeatedly; each token is computed once, to its exit.

    Args:
        loop: A loop of a causal `Block`, with halted positions frozen, in evaluation mode.
        embed: Tokens and their positions, `(batch, some)` long each, to states `(batch, some,
            width)`.
        prompt: The first tokens, `(batch, length)` long, as many in every row.
        new_tokens: How many tokens are appended, ≥ 1.
        max_steps: The number of passes after which a token exits.
        policy: An exit policy instead of the loop's own.

    Raises:
        ArgumentError: The loop has another step, or another rule for halted positions.

    Example:
        >>> block = ponder.loops.Block(8, heads=2, causal=True)
        >>> loop = ponder.loops.Loop(block, nn.Linear(8, 20)).eval()
        >>> table, prompt = nn.Embedding(20, 8), torch.zeros(2, 3, dtype=torch.long)
        >>> def embed(tokens, places):
        ...     return table(tokens)
        >>> made = ponder.loops.greedy(loop, embed, prompt, new_tokens=4, max_steps=3)
        >>> made.tokens.shape, made.exit_step.shape
        (torch.Size([2, 7]), torch.Size([2, 6]))
    """
    check_int("new_tokens", new_tokens)
    check_type("step of the loop", loop.step, Block)
    block: Block = loop.step  # type: ignore[assignment]
    if not block.causal or loop.halted != "frozen":
        expected = "a causal block with halted='frozen'"
        got = f"{loop.halted=}, {block.causal=}"
        remedy = "Build ponder.loops.Loop(Block(…, causal=True), …)."
        raise ArgumentError("loop", expected=expected, got=got, remedy=remedy)
    batch, read = prompt.shape
    length = read + new_tokens - 1
    width = block.key_value.out_features
    slots = _Slots(block, prompt.new_zeros(batch, max_steps, length, width, dtype=_dtype(block)))
    rows = torch.arange(batch, device=prompt.device)
    one = Loop(slots, loop.head, loop.lambda_head, readout=loop.readout, task=loop.task)
    tokens = prompt
    exits: list[Tensor] = []
    for place in range(length):
        slots.place = place
        states = embed(tokens[:, place : place + 1], torch.full_like(rows, place)[:, None])
        decider = loop.decider(policy, max_steps, states)
        context = {"row": rows}
        out = run(one, decider, states, context, mask=None, number=rows, row_ids=rows, first=place)
        slots.fill(out.hidden[:, 0], out.exit_step[:, 0])
        exits.append(out.exit_step)
        if place + 1 >= read:
            tokens = torch.cat([tokens, out.outputs.argmax(-1)], dim=1)
    return Generated(tokens, torch.cat(exits, dim=1))


class _Slots(nn.Module):
    """A block that runs one token of each row; `slots` hold the keys and values of all passes.

    They are `(batch, passes, length, 2 · width)`.
    """

    def __init__(self, block: Block, slots: Tensor) -> None:
        super().__init__()
        self.block = block
        self.slots = slots
        self.place = 0

    def forward(self, hidden: Tensor, row: Tensor, index: Tensor) -> Tensor:
        """Return the states of the tokens at `place` of the rows `row` after pass `index`."""
        normed = self.block.norm(hidden)
        self.slots[row, index - 1, self.place] = self.block.key_value(normed)[:, 0]
        before = self.slots[row, index - 1, : self.place + 1]
        hidden = hidden + self.block.attend(self.block.query(normed), before, None)
        states: Tensor = hidden + self.block.feed_forward(hidden)
        return states

    def fill(self, states: Tensor, exit_step: Tensor) -> None:
        """Give later passes the keys and values of halted tokens' states, `(batch, width)`."""
        kept = self.block.keys_and_values(states)
        passes = torch.arange(self.slots.shape[1], device=states.device)
        later = passes >= exit_step[:, None]
        own = self.slots[:, :, self.place]
        self.slots[:, :, self.place] = torch.where(later[..., None], kept[:, None], own)


def _dtype(block: Block) -> torch.dtype:
    return block.key_value.weight.dtype
