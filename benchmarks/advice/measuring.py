"""The race of one model on fresh training texts, and all of its ways again on the test texts."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks import graded, tasks
from benchmarks.environment import environment
from benchmarks.finetuned.demo import GENERATED, TRAIN, generated
from benchmarks.finetuned.fine_tune import fine_tune
from ponder.advice import advise, timing
from ponder.calibration.verdict import judge

__all__ = ["measure"]

TAUGHT = {"Banking77": 5000, "CLINC150": 6000, "SST-2": 8000, "MRPC": 1800, "CoLA": 4000}
"""Rows of `train.shuffle(seed=seed)` that train the model of each task; the race gets later ones."""
_ROUNDS = 5
_TIMED = 256
_NEAR = 1.05
_SEPARATORS = {"minilm": " [SEP] ", "mpnet": " </s></s> "}

Texts = tuple[list[str], list[str]]


def measure(
    name: str,
    backbone: str,
    folders: Mapping[str, Path | None],
    work: Path,
    level: float,
    most: int,
    seed: int,
) -> dict[str, Any]:
    """Race a fine-tuned model on one thread, and evaluate choice and promise on the test texts."""
    torch.set_num_threads(1)
    timing.clock = time.process_time  # other processes may be running
    title, (texts, labels), test, outside = _texts(name, backbone, folders, work, most, seed)
    start = time.process_time()
    model = work / f"{title.lower()}-{Path(backbone).name}-s{seed}" / "plain"
    advice = advise(model, texts, labels, disagreement=level, seed=seed)
    took = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    ways = [way for way in advice.ways if way.name != "blind mix"]
    rows = [_on_test(way, ways[0].model.predict(test[0]).labels, test) for way in ways]
    _add_seconds(rows, ways, test[0], seed)
    chosen = next(row for row in rows if row["name"] == advice.winner.name)
    sound = [row["seconds"] for row in rows if row["promise"] is not None]
    verdict = judge(round(chosen["other_answers"] * len(test[0])), len(test[0]), level, 0.95)
    return {
        "task": title,
        "backbone": Path(backbone).name,
        "settings": {
            "disagreement": level,
            "texts": len(texts),
            "seed": seed,
            "clock": "processor, one thread",
        },
        "race_processor_seconds": took,
        "peak_megabytes": peak,
        "winner": advice.winner.name,
        "sentence": advice.sentence,
        "remarks": list(advice.remarks),
        "race": [{name: _plain(value) for name, value in row.items()} for row in advice.table],
        "test": {
            "rows": len(test[0]),
            "ways": rows,
            "slower_than_best": chosen["seconds"] / min(sound),
            "choice": "right" if chosen["seconds"] <= _NEAR * min(sound) else "another is faster",
            "promise": "broken" if verdict.name == "broken" else "not broken",
            "within_level": chosen["other_answers"] <= level,
            "out_of_scope": {
                "rows": len(outside),
                "other_answers": _different(
                    *(way.model.predict(outside).labels for way in (advice.winner, ways[0]))
                ),
            },
        },
        "environment": environment(torch.device("cpu")),
    }


def _texts(
    name: str, backbone: str, folders: Mapping[str, Path | None], work: Path, most: int, seed: int
) -> tuple[str, Texts, Texts, list[str]]:
    """Return the task's name, texts that the model never saw and test texts with names of classes, and texts of none.

    Out of scope stands apart, as in the metrics: a promise is about texts like those that certify
    it.
    """
    if name == "generated":
        names = list(graded.get("negation").labels)
        folder = work / f"generated-{Path(backbone).name}-s{seed}" / "plain"
        if not (folder / "config.json").exists():
            fine_tune(
                backbone, *generated("train", TRAIN, seed), names, folder, seed=seed, **GENERATED
            )
        parts = (generated("dev", min(most, 2000), seed), generated("test", 1000, seed))
        sides = [(list(texts), [names[label] for label in labels]) for texts, labels in parts]
        return name, sides[0], sides[1], []
    task = tasks.get(name)
    splits = task.load(folders[task.folder_option], ("train", task.dev_splits[0]))
    train = splits["train"].shuffle(seed=seed)
    taught = TAUGHT[task.name]
    fresh = train.select(range(taught, min(taught + most, len(train))))
    names = list(train.features["label"].names)
    seen, test = (_joined(rows, names, backbone) for rows in (fresh, splits[task.dev_splits[0]]))
    apart = None if task.outside is None else names[task.outside]
    inside = [pair for pair in zip(*test, strict=True) if pair[1] != apart]
    outside = [text for text, label in zip(*test, strict=True) if label == apart]
    return task.name, seen, ([text for text, _ in inside], [label for _, label in inside]), outside


def _joined(rows: Any, names: Sequence[str], backbone: str) -> Texts:
    """Return texts, of pairs with the separator between them, and the names of their classes."""
    texts = list(rows["sentence1"])
    if "sentence2" in rows.column_names:
        texts = [
            _SEPARATORS[backbone].join(pair) for pair in zip(texts, rows["sentence2"], strict=True)
        ]
    return texts, [names[label] for label in rows["label"]]


def _on_test(way: Any, full: Sequence[str], test: Texts) -> dict[str, Any]:
    own = way.model.predict(test[0]).labels
    other = _different(own, full)
    wrong = _different(own, test[1])
    return {
        "name": way.name,
        "promise": _plain(way.promise),
        "other_answers": other,
        "accuracy": 1.0 - wrong,
    }


def _different(some: Sequence[str], others: Sequence[str]) -> float:
    """Return the share of two lists' labels that differ; 0 of empty ones."""
    return float(np.mean([a != b for a, b in zip(some, others, strict=True)] or [False]))


def _add_seconds(
    rows: Sequence[dict[str, Any]], ways: Sequence[Any], texts: Sequence[str], seed: int
) -> None:
    """Time all ways in turn on some test texts."""
    places = np.random.default_rng(seed).permutation(len(texts))[:_TIMED]
    some = [texts[n] for n in places]
    took = [list[float]() for _ in ways]
    for _ in range(_ROUNDS):
        for way, seconds in zip(ways, took, strict=True):
            start = time.process_time()
            way.model.predict(some)
            seconds.append((time.process_time() - start) / len(some))
    for row, seconds in zip(rows, took, strict=True):
        row["seconds"] = median(seconds)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value
