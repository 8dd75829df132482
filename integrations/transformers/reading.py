"""Classifiers from folders: fine-tuned ones as they are, and those with exits."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoConfig

from ponder.integrations.transformers.config import PonderConfig
from ponder.integrations.transformers.heads import PonderForSequenceClassification
from ponder.integrations.transformers.texts import load_tokenizer

__all__ = ["read_classifier"]


def read_classifier(folder: str | Path) -> PonderForSequenceClassification:
    """Read a classifier of texts with its tokenizer; one without exits answers at full depth."""
    source = str(folder)
    if isinstance(AutoConfig.from_pretrained(source), PonderConfig):
        model = PonderForSequenceClassification.from_pretrained(source)
    else:
        model = PonderForSequenceClassification.from_finetuned(source)
    model.tokenizer = load_tokenizer(source)
    made: PonderForSequenceClassification = model.eval()
    return made
