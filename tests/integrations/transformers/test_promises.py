"""What promises are about: each part that is changed drops them, with one warning; nothing else does."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import ponder
from ponder.errors import PonderError
from ponder.integrations.transformers import PonderForSequenceClassification, fit_exits
from ponder.integrations.transformers.rerank import CrossEncoder
from ponder.policies import Certified, Confidence, LastStep
from tests.integrations.encoders import make_plain, make_tokenizer, some_texts
from tests.rerank.test_rerank import plain, pools


@pytest.fixture(scope="module")
def exits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of all that has a certificate: a model, an export, a ranker, and a file of `ponder.save`."""
    folder = tmp_path_factory.mktemp("exits")
    model = PonderForSequenceClassification.from_finetuned(make_plain())
    model.tokenizer = make_tokenizer()
    fit_exits(model, some_texts(400), disagreement=0.3, epochs=1)
    assert isinstance(model.policy, Certified)
    model.save_pretrained(folder / "model")
    ponder.export.onnx(model.eval(), folder / "export")
    ranker = CrossEncoder(plain(), tokenizer=make_tokenizer())
    ranker.fit_exits(pools(120), top_k=2, changed=0.4)
    ranker.save(folder / "ranker")
    wrapper = made_wrapper()
    inputs = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    run = replace(wrapper.unroll(inputs), weights=wrapper.weights_digest())
    wrapper.policy = ponder.control_risk(run, Confidence, level=0.3).policy
    ponder.save(wrapper, folder / "saved.safetensors")
    return folder


def made_wrapper() -> Any:
    torch.manual_seed(0)
    options = {"task": "classification", "policy": LastStep()}
    return ponder.PonderWrapper(nn.Linear(8, 8), 4, head=nn.Linear(8, 3), **options).eval()


def read_ranker(folder: Path) -> Any:
    return CrossEncoder.load(folder / "ranker").settings.policy


def read_saved(folder: Path) -> Any:
    return ponder.load(folder / "saved.safetensors", into=made_wrapper()).policy


def in_saved(change: Callable[[dict[str, Any], dict[str, Any]], None]) -> Callable[[Path], None]:
    """Return a function that changes weights or settings in a file of `ponder.save`."""

    def act(folder: Path) -> None:
        path = folder / "saved.safetensors"
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        weights = load_file(path)
        settings = json.loads(metadata["settings"])
        change(weights, settings)
        save_file(weights, path, {**metadata, "settings": json.dumps(settings)})

    return act


def set_to(place: str, value: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    return lambda _, settings: settings["policy"]["certificate"].update({place: value})


def read_model(folder: Path) -> Any:
    return PonderForSequenceClassification.from_pretrained(folder / "model").policy


def read_export(folder: Path) -> Any:
    return ponder.export.OnnxModel(folder / "export").policy


def write_of_moved(folder: Path) -> Any:
    """The policy of an export of a model whose weights were moved in memory."""
    model = ponder.load(folder / "saved.safetensors", into=made_wrapper()).eval()
    assert isinstance(model.policy, Certified)
    with torch.no_grad():
        model.head.bias.add_(1.0)
    written = ponder.export.onnx(model, folder / "moved", example=torch.ones(2, 8))
    return ponder.export.OnnxModel(written).policy


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


def move_weight(folder: Path, name: str = "model") -> None:
    path = folder / name / "model.safetensors"
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
_RANKER = "ranker/rerank.json"
_WORDS = ("model", "vocab")
TEXTS = ["a b c", "d e"]
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
        in_json(_MODEL, "recipe", "policy", "certificate", "threshold_value", to=0.1),
        read_model,
        "settings",
    ),
    "level": (
        in_json(_MODEL, "recipe", "policy", "certificate", "level", to=0.001),
        read_model,
        "settings",
    ),
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
        in_json(_EXPORT, "policy", "certificate", "threshold_value", to=0.1),
        read_export,
        "settings",
    ),
    "level of an export": (
        in_json(_EXPORT, "policy", "certificate", "level", to=0.001),
        read_export,
        "settings",
    ),
    "a weight of a ranker": (partial(move_weight, name="ranker"), read_ranker, "weights"),
    "words of a ranker": (
        in_json("ranker/tokenizer.json", *_WORDS, to=swap_words),
        read_ranker,
        "tokenizer.json",
    ),
    "activation of a ranker": (
        in_json("ranker/config.json", "encoder", "hidden_act", to="relu"),
        read_ranker,
        "settings",
    ),
    "margin of a ranker": (
        in_json(_RANKER, "policy", "policy", "margin", to=0.0),
        read_ranker,
        "settings",
    ),
    "level of a ranker": (
        in_json(_RANKER, "policy", "certificate", "level", to=0.001),
        read_ranker,
        "settings",
    ),
    "k of a ranker": (in_json(_RANKER, "top_k", to=3), read_ranker, "settings"),
    "a weight of a file": (
        in_saved(lambda weights, _: weights["head.bias"].add_(1.0)),
        read_saved,
        "weights",
    ),
    "threshold of a file": (in_saved(set_to("threshold_value", 0.1)), read_saved, "settings"),
    "level of a file": (in_saved(set_to("level", 0.001)), read_saved, "settings"),
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
@pytest.mark.parametrize("read", [read_model, read_export, read_ranker, read_saved])
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


def answer_export(folder: Path) -> None:
    ponder.export.OnnxModel(folder / "export").predict(TEXTS)


def rank(folder: Path) -> None:
    CrossEncoder.load(folder / "ranker").rank("a b", TEXTS)


def leaves(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield the path of each value of a JSON file, and the value; of arrays, of the first three."""
    if not isinstance(data, dict | list) or not data:
        yield path, data
        return
    items = data.items() if isinstance(data, dict) else enumerate(data[:3])
    for name, value in items:
        yield from leaves(value, (*path, name))


def answer(folder: Path) -> None:
    PonderForSequenceClassification.from_pretrained(folder / "model").eval().predict(TEXTS)


DAMAGE: list[tuple[str, tuple[Any, ...], Any]] = [
    (_MODEL, ("architectures", 0), 0.5),
    (_MODEL, ("encoder", "use_cache"), "x"),
    (_MODEL, ("encoder", "vocab_size"), None),
    (_MODEL, ("encoder", "chunk_size_feed_forward"), {}),
    (_MODEL, ("example",), 0.5),
    (_MODEL, ("num_steps",), "x"),
    (_MODEL, ("readout",), 0.5),
    ("model/tokenizer_config.json", ("model_max_length",), "x"),
    ("model/tokenizer_config.json", ("model_max_length",), -1),
    (_EXPORT, ("graphs", "together"), 10_000),
    (_EXPORT, ("context", 0, "name"), "x"),
]


@pytest.mark.parametrize(("path", "keys", "to"), DAMAGE, ids=str)
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_setting_is_an_error_that_says_so(
    path: str, keys: tuple[Any, ...], to: Any, exits: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(exits, tmp_path / "copy")
    in_json(path, *keys, to=to)(folder)
    with pytest.raises(PonderError):
        answer_export(folder) if path == _EXPORT else answer(folder)


@pytest.mark.parametrize(("path", "read"), [(_EXPORT, answer_export), (_RANKER, rank)])
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_value_is_an_error_that_says_so(
    path: str, read: Callable[[Path], None], exits: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(exits, tmp_path / "copy")
    whole = (folder / path).read_text()
    raw = []
    for place, (keys, value) in enumerate(leaves(json.loads(whole))):
        wrong = [7, None] if isinstance(value, str) else ["x", {}]
        other = wrong[place % 2]
        in_json(path, *keys, to=other)(folder)
        try:
            read(folder)
        except PonderError:
            pass
        except Exception as error:
            raw.append((keys, value, other, f"{type(error).__name__}: {error}"))
        (folder / path).write_text(whole)
    assert not raw
