"""The table of GLUE's tasks."""

import dataclasses

import pytest

from benchmarks import tasks
from benchmarks.glue.tasks import TASKS
from ponder.errors import ArgumentError

EXPECTED = {
    # name: (hub, labels in the hub's order, pair, metrics)
    "CoLA": ("cola", ("unacceptable", "acceptable"), False, {"matthews"}),
    "SST-2": ("sst2", ("negative", "positive"), False, {"accuracy"}),
    "MRPC": ("mrpc", ("not_equivalent", "equivalent"), True, {"accuracy", "f1"}),
    "STS-B": ("stsb", (), True, {"pearson", "spearman"}),
    "QQP": ("qqp", ("not_duplicate", "duplicate"), True, {"accuracy", "f1"}),
    "MNLI": ("mnli", ("entailment", "neutral", "contradiction"), True, {"accuracy"}),
    "QNLI": ("qnli", ("entailment", "not_entailment"), True, {"accuracy"}),
    "RTE": ("rte", ("entailment", "not_entailment"), True, {"accuracy"}),
    "WNLI": ("wnli", ("not_entailment", "entailment"), True, {"accuracy"}),
}


def test_the_nine_tasks():
    assert tuple(task.name for task in TASKS) == tuple(EXPECTED)
    assert tasks.names()[:9] == tuple(EXPECTED)  # those of other folders follow


@pytest.mark.parametrize("name", EXPECTED)
def test_row(name):
    task = tasks.get(name)
    hub, labels, pair, metrics = EXPECTED[name]
    assert (task.hub_name, task.label_names, len(task.columns) == 2, set(task.metrics)) == (hub, labels, pair, metrics)
    assert task.kind == ("regression" if name == "STS-B" else "classification")
    assert task.num_labels == (len(labels) or 1)
    assert len(task.label_texts) in (0, len(labels))
    assert len(task.hub_columns) in (0, len(task.columns))
    assert (task.label_range is None) == (name != "STS-B")
    mnli = name == "MNLI"
    assert task.dev_splits == (("dev_matched", "dev_mismatched") if mnli else ("dev",))


def test_rows_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        tasks.get("RTE").name = "other"


@pytest.mark.parametrize(
    ("spelling", "name"),
    [("rte", "RTE"), ("sst2", "SST-2"), ("SST-2", "SST-2"), ("sts_b", "STS-B"), (" COLA ", "CoLA")],
)
def test_names_are_forgiving(spelling, name):
    assert tasks.get(spelling) is tasks.get(name)


@pytest.mark.parametrize("name", ["SNLI", "", "diagnostic"])
def test_unknown_names_list_the_known_ones(name):
    with pytest.raises(ArgumentError) as caught:
        tasks.get(name)
    assert all(known in str(caught.value) for known in tasks.names())
    assert repr(name) in str(caught.value)
