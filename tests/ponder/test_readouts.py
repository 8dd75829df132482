"""Readouts, and the context that they are given."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import ponder
from ponder import Shared, readouts
from ponder._utils.trees import unwrap
from ponder.parts.readouts import ReadoutCall
from tests.ponder.checks import refused

HIDDEN = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0))
REAL = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 1, 0]])


def plain_mean(hidden: torch.Tensor, real: torch.Tensor) -> list[list[float]]:
    rows = []
    for states, mask in zip(hidden.tolist(), real.tolist(), strict=True):
        kept = [state for state, keep in zip(states, mask, strict=True) if keep]
        rows.append([math.fsum(values) / len(kept) for values in zip(*kept, strict=True)])
    return rows


@pytest.mark.parametrize("mask", [REAL, REAL.bool(), REAL.float()], ids=["long", "bool", "float"])
def test_the_mean_leaves_padding_out(mask: torch.Tensor) -> None:
    expected = torch.tensor(plain_mean(HIDDEN, REAL))
    torch.testing.assert_close(readouts.mean(HIDDEN, attention_mask=mask), expected)
    torch.testing.assert_close(readouts.mean(HIDDEN, src_key_padding_mask=REAL == 0), expected)
    torch.testing.assert_close(readouts.mean(HIDDEN), torch.tensor(plain_mean(HIDDEN, torch.ones(3, 4))))


def test_last_is_the_last_real_position_on_either_side_of_the_padding() -> None:
    expected = torch.stack([HIDDEN[0, 1], HIDDEN[1, 3], HIDDEN[2, 2]])
    assert torch.equal(readouts.last(HIDDEN, attention_mask=REAL), expected)
    assert torch.equal(readouts.last(HIDDEN, src_key_padding_mask=REAL == 0), expected)
    assert torch.equal(readouts.last(HIDDEN), HIDDEN[:, -1])


def test_first_token_and_identity() -> None:
    assert torch.equal(readouts.first_token(HIDDEN), HIDDEN[:, 0])
    assert readouts.identity(HIDDEN) is HIDDEN


def read(call: ReadoutCall, context: dict[str, object]) -> torch.Tensor:
    return call(HIDDEN, unwrap(call.reads(context)))


def test_a_readout_is_given_the_context_that_it_names() -> None:
    context = {"a": torch.ones(3), "b": Shared(5.0), "c": 7}
    seen: dict[str, object] = {}

    def named(hidden, b):
        seen.update(b=b)
        return hidden

    def everything(hidden, **rest):
        seen.update(rest)
        return hidden

    class Module(nn.Module):
        def forward(self, hidden, a):
            seen.update(a=a)
            return hidden

    read(ReadoutCall(named), context)
    assert seen == {"b": 5.0}
    seen.clear()
    read(ReadoutCall(everything), context)
    assert seen == {"a": context["a"], "b": 5.0, "c": 7}
    seen.clear()
    read(ReadoutCall(Module()), context)
    assert seen == {"a": context["a"]}
    assert torch.equal(read(ReadoutCall(torch.sin), context), HIDDEN.sin())  # a built-in has no signature


def test_without_a_readout_the_state_has_to_be_features() -> None:
    flat = torch.zeros(3, 2)
    assert ReadoutCall(None)(flat, {}) is flat
    with refused("readout", "(3, 4, 2)", "readouts.first_token"):
        ReadoutCall(None)(HIDDEN, {})
    with refused("readout", "tuple"):
        ReadoutCall(None)((flat, flat), {})


def test_mean_of_a_long_text_does_not_overflow_in_half_precision():
    hidden = torch.full((1, 600, 2), 200.0, dtype=torch.float16)
    features = readouts.mean(hidden, attention_mask=torch.ones(1, 600, dtype=torch.long))
    assert features.dtype == torch.float16
    assert features.tolist() == [[200.0, 200.0]]


def test_a_readout_gives_features_of_each_row() -> None:
    """The trap: graphs of which nodes are the rows had answers a graph, beside exits a node."""
    graph = torch.tensor([0, 0, 1, 1, 1])

    def by_graph(hidden: torch.Tensor) -> torch.Tensor:
        return torch.zeros(2, hidden.shape[1]).index_add(0, graph, hidden)

    model = ponder.PonderWrapper(nn.Linear(4, 4), num_steps=3, head=nn.Linear(4, 2), readout=by_graph)
    for call in (model.eval(), model.unroll):
        with refused("readout", "each of the 5 rows", "shape (2, 4)"):
            call(torch.randn(5, 4))  # type: ignore[operator]
