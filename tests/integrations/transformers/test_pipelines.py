"""Transformers' own pipelines, and data sets through a model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

import ponder
from ponder.errors import ArgumentError, ArgumentTypeError
from ponder.policies import FixedStep, LastStep
from tests.compare import assert_same_rows, clear_rows
from tests.integrations.encoders import make_batch, make_model, make_tokenizer, some_texts

TEXTS = some_texts(12)


@pytest.mark.parametrize("family", ["albert", "bert", "mpnet", "distilbert"])
def test_texts_are_classified_as_by_the_model(family: str) -> None:
    model = make_model("sequence", family)
    model.tokenizer = make_tokenizer()
    classify = transformers.pipeline("text-classification", model=model, tokenizer=make_tokenizer())
    for policy in (FixedStep(2), LastStep()):
        model.policy = policy
        assert [one["label"] for one in classify(TEXTS, batch_size=5)] == model.predict(
            TEXTS
        ).labels


def test_tokens_features_images_and_sound() -> None:
    from PIL import Image
    from transformers import ASTFeatureExtractor, ViTImageProcessor

    tokens: Any = transformers.pipeline(
        "token-classification", model=make_model("token"), tokenizer=make_tokenizer()
    )
    assert len(tokens("a b c")) == 3
    features = make_model("features", recipe="vanilla", readout="tokens")
    extract = transformers.pipeline(
        "feature-extraction", model=features, tokenizer=make_tokenizer()
    )
    assert torch.tensor(extract("a b c")).shape == (1, 3, 16)
    processor = ViTImageProcessor(size={"height": 16, "width": 16})
    look = transformers.pipeline(
        "image-classification", model=make_model("image", "vit"), image_processor=processor
    )
    assert len(look(Image.new("RGB", (20, 20)))) == 3
    extractor = ASTFeatureExtractor(num_mel_bins=16, max_length=24)
    listen = transformers.pipeline(
        "audio-classification", model=make_model("audio", "ast"), feature_extractor=extractor
    )
    assert len(listen(torch.randn(16000).numpy())) == 3


@pytest.mark.parametrize("head", ["sequence", "token", "span", "image", "audio", "features"])
def test_a_data_set_through_a_model(head: str) -> None:
    family = {"image": "vit", "audio": "ast"}.get(head, "bert")
    model = make_model(head, family)
    batch = make_batch(head, labels=True)
    real = batch["attention_mask"].sum(1).tolist() if "attention_mask" in batch else [None] * 6
    sequences = {"input_ids", "attention_mask"} | ({"labels"} if head == "token" else set())
    rows = [
        {
            name: value[row][: real[row]] if name in sequences else value[row]
            for name, value in batch.items()
        }
        for row in range(6)
    ]
    found = model.predict(rows, policy=FixedStep(2), batch_size=2)
    assert found.exit_step.tolist() == [2] * 6
    trajectory = model.record(rows, batch_size=4)
    assert len(trajectory) == 6
    assert trajectory.labels is not None
    replayed = trajectory.replay(FixedStep(2)).outputs
    if head in ("token", "span"):
        for row, length in enumerate(real):
            torch.testing.assert_close(
                found.outputs[row, :length], replayed[row, :length], atol=1e-5, rtol=1e-4
            )
    else:
        torch.testing.assert_close(found.outputs, replayed, atol=1e-5, rtol=1e-4)


def test_batches_of_a_loader_and_no_rows_at_all() -> None:
    model = make_model()
    batch = make_batch(labels=True)
    rows = [{name: value[row] for name, value in batch.items()} for row in range(6)]
    loader = torch.utils.data.DataLoader(rows, batch_size=4)
    clear = clear_rows(model.record(rows), model.policy)
    assert_same_rows(model.predict(loader).exit_step, model.predict(rows).exit_step, clear)
    assert model.predict([]).labels == []


def test_wrong_rows_are_refused_with_a_remedy() -> None:
    with pytest.raises(ArgumentTypeError, match=r"rows: .* got a str\. Pass \[text\]"):
        make_model().predict("a text")
    with pytest.raises(ArgumentTypeError, match=r"dataset: .* got a str\. Pass \[text\]"):
        ponder.predict(make_model().ponder, "a text")
    with pytest.raises(ArgumentError, match="rows: expected dicts, each with 'input_ids'"):
        make_model().predict([{"input_ids": []}])
