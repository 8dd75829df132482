"""A fine-tuned classifier, a cross encoder, and files of texts, as a user of the commands has them."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import tasks
from benchmarks.finetuned.fine_tune import fine_tune
from benchmarks.rerank.data import Queries, load
from benchmarks.rerank.training import train

__all__ = ["prepare"]

_TRAIN = 4000
_TRAFFIC = 3000
_FEW = 1000
_TRAINING_QUERIES = 3000
_QUERIES = 600
_CANDIDATES = 20
_ANSWERING = '''"""Stands in for an LLM: it looks the label up."""

import csv

with open("fresh.csv", newline="", encoding="utf-8") as file:
    LABELS = {row["text"]: row["label"] for row in csv.DictReader(file)}


def ask(texts):
    return [LABELS[text] for text in texts]
'''


def prepare(text_dir: Path, work: Path) -> None:
    """Write the models and files on which the samples are made; models that are there are kept."""
    work.mkdir(parents=True, exist_ok=True)
    task = tasks.get("Banking77")
    splits = task.load(text_dir)
    rows = splits["train"].shuffle(seed=0)
    names = list(rows.features["label"].names)
    teaching = rows.select(range(_TRAIN))
    traffic = rows.select(range(_TRAIN, _TRAIN + _TRAFFIC))
    _write_texts(work / "traffic.csv", traffic, names)
    _write_texts(work / "few.csv", traffic.select(range(_FEW)), names)
    _write_texts(work / "fresh.csv", splits["test"], names)
    (work / "my_module.py").write_text(_ANSWERING, "utf-8")
    if not (work / "my-intents" / "config.json").exists():
        texts = list(teaching["sentence1"])
        labels = list(teaching["label"])
        fine_tune(
            "minilm",
            texts,
            labels,
            names,
            work / "my-intents",
            epochs=2,
            lr=3e-4,
            seed=0,
            bf16=True,
        )
    queries = load("Banking77", text_dir, 0, train=True)
    later = queries.cut(_TRAINING_QUERIES, _TRAINING_QUERIES + _QUERIES)
    _write_queries(work / "queries.jsonl", later)
    _write_queries(work / "fresh.jsonl", load("Banking77", text_dir, 0, train=False).cut(0, 200))
    if not (work / "my-reranker" / "config.json").exists():
        taught = queries.cut(0, _TRAINING_QUERIES)
        train("minilm", taught, work / "my-reranker", epochs=1, lr=2e-4, seed=0, bf16=True)


def _write_texts(path: Path, rows: Iterable[Mapping[str, Any]], names: Sequence[str]) -> None:
    """Write texts with the names of their classes."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows([row["sentence1"], names[row["label"]]] for row in rows)


def _write_queries(path: Path, queries: Queries) -> None:
    """Write queries with the candidates of the first stage and its scores."""
    lines = []
    for text, (places, scores) in zip(queries.texts, queries.nearest(_CANDIDATES), strict=True):
        documents = [queries.documents[place] for place in places]
        lines.append(json.dumps({"query": text, "documents": documents, "scores": scores}))
    path.write_text("\n".join(lines) + "\n", "utf-8")
