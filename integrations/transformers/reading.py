"""Classifiers from folders: plain fine-tuned ones, and those with exits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from ponder.cascade.stages import classes_of
from ponder.errors import ArgumentError
from ponder.integrations.transformers.config import PonderConfig
from ponder.integrations.transformers.heads import PonderForSequenceClassification
from ponder.integrations.transformers.loading import load_whole
from ponder.integrations.transformers.texts import encodings_of, load_tokenizer
from ponder.running.chunk import cut
from ponder.running.loop import Answers

__all__ = ["PlainClassifier", "read_classifier", "read_fine_tuned", "read_stage"]


@dataclass(frozen=True, eq=False)
class PlainClassifier:
    """A fine-tuned classifier of texts without exits, with its tokenizer."""

    encoder: Any
    tokenizer: Any

    @property
    def config(self) -> Any:
        """The configuration of the model."""
        return self.encoder.config

    def predict(self, texts: Sequence[Any], batch_size: int = 32) -> Answers:
        """Answer texts, or pairs of texts, in batches of similar length."""
        rows = encodings_of(self, list(texts))
        order = sorted(range(len(rows)), key=lambda n: -len(rows[n]["input_ids"]))
        outputs = torch.empty(len(rows), self.config.num_labels)
        with torch.inference_mode():
            for part in cut([len(rows[n]["input_ids"]) for n in order], batch_size):
                places = order[part]
                batch = self.tokenizer.pad([rows[n] for n in places], return_tensors="pt")
                outputs[places] = self.encoder(**batch.to(self.encoder.device)).logits.float().cpu()
        return Answers(outputs, torch.ones(len(rows), dtype=torch.long), classes_of(self) or ())

    def save_pretrained(self, folder: Path) -> None:
        """Write the model with its tokenizer."""
        self.encoder.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def export_source(self) -> Any:
        """Return the model at full depth for `ponder.export.onnx`."""
        model: Any = PonderForSequenceClassification.from_finetuned(self.encoder)
        model.tokenizer = self.tokenizer
        return model.eval().export_source()


def read_stage(folder: str | Path) -> PonderForSequenceClassification | PlainClassifier:
    """Read a classifier of texts for a cascade, with its exits if it has any."""
    source = str(folder)
    config = AutoConfig.from_pretrained(source)
    if isinstance(config, PonderConfig):
        return read_classifier(source)
    if config.problem_type == "multi_label_classification" or config.num_labels < 2:
        expected = "a classifier of one class a text"
        got = f"{config.num_labels} outputs, problem_type {config.problem_type!r}"
        remedy = "Use a classifier: whether two answers are the same is defined for classes only."
        raise ArgumentError("MODEL", expected=expected, got=got, remedy=remedy)
    encoder: Any = load_whole(AutoModelForSequenceClassification, source, {"dtype": "auto"})
    return PlainClassifier(encoder.eval(), load_tokenizer(source))


def read_classifier(folder: str | Path) -> PonderForSequenceClassification:
    """Read a classifier of texts with its tokenizer; one without exits answers at full depth."""
    source = str(folder)
    saved = isinstance(AutoConfig.from_pretrained(source), PonderConfig)
    kind = PonderForSequenceClassification
    if saved:
        model = kind.from_pretrained(source)
    else:
        model = kind.from_finetuned(source)
    model.tokenizer = load_tokenizer(source)
    made: PonderForSequenceClassification = model.eval()
    return made


def read_fine_tuned(source: str) -> PonderForSequenceClassification:
    """Read the MODEL of a command: a classifier of one class a text, as it was fine-tuned."""
    try:
        model: Any = PonderForSequenceClassification.from_finetuned(source)
        model.tokenizer = load_tokenizer(source)
    except ArgumentError:
        raise
    except (OSError, ValueError) as error:
        raise ArgumentError(
            "MODEL",
            expected="the folder or hub name of a fine-tuned classifier, with its tokenizer",
            got=f"{source} ({str(error).strip().splitlines()[0]})",
            remedy="Save both there: model.save_pretrained(folder), "
            "tokenizer.save_pretrained(folder).",
        ) from error
    if not model.ponder.task.one_class:
        expected = "a classifier of two classes or more"
        got = f"one of {model.ponder.task.name}"
        raise ArgumentError(
            "MODEL", expected=expected, got=got, remedy="Rerankers have `ponder rerank`."
        )
    classifier: PonderForSequenceClassification = model.eval()
    return classifier
