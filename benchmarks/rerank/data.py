"""Banking77 and CLINC150 as reranking: a text is a query, and the names of all labels are its candidates."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from benchmarks import backbones, tasks
from ponder.model import readouts

__all__ = ["FirstStage", "Queries", "load"]


@dataclass(frozen=True, eq=False)
class Queries:
    """Queries, each with one right document among all.

    Args:
        texts: The queries.
        gold: The right document of each.
        documents: The names of the labels, as words.
    """

    texts: list[str]
    gold: list[int]
    documents: list[str]

    def __len__(self) -> int:
        return len(self.texts)

    def cut(self, start: int, end: int | None = None) -> Queries:
        """Return some of the queries."""
        return Queries(self.texts[start:end], self.gold[start:end], self.documents)


def load(task: str, folder: Path, split: str, seed: int) -> Queries:
    """Read the queries of a split, shuffled by the seed, but for those out of scope, which have no right document."""
    found = tasks.get(task)
    data = found.load(folder, ("train", split))[split].shuffle(seed=seed)
    names = list(data.features["label"].names)
    if found.outside is not None:
        names.pop(found.outside)
    rows = [(row["sentence1"], row["label"]) for row in data if row["label"] != found.outside]
    return Queries([text for text, _ in rows], [label for _, label in rows], [n.replace("_", " ") for n in names])


class FirstStage:
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
            batch = self._tokenizer(given, padding=True, truncation=True, max_length=64, return_tensors="pt")
            states = self._encoder(**batch).last_hidden_state
            parts.append(readouts.mean(states, attention_mask=batch["attention_mask"]))
        return torch.nn.functional.normalize(torch.cat(parts)[torch.argsort(torch.tensor(order))], dim=-1)

    def scores(self, queries: list[str], documents: list[str]) -> Tensor:
        """Return the cosine of every query with every document, `(queries, documents)`."""
        return self.embed(queries) @ self.embed(documents).T
