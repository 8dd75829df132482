"""A step of several layers keeps the keys and values of each layer as they were in the first pass after halting."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from ponder import policies
from ponder.loops import Block, Loop, Problem, Stack
from tests.loops.models import (
    CLASSES,
    HEADS,
    POLICIES,
    WIDTH,
    albert_layer,
    encoder_layer,
    make_batch,
)

MAX_STEPS = 6


def stack_loop(layers: int = 3, halted: str = "frozen") -> Loop:
    torch.manual_seed(0)
    stack = Stack([Block(WIDTH, HEADS) for _ in range(layers)])
    return Loop(stack, nn.Linear(WIDTH, CLASSES), nn.Linear(WIDTH, 1), halted=halted).eval()  # type: ignore[arg-type]


@torch.no_grad()
def by_definition(blocks: Sequence[Block], hidden: Tensor, exits: Tensor) -> Tensor:
    """The states of one row, `(length, width)`, all computed, with keys and values of each layer by the rule."""
    states = hidden[None]
    caches: list[Tensor | None] = [None] * len(blocks)
    for step in range(1, int(exits.max()) + 1):
        now = states
        renews = (step <= exits + 1)[None, :, None]
        for number, block in enumerate(blocks):
            fresh = block.keys_and_values(now)
            cache = caches[number]
            cache = fresh if cache is None else torch.where(renews, fresh, cache)
            caches[number] = cache
            now = now + block.attend(block.query(block.norm(now)), cache, None)
            now = now + block.feed_forward(now)
        states = torch.where((step <= exits)[None, :, None], now, states)
    return states[0]


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_a_run_of_a_stack_is_its_definition(policy: policies.ExitPolicy, layers: int) -> None:
    loop = stack_loop(layers)
    lengths = (5, 3, 5, 1)
    hidden, mask = make_batch(lengths)
    with torch.no_grad():
        out = loop(hidden, max_steps=MAX_STEPS, attention_mask=mask, policy=policy)
    for row, length in enumerate(lengths):
        exits = out.exit_step[row, :length]
        expected = by_definition(list(loop.step.layers), hidden[row, :length], exits)
        torch.testing.assert_close(out.hidden[row, :length], expected, atol=1e-5, rtol=1e-5)
        outputs = loop.head(expected)
        torch.testing.assert_close(out.outputs[row, :length], outputs, atol=1e-5, rtol=1e-5)


def test_only_what_runs_is_computed_in_the_last_layer() -> None:
    loop = stack_loop()
    hidden, _ = make_batch((5, 5, 5, 5))
    counts = [0, 0, 0]

    def counter(number: int) -> object:
        def hook(module: object, args: tuple[Tensor, ...], out: Tensor) -> None:
            counts[number] += out[..., 0].numel()

        return hook

    for number, layer in enumerate(loop.step.layers):
        layer.feed_forward.register_forward_hook(counter(number))
    with torch.no_grad():
        out = loop(hidden, max_steps=MAX_STEPS, policy=policies.Quantile(0.6))
    assert out.exit_step.unique().numel() > 2
    assert counts[2] == out.position_steps
    # Those that have just halted go through the layers before once more.
    assert out.position_steps <= counts[0] <= out.position_steps + 20
    assert counts[1] == counts[0]


@pytest.mark.parametrize("halted", ["frozen", "hidden"])
def test_a_stack_in_slots_answers_as_in_a_batch(halted: str) -> None:
    loop = stack_loop(halted=halted)
    lengths = (5, 3, 5, 1, 4, 5, 2, 5)
    hidden, mask = make_batch(lengths)
    policy = policies.Quantile(0.6)
    with torch.no_grad():
        whole = loop(hidden, max_steps=MAX_STEPS, attention_mask=mask, policy=policy)
    problems = [Problem(row, attention_mask=real) for row, real in zip(hidden, mask, strict=True)]
    for answer in loop.carry(problems, max_steps=MAX_STEPS, slots=3, policy=policy):
        assert answer.exit_step.tolist() == whole.exit_step[answer.number].tolist()
        real = mask[answer.number]
        outputs = whole.outputs[answer.number][real]
        torch.testing.assert_close(answer.outputs[real], outputs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layer", [albert_layer, encoder_layer], ids=["albert", "encoder"])
def test_layers_that_others_wrote_stack(layer: object) -> None:
    torch.manual_seed(0)
    stack = Stack([layer(), layer()])  # type: ignore[operator]
    loop = Loop(stack, nn.Linear(WIDTH, CLASSES), nn.Linear(WIDTH, 1)).eval()
    assert loop.runs_positions
    hidden, mask = make_batch()
    with torch.no_grad():
        last = loop(hidden, max_steps=3, attention_mask=mask, policy=policies.LastStep())
        plain = hidden
        for _ in range(3):
            plain = stack(plain, mask)
        out = loop(hidden, max_steps=MAX_STEPS, attention_mask=mask, policy=policies.Quantile(0.6))
    assert torch.equal(last.hidden, plain)
    first = out.exit_step == 1
    assert out.exit_step[mask].unique().numel() > 1
    torch.testing.assert_close(out.hidden[first], stack(hidden, mask)[first].detach())
