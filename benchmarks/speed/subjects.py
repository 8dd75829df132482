"""Encoders to measure, figures as rows of plain JSON, and interleaved timings."""

from __future__ import annotations

import math
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
    BertForSequenceClassification,
    MPNetConfig,
    MPNetModel,
    PreTrainedModel,
)

from benchmarks import backbones
from ponder.calibration.cost import WallClock, seconds
from ponder.integrations.transformers import PonderForSequenceClassification
from ponder.policies import ExitPolicy

__all__ = ["COLUMNS", "Options", "Seconds", "Subject", "albert_base", "cells", "figure", "interleaved", "minilm",
           "mpnet_encoder", "ratio"]  # fmt: skip

COLUMNS = ("case", "figure", "median", "range", "goal", "reached")
Seconds = Mapping[str, list[float]]
MOST_ROUNDS = 21
_ALBERT_BASE: dict[str, Any] = {
    "hidden_size": 768,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
}
_NARROW: dict[str, Any] = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 1000}


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
    """A plain model of Transformers with its classifier, and the wrapped one with the same weights and answers."""

    name: str
    plain: Any
    wrapped: PonderForSequenceClassification

    def batch(self, rows: int, length: int) -> dict[str, Tensor]:
        """Return random rows without padding, and their mask."""
        ids = torch.randint(5, 1000, (rows, length), generator=torch.Generator().manual_seed(0))
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def run_plain(self, batch: dict[str, Tensor]) -> Callable[[], Tensor]:
        """Return a call of the plain model."""
        return torch.inference_mode()(lambda: self.plain(**batch).logits)

    def run_wrapped(self, batch: dict[str, Tensor], policy: ExitPolicy | None = None) -> Callable[[], Tensor]:
        """Return a call of the wrapped model, at full depth where no policy is given."""
        return torch.inference_mode()(lambda: self.wrapped(**batch, policy=policy).logits)


def albert_base(options: Options) -> Subject:
    """ALBERT-base's architecture with random weights; a narrow one where it has to be quick."""
    torch.manual_seed(0)
    config = AlbertConfig(**{**_ALBERT_BASE, **(_NARROW if options.quick else {})})
    return _subject("ALBERT-base", AlbertForSequenceClassification(config))


def minilm(options: Options) -> Subject:
    """MiniLM with its weights; a narrow random BERT where it has to be quick."""
    torch.manual_seed(0)
    if options.quick:
        plain: Any = BertForSequenceClassification(BertConfig(num_hidden_layers=6, **_NARROW))
    else:
        plain = BertForSequenceClassification(BertConfig.from_pretrained(backbones.resolve("minilm")))
        plain.bert = AutoModel.from_pretrained(backbones.resolve("minilm"))
    return _subject("MiniLM", plain)


def mpnet_encoder(options: Options) -> PreTrainedModel:
    """MPNet-base's architecture with random weights; a narrow one where it has to be quick."""
    torch.manual_seed(0)
    return MPNetModel(MPNetConfig(**(_NARROW if options.quick else {})))


def _subject(name: str, plain: Any) -> Subject:
    wrapped: Any = PonderForSequenceClassification.from_encoder(plain.base_model, "vanilla", readout="pooler")
    wrapped.ponder.head[-1].load_state_dict(plain.classifier.state_dict())
    return Subject(name, plain.eval(), wrapped.eval())


def figure(
    section: str,
    case: str,
    name: str,
    value: float | WallClock,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Return a figure, as it is kept: the measured value and its goal.

    Args:
        section: The section that gives it.
        case: The measured case: model, mix of exits, batch.
        name: Its name with its unit; a ratio says of what.
        value: A number, or the median and the range of interleaved pairs.
        at_least: The goal, where more is better.
        at_most: The goal, where less is better.
        more: Further fields.

    Example:
        >>> figure("overhead", "batch 8", "time ÷ plain", 1.01, at_most=1.03)["kept"]
        True
    """
    spread = value if isinstance(value, WallClock) else WallClock(value, value, value)
    kept = None
    if at_least is not None or at_most is not None:
        kept = (at_least is None or spread.median >= at_least) and (at_most is None or spread.median <= at_most)
    found = {"section": section, "case": case, "figure": name, "value": spread.median}
    limits = {"at_least": at_least, "at_most": at_most, "kept": kept}
    return {**found, "low": spread.low, "high": spread.high, **limits, **more}


def interleaved(
    calls: Mapping[str, Callable[[], object]], *, rounds: int = 3, budget: float = 0.0, least: float = 0.05
) -> Seconds:
    """Return the seconds of every call in every round, each once a round, so that other load meets all of them.

    Args:
        calls: The calls, by name, after one run each to warm up. Every other round goes through them backwards.
        rounds: Rounds at least.
        budget: Seconds that may be spent: more rounds are run within it, up to 21.
        least: A timing lasts so many seconds at least: quick calls are repeated, all of them as often.
    """
    first = {name: seconds(call) for name, call in calls.items()}
    repeats = max(1, math.ceil(least / max(min(first.values()), 1e-9)))
    rounds = max(rounds, min(MOST_ROUNDS, int(budget / (repeats * sum(first.values())))))
    found: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds):
        for name in list(calls)[:: 1 if number % 2 else -1]:
            found[name].append(seconds(calls[name], repeats))
    return found


def ratio(took: Seconds, over: str, under: str) -> WallClock:
    """Return the seconds of `over` ÷ those of `under`: median and range over the rounds."""
    return WallClock.of([a / b for a, b in zip(took[over], took[under], strict=True)])


def cells(one: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the columns of one figure; a goal that is missed says so."""
    if one["value"] is None:
        return (one["case"], f"{one['figure']}: {one['why']}", "–", "–", "–", "–")
    goals = [f"{sign} {one[key]:g}" for key, sign in (("at_least", "≥"), ("at_most", "≤")) if one[key] is not None]
    reached = {True: "yes", False: "missed", None: "–"}[one["kept"]]
    spread = "–" if one["low"] == one["high"] else f"{_number(one['low'])}–{_number(one['high'])}"
    return (one["case"], one["figure"], _number(one["value"]), spread, ", ".join(goals) or "–", reached)


def _number(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:,.0f}"
