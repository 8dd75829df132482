"""The nine GLUE tasks in one table: where the data lie, how a line reads, and what is measured.

Column names follow GLUE's own files, the order of labels follows the hub's `nyu-mll/glue`, so that
integer labels agree between the two.

Reference: Wang et al., "GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language
    Understanding", ICLR 2019.
"""

from __future__ import annotations

from benchmarks.glue.data import GlueSplit, GlueTask
from benchmarks.tasks import Metric, register

__all__ = ["TASKS"]

_COLA = ("source", "acceptable", "mark", "sentence")
_COLA_SPLITS = (GlueSplit("train", _COLA), GlueSplit("dev", _COLA), GlueSplit("test"))
_MNLI_NAMES = ("train", "dev_matched", "dev_mismatched", "test_matched", "test_mismatched")


_PAIR = ("sentence1", "sentence2")
_NLI = ("entailment", "not_entailment")
_BINARY = ("0", "1")
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
            label_column="is_duplicate", label_texts=_BINARY, malformed_lines=16,
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
