"""Sections 4 to 8 of the speed benchmark: what they compare is the same, and what they simulate is right."""

import importlib
import itertools
import random

import pytest
import torch
import torch.nn.functional as F

from benchmarks.speed import cli, device, exporting, peers, scale, streaming, training
from benchmarks.speed.figures import Options
from benchmarks.speed.simulation import Costs, Row, compaction, poisson, quantile, stream
from benchmarks.speed.subjects import minilm, mpnet_encoder
from tests.quick_exports import make_exports_quick

QUICK = Options(quick=True, pairs=1)


def figures(found):
    return {(told["case"], told["figure"]): told for told in found}


def by_ticks(rows, batch, refill):
    """Both servers at one second a step, all arrivals at whole seconds: second by second, by another algorithm."""
    left, latency, inside = [row.steps for row in rows], [None] * len(rows), []
    for now in range(10_000):
        inside = [row for row in inside if left[row] > 0]
        if refill or not inside:
            waiting = [i for i, row in enumerate(rows) if row.arrival <= now and left[i] == row.steps]
            inside += [i for i in waiting if i not in inside][: batch - len(inside)]
        for row in inside:
            left[row] -= 1
            if left[row] == 0:
                latency[row] = now + 1 - rows[row].arrival
    return latency


@pytest.mark.parametrize("seed", range(5))
def test_the_simulation_is_what_a_clock_shows(seed):
    rng = random.Random(seed)
    rows = [Row(arrival, rng.randint(1, 6)) for arrival in sorted(float(rng.randint(0, 30)) for _ in range(40))]
    for server, refill in ((stream, True), (compaction, False)):
        assert server(rows, 3, lambda rows: 1.0) == by_ticks(rows, 3, refill)


def test_a_stream_uses_every_slot_where_rows_never_lack():
    rows = [Row(0.0, steps) for steps in [1, 2, 3] * 100]
    cost = Costs({1: 1.0, 3: 3.0})
    assert max(stream(rows, 3, cost)) == pytest.approx(600.0)  # every row of every step costs a second
    flat = Costs({1: 1.0, 3: 1.0})
    assert max(stream(rows, 3, flat)) < 205 < max(compaction(rows, 3, flat)) == 300.0


def test_costs_arrivals_and_quantiles():
    cost = Costs({1: 2.0, 4: 5.0, 8: 13.0})
    assert [cost(rows) for rows in (1, 2, 4, 6, 8, 10)] == [2.0, 3.0, 5.0, 9.0, 13.0, 17.0]
    rows = poisson(20_000, (1, 2, 3), rate=4.0)
    assert [row.steps for row in rows[:4]] == [1, 2, 3, 1]
    gaps = [b.arrival - a.arrival for a, b in itertools.pairwise(rows)]
    assert min(gaps) >= 0
    assert sum(gaps) / len(gaps) == pytest.approx(0.25, rel=0.05)
    assert sum(gap > 0.5 for gap in gaps) / len(gaps) == pytest.approx(0.1353, abs=0.01)  # e^-2: exponential
    assert [quantile([5.0, 1.0, 3.0], q) for q in (0.01, 0.5, 0.99)] == [1.0, 3.0, 5.0]


def test_exits_have_the_shape_that_their_mix_is_called_by():
    early, heavy = (streaming.exits(mix, 12, 1000) for mix in ("early-heavy", "heavy-tailed"))
    assert sum(early) / 1000 == pytest.approx(2.47, abs=0.03)
    assert sum(heavy) / 1000 == pytest.approx(3.87, abs=0.03)
    assert early.count(12) < 3 < 25 < heavy.count(12)


def test_streaming_measures_what_the_engine_did(monkeypatch):
    monkeypatch.setattr(streaming, "MIXES", {"early-heavy": streaming.MIXES["early-heavy"]})
    found = figures(streaming.measure(QUICK))
    for arrival in ("closed", "open"):
        told = found[f"early-heavy, {arrival} arrival", "throughput ÷ theoretical maximum"]
        assert told["at_least"] == 0.97
        assert told["kept"] == (told["value"] >= 0.97)
        assert told["rows"] == 256
        assert 0 < found[f"early-heavy, {arrival} arrival", "occupancy, filling and draining included"]["value"] <= 1
    latencies = [case for case, name in found if "latency" in name]
    assert sum("simulated" in case for case in latencies) == 2 * 3 * 3
    assert len(latencies) == 2 * 3 * 3 + 3


def test_the_maximum_is_of_bare_full_steps(monkeypatch):
    scene = streaming.stage(QUICK, batch=4)
    steps = []
    monkeypatch.setattr(scene.model.steps, "forward", lambda step, hidden, **_: steps.append(len(hidden)) or hidden)
    scene.bare_steps(3, 4)()
    assert steps == [4, 4, 4]


@pytest.mark.filterwarnings("ignore:unroll in training mode")
def test_training_compares_the_same_loss():
    (batch,) = training.batches(QUICK, 1)
    torch.manual_seed(0)
    model = training.PonderForSequenceClassification.from_encoder(minilm(QUICK).plain.base_model, "palbert").eval()
    padded = training._to_longest(batch)
    assert padded["input_ids"].shape == padded["attention_mask"].shape == (32, 128)
    assert torch.equal(padded["attention_mask"].sum(1), batch["attention_mask"].sum(1))
    with torch.no_grad():
        for weight in [*model.encoder.pooler.parameters(), *model.ponder.lambda_head.parameters()]:
            weight.copy_(torch.randn_like(weight))  # hazards that differ from step to step
    model.ponder.train()  # every step is unrolled, and dropout is left out on both sides
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.eval()
            module.p = 0.0
    for module in model.encoder.modules():
        module.eval()
    expected = model.ponder(
        batch["input_ids"], labels=batch["labels"], attention_mask=batch["attention_mask"], token_type_ids=None
    ).loss
    torch.testing.assert_close(training.padded_loss(model, padded), expected)
    trajectory = model.unroll(batch["input_ids"], attention_mask=batch["attention_mask"])
    losses = F.cross_entropy(trajectory.outputs.flatten(0, 1), batch["labels"].repeat_interleave(6), reduction="none")
    posterior, prior = trajectory.halting.pmf, model.ponder.prior(6).pmf
    by_hand = (posterior * losses.view(-1, 6)).sum(1) + 0.5 * (posterior * (posterior / prior).log()).sum(1)
    torch.testing.assert_close(expected, by_hand.mean())


def test_training_moves_the_weights_of_each_kind():
    made = training.batches(QUICK, 1)
    assert made[0]["input_ids"].shape[0] == 32
    assert set(made[0]["labels"].tolist()) == {0, 1}
    for kind in training.KINDS:
        run = training.trainer(kind, QUICK, made)
        model = next(cell.cell_contents for cell in run.__closure__ if isinstance(cell.cell_contents, torch.nn.Module))
        before = [parameter.detach().clone() for parameter in model.parameters()]
        run()
        assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_training_tells_speed_and_memory(monkeypatch):
    peaks = {"ponder": 300, "plain": 200, "padded": 600}
    monkeypatch.setattr(training, "_in_a_process", lambda kind, options: peaks[kind])
    found = figures(training.measure(QUICK))
    case = "MiniLM, a graded task, batch 32"
    assert found[case, "examples per second ÷ plain fine-tuning"]["at_least"] == 0.95
    assert found[case, "examples per second ÷ a loop that pads to 128"]["at_least"] is None  # the goal is CoLA's
    assert found[case, "peak memory ÷ plain fine-tuning"]["value"] == 1.5
    assert found[case, "peak memory ÷ a loop that pads to 128"]["value"] == 0.5


def test_a_stream_of_any_length_is_answered_and_made_lazily(monkeypatch):
    monkeypatch.setattr(scale, "SIZES", (20, 40))
    found = figures(scale.measure(QUICK))
    assert found["20 rows", "time per row ÷ of 40 rows"]["at_most"] == 1.05
    assert found["40 rows", "time per row ÷ of 40 rows"]["kept"] is None
    rows = scale.rows_of(10**9)
    assert torch.equal(next(rows), next(scale.rows_of(1)))
    monkeypatch.setattr(scale, "resident", lambda: None)
    assert any(told["figure"] == "not measured" for told in scale.measure(QUICK))


def test_the_device_section_without_one():
    if torch.accelerator.is_available():
        pytest.skip("there is an accelerator, and this is what is said where there is none")
    (told,) = device.measure(QUICK)
    assert told["figure"] == "not measured"
    assert told["why"] == "this machine has none"


def test_the_batch_that_saturates():
    assert device.saturating({8: 1.0, 16: 1.0, 32: 1.0}) == 32
    assert device.saturating({8: 1.0, 16: 1.9, 32: 1.9}) == 8
    told = device.synchronisation(streaming.stage(QUICK, batch=2), "toy", QUICK)
    assert told["value"] > 0
    assert set(device.OTHERS) <= set(cli.SECTIONS.values())


def test_peers_that_are_missing_or_fail_are_named(monkeypatch):
    real = importlib.import_module

    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(peers.importlib, "import_module", missing)
    found = peers.measure(QUICK)
    assert [told["case"] for told in found] == ["earlyon", "ponder-transformer"]
    assert all("ponder-torch[peers]" in told["why"] for told in found)
    monkeypatch.setattr(peers.importlib, "import_module", real)
    monkeypatch.setattr(peers, "earlyon_pair", lambda *_: int("x"))
    told = peers.measure(QUICK)[0]
    assert told["why"].startswith("it fails: ValueError: invalid literal")


def test_earlyon_has_the_same_heads_and_exits():
    pytest.importorskip("earlyon")
    told, batched = peers._earlyon(QUICK)
    assert told["same_exits"] == 1.0
    assert batched["mean_exit_step_of_peer"] >= told["mean_exit_step"]
    ids = minilm(QUICK).batch(8, 8)["input_ids"]
    peer, model, policy = peers.earlyon_pair(QUICK, ids)
    out = model(ids, policy=policy)
    assert len(set(out.exit_step.tolist())) > 1
    torch.testing.assert_close(torch.cat([peer(row).prediction for row in ids.split(1)]), out.outputs.detach())


def test_ponder_transformer_gives_the_same_answers_at_the_same_exits():
    pytest.importorskip("ponder_transformer")
    ids = torch.randint(0, 1000, (5, 7), generator=torch.Generator().manual_seed(0))
    theirs, ours = peers.transformer_pair(QUICK, ids, (1, 4, 2, 13, 4))
    for (outputs, exits), (expected, wanted) in ((theirs(), ours()), (theirs(), ours())):
        assert exits.tolist() == wanted.tolist() == [1, 4, 2, 13, 4]
        torch.testing.assert_close(outputs, expected)


@pytest.mark.slow
def test_exports_are_measured_alone_and_together_with_the_same_exits(monkeypatch):
    pytest.importorskip("onnxruntime", reason="exports need the extra onnx")
    pytest.importorskip("onnxscript", reason="exports need the extra onnx")

    def shallow(encoder):  # a graph a layer, each of which takes a second
        del encoder.encoder.layer[2:]
        encoder.config.num_hidden_layers = 2
        return encoder

    def shallow_minilm(options):
        subject = minilm(options)
        shallow(subject.wrapped.encoder)
        return subject

    monkeypatch.setattr(exporting, "minilm", shallow_minilm)
    monkeypatch.setattr(exporting, "mpnet_encoder", lambda options: shallow(mpnet_encoder(options)))
    monkeypatch.setattr(exporting, "SHAPES", {1: (8, 8), 8: (8, 8)})
    make_exports_quick()
    found = exporting.measure(QUICK)
    cases = {told["case"] for told in found}
    assert len(cases) == 2 * len(exporting.SHAPES)
    goals = [told["at_least"] for told in found if told["at_least"] is not None]
    each = [exporting.OF_PRODUCT, exporting.OVER_BF16] * 2 + list(exporting.OVER_FP32.values())
    assert sorted(goals) == sorted(each * len(cases))  # int8, and int8 of all products
    for told in found:
        assert told["value"] > 0.0
        assert 1.0 < told["mean_exit_step"] < 2.0
