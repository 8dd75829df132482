"""A cross-encoder trained on label names, and its first layers, distilled from its scores."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from benchmarks import backbones
from benchmarks.command_line import bar
from benchmarks.environment import quick_bf16
from benchmarks.rerank.data import Queries
from benchmarks.updates import Updates, eager_attention

__all__ = ["cut", "train"]

_QUERIES = 8  # of a batch
_HARD = 5  # wrong documents of a query among its nearest
_RANDOM = 2  # wrong documents of a query at random
_NEAR = 20  # nearest documents
_LONGEST = 128  # tokens


def train(
    backbone: str, queries: Queries, folder: Path, *, epochs: int, lr: float, seed: int, bf16: bool
) -> None:
    """Train a cross-encoder by listwise cross-entropy over one right and seven wrong documents."""
    torch.manual_seed(seed)
    source = str(backbones.resolve(backbone))
    model: Any = AutoModelForSequenceClassification.from_pretrained(source, num_labels=1)
    tokenizer = AutoTokenizer.from_pretrained(source)
    _learn(model, None, tokenizer, queries, epochs=epochs, lr=lr, seed=seed, bf16=bf16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def cut(
    whole: Path,
    layers: int,
    queries: Queries,
    folder: Path,
    *,
    epochs: int,
    lr: float,
    seed: int,
    bf16: bool,
) -> None:
    """Distil a trained cross-encoder into its first layers, by the mean squared error of scores."""
    torch.manual_seed(seed)
    teacher: Any = AutoModelForSequenceClassification.from_pretrained(whole).eval()
    model: Any = AutoModelForSequenceClassification.from_pretrained(whole, num_hidden_layers=layers)
    tokenizer = AutoTokenizer.from_pretrained(whole)
    _learn(model, teacher, tokenizer, queries, epochs=epochs, lr=lr, seed=seed, bf16=bf16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _learn(
    model: Any,
    teacher: Any,
    tokenizer: Any,
    queries: Queries,
    *,
    epochs: int,
    lr: float,
    seed: int,
    bf16: bool,
) -> None:
    """Train a model in place, on the right documents of the queries, or on a teacher's scores."""
    near = [places for places, _ in queries.nearest(_NEAR)]
    total = epochs * (len(queries) // _QUERIES)
    rng = random.Random(seed)
    updates = Updates(model, lr, total, new=("classifier",))
    with eager_attention(model), bar("cross encoder", total) as advance:
        for _ in range(epochs):
            order = rng.sample(range(len(queries)), len(queries))
            for start in range(0, len(order) - _QUERIES + 1, _QUERIES):
                pairs: list[tuple[str, str]] = []
                for place in order[start : start + _QUERIES]:
                    pairs += _list(queries, place, near[place], rng)
                batch = tokenizer(
                    [text for text, _ in pairs],
                    [document for _, document in pairs],
                    padding=True,
                    truncation=True,
                    max_length=_LONGEST,
                    return_tensors="pt",
                )
                with torch.autocast("cpu", torch.bfloat16, enabled=bf16 and quick_bf16()):
                    loss = _loss(model, teacher, batch)
                updates.step(loss)
                advance()


def _list(
    queries: Queries, place: int, near: list[int], rng: random.Random
) -> list[tuple[str, str]]:
    """Return a query with its right document, then with wrong ones, nearest and random."""
    gold = queries.gold[place]
    text = queries.texts[place]
    hard = rng.sample([n for n in near if n != gold], _HARD)
    others = rng.sample(
        [n for n in range(len(queries.documents)) if n != gold and n not in hard], _RANDOM
    )
    return [(text, queries.documents[n]) for n in (gold, *hard, *others)]


def _loss(model: Any, teacher: Any, batch: Any) -> Tensor:
    """Return the distance to the teacher's scores, or the cross-entropy of the right document."""
    scores = model(**batch).logits.float().view(_QUERIES, -1)
    if teacher is not None:
        with torch.no_grad():
            target = teacher(**batch).logits.float().view(_QUERIES, -1)
        return F.mse_loss(scores, target)
    return F.cross_entropy(scores, torch.zeros(_QUERIES, dtype=torch.long))
