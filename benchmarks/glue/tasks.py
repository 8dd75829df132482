"""The nine GLUE tasks in one table: where the data lie, how a line reads, and what is measured.

Column names follow GLUE's own files, the order of labels follows the hub's `nyu-mll/glue`, so that integer labels agree
between the two.

Reference: Wang et al., "GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language Understanding", ICLR
2019.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets import DatasetDict

from benchmarks.glue import data
from benchmarks.tasks import Metric, Task, register

__all__ = ["DIAGNOSTIC", "TASKS", "GlueSplit", "GlueTask"]


@dataclass(frozen=True)
class GlueSplit:
    """One split of a task; `columns` are those of a file that has no header line."""

    name: str
    columns: tuple[str, ...] | None = None
    stem: str = ""

    @property
    def file(self) -> str:
        """File name within the task's folder."""
        return f"{self.stem or self.name}.tsv"

    @property
    def hub(self) -> str:
        """Name of the split on the hub."""
        return self.name.replace("dev", "validation")

    @property
    def labelled(self) -> bool:
        """Whether the labels are public; GLUE keeps those of the test splits."""
        return not self.name.startswith("test")


_COLA = ("source", "acceptable", "mark", "sentence")
_SPLITS = tuple(map(GlueSplit, ("train", "dev", "test")))
_COLA_SPLITS = (GlueSplit("train", _COLA), GlueSplit("dev", _COLA), GlueSplit("test"))
_MNLI_NAMES = ("train", "dev_matched", "dev_mismatched", "test_matched", "test_mismatched")


@dataclass(frozen=True, kw_only=True)
class GlueTask(Task):
    """One task of GLUE: beside its labels and metrics, its files.

    Args:
        hub_name: Name of the configuration on the hub.
        columns: The one or two columns of a file that hold the sentences.
        label_column: The column of a file that holds the label.
        label_texts: How a file writes each class, in the order of `label_names`; the names themselves if empty.
        hub_columns: The columns that hold the sentences on the hub; as in the files if empty.
        splits: The splits.
        index_column: The column that numbers the examples of a test file.
        malformed_lines: How many lines of a labelled split may have too few or too many columns, and are then
            left out; one more is an error.
    """

    hub_name: str
    columns: tuple[str, ...]
    label_column: str = "label"
    label_texts: tuple[str, ...] = ()
    hub_columns: tuple[str, ...] = ()
    splits: tuple[GlueSplit, ...] = _SPLITS
    index_column: str = "index"
    malformed_lines: int = 0

    @property
    def dev_splits(self) -> tuple[str, ...]:
        """Names of the labelled splits that are not for training."""
        return tuple(split.name for split in self.splits if split.labelled and split.name != "train")

    def load(self, folder: Path | None, only: Sequence[str] = ()) -> DatasetDict:
        """Read splits from a folder in GLUE's layout, or (None) from the hub; see `benchmarks.glue.data`."""
        return data.load(self, folder, only)


_PAIR, _NLI, _BINARY = ("sentence1", "sentence2"), ("entailment", "not_entailment"), ("0", "1")
_NLI_OF_THREE = ("entailment", "neutral", "contradiction")
_ACCURACY: tuple[Metric, ...] = ("accuracy",)
_AND_F1: tuple[Metric, ...] = ("accuracy", "f1")

TASKS = tuple(
    register(task)
    for task in (
        GlueTask(
            "CoLA", ("matthews",), ("unacceptable", "acceptable"), hub_name="cola", columns=("sentence",),
            label_column="acceptable", label_texts=_BINARY, splits=_COLA_SPLITS,
        ),
        GlueTask(
            "SST-2", _ACCURACY, ("negative", "positive"), hub_name="sst2", columns=("sentence",), label_texts=_BINARY,
        ),
        GlueTask(
            "MRPC", _AND_F1, ("not_equivalent", "equivalent"), hub_name="mrpc", columns=("#1 String", "#2 String"),
            label_column="Quality", label_texts=_BINARY, hub_columns=_PAIR,
        ),
        GlueTask(
            "STS-B", ("pearson", "spearman"), label_range=(0.0, 5.0), hub_name="stsb", columns=_PAIR,
            label_column="score",
        ),
        # A few lines of the official dump lack columns; they are left out, as the hub does.
        GlueTask(
            "QQP", _AND_F1, ("not_duplicate", "duplicate"), hub_name="qqp", columns=("question1", "question2"),
            label_column="is_duplicate", label_texts=_BINARY, index_column="id", malformed_lines=16,
        ),
        GlueTask(
            "MNLI", _ACCURACY, _NLI_OF_THREE, hub_name="mnli", columns=_PAIR, label_column="gold_label",
            hub_columns=("premise", "hypothesis"), splits=tuple(map(GlueSplit, _MNLI_NAMES)),
        ),
        GlueTask("QNLI", _ACCURACY, _NLI, hub_name="qnli", columns=("question", "sentence")),
        GlueTask("RTE", _ACCURACY, _NLI, hub_name="rte", columns=_PAIR),
        GlueTask(
            "WNLI", _ACCURACY, ("not_entailment", "entailment"), hub_name="wnli", columns=_PAIR, label_texts=_BINARY
        ),
    )
)  # fmt: skip
"""The tasks, in GLUE's order."""

DIAGNOSTIC = GlueTask(
    "diagnostic",
    ("matthews",),
    _NLI_OF_THREE,
    hub_name="ax",
    columns=_PAIR,
    hub_columns=("premise", "hypothesis"),
    splits=(GlueSplit("test", stem="diagnostic"),),
)
"""The diagnostic set, answered by a model of MNLI: one split whose labels are hidden. Not one of the nine."""
