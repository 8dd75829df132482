"""What promises are about: each part that is changed drops them, with one warning; nothing else does."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ponder
from ponder.integrations.transformers import PonderForSequenceClassification, fit_exits
from ponder.policies import Certified
from tests.integrations.encoders import make_plain, make_tokenizer, some_texts


@pytest.fixture(scope="module")
def exits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model with certified exits, its tokenizer, and an export."""
    folder = tmp_path_factory.mktemp("exits")
    model = PonderForSequenceClassification.from_finetuned(make_plain())
    model.tokenizer = make_tokenizer()
    fit_exits(model, some_texts(400), disagreement=0.3, epochs=1)
    assert isinstance(model.policy, Certified)
    model.save_pretrained(folder / "model")
    ponder.export.onnx(model.eval(), folder / "export")
    return folder


def read_model(folder: Path) -> Any:
    return PonderForSequenceClassification.from_pretrained(folder / "model").policy


def read_export(folder: Path) -> Any:
    return ponder.export.OnnxModel(folder / "export").policy


def write_of_moved(folder: Path) -> Any:
    """The policy of an export of a model whose weights were moved in memory."""
    model = PonderForSequenceClassification.from_pretrained(folder / "model").eval()
    with torch.no_grad():
        model.encoder.classifier.bias.add_(1.0)
    return ponder.export.OnnxModel(ponder.export.onnx(model, folder / "moved")).policy


def write_in_int8(folder: Path) -> Any:
    made = ponder.export.quantized(folder / "export", folder / "int8")
    return ponder.export.OnnxModel(made).policy


def in_json(path: str, *keys: Any, to: Any) -> Callable[[Path], None]:
    """Return a function that changes a value in a JSON file of a folder."""

    def change(folder: Path) -> None:
        data = json.loads((folder / path).read_text())
        place = data
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = to(place[keys[-1]]) if callable(to) else to
        (folder / path).write_text(json.dumps(data))

    return change


def swap_words(data: dict[str, int]) -> dict[str, int]:
    one, other = list(data)[5:7]
    return {**data, one: data[other], other: data[one]}


def move_weight(folder: Path) -> None:
    path = folder / "model" / "model.safetensors"
    weights = load_file(path)
    weights["ponder.stem.encoder.classifier.bias"] += 1.0
    save_file(weights, path, {"format": "pt"})


def swap_graphs(folder: Path) -> None:
    shutil.copy(folder / "export" / "step_1.onnx", folder / "export" / "step_3.onnx")


def quantise_graph(folder: Path) -> None:
    made = ponder.export.quantized(folder / "export", folder / "other")
    shutil.copy(made / "step_2.onnx", folder / "export" / "step_2.onnx")


def nothing(folder: Path) -> None:
    pass


def other_layout(folder: Path) -> None:
    for path in (folder / "model" / "config.json", folder / "export" / "tokenizer.json"):
        path.write_text(json.dumps(json.loads(path.read_text()), indent=3))


_MODEL = "model/config.json"
_EXPORT = "export/export.json"
_WORDS = ("model", "vocab")
CHANGES: dict[str, tuple[Callable[[Path], None], Callable[[Path], Any], str]] = {
    "a weight": (move_weight, read_model, "weights"),
    "activation": (
        in_json(_MODEL, "encoder", "hidden_act", to="relu"),
        read_model,
        "settings",
    ),
    "eps": (in_json(_MODEL, "encoder", "layer_norm_eps", to=0.1), read_model, "settings"),
    "heads": (in_json(_MODEL, "encoder", "num_attention_heads", to=4), read_model, "settings"),
    "names of classes": (
        in_json(_MODEL, "id2label", to={"0": "b", "1": "a", "2": "c"}),
        read_model,
        "settings",
    ),
    "words": (
        in_json("model/tokenizer.json", *_WORDS, to=swap_words),
        read_model,
        "tokenizer.json",
    ),
    "threshold": (
        in_json(_MODEL, "recipe", "policy", "threshold_value", to=0.1),
        read_model,
        "settings",
    ),
    "level": (in_json(_MODEL, "recipe", "policy", "level", to=0.001), read_model, "settings"),
    "moved in memory, exported": (nothing, write_of_moved, "weights"),
    "exported in int8": (nothing, write_in_int8, "weights"),
    "graphs of an export": (swap_graphs, read_export, "step_3.onnx"),
    "a graph in int8": (quantise_graph, read_export, "step_2.onnx"),
    "digest of an export": (
        in_json(_EXPORT, "weights", to="0" * 64),
        read_export,
        "weights, settings",
    ),
    "words of an export": (
        in_json("export/tokenizer.json", *_WORDS, to=swap_words),
        read_export,
        "tokenizer.json",
    ),
    "names of an export": (in_json(_EXPORT, "labels", to=["b", "a", "c"]), read_export, "settings"),
    "threshold of an export": (
        in_json(_EXPORT, "policy", "threshold_value", to=0.1),
        read_export,
        "settings",
    ),
    "level of an export": (in_json(_EXPORT, "policy", "level", to=0.001), read_export, "settings"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_part_that_changed_drops_the_promise(name: str, exits: Path, tmp_path: Path) -> None:
    change, read, part = CHANGES[name]
    folder = shutil.copytree(exits, tmp_path / "copy")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        change(folder)
    with pytest.warns(UserWarning, match=f"The {part} changed after .* the promise is dropped"):
        policy = read(folder)
    assert not isinstance(policy, Certified)


@pytest.mark.parametrize("change", [nothing, other_layout])
@pytest.mark.parametrize("read", [read_model, read_export])
def test_what_did_not_change_keeps_it(read: Any, change: Any, exits: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(exits, tmp_path / "copy")
    change(folder)
    assert isinstance(read(folder), Certified)
    model = PonderForSequenceClassification.from_pretrained(folder / "model")
    model.save_pretrained(folder / "model")
    model.tokenizer.save_pretrained(folder / "model")
    assert isinstance(read_model(folder), Certified)
    exported = ponder.export.OnnxModel(folder / "export")
    exported.save(folder / "again")
    assert isinstance(ponder.export.OnnxModel(folder / "again").policy, Certified)
