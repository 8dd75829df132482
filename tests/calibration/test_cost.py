"""FLOPs of the parts against multiplication by hand, and speed-ups."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import ponder
from ponder.calibration import cost
from ponder.policies import FixedStep


def model(lambda_head: Any = None) -> ponder.PonderWrapper:
    heads = [nn.Linear(8, 3), nn.Linear(8, 3), nn.Sequential(nn.Linear(8, 5), nn.Linear(5, 3))]
    return ponder.PonderWrapper(
        [nn.Linear(8, 8), nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 8))],
        stem=nn.Linear(4, 8),
        head=ponder.PerStep(heads),
        lambda_head=lambda_head,
    )


PARTS = {
    "stem": 64.0,
    "steps": (128.0, 128.0, 192.0),
    "readouts": (0.0,) * 3,
    "heads": (48.0, 48.0, 110.0),
}


@pytest.mark.parametrize(
    ("lambda_head", "flops"),
    [
        (None, 0.0),
        (ponder.LambdaHead(8), 16.0),
        (ponder.LambdaHead(8, layers=2, history=2), 2 * (16 * 8 + 8)),
    ],
)
def test_parts_are_what_multiplication_by_hand_gives(lambda_head: Any, flops: float) -> None:
    made = model(lambda_head).train()
    found = cost.measure(made, torch.randn(5, 4))
    assert vars(found) == {**PARTS, "lambda_head": flops, "first_readout": 0.0}
    assert made.training
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in made.modules())


def test_exits_cost_what_a_run_to_them_costs() -> None:
    made = model(ponder.LambdaHead(8)).eval()
    inputs = torch.randn(1, 4)
    found = cost.measure(made, inputs)
    for n in (1, 2, 3):
        with torch.utils.flop_counter.FlopCounterMode(display=False) as counter, torch.no_grad():
            made(inputs, policy=FixedStep(n))
        assert found.exits(())[n - 1] == counter.get_total_flops()
    assert found.exits({"output"}).tolist() == [240.0, 416.0, 718.0]
    assert found.exits({"output", "hazard"}).tolist() == [256.0, 448.0, 750.0]
    assert found.cumulative(())[-1] == 1.0
    assert found.plain == 622.0


def test_a_readout_is_counted_apart_from_the_heads_that_read_it() -> None:
    def wide(hidden: torch.Tensor) -> torch.Tensor:
        return hidden @ torch.ones(8, 8)

    made = ponder.PonderWrapper(
        [nn.Linear(8, 8)] * 3, readout=wide, head=nn.Linear(8, 3), lambda_head=ponder.LambdaHead(8)
    )
    found = cost.measure(made, torch.randn(2, 8))
    assert (found.steps, found.readouts, found.heads) == ((128.0,) * 3, (128.0,) * 3, (48.0,) * 3)
    assert (found.lambda_head, found.plain) == (16.0, 3 * 128.0 + 128.0 + 48.0)
    assert found.exits(()).tolist() == [304.0, 432.0, 560.0]
    assert found.exits({"hazard"}).tolist() == [320.0, 592.0, 848.0]


def test_one_step_has_no_exits() -> None:
    found = cost.measure(
        ponder.PonderWrapper(nn.Linear(8, 8), 1, head=nn.Linear(8, 3)), torch.randn(5, 8)
    )
    assert (found.steps, found.heads, found.plain) == ((128.0,), (48.0,), 176.0)


def test_transformer_layers_are_counted_unfused() -> None:
    layers = [nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(2)]
    made = ponder.PonderWrapper(layers, readout=ponder.readouts.mean, head=nn.Linear(8, 3)).eval()
    found = cost.measure(made, torch.randn(1, 6, 8))
    linear = 2 * 6 * (8 * 24 + 8 * 8 + 2 * 8 * 16)
    assert found.steps == (linear + 2 * 2 * 6 * 6 * 8,) * 2


def test_costs_serve_sweeps(capsys: Any) -> None:
    made = model()
    run = made.eval().unroll(torch.randn(64, 4), labels=torch.randint(3, (64,)))
    found = cost.measure(made, torch.randn(1, 4))
    curve = run.sweep(ponder.policies.Confidence, costs=found.cumulative, full_cost=1.0)
    for point in curve.points:
        exits = run.exit_steps(ponder.policies.Confidence(point.threshold))
        assert point.cost == pytest.approx(found.cumulative({"output"})[exits - 1].mean())
    assert curve.full_depth.cost == 1.0
    by_hand = len(exits) * found.plain / found.exits({"output"})[exits - 1].sum()
    told = cost.speed_up(torch.as_tensor(exits), 3, costs=found, needs={"output"})
    assert (told.steps, told.flops) == (pytest.approx(3 / exits.mean()), pytest.approx(by_hand))
    assert cost.speed_up(exits, 3, costs=[found] * 64, needs={"output"}) == told


def test_break_even_is_where_the_lines_cross() -> None:
    made = cost.Breakdown(2.0, (10.0,) * 4, (0.0,) * 4, (2.0,) * 4)
    at = made.break_even({"output"})
    assert np.interp(at, [1, 2, 3, 4], made.exits({"output"})) == made.plain
    assert made.break_even(()) == 4.0
    relative = made.cumulative(
        {"output"}
    )  # with an early head at every step, the last exit costs more than 1
    np.testing.assert_allclose(relative * made.plain, made.exits({"output"}))
    assert relative[-1] > 1


def test_seconds_are_ratios_of_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(
        np.cumsum([0, 3, 0, 1, 0, 1, 0, 4, 0, 2, 0, 1]).tolist()
    )  # plain 3, wrapped 1; swapped: 1, 4; 2, 1
    monkeypatch.setattr(cost.seconds, "__defaults__", (1, lambda: next(clock)))
    calls: list[str] = []
    found = cost.wall_clock(
        lambda: calls.append("plain"), lambda: calls.append("exits"), pairs=3, warm_up=1
    )
    assert found == cost.WallClock(median=3.0, low=2.0, high=4.0)
    assert calls == ["plain", "exits"] * 2 + ["exits", "plain"] + ["plain", "exits"]
