"""Costs: closed formulas, the FLOPs of real calls, true lengths, break-even, and three named speed-ups."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ponder
from ponder import readouts
from ponder.analysis.sweeps import measure as measure_policy
from ponder.cost import Cost, SpeedUp, WallClock, break_even, measure, measure_each, speed, speed_up, wall_clock
from ponder.cost.flops import counted
from ponder.errors import PonderError
from ponder.parts.padding import Padding
from ponder.policies import Entropy, ExitPolicy, LastStep
from ponder.testing.snapshot import differences, snapshot
from tests.ponder.checks import refused
from tests.toys import NUM_STEPS, TOYS, make_toy, wrap

NEEDS = [
    frozenset(chosen) for size in range(4) for chosen in itertools.combinations(("features", "hazard", "output"), size)
]
CONTEXT = frozenset({"context"})


def linear(rows: int, inputs: int, outputs: int) -> int:
    """A matrix product is 2mnk; adding the bias is not counted."""
    return 2 * rows * inputs * outputs


def encoder_layer(length: int, width: int, inner: int) -> int:
    """Four projections, two feed-forward products, and attention: QKᵀ and its product with V."""
    return 4 * linear(length, width, width) + 2 * linear(length, width, inner) + 4 * length**2 * width


def reader(reads: frozenset[str], exit_at: int) -> ExitPolicy:
    """A policy that reads `reads` at every step, and exits at `exit_at`."""

    @dataclass(frozen=True)
    class Reader(ExitPolicy):
        needs = reads

        def decide(self, step: Any, state: Any) -> tuple[Tensor, Any]:
            return step.index >= exit_at, state

    return Reader()


def linear_model(**overrides: Any) -> Any:
    arguments = {"head": nn.Linear(8, 3), "lambda_head": ponder.LambdaHead(8, layers=2, history=2), **overrides}
    return ponder.PonderWrapper(nn.Linear(8, 8), 4, stem=nn.Linear(5, 8), **arguments)


# Measuring


def test_linear_parts_are_as_the_formulas_say() -> None:
    measured = measure(linear_model(), torch.randn(7, 5))
    assert measured == Cost(
        stem=linear(1, 5, 8),
        steps=(linear(1, 8, 8),) * 4,
        readouts=(0,) * 4,
        heads=(linear(1, 8, 3),) * 4,
        lambda_head=linear(1, 16, 8) + linear(1, 8, 1),
    )
    assert measured.head == 48
    assert measured.readout == 0
    assert measured.plain == 80 + 4 * 128 + 48


def test_a_head_for_each_step_is_counted_step_by_step() -> None:
    heads = [nn.Linear(8, 3), nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 3))]
    measured = measure(ponder.PonderWrapper(nn.Linear(8, 8), 2, head=ponder.PerStep(heads)), torch.randn(2, 8))
    assert measured.heads == (48, 176)
    assert measured.head == 112
    assert measured.lambda_head == 0


@pytest.mark.parametrize("masked", [False, True])
def test_encoder_layers_are_counted_although_torch_fuses_them(masked: bool) -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model = ponder.PonderWrapper(layer, 3, head=nn.Linear(16, 2), readout=readouts.first_token)
    context = {"src_key_padding_mask": torch.zeros(2, 9, dtype=torch.bool)} if masked else {}
    assert measure(model, torch.randn(2, 9, 16), **context).steps == (encoder_layer(9, 16, 32),) * 3
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize(
    ("call", "flops"),
    [
        (lambda: nn.functional.scaled_dot_product_attention(*[torch.ones(2, 3, 5, 4)] * 3), 4 * 2 * 3 * 5 * 5 * 4),
        (lambda: nn.LSTM(3, 4, batch_first=True)(torch.ones(2, 5, 3)), 2 * 5 * 2 * (3 * 16 + 4 * 16)),
        (lambda: nn.LSTM(3, 4, bidirectional=True)(torch.ones(5, 2, 3)), 2 * 2 * 5 * 2 * (3 * 16 + 4 * 16)),
        (lambda: nn.GRU(3, 4)(torch.ones(5, 2, 3)), 2 * 5 * 2 * (3 * 12 + 4 * 12)),
        (lambda: nn.Conv1d(3, 4, 3)(torch.ones(2, 3, 7)), 2 * 2 * 3 * 4 * 3 * 5),
        (lambda: torch.ones(3, 4) @ torch.ones(4), 24),
        (lambda: torch.addmv(torch.ones(3), torch.ones(3, 4), torch.ones(4)), 24),
        (lambda: torch.ones(4) @ torch.ones(4), 8),
        (lambda: torch.addbmm(torch.ones(3, 5), torch.ones(2, 3, 4), torch.ones(2, 4, 5)), 2 * 2 * 3 * 4 * 5),
        (lambda: nn.Bilinear(3, 4, 5)(torch.ones(2, 3), torch.ones(2, 4)), 2 * 2 * 3 * 4 * 5),
    ],
    ids=["attention", "lstm", "bidirectional", "gru", "convolution", "vector", "sum", "dot", "addbmm", "bilinear"],
)
@torch.inference_mode()
def test_operators_are_counted(call: Any, flops: int) -> None:
    with counted() as measured:
        call()
    assert measured.total == flops


@pytest.mark.parametrize("name", TOYS)
@torch.inference_mode()
def test_exits_cost_what_real_calls_cost(name: str) -> None:
    toy = make_toy(name)
    model = wrap(toy).eval()
    inputs, context = toy.batch(3)
    measured = measure(model, inputs, **context)
    with counted() as plain:
        model(inputs, policy=LastStep(), **context)
    assert plain.total == 3 * measured.plain
    given = {"budget": torch.ones(3)}
    for needs, step in itertools.product([*NEEDS, CONTEXT, CONTEXT | {"output"}], (1, NUM_STEPS)):
        with counted() as call:
            model(inputs, policy=reader(needs, step), policy_context=given if "context" in needs else None, **context)
        assert call.total == 3 * measured.of(needs, step).item(), (needs, step)


def test_readouts_that_multiply_are_counted_and_so_is_that_of_the_stem() -> None:
    class Pooler(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dense = nn.Linear(8, 8)

        def forward(self, hidden: Tensor) -> Tensor:
            return self.dense(hidden)

    model = linear_model(readout=Pooler()).eval()
    inputs = torch.randn(1, 5)
    measured = measure(model, inputs)
    assert measured.readout == measured.first_readout == 128
    for needs, step in itertools.product(NEEDS, (1, 3, 4)):
        with counted() as call, torch.no_grad():
            model(inputs, policy=reader(needs, step))
        assert call.total == measured.of(needs, step).item(), (needs, step)


@pytest.mark.parametrize("faulty", [False, True])
def test_measuring_leaves_nothing_behind(faulty: bool) -> None:
    class Step(nn.Module):
        def forward(self, hidden: Tensor) -> Tensor:
            assert not self.training
            if faulty:
                raise RuntimeError("no")
            return hidden

    model = ponder.PonderWrapper(Step(), 3, head=nn.Linear(4, 2)).train()
    model.head.eval()
    before = snapshot(model)
    hooks = [len(h) for h in (nn.modules.module._global_forward_hooks, nn.modules.module._global_forward_pre_hooks)]
    if faulty:
        with pytest.raises(RuntimeError, match="no"):
            measure(model, torch.randn(2, 4))
    else:
        measure(model, torch.randn(2, 4))
    assert not differences(before, model)
    after = [len(h) for h in (nn.modules.module._global_forward_hooks, nn.modules.module._global_forward_pre_hooks)]
    assert hooks == after
    assert torch.backends.mha.get_fastpath_enabled()
    assert not torch.is_inference_mode_enabled()


def test_every_example_is_measured_at_its_true_length() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model = ponder.PonderWrapper(layer, 2, head=nn.Linear(16, 2), readout=readouts.mean)
    lengths = torch.tensor([4, 9, 1, 4])
    mask = torch.arange(9) >= lengths[:, None]
    padding = Padding(mask="src_key_padding_mask", real=False)
    each = measure_each(model, torch.randn(4, 9, 16), padding=padding, src_key_padding_mask=mask)
    assert [one.steps[0] for one in each] == [encoder_layer(int(length), 16, 32) for length in lengths]
    assert each[0] is each[3]


def test_a_stem_reads_the_inputs_at_their_true_length() -> None:
    class Stem(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.dense = nn.Embedding(10, 4), nn.Linear(4, 8)

        def forward(self, ids: Tensor, attention_mask: Tensor, types: Tensor) -> Tensor:
            assert bool(attention_mask.all())
            return self.dense(self.embedding(ids + types))

    def step(hidden: Tensor, **context: Tensor) -> Tensor:
        return hidden

    model = ponder.PonderWrapper(
        step,
        2,
        stem=Stem(),
        head=nn.Linear(8, 2),
        readout=readouts.mean,
        padding=Padding(context={"types": ponder.parts.padding.Along()}),
    )
    ids, mask = torch.ones(2, 5, dtype=torch.long), torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1]])
    each = measure_each(model, ids, attention_mask=mask, types=torch.ones_like(ids))
    assert [one.stem for one in each] == [linear(2, 4, 8), linear(5, 4, 8)]


def test_what_cannot_be_measured_is_refused() -> None:
    model = linear_model()
    with refused("model", "Linear", type_error=True):
        measure(nn.Linear(2, 2), torch.randn(2, 2))  # type: ignore[arg-type]
    with refused("inputs", "none"):
        measure(model, torch.randn(0, 5))
    with refused("padding"):
        measure_each(model, torch.randn(2, 5))
    with refused("attention_mask"):
        measure_each(model, torch.randn(2, 5), padding=Padding())
    with refused("context['attention_mask']"):
        measure_each(model, torch.randn(2, 5), padding=Padding(), attention_mask=torch.ones(3, 5))


# Exits, overhead, break-even


def test_overhead_is_all_that_is_read_before_the_last_step() -> None:
    one = Cost(stem=50, steps=(100,) * 4, readouts=(7,) * 4, heads=(10,) * 4, lambda_head=3, first_readout=7)
    assert one.plain == 467
    assert one.overhead(()) == 0
    assert one.overhead({"features"}) * 467 == pytest.approx(3 * 7)
    assert one.overhead({"output"}) * 467 == pytest.approx(3 * 17)
    assert one.overhead({"hazard"}) * 467 == pytest.approx(3 * 10 + 7)
    assert one.overhead({"hazard", "output"}) * 467 == pytest.approx(3 * 20 + 7)


def test_cumulative_costs_serve_a_sweep() -> None:
    one = Cost(stem=50, steps=(100, 200), readouts=(0, 0), heads=(10, 10))
    torch.testing.assert_close(one.cumulative({"output"}), torch.tensor([160 / 360, 370 / 360], dtype=torch.float64))
    trajectory = ponder.Trajectory(torch.zeros(3, 2, 2), None, row_ids=torch.arange(3), task="classification")
    point = measure_policy(trajectory, Entropy(1.0), costs=one.cumulative({"output"}))
    assert point.cost == pytest.approx(160 / 370)


@pytest.mark.parametrize("needs", NEEDS, ids=lambda needs: "+".join(sorted(needs)) or "nothing")
def test_below_break_even_is_cheaper_and_above_it_is_dearer(needs: frozenset[str]) -> None:
    one = Cost(stem=50, steps=(100,) * 6, readouts=(7,) * 6, heads=(20,) * 6, lambda_head=30)
    edge = one.break_even(needs)
    for exits in itertools.combinations_with_replacement(range(1, 7), 3):
        mean, flops = sum(exits) / 3, one.of(needs, torch.tensor(exits)).mean().item()
        if 6 not in exits or not needs:  # at the last step there is no asking
            assert (flops < one.plain) == (mean < edge), exits


def test_break_even_of_measured_times() -> None:
    assert break_even([1.0, 2.0, 4.0], 3.0) == 2.5
    assert break_even([1.0, 2.0, 4.0], 2.0) == 2.0
    assert break_even([1.0, 2.0, 4.0], 9.0) == 3.0
    assert break_even([1.0, 2.0, 4.0], 0.5) == 1.0
    assert break_even(torch.tensor([1.0, 2.0, 2.0]), 2.0) == 3.0
    with refused("costs"):
        break_even([2.0, 1.0], 1.0)
    with refused("costs"):
        break_even([], 1.0)


def test_wrong_questions_are_refused() -> None:
    one = Cost(stem=0, steps=(1, 1), readouts=(0, 0), heads=(0, 0))
    for wrong in (0, 3, torch.tensor([1, 3]), torch.tensor([1.0])):
        with refused("exit_step"):
            one.of((), wrong)
    for needs in ("output", {"logits"}):
        with refused("needs"):
            one.of(needs, 1)
    with refused("steps, readouts, heads"):
        Cost(stem=0, steps=(1, 1), readouts=(0, 0), heads=(0,))
    with refused("steps, readouts, heads"):
        Cost(stem=0, steps=(), readouts=(), heads=())
    with pytest.raises(PonderError, match="Count steps"):
        Cost(stem=0, steps=(0, 0), readouts=(0, 0), heads=(0, 0)).cumulative(())


# Speed-ups


def test_the_speed_ups_are_three() -> None:
    exits = torch.tensor([1, 2, 3])
    one = Cost(stem=30, steps=(100,) * 4, readouts=(0,) * 4, heads=(10,) * 4)
    assert speed_up(exits, 4) == SpeedUp(steps=2.0)
    assert speed_up(exits, 4, costs=one, needs=()).flops == pytest.approx(440 / 240)
    assert speed_up(exits, 4, costs=one, needs={"output"}).flops == pytest.approx(440 / 250)
    clock = WallClock(1.5, 1.4, 1.6)
    assert str(speed_up(exits, 4, costs=one, needs=(), wall_clock=clock)) == (
        "×2.00 in steps, ×1.83 in FLOPs, ×1.50 (1.40–1.60) in wall-clock"
    )
    assert str(SpeedUp()) == "not measured"


def test_long_examples_weigh_more_in_flops() -> None:
    short, long = (Cost(stem=0, steps=(size,) * 2, readouts=(0, 0), heads=(0, 0)) for size in (1, 9))
    assert speed_up(torch.tensor([1, 2]), 2, costs=[short, long], needs=()).flops == pytest.approx(20 / 19)
    assert speed_up(torch.tensor([1, 2]), 2, costs=[long, short], needs=()).flops == pytest.approx(20 / 11)


def test_wrong_exits_and_costs_are_refused() -> None:
    one = Cost(stem=0, steps=(1, 1), readouts=(0, 0), heads=(0, 0))
    for wrong in (
        torch.tensor([]).long(),
        torch.tensor([3]),
        torch.tensor([0]),
        torch.tensor(1),
        torch.tensor([1.5]),
        torch.tensor([True]),
    ):
        with refused("exit_step"):
            speed_up(wrong, 2)
    with refused("costs"):
        speed_up(torch.tensor([1, 1]), 2, costs=[one], needs=())
    with refused("costs"):
        speed_up(torch.tensor([1, 1]), 3, costs=one, needs=())
    with refused("needs", "policy.needs"):
        speed_up(torch.tensor([1, 1]), 2, costs=one)


class Clock:
    """A clock that work moves, and that slows down with every call."""

    def __init__(self) -> None:
        self.now, self.calls = 0.0, ""

    def work(self, name: str, seconds: float) -> Any:
        def call() -> None:
            self.calls += name
            self.now += seconds * len(self.calls)

        return call


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    made = Clock()
    monkeypatch.setattr(speed.time, "perf_counter", lambda: made.now)
    return made


def test_pairs_are_timed_in_turn_after_a_warm_up(clock: Clock) -> None:
    measured = wall_clock(clock.work("p", 6.0), clock.work("w", 2.0), pairs=3, warm_up=2)
    assert clock.calls == "pwpw" + "pw" + "wp" + "pw"
    assert measured.low == pytest.approx(3 * 5 / 6)
    assert measured.median == pytest.approx(3 * 9 / 10)
    assert measured.high == pytest.approx(3 * 8 / 7)


def test_counts_of_pairs_are_checked() -> None:
    for argument, wrong in (("pairs", 0), ("warm_up", -1)):
        with refused(argument):
            wall_clock(lambda: None, lambda: None, **{argument: wrong})


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int64])
def test_exits_may_be_integers_of_any_size(dtype: torch.dtype) -> None:
    one = Cost(stem=0, steps=(100,) * 3, readouts=(0,) * 3, heads=(10,) * 3)
    assert one.of({"output"}, torch.tensor([1, 2, 3], dtype=dtype)).tolist() == [110, 220, 330]
    with refused("exit_step"):
        one.of((), torch.tensor([True]))


class Wide(nn.Module):
    """A readout that costs something."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.linear(hidden)


@pytest.mark.parametrize("own", [lambda hidden: hidden, Wide()], ids=["free", "costly"])
@torch.inference_mode()
def test_a_lambda_head_with_a_readout_of_its_own_does_not_pay_for_features(own: Any) -> None:
    parts = {"head": nn.Linear(8, 3), "lambda_head": ponder.LambdaHead(8), "readout": Wide(), "halting_readout": own}
    model = ponder.PonderWrapper(nn.Linear(8, 8), 4, **parts).eval()
    inputs = torch.randn(6, 8)
    cost = measure(model, inputs)
    for needs, step in itertools.product(NEEDS, (1, 3, 4)):
        with counted() as real:
            model(inputs, policy=reader(needs, step))
        assert real.total == 6 * cost.of(needs, step).item(), (needs, step)


def test_what_is_no_number_is_no_cost() -> None:
    nan, inf = float("nan"), float("inf")
    with refused("costs"):
        break_even([1.0, inf], 1.0)
    with refused("plain"):
        break_even([1.0, 2.0], nan)
    for wrong in (nan, inf, -1.0):
        with refused("cost"):
            Cost(stem=wrong, steps=(1,), readouts=(0,), heads=(0,))
    nothing = Cost(stem=0, steps=(0, 0), readouts=(0, 0), heads=(0, 0))
    with pytest.raises(PonderError, match="Count steps"):
        nothing.break_even({"output"})
    with pytest.raises(PonderError, match="Count steps"):
        speed_up(torch.tensor([1, 2]), 2, costs=nothing, needs=())
    trajectory = ponder.Trajectory(torch.zeros(3, 3, 2), None, row_ids=torch.arange(3), task="classification")
    for costs in ([1.0, 2.0, inf], torch.tensor([3, 2, 1], dtype=torch.uint8)):
        with refused("costs"):
            measure_policy(trajectory, Entropy(1.0), costs=costs)


def test_a_model_that_was_measured_can_be_trained() -> None:
    model = ponder.PonderWrapper(nn.LazyLinear(4), 2, head=nn.LazyLinear(2))
    measure(model, torch.randn(3, 4))
    model.train()(torch.randn(3, 4), labels=torch.tensor([0, 1, 1])).loss.backward()


def test_numbers_and_costs_in_the_place_of_one_another_are_named() -> None:
    model = ponder.PonderWrapper(nn.Linear(4, 4), num_steps=3, head=nn.Linear(4, 2))
    cost = measure(model, torch.randn(2, 4))
    assert speed_up([1, 2, 3], 3).steps == pytest.approx(1.5)
    with refused("costs", "a Cost", type_error=True):
        speed_up(torch.tensor([1, 2]), 3, costs=[1.0, 2.0], needs=())  # type: ignore[list-item]
    with refused("costs", "cost.break_even(policy.needs)", type_error=True):
        break_even(cost, 1.0)  # type: ignore[arg-type]
