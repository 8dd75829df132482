"""Pipelines of Transformers on models of this package: answers, policies and exits, with a tokenizer made here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import PreTrainedTokenizerFast

from ponder.errors import ArgumentError, ArgumentTypeError
from ponder.integrations.transformers import (
    FinetunedClassifier,
    PonderForAudioClassification,
    PonderForImageClassification,
    PonderForSequenceClassification,
    PonderForTokenClassification,
    PonderModel,
    pipeline,
)
from ponder.integrations.transformers.row_ids import ids_by_content
from ponder.policies import Bernoulli, FixedStep
from tests.integrations.transformers.encoders import make_tokenizer
from tests.integrations.transformers.test_task_models import make

TEXTS = ["a b c", "d e f g h i", "b"]
make_pipeline = pytest.mark.parametrize("build", [pipeline, transformers.pipeline], ids=["ponder", "transformers"])


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


def by_hand(model: Any, tokenizer: Any, text: str, **options: Any) -> Any:
    given = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        return model(**given, **options)


@make_pipeline
def test_texts_are_classified_from_a_folder(build: Any, tokenizer: Any, tmp_path: Path) -> None:
    model = make(PonderForSequenceClassification, "bert")
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    classify = build("text-classification", str(tmp_path), device="cpu")
    for text, found in zip(TEXTS, classify(TEXTS), strict=True):
        scores = by_hand(model, tokenizer, text).logits.softmax(-1)[0]
        assert found["label"] == model.config.id2label[int(scores.argmax())]
        assert found["score"] == pytest.approx(float(scores.max()), rel=1e-4)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_policy_is_honoured_and_the_exit_told(tokenizer: Any, batch_size: int) -> None:
    model = make(PonderForSequenceClassification, "bert")
    classify = pipeline("sentiment-analysis", model, tokenizer=tokenizer, device="cpu", batch_size=batch_size)
    for text, found in zip(TEXTS, classify(TEXTS, policy=FixedStep(2), exit_step=True), strict=True):
        scores = by_hand(model, tokenizer, text, policy=FixedStep(2)).logits.softmax(-1)[0]
        assert found["exit_step"] == 2
        assert found["score"] == pytest.approx(float(scores.max()), rel=1e-4)
    every = classify("a b c", policy=FixedStep(1), exit_step=True, top_k=None)
    assert [result["exit_step"] for result in every] == [1, 1, 1]
    assert "exit_step" not in classify("a b c")[0]
    fixed = pipeline(
        "text-classification", model, tokenizer=tokenizer, device="cpu", policy=FixedStep(3), exit_step=True
    )
    assert fixed("a b c")[0]["exit_step"] == 3
    assert fixed("a b c", policy=FixedStep(1))[0]["exit_step"] == 1


@pytest.mark.parametrize("batch_size", [1, 3])
def test_tokens_are_classified(tokenizer: Any, batch_size: int) -> None:
    model = make(PonderForTokenClassification, "bert")
    tag = pipeline("ner", model, tokenizer=tokenizer, device="cpu", batch_size=batch_size, ignore_labels=[])
    for text, found in zip(TEXTS, tag(TEXTS, policy=FixedStep(2)), strict=True):
        scores = by_hand(model, tokenizer, text, policy=FixedStep(2)).logits.softmax(-1)[0]
        assert [token["word"] for token in found] == text.split()
        assert [token["score"] for token in found] == pytest.approx(scores.amax(-1).tolist(), rel=1e-4)
        assert "exit_step" not in found[0]
    for text, found in zip(TEXTS, tag(TEXTS, exit_step=True), strict=True):
        out = by_hand(model, tokenizer, text)
        assert [token["exit_step"] for token in found] == [int(out.exit_step)] * len(text.split())


def test_words_are_grouped_with_their_exit(tokenizer: Any) -> None:
    model = make(PonderForTokenClassification, "bert")
    tag, plain = (
        build("ner", model, tokenizer=tokenizer, device="cpu", aggregation_strategy="simple", ignore_labels=[])
        for build in (pipeline, transformers.pipeline)
    )
    found = tag("a b c", exit_step=True)
    assert found
    assert [{name: group[name] for name in group if name != "exit_step"} for group in found] == plain("a b c")
    assert {group["exit_step"] for group in found} == {int(by_hand(model, tokenizer, "a b c").exit_step)}


def test_texts_are_embedded(tokenizer: Any) -> None:
    model = make(PonderModel, "bert", readout="mean")
    embed = pipeline("feature-extraction", model, tokenizer=tokenizer, device="cpu")
    found = embed("a b c", policy=FixedStep(2), return_tensors=True)
    torch.testing.assert_close(found, by_hand(model, tokenizer, "a b c", policy=FixedStep(2)).pooler_output)
    with pytest.raises(ArgumentError, match="exit_step: expected None for a feature-extraction"):
        embed("a b", exit_step=True)


def test_images_are_classified() -> None:
    image = pytest.importorskip("PIL.Image")
    model = make(PonderForImageClassification, "vit")
    processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
    classify = pipeline("image-classification", model, image_processor=processor, device="cpu")
    picture = image.new("RGB", (40, 30), (200, 20, 90))
    found = classify(picture, policy=FixedStep(2), exit_step=True)
    with torch.no_grad():
        out = model(processor(picture, return_tensors="pt")["pixel_values"], policy=FixedStep(2))
    assert {result["exit_step"] for result in found} == {2}
    expected = out.logits.softmax(-1)[0].sort(descending=True).values
    assert [result["score"] for result in found] == pytest.approx(expected.tolist(), rel=1e-4)


def test_sound_is_classified() -> None:
    model = make(PonderForAudioClassification, "wav2vec2")
    extractor = transformers.Wav2Vec2FeatureExtractor(sampling_rate=16000)
    classify = pipeline("audio-classification", model, feature_extractor=extractor, device="cpu")
    wave = torch.randn(3000, generator=torch.Generator().manual_seed(0)).numpy()
    found = classify(wave, policy=FixedStep(2), exit_step=True)
    with torch.no_grad():
        given = extractor(wave, sampling_rate=16000, return_tensors="pt")
        out = model(given["input_values"], policy=FixedStep(2))
    assert {result["exit_step"] for result in found} == {2}
    expected = out.logits.softmax(-1)[0].sort(descending=True).values
    assert [result["score"] for result in found] == pytest.approx(expected.tolist(), rel=1e-4)


def test_other_tasks_are_refused(tokenizer: Any) -> None:
    with pytest.raises(ArgumentError, match="task: expected one of text-classification"):
        pipeline("fill-mask", make(PonderModel, "bert"), tokenizer=tokenizer)


def test_models_that_pipelines_would_run_without_exits_are_refused(tokenizer: Any, tmp_path: Path) -> None:
    config = transformers.BertConfig(
        vocab_size=60, hidden_size=16, intermediate_size=24, num_attention_heads=2, num_hidden_layers=3, num_labels=3
    )
    plain = transformers.BertForSequenceClassification(config).eval()
    exits = FinetunedClassifier.from_finetuned(plain)
    exits.save_pretrained(tmp_path)
    for given in (exits, str(tmp_path), tmp_path):
        with pytest.raises(ArgumentTypeError, match="FinetunedClassifier"):
            pipeline("text-classification", given, tokenizer=tokenizer)
    with pytest.raises(ArgumentTypeError, match="which has no exits"):
        pipeline("text-classification", plain, tokenizer=tokenizer, policy=FixedStep(1))


def test_a_seed_draws_the_same_exits_in_every_batch(tokenizer: Any) -> None:
    """The trap: rows were known by their place in the batch, so that texts that came one by one shared a draw."""
    model = make(PonderForSequenceClassification, "bert", recipe="pondernet")
    texts = ["a b c", "d e f g h i", "b", "c d", "e f g", "h", "i a", "a b c"]
    found = []
    for batch_size in (1, 2, 8):
        classify = pipeline("text-classification", model, tokenizer=tokenizer, device="cpu", batch_size=batch_size)
        exits = classify(texts, policy=Bernoulli(seed=0), exit_step=True)
        found.append([each["exit_step"] for each in exits])
    assert found[0] == found[1] == found[2]
    assert found[0][0] == found[0][-1]  # one text
    assert len(set(found[0])) > 1


@pytest.mark.parametrize("name", ["pixel_values", "input_values"])
def test_rows_of_numbers_are_known_by_them(name: str) -> None:
    rows = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    ids = ids_by_content({name: rows})
    assert len(set(ids.tolist())) == 4
    assert ids.min() >= 0
    assert torch.equal(ids_by_content({name: torch.nn.functional.pad(rows, (0, 3))}), ids)
    assert torch.equal(ids_by_content({name: rows[2:]}), ids[2:])
    assert ids_by_content({"labels": rows}) is None


def test_a_model_in_training_mode_answers_in_evaluation_mode(tokenizer: Any) -> None:
    """Trap: `from_encoder` gives a model in training mode; dropout was on, and no row left early."""
    for kind, name in (
        (PonderForSequenceClassification, "text-classification"),
        (PonderForTokenClassification, "token-classification"),
    ):
        model = make(kind, "bert")
        model.policy = FixedStep(2)
        expected = pipeline(name, model, tokenizer=tokenizer, device="cpu")(TEXTS, exit_step=True)
        model.train()
        assert pipeline(name, model, tokenizer=tokenizer, device="cpu")(TEXTS, exit_step=True) == expected
        assert all(module.training for module in model.modules())
