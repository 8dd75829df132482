"""What is served: MiniLM plain and with exits, in streams and in windows; and a tiny model, to see what is lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer

import ponder
from benchmarks import backbones
from benchmarks.speed.figures import Options
from benchmarks.speed.forced import Forced
from benchmarks.speed.streaming import exits
from benchmarks.speed.subjects import minilm
from ponder import policies
from ponder.engine.loop import Exits
from ponder.inference.examples import ExampleReader, placed
from ponder.integrations.transformers.serving import served
from ponder.policies import ExitPolicy
from ponder.serving import Batcher, Limits, ServedModel, Text, Tokens, WindowBatcher

__all__ = ["EXITS", "SUBJECTS", "tiny"]

MIX = "early-heavy"
EXITS = exits(MIX, 6, 960)
"""The exit steps of the rows with exits, in turn."""
_LONGEST = 512
_WIDTH = 16
_CLASSES = 3


def _with_exits(batching: Any) -> ServedModel:
    subject, tokenizer = minilm(Options()), AutoTokenizer.from_pretrained(backbones.resolve("minilm"))
    model = subject.wrapped.ponder
    model.policy = Forced(EXITS)
    return served(model, {0: "no", 1: "yes"}, tokenizer, _LONGEST, batching)


def _plain() -> ServedModel:
    """The model of Transformers itself, which knows no exits, on batches that are made as those of the others."""
    made, plain = _with_exits("window"), minilm(Options()).plain
    reader = ExampleReader(minilm(Options()).wrapped.ponder.padding)

    @torch.inference_mode()
    def run(examples: Sequence[Any], policy: ExitPolicy | None, row_ids: Sequence[int]) -> Exits:
        inputs, context = placed(*reader.batch([reader.read(example) for example in examples]), None)
        outputs = plain(inputs, attention_mask=context["attention_mask"]).logits
        return Exits(outputs.clone(), torch.full((len(examples),), made.num_steps))

    return replace(made, start=partial(WindowBatcher.within, run), policy=policies.LastStep())


def tiny() -> ServedModel:
    """A few thousand weights on the letters of a text; the same in every process."""
    generator = torch.Generator().manual_seed(0)
    step, head = nn.Linear(_WIDTH, _WIDTH), nn.Linear(_WIDTH, _CLASSES)
    with torch.no_grad():
        for weights in (*step.parameters(), *head.parameters()):
            weights.normal_(std=0.6, generator=generator)
    model = ponder.PonderWrapper(
        nn.Sequential(step, nn.Tanh()), 6, head=head, policy=policies.Confidence(0.6), task="classification"
    ).eval()
    assert model.task is not None

    def tokenize(texts: Sequence[Text]) -> Tokens:
        return Tokens([_letters(str(text)) for text in texts], [len(text) > _WIDTH for text in texts])

    def start(limits: Limits) -> Batcher:
        return ponder.StreamEngine(model, max_batch=limits.max_batch, max_waiting=limits.max_waiting)

    labels = tuple(f"class {place}" for place in range(_CLASSES))
    return ServedModel(6, model.policy, model.task, labels, tokenize, start, model.checked)


def _letters(text: str) -> torch.Tensor:
    codes = [ord(letter) for letter in text[:_WIDTH]]
    return (torch.tensor([*codes, *[0] * (_WIDTH - len(codes))], dtype=torch.float32) - 64.0) / 32.0


SUBJECTS: dict[str, Callable[[], ServedModel]] = {
    "plain": _plain,
    "stream": partial(_with_exits, "stream"),
    "window": partial(_with_exits, "window"),
    "tiny": tiny,
}
"""What makes a model to serve, by name."""
