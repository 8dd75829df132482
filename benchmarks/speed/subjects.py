"""Encoders to measure: the plain model of Transformers, and the wrapped one with the same weights and answers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    MPNetConfig,
    MPNetModel,
    PreTrainedModel,
)

from benchmarks import backbones
from benchmarks.speed.figures import Options
from ponder import compile_steps
from ponder.integrations.transformers import PonderForSequenceClassification
from ponder.integrations.transformers.loading import load_encoder
from ponder.policies import ExitPolicy

__all__ = ["Subject", "albert_base", "minilm", "mpnet_encoder"]

_ALBERT_BASE: dict[str, Any] = {
    "hidden_size": 768,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
}
_NARROW: dict[str, Any] = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 1000}


@dataclass(frozen=True)
class Subject:
    """A plain model and a wrapped one, in evaluation mode.

    Args:
        name: Its name in tables.
        plain: The model of Transformers, with its classifier.
        wrapped: The same encoder with one exit head, whose weights are the classifier's.
    """

    name: str
    plain: Any
    wrapped: PonderForSequenceClassification

    def batch(self, rows: int, length: int, seed: int = 0) -> dict[str, Tensor]:
        """Random rows without padding, and their mask."""
        ids = torch.randint(5, 1000, (rows, length), generator=torch.Generator().manual_seed(seed))
        ids = ids.to(self.wrapped.device)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def run_plain(self, batch: dict[str, Tensor]) -> Callable[[], Tensor]:
        """A call of the plain model."""
        return torch.inference_mode()(lambda: self.plain(**batch).logits)

    def run_wrapped(self, batch: dict[str, Tensor], policy: ExitPolicy | None = None) -> Callable[[], Tensor]:
        """A call of the wrapped model, at full depth where no policy is given."""
        return torch.inference_mode()(lambda: self.wrapped(**batch, policy=policy).logits)

    def compiled(self, **options: Any) -> Subject:
        """Copies whose layers are compiled, each once for all sizes: the plain model's as the wrapped model's."""
        plain, wrapped = copy.deepcopy((self.plain, self.wrapped))
        for layer in _layers(plain):
            layer.compile(dynamic=True, **options)
        compile_steps(wrapped.ponder, **options)
        return Subject(f"{self.name}, compiled", plain, wrapped)

    def to(self, dtype: torch.dtype) -> Subject:
        """A copy in another precision."""
        plain, wrapped = copy.deepcopy((self.plain, self.wrapped))
        module: torch.nn.Module = wrapped
        module.to(dtype)
        return Subject(self.name, plain.to(dtype), wrapped)


def albert_base(options: Options) -> Subject:
    """ALBERT-base's architecture with random weights; a narrow one where it has to be quick."""
    torch.manual_seed(0)
    config = AlbertConfig(**{**_ALBERT_BASE, **(_NARROW if options.quick else {})})
    return _subject("ALBERT-base", AlbertForSequenceClassification(config), options)


def minilm(options: Options) -> Subject:
    """MiniLM with its weights; a narrow random BERT where it has to be quick."""
    torch.manual_seed(0)
    if options.quick:
        plain: Any = BertForSequenceClassification(BertConfig(num_hidden_layers=6, **_NARROW))
    else:
        plain = BertForSequenceClassification(BertConfig.from_pretrained(backbones.resolve("minilm")))
        plain.bert = load_encoder(backbones.resolve("minilm"))
    return _subject("MiniLM", plain, options)


def mpnet_encoder(options: Options) -> PreTrainedModel:
    """MPNet-base's architecture with random weights; a narrow one where it has to be quick."""
    torch.manual_seed(0)
    return MPNetModel(MPNetConfig(**(_NARROW if options.quick else {})))


def _subject(name: str, plain: Any, options: Options) -> Subject:
    wrapped: Any = PonderForSequenceClassification.from_encoder(plain.base_model, "vanilla")
    wrapped.ponder.head[-1].load_state_dict(plain.classifier.state_dict())
    return Subject(name, plain.eval().to(options.device), wrapped.eval().to(options.device))


def _layers(plain: Any) -> Any:
    encoder = plain.base_model.encoder
    return encoder.albert_layer_groups if hasattr(encoder, "albert_layer_groups") else encoder.layer
