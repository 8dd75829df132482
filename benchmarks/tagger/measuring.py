"""Train a tagger with early heads, and measure what exits per token and a gate per text change and save."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer

import ponder
from benchmarks.backbones import resolve
from benchmarks.tagger.data import Text, batches, read_texts, tags_of
from benchmarks.tagger.gate import MissedEntities, NoEntity
from ponder import policies
from ponder.calibration.records import Bools
from ponder.integrations.transformers import PonderForTokenClassification
from ponder.tasks import IGNORED_LABEL

__all__ = ["run"]

LEVELS = (0.01, 0.02, 0.05)
BARS = (0.9, 0.99, 0.999, 0.9999)
SIZE = 32  # rows of a batch


def run(
    data: Path, backbone: str, epochs: int, lr: float, seed: int, texts: int | None
) -> dict[str, Any]:
    """Train on the training split, choose the gate on the development split, and report the test split."""
    torch.manual_seed(seed)
    train, dev, test = (read_texts(data / f"{name}.conll") for name in ("train", "dev", "test"))
    train = train[:texts]
    tags = tags_of(train)
    source = str(resolve(backbone))
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = PonderForTokenClassification.from_encoder(source, recipe="frozen", num_labels=len(tags))
    loader = list(batches(train, tokenizer, tags, SIZE, shuffled=True))
    ponder.fit(model, loader, epochs=epochs, lr=lr, seed=seed)
    dev_record, test_record = (_record(model, split, tokenizer, tags) for split in (dev, test))
    rows = list(batches(test, tokenizer, tags, SIZE))
    gates = [_gate(model, dev_record, test_record, len(tags), level, rows) for level in LEVELS]
    return {
        "backbone": backbone,
        "epochs": epochs,
        "lr": lr,
        "seed": seed,
        "texts": {"train": len(train), "dev": len(dev), "test": len(test)},
        "words_right": _words_right(test_record),
        "entity_words_right": _words_right(test_record, entities=True),
        "texts_with_an_entity": float(_entity_words(test_record).any(1).mean()),
        "per_token": [_per_token(test_record, bar) for bar in BARS],
        "gates": gates,
    }


@torch.no_grad()
def _record(
    model: PonderForTokenClassification, texts: Sequence[Text], tokenizer: Any, tags: Sequence[str]
) -> ponder.Trajectory:
    """Return the record of some texts; their labels say where words begin."""
    parts = []
    for number, batch in enumerate(batches(texts, tokenizer, tags, SIZE)):
        labels = batch.pop("labels")
        ids = torch.arange(len(labels)) + SIZE * number
        made = model.unroll(**batch, row_ids=ids)
        parts.append(replace(made, labels=labels))
    return ponder.Trajectory.cat(parts)


def _words(record: ponder.Trajectory) -> Bools:
    """Return the first tokens of words, `(rows, length)`."""
    return np.asarray(torch.as_tensor(record.labels) != IGNORED_LABEL)


def _entity_words(record: ponder.Trajectory) -> Bools:
    """Return the first tokens of words that are in an entity at full depth, `(rows, length)`."""
    inside: Bools = np.asarray(record.outputs[:, -1].argmax(-1)) != 0
    return inside & _words(record)


def _words_right(record: ponder.Trajectory, *, entities: bool = False) -> float:
    """Return the share of the words, or of those in an entity, that full depth tags rightly."""
    labels = np.asarray(record.labels)
    counted = labels > 0 if entities else labels >= 0
    right = np.asarray(record.outputs[:, -1].argmax(-1)) == labels
    return float(right[counted].mean())


def _per_token(record: ponder.Trajectory, bar: float) -> Mapping[str, float]:
    """Return what exits per token would save in token-layers, and the words whose tag they would change."""
    sure = record.outputs.softmax(-1).amax(-1) > bar
    sure[:, -1] = True
    exits = sure.long().argmax(1)  # (rows, length), from 0
    answers = record.outputs.argmax(-1)
    changed = np.asarray(answers.gather(1, exits[:, None])[:, 0] != answers[:, -1])
    real = torch.as_tensor(record.mask)
    steps = record.outputs.shape[1]
    return {
        "confidence": bar,
        "token_layers_times": steps / float((exits[real] + 1).double().mean()),
        "words_changed": float(changed[_words(record)].mean()),
        "entity_words_changed": float(changed[_entity_words(record)].mean()),
    }


def _gate(
    model: PonderForTokenClassification,
    dev: ponder.Trajectory,
    test: ponder.Trajectory,
    classes: int,
    level: float,
    rows: Sequence[Mapping[str, torch.Tensor]],
) -> Mapping[str, Any]:
    """Certify the gate on one record, and say what it skips and misses on another."""
    risk = MissedEntities(range(1, classes))
    found = ponder.control_risk(dev, NoEntity, risk=risk, level=level)
    if not found.met:
        return {"level": level, "statement": found.statement, "certified": False}
    missed, mean_step = found.evaluate(test)
    steps = test.replay(found.policy).exit_step.numpy()
    early = steps < test.outputs.shape[1]
    entity_words = _entity_words(test)
    full, gated = _seconds(model, rows, found.policy)
    return {
        "level": level,
        "certified": True,
        "statement": found.statement,
        "threshold": found.certificate.threshold_value,
        "texts_skipped": float(early.mean()),
        "texts_missed": missed,
        "entity_words_missed": float(entity_words[early].sum() / entity_words.sum()),
        "layers_times": test.outputs.shape[1] / mean_step,
        "seconds_times": full / gated,
    }


@torch.no_grad()
def _seconds(
    model: PonderForTokenClassification,
    rows: Sequence[Mapping[str, torch.Tensor]],
    policy: policies.ExitPolicy,
) -> tuple[float, float]:
    """Return the processor time of full depth and of the gate, in turn on every batch."""
    spent = [0.0, 0.0]
    for batch in rows:
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        for place, chosen in enumerate((policies.LastStep(), policy)):
            start = time.process_time()
            model(**inputs, policy=chosen)
            spent[place] += time.process_time() - start
    return spent[0], spent[1]
