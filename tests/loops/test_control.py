"""Promises about runs: each threshold is run, the walk stops at the first that fails, and the promise is kept."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ponder import policies
from ponder.errors import ArgumentError
from ponder.loops import Block, Loop, control_risk
from tests.loops.models import WIDTH, make_loop

MAX_STEPS = 5
THRESHOLDS = [0.95, 0.6, 0.5, 0.42, 0.36]


def batch(rows: int, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 7, (rows,), generator=generator)
    hidden = torch.randn(rows, 6, WIDTH, generator=generator)
    return {"hidden": hidden, "attention_mask": torch.arange(6) < lengths[:, None]}


def losses(loop: Loop, policy: policies.ExitPolicy, call: dict[str, torch.Tensor]) -> torch.Tensor:
    """Whether each real position has another answer than at full depth, as nested lists."""
    with torch.no_grad():
        run = loop(**call, max_steps=MAX_STEPS, policy=policy).outputs.argmax(-1)
        full = loop(**call, max_steps=MAX_STEPS, policy=policies.LastStep()).outputs.argmax(-1)
    return (run != full) & call["attention_mask"]


@pytest.mark.parametrize("risk", ["sequence", "position"])
def test_the_walk_and_its_numbers(risk: str) -> None:
    loop = make_loop()
    calls = [batch(150, 0), batch(150, 1)]
    found = control_risk(
        loop, calls, policies.Confidence, THRESHOLDS, max_steps=MAX_STEPS, risk=risk, level=0.15
    )
    for value, observed, _ in found.certificate.path:
        each = []
        for call in calls:
            differ = losses(loop, policies.Confidence(value), call)
            count = call["attention_mask"].sum(1)
            each.append(differ.any(1) if risk == "sequence" else differ.sum(1) / count)
        assert observed == pytest.approx(float(torch.cat(each).double().mean()), abs=1e-6)
    assert found.met
    assert [value for value, *_ in found.certificate.path] == THRESHOLDS[
        : len(found.certificate.path)
    ]
    assert all(p_value <= 0.05 for *_, p_value in found.certificate.path[:-1])
    assert found.certificate.threshold_value in THRESHOLDS
    assert 0 < found.steps_saved < 1
    change = {
        "sequence": ": another answer than at full depth at some position on at most 15% of rows",
        "position": ": a mean share of positions with another answer than at full depth of at most",
    }[risk]
    assert found.statement.startswith("Halt each position at the first step with a confidence")
    assert change in found.statement
    assert loop(**calls[0], max_steps=MAX_STEPS, policy=found.policy).exit_step.max() <= MAX_STEPS
    with pytest.raises(ArgumentError, match="certified for"):
        loop(**calls[0], max_steps=MAX_STEPS + 1, policy=found.policy)


def test_no_run_after_the_first_that_fails() -> None:
    torch.manual_seed(0)
    loop = Loop(Block(WIDTH, 2), nn.Linear(WIDTH, 3)).eval()
    asked: list[float] = []

    def early(value: float) -> policies.ExitPolicy:
        asked.append(value)
        return policies.Confidence(0.0)

    found = control_risk(loop, [batch(100, 2)], early, [3, 2, 1], max_steps=MAX_STEPS, level=0.01)
    assert not found.met
    assert set(asked) == {3}
    assert isinstance(found.policy.policy, policies.LastStep)
    assert found.statement.startswith("No promise of another answer")
    assert found.steps_saved == 0
