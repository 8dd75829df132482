"""Joining rows: order, fills, lengths, what belongs to the whole batch, and what does not fit."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import pytest
import torch

from ponder import Shared
from ponder.parts.joining import join_rows, with_lengths
from ponder.parts.padding import Along, masked
from ponder.policies import PolicyBatch
from tests.ponder.checks import refused
from tests.ponder.examples import POLICIES, Example, make_policy


class State(NamedTuple):
    position: torch.Tensor
    extra: object


def test_rows_stand_in_the_order_of_the_trees() -> None:
    first = {"a": torch.arange(4), "b": [State(torch.arange(8).view(4, 2), None), 3.5]}
    second = {"a": torch.tensor([10, 11]), "b": [State(torch.tensor([[20, 21], [22, 23]]), None), 3.5]}
    joined = join_rows([first, second], [2, 2], [torch.tensor([3, 1]), None])
    assert joined["a"].tolist() == [3, 1, 10, 11]
    assert joined["b"][0].position.tolist() == [[6, 7], [2, 3], [20, 21], [22, 23]]
    assert isinstance(joined["b"][0], State)
    assert joined["b"][0].extra is None
    assert joined["b"][1] == 3.5
    assert first["a"].tolist() == [0, 1, 2, 3]


def test_none_becomes_zeros_in_the_state_of_a_policy() -> None:
    answer, state = torch.tensor([[1, 2], [3, 4]]), partial(join_rows, absent="zeros")
    assert state([None, answer], [1, 2]).tolist() == [[0, 0], [1, 2], [3, 4]]
    assert state([{"a": answer}, {"a": None}], [2, 1])["a"].tolist() == [[1, 2], [3, 4], [0, 0]]
    assert state([None, {"a": (answer,)}], [1, 2])["a"][0].tolist() == [[0, 0], [1, 2], [3, 4]]
    assert state([torch.tensor([True]), None], [1, 1]).tolist() == [True, False]


def test_none_is_no_zeros_elsewhere() -> None:
    answer = torch.tensor([[1, 2], [3, 4]])
    assert join_rows([None, None], [1, 2]) is None
    assert join_rows([(None,), (None,)], [1, 2]) == (None,)
    for trees, place in (([None, answer], "mask"), ([(answer,), (None,)], "mask[0]"), ([{"a": answer}, None], "mask")):
        with refused(place, "in all rows", "None"):
            join_rows(trees, [2, 2], path="mask")


def test_one_tree_whose_rows_all_stay_is_not_copied() -> None:
    tree = {"a": torch.arange(6).view(3, 2)}
    assert join_rows([tree], [3])["a"].data_ptr() == tree["a"].data_ptr()
    same = join_rows([tree], [3], lengths=with_lengths(Along()), length=2)["a"]
    narrow = join_rows([tree], [3], lengths=with_lengths(Along()), length=1)["a"]
    assert same.data_ptr() == narrow.data_ptr() == tree["a"].data_ptr()
    assert narrow.tolist() == [[0], [2], [4]]


def test_lengths_are_padded_and_cropped() -> None:
    long, short = torch.ones(1, 4, 2), torch.full((2, 2, 2), 2.0)
    joined = join_rows([long, short], [1, 1], [None, torch.tensor([1])], lengths=with_lengths(Along(fill=9)), length=3)
    assert joined[..., 0].tolist() == [[1, 1, 1], [2, 2, 9]]
    square = join_rows(
        [torch.ones(1, 1, 3, 3), torch.zeros(1, 1, 2, 2)],
        [1, 1],
        lengths=with_lengths(Along((-2, -1), fill=5)),
        length=3,
    )
    assert square[1, 0].tolist() == [[0, 0, 5], [0, 0, 5], [5, 5, 5]]


@pytest.mark.parametrize(
    ("mask", "fill"),
    [
        (torch.ones(1, 1, 1, 2), torch.finfo(torch.float32).min),
        (torch.ones(1, 1, 1, 2, dtype=torch.bfloat16), torch.finfo(torch.bfloat16).min),
        (torch.ones(1, 1, 1, 2, dtype=torch.bool), False),
        (torch.ones(1, 2, dtype=torch.long), 0),
        (torch.ones(1, 2), 0.0),
    ],
)
def test_masks_are_padded_with_what_hides(mask: torch.Tensor, fill: float) -> None:
    wide = torch.cat([mask, mask], dim=-1)
    joined = join_rows([wide, mask], [1, 1], lengths=with_lengths(Along((-1,), fill=masked)), length=4)
    assert joined.dtype == mask.dtype
    assert joined[1].flatten().tolist() == [1, 1, fill, fill]


def test_types_are_promoted() -> None:
    joined = join_rows([torch.zeros(2), torch.ones(1, dtype=torch.float64)], [1, 1], [torch.tensor([1]), None])
    assert joined.dtype == torch.float64
    assert joined.tolist() == [0, 1]


def test_shared_values() -> None:
    bias = torch.arange(9.0).view(1, 3, 3)
    assert join_rows([Shared(bias), Shared(bias)], [1, 1]).value is bias
    assert join_rows([Shared(bias), Shared(bias.clone())], [1, 1]).value is bias
    with refused("rows", "two that differ"):
        join_rows([Shared(bias), Shared(bias + 1)], [1, 1])
    narrow = Shared(bias[:, :2, :2])
    by_length = with_lengths(Along((-2, -1)))
    assert torch.equal(join_rows([narrow, Shared(bias)], [1, 1], lengths=by_length, length=3).value, bias)
    assert torch.equal(join_rows([Shared(bias), narrow], [1, 1], lengths=by_length, length=2).value, narrow.value)


@pytest.mark.parametrize(
    ("trees", "path"),
    [
        ([{"a": torch.zeros(1, 3)}, {"a": torch.zeros(1, 4)}], "state['a']"),
        ([{"a": torch.zeros(1, 3)}, {"a": torch.zeros(1, 3, 1)}], "state['a']"),
        ([{"a": torch.zeros(1)}, {"b": torch.zeros(1)}], "state"),
        ([[torch.zeros(1)], [torch.zeros(1), torch.zeros(1)]], "state"),
        ([torch.zeros(1), [torch.zeros(1)]], "state"),
        ([(2.0,), (3.0,)], "state[0]"),
    ],
)
def test_what_does_not_fit_is_named(trees: list[object], path: str) -> None:
    with refused(path, "ponder.Padding"):
        join_rows(trees, [1, 1], path="state")


@pytest.mark.parametrize("case", POLICIES, ids=str)
def test_the_states_of_every_policy_join(case: Example) -> None:
    policy = make_policy(case)
    states = [policy.init(PolicyBatch(torch.arange(rows), 5, case.task)) for rows in (3, 2)]
    joined = join_rows(states, [3, 2])
    assert type(joined) is type(states[0])
