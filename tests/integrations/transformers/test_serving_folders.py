"""Folders as services: of `ponder exits`, of `PonderForSequenceClassification`, exports; and what is refused."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, BertForTokenClassification, BertModel

import ponder
from ponder import policies
from ponder.cli import predict
from ponder.errors import ArgumentError, CheckpointError
from ponder.integrations.transformers import (
    FinetunedClassifier,
    PonderForSequenceClassification,
    PonderForTokenClassification,
)
from ponder.integrations.transformers.serving import open_folder, served
from ponder.integrations.transformers.tokenizing import load_tokenizer
from ponder.serving import create_app
from tests.integrations.transformers.encoders import make_tokenizer
from tests.ponder.checks import refused
from tests.quick_exports import make_exports_quick
from tests.word_tokenizer import VOCABULARY, WORDS, save_tokenizer

LONGEST = 16
NAMES = {0: "no", 1: "perhaps", 2: "yes"}

pytestmark = pytest.mark.usefixtures("quick_captures")


def config(**more: Any) -> BertConfig:
    return BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=16,
        intermediate_size=24,
        num_attention_heads=2,
        num_hidden_layers=4,
        max_position_embeddings=LONGEST,
        **more,
    )


def finetuned(folder: Path) -> Any:
    torch.manual_seed(0)
    plain = BertForSequenceClassification(config(id2label=NAMES, label2id={name: n for n, name in NAMES.items()}))
    with torch.no_grad():
        plain.bert.embeddings.word_embeddings.weight.normal_(std=1.0)
        plain.classifier.weight.mul_(200.0)
    model = FinetunedClassifier(plain)
    with torch.no_grad():
        for head in list(model.heads.heads)[:-1]:
            head.linear.weight.normal_(std=0.3)  # type: ignore[union-attr, operator]
    model.policy = policies.Confidence(0.7)
    model.save_pretrained(folder)
    return model


def from_encoder(folder: Path) -> Any:
    torch.manual_seed(2)
    model = PonderForSequenceClassification.from_encoder(
        BertModel(config(initializer_range=0.4)), "vanilla", num_labels=3, id2label=NAMES
    ).eval()
    with torch.no_grad():
        seen = model.ponder.unroll(torch.randint(5, len(VOCABULARY), (50, 7)))
    model.policy = policies.Confidence(float(seen.outputs[:, 1].softmax(-1).amax(-1).median()))
    model.save_pretrained(folder)
    return model


MAKERS: dict[str, Callable[[Path], Any]] = {"finetuned": finetuned, "from_encoder": from_encoder}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Path]]:
    made = {}
    for name, make in MAKERS.items():
        folder = tmp_path_factory.mktemp(name)
        made[name] = make(folder), folder
        save_tokenizer(folder)
    return made


def sentences(count: int) -> list[str]:
    draw = random.Random(1)
    return [" ".join(draw.choices(WORDS, k=draw.randint(2, 9))) for _ in range(count)]


def ask(folder: Path, body: dict[str, Any], **options: Any) -> httpx.Response:
    """One request to a service that is opened for it."""

    async def asked() -> httpx.Response:
        app = create_app(open_folder(folder, **options))
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://service", timeout=None) as client,
        ):
            return await client.post("/predict", json=body)

    return asyncio.run(asked())


@pytest.mark.parametrize("batching", ["stream", "window"])
@pytest.mark.parametrize("name", list(MAKERS))
def test_answers_are_those_of_predict(name: str, batching: str, folders: dict[str, tuple[Any, Path]]) -> None:
    model, folder = folders[name]
    texts = [*sentences(20), "w1 " * 40, ""]
    told = ask(folder, {"texts": texts}, batching=batching).json()["answers"]
    rows = load_tokenizer(str(folder))(texts, truncation=True, max_length=LONGEST)
    found = model.predict([{key: rows[key][n] for key in ("input_ids", "attention_mask")} for n in range(len(texts))])
    assert [answer["exit_step"] for answer in told] == found.exit_step.tolist()
    assert len(set(found.exit_step.tolist())) > 1
    assert [answer["label"] for answer in told] == [NAMES[place] for place in found.outputs.argmax(-1).tolist()]
    shares = found.outputs.softmax(-1)
    for answer, share in zip(told, shares, strict=True):
        assert list(answer["scores"].values()) == pytest.approx(share.tolist(), abs=1e-5)
    assert [answer["truncated"] for answer in told] == [False] * 20 + [True, False]


def test_pairs_and_mixed_requests(folders: dict[str, tuple[Any, Path]]) -> None:
    model, folder = folders["finetuned"]
    told = ask(folder, {"texts": [["w1 w2", "w3"], ["w4", "w5 w6 w7"]]}).json()["answers"]
    rows = load_tokenizer(str(folder))(["w1 w2", "w4"], ["w3", "w5 w6 w7"])
    found = model.predict([{key: rows[key][n] for key in rows} for n in range(2)])
    assert [answer["label"] for answer in told] == [NAMES[place] for place in found.outputs.argmax(-1).tolist()]
    mixed = ask(folder, {"texts": ["w1", ["w2", "w3"]]})
    assert mixed.status_code == 422
    assert "expected single texts, or pairs; got both" in mixed.json()["detail"]


@pytest.mark.parametrize(
    ("columns", "fits", "other", "told"),
    [
        (
            ["one", "two"],
            ["w1", "w2"],
            "w1",
            "expected pairs, to which the exits were fitted (one, two); got single texts",
        ),
        (["text"], "w1", ["w1", "w2"], "expected single texts, to which the exits were fitted (text); got pairs"),
    ],
)
def test_a_promise_about_pairs_serves_pairs_alone(
    columns: list[str], fits: Any, other: Any, told: str, folders: dict[str, tuple[Any, Path]], tmp_path: Path
) -> None:
    folder = shutil.copytree(folders["finetuned"][1], tmp_path / "made")
    (folder / "exits-report.json").write_text(json.dumps({"columns": columns}))
    assert ask(folder, {"texts": [fits]}).status_code == 200
    refused = ask(folder, {"texts": [other]})
    assert refused.status_code == 422
    assert told in refused.json()["detail"]


@pytest.mark.slow
def test_an_export_answers_as_the_model_does(folders: dict[str, tuple[Any, Path]], tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="exports need the extra onnx")
    pytest.importorskip("onnxscript", reason="exports need the extra onnx")
    make_exports_quick()
    model, folder = folders["from_encoder"]
    ponder.export.onnx(model, tmp_path / "export", tokenizer=folder, max_length=LONGEST)
    texts = [*sentences(20), "w1 " * 40]
    one, other = (ask(place, {"texts": texts}).json()["answers"] for place in (folder, tmp_path / "export"))
    assert [a["exit_step"] for a in one] == [a["exit_step"] for a in other]
    assert [a["truncated"] for a in one] == [a["truncated"] for a in other]
    assert [a["label"] for a in one] == [a["label"] for a in other]
    asked = {"texts": texts, "threshold": 0.9, "max_steps": 3}
    one, other = (ask(place, asked).json()["answers"] for place in (folder, tmp_path / "export"))
    assert [a["exit_step"] for a in one] == [a["exit_step"] for a in other]
    refused = ask(tmp_path / "export", {"text": "w1", "threshold": 2})
    assert refused.status_code == 422
    (tmp_path / "export" / "export-report.json").write_text(json.dumps({"columns": ["one", "two"]}))
    assert "got single texts" in ask(tmp_path / "export", {"text": "w1"}).json()["detail"]
    assert ask(tmp_path / "export", {"texts": [["w1", "w2"]]}).status_code == 200


def test_the_tokenizer_of_a_folder_goes_into_its_export(folders: dict[str, tuple[Any, Path]]) -> None:
    # Trap: it was looked for where the encoder came from, of which a model that was saved knows nothing.
    folder = folders["from_encoder"][1]
    model = PonderForSequenceClassification.from_pretrained(folder)
    assert model.export_source().tokenizer == folder / "tokenizer.json"


@pytest.mark.parametrize("texts", [[""], ["a", "  "], [("", "")]])
def test_a_text_without_a_token_is_refused(texts: list[Any], folders: dict[str, tuple[Any, Path]]) -> None:
    # Trap: without special tokens nothing is left of it, and the model failed on the request.
    made = served(folders["from_encoder"][0].ponder, NAMES, make_tokenizer(), LONGEST)
    with refused("texts", "an empty one"):
        made.tokenize(texts)


def test_folders_that_cannot_be_served(folders: dict[str, tuple[Any, Path]], tmp_path: Path) -> None:
    empty, plain, tokens, bare = (tmp_path / name for name in ("empty", "plain", "tokens", "bare"))
    empty.mkdir()
    BertForSequenceClassification(config()).save_pretrained(plain)
    PonderForTokenClassification.from_encoder(BertModel(config()), "vanilla").save_pretrained(tokens)
    folders["finetuned"][0].save_pretrained(bare)
    for folder in (empty, plain, tokens):
        with pytest.raises(CheckpointError, match="got none of them"):
            open_folder(folder)
    with pytest.raises(CheckpointError, match="expected the tokenizer's files"):
        open_folder(bare)
    with pytest.raises(CheckpointError, match="a folder that can be read"):
        open_folder(tmp_path / "not there")
    (bare / "exits.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError):
        open_folder(bare)
    (empty / "export.json").write_text("{}")
    with pytest.raises(CheckpointError):
        open_folder(empty)
    (empty / "exits.json").write_text("{}")
    with pytest.raises(ArgumentError, match="folder: expected the folder of one model"):
        open_folder(empty)


def test_an_answer_at_each_token_is_refused_before_a_request_comes(
    folders: dict[str, tuple[Any, Path]], tmp_path: Path
) -> None:
    FinetunedClassifier.from_finetuned(BertForTokenClassification(config()).eval()).save_pretrained(tmp_path)
    load_tokenizer(str(folders["finetuned"][1])).save_pretrained(tmp_path)
    with pytest.raises(ArgumentError, match="one answer a text"):
        open_folder(tmp_path)
    (tmp_path / "in.txt").write_text("w1\n")
    with pytest.raises(CheckpointError, match="a classifier of texts"):
        predict.run(tmp_path, tmp_path / "in.txt", tmp_path.parent / "out.csv", (), as_json=False)


def test_names_of_classes_may_come_from_json_and_a_stale_promise_is_not_served() -> None:
    """The traps: texts are sorted as texts, 10 before 2; and weights that changed since kept their certificate."""
    model = ponder.PonderWrapper(torch.nn.Linear(8, 8), 2, head=torch.nn.Linear(8, 12), task="classification").eval()
    named = {str(place): f"L{place}" for place in range(12)}
    assert served(model, named, None, 8).labels == tuple(named.values())
    rows = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    model.policy = certified = ponder.control_risk(model.record(rows), policies.Confidence, level=0.5).policy
    assert served(model, named, None, 8).policy == certified
    with torch.no_grad():
        model.head.weight.add_(0.5)
    with pytest.warns(UserWarning, match="changed after its policy was certified"):
        assert served(model, named, None, 8).policy == certified.policy


@pytest.mark.parametrize("batching", ["stream", "window"])
def test_a_model_in_training_mode_is_not_served(batching: Any, folders: dict[str, tuple[Any, Path]]) -> None:
    """Trap: in windows it was, with dropout."""
    model, folder = folders["from_encoder"]
    model.ponder.train()
    try:
        with refused("model", "training mode"):
            served(model.ponder, NAMES, load_tokenizer(str(folder)), 32, batching)
    finally:
        model.ponder.eval()
