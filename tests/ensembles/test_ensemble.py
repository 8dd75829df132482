"""Ensembles: the whole budget gives the model's own answer, exits keep the promise, rows leave."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import make_classification, make_friedman1
from sklearn.ensemble import (
    BaggingClassifier,
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    RandomForestClassifier,
    RandomForestRegressor,
    VotingClassifier,
)
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.tree import DecisionTreeClassifier

import ponder
from ponder import policies
from ponder.errors import ArgumentError, CheckpointError

X, Y = make_classification(1500, 10, n_informative=6, n_classes=3, random_state=0)
NAMES = np.array(["cat", "dog", "fish"])[Y]
FITTED, HELD_OUT, FRESH = slice(0, 300), slice(300, 1000), slice(1000, 1500)
MODELS: dict[str, Any] = {
    "forest": RandomForestClassifier(60, random_state=0),
    "extra": ExtraTreesClassifier(60, random_state=0),
    "boosting": GradientBoostingClassifier(n_estimators=40, max_depth=2, random_state=0),
    "bagging": BaggingClassifier(n_estimators=30, max_features=0.6, random_state=0),
    "hard": VotingClassifier(
        [
            ("tree", DecisionTreeClassifier(random_state=0)),
            ("bayes", GaussianNB()),
            ("logistic", LogisticRegression(max_iter=1000)),
        ]
    ),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> Any:
    return MODELS[request.param].fit(X[FITTED], NAMES[FITTED])


def test_all_members_give_the_answer_of_the_model(model: Any) -> None:
    answers = ponder.Ensemble(model, block=7).predict(X[FRESH], policy=policies.LastStep())
    own = model.predict(X[FRESH])
    if hasattr(model, "predict_proba"):
        probabilities = model.predict_proba(X[FRESH])
        np.testing.assert_allclose(answers.probabilities, probabilities.max(axis=1), atol=1e-6)
        apart = np.sort(probabilities, axis=1)[:, -1] - np.sort(probabilities, axis=1)[:, -2] > 1e-6
        assert (answers.labels == own)[apart].all()
    else:  # of equal votes the first class wins, here and there
        assert (answers.labels == own).all()
    assert (answers.exit_step == len(getattr(model, "estimators_", ()))).all()


def test_settled_rows_leave_and_no_answer_changes(model: Any) -> None:
    ensemble = ponder.Ensemble(model, block=1)
    answers = ensemble.predict(X[FRESH])
    whole = ensemble.predict(X[FRESH], policy=policies.LastStep())
    assert (answers.labels == whole.labels).all()
    if ensemble.members.in_any_order:
        assert answers.exit_step.mean() < ensemble.members.count


def test_a_run_exits_as_the_replay_of_its_record(model: Any) -> None:
    ensemble = ponder.Ensemble(model, block=5)
    if ensemble.num_steps == 1:  # three voters in one block
        assert (ensemble.predict(X[FRESH]).exit_step == 3).all()
        return
    found = ensemble.certify(X[HELD_OUT], level=0.05)
    assert found.met
    answers = ensemble.predict(X[FRESH])
    replayed = ensemble.record(X[FRESH]).exit_steps(ensemble.policy)
    members = np.minimum(replayed * 5, ensemble.members.count)
    assert (answers.exit_step != members).mean() <= 0.01  # sums of other rows round differently


def test_the_promise_holds_in_redraws() -> None:
    forest = RandomForestClassifier(60, random_state=0).fit(X[FITTED], Y[FITTED])
    record = ponder.Ensemble(forest, block=5).record(X[300:])
    disagrees = 1.0 - record.agreement()
    draw = np.random.default_rng(0)
    broken = 0
    for _ in range(200):
        rows = draw.integers(0, len(record), size=500)
        drawn = record.map(lambda values, rows=rows: values[rows])
        found = ponder.control_risk(drawn, policies.Lead, level=0.03)
        exits = record.exit_steps(found.policy)
        broken += disagrees[np.arange(len(record)), exits - 1].mean() > 0.03
    assert broken <= 0.05 * 200 + 3 * np.sqrt(200 * 0.05 * 0.95)


def test_numbers_leave_by_their_standard_error() -> None:
    rows, numbers = make_friedman1(1500, random_state=0)
    forest = RandomForestRegressor(60, random_state=0).fit(rows[:500], numbers[:500])
    ensemble = ponder.Ensemble(forest, block=5)
    with pytest.raises(ArgumentError, match="tolerance"):
        ensemble.certify(rows[500:1000])
    found = ensemble.certify(rows[500:1000], tolerance=1.0, level=0.05)
    answers = ensemble.predict(rows[1000:])
    moved = np.abs(answers.labels - forest.predict(rows[1000:])) > 1.0
    assert found.met
    assert moved.mean() <= 0.08
    assert answers.exit_step.mean() < 40


def test_a_function_is_asked_about_the_rows_alone_that_run() -> None:
    asked = list[int]()

    def sample(rows: Any, start: int, stop: int) -> Any:
        assert stop > start
        asked.append(len(rows))
        draws = np.random.default_rng(start).random((len(rows), stop - start))
        return (draws > rows[:, :1]).astype(int)

    rows = np.array([[0.0], [0.5], [1.0]])
    answers = ponder.Ensemble(sample, block=1, members=9, classes=["no", "yes"]).predict(rows)
    assert answers.labels[[0, 2]].tolist() == ["yes", "no"]
    assert answers.exit_step[[0, 2]].tolist() == [5, 5]
    assert asked[:5] == [3] * 5
    assert set(asked[5:]) <= {1}


def test_models_that_cannot_be_read_are_refused() -> None:
    with pytest.raises(ArgumentError, match="fitted forest"):
        ponder.Ensemble(LogisticRegression())
    with pytest.raises(ArgumentError, match="weights"):
        ponder.Ensemble(
            VotingClassifier(MODELS["hard"].estimators, weights=[1, 2, 3]).fit(X[FITTED], Y[FITTED])
        )


def test_a_saved_policy_is_read_for_the_same_members_alone(model: Any, tmp_path: Path) -> None:
    file = tmp_path / "ensemble.json"
    ensemble = ponder.Ensemble(model, block=5)
    found = ensemble.certify(X[HELD_OUT], level=0.05)
    ensemble.save(file)
    loaded = ponder.Ensemble.load(file, copy.deepcopy(model))
    assert loaded.policy == found.policy
    answers = loaded.predict(X[FRESH])
    assert (answers.exit_step == ensemble.predict(X[FRESH]).exit_step).all()
    other = clone(model).fit(X[HELD_OUT], NAMES[HELD_OUT])
    with pytest.raises(ArgumentError, match="Certify this model"):
        ponder.Ensemble.load(file, other)
    file.write_text(file.read_text().replace('"block": 5', '"block": 6'))
    with pytest.raises(CheckpointError, match="changed"):
        ponder.Ensemble.load(file, model)


def test_the_policy_of_a_function_is_saved_without_a_digest(tmp_path: Path) -> None:
    def sample(rows: Any, start: int, stop: int) -> Any:
        return np.ones((len(rows), stop - start), dtype=int)

    ponder.Ensemble(sample, block=2, members=9, classes=["no", "yes"]).save(tmp_path / "e.json")
    loaded = ponder.Ensemble.load(tmp_path / "e.json", sample, members=9, classes=["no", "yes"])
    assert loaded.predict(X[:3]).exit_step.tolist() == [6, 6, 6]


def test_a_stopped_answer_is_cheap_before_all_members_whatever_drifts() -> None:
    rows = np.random.default_rng(0).normal(size=(20_000, 4))
    score = rows[:, 0] + rows[:, 1] ** 2 - 1
    forest = RandomForestClassifier(60, random_state=0).fit(rows[:500], score[:500] > 0)
    ensemble = ponder.Ensemble(forest)
    assert ensemble.certify(rows[500:1500], level=0.05).met
    near = rows[3000:][abs(score[3000:]) < 0.15]
    stream = np.concatenate([rows[1500:2300], near[:800]])
    whole = forest.predict(stream).astype(str)
    assert (ensemble.predict(near).labels != forest.predict(near)).mean() > 0.07
    for seed in range(3):
        coin = random.Random(seed).random
        live = ponder.Live(ensemble, level=0.05, cheap=ensemble, coin=coin)
        found = live.answer(stream.tolist())
        differ = int((np.array(found.labels) != whole).sum())
        assert differ <= live.account.ledger.bound
        assert differ <= 0.05 * len(stream)
        assert found.source.count("reference") < 0.8 * len(stream)
