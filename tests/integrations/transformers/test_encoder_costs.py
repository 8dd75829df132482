"""Costs of real encoders: closed formulas, and the FLOPs of real calls."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ponder.cost import Cost, measure
from ponder.cost.flops import counted
from ponder.policies import Entropy, LastStep, Patience, Quantile
from tests.integrations.transformers.encoders import FAMILIES, LENGTH, ROWS, WIDTH, make_batch, make_model, rows_of

INNER = 24


def layer(length: int) -> int:
    """Query, key, value and output; two feed-forward products; attention, 4·L²·d."""
    return 2 * length * WIDTH * (4 * WIDTH + 2 * INNER) + 4 * length**2 * WIDTH


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("length", [1, LENGTH])
@pytest.mark.parametrize("name", ["albert", "bert"])
def test_encoders_are_as_the_formulas_say(name: str, length: int, attention: str) -> None:
    model = make_model(name, attention, recipe="palbert", num_labels=3)
    ids = torch.full((2, length), 5)
    measured = measure(model.ponder, ids, attention_mask=torch.ones_like(ids), token_type_ids=None)
    steps, head = model.ponder.num_steps, model.ponder.lambda_head
    widths = [WIDTH * head.history] + [WIDTH] * 2
    assert measured == Cost(
        stem=2 * length * 8 * WIDTH if name == "albert" else 0,  # ALBERT's embeddings are projected
        steps=(layer(length),) * steps,
        readouts=(2 * WIDTH * WIDTH,) * steps,
        heads=(2 * WIDTH * 3,) * steps,
        lambda_head=sum(2 * a * b for a, b in zip(widths, [WIDTH, WIDTH, 1], strict=True)),
        first_readout=2 * WIDTH * WIDTH,
    )


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_real_calls_cost_what_was_measured(name: str) -> None:
    model = make_model(name, recipe="palbert", num_labels=3)
    batch = make_batch(model.encoder)
    measured = measure(model.ponder, **{"inputs" if k == "input_ids" else k: v for k, v in batch.items()})
    exits = set()
    for policy in (Quantile(0.3), Entropy(0.6), Quantile(0.5) | Patience(1), LastStep()):
        for row in range(ROWS):
            with counted() as call:
                out = model(**rows_of(batch, torch.tensor([row])), policy=policy)
            assert call.total == measured.of(policy.needs, out.exit_step).item()
            exits.add(out.exit_step.item())
    assert len(exits) > 2


@torch.no_grad()
def test_plain_is_the_unwrapped_encoder() -> None:
    model = make_model("bert", "eager", num_labels=3)
    batch = make_batch(model.encoder)
    with FlopCounterMode(display=False) as counter:
        model.encoder(**batch)
    rows = len(batch["input_ids"])
    measured = measure(model.ponder, batch.pop("input_ids"), **batch)
    assert counter.get_total_flops() / rows == measured.plain - measured.heads[-1]
    assert measured.of(LastStep().needs, model.ponder.num_steps) == measured.plain
