"""Nested states: which rows are taken, what passes unchanged, what is refused."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

import pytest
import torch

from ponder import Shared
from ponder._utils.trees import alike, check_rows, map_tensors, take_rows, tensors, unwrap
from tests.ponder.checks import refused


class State(NamedTuple):
    position: torch.Tensor
    extra: object


def test_rows_are_taken_from_every_per_example_tensor() -> None:
    bias = Shared(torch.zeros(7))
    tree = {
        "a": torch.arange(4),
        "b": (torch.arange(8).view(4, 2), [torch.arange(4) * 10, None, 3.5]),
        "c": State(torch.arange(4) + 1, bias),
        "d": OrderedDict(x=torch.arange(4)),
    }
    part = take_rows(tree, torch.tensor([2, 0]))
    assert part["a"].tolist() == [2, 0]
    assert part["b"][0].tolist() == [[4, 5], [0, 1]]
    assert part["b"][1][0].tolist() == [20, 0]
    assert part["b"][1][1:] == [None, 3.5]
    assert isinstance(part["c"], State)
    assert part["c"].position.tolist() == [3, 1]
    assert part["c"].extra is bias
    assert isinstance(part["d"], OrderedDict)
    assert isinstance(part["b"], tuple)
    assert tree["a"].tolist() == [0, 1, 2, 3]


def test_paths_lead_to_the_tensors() -> None:
    tree = {"a": [torch.zeros(1), (torch.ones(1),)], "b": 3}
    assert [path for path, _ in tensors(tree, "state")] == ["state['a'][0]", "state['a'][1][0]"]
    assert check_rows("state", tree) == 1
    assert map_tensors(lambda t: t + 1, tree)["a"][1][0].item() == 2.0


def test_shared_values_lose_their_mark_in_front_of_a_step() -> None:
    value = torch.zeros(3)
    assert unwrap({"a": Shared(value), "b": 1}) == {"a": value, "b": 1}


@pytest.mark.parametrize(
    ("tree", "path", "got"),
    [
        ({"a": torch.zeros(4), "b": torch.zeros(3)}, "state['b']", "shape (3,)"),
        ((torch.zeros(4), [torch.tensor(1.0)]), "state[1][0]", "shape ()"),
        (torch.tensor(1.0), "state", "shape ()"),
    ],
)
def test_a_tensor_that_is_not_batch_first_is_named(tree, path: str, got: str) -> None:
    with refused(path, "batch first", got, "ponder.Shared"):
        check_rows("state", tree)


def test_a_state_without_tensors_is_refused() -> None:
    with refused("inputs", "a tensor", "str", type_error=True):
        check_rows("inputs", "hello")
    assert check_rows("policy state", None, 3) == 3


def test_shared_values_lose_their_mark_wherever_they_stand():
    bias = torch.ones(1)
    seen = unwrap({"a": (Shared(bias), [1, Shared(2)]), "b": {"c": Shared(None)}, "d": bias})
    assert seen == {"a": (bias, [1, 2]), "b": {"c": None}, "d": bias}


def test_trees_are_alike_in_structure_and_in_every_leaf() -> None:
    nan = torch.tensor([1.0, torch.nan, torch.inf])

    def tree(*, leaf: object = nan, extra: object = 3) -> dict[str, object]:
        return {"a": (leaf, [torch.arange(3), None]), "b": State(torch.zeros(2), extra)}

    assert alike(tree(), tree(leaf=nan.clone()))
    assert not alike(tree(), tree(leaf=nan + torch.tensor([1e-5, 0.0, 0.0])))
    assert alike(tree(), tree(leaf=nan + torch.tensor([1e-5, 0.0, 0.0])), 1e-4)
    for other in (tree(leaf=nan.double()), tree(leaf=nan[:2]), tree(leaf=None), tree(extra=4), tree(extra="3"), 1):
        assert not alike(tree(), other)
    assert not alike((nan, nan), [nan, nan])
    torch.manual_seed(0)
    one, two = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    assert alike([one], [one])
    assert not alike([one], [two])
    two.load_state_dict(one.state_dict())
    assert alike([one], [two])
