"""Encoders to measure, figures as rows of plain JSON, and interleaved timings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    AutoModel,
    BertConfig,
    BertModel,
    MPNetConfig,
    MPNetModel,
    PreTrainedModel,
)

from benchmarks import backbones
from ponder.calibration.cost import WallClock, seconds
from ponder.integrations.transformers import PonderForSequenceClassification

__all__ = ["COLUMNS", "Options", "Seconds", "Subject", "albert_base", "cells", "figure", "interleaved",
           "minilm_encoder", "mpnet_encoder", "ratio"]  # fmt: skip

COLUMNS = ("case", "figure", "median", "range", "goal", "reached")
Seconds = Mapping[str, list[float]]
_ALBERT_BASE: dict[str, Any] = {
    "hidden_size": 768,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
}
_NARROW: dict[str, Any] = {
    "hidden_size": 32,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 1000,
}


@dataclass(frozen=True)
class Options:
    """Choices of the caller of a section.

    Args:
        quick: Small models and few rows, to see that it runs; the figures mean little.
        pairs: Rounds of interleaved timings, at least.
    """

    quick: bool = False
    pairs: int = 3


@dataclass(frozen=True)
class Subject:
    """A plain classifier of Transformers, and the wrapped one with the same weights and answers."""

    name: str
    plain: Any
    wrapped: PonderForSequenceClassification

    def batch(self, rows: int, length: int) -> dict[str, Tensor]:
        """Return random rows without padding, and their mask."""
        ids = torch.randint(5, 1000, (rows, length), generator=torch.Generator().manual_seed(0))
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def albert_base(options: Options) -> Subject:
    """ALBERT-base's architecture with random weights; a narrow one where it has to be quick."""
    torch.manual_seed(0)
    config = AlbertConfig(**{**_ALBERT_BASE, **(_NARROW if options.quick else {})})
    plain: Any = AlbertForSequenceClassification(config)
    wrapped: Any = PonderForSequenceClassification.from_encoder(
        plain.base_model, "vanilla", readout="pooler"
    )
    wrapped.ponder.head[-1].load_state_dict(plain.classifier.state_dict())
    return Subject("ALBERT-base", plain.eval(), wrapped.eval())


def minilm_encoder(options: Options) -> PreTrainedModel:
    """MiniLM with its weights; a narrow random BERT where it has to be quick."""
    torch.manual_seed(0)
    if options.quick:
        return BertModel(BertConfig(num_hidden_layers=6, **_NARROW))
    encoder: PreTrainedModel = AutoModel.from_pretrained(backbones.resolve("minilm"))
    return encoder


def mpnet_encoder(options: Options) -> PreTrainedModel:
    """MPNet-base's architecture with random weights; a narrow one where it has to be quick."""
    torch.manual_seed(0)
    return MPNetModel(MPNetConfig(**(_NARROW if options.quick else {})))


def figure(
    section: str,
    case: str,
    name: str,
    value: WallClock,
    *,
    at_least: float | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Return a figure, as it is kept: the measured value and its goal.

    Args:
        section: The section that gives it.
        case: The measured case: model, mix of exits, batch.
        name: Its name with its unit; a ratio says of what.
        value: Its median and range over the rounds.
        at_least: The goal.
        more: Further fields.
    """
    found = {"section": section, "case": case, "figure": name, "value": value.median}
    kept = None if at_least is None else value.median >= at_least
    return {
        **found,
        "low": value.low,
        "high": value.high,
        "at_least": at_least,
        "kept": kept,
        **more,
    }


def interleaved(calls: Mapping[str, Callable[[], object]], *, rounds: int) -> Seconds:
    """Return the seconds of every call in every round; the calls alternate, to share other load.

    Args:
        calls: The calls, by name, after one run each to warm up. Every other round goes through
            them backwards.
        rounds: How many rounds.
    """
    for call in calls.values():
        call()
    found: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds):
        for name in list(calls)[:: 1 if number % 2 else -1]:
            found[name].append(seconds(calls[name]))
    return found


def ratio(took: Seconds, over: str, under: str) -> WallClock:
    """Return the seconds of `over` ÷ those of `under`: median and range over the rounds."""
    return WallClock.of([a / b for a, b in zip(took[over], took[under], strict=True)])


def cells(one: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the columns of one figure; a goal that is missed says so."""
    goal = "–" if one["at_least"] is None else f"≥ {one['at_least']:g}"
    reached = {True: "yes", False: "missed", None: "–"}[one["kept"]]
    return (
        one["case"],
        one["figure"],
        f"{one['value']:.2f}",
        f"{one['low']:.2f}–{one['high']:.2f}",
        goal,
        reached,
    )
