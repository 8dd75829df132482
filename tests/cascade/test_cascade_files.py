"""Folders of cascades: whole after a kill, without a promise if a stage is another, functions given anew."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ponder.cascade import Cascade, Student
from ponder.deploy.int8 import cascade_onnx
from ponder.errors import ArgumentError
from ponder.policies import Certified
from tests.cascade.test_cascade import CLASSES, dear, world
from tests.kills import check_outcomes

DROPPED = "the promise is dropped"


@cache
def student(seed: int = 0) -> Student:
    texts, numbers = world(400, seed=seed)
    return Student.fit(texts, [CLASSES[n] for n in numbers])


def certified(*stages: Any) -> Cascade:
    cascade = Cascade(stages, costs=[1] * len(stages), classes=CLASSES)
    assert cascade.certify(world(600, seed=9)[0], level=0.05).met
    return cascade


def ask(inputs: Sequence[str]) -> list[str]:
    return [text.split()[0] for text in inputs]


def test_what_can_be_written_is_and_functions_are_given_again(tmp_path: Path) -> None:
    cascade = certified(student(), student(1), ask)
    cascade.save(tmp_path / "saved")
    texts, _ = world(200, seed=3)
    expected = cascade.predict(texts)
    again = Cascade.load(tmp_path / "saved", stages=[None, None, ask])
    assert again.policy == cascade.policy
    assert isinstance(again.policy, Certified)
    assert again.predict(texts).labels == expected.labels
    whole = Cascade.load(tmp_path / "saved", stages=[student(), student(1), ask])
    assert whole.policy == cascade.policy
    for wrong in (None, [None, None, None], [None, ask], [None] * 4):
        with pytest.raises(ArgumentError, match=r"stages=\[None, ask\]"):
            Cascade.load(tmp_path / "saved", stages=wrong)


def reverse_weights(folder: Path) -> None:
    model = Student.load(folder / "stage_1")
    object.__setattr__(model, "weights", -model.weights)
    model.save(folder / "stage_1")


def exchange_stages(folder: Path) -> None:
    for name in ("stage_1", "stage_2"):
        shutil.rmtree(folder / name)
        student(5).save(folder / name)


def swap_labels(folder: Path) -> None:
    model = Student.load(folder / "stage_2")
    object.__setattr__(model, "classes", model.classes[::-1])
    model.save(folder / "stage_2")


def add_a_file(folder: Path) -> None:
    (folder / "stage_1" / "tokenizer.json").write_text("{}")


def edit_settings(folder: Path) -> None:
    file = folder / "cascade.json"
    data = json.loads(file.read_text())
    data["policy"]["certificate"]["level"] /= 2
    file.write_text(json.dumps(data))


def edit_costs(folder: Path) -> None:
    file = folder / "cascade.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "costs": [1, 50]}))


@pytest.mark.parametrize(
    "change",
    [reverse_weights, exchange_stages, swap_labels, add_a_file, edit_settings, edit_costs],
)
def test_a_promise_about_other_stages_is_dropped(
    change: Callable[[Path], None], tmp_path: Path
) -> None:
    certified(student(), student(1)).save(tmp_path)
    change(tmp_path)
    with pytest.warns(UserWarning, match=DROPPED):
        found = Cascade.load(tmp_path)
    assert not isinstance(found.policy, Certified)
    assert len(found.predict(world(20)[0])) == 20


def test_a_promise_that_is_about_other_weights_is_not_given_to_an_export(tmp_path: Path) -> None:
    texts, _ = world(400)
    own = Student.fit(texts, ask(texts))
    cascade = certified(own, student(1))
    cascade_onnx(cascade, tmp_path / "whole")
    assert isinstance(Cascade.load(tmp_path / "whole").policy, Certified)
    own.bias[:] += 1.0
    with pytest.warns(UserWarning, match=DROPPED):
        cascade_onnx(cascade, tmp_path / "moved")
    assert not isinstance(Cascade.load(tmp_path / "moved").policy, Certified)


@pytest.mark.parametrize("stages", [[student(5), None], [None, student(5)], [None, dear]])
def test_a_stage_that_is_given_in_the_place_of_another_has_no_promise(
    stages: list[Any], tmp_path: Path
) -> None:
    certified(student(), student(1)).save(tmp_path)
    with pytest.warns(UserWarning, match=DROPPED):
        found = Cascade.load(tmp_path, stages=stages)
    assert not isinstance(found.policy, Certified)


def test_weights_that_moved_in_memory_are_saved_without_the_promise(tmp_path: Path) -> None:
    texts, _ = world(400)
    own = Student.fit(texts, ask(texts))
    cascade = certified(own, student(1))
    own.bias[:] += 1.0
    with pytest.warns(UserWarning, match=DROPPED):
        cascade.save(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not isinstance(Cascade.load(tmp_path).policy, Certified)


def test_a_kill_while_saving_leaves_the_old_cascade_or_the_new_one_or_a_refusal(
    tmp_path: Path,
) -> None:
    """A mixture would answer as neither of the two, or lose its promise with a warning."""
    code = """
import warnings
from ponder.cascade import Cascade, Student
from ponder.errors import CheckpointError
from ponder.policies import Certified
from tests.kills import kills
texts = [f"{word} {n}" for n in range(100) for word in ("my card", "a loan")]
students = [Student.fit(texts[n:], ["card", "loan"] * (100 - n // 2)) for n in (0, 20, 40, 60)]
pair = []
for stages in (students[:2], students[2:]):
    cascade = Cascade(stages, costs=[1, 1])
    assert cascade.certify(texts, level=0.05).met
    pair.append(cascade)
digests = [cascade.weights_digest() for cascade in pair]
warnings.simplefilter("error")
for folder in kills(pair[0].save, pair[1].save):
    try:
        found = Cascade.load(folder)
    except CheckpointError:
        print("refused")
        continue
    assert isinstance(found.policy, Certified)
    print(digests.index(found.weights_digest()))
"""
    check_outcomes(code, tmp_path, fewest=30)


def test_an_older_cascade_of_more_stages_leaves_nothing(tmp_path: Path) -> None:
    certified(student(), student(1), student(2)).save(tmp_path)
    (tmp_path / "notes.txt").write_text("of the user")
    (tmp_path / "ponder.json").write_text("{}")
    certified(student(), student(1)).save(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"cascade.json", "stage_1", "stage_2", "notes.txt"}
    assert np.isfinite(Cascade.load(tmp_path).predict(world(9)[0]).outputs).all()
