"""Helpers that every room uses: arithmetic for two libraries, checks, trees, names, ids, files and digests."""

from __future__ import annotations

import copy
import json
import os
import pickle
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ponder import policies
from ponder._utils import files, registry
from ponder._utils.arrays import at_least_float32, softmax, weighted
from ponder._utils.checks import check_choice, check_int, check_real, check_share, check_type
from ponder._utils.files import replace_text
from ponder._utils.modes import evaluating
from ponder._utils.registry import Plugin, Registry
from ponder._utils.rounding import rounded_down, rounded_up
from ponder._utils.rows import content_ids, split
from ponder._utils.seals import digest_of_tensors, read_sealed, write_sealed
from ponder._utils.seeds import uniform
from ponder._utils.trees import Shared, alike, check_rows, first_tensor, take_rows, tensors, unwrap
from ponder.errors import ArgumentError, ArgumentTypeError, CheckpointError, PonderError

# -- arithmetic and checks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("fn", [softmax, at_least_float32])
def test_arrays_and_tensors_alike(fn: Any) -> None:
    x = np.array([[1e4, -1e4, 0.0], [1.0, 2.0, 3.0]])
    for dtype in (np.float16, np.float32, np.float64):
        made = fn(x.astype(dtype))
        expected = fn(torch.tensor(x.astype(dtype)))
        assert (
            made.dtype
            == expected.numpy().dtype
            == (np.float64 if dtype == np.float64 else np.float32)
        )
        np.testing.assert_allclose(made, expected, rtol=1e-6, atol=1e-7)


def test_no_weight_leaves_no_trace_of_an_infinity() -> None:
    weight = torch.tensor([0.0, 2.0])
    value = torch.tensor([-torch.inf, 3.0], requires_grad=True)
    weighted(weight, value).sum().backward()
    assert value.grad is not None
    assert value.grad.tolist() == [0.0, 2.0]
    assert weighted(np.array([0.0, 2.0]), np.array([np.inf, 3.0])).tolist() == [0.0, 6.0]


@pytest.mark.parametrize(
    ("check", "arguments", "message"),
    [
        (check_int, ("n", 1.0), "n: expected a whole number ≥ 1; got 1.0. Pass n=1, say."),
        (check_int, ("n", True), "got True"),
        (check_int, ("n", 7, 1, 6), "from 1 to 6"),
        (
            check_real,
            ("q", float("nan"), 0.0, 1.0),
            "q: expected a number in [0, 1]; got nan. Pass q=0.5, say.",
        ),
        (check_real, ("t", "1"), "a finite number ≥ 0"),
        (check_share, ("level", 1.0), "a number in (0, 1)"),
        (check_choice, ("way", "up", ("left", "down")), "one of left, down"),
        (
            check_type,
            ("policy", "quantile", nn.Linear),
            "expected an instance of torch.nn.modules.linear.Linear",
        ),
    ],
)
def test_checks_say_what_to_pass(check: Any, arguments: Any, message: str) -> None:
    with pytest.raises(PonderError) as caught:
        check(*arguments)
    assert message in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_checks_let_good_values_pass() -> None:
    check_int("n", 3, None)
    check_real("q", 0, 0.0, 1.0)
    check_share("level", 0.5)
    check_choice("way", "left", ("left", "down"))
    check_type("policy", nn.Linear(1, 1), nn.Module)


@given(st.floats(1e-9, 1e9), st.integers(1, 8))
def test_rounding_keeps_its_side(value: float, digits: int) -> None:
    assert float(rounded_down(value, digits)) <= value * (1 + 1e-12)
    assert float(rounded_up(value, digits)) >= value * (1 - 1e-12)
    assert (rounded_up(0.05), rounded_down(0.99999999, 3), rounded_up(0)) == ("0.05", "0.999", "0")


# -- trees -------------------------------------------------------------------------------------------------------

Pair = namedtuple("Pair", "left right")
TREES = {
    "tensor": torch.arange(6).view(3, 2),
    "tuple": (torch.arange(3), [torch.ones(3, 1)], None, 7),
    "named tuple": Pair(torch.arange(3), {"a": torch.zeros(3)}),
    "ordered dict": OrderedDict(b=torch.arange(3), a=Shared(torch.ones(2))),
}


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
def test_rows_of_trees(tree: Any) -> None:
    index = torch.tensor([2, 0, 0])
    taken = take_rows(tree, index)
    assert type(taken) is type(tree)
    assert [path for path, _ in tensors(taken)] == [path for path, _ in tensors(tree)]
    for (_, one), (_, whole) in zip(tensors(taken), tensors(tree), strict=True):
        assert torch.equal(one, whole[index])
    assert check_rows("state", tree) == 3
    assert first_tensor(tree).shape[0] == 3
    assert alike(tree, copy.copy(tree))
    assert not alike(tree, taken)


def test_what_is_no_row_stays_whole() -> None:
    tree = (None, 7, Shared(torch.ones(5)), "name")
    assert take_rows(tree, torch.tensor([0])) == tree
    assert take_rows(None, torch.tensor([0])) is None
    shared = Shared([torch.ones(5)])
    assert unwrap({"a": shared, "b": {"c": shared}, "d": 1}) == {
        "a": shared.value,
        "b": {"c": shared.value},
        "d": 1,
    }


def test_the_tensor_that_is_not_batch_first_is_named() -> None:
    with pytest.raises(
        ArgumentError, match=r"context\['bias'\]\[0\].*\(3, …\).*shape \(2, 4\).*Shared"
    ):
        check_rows("context", {"mask": torch.ones(3, 4), "bias": [torch.ones(2, 4)]})
    with pytest.raises(ArgumentTypeError, match="expected a tensor"):
        check_rows("inputs", {"n": 3})


def test_trees_are_compared_with_nan_and_within_a_tolerance() -> None:
    one = {"a": torch.tensor([1.0, torch.nan]), "b": 3}
    assert alike(one, {"a": torch.tensor([1.0 + 1e-5, torch.nan]), "b": 3}, 1e-4)
    assert not alike(one, {"a": torch.tensor([1.0 + 1e-5, torch.nan]), "b": 3})
    assert not alike(one, {"a": one["a"].double(), "b": 3})
    assert not alike(one, {"a": one["a"], "b": 4})
    assert not alike(one, [one["a"], 3])


# -- names -------------------------------------------------------------------------------------------------------

shapes: Registry[Any] = Registry("shape", "tests.shapes")
colours: Registry[Any] = Registry("colour", "tests.colours")


@colours.register("red")
@dataclass(frozen=True)
class Red(Plugin):
    registry: ClassVar[Registry[Any]] = colours
    depth: float = 1.0


@shapes.register("round")
@dataclass(frozen=True)
class Round(Plugin):
    registry: ClassVar[Registry[Any]] = shapes
    radius: float | None = None
    inside: tuple[Any, ...] = ()
    core: Round | None = None


def test_nested_plugins_come_back_from_json() -> None:
    made = Round(2.0, (Round(), (Round(1.0), "label")), Round(0.5))
    data = json.loads(json.dumps(made.to_dict()))
    assert data["core"] == {"name": "round", "radius": 0.5, "inside": [], "core": None}
    assert Round.from_dict(data) == made
    assert policies.from_dict({"name": "quantile", "q": 0.3}) == policies.Quantile(0.3)


def test_names_are_given_once_and_listed_when_unknown() -> None:
    with pytest.raises(ArgumentError, match="'round', which names"):
        shapes.register("round")(Red)
    assert shapes.register("round")(Round) is Round
    with pytest.raises(ArgumentError, match="expected one of round; got 'square'"):
        shapes.get("square")
    with pytest.raises(ArgumentError, match="Give the class a name"):
        shapes.name_of(int)


def test_entry_points_are_loaded_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []

    def point(name: str) -> Any:
        return SimpleNamespace(name=name, load=lambda: loaded.append(name) or Red)

    monkeypatch.setattr(
        registry.metadata, "entry_points", lambda group: [point("blue"), point("red")]
    )
    registry._entry_points.cache_clear()
    try:
        assert colours.names() == ["blue", "red"]
        assert loaded == []
        assert colours.get("blue", depth=2.0) == Red(2.0)
        assert loaded == ["blue"]
    finally:
        registry._entry_points.cache_clear()


# -- rows --------------------------------------------------------------------------------------------------------


def test_random_numbers_of_a_row_are_those_of_every_release() -> None:
    ids = np.array([0, 1, 2, 2**62, -(2**62)])
    for seed, numbers in ((0, [0.2817613, 0.6524485, 0.7012121]), (-5, [0.0771046, 0.2469825])):
        for given_ids in (ids, torch.tensor(ids)):
            found = uniform(seed, given_ids)
            np.testing.assert_allclose(found[-2:] if seed else found[:3], numbers, atol=1e-4)
    assert np.array_equal(uniform(2**64 + 3, ids), uniform(3, ids))
    numbers = uniform(7, np.arange(20_000))
    assert abs(numbers.mean() - 0.5) < 0.01
    assert np.abs(np.histogram(numbers, 10, (0.0, 1.0))[0] / 20_000 - 0.1).max() < 0.01
    assert len(np.unique(numbers)) > 19_900


def test_ids_are_functions_of_the_text() -> None:
    ids = content_ids(["yes", "no", ("yes", "no"), "yes"])
    assert ids.dtype == np.int64
    assert ids[0] == ids[3] == content_ids(["yes"])[0] == -7891968539030933039
    assert len(np.unique(ids)) == 3
    assert len(np.unique(content_ids([("ab", "c"), ("a", "bc"), "abc"]))) == 3
    assert len(content_ids([])) == 0


@given(
    st.lists(st.integers(-5, 30), max_size=120),
    st.lists(st.floats(0.1, 1.0), min_size=1, max_size=4),
    st.integers(0, 99),
)
def test_splits_are_disjoint_and_whole(ids: list[int], shares: list[float], seed: int) -> None:
    sides = split(np.array(ids, dtype=np.int64), shares, seed)
    assert sorted(np.concatenate(sides).tolist()) == list(range(len(ids)))
    for number, share in enumerate(np.cumsum(shares) / np.sum(shares)):
        dealt = sum(map(len, sides[: number + 1]))
        assert abs(dealt - share * len(ids)) <= 0.5 + 1e-6


def test_a_split_moves_few_rows_when_others_come() -> None:
    texts = [f"text {n}" for n in range(1000)]
    one = split(texts, (0.5, 0.5))[0]
    more = split(texts + [f"more {n}" for n in range(20)], (0.5, 0.5))[0]
    assert abs(len(one) - 500) <= 1
    assert len(set(one.tolist()) ^ {row for row in more.tolist() if row < 1000}) < 30
    assert split(texts, (0.5, 0.5), seed=1)[0].tolist() != one.tolist()


# -- files, digests, modes ---------------------------------------------------------------------------------------


def test_tensors_come_back_in_either_library(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.safetensors"
    arrays = {"a": np.arange(6.0).reshape(2, 3), "b": np.array([1, 2])}
    for given_tensors in (arrays, {name: torch.tensor(value) for name, value in arrays.items()}):
        write_sealed(path, "kind-1", {"what": "ä"}, given_tensors)
        made = read_sealed(path, "kind-1", "thing", "np")
        assert made.settings == {"what": "ä"}
        assert not made.changed()
        assert all(np.array_equal(made.tensors[name], value) for name, value in arrays.items())
        in_torch = read_sealed(path, "kind-1", "thing", "pt").tensors
        assert torch.equal(in_torch["a"], torch.tensor(arrays["a"]))
    half = torch.randn(3).bfloat16()
    write_sealed(path, "kind-1", {}, {"half": half})
    assert torch.equal(read_sealed(path, "kind-1", "thing", "pt").tensors["half"], half)


def test_json_of_another_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.json"
    write_sealed(path, "kind-2", {"what": "ä", "numbers": [1, 2.5]})
    made = read_sealed(path, "kind-2", "thing")
    assert made.settings == {"what": "ä", "numbers": [1, 2.5]}
    for content in (path.read_text(), "{}", "[]", "{", None):
        path.unlink() if content is None else path.write_text(content)
        with pytest.raises(CheckpointError, match=r"no thing of this version, kind-3"):
            read_sealed(path, "kind-3", "thing")


def test_parts_that_changed_are_named(tmp_path: Path) -> None:
    (tmp_path / "stage").mkdir()
    (tmp_path / "stage" / "weights").write_text("1")
    (tmp_path / "words.json").write_text('{"a": 1}')
    index = tmp_path / "index.json"
    write_sealed(index, "kind-1", {}, parts=["stage", "words.json"])
    made = read_sealed(index, "kind-1", "thing")
    (tmp_path / "words.json").write_text('{ "a":  1 }')
    (tmp_path / "stage" / ".hidden").touch()
    assert made.changed() == []
    (tmp_path / "stage" / "weights").rename(tmp_path / "stage" / "other")
    (tmp_path / "words.json").unlink()
    assert made.changed() == ["stage", "words.json"]


def test_an_interrupted_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "settings.json"
    replace_text(path, "old")
    for name in ("fsync", "replace"):
        with monkeypatch.context() as broken:
            broken.setattr(files.os, name, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                replace_text(path, "new")
        assert path.read_text() == "old"
        assert os.listdir(tmp_path) == ["settings.json"]


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b'{"no": "tensors"}'])
def test_foreign_and_missing_files_are_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file.safetensors"
    with pytest.raises(CheckpointError, match="missing"):
        read_sealed(path, "kind-1", "thing", "np")
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="no safetensors file"):
        read_sealed(path, "kind-1", "thing", "np")


def test_the_digest_is_of_numbers_and_not_of_names_or_memory() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))

    def digest_now() -> str | None:
        return digest_of_tensors(model.state_dict().values())

    digest = digest_now()
    assert digest == digest_of_tensors(copy.deepcopy(model).state_dict().values())
    assert digest is not None
    assert len(digest) == 64
    with torch.no_grad():
        model[0].bias[1] += 1e-6
    moved = digest_now()
    model.bfloat16()
    assert len({digest, moved, digest_now()}) == 3
    assert digest_of_tensors(nn.Linear(2, 2, device="meta").parameters()) is None
    array = np.arange(6.0)
    assert digest_of_tensors([array]) == digest_of_tensors([array.copy()])
    assert digest_of_tensors([array]) != digest_of_tensors([array.reshape(2, 3)])


def test_modes_come_back_after_an_exception() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    with evaluating(model):
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
    with pytest.raises(ZeroDivisionError), evaluating(model):
        raise ZeroDivisionError
    assert [module.training for module in model.modules()] == [True, True, False]
    assert torch.is_grad_enabled()
