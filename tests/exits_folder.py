"""A tiny text classifier whose answers differ from text to text, and its folder with exits."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification

from ponder import policies
from ponder.integrations.transformers import FinetunedClassifier
from tests.word_tokenizer import VOCABULARY, save_tokenizer

__all__ = ["LONGEST", "NAMES", "make_folder", "tiny_classifier"]

NAMES = {0: "no", 1: "yes"}
LONGEST = 16


def tiny_classifier(layers: int = 4) -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=16,
        intermediate_size=24,
        num_attention_heads=2,
        num_hidden_layers=layers,
        max_position_embeddings=LONGEST,
        id2label=NAMES,
        label2id={name: place for place, name in NAMES.items()},
    )
    model = BertForSequenceClassification(config)
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight.normal_(std=1.0)
        model.classifier.weight.mul_(200.0)
    return model


def make_folder(folder: Path) -> Path:
    """A folder of exits that were not fitted: early heads answer as the classifier's own head does."""
    model = FinetunedClassifier(tiny_classifier())
    model.policy = policies.Confidence(0.7)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder
