"""`ponder.Live` without a text model: exits of a model, int8 beside fp32, and the best documents of a query."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import ponder
from ponder.cascade.live import Live
from ponder.cascade.live_rule import Outcome, Standing

ROWS, CLASSES, EARLY, DEPTH, LEVEL = 1500, 3, 2, 6, 0.1


class Audited:
    """A rule that answers all and audits a third."""

    def audit_probability(self, doubt: float, standing: Standing) -> float:
        return 0.3 if doubt < 0.4 else 1.0

    def learn(self, outcome: Outcome) -> None:
        pass

    def teaches(self, labels: int, taught: int, unknown: int) -> bool:
        return False

    def renew(self, outcomes: Sequence[Outcome]) -> None:
        pass


class Layer(nn.Module):
    """A residual layer that counts the rows that it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.rows = 0

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        self.rows += len(hidden)
        return hidden + 0.3 * torch.tanh(self.linear(hidden))


class Exit:
    """The exit of a wrapped model after two layers; it keeps the hidden states, from which an audit goes on."""

    classes = tuple(range(CLASSES))

    def __init__(self, layers: Sequence[Layer], head: nn.Module, inputs: torch.Tensor) -> None:
        self.layers, self.head, self.inputs = layers, head, inputs
        self.hidden = dict[int, torch.Tensor]()

    @torch.inference_mode()
    def predict_proba(self, rows: Sequence[int]) -> Any:
        hidden = self.inputs[list(rows)]
        for step in self.layers[:EARLY]:
            hidden = step(hidden)
        self.hidden.update(zip(rows, hidden, strict=True))
        return torch.softmax(self.head(hidden), 1).numpy()

    @torch.inference_mode()
    def full_depth(self, rows: Sequence[int]) -> list[int]:
        """Answer by the remaining layers alone."""
        hidden = torch.stack([self.hidden.pop(row) for row in rows])
        for step in self.layers[EARLY:]:
            hidden = step(hidden)
        return self.head(hidden).argmax(1).tolist()  # type: ignore[no-any-return]


def test_an_audit_of_an_exit_runs_only_the_remaining_layers() -> None:
    torch.manual_seed(0)
    layers = [Layer() for _ in range(DEPTH)]
    head = nn.Linear(8, CLASSES)
    nn.init.normal_(head.weight, std=2.0)
    model = ponder.PonderWrapper(layers, head=head, lambda_head=None).eval()
    inputs = torch.randn(ROWS, 8)
    with torch.inference_mode():
        full = model(inputs, policy=ponder.policies.LastStep()).outputs.argmax(1).tolist()
    for layer in layers:
        layer.rows = 0
    early = Exit(layers, head, inputs)
    live = Live(early.full_depth, LEVEL, cheap=early, rule=Audited())
    found = live.answer(range(ROWS))
    asked = found.source.count("reference")
    assert 0 < asked < ROWS
    assert [layer.rows for layer in layers] == [ROWS] * EARLY + [asked] * (DEPTH - EARLY)
    differ = sum(label != own for label, own in zip(found.labels, full, strict=True))
    assert 0 < differ <= live.account.ledger.bound <= LEVEL * ROWS


def _int8(matrix: Any) -> tuple[Any, float]:
    scale = float(np.abs(matrix).max()) / 127
    return np.rint(matrix / scale).astype(np.int8), scale


def test_int8_answers_beside_fp32() -> None:
    draw = np.random.default_rng(0)
    inputs, weights = draw.normal(size=(ROWS, 16)), draw.normal(size=(16, CLASSES))
    logits = inputs @ weights

    class Int8:
        classes = tuple(range(CLASSES))

        def predict_proba(self, rows: Sequence[int]) -> Any:
            (left, scale), (right, other) = _int8(inputs[list(rows)] ** 3), _int8(weights)
            products = left.astype(np.int32) @ right.astype(np.int32)
            rounded = np.cbrt(products * scale * other)
            shares = np.exp(rounded - rounded.max(1, keepdims=True))
            return shares / shares.sum(1, keepdims=True)

    live = Live(lambda rows: logits[rows].argmax(1), LEVEL, cheap=Int8(), rule=Audited())
    found = live.answer(range(ROWS))
    differ = (np.array(found.labels) != logits.argmax(1)).sum()
    assert 0 < differ <= live.account.ledger.bound <= LEVEL * ROWS
    assert found.source.count("cheap") > 0


@pytest.mark.parametrize("count", [1, 2])
def test_a_row_is_a_query_and_its_label_the_best_documents(count: int) -> None:
    draw = np.random.default_rng(0)
    scores = draw.normal(size=(ROWS, 5))
    first_stage = scores + draw.normal(scale=0.2, size=scores.shape)
    sets = list(combinations(range(5), count))

    class FirstStage:
        classes = tuple(str(list(each)) for each in sets)

        def predict_proba(self, queries: Sequence[int]) -> Any:
            sums = [first_stage[queries][:, list(each)].sum(1) for each in sets]
            shares = np.exp(4 * np.stack(sums, axis=1))
            return shares / shares.sum(1, keepdims=True)

    def best(queries: Sequence[int]) -> list[str]:
        order = np.sort(scores[queries].argsort(1)[:, -count:], axis=1)
        return [str(row) for row in order.tolist()]

    live = Live(best, 0.25, cheap=FirstStage(), rule=Audited())
    found = live.answer(range(ROWS))
    everywhere = best(list(range(ROWS)))
    differ = sum(label != own for label, own in zip(found.labels, everywhere, strict=True))
    assert 0 < differ <= live.account.ledger.bound <= 0.25 * ROWS
    assert found.source.count("cheap") > 0
