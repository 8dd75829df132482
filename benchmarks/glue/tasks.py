"""The nine GLUE tasks in one table: where the data lie, how a line reads, and what is measured.

A new task is one more row of `_TABLE`; nothing else needs to change. The column names follow GLUE's own
files, the label order follows the hub's `nyu-mll/glue`, so that integer labels agree between the two.

Reference: Wang et al., "GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language
Understanding", ICLR 2019.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ponder.errors import ArgumentError

__all__ = ["DIAGNOSTIC", "GlueSplit", "GlueTask", "get", "names"]

Kind = Literal["classification", "regression"]
Metric = Literal["accuracy", "f1", "matthews", "pearson", "spearman"]


@dataclass(frozen=True)
class GlueSplit:
    """One split of a task and the two places where it can be read.

    Args:
        name: Name of the split here, such as `"dev"` or `"dev_matched"`.
        file: File name within the task's folder.
        hub: Name of the split on the hub.
        labelled: Whether the labels are public; GLUE keeps those of the test splits.
        columns: The columns of a file that has no header line; None where the first line names them.
    """

    name: str
    file: str
    hub: str
    labelled: bool = True
    columns: tuple[str, ...] | None = None


_SPLITS = (
    GlueSplit("train", "train.tsv", "train"),
    GlueSplit("dev", "dev.tsv", "validation"),
    GlueSplit("test", "test.tsv", "test", labelled=False),
)
_COLA_COLUMNS = ("source", "acceptable", "mark", "sentence")
_COLA_SPLITS = (
    GlueSplit("train", "train.tsv", "train", columns=_COLA_COLUMNS),
    GlueSplit("dev", "dev.tsv", "validation", columns=_COLA_COLUMNS),
    GlueSplit("test", "test.tsv", "test", labelled=False),
)
_MNLI_SPLITS = (
    GlueSplit("train", "train.tsv", "train"),
    GlueSplit("dev_matched", "dev_matched.tsv", "validation_matched"),
    GlueSplit("dev_mismatched", "dev_mismatched.tsv", "validation_mismatched"),
    GlueSplit("test_matched", "test_matched.tsv", "test_matched", labelled=False),
    GlueSplit("test_mismatched", "test_mismatched.tsv", "test_mismatched", labelled=False),
)
_PAIR = ("sentence1", "sentence2")
_BINARY = ("0", "1")


@dataclass(frozen=True)
class GlueTask:
    """One task: its files, its labels and its metrics.

    Args:
        name: GLUE's name, which is also the name of the folder.
        hub_name: Name of the configuration on the hub.
        columns: The one or two columns of a file that hold the sentences.
        label_column: The column of a file that holds the label.
        metrics: What is measured; the GLUE number is the mean of these.
        label_names: Names of the classes in the hub's order; empty for regression.
        label_texts: How a file writes each class, in the same order; the names themselves if empty.
        label_range: Lowest and highest score of a regression task; None for classification.
        hub_columns: The columns that hold the sentences on the hub; as in the files if empty.
        splits: The splits.
        index_column: The column that numbers the examples of a test file.
        malformed_lines: How many lines of a labelled split may have too few or too many columns, and are then
            left out; one more is an error.
    """

    name: str
    hub_name: str
    columns: tuple[str, ...]
    label_column: str
    metrics: tuple[Metric, ...]
    label_names: tuple[str, ...] = ()
    label_texts: tuple[str, ...] = ()
    label_range: tuple[float, float] | None = None
    hub_columns: tuple[str, ...] = ()
    splits: tuple[GlueSplit, ...] = _SPLITS
    index_column: str = "index"
    malformed_lines: int = 0

    @property
    def kind(self) -> Kind:
        """What the task asks for: a class or a number."""
        return "regression" if self.label_range is not None else "classification"

    @property
    def num_labels(self) -> int:
        """Width of the head: the number of classes, or 1 for regression."""
        return len(self.label_names) or 1

    @property
    def is_pair(self) -> bool:
        """Whether an example is a pair of sentences."""
        return len(self.columns) == 2

    @property
    def dev_splits(self) -> tuple[str, ...]:
        """Names of the labelled splits that are not for training."""
        return tuple(split.name for split in self.splits if split.labelled and split.name != "train")


_NLI = ("entailment", "not_entailment")
_ACCURACY: tuple[Metric, ...] = ("accuracy",)

_TABLE = (
    GlueTask(
        "CoLA", "cola", ("sentence",), "acceptable", ("matthews",),
        ("unacceptable", "acceptable"), _BINARY, splits=_COLA_SPLITS,
    ),
    GlueTask("SST-2", "sst2", ("sentence",), "label", _ACCURACY, ("negative", "positive"), _BINARY),
    GlueTask(
        "MRPC", "mrpc", ("#1 String", "#2 String"), "Quality", ("accuracy", "f1"),
        ("not_equivalent", "equivalent"), _BINARY, hub_columns=_PAIR,
    ),
    GlueTask("STS-B", "stsb", _PAIR, "score", ("pearson", "spearman"), label_range=(0.0, 5.0)),
    # A few lines of the official dump lack columns; they are left out, as the hub does.
    GlueTask(
        "QQP", "qqp", ("question1", "question2"), "is_duplicate", ("accuracy", "f1"),
        ("not_duplicate", "duplicate"), _BINARY, index_column="id", malformed_lines=16,
    ),
    GlueTask(
        "MNLI", "mnli", _PAIR, "gold_label", _ACCURACY, ("entailment", "neutral", "contradiction"),
        hub_columns=("premise", "hypothesis"), splits=_MNLI_SPLITS,
    ),
    GlueTask("QNLI", "qnli", ("question", "sentence"), "label", _ACCURACY, _NLI),
    GlueTask("RTE", "rte", _PAIR, "label", _ACCURACY, _NLI),
    GlueTask("WNLI", "wnli", _PAIR, "label", _ACCURACY, ("not_entailment", "entailment"), _BINARY),
)  # fmt: skip

DIAGNOSTIC = GlueTask(
    "diagnostic",
    "ax",
    _PAIR,
    "label",
    ("matthews",),
    ("entailment", "neutral", "contradiction"),
    hub_columns=("premise", "hypothesis"),
    splits=(GlueSplit("test", "diagnostic.tsv", "test", labelled=False),),
)
"""The diagnostic set, answered by a model of MNLI: one split whose labels are hidden. Not one of the nine."""


def _key(name: str) -> str:
    return name.casefold().replace("-", "").replace("_", "").strip()


_BY_KEY = {_key(task.name): task for task in _TABLE}


def names() -> tuple[str, ...]:
    """Names of the nine tasks, in GLUE's order."""
    return tuple(task.name for task in _TABLE)


def get(name: str) -> GlueTask:
    """Find a task by its name; case and hyphens do not matter.

    Args:
        name: Such as `"RTE"`, `"SST-2"` or `"sst2"`.

    Returns:
        The row of the table.

    Raises:
        ArgumentError: No task has this name.

    Example:
        >>> get("sts-b").metrics
        ('pearson', 'spearman')
    """
    try:
        return _BY_KEY[_key(name)]
    except KeyError:
        raise ArgumentError(
            "task", expected=f"one of {', '.join(names())}", got=repr(name), remedy="Pass one of these names."
        ) from None
