"""The speed benchmark: its counting, its comparisons, its command line and its page. No test asserts a time."""

import contextlib
import functools
import io
import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import torch

from benchmarks.speed import capturing, exiting, overhead, predictor, timing
from benchmarks.speed.figures import Options, figure, not_measured
from benchmarks.speed.forced import Forced
from benchmarks.speed.page import MARK, cells, markdown, write_page
from benchmarks.speed.subjects import minilm
from ponder.cost import WallClock

QUICK = Options(quick=True, pairs=1)


def test_timings_are_interleaved_and_ratios_are_of_one_round():
    clock, order = [0.0], []

    def call(name, seconds):
        def run():
            order.append(name)
            clock[0] += seconds

        return run

    shown = functools.partial(timing.interleaved, clock=lambda: clock[0])
    calls = {"a": call("a", 2.0), "b": call("b", 1.0), "c": call("c", 4.0)}
    seconds = shown(calls, rounds=3, least=0.0)
    assert "".join(order) == "abc" + "cba" + "abc" + "cba"
    assert timing.ratio(seconds, "a", "b") == WallClock(2.0, 2.0, 2.0)
    order.clear()
    shown(calls, rounds=1, least=2.5)
    assert "".join(order) == "abc" + "cccbbbaaa"  # the quickest lasts long enough, and all are repeated as often
    assert len(shown(calls, rounds=1, budget=35.0, least=0.0)["a"]) == 5
    uneven = {"a": [2.0, 9.0, 3.0], "b": [1.0, 3.0, 2.0]}
    assert timing.ratio(uneven, "a", "b") == WallClock(2.0, 1.5, 3.0)


def test_exits_are_spread_as_their_weights_say():
    assert sorted(exiting.spread([1, 1, 2], 8)) == [1, 1, 2, 2, 3, 3, 3, 3]
    assert exiting.spread([0, 0, 1], 3) == (3, 3, 3)
    mixes = exiting.mixes(12)
    assert all(len(weights) == 12 for weights in mixes.values())
    means = {name: sum(exiting.spread(weights, 1200)) / 1200 for name, weights in mixes.items()}
    assert means["uniform"] == 6.5
    assert means["early-heavy"] < 2.1
    assert means["late-heavy"] > 10.9
    assert sum(exiting.recorded("cola-minilm-palbert-s0-*.json", 6)) == 1043


def test_the_loops_beside_the_predictor_answer_alike():
    model = minilm(QUICK).wrapped
    rows = [
        {"input_ids": list(range(5, 5 + length)), "attention_mask": [1] * length, "token_type_ids": [0] * length}
        for length in (3, 9, 4, 6, 2)
    ]
    table = (1, 6, 3, 2, 4)
    found = model.predict(rows, policy=Forced(table), batch_size=2)
    assert found.exit_step.tolist() == list(table)
    alone = torch.cat(predictor.one_by_one(model, rows, table, padded=12)())
    torch.testing.assert_close(found.outputs, alone, atol=1e-4, rtol=1e-4)
    slow = predictor.waiting(model, rows, table, batch=2)()
    assert [len(part) for part in slow] == [2, 2, 1]
    slowest = model.predict(rows, policy=Forced((6, 6, 3, 3, 4)))
    torch.testing.assert_close(torch.cat(slow), slowest.outputs, atol=1e-4, rtol=1e-4)


def test_captured_encoders_are_measured(monkeypatch):
    def here(command, **options):  # a process of its own would import PyTorch and Transformers first
        told = io.StringIO()
        with contextlib.redirect_stdout(told):
            exec(command[-1], {})
        return SimpleNamespace(stdout=told.getvalue())

    monkeypatch.setattr(capturing, "subprocess", SimpleNamespace(run=here))
    figures = capturing.measure(QUICK)
    assert [told["section"] for told in figures] == ["capturing"] * 7
    assert all(told["value"] is not None for told in figures)
    assert [told["at_most"] for told in figures] == [*[0.5, 1.03, None] * 2, 0.2]


def test_a_section_that_cannot_be_measured_says_why(monkeypatch):
    (told,) = predictor.measure(QUICK)
    assert "--glue-dir" in told["why"]

    def fail(*_, **__):
        raise RuntimeError("no compiler")

    monkeypatch.setattr("benchmarks.speed.subjects.Subject.compiled", fail)
    figures = overhead.measure(QUICK)
    assert [told["why"] for told in figures if told["value"] is None] == ["RuntimeError: no compiler"] * 2
    assert sum(told["value"] is not None for told in figures) == 2 * (3 + 2)


def test_missed_goals_are_shown(tmp_path):
    missed = figure("exiting", "uniform | batch 1", "share", WallClock(0.9, 0.8, 0.95), at_least=0.95)
    assert cells(missed) == ("uniform | batch 1", "share", "0.90", "0.80–0.95", "≥ 0.95", "missed")
    assert cells(figure("x", "c", "f", 1234.5))[2:] == ("1,234", "—", "—", "—")
    assert cells(not_measured("x", "c", "no GPU"))[1] == "not measured: no GPU"
    where = {"device": "cpu", "threads": 2, "versions": {"torch": "2"}, "date": "2026-01-01"}
    results = [
        {"section": name, "number": number, "quick": False, "figures": [missed], "environment": where}
        for name, number in (("scale", 7), ("overhead", 1))
    ]
    text = markdown(results)
    assert text.index("## Wrapper") < text.index("## Scale")
    assert "uniform \\| batch 1" in text
    assert "quick" not in text
    (tmp_path / "out").mkdir()
    for number, result in zip(itertools.count(), results, strict=False):
        (tmp_path / "out" / f"{number}.json").write_text(json.dumps(result))
    (tmp_path / "out" / "other.json").write_text("[1]")  # not of this command: it lies beside, and is left alone
    (tmp_path / "out" / "risk.json").write_text('{"outcomes": []}')
    write_page(tmp_path / "new.md", tmp_path / "out")
    page = (tmp_path / "new.md").read_text()
    assert page.startswith(f"# Speed\n\n{MARK}\n\n| what | figures | goals reached |")
    assert "| [Scale](#scale) | 1 | 0 of 1 | uniform \\| batch 1, share: 0.90 for ≥ 0.95 |" in page


def test_the_page_of_figures_is_that_of_the_committed_results(tmp_path):
    committed = Path("docs/speed-figures.md").read_text()
    (tmp_path / "page.md").write_text(committed)
    write_page(tmp_path / "page.md", Path("benchmarks/results/speed"))
    assert (tmp_path / "page.md").read_text() == committed
