"""Reranking tasks: texts and names of classes; hypotheses or questions and supporting sentences."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from datasets import Dataset, DatasetDict
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from benchmarks import backbones, tasks
from ponder.model import readouts

__all__ = ["Queries", "load"]

_OF_PAIRS = {"RTE": ("sentence2", "sentence1"), "QNLI": ("sentence1", "sentence2")}
"""The columns of query and document."""
_POOL = 50
"""Candidates of BM25."""


@dataclass(frozen=True, eq=False)
class Queries:
    """Queries, each with one right document among all.

    Args:
        texts: The queries.
        gold: The number of the right document of each query.
        documents: The names of the classes, as words, or the sentences of a task of pairs.
        first: The first stage: a bi-encoder, or BM25 for sentences.
        size: Number of candidates of the first stage that are reranked.
    """

    texts: list[str]
    gold: list[int]
    documents: list[str]
    first: FirstStage
    size: int

    def __len__(self) -> int:
        return len(self.texts)

    def cut(self, start: int, end: int | None = None) -> Queries:
        """Return some of the queries."""
        return replace(self, texts=self.texts[start:end], gold=self.gold[start:end])

    def nearest(self, size: int) -> list[tuple[list[int], list[float]]]:
        """Return the best documents of each query by the first stage, and their scores."""
        values, places = self.first.scores(self.texts, self.documents).topk(size, 1)
        return list(zip(places.tolist(), values.tolist(), strict=True))


def load(task: str, folder: Path, seed: int, *, train: bool) -> Queries:
    """Read the queries of a split in random order, without those that have no right document."""
    found = tasks.get(task)
    test_split = found.dev_splits[0]
    splits = found.load(folder, ("train", test_split))
    rows = splits["train" if train else test_split].shuffle(seed=seed)
    if task in _OF_PAIRS:
        return _of_pairs(task, rows, splits)
    return _of_labels(rows, found.outside)


def _of_pairs(task: str, rows: Dataset, splits: DatasetDict) -> Queries:
    """Return queries whose documents are the sentences of both splits that answer some query."""
    query, document = _OF_PAIRS[task]
    documents: dict[str, int] = {}
    for split in splits.values():
        for text in split[document]:
            documents.setdefault(text, len(documents))
    entailed = [row for row in rows if row["label"] == 0]
    texts = [row[query] for row in entailed]
    gold = [documents[row[document]] for row in entailed]
    return Queries(texts, gold, list(documents), Bm25(), _POOL)


def _of_labels(rows: Dataset, outside: int | None) -> Queries:
    """Return queries whose documents are the names of the classes, without that out of scope."""
    names = list(rows.features["label"].names)
    if outside is not None:
        names.pop(outside)
    documents = [name.replace("_", " ") for name in names]
    inside = [row for row in rows if row["label"] != outside]
    texts = [row["sentence1"] for row in inside]
    gold = [row["label"] for row in inside]
    return Queries(texts, gold, documents, BiEncoder("minilm"), len(documents))


class FirstStage(Protocol):
    """Cheap scores that choose the candidates."""

    def scores(self, queries: list[str], documents: list[str]) -> Tensor:
        """Return a score of every query with every document, `(queries, documents)`."""


class Bm25:
    """BM25 over words, by the library bm25s."""

    def scores(self, queries: list[str], documents: list[str]) -> Tensor:
        """Return BM25 of every query with every document, `(queries, documents)`."""
        import bm25s

        index = bm25s.BM25()
        words = bm25s.tokenize(queries, return_ids=False, show_progress=False)
        index.index(bm25s.tokenize(documents, show_progress=False), show_progress=False)
        return torch.stack([torch.from_numpy(index.get_scores(each)) for each in words])


class BiEncoder:
    """A bi-encoder: the cosine of the mean states of query and document."""

    def __init__(self, backbone: str) -> None:
        source = str(backbones.resolve(backbone))
        self._tokenizer = AutoTokenizer.from_pretrained(source)
        self._name = source

    @cached_property
    def _encoder(self) -> Any:
        return AutoModel.from_pretrained(self._name).eval()

    @torch.inference_mode()
    def embed(self, texts: list[str]) -> Tensor:
        """Return embeddings of length 1, `(texts, width)`."""
        order = sorted(range(len(texts)), key=lambda n: len(texts[n]))
        parts = []
        for start in range(0, len(order), 64):
            given = [texts[n] for n in order[start : start + 64]]
            batch = self._tokenizer(
                given, padding=True, truncation=True, max_length=64, return_tensors="pt"
            )
            states = self._encoder(**batch).last_hidden_state
            parts.append(readouts.mean(states, attention_mask=batch["attention_mask"]))
        return torch.nn.functional.normalize(
            torch.cat(parts)[torch.argsort(torch.tensor(order))], dim=-1
        )

    def scores(self, queries: list[str], documents: list[str]) -> Tensor:
        """Return the cosine of every query with every document, `(queries, documents)`."""
        return self.embed(queries) @ self.embed(documents).T
