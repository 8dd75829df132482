"""Plain fine-tuning of a sequence classifier of Transformers: what a user of `ponder exits` has done already."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForSequenceClassification,
    PreTrainedModel,
)

from benchmarks.backbones import resolve
from ponder._utils.progress import progress_bar
from ponder.integrations.transformers import PonderForSequenceClassification

__all__ = ["accuracy", "fine_tune", "fine_tune_head"]

_BATCH = 32
_LONGEST = 64  # tokens
_WARM_UP = 0.1  # of all updates
_HEAD_RATE, _HEAD_EPOCHS = 1e-3, 20


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
    progress: bool,
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
        lr: Learning rate after a warm-up of a tenth of all updates; it falls to 0 in a straight line.
        seed: Seed of the new head and of the order of the texts.
        progress: Show a progress bar.
        bf16: Compute in bfloat16 where autocasting does, on a processor that has it; weights stay in float32.
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
    attention = model.config._attn_implementation
    model.set_attn_implementation("eager")  # on a CPU the fused kernel has no dropout, and falls back to slower ones
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01, fused=True)
    total = epochs * -(-len(texts) // _BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda done: min((done + 1) / (_WARM_UP * total + 1), (total - done) / total)
    )
    generator = torch.Generator().manual_seed(seed)
    model.train()
    with progress_bar("fine-tuning", total, shown=progress) as advance:
        for _ in range(epochs):
            for places in torch.randperm(len(texts), generator=generator).split(_BATCH):
                batch = _batch(tokenizer, [texts[place] for place in places.tolist()])
                with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                    loss = model(**batch, labels=torch.tensor([labels[place] for place in places.tolist()])).loss
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimiser.step()
                optimiser.zero_grad()
                schedule.step()
                advance(1)
    model.set_attn_implementation(attention)
    model.eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    trained: PreTrainedModel = model
    return trained


def fine_tune_head(
    kept: Path, texts: Sequence[str], labels: Sequence[int], names: Sequence[str], folder: Path, *, seed: int
) -> None:
    """Give the fine-tuned BERT of a kept model the head of a plain classifier, and save that with its tokenizer.

    The encoder stays as it is; pooler and classifier learn on its states, which are computed once.

    Args:
        kept: What `python -m benchmarks.glue run --keep-model` wrote, of a BERT.
        texts: The texts to learn from: those that the encoder has learned from.
        labels: Their classes.
        names: Names of the classes.
        folder: The folder in which model and tokenizer are saved.
        seed: Seed of the new head and of the order of the texts.
    """
    torch.manual_seed(seed)
    encoder = PonderForSequenceClassification.from_pretrained(kept).encoder
    tokenizer, config = AutoTokenizer.from_pretrained(kept), deepcopy(encoder.config)
    config.id2label, config.label2id = dict(enumerate(names)), {name: place for place, name in enumerate(names)}
    model = BertForSequenceClassification(config).eval()
    model.bert.load_state_dict(encoder.state_dict())
    with torch.inference_mode():
        parts = [
            model.bert(**_batch(tokenizer, texts[start : start + _BATCH])).last_hidden_state[:, :1]
            for start in range(0, len(texts), _BATCH)
        ]
    states, wanted = torch.cat(parts).clone(), torch.tensor(list(labels))
    learning = [*model.bert.pooler.parameters(), *model.classifier.parameters()]
    optimiser = torch.optim.AdamW(learning, lr=_HEAD_RATE, weight_decay=0.01)
    for _ in range(_HEAD_EPOCHS):
        for places in torch.randperm(len(wanted)).split(_BATCH):
            logits = model.classifier(model.bert.pooler(states[places]))
            torch.nn.functional.cross_entropy(logits, wanted[places]).backward()
            optimiser.step()
            optimiser.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def accuracy(model: PreTrainedModel, folder: Path, texts: Sequence[str], labels: Sequence[int]) -> float:
    """The share of texts whose class a model finds; its tokenizer is in `folder`."""
    tokenizer, right = AutoTokenizer.from_pretrained(folder), 0
    with torch.inference_mode():
        for start in range(0, len(texts), _BATCH):
            part = slice(start, start + _BATCH)
            found = model(**_batch(tokenizer, texts[part])).logits.argmax(-1)
            right += int((found == torch.tensor(labels[part])).sum())
    return right / len(texts)


def _batch(tokenizer: Any, texts: Sequence[str]) -> dict[str, Any]:
    return dict(tokenizer(list(texts), padding=True, truncation=True, max_length=_LONGEST, return_tensors="pt"))
