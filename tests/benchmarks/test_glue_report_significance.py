"""The bootstrap against the metrics' own functions, and against plain loops."""

import numpy as np
import pytest

from benchmarks import metrics, significance, tasks
from benchmarks.metrics import pack, unpack
from benchmarks.significance import Replicates, compare, holm, replicate


def example(name, rows=60, seed=0):
    task, generator = tasks.get(name), np.random.default_rng(seed)
    if task.kind == "regression":
        labels = generator.uniform(0, 5, rows).round(1)  # with ties
        return task, (labels + generator.normal(0, 1, rows)).round(1), labels
    labels = generator.integers(task.num_labels, size=rows)
    return task, np.where(generator.random(rows) < 0.7, labels, generator.integers(task.num_labels, size=rows)), labels


@pytest.mark.parametrize("name", tasks.names())
def test_replicates_are_the_metrics_of_the_drawn_examples(name):
    task, predictions, labels = example(name)
    drawn = replicate(task, {0: {"dev": predictions}}, {"dev": labels}, count=20, seed=3)
    generator = np.random.default_rng(3)
    for value in drawn.drawn[0]:
        rows = generator.integers(len(labels), size=len(labels))
        assert value == pytest.approx(metrics.score(task, predictions[rows], labels[rows])["score"])
    assert drawn.scores[0] == metrics.score(task, predictions, labels)["score"]


def test_a_part_of_the_draws_at_a_time_gives_the_same(monkeypatch):
    task, predictions, labels = example("RTE")
    whole = replicate(task, {0: {"dev": predictions}}, {"dev": labels}, count=50)
    monkeypatch.setattr(significance, "_DRAWS_AT_ONCE", 7 * len(labels))
    assert (replicate(task, {0: {"dev": predictions}}, {"dev": labels}, count=50).drawn == whole.drawn).all()


@pytest.mark.parametrize("name", ["CoLA", "MRPC", "STS-B"])
def test_constant_answers_score_as_in_the_metrics(name):
    task, predictions, labels = example(name)
    constant = np.zeros_like(predictions)
    drawn = replicate(task, {0: {"dev": constant}}, {"dev": labels}, count=5)
    generator = np.random.default_rng(0)
    rows = [generator.integers(len(labels), size=len(labels)) for _ in range(5)]
    expected = [metrics.score(task, constant[each], labels[each])["score"] for each in rows]
    assert drawn.drawn[0] == pytest.approx(expected)


def test_splits_weigh_the_same():
    task, _, labels = example("MNLI")
    wrong = (labels + 1) % 3
    both = {"dev_matched": labels, "dev_mismatched": wrong}
    drawn = replicate(task, {0: both}, {"dev_matched": labels, "dev_mismatched": labels}, count=5)
    assert drawn.scores == pytest.approx([0.5])
    assert drawn.drawn[0] == pytest.approx([0.5] * 5)


def test_a_recipe_does_not_differ_from_itself_and_a_perfect_one_beats_a_poor_one():
    task, predictions, labels = example("RTE", rows=100)
    poor = replicate(task, {0: {"dev": predictions}, 1: {"dev": predictions}}, {"dev": labels}, 500)
    perfect = replicate(task, {0: {"dev": labels}, 1: {"dev": labels}}, {"dev": labels}, 500)
    same = compare([(poor, poor)])
    assert (same.difference, same.low, same.high, same.p) == (0.0, 0.0, 0.0, 1.0)
    clear = compare([(perfect, poor)])
    assert clear.difference == pytest.approx(1 - np.mean(predictions == labels))
    assert clear.low > 0
    assert clear.p == pytest.approx(2 / 501)
    turned = compare([(poor, perfect)])
    assert (turned.difference, turned.p) == (-clear.difference, clear.p)


def test_seeds_are_part_of_the_spread_and_are_paired():
    def constant(seeds):  # every draw of examples scores the same
        scores = np.array(list(seeds.values()))
        return Replicates(scores, np.repeat(scores[:, None], 4000, axis=1), tuple(seeds))

    one, other = constant({0: 0.9, 1: 0.5}), constant({1: 0.4, 0: 0.6, 7: 9.0})
    result = compare([(one, other)])  # seed 0: +0.3; seed 1: +0.1
    assert result.seeds == 2
    assert result.difference == pytest.approx(0.2)
    assert (result.low, result.high) == pytest.approx((0.1, 0.3))
    assert compare([(one, constant({7: 9.0}))]) is None


def test_holm_is_the_stepwise_bonferroni():
    assert holm([0.01, 0.2, 0.02, 0.9]) == pytest.approx([0.04, 0.4, 0.06, 0.9])
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])  # no smaller than that of a smaller p
    assert holm([]) == []


def test_predictions_survive_their_text():
    assert unpack(tasks.get("MNLI"), pack(tasks.get("MNLI"), np.array([2, 0, 1]))).tolist() == [2, 0, 1]
    scores = np.array([4.98765, -0.25, 0.0])
    assert unpack(tasks.get("STS-B"), pack(tasks.get("STS-B"), scores)) == pytest.approx(scores, abs=5e-4)
    assert unpack(tasks.get("RTE"), "0 1").dtype == np.int64
