"""A tiny classifier with exits, as a folder."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification

from ponder import policies
from ponder.integrations.transformers import FinetunedClassifier
from tests.word_tokenizer import VOCABULARY, save_tokenizer

__all__ = ["NAMES", "make_folder"]

NAMES = {0: "no", 1: "yes"}


def make_folder(folder: Path) -> Path:
    torch.manual_seed(0)
    plain = BertForSequenceClassification(
        BertConfig(
            vocab_size=len(VOCABULARY),
            hidden_size=16,
            intermediate_size=24,
            num_attention_heads=2,
            num_hidden_layers=4,
            max_position_embeddings=16,
            initializer_range=0.4,
            id2label=NAMES,
            label2id={"no": 0, "yes": 1},
        )
    )
    model = FinetunedClassifier(plain)
    model.policy = policies.Confidence(0.7)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder
