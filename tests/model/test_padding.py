"""Masks and lengths: where they are found, how batches get narrower, and how rows of several lengths are joined."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import ponder
from ponder.model.padding import Along, join_rows, last_position, width_of
from tests.toys import LENGTH, ROWS, WIDTH, padding

REAL = ~padding()
STATES = torch.randn(ROWS, LENGTH, WIDTH, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("contexts", "padding", "found"),
    [
        ([{"attention_mask": REAL.long()}], None, True),
        ([{"src_key_padding_mask": ~REAL}], None, True),
        ([{}, {"attention_mask": REAL.float()}], None, True),
        ([{"frames": ~REAL}], ponder.Padding("frames", 0), True),
        ([{"frames": ~REAL}], None, False),
        ([{}], None, False),
        (
            [{"attention_mask": REAL[:, None, None]}],
            None,
            False,
        ),  # added to scores: says nothing of positions
        (
            [{"attention_mask": REAL[:, :3]}, {"attention_mask": REAL}],
            None,
            True,
        ),  # the stem made other positions
        ([{"attention_mask": REAL[:, :3]}], None, False),
    ],
)
def test_the_mask_of_the_states_is_found(
    contexts: Any, padding: ponder.Padding | None, found: bool
) -> None:
    made = (padding or ponder.Padding()).positions(*contexts, width=LENGTH)
    assert (made is not None and torch.equal(made, REAL)) if found else made is None


def test_lengths_are_the_last_real_positions() -> None:
    mask = torch.tensor([[1, 1, 0], [1, 0, 1], [1, 0, 0]])
    padding = ponder.Padding()
    assert last_position(padding.positions({"attention_mask": mask})).tolist() == [2, 3, 1]
    assert padding.positions({}) is None


def test_one_tree_is_cut_to_views_of_what_has_a_length() -> None:
    padding = ponder.Padding(context={"bias": Along((2, 3))})
    state = {"tokens": STATES, "sums": STATES[:, 0]}
    bias = ponder.Shared(torch.randn(1, 2, LENGTH, LENGTH))
    context = {
        "attention_mask": REAL,
        "bias": bias,
        "scale": torch.ones(ROWS, LENGTH),
        "flag": True,
    }
    hidden = join_rows([state], padding.of_hidden, 2)
    cut = join_rows([context], padding.of_context, 2)
    assert (hidden["tokens"].shape, hidden["sums"].shape) == ((ROWS, 2, WIDTH), (ROWS, WIDTH))
    assert hidden["tokens"].data_ptr() == STATES.data_ptr()
    assert cut["attention_mask"].shape == (ROWS, 2)
    assert cut["bias"].value.shape == (1, 2, 2, 2)
    assert (cut["scale"].shape, cut["flag"]) == ((ROWS, LENGTH), True)
    assert width_of(state) == LENGTH
    assert width_of(torch.ones(2, 3)) == 0


class State(NamedTuple):
    """A named tuple, of which one part has a length."""

    tokens: Tensor
    seen: Tensor


def test_rows_of_several_lengths_are_joined_as_by_hand() -> None:
    sizes = [2, 3, 1]
    lengths = [4, 2, 3]
    trees = [
        State(torch.randn(n, own, WIDTH), torch.randn(n))
        for n, own in zip(sizes, lengths, strict=True)
    ]
    made = join_rows(trees, lambda _, tensor: Along(fill=9.0) if tensor.dim() > 2 else None, 3)
    assert isinstance(made, State)
    for row, expected in zip(
        made.tokens, [row for tree in trees for row in tree.tokens], strict=True
    ):
        cut = expected[:3]
        assert torch.equal(row[: len(cut)], cut)
        assert bool((row[len(cut) :] == 9.0).all())
    assert torch.equal(made.seen, torch.cat([tree.seen for tree in trees]))


def test_contexts_are_joined_by_their_names() -> None:
    padding = ponder.Padding(context={"bias": Along((1, 2))})
    long = torch.randn(2, 4, 4)
    short = torch.randn(1, 2, 2)
    shared = [ponder.Shared(torch.arange(4)), ponder.Shared(torch.arange(4))]
    contexts = [
        {"attention_mask": torch.ones(2, 4), "bias": long, "table": shared[0], "heads": 2},
        {"attention_mask": torch.ones(1, 2), "bias": short, "table": shared[1], "heads": 2},
    ]
    made = join_rows(contexts, padding.of_context, 4)
    assert made["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0]]
    assert torch.equal(made["bias"][2, :2, :2], short[0])
    assert (made["bias"].shape, made["heads"]) == ((3, 4, 4), 2)
    assert torch.equal(made["table"].value, torch.arange(4))


def test_inputs_are_joined_by_their_lengths() -> None:
    padding = ponder.Padding(inputs=Along(fill=7))
    ids = [torch.tensor([[1, 2]]), torch.tensor([[3]])]
    weight = [torch.ones(1), torch.ones(1)]
    assert join_rows(ids, padding.of_inputs, 2).tolist() == [[1, 2], [3, 7]]
    rows = [
        {"ids": i, "attention_mask": torch.ones_like(i), "w": w}
        for i, w in zip(ids, weight, strict=True)
    ]
    made = join_rows(rows, padding.of_inputs, 2)
    assert made["ids"].tolist() == [[1, 2], [3, 7]]
    assert made["attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert made["w"].tolist() == [1.0, 1.0]


def test_shared_values_that_are_functions_of_the_length_are_cropped() -> None:
    values = [ponder.Shared(torch.arange(size)) for size in (3, 5)]
    assert join_rows(values, lambda *_: Along((0,)), 4).value.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "trees",
    [
        [torch.ones(1), None],
        [torch.ones(1), 3],
        [1, 2],
        [ponder.Shared(1), ponder.Shared(2)],
        [ponder.Shared(torch.ones(2)), ponder.Shared(torch.zeros(2))],
    ],
)
def test_rows_that_do_not_fit_are_refused(trees: list[Any]) -> None:
    with pytest.raises(ponder.errors.ArgumentError, match="rows"):
        join_rows(trees)
    with pytest.raises(ValueError, match="tuple"):  # in PyTorch's own words
        join_rows([tuple(trees), trees])
