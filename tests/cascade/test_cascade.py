"""Cascades: rows go where they are sure, promises hold over redraws, and stages are anything that answers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ponder import policies
from ponder.calibration import control_risk, diagnose, sweep
from ponder.calibration.records import Record
from ponder.cascade import Cascade, Student
from ponder.cascade.cascade import StageThresholds
from ponder.deploy.server import watch_of
from ponder.errors import ArgumentError, CheckpointError

CLASSES = ("card", "loan", "other")


def world(rows: int, seed: int = 0, hard: float = 0.3) -> tuple[list[str], NDArray[Any]]:
    """Inputs whose text says their class, and how unsure a cheap model is of it."""
    draw = np.random.default_rng(seed)
    numbers = draw.integers(3, size=rows)
    unsure = draw.uniform(size=rows) < hard
    return [
        f"{CLASSES[c]} {int(u)} {draw.integers(10**9)}"
        for c, u in zip(numbers, unsure, strict=True)
    ], numbers


def cheap(inputs: Sequence[str]) -> NDArray[Any]:
    """Sure and right, or unsure and mostly wrong."""
    made = np.full((len(inputs), 3), 0.02)
    for row, text in enumerate(inputs):
        name, unsure, salt = text.split()
        place, wrong = CLASSES.index(name), unsure == "1" and int(salt) % 4
        made[row] = 0.25 if unsure == "1" else 0.02
        made[row, (place + 1) % 3 if wrong else place] = 0.5 if unsure == "1" else 0.96
    return made


def middle(inputs: Sequence[str]) -> NDArray[Any]:
    made = cheap(inputs)
    unsure = np.array([text.split()[1] == "1" and int(text.split()[2]) % 2 == 0 for text in inputs])
    return np.where(unsure[:, None], dear(inputs), made)


def dear(inputs: Sequence[str]) -> NDArray[Any]:
    return np.eye(3)[[CLASSES.index(text.split()[0]) for text in inputs]]


def test_what_is_sure_is_answered_at_once_and_the_rest_is_deferred_in_batches() -> None:
    asked: list[int] = []

    def counted(inputs: Sequence[str]) -> NDArray[Any]:
        asked.append(len(inputs))
        return dear(inputs)

    cascade = Cascade(
        [cheap, counted], costs=[1, 30], classes=CLASSES, policy=policies.Confidence(0.8)
    )
    texts, numbers = world(1000)
    answers = cascade.predict(texts)
    unsure = np.array([text.split()[1] == "1" for text in texts])
    assert (answers.stage == 1 + unsure).all()
    assert answers.labels == [CLASSES[n] for n in numbers]
    assert sum(asked) == unsure.sum()
    assert len(asked) == 2  # what four batches deferred
    np.testing.assert_allclose(np.exp(answers.outputs).sum(1), 1)
    assert len(cascade.predict([])) == 0


def test_a_cascade_is_a_trajectory_with_unequal_costs() -> None:
    cascade = Cascade([cheap, middle, dear], costs=[1, 5, 30], classes=CLASSES)
    texts, _ = world(900)
    record = cascade.record(texts, [text.split()[0] for text in texts])
    promise = control_risk(
        record, policies.Confidence, level=0.05, costs=[1, 6, 36], bound="exact_binomial"
    )
    assert promise.met
    assert len(sweep(record, policies.Confidence, [0.5, 0.9], costs=[1, 6, 36])) == 2
    assert diagnose(record) is not None
    assert (record.exit_steps(promise.policy) < 3).mean() > 0.5


@pytest.mark.parametrize("stages", [[cheap, dear], [cheap, middle, dear]], ids=["two", "three"])
@pytest.mark.parametrize("risk", ["disagreement", "error", "missed"])
def test_certify_chooses_bars_and_keeps_its_promise_on_other_rows(
    stages: list[Callable[..., Any]], risk: Any
) -> None:
    cascade = Cascade(stages, costs=[1, 30] if len(stages) == 2 else [1, 5, 30], classes=CLASSES)
    texts, _ = world(3000)
    report = cascade.certify(
        texts * 2,
        [text.split()[0] for text in texts * 2],
        risk=risk,
        level=0.02,
        positive="card" if risk == "missed" else None,
    )
    assert report.met, report.statement
    assert (
        report.chosen_on + report.certified_on == 3000
    )  # an input that repeats another counts once
    fresh, _ = world(3000, seed=1)
    answers = cascade.predict(fresh)
    assert (
        np.mean(
            [label != text.split()[0] for label, text in zip(answers.labels, fresh, strict=True)]
        )
        <= 0.03
    )
    shares = np.bincount(answers.stage, minlength=len(stages) + 1)[1:] / 3000
    np.testing.assert_allclose(shares, report.shares, atol=0.05)
    assert report.speed_up > 2
    paid = np.cumsum(report.seconds)  # a row that is deferred has paid for all stages before
    assert report.speed_up == pytest.approx(report.seconds[-1] / (paid @ report.shares))


@pytest.mark.parametrize("kinds", [2, 3])
def test_promises_are_broken_in_few_redraws_whatever_was_chosen_on_the_way(kinds: int) -> None:
    """Scores overlap, so that any threshold has some risk; kinds, thresholds and their order are chosen anew."""
    draw, broken, met = np.random.default_rng(0), 0, 0
    table: list[NDArray[Any]] = []  # the probabilities of every stage, by the number of an input

    def drawn(rows: int) -> list[int]:
        sure = np.concatenate(
            [draw.beta(2, 1, size=(rows, kinds - 1)) * 2 / 3 + 1 / 3, np.ones((rows, 1))], axis=1
        )
        right = draw.uniform(size=sure.shape) < sure**0.5
        truth = draw.integers(3, size=(rows, 1))
        answer = np.where(right, truth, (truth + 1) % 3)
        table[:] = [np.where(np.eye(3)[answer] == 1, sure[..., None], (1 - sure[..., None]) / 2)]
        return list(range(rows))

    stages = [lambda inputs, k=k: table[0][inputs, k] for k in range(kinds)]
    costs = [1, 20] if kinds == 2 else [1, 4, 20]
    for seed in range(60):
        cascade = Cascade(stages, costs=costs, classes=CLASSES)
        report = cascade.certify(drawn(900), level=0.1, confidence=0.9, seed=seed)
        found = cascade.predict(drawn(4000))
        wrong = np.mean(
            [CLASSES.index(str(label)) for label in found.labels] != table[0][:, -1].argmax(1)
        )
        broken += wrong > 0.1 + 3 * np.sqrt(0.1 * 0.9 / 4000)
        met += report.met
    assert met > 40
    assert broken <= 0.1 * 60 + 3 * np.sqrt(60 * 0.1 * 0.9)


class Exiting:
    """A model of two steps, the first of which is sure of all but every second hard input."""

    num_steps, policy, classes = 2, policies.Confidence(0.9), CLASSES

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def record(self, inputs: Sequence[str]) -> Any:
        return SimpleNamespace(
            outputs=np.log(np.stack([middle(inputs), dear(inputs)], axis=1) + 1e-9)
        )

    def predict(self, inputs: Sequence[str], policy: Any = None) -> Any:
        self.asked.append(policy)
        record = Record(self.record(inputs).outputs, None, np.arange(len(inputs)))
        steps = record.exit_steps(self.policy if policy is None else policy)
        return SimpleNamespace(outputs=record.outputs[np.arange(len(inputs)), steps - 1])


@pytest.mark.parametrize("referred", [False, True])
def test_exits_of_the_last_stage_are_stages_too(referred: bool, tmp_path: Path) -> None:
    model = Exiting()
    cascade = Cascade([cheap, model], costs=[1, 20])
    texts, numbers = world(2000)
    report = cascade.certify(texts, level=0.02, reference=dear if referred else None)
    assert report.met, report.statement
    assert len(report.shares) == 2
    answers = cascade.predict(texts)
    assert isinstance(model.asked[-1], StageThresholds)
    record = cascade.record(texts)
    steps = record.exit_steps(cascade.policy)
    assert (np.minimum(steps, 2) == answers.stage).all()
    own = record.outputs[np.arange(2000), steps - 1].argmax(1)
    assert [CLASSES[n] for n in own] == answers.labels
    assert np.mean(own != numbers) <= 0.03
    assert (steps == 2).any()  # some leave the model early
    for stage in cascade.stages:
        stage.save = lambda folder: None  # type: ignore[method-assign]
    cascade.save(tmp_path / "cascade")
    again = Cascade.load(tmp_path / "cascade", stages=[cheap, model])
    assert again.policy == cascade.policy
    watch = watch_of(cascade.policy, share=0.5)
    assert (watch is None) == referred  # full depth cannot be asked about the reference
    assert watch is None or watch.policies == (cascade.policy,)
    full = cascade.predict(texts, policy=policies.LastStep())
    assert full.labels == [CLASSES[n] for n in numbers]
    assert model.asked[-1] == policies.LastStep()  # and not its own
    by_stage = StageThresholds(policies.Confidence(0.5), (0.9, 0.6))
    cascade.predict(texts, policy=by_stage)
    assert model.asked[-1] == StageThresholds(policies.Confidence(0.5), (0.6,))
    alone = Cascade([cheap, model], costs=[1, 20], policy=policies.Confidence(0.9))
    assert (
        alone.record(texts[:9]).num_steps == 2
    )  # with a policy of the caller's the model keeps its own exits
    alone.predict(texts[:9])
    assert model.asked[-1] is None


def test_a_stage_that_is_sure_and_wrong_is_passed_over() -> None:
    def wrong(inputs: Sequence[str]) -> NDArray[Any]:
        return 0.7 * np.roll(dear(inputs), 1, axis=1) + 0.1

    cascade = Cascade([cheap, wrong, dear], costs=[1, 5, 30], classes=CLASSES)
    report = cascade.certify(world(3000)[0], level=0.02)
    assert report.met
    assert report.speed_up > 2
    assert report.shares[1] < 0.01


def test_a_reference_with_exits_is_asked_at_full_depth() -> None:
    reference = Exiting()
    cascade = Cascade([cheap, dear], costs=[1, 20], classes=CLASSES)
    cascade.certify(world(1000)[0], reference=reference)
    assert set(map(repr, reference.asked)) == {"LastStep()"}


def test_stages_are_anything_that_answers(tmp_path: Path) -> None:
    texts, numbers = world(400)
    named = [CLASSES[n] for n in numbers]
    student = Student.fit(texts, named)
    inner = Cascade(
        [student, dear], costs=[1, 5], classes=CLASSES, policy=policies.Confidence(0.99)
    )
    outer = Cascade([inner, dear], costs=[2, 9], policy=policies.Confidence(0.9))
    assert outer.classes == CLASSES
    assert outer.predict(texts).labels == named
    cascade = Cascade([student, student], costs=[1, 1], policy=policies.Confidence(0.9))
    cascade.certify(texts, level=0.05)
    cascade.save(tmp_path / "cascade")
    again = Cascade.load(tmp_path / "cascade")
    assert again.policy == cascade.policy
    assert (again.predict(texts).stage == cascade.predict(texts).stage).all()
    np.testing.assert_allclose(again.predict(texts).outputs, cascade.predict(texts).outputs)
    nested = Cascade([str(tmp_path / "cascade" / "stage_1"), tmp_path / "cascade"], costs=[1, 2])
    assert nested.predict(texts[:5]).labels == again.predict(texts[:5]).labels
    with pytest.raises(ArgumentError, match=r"Cascade\.load"):
        Cascade([dear, dear], classes=CLASSES).save(tmp_path / "functions")
    given = Cascade([cheap, dear], costs=[1, 2], classes=CLASSES)
    with pytest.raises(CheckpointError, match="no cascade"):
        Cascade.load(tmp_path)
    assert given.predict(texts).labels == named


def test_a_classifier_of_model2vec_stands_in_the_place_of_a_student(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class StaticModelPipeline:  # as model2vec 0.10 has it
        classes_ = np.array(CLASSES)
        predict_proba = staticmethod(cheap)

        def save_pretrained(self, path: Path) -> None:
            path.mkdir(parents=True)
            (path / "head.safetensors").touch()
            (path / "config.json").touch()

        @classmethod
        def from_pretrained(cls, path: Path) -> StaticModelPipeline:
            return cls()

    monkeypatch.setitem(sys.modules, "model2vec", SimpleNamespace(inference=None))
    module = SimpleNamespace(StaticModelPipeline=StaticModelPipeline)
    monkeypatch.setitem(sys.modules, "model2vec.inference", module)
    texts, numbers = world(600)
    cascade = Cascade([StaticModelPipeline(), Student.fit(texts, [CLASSES[n] for n in numbers])])
    assert cascade.certify(texts, level=0.05).met
    cascade.save(tmp_path / "cascade")
    assert Cascade.load(tmp_path / "cascade").predict(texts).labels == cascade.predict(texts).labels


def test_a_stage_that_fails_leaves_the_other_rows_answered() -> None:
    def breaking(inputs: Sequence[str]) -> NDArray[Any]:
        if any(text.startswith("loan") for text in inputs):
            raise OSError("the service is gone")
        return dear(inputs)

    cascade = Cascade(
        [cheap, breaking], costs=[1, 9], classes=CLASSES, policy=policies.Confidence(0.8)
    )
    answers = cascade.predict(["card 0 1", "loan 0 2", "loan 1 3", "card 1 5"], batch_size=1)
    assert answers.labels == ["card", "loan", None, "card"]
    assert [str(error) for error in answers.errors.values()] == ["the service is gone"]
    assert list(answers.errors) == [2]


def test_bad_stages_and_too_few_rows_are_refused() -> None:
    texts, _ = world(60)
    for wrong in (
        lambda inputs: np.ones((len(inputs), 2)),
        lambda inputs: -dear(inputs),
        lambda inputs: 7 * dear(inputs),
    ):
        with pytest.raises(ArgumentError, match="probabilities"):
            Cascade([wrong, dear], classes=CLASSES).record(texts)
    with pytest.raises(ArgumentError, match=r"149 inputs that certify.*got 40"):
        Cascade([cheap, dear], classes=CLASSES).certify(texts, level=0.02)
    with pytest.raises(ArgumentError, match="positives"):
        Cascade([cheap, dear], classes=CLASSES).certify(
            texts * 5, level=0.02, risk="missed", positive="card"
        )
    foreign = SimpleNamespace(predict_proba=dear, classes_=["card", "loan", "mortgage"])
    with pytest.raises(ArgumentError, match=r"mortgage"):
        Cascade([foreign, dear], classes=CLASSES).record(texts)
    nan = Cascade([lambda inputs: dear(inputs) * np.nan, dear], costs=[1, 2], classes=CLASSES)
    nan.policy = policies.Confidence(0.5)
    assert nan.predict(texts).stage.tolist() == [2] * 60  # what is no number defers


def test_students_are_calibrated_and_defer_texts_without_a_known_word(tmp_path: Path) -> None:
    texts, numbers = world(600)
    named = [CLASSES[n] for n in numbers]
    student = Student.fit(texts[:400], named[:400])
    found = student.predict_proba(texts[400:])
    assert (
        np.mean(
            [
                student.classes[n] == name
                for n, name in zip(found.argmax(1), named[400:], strict=True)
            ]
        )
        > 0.99
    )
    np.testing.assert_allclose(student.predict_proba(["çéñ"]), 1 / 3)
    cascade = Cascade([student, student], costs=[1, 2], policy=policies.Confidence(0.5))
    assert cascade.predict(["çéñ", texts[0]]).stage.tolist() == [2, 1]
    student.save(tmp_path)
    np.testing.assert_allclose(
        Student.load(tmp_path).predict_proba(texts), student.predict_proba(texts)
    )
    two = Student.fit(["good film", "bad film"] * 30, ["yes", "no"] * 30)
    assert two.predict_proba(["good film", "bad film"]).argmax(1).tolist() == [
        two.classes.index("yes"),
        two.classes.index("no"),
    ]
    with pytest.raises(ArgumentError, match="two classes"):
        Student.fit(texts, ["one"] * 600)


def test_cascades_run_where_torch_is_not_installed(tmp_path: Path) -> None:
    texts, numbers = world(300)
    student = Student.fit(texts, [CLASSES[n] for n in numbers])
    Cascade([student, student], costs=[1, 2], policy=policies.Confidence(0.9)).save(tmp_path)
    code = (
        "import sys; sys.modules['torch'] = sys.modules['sklearn'] = None; import ponder.cascade as c\n"
        "print(c.Cascade.load(sys.argv[1]).predict(['card 0 1']).labels)"
    )
    made = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert made.stdout.strip() == "['card']"


def test_classes_are_those_of_the_last_stage_in_its_order() -> None:
    cheap = SimpleNamespace(
        predict_proba=lambda texts: np.tile([0.9, 0.1], (len(texts), 1)), classes_=["b", "a"]
    )
    dear = SimpleNamespace(
        predict_proba=lambda texts: np.tile([0.2, 0.5, 0.3], (len(texts), 1)), classes_=[*"abc"]
    )
    cascade = Cascade([cheap, dear], [1, 9], policy=policies.Confidence(0.8))
    assert cascade.classes == ("a", "b", "c")
    found = cascade.predict(["one", "two"])
    assert (found.labels, found.stage.tolist()) == (["b", "b"], [1, 1])


def test_every_stage_has_a_threshold_of_its_own() -> None:
    outputs = np.log([[[0.7, 0.3], [0.7, 0.3], [0.5, 0.5]], [[0.95, 0.05], [0.5, 0.5], [0.5, 0.5]]])
    record = Record(outputs.astype(np.float32), None, np.arange(2))
    assert record.exit_steps(StageThresholds(policies.Confidence(0.5), (0.9, 0.6))).tolist() == [
        2,
        1,
    ]
