"""The race of one model on fresh training texts, and all of its ways again on the test texts."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoTokenizer

from benchmarks import graded, tasks
from benchmarks.advice.lengthening import LongTexts, lengthen
from benchmarks.environment import environment
from benchmarks.finetuned.demo import GENERATED, TRAIN, generated
from benchmarks.finetuned.fine_tune import fine_tune
from benchmarks.finetuned.schedules import ROWS
from benchmarks.pairs import texts_of
from ponder.advice import Advice, Way, advise, timing
from ponder.statistics.verdict import judge

__all__ = ["measure"]

_LONG_TESTS = 300
"""Number of long test texts, which are made of short ones."""
_NEAR = 1.05


@dataclass(frozen=True)
class Texts:
    """The texts of a task, with the names of their classes.

    Args:
        task: Name of the task.
        race: Texts of the race, on which the model was not trained.
        race_labels: Their classes.
        test: Test texts in scope.
        test_labels: Their classes.
        outside: Test texts out of scope, which are evaluated separately: a promise is about texts
            like those that certify it.
        mean_tokens: Mean number of tokens of the texts of the race, and of the test texts; None
            for short texts.
    """

    task: str
    race: list[str]
    race_labels: list[str]
    test: list[str]
    test_labels: list[str]
    outside: list[str] = field(default_factory=list)
    mean_tokens: tuple[float, float] | None = None


@dataclass(frozen=True)
class Timed:
    """Numbers of texts and of rounds of a timing."""

    texts: int
    rounds: int


_SHORT = Timed(texts=256, rounds=5)
_LONG = Timed(texts=32, rounds=3)
"""A text of 256 tokens costs as much as some fifteen short ones, so fewer are timed."""


def measure(
    name: str,
    backbone: str,
    folders: Mapping[str, Path | None],
    work: Path,
    level: float,
    most: int,
    seed: int,
    tokens: int | None = None,
) -> dict[str, Any]:
    """Race a fine-tuned model on one thread, and evaluate choice and promise on the test texts.

    If `tokens` is given, all texts are long ones, made of short texts up to so many tokens.
    """
    torch.set_num_threads(1)
    timing.clock = time.process_time  # other processes may be running
    if name == "generated":
        texts = _generated(backbone, work, most, seed)
    else:
        # Long texts are made of all short ones that did not train the model.
        limit = most if tokens is None else None
        texts = _of_task(name, backbone, folders, limit, seed)
    model = _folder(texts.task, backbone, work, seed)
    timed = _SHORT
    if tokens is not None:
        texts = _lengthened(texts, model, tokens, most, seed)
        timed = _LONG
        timing.TIMED = timed.texts
        timing.ROUNDS = timed.rounds
    start = time.process_time()
    advice = advise(model, texts.race, texts.race_labels, disagreement=level, seed=seed)
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "task": texts.task,
        "backbone": Path(backbone).name,
        "settings": {
            "disagreement": level,
            "texts": len(texts.race),
            "seed": seed,
            "clock": "processor, one thread",
            "tokens": tokens,
            "mean_tokens": texts.mean_tokens,
        },
        "race_processor_seconds": seconds,
        "peak_megabytes": peak,
        "winner": advice.winner.name,
        "sentence": advice.sentence,
        "remarks": list(advice.remarks),
        "race": [{key: _plain(value) for key, value in row.items()} for row in advice.table],
        "test": _evaluate(advice, texts, level, seed, timed),
        "environment": environment(torch.device("cpu")),
    }


def _evaluate(
    advice: Advice, texts: Texts, level: float, seed: int, timed: Timed
) -> dict[str, Any]:
    """Return all ways on the test texts, and whether choice and promise were right."""
    ways = [way for way in advice.ways if not way.spec.blind]
    full = ways[0].model
    full_labels = full.predict(texts.test).labels
    rows = [_on_test(way, full_labels, texts) for way in ways]
    _add_seconds(rows, ways, texts.test, seed, timed)
    chosen = next(row for row in rows if row["name"] == advice.winner.name)
    fastest = min(row["seconds"] for row in rows if row["promise"] is not None)
    others = round(chosen["other_answers"] * len(texts.test))
    verdict = judge(others, len(texts.test), level, 0.95)
    outside = [model.predict(texts.outside).labels for model in (advice.winner.model, full)]
    return {
        "rows": len(texts.test),
        "ways": rows,
        "slower_than_best": chosen["seconds"] / fastest,
        "choice": "right" if chosen["seconds"] <= _NEAR * fastest else "another is faster",
        "promise": "broken" if verdict.name == "broken" else "not broken",
        "within_level": chosen["other_answers"] <= level,
        "out_of_scope": {"rows": len(texts.outside), "other_answers": _different(*outside)},
    }


def _folder(task: str, backbone: str, work: Path, seed: int) -> Path:
    """Return the folder of the fine-tuned model of a task."""
    return work / f"{task.lower()}-{Path(backbone).name}-s{seed}" / "plain"


def _generated(backbone: str, work: Path, most: int, seed: int) -> Texts:
    """Return generated texts; the model is fine-tuned if its folder has none."""
    names = list(graded.get("negation").labels)
    folder = _folder("generated", backbone, work, seed)
    if not (folder / "config.json").exists():
        fine_tune(backbone, *generated("train", TRAIN, seed), names, folder, seed=seed, **GENERATED)
    race, race_labels = generated("dev", min(most, 2000), seed)
    test, test_labels = generated("test", 1000, seed)
    return Texts(
        task="generated",
        race=list(race),
        race_labels=[names[label] for label in race_labels],
        test=list(test),
        test_labels=[names[label] for label in test_labels],
    )


def _of_task(
    name: str, backbone: str, folders: Mapping[str, Path | None], most: int | None, seed: int
) -> Texts:
    """Return fresh training texts, all or at most `most`, and test texts in and out of scope."""
    task = tasks.get(name)
    test_split = task.dev_splits[0]
    splits = task.load(folders[task.folder_option], ("train", test_split))
    train = splits["train"].shuffle(seed=seed)
    names = list(train.features["label"].names)
    start = ROWS[task.name]
    end = len(train)
    if most is not None:
        end = min(start + most, end)
    fresh = train.select(range(start, end))
    race, race_labels = _joined(fresh, names, backbone)
    test, test_labels = _joined(splits[test_split], names, backbone)
    apart = None if task.outside is None else names[task.outside]
    inside = [place for place, label in enumerate(test_labels) if label != apart]
    return Texts(
        task=task.name,
        race=race,
        race_labels=race_labels,
        test=[test[place] for place in inside],
        test_labels=[test_labels[place] for place in inside],
        outside=[text for text, label in zip(test, test_labels, strict=True) if label == apart],
    )


def _lengthened(texts: Texts, model: Path, tokens: int, most: int, seed: int) -> Texts:
    """Return long texts, made of the short texts of a race and of a test."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    room = tokens - tokenizer.num_special_tokens_to_add()

    def lengthened(short: list[str], labels: list[str], count: int) -> LongTexts:
        encoded = tokenizer(short, add_special_tokens=False)
        sizes = [len(ids) for ids in encoded["input_ids"]]
        return lengthen(short, labels, sizes, room, count, seed)

    race = lengthened(texts.race, texts.race_labels, most)
    test = lengthened(texts.test, texts.test_labels, _LONG_TESTS)
    return replace(
        texts,
        race=race.texts,
        race_labels=race.labels,
        test=test.texts,
        test_labels=test.labels,
        outside=[],
        mean_tokens=(race.mean_tokens, test.mean_tokens),
    )


def _joined(rows: Dataset, names: Sequence[str], backbone: str) -> tuple[list[str], list[str]]:
    """Return texts, pairs joined, and the names of their classes."""
    return texts_of(rows, backbone), [names[label] for label in rows["label"]]


def _on_test(way: Way, full: Sequence[str | None], texts: Texts) -> dict[str, Any]:
    """Return disagreement and accuracy of a way on the test texts."""
    own = way.model.predict(texts.test).labels
    other = _different(own, full)
    wrong = _different(own, texts.test_labels)
    return {
        "name": way.name,
        "promise": _plain(way.promise),
        "other_answers": other,
        "accuracy": 1.0 - wrong,
    }


def _different(some: Sequence[str | None], others: Sequence[str | None]) -> float:
    """Return the share of places at which two lists of labels differ; 0 if they are empty."""
    return float(np.mean([a != b for a, b in zip(some, others, strict=True)] or [False]))


def _add_seconds(
    rows: Sequence[dict[str, Any]],
    ways: Sequence[Way],
    texts: Sequence[str],
    seed: int,
    timed: Timed,
) -> None:
    """Time all ways in turn on some test texts."""
    places = np.random.default_rng(seed).permutation(len(texts))[: timed.texts]
    some = [texts[place] for place in places]
    rounds = [list[float]() for _ in ways]
    for _ in range(timed.rounds):
        for way, seconds in zip(ways, rounds, strict=True):
            start = time.process_time()
            way.model.predict(some)
            seconds.append((time.process_time() - start) / len(some))
    for row, seconds in zip(rows, rounds, strict=True):
        row["seconds"] = median(seconds)


def _plain(value: Any) -> Any:
    """Return a value as plain JSON: lists for tuples, None for NaN."""
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value
