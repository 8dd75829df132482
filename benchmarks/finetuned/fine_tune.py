"""Plain fine-tuning of a sequence classifier of Transformers: the model that a user has already."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from benchmarks.backbones import resolve
from benchmarks.command_line import bar
from benchmarks.environment import quick_bf16

__all__ = ["fine_tune"]

_BATCH = 32
_LONGEST = 64  # tokens
_NEAR = 16  # batches whose texts are sorted by length together
_NEW = 10.0  # learning rate of weights that start at random, as a multiple of the encoder's
_WARM_UP = 0.1  # of all updates


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
    """Fine-tune a backbone with a new head, and save it with its tokenizer, as anyone would.

    Args:
        backbone: The backbone, as for `benchmarks.backbones.resolve`.
        texts: The texts to learn from.
        labels: Their classes.
        names: Names of the classes.
        folder: The folder in which model and tokenizer are saved.
        epochs: Passes.
        lr: Learning rate of the encoder after a warm-up of a tenth of all updates; it falls to 0 in
            a straight line. That of the pooler and the head is ten times as high.
        seed: Seed of the new head and of the order of the texts.
        bf16: Compute in bfloat16 where autocasting does and the CPU is quick at it; weights stay in
            float32.
    """
    torch.manual_seed(seed)
    source = str(resolve(backbone))
    tokenizer = AutoTokenizer.from_pretrained(source)
    named = {
        "id2label": dict(enumerate(names)),
        "label2id": {name: place for place, name in enumerate(names)},
    }
    model: Any = AutoModelForSequenceClassification.from_pretrained(
        source, num_labels=len(names), **named
    )
    attention = model.config._attn_implementation
    model.set_attn_implementation(
        "eager"
    )  # on a CPU the fused kernel has no dropout, and falls back to slower ones
    weights = [
        ("pooler" in name or "classifier" in name, weight)
        for name, weight in model.named_parameters()
    ]
    groups: list[dict[str, Any]] = [
        {"params": [weight for new, weight in weights if new is kind], "lr": rate}
        for kind, rate in ((False, lr), (True, _NEW * lr))
    ]
    optimiser = torch.optim.AdamW(groups, weight_decay=0.01, fused=True)
    total = epochs * -(-len(texts) // _BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda done: min((done + 1) / (_WARM_UP * total + 1), (total - done) / total)
    )
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([len(text) for text in texts])
    model.train()
    with bar("fine-tuning", total) as advance:
        for _ in range(epochs):
            for places in _batches(lengths, generator):
                own = [texts[place] for place in places.tolist()]
                batch = tokenizer(
                    own, padding=True, truncation=True, max_length=_LONGEST, return_tensors="pt"
                )
                with torch.autocast("cpu", torch.bfloat16, enabled=bf16 and quick_bf16()):
                    loss = model(
                        **batch, labels=torch.tensor([labels[place] for place in places.tolist()])
                    ).loss
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimiser.step()
                optimiser.zero_grad()
                schedule.step()
                advance()
    model.set_attn_implementation(attention)
    model.eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    trained: PreTrainedModel = model
    return trained


def _batches(lengths: torch.Tensor, generator: torch.Generator) -> list[torch.Tensor]:
    """Return the places of each batch: those of similar length, which need little padding, in random order."""
    some = torch.randperm(len(lengths), generator=generator).split(_NEAR * _BATCH)
    batches = torch.cat([places[lengths[places].argsort()] for places in some]).split(_BATCH)
    return [
        batches[number] for number in torch.randperm(len(batches), generator=generator).tolist()
    ]
