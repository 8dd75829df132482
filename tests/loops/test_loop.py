"""A run per position equals its definition, for every policy, step, kind of halting and padding."""

from __future__ import annotations

import pytest
import torch

from ponder import policies
from tests.loops.models import POLICIES, STEPS, make_batch, make_loop
from tests.loops.reference import run_row

MAX_STEPS = 6


@pytest.mark.parametrize("halted", ["frozen", "hidden"])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_run_is_its_definition(policy: policies.ExitPolicy, step: str, halted: str) -> None:
    loop = make_loop(step, halted)
    lengths = (5, 3, 5, 1)
    hidden, mask = make_batch(lengths)
    with torch.no_grad():
        out = loop(hidden, max_steps=MAX_STEPS, attention_mask=mask.long(), policy=policy)
    for row, length in enumerate(lengths):
        expected = run_row(
            loop.step,
            loop.head,
            loop.lambda_head,
            policy,
            hidden[row, :length],
            MAX_STEPS,
            row_id=row,
            halted=halted,
        )
        assert out.exit_step[row, :length].tolist() == expected.exit_step.tolist()
        torch.testing.assert_close(
            out.outputs[row, :length], expected.outputs, atol=1e-5, rtol=1e-5
        )
        torch.testing.assert_close(out.hidden[row, :length], expected.hidden, atol=1e-5, rtol=1e-5)
        assert not out.exit_step[row, length:].any()
        assert not out.outputs[row, length:].any()


def test_policies_of_the_matrix_halt_positions_at_different_steps() -> None:
    hidden, mask = make_batch()
    same = set()
    for name, policy in POLICIES.items():
        loop = make_loop()
        steps = loop(hidden, max_steps=MAX_STEPS, attention_mask=mask, policy=policy).exit_step
        if len(set(steps[mask].tolist())) == 1:
            same.add(name)
    assert same <= {"fixed", "last"}


@pytest.mark.parametrize("step", STEPS)
def test_full_depth_is_the_plain_loop_bit_for_bit(step: str) -> None:
    loop = make_loop(step)
    hidden, _ = make_batch((5, 5, 5))
    with torch.no_grad():
        out = loop(hidden, max_steps=MAX_STEPS, policy=policies.LastStep())
        for _ in range(MAX_STEPS):
            hidden = loop.step(hidden)
        assert torch.equal(out.hidden, hidden)
        assert torch.equal(out.outputs, loop.head(hidden))
