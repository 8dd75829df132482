"""GLUE's metrics against plain Python."""

import dataclasses
import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import metrics, tasks
from ponder.errors import ArgumentError, NonFiniteError

CLASSES = st.integers(1, 40).flatmap(
    lambda size: st.tuples(*[st.lists(st.integers(0, 1), min_size=size, max_size=size)] * 2)
)
SCORES = st.integers(2, 40).flatmap(
    lambda size: st.tuples(*[st.lists(st.integers(0, 20).map(lambda n: n / 4), min_size=size, max_size=size)] * 2)
)


def accuracy(predictions, labels):
    return sum(p == y for p, y in zip(predictions, labels, strict=True)) / len(labels)


def counts(predictions, labels):
    pairs = list(zip(predictions, labels, strict=True))
    return [pairs.count(pair) for pair in ((1, 1), (0, 0), (1, 0), (0, 1))]


def f1(predictions, labels):
    tp, _, fp, fn = counts(predictions, labels)
    return 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else 0.0


def matthews(predictions, labels):
    tp, tn, fp, fn = counts(predictions, labels)
    product = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    return (tp * tn - fp * fn) / math.sqrt(product) if product else 0.0


def pearson(xs, ys):
    mx, my = sum(xs) / len(xs), sum(ys) / len(ys)
    covariance = sum((x - mx) * (y - my) for x, y in zip(xs, ys, strict=True))
    vx, vy = sum((x - mx) ** 2 for x in xs), sum((y - my) ** 2 for y in ys)
    return covariance / math.sqrt(vx * vy) if len(set(xs)) > 1 and len(set(ys)) > 1 else 0.0


def ranks(xs):
    return [sum(other < x for other in xs) + (xs.count(x) + 1) / 2 for x in xs]


def close(value):
    return pytest.approx(value, abs=1e-9)


@given(CLASSES)
def test_classification(pair):
    arrays = tuple(map(np.array, pair))
    assert metrics.score(tasks.get("CoLA"), *arrays) == close({"matthews": matthews(*pair), "score": matthews(*pair)})
    assert metrics.score(tasks.get("RTE"), *arrays) == close({"accuracy": accuracy(*pair), "score": accuracy(*pair)})
    for name in ("MRPC", "QQP"):
        a, f = accuracy(*pair), f1(*pair)
        assert metrics.score(tasks.get(name), *arrays) == close({"accuracy": a, "f1": f, "score": (a + f) / 2})


@given(SCORES)
def test_regression(pair):
    p, s = pearson(*pair), pearson(*map(ranks, pair))
    result = metrics.score(tasks.get("STS-B"), *map(np.array, pair))
    assert result == close({"pearson": p, "spearman": s, "score": (p + s) / 2})


@pytest.mark.parametrize("name", tasks.names())
def test_perfect_answers_score_one(name):
    task = tasks.get(name)
    labels = np.array([0.0, 2.5, 5.0, 1.25], dtype=np.float32) if name == "STS-B" else np.array([0, 1, 1, 0])
    assert metrics.score(task, labels, labels)["score"] == pytest.approx(1.0)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("value", [0.0, 2.7, 1e4])
def test_constant_scores_are_zero_not_nan(dtype, value):
    constant = np.full(4, value, dtype=dtype)
    varied = np.array([0.0, 1.0, 2.0, 5.0])
    for pair in ((constant, varied), (varied, constant), (constant, constant)):
        assert metrics.score(tasks.get("STS-B"), *pair) == {"pearson": 0.0, "spearman": 0.0, "score": 0.0}


def test_a_spread_of_rounding_is_no_correlation():
    # scipy warns here, and answers with the correlation of the rounding errors.
    noise = 3.0 + np.array([0.0, 1.0, 2.0, 5.0]) * 1e-15
    assert metrics.score(tasks.get("STS-B"), noise, np.array([0.0, 1.0, 2.0, 5.0]))["pearson"] == 0.0


def test_one_example():
    assert metrics.score(tasks.get("STS-B"), np.array([1.0]), np.array([2.0]))["score"] == 0.0
    assert metrics.score(tasks.get("CoLA"), np.array([1]), np.array([1]))["score"] == 0.0


@pytest.mark.parametrize(
    ("name", "predictions", "labels", "words"),
    [
        ("RTE", [0, 1], [0], ["(2,)", "(1,)"]),
        ("RTE", [], [], ["at least one"]),
        ("RTE", [[0.1, 0.9]], [[1, 0]], ["not logits"]),
        ("RTE", [0, 2], [0, 1], ["predictions", "2 at row 1"]),
        ("RTE", [0.0, 0.5], [0, 1], ["predictions", "0.5 at row 1"]),
        ("RTE", [0, 1], [0, -1], ["labels", "hidden"]),
        ("STS-B", [0.0, math.nan], [0.0, 1.0], ["predictions", "nan at row 1", "finite"]),
        ("STS-B", [0.0, 1.0], [0.0, math.inf], ["labels", "inf at row 1"]),
    ],
)
def test_bad_input(name, predictions, labels, words):
    with pytest.raises(ArgumentError) as caught:
        metrics.score(tasks.get(name), np.array(predictions), np.array(labels))
    assert all(word in str(caught.value) for word in words)


@given(st.integers(2, 40).flatmap(lambda n: st.tuples(*[st.lists(st.integers(0, 3), min_size=n, max_size=n)] * 2)))
def test_matthews_of_several_classes_is_that_of_scikit_learn(pair):
    sklearn = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    task = dataclasses.replace(tasks.get("MNLI"), metrics=("matthews",), label_names=("a", "b", "c", "d"))
    predictions, labels = map(np.array, pair)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of one class alone
        expected = sklearn.matthews_corrcoef(labels, predictions)
    assert metrics.score(task, predictions, labels)["score"] == close(expected)


@pytest.mark.parametrize(
    ("changes", "argument"),
    [
        ({"metrics": ("f1",), "label_names": ("a", "b", "c")}, "metrics"),
        ({"metrics": ("macro_f1",)}, "metrics"),
        ({"metrics": ("pearson",)}, "metrics"),
        ({"metrics": ()}, "metrics"),
        ({"label_names": ()}, "label_names"),
    ],
)
def test_a_task_that_cannot_be_measured_is_refused_where_it_is_made(changes, argument):
    with pytest.raises(ArgumentError, match=f"^{argument}: "):
        dataclasses.replace(tasks.get("RTE"), **changes)


@pytest.mark.parametrize("task", ["MRPC", "STS-B"])
def test_what_is_no_number_is_no_answer(task):
    width = tasks.get(task).num_labels
    for wrong in (np.nan, np.inf):
        outputs = np.zeros((4, width))
        outputs[2, 0] = wrong
        with pytest.raises(NonFiniteError, match="NaN or infinity"):
            metrics.answers(tasks.get(task), outputs)
