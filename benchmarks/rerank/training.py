"""A cross encoder trained on label names, and a cut one, of the first layers alone, taught by its scores."""

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

__all__ = ["cut", "train"]

_QUERIES, _HARD, _RANDOM, _NEAR = 8, 5, 2, 20  # of a batch, and candidates beside the right one
_LONGEST = 128
_WARM_UP = 0.1


def train(
    backbone: str, queries: Queries, folder: Path, *, epochs: int, lr: float, seed: int, bf16: bool
) -> None:
    """Train a cross encoder with one score: listwise cross entropy over one right and seven wrong documents."""
    torch.manual_seed(seed)
    source = str(backbones.resolve(backbone))
    model: Any = AutoModelForSequenceClassification.from_pretrained(source, num_labels=1)
    tokenizer = AutoTokenizer.from_pretrained(source)
    _learn(model, None, tokenizer, queries, epochs=epochs, lr=lr, seed=seed, bf16=bf16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def cut(
    whole: Path, layers: int, queries: Queries, folder: Path, *, epochs: int, lr: float, seed: int,
    bf16: bool,
) -> None:  # fmt: skip
    """Keep the first layers of a trained cross encoder, and teach them its scores, by their mean squared distance."""
    torch.manual_seed(seed)
    teacher: Any = AutoModelForSequenceClassification.from_pretrained(whole).eval()
    model: Any = AutoModelForSequenceClassification.from_pretrained(whole, num_hidden_layers=layers)
    tokenizer = AutoTokenizer.from_pretrained(whole)
    _learn(model, teacher, tokenizer, queries, epochs=epochs, lr=lr, seed=seed, bf16=bf16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _learn(
    model: Any, teacher: Any, tokenizer: Any, queries: Queries, *, epochs: int, lr: float, seed: int, bf16: bool
) -> None:  # fmt: skip
    attention = model.config._attn_implementation
    model.set_attn_implementation(
        "eager"
    )  # on a CPU the fused kernel has no dropout, and falls back to slower ones
    near = [places for places, _ in queries.nearest(_NEAR)]
    total = epochs * (len(queries) // _QUERIES)
    rng = random.Random(seed)
    heads = [weight for name, weight in model.named_parameters() if name.startswith("classifier")]
    rest = [
        weight for name, weight in model.named_parameters() if not name.startswith("classifier")
    ]
    optimiser = torch.optim.AdamW(
        [{"params": rest, "lr": lr}, {"params": heads, "lr": 10 * lr}],
        weight_decay=0.01,
        fused=True,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda done: min((done + 1) / (_WARM_UP * total + 1), (total - done) / total)
    )
    model.train()
    with bar("cross encoder", total) as advance:
        for _ in range(epochs):
            order = rng.sample(range(len(queries)), len(queries))
            for start in range(0, len(order) - _QUERIES + 1, _QUERIES):
                pairs = [
                    pair
                    for n in order[start : start + _QUERIES]
                    for pair in _list(queries, n, near[n], rng)
                ]
                texts, documents = map(list, zip(*pairs, strict=True))
                batch = tokenizer(
                    texts,
                    documents,
                    padding=True,
                    truncation=True,
                    max_length=_LONGEST,
                    return_tensors="pt",
                )
                with torch.autocast("cpu", torch.bfloat16, enabled=bf16 and quick_bf16()):
                    loss = _loss(model, teacher, batch)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimiser.step()
                optimiser.zero_grad()
                schedule.step()
                advance()
    model.set_attn_implementation(attention)
    model.eval()


def _list(
    queries: Queries, place: int, near: list[int], rng: random.Random
) -> list[tuple[str, str]]:
    """The right document of a query, then wrong ones: some of the nearest, some at random."""
    gold = queries.gold[place]
    text = queries.texts[place]
    hard = rng.sample([n for n in near if n != gold], _HARD)
    others = rng.sample(
        [n for n in range(len(queries.documents)) if n != gold and n not in hard], _RANDOM
    )
    return [(text, queries.documents[n]) for n in (gold, *hard, *others)]


def _loss(model: Any, teacher: Any, batch: Any) -> Tensor:
    scores = model(**batch).logits.float().view(_QUERIES, -1)
    if teacher is not None:
        with torch.no_grad():
            target = teacher(**batch).logits.float().view(_QUERIES, -1)
        return F.mse_loss(scores, target)
    return F.cross_entropy(scores, torch.zeros(_QUERIES, dtype=torch.long))
