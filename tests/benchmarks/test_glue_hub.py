"""The hub gives what a folder gives; nothing here reaches for the network."""

import datasets
import pytest
from glue_files import LAYOUTS, make

from benchmarks import tasks
from benchmarks.glue.tasks import DIAGNOSTIC
from ponder.errors import DataError


@pytest.fixture
def glue(tmp_path):
    return make(tmp_path)


class Hub:
    """Stands for the hub: gives what the hub's `nyu-mll/glue` would, and notes what was asked."""

    def __init__(self, monkeypatch, answer):
        self.asked, self.answer = [], answer
        monkeypatch.setattr(datasets, "load_dataset", self)

    def __call__(self, *arguments):
        self.asked.append(arguments)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def hub_answer(task, classes=None):
    columns = task.hub_columns or task.columns
    label = datasets.Value("float32")
    if task.label_names:
        label = datasets.ClassLabel(names=list(classes or task.label_names))
    features = datasets.Features(
        {**{name: datasets.Value("string") for name in columns}, "label": label, "idx": datasets.Value("int32")}
    )
    answer = {}
    for split in task.splits:
        texts = {name: [f"{word} {n}. " for n in range(3)] for name, word in zip(columns, ("One", "Two"), strict=False)}
        labels = ([3.5, 0, 5] if not task.label_names else [0, 1, 0]) if split.labelled else [-1] * 3
        rows = {**texts, "label": labels, "idx": [40, 10, 20]}
        answer[split.hub] = datasets.Dataset.from_dict(rows, features=features)
    return datasets.DatasetDict(answer)


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_hub_gives_what_a_folder_gives(glue, monkeypatch, name):
    task = tasks.get(name)
    hub = Hub(monkeypatch, hub_answer(task))
    from_hub, from_folder = task.load(None), task.load(glue)
    assert hub.asked == [("nyu-mll/glue", task.hub_name)]
    assert list(from_hub) == list(from_folder)
    for split, rows in from_hub.items():
        assert rows.features == from_folder[split].features
        assert rows["idx"][:] == [0, 1, 2]
        assert rows["sentence1"][:] == ["One 0.", "One 1.", "One 2."]
        hidden = split.startswith("test")
        assert rows["label"][:] == ([-1] * 3 if hidden else [3.5, 0, 5] if name == "STS-B" else [0, 1, 0])


def test_the_diagnostic_set_from_the_hub(monkeypatch):
    hub = Hub(monkeypatch, hub_answer(DIAGNOSTIC))
    assert len(DIAGNOSTIC.load(None)["test"]) == 3
    assert hub.asked == [("nyu-mll/glue", "ax")]


def test_neither_folder_nor_hub(monkeypatch):
    Hub(monkeypatch, ConnectionError("unreachable"))
    with pytest.raises(DataError) as caught:
        tasks.get("RTE").load(None)
    for word in ("GLUE_DIR", "--glue-dir", "RTE/train.tsv", "allow access to the hub", "unreachable"):
        assert word in str(caught.value)


def test_a_hub_with_other_classes_splits_or_columns(monkeypatch):
    task = tasks.get("RTE")
    Hub(monkeypatch, hub_answer(task, classes=("not_entailment", "entailment")))
    with pytest.raises(DataError, match="expected the classes entailment, not_entailment"):
        task.load(None)
    answer = hub_answer(task)
    del answer["validation"]
    Hub(monkeypatch, answer)
    with pytest.raises(DataError, match="expected a split validation; got train, test"):
        task.load(None)
    Hub(monkeypatch, hub_answer(task).rename_column("sentence2", "other"))
    with pytest.raises(DataError, match="expected the columns sentence2; got sentence1, other"):
        task.load(None)
