"""Token classifiers and question answering of Transformers as ONNX: the exits and answers of PyTorch, texts too."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch

import ponder
from ponder import policies
from ponder.errors import CheckpointError
from ponder.export import OnnxModel
from ponder.integrations.transformers import FinetunedClassifier, PonderForTokenClassification
from ponder.integrations.transformers.exits import distinct
from ponder.integrations.transformers.families import tiny_encoder
from ponder.integrations.transformers.tokenizing import load_tokenizer, tokenize
from ponder.policies import ExitPolicy
from tests.integrations.transformers.test_encoder_exports import make_tokenizer
from tests.integrations.transformers.test_finetuned_heads import batch, make
from tests.integrations.transformers.test_task_models import BY_NAME
from tests.quick_exports import make_exports_quick
from tests.word_tokenizer import WORDS, save_tokenizer

pytest.importorskip("onnxruntime", reason="exports need the extra onnx")
pytest.importorskip("onnxscript", reason="exports need the extra onnx")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_captures")]  # exporting takes seconds

TOKENS: list[ExitPolicy] = [
    policies.Confidence(0.5),
    policies.Confidence(0.8),
    policies.Patience(1),
    policies.Voting(2),
    policies.FixedStep(2),
]
SPANS: list[ExitPolicy] = [policies.Patience(1), policies.Converged(0.5), policies.FixedStep(2)]
CASES = {"bert-tokens": TOKENS, "roberta-tokens": TOKENS, "bert-span": SPANS, "distilbert-span": SPANS}


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @cache
    def made(name: str) -> tuple[FinetunedClassifier, Path]:
        make_exports_quick()
        plain = make(name)
        with torch.no_grad():
            for weights in plain.parameters():  # that steps differ
                weights.normal_(std=0.4)
        model = FinetunedClassifier.from_finetuned(plain).eval()
        return model, ponder.export.onnx(model, tmp_path_factory.mktemp(name), tokenizer=make_tokenizer())

    return made


def rows_of(model: FinetunedClassifier) -> list[dict[str, Any]]:
    given = batch(model.classifier, rows=11)
    lengths = given["attention_mask"].sum(1).tolist()
    return [{"input_ids": ids[:length].tolist()} for ids, length in zip(given["input_ids"], lengths, strict=True)]


@pytest.mark.parametrize("name", CASES)
def test_exits_and_outputs_are_those_of_pytorch(name: str, exports: Any) -> None:
    model, folder = exports(name)
    exported, rows, steps = OnnxModel(folder, threads=1), rows_of(model), set()
    for policy in CASES[name]:
        expected = model.predict(rows, policy=policy)
        for batch_size in (3, 11):
            found = exported.predict(rows, policy=policy, batch_size=batch_size)
            assert found.exit_step.tolist() == expected.exit_step.tolist()
            np.testing.assert_allclose(found.outputs, expected.outputs.detach().numpy(), rtol=0, atol=1e-4)
        steps |= set(expected.exit_step.tolist())
    assert len(steps) > 1


def test_a_text_has_an_answer_for_each_of_its_tokens(exports: Any) -> None:
    model, folder = exports("bert-tokens")
    exported = OnnxModel(folder, threads=1)
    texts = ["w5 w9 w30", "w7", "w8 w8 w8 w21 w4"]
    found = exported.predict(texts)
    expected = model.predict([{"input_ids": [int(word[1:]) for word in text.split()]} for text in texts])
    assert found.outputs.shape == (3, 5, 3)
    assert found.exit_step.tolist() == expected.exit_step.tolist()
    np.testing.assert_allclose(found.outputs, expected.outputs.detach().numpy(), rtol=0, atol=1e-4)
    assert exported.manifest.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    tokens = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).encode(texts[0])
    assert [texts[0][start:end] for start, end in tokens.offsets] == ["w5", "w9", "w30"]


def test_the_models_of_this_library_are_exported_too(tmp_path: Path) -> None:
    encoder = tiny_encoder(BY_NAME["albert"])
    torch.manual_seed(0)
    model = PonderForTokenClassification.from_encoder(encoder, "palbert", num_labels=3).eval()
    exported = OnnxModel(ponder.export.onnx(model, tmp_path), threads=1)
    rows = [{"input_ids": torch.randint(4, 30, (length,))} for length in (3, 9, 5, 7)]
    for policy in (policies.Quantile(0.2), policies.Patience(1), policies.Bernoulli(1)):
        found, expected = exported.predict(rows, policy=policy, batch_size=2), model.predict(rows, policy=policy)
        assert found.exit_step.tolist() == expected.exit_step.tolist()
        np.testing.assert_allclose(found.outputs, expected.outputs.detach().numpy(), rtol=0, atol=1e-4)


def test_what_answers_a_text_with_one_class_does_not_take_it(exports: Any, tmp_path: Path) -> None:
    from ponder.cli import predict
    from ponder.serving.exported import open_export

    _, folder = exports("bert-tokens")
    texts = tmp_path / "texts.csv"
    texts.write_text("text\nw5 w9\nw7\n")
    with pytest.raises(CheckpointError, match="expected an export of a classifier of texts"):
        predict.run(folder, texts, tmp_path / "out.csv", [], as_json=False)
    with pytest.raises(CheckpointError, match="expected one answer a text; its task 'token_classification'"):
        open_export(folder, {})


@pytest.mark.parametrize("name", ["bert-tokens", "bert-span"])
def test_the_commands_take_it(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from ponder.cli import doctor, export

    model = FinetunedClassifier.from_finetuned(make(name)).eval()
    model.save_pretrained(tmp_path / "saved")
    save_tokenizer(tmp_path / "saved")
    texts = tmp_path / "texts.csv"
    draws = np.random.default_rng(0)
    words = [" ".join(draws.choice(WORDS, size)) for size in draws.integers(2, 9, 300)]
    texts.write_text("\n".join(["text", *words]))
    options: dict[str, Any] = {"int8": False, "confidence": 0.9, "as_json": True}
    export.run(tmp_path / "saved", tmp_path / "plain", None, [], **{**options, "confidence": None}, disagreement=None)
    rows = rows_of(model)
    found, expected = OnnxModel(tmp_path / "plain", threads=1).predict(rows), model.predict(rows)
    assert found.exit_step.tolist() == expected.exit_step.tolist()
    capsys.readouterr()
    export.run(tmp_path / "saved", tmp_path / "small", texts, [], **options, disagreement=0.3)
    card = json.loads(capsys.readouterr().out)
    assert card["met"]
    assert card["moved"] == 0.0  # full depth is that of PyTorch
    doctor.run(tmp_path / "saved", texts, [], None, as_json=True)
    card = json.loads(capsys.readouterr().out)
    encoded = tokenize(load_tokenizer(str(tmp_path / "saved")), [(text,) for text in words], 32)
    agreement = model.record(distinct(encoded.rows)).agreement().double().mean(0)
    assert card["scores"] == pytest.approx(agreement.tolist())
    assert 0 < card["scores"][0] < card["scores"][-1] == 1.0
