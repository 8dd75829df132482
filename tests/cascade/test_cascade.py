"""Cascades: rows go where they are sure, promises hold over redraws, and stages are anything that answers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers

from ponder import policies
from ponder.calibration import control_risk, diagnose, sweep
from ponder.calibration.cascades import ThresholdPath, threshold_path
from ponder.calibration.families import family_of
from ponder.calibration.records import Record
from ponder.cascade import Cascade, Student
from ponder.cascade import student as student_module
from ponder.errors import ArgumentError, ArgumentTypeError, CheckpointError
from ponder.policies.stages import StageThresholds

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
        place = CLASSES.index(name)
        wrong = unsure == "1" and int(salt) % 4
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
        texts,
        [text.split()[0] for text in texts],
        risk=risk,
        level=0.02,
        positive="card" if risk == "missed" else None,
    )
    assert report.met, report.statement
    assert (report.chosen_on, report.certified_on) == (1000, 2000)
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
    draw = np.random.default_rng(0)
    broken = 0
    met = 0
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

    num_steps = 2
    policy = policies.Confidence(0.9)
    classes = CLASSES

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
    cascade.save(tmp_path / "cascade")
    again = Cascade.load(tmp_path / "cascade", stages=[cheap, model])
    assert again.policy == cascade.policy
    full = cascade.predict(texts, policy=policies.LastStep())
    assert full.labels == [CLASSES[n] for n in numbers]
    asked: Any = model.asked[-1]
    assert asked == policies.LastStep()  # and not its own
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


def test_a_student_knows_words_that_came_once_and_characters_that_came_again() -> None:
    texts = [*["my card", "a loan"] * 10, "zebra"]
    known = Student.fit(texts, [*["card", "loan"] * 10, "card"]).vocabulary
    assert {"zebra", "my card", "# card", "#d "} <= known.keys()
    assert not {gram for gram in known if "zeb" in gram} - {"zebra"}


def test_a_student_learns_many_classes_of_few_texts_without_a_warning() -> None:
    names = [f"class {number}" for number in range(30)]
    student = Student.fit([f"{name} text" for name in names], names)
    assert set(student.classes) == set(names)


def test_a_text_has_the_mean_embedding_of_its_tokens_however_long_it_is() -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    matrix = np.array([[1.0, 2.0], [3.0, 6.0], [0.0, 0.0]], dtype=np.float32)
    means = student_module.Embeddings(tokenizer.to_str(), matrix).means(
        ["a b", "a b " * 9, "", "a"]
    )
    np.testing.assert_allclose(means, [[2.0, 4.0], [2.0, 4.0], [0.0, 0.0], [1.0, 2.0]])


def test_the_grams_of_a_text_have_length_one() -> None:
    weights = np.array([[1.0, -1.0]])
    bias = np.zeros(2)
    student = Student(("card", "loan"), {"card": 0}, np.array([3.0]), weights, bias)
    found = student.predict_proba(["card", "card card card", "another"])
    one = 1.0 / (1.0 + np.exp(-2.0))
    np.testing.assert_allclose(found, [[one, 1 - one], [one, 1 - one], [0.5, 0.5]], rtol=1e-6)


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
            (path / "config.json").write_text("{}")

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


@pytest.mark.parametrize("batch_size", [1, 2, 256])
def test_a_row_on_which_a_stage_fails_goes_to_the_next_and_costs_no_other(
    batch_size: int, caplog: pytest.LogCaptureFixture
) -> None:
    def first(inputs: Sequence[str]) -> NDArray[Any]:
        if "loan 0 2" in inputs:
            raise ValueError("half an emoji")
        return cheap(inputs)

    def last(inputs: Sequence[str]) -> list[str | None]:
        if "card 1 9" in inputs:
            raise OSError("the service is gone")
        return [None if text.endswith(" 8") else f" {text.split()[0]} " for text in inputs]

    cascade = Cascade([first, last], classes=CLASSES, policy=policies.Confidence(0.8))
    texts = ["card 0 1", "loan 0 2", "loan 1 3", "card 1 9", "other 1 8", "card 1 4"]
    answers = cascade.predict(texts, batch_size=batch_size)
    assert answers.labels == ["card", "loan", "loan", None, None, "card"]
    assert answers.stage.tolist() == [1, 2, 2, 2, 2, 2]
    assert {row: type(error).__name__ for row, error in answers.errors.items()} == {
        1: "ValueError",
        3: "OSError",
        4: "PonderError",
    }
    assert len(caplog.records) == (2 if batch_size == 256 else len(caplog.records))
    assert "Stage 1 gave no answer to 1 of 6 rows" in caplog.text
    assert repr(answers) == "CascadeAnswers(6 rows, by stage [1, 5], 3 with errors)"


@pytest.mark.parametrize(
    "policy",
    [
        policies.Confidence(0.8).after(2),
        policies.Confidence(0.8).before(2),
        policies.Patience(1),
        policies.Confidence(0.95) | policies.Patience(1),
        policies.Margin(0.5) & policies.Entropy(0.9),
        policies.LastStep(),
    ],
    ids=repr,
)
def test_a_cascade_decides_as_any_policy_replayed_on_its_record(policy: Any) -> None:
    cascade = Cascade([cheap, middle, dear], costs=[1, 5, 30], classes=CLASSES, policy=policy)
    texts, _ = world(300, hard=0.6)
    record = cascade.record(texts)
    steps = record.exit_steps(policy)
    answers = cascade.predict(texts)
    assert answers.stage.tolist() == steps.tolist()
    np.testing.assert_allclose(answers.outputs, record.outputs[np.arange(300), steps - 1])


def test_stages_are_asked_only_if_their_answers_are_read() -> None:
    asked = list[str]()

    def watched(name: str, stage: Callable[..., Any]) -> Callable[..., Any]:
        def call(inputs: Sequence[str]) -> Any:
            asked.append(f"{name} {len(inputs)}")
            if name == "first" and "card 0 1" in inputs:
                raise OSError
            return stage(inputs)

        return call

    stages = [watched("first", cheap), watched("second", middle), watched("last", dear)]
    cascade = Cascade(stages, classes=CLASSES)
    texts = ["card 0 1", "loan 0 2", "other 0 3"]
    for policy, expected in (
        (policies.LastStep(), ["last 3"]),
        (policies.FixedStep(2), ["second 3"]),
        (policies.FixedStep(1), ["first 3", "first 1", "first 1", "first 1", "second 1"]),
    ):
        assert cascade.predict(texts, policy=policy).labels == ["card", "loan", "other"]
        assert asked == expected
        asked.clear()


def test_inputs_are_read_by_position_and_a_table_is_refused() -> None:
    pandas = pytest.importorskip("pandas")
    cascade = Cascade([cheap, dear], classes=CLASSES, policy=policies.Confidence(0.8))
    texts, _ = world(60)
    expected = cascade.predict(texts).labels
    series = pandas.Series(texts, index=np.random.default_rng(0).permutation(60))
    for inputs in (series, np.array(texts), tuple(texts), (text for text in texts)):
        assert cascade.predict(inputs).labels == expected
    assert len(cascade.record(text for text in texts)) == 60
    for wrong in (pandas.DataFrame({"text": texts}), "a text", {"text": texts}):
        with pytest.raises(ArgumentTypeError, match="one column"):
            cascade.predict(wrong)


def test_functions_may_answer_by_names_and_early_answers_to_rows_that_they_fail_on_are_lost() -> (
    None
):
    calls = list[int]()

    def ask(inputs: Sequence[str]) -> list[str | None]:
        """A large model: one text in twenty times out, one in fifty is answered by chatter."""
        calls.append(len(inputs))
        salts = [int(text.split()[2]) for text in inputs]
        if len(inputs) > 1 and any(salt % 20 == 0 for salt in salts):
            raise TimeoutError
        if salts[0] % 20 == 0:
            raise TimeoutError
        names = [text.split()[0] for text in inputs]
        return [
            "I am not sure." if salt % 50 == 7 else name
            for salt, name in zip(salts, names, strict=True)
        ]

    texts, _ = world(2000)
    cascade = Cascade([cheap, ask], costs=[0, 1], classes=CLASSES)
    report = cascade.certify(texts, level=0.1)
    assert report.met
    assert calls[0] == 5, "few are paid for before it is seen that the function answers"
    assert 100 < report.unanswered < 180
    assert f"no answer to {report.unanswered} rows" in report.remark
    assert report.chosen_on + report.certified_on == 2000
    assert report.shares[0] > 0.65
    assert report.observed > 0.8 * report.shares[0] * report.unanswered / 2000
    answers = cascade.predict(texts)
    assert 10 < answers.labels.count(None) < 80, "of those that are deferred alone"
    assert answers.labels.count(None) == len(answers.errors)


@pytest.mark.parametrize(
    "broken",
    [
        lambda inputs: [{"label": "card"}] * len(inputs),
        lambda inputs: ["none of these"] * len(inputs),
        lambda inputs: 1 / 0,
        lambda inputs: np.ones((len(inputs), 2)),
    ],
    ids=["dicts", "other names", "raises", "other classes"],
)
def test_a_broken_stage_is_seen_before_the_others_are_paid_for(broken: Any) -> None:
    paid = list[int]()

    def ask(inputs: Sequence[str]) -> NDArray[Any]:
        paid.append(len(inputs))
        return dear(inputs)

    for stages in ([broken, ask], [ask, broken]):
        with pytest.raises(ArgumentError, match="stages: expected"):
            Cascade(stages, classes=CLASSES).certify(world(900)[0], level=0.02)
        assert sum(paid) <= 5
        paid.clear()


def test_a_student_that_answers_everything_is_reported() -> None:
    texts, _ = world(600, hard=0.0)
    report = Cascade([cheap, dear], costs=[0, 1], classes=CLASSES).certify(texts, level=0.02)
    assert report.shares == (1.0, 0.0)
    assert not report.last_stage_needed
    assert report.remark.startswith("The last stage is no longer needed")
    assert report.speed_up == np.inf
    assert "\n" not in repr(report)
    assert "no longer needed" in repr(report)


@pytest.mark.parametrize("costs", [[0, 0], [1, -1], [1, np.nan], [-1, 1]])
def test_costs_that_are_none_are_refused_before_anything_is_asked(costs: list[float]) -> None:
    with pytest.raises(ArgumentError, match="costs: expected the cost of each stage"):
        Cascade([cheap, dear], costs=costs, classes=CLASSES)


def test_bad_stages_and_too_few_rows_are_refused() -> None:
    texts, _ = world(60)
    for wrong in (lambda inputs: -dear(inputs), lambda inputs: 7 * dear(inputs)):
        with pytest.raises(ArgumentError, match="no probabilities"):
            Cascade([wrong, dear], classes=CLASSES).record(texts)
    with pytest.raises(ArgumentError, match=r"inputs: expected rows as they were drawn.*2 times"):
        Cascade([cheap, dear], classes=CLASSES).certify(world(300)[0] * 2)
    with pytest.raises(ArgumentError, match=r"149 inputs that certify.*got 40"):
        Cascade([cheap, dear], classes=CLASSES).certify(texts, level=0.02)
    with pytest.raises(ArgumentError, match="positives"):
        Cascade([cheap, dear], classes=CLASSES).certify(
            world(400)[0], level=0.02, risk="missed", positive="card"
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
    for wrong, message in (
        (["one"] * 600, "two classes"),
        ([None, *named[1:]], r"got None at place 0\. Leave out"),
        ([*named[1:], float("nan")], r"got nan at place 599\. Leave out"),
        ([["card", "loan"], *named[1:]], "several labels"),
    ):
        with pytest.raises(ArgumentError, match=message):
            Student.fit(texts, wrong)
    assert repr(student) == f"Student(3 classes, {len(student.vocabulary)} grams)"


def test_the_words_that_a_student_keeps_are_bounded_by_their_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts, numbers = world(300)
    student = Student.fit(texts, [CLASSES[n] for n in numbers])
    monkeypatch.setattr(student_module, "_CACHE", 2**16)
    expected = student.predict_proba(texts)
    long = ["loan" * 500 + str(n) for n in range(40)]  # some 16,000 bytes each
    student.predict_proba([*long, "card " * 40_000, "x" * 2**17])
    kept = student._grams._of_words
    assert sum(sys.getsizeof(item) for pair in kept.items() for item in pair) <= 2**16
    np.testing.assert_allclose(student.predict_proba(texts), expected)


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


def test_a_place_of_a_path_is_a_threshold_for_each_stage() -> None:
    """A row that no rung is low enough for exits at none of them."""
    sure = np.random.default_rng(0).uniform(0.5, 1.0, (300, 3))
    record = Record(
        np.log(np.stack([sure, 1.0 - sure], -1)), None, np.arange(300), task="classification"
    )
    rungs = ((0.95, 0.95), (0.9, 0.95), (0.9, 0.8), (0.7, 0.8))
    path = ThresholdPath(policies.Confidence(0.9), rungs)
    steps = next(family_of(path, range(len(rungs)), record).exit_steps(record))[1]
    for rung, thresholds in enumerate(rungs):
        expected = np.argmax([*(sure[:, :2] > thresholds).T, np.ones(300, dtype=bool)], axis=0) + 1
        assert steps[rung].tolist() == expected.tolist()
        assert record.exit_steps(replace(path, rung=float(rung))).tolist() == expected.tolist()
        assert record.exit_steps(replace(path, rung=float(rung)).thresholds).tolist() == (
            expected.tolist()
        )


@pytest.mark.parametrize(
    ("loss_share", "path"),
    [
        (0.0, ((0.9, 0.9), (0.7, 0.9))),  # the first stage alone moves
        (1.0, ((0.9, 0.9), (0.9, 0.8), (0.7, 0.8), (0.7, 0.7))),
    ],
)
def test_the_stages_of_a_path_move_as_their_losses_allow(
    loss_share: float, path: tuple[tuple[float, float], ...]
) -> None:
    losses = np.array([[0.0, 0.1, 0.1], [0.0, 0.0, 0.2]])
    assert threshold_path(losses, np.array([0.9, 0.8, 0.7]), loss_share) == path


def test_every_stage_has_a_threshold_of_its_own() -> None:
    outputs = np.log([[[0.7, 0.3], [0.7, 0.3], [0.5, 0.5]], [[0.95, 0.05], [0.5, 0.5], [0.5, 0.5]]])
    record = Record(outputs.astype(np.float32), None, np.arange(2))
    assert record.exit_steps(StageThresholds(policies.Confidence(0.5), (0.9, 0.6))).tolist() == [
        2,
        1,
    ]
