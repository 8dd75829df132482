"""A rival without an encoder: TF-IDF with logistic regression, trained on the labels of the model.

It makes no promise about the model's answers: it answers every text, and is evaluated by the labels
of the test split.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline, make_union

from benchmarks.cascades.setting import LabelledTexts
from benchmarks.environment import environment
from benchmarks.files import write_json
from benchmarks.finetuned.schedules import ROWS

__all__ = ["run"]

_SEEDS = (0, 1, 2)


def run(tasks: Sequence[str], folders: Mapping[str, Path | None], out: Path) -> dict[str, Any]:
    """Train and test on every task and seed, and write `<out>/words.json`."""
    rows = []
    for task in tasks:
        for seed in _SEEDS:
            rows.append(_measure(task, seed, folders))
    result = {"rows": rows, "environment": environment()}
    write_json(out / "words.json", result)
    return result


def _measure(task: str, seed: int, folders: Mapping[str, Path | None]) -> dict[str, Any]:
    data = LabelledTexts.read(task, seed, folders, backbone="minilm")
    taught = ROWS[task]
    features = make_union(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
        TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True),
    )
    classifier = make_pipeline(features, LogisticRegression(C=10.0, max_iter=1000))
    start = time.process_time()
    classifier.fit(data.train[:taught], data.train_labels[:taught])
    seconds = time.process_time() - start
    inside = data.test_labels != -1 if data.outside is None else data.test_labels != data.outside
    answers = classifier.predict(data.test)
    return {
        "task": task,
        "seed": seed,
        "labels": taught,
        "test": int(inside.sum()),
        "accuracy": float(np.mean(answers[inside] == data.test_labels[inside])),
        "seconds": seconds,
    }
