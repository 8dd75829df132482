"""Classifiers from folders: plain fine-tuned ones, and those with exits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ponder._utils.rows import listed
from ponder.cascade.stages import classes_of
from ponder.errors import ArgumentError
from ponder.inference.examples import examples_in
from ponder.integrations.transformers.config import PonderConfig
from ponder.integrations.transformers.heads import PonderForSequenceClassification
from ponder.integrations.transformers.loading import load_whole
from ponder.integrations.transformers.texts import TextOrPair, encodings_of, load_tokenizer
from ponder.running.chunk import cut
from ponder.running.loop import Answers

if TYPE_CHECKING:
    from ponder.deploy.export import ExportSource

__all__ = ["PlainClassifier", "read_classifier", "read_fine_tuned", "read_stage"]


@dataclass(frozen=True, eq=False)
class PlainClassifier:
    """A fine-tuned classifier of texts without exits, with its tokenizer."""

    encoder: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def of(cls, model: PonderForSequenceClassification) -> Self:
        """Return the classifier that got exits, as it runs without them."""
        assert model.tokenizer is not None
        return cls(model.encoder, model.tokenizer)

    @property
    def config(self) -> PretrainedConfig:
        """The configuration of the model."""
        return self.encoder.config

    def predict(self, texts: Sequence[TextOrPair], batch_size: int = 32) -> Answers:
        """Answer texts, or pairs of texts, in batches of similar length."""
        rows = list(examples_in(encodings_of(self, listed("texts", texts))))
        lengths = [len(row["input_ids"]) for row in rows]
        order = sorted(range(len(rows)), key=lambda place: -lengths[place])
        outputs = torch.empty(len(rows), int(self.config.num_labels or 1))
        with torch.inference_mode():
            for part in cut([lengths[place] for place in order], batch_size):
                places = order[part]
                batch = self.tokenizer.pad([rows[place] for place in places], return_tensors="pt")
                answers = self.encoder(**batch.to(self.encoder.device))
                outputs[places] = answers.logits.float().cpu()
        exit_step = torch.ones(len(rows), dtype=torch.long)
        return Answers(outputs, exit_step, classes_of(self) or ())

    def save_pretrained(self, folder: Path) -> None:
        """Write the model with its tokenizer."""
        self.encoder.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def export_source(self) -> ExportSource:
        """Return the model at full depth for `ponder.export.onnx`."""
        model = PonderForSequenceClassification.from_finetuned(self.encoder)
        model.tokenizer = self.tokenizer
        model.train(False)
        return model.export_source()


def read_stage(folder: str | Path) -> PonderForSequenceClassification | PlainClassifier:
    """Read a classifier of texts for a cascade, with its exits if it has any."""
    source = str(folder)
    config = AutoConfig.from_pretrained(source)
    if isinstance(config, PonderConfig):
        return read_classifier(source)
    if config.problem_type == "multi_label_classification" or config.num_labels < 2:
        raise ArgumentError(
            "MODEL",
            expected="a classifier of one class a text",
            got=f"{config.num_labels} outputs, problem_type {config.problem_type!r}",
            remedy="Use a classifier: whether two answers are the same is defined for classes "
            "only.",
        )
    encoder = load_whole(AutoModelForSequenceClassification, source, {"dtype": "auto"})
    return PlainClassifier(encoder.train(False), load_tokenizer(source))


def read_classifier(folder: str | Path) -> PonderForSequenceClassification:
    """Read a classifier of texts with its tokenizer; one without exits answers at full depth."""
    source = str(folder)
    has_exits = isinstance(AutoConfig.from_pretrained(source), PonderConfig)
    kind = PonderForSequenceClassification
    if has_exits:
        model = kind.from_pretrained(source)
    else:
        model = kind.from_finetuned(source)
    model.tokenizer = load_tokenizer(source)
    model.train(False)
    return model


def read_fine_tuned(source: str) -> PonderForSequenceClassification:
    """Read the MODEL of a command: a classifier of one class a text, as it was fine-tuned."""
    try:
        model = PonderForSequenceClassification.from_finetuned(source)
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
    task = model.ponder.task
    assert task is not None
    if not task.one_class:
        raise ArgumentError(
            "MODEL",
            expected="a classifier of two classes or more",
            got=f"one of {task.name}",
            remedy="Rerankers have `ponder rerank`.",
        )
    model.train(False)
    return model
