"""Plain fine-tuning of a sequence classifier of Transformers: the model that a user already has."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from benchmarks.backbones import resolve
from benchmarks.command_line import bar
from benchmarks.environment import quick_bf16
from benchmarks.updates import Updates, eager_attention

__all__ = ["fine_tune"]

_BATCH = 32
_LONGEST = 64  # tokens
_NEAR = 16  # batches whose texts are sorted by length together


def fine_tune(
    backbone: str,
    texts: Sequence[str],
    labels: Sequence[int],
    names: Sequence[str],
    folder: Path,
    *,
    epochs: int,
    lr: float,
    seed: int,
    bf16: bool = False,
) -> PreTrainedModel:
    """Fine-tune a backbone with a new head, and save it with its tokenizer.

    Args:
        backbone: The backbone, as for `benchmarks.backbones.resolve`.
        texts: The texts to learn from.
        labels: Their classes.
        names: Names of the classes.
        folder: The folder in which model and tokenizer are saved.
        epochs: Number of epochs.
        lr: Learning rate of the encoder; see `Updates`. That of the pooler and the head is ten
            times as high.
        seed: Seed of the new head and of the order of the texts.
        bf16: Use autocasting to bfloat16 if the CPU is fast at it; weights stay in float32.
    """
    torch.manual_seed(seed)
    source = str(resolve(backbone))
    tokenizer = AutoTokenizer.from_pretrained(source)
    model: Any = AutoModelForSequenceClassification.from_pretrained(
        source,
        num_labels=len(names),
        id2label=dict(enumerate(names)),
        label2id={name: place for place, name in enumerate(names)},
    )
    total = epochs * math.ceil(len(texts) / _BATCH)
    updates = Updates(model, lr, total, new=("pooler", "classifier"))
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([len(text) for text in texts])
    with eager_attention(model), bar("fine-tuning", total) as advance:
        for _ in range(epochs):
            for places in _batches(lengths, generator):
                chosen = places.tolist()
                batch = tokenizer(
                    [texts[place] for place in chosen],
                    padding=True,
                    truncation=True,
                    max_length=_LONGEST,
                    return_tensors="pt",
                )
                targets = torch.tensor([labels[place] for place in chosen])
                with torch.autocast("cpu", torch.bfloat16, enabled=bf16 and quick_bf16()):
                    loss = model(**batch, labels=targets).loss
                updates.step(loss)
                advance()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    trained: PreTrainedModel = model
    return trained


def _batches(lengths: torch.Tensor, generator: torch.Generator) -> list[torch.Tensor]:
    """Return the places of each batch, in random order; the texts of a batch are of similar length."""
    some = torch.randperm(len(lengths), generator=generator).split(_NEAR * _BATCH)
    batches = torch.cat([places[lengths[places].argsort()] for places in some]).split(_BATCH)
    return [
        batches[number] for number in torch.randperm(len(batches), generator=generator).tolist()
    ]
