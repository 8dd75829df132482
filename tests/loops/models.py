"""Small loops for tests: every kind of step, and policies of every kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AlbertConfig
from transformers.models.albert.modeling_albert import AlbertLayer

from ponder import LambdaHead, policies
from ponder.loops import Block, Loop

WIDTH, HEADS, CLASSES = 16, 2, 3


class Plain(nn.Module):
    """A step that knows nothing of positions: all of them are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block(WIDTH, HEADS)

    def forward(self, hidden: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.block(hidden, attention_mask)


def encoder_layer(*, norm_first: bool = False) -> nn.Module:
    return nn.TransformerEncoderLayer(
        WIDTH, HEADS, 2 * WIDTH, dropout=0.0, batch_first=True, norm_first=norm_first
    )


def albert_layer() -> nn.Module:
    sizes = {"hidden_size": WIDTH, "num_attention_heads": HEADS, "intermediate_size": 2 * WIDTH}
    drop = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = AlbertConfig(**sizes, **drop)
    config._attn_implementation = "sdpa"
    return AlbertLayer(config)


STEPS: dict[str, Callable[[], nn.Module]] = {
    "block": lambda: Block(WIDTH, HEADS),
    "causal": lambda: Block(WIDTH, HEADS, causal=True),
    "plain": Plain,
    "albert": albert_layer,
    "encoder": encoder_layer,
    "encoder-norm-first": lambda: encoder_layer(norm_first=True),
}


@dataclass(frozen=True)
class Norm(policies.ExitPolicy):
    """A user's own policy, written for rows."""

    bound: float
    needs = frozenset({"features"})

    def init(self, first: policies.StepView) -> Any:
        return {"largest": torch.zeros(first.size)}

    def decide(self, step: policies.StepView, state: Any) -> tuple[Tensor, Any]:
        largest = torch.maximum(state["largest"], step.features.flatten(1)[:, 0])
        return (largest > self.bound) & (step.index >= 2), {"largest": largest}


POLICIES: dict[str, policies.ExitPolicy] = {
    "confidence": policies.Confidence(0.5),
    "entropy": policies.Entropy(1.0),
    "margin": policies.Margin(0.15),
    "energy": policies.Energy(0.78),
    "patience": policies.Patience(2),
    "voting": policies.Voting(2),
    "converged": policies.Converged(patience=1),
    "converged-features": policies.Converged(tolerance=0.3, on="features"),
    "quantile": policies.Quantile(0.6),
    "bernoulli": policies.Bernoulli(seed=3),
    "act": policies.ACT(0.2),
    "fixed": policies.FixedStep(3),
    "last": policies.LastStep(),
    "any": policies.Confidence(0.6) | policies.Patience(2),
    "all": policies.Confidence(0.4) & policies.Quantile(0.3),
    "after": policies.Confidence(0.4).after(2),
    "own": Norm(0.5),
}


def make_loop(step: str = "block", halted: str = "frozen", **options: Any) -> Loop:
    torch.manual_seed(0)
    head = nn.Linear(WIDTH, CLASSES)
    lambda_head = LambdaHead(WIDTH)
    return Loop(STEPS[step](), head, lambda_head, halted=halted, **options).eval()  # type: ignore[arg-type]


def make_batch(lengths: tuple[int, ...] = (5, 3, 5, 1)) -> tuple[Tensor, Tensor]:
    """Return states `(batch, length, width)` and the mask of positions that are no padding."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(len(lengths), max(lengths), WIDTH, generator=generator)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return hidden, mask
