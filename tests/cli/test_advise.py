"""`ponder advise`: the race, its table and page, every way as a folder, and bad input in one sentence."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import ponder
from ponder.advice import Advice, race, timing
from ponder.advice.promises import Recorded, promise
from ponder.advice.specs import WAYS, Depth, WaySpec
from ponder.cli.commands import advise as command
from ponder.cli.show import show
from ponder.deploy.folders import open_folder
from tests.cli.conftest import NAMES, Folders
from tests.integrations.encoders import make_plain, make_tokenizer, some_texts


@pytest.fixture(scope="module")
def advice(folders: Folders) -> Advice:
    """A race of all ways; it exports a model, which takes seconds."""
    labels = [NAMES[n % 3] for n in range(700)]
    return ponder.advise(folders.model, some_texts(700), labels, disagreement=0.2)


def printed(advice: Advice, *, details: bool = False) -> str:
    """Return what the command prints."""
    with contextlib.redirect_stdout(io.StringIO()) as screen:
        show(command.outcome_of(advice, {}, "model", details=details), as_json=False)
    return screen.getvalue()


@pytest.fixture
def in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the ways in int8 out."""
    monkeypatch.setattr(race.Race, "_int8", lambda self: None)


@pytest.fixture
def by_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that is a thousandth of a second later at every look."""
    ticks = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks) / 1000)


@pytest.mark.slow
def test_every_way_is_in_the_table_of_80_columns(advice: Advice) -> None:
    names = [way.name for way in advice.ways]
    assert names[0] == "as it is"
    assert {*(way.name for way in WAYS), "blind mix"} - set(names) <= {
        "cascade + exits",
        "int8 cascade + exits",
    }
    drawn = printed(advice)
    with_details = printed(advice, details=True)
    assert max(map(len, with_details.splitlines())) <= 80
    assert drawn.startswith(advice.sentence[:20])
    assert "times faster" in drawn
    assert "95th percentile" not in drawn
    assert "95th percentile" in with_details
    assert sum(row["wins"] for row in advice.table) == 1
    assert all(
        way.seconds[1] <= way.seconds[0] <= way.seconds[2] and 0 <= way.accuracy <= 1
        for way in advice.ways
    )
    assert advice.winner.promise <= 0.2
    assert [size for size, _ in advice.curve] == [105, 210, 420]


@pytest.mark.slow
def test_the_folder_of_every_way_is_taken_and_answers_as_in_the_race(
    run: Callable[..., Any], advice: Advice, folders: Folders, tmp_path: Path
) -> None:
    texts = [line.split(",", 2)[2] for line in folders.fresh.read_text().splitlines()[1:]]
    for place, way in enumerate(advice.ways):
        if way.spec.blind:
            continue
        out = tmp_path / str(place)
        answers = tmp_path / f"{place}.csv"
        way.model.save(out)
        given: tuple[object, ...] = ("--texts", folders.fresh, "--column", "text")
        run("predict", out, *given, "--out", answers)
        found = np.array([line.split(",")[3] for line in answers.read_text().splitlines()[1:]])
        assert np.mean(found == np.array(way.model.predict(texts).labels)) > 0.98, way.name
        named = ("--reference", folders.model, "--disagreement", 0.2)
        assert "The promise is kept" in run("check", out, *given, *named).output, way.name


@pytest.mark.usefixtures("in_torch", "by_ticks")
def test_the_winner_is_written_with_a_page(
    run: Callable[..., Any], folders: Folders, tmp_path: Path
) -> None:
    out = tmp_path / "winner"
    options = ("--texts", folders.texts, "--disagreement", 0.2, "--out", out)
    table = run("advise", folders.model, *options).output
    card = json.loads((out / "ponder.json").read_text())
    assert sum(way["wins"] for way in card["ways"]) == 1
    assert " ".join(card["sentence"].split()) in " ".join(table.split())
    said = open_folder(out).promise  # whose certificate, one of several, has a higher confidence
    assert said is None or said.confidence == 0.95
    page = (out / "report.html").read_text()
    for words in (
        "<svg",
        "Texts whose answer changes",
        "Other levels",
        "What more texts would bring",
        "How to use it",
        "95% confidence",
    ):
        assert words in page


@pytest.mark.usefixtures("in_torch")
def test_few_texts_give_a_table_without_promises(folders: Folders) -> None:
    advice = ponder.advise(folders.model, some_texts(55))
    assert advice.winner.name == "as it is"
    assert all(math.isnan(way.promise) for way in advice.ways[1:])
    assert any("different texts, or more; there are 55" in remark for remark in advice.remarks)


@pytest.mark.usefixtures("in_torch", "by_ticks")
@pytest.mark.parametrize(
    ("within", "sentence"),
    [
        (10.0, "Change nothing: the model as it is answers 95%"),
        (1e-9, "No way answers a text within"),
    ],
)
def test_within_takes_the_most_faithful(folders: Folders, within: float, sentence: str) -> None:
    advice = ponder.advise(folders.model, some_texts(150), within=within)
    assert sentence in advice.sentence
    assert advice.winner.disagreement == 0.0


def test_within_falls_back_to_a_step_without_a_promise(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stand_in(self: race.Race) -> None:  # for an export: the steps of the model itself
        self.recorded = replace(self.recorded, int8=self.recorded.exits)
        assert self.settings.within is not None
        self._step_within(self.settings.within, self.material.model, 1.0)

    def seconds(model: Any, texts: list[str]) -> float:
        return float(getattr(getattr(model, "policy", None), "step", 9.0))

    monkeypatch.setattr(race.Race, "_int8", stand_in)
    monkeypatch.setattr(timing, "seconds_of", seconds)
    advice = ponder.advise(folders.model, some_texts(150), within=2.5)
    assert advice.winner.name == "int8, step 2"
    assert math.isnan(advice.winner.promise)
    assert "without a promise, since no way with one is as fast" in advice.sentence


@pytest.mark.usefixtures("in_torch")
def test_a_model_of_one_answer(tmp_path: Path) -> None:
    model = make_plain("sequence", "bert", 3)
    with torch.no_grad():
        model.classifier.bias[1] += 100.0
    model.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    advice = ponder.advise(tmp_path, some_texts(120), disagreement=0.2)
    assert "cascade" not in [way.name for way in advice.ways]
    assert any("one answer" in remark for remark in advice.remarks)


def test_an_interrupt_shows_what_is_ready(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(race.Race, "_int8", stop)
    advice = ponder.advise(folders.model, some_texts(120), disagreement=0.2)
    assert [way.name for way in advice.ways][:3] == ["as it is", "best fixed step", "exits"]
    assert advice.remarks[0].startswith("Stopped")
    assert math.isnan(advice.ways[0].seconds[0])
    assert printed(advice)


def test_a_thread_that_does_not_run_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    clocks = {"perf_counter": iter([10.0, 12.0, 14.0]), "thread_time": iter([1.0, 3.0, 3.5])}
    read = {name: lambda values=values: next(values) for name, values in clocks.items()}
    monkeypatch.setattr(timing, "time", SimpleNamespace(**read))
    waiting = timing.Waiting()
    assert waiting.share == pytest.approx(0.0)  # two seconds of work in two
    assert waiting.share == pytest.approx(0.375)  # two and a half in four


@pytest.mark.usefixtures("in_torch")
@pytest.mark.parametrize(
    ("waited", "words"),
    [
        (0.0, "The machine was busy: rounds differ by ×"),
        (0.62, "The machine was busy: other processes had the core during 62% of the timing"),
    ],
)
def test_a_busy_machine_and_long_texts_are_named(
    waited: float, words: str, folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(np.cumsum(np.arange(10_000) % 7 + 1.0))
    monkeypatch.setattr(timing, "clock", lambda: float(next(clock)))
    monkeypatch.setattr(timing.Waiting, "share", waited)
    texts = [*some_texts(120), " ".join(some_texts(40))]
    said = " ".join(ponder.advise(folders.model, texts, disagreement=0.2).remarks)
    assert words in said
    assert "1 texts are longer than the model takes" in said


def test_bad_input_is_one_sentence(
    run: Callable[..., Any], folders: Folders, tmp_path: Path
) -> None:
    same = tmp_path / "same.csv"
    same.write_text("text\n" + "a b c\n" * 90)
    assert "50 distinct inputs" in run("advise", folders.model, "--texts", same, code=2).output
    labels = ("--texts", folders.fresh, "--column", "text", "--labels", "id")
    assert (
        "--labels: expected names of the model's 3 classes"
        in run("advise", folders.model, *labels, code=2).output
    )
    make_plain("sequence", "bert", 1).save_pretrained(tmp_path / "numbers")
    make_tokenizer().save_pretrained(tmp_path / "numbers")
    said = run("advise", tmp_path / "numbers", "--texts", folders.texts, code=2).output
    assert (
        "MODEL: expected a classifier of two classes or more; got one of regression."
        in " ".join(said.split())
    )


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_promises_need_arrays_alone(way: WaySpec) -> None:
    draw = np.random.default_rng(0)
    truth = draw.normal(size=(4000, 1, 3)) * 3
    exits = truth + draw.normal(size=(4000, 4, 3)) * np.array([2.0, 1.0, 0.5, 0.0])[:, None]
    student = truth[:, 0] + draw.normal(size=(4000, 3)) * 2
    student -= np.log(np.exp(student).sum(1, keepdims=True))
    seen = Recorded(np.arange(4000), exits, student, exits + draw.normal(size=exits.shape) * 0.01)
    made = promise(seen, way, 0.05, 0.95)
    assert made.met
    assert (made.answers != exits[seen.sides[1], -1].argmax(-1)).mean() <= 0.05
    decides = way.student or way.depth is Depth.EXITS
    assert not decides or made.depth.mean() < made.depth.max()
    few = promise(seen.taken(np.arange(60)), way, 0.05, 0.95)
    assert not few.met
