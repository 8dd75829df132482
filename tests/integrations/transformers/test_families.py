"""Families of encoders: built from a configuration, exiting, saved and read again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForImageClassification,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
)

from ponder.errors import ArgumentError, CheckpointError
from ponder.integrations.transformers import (
    PonderForAudioClassification,
    PonderForImageClassification,
    PonderForSequenceClassification,
    PonderModel,
)
from ponder.integrations.transformers.reading import read_stage
from ponder.policies import FixedStep, LastStep
from tests.compare import assert_same_answers, assert_same_weights
from tests.families import FAMILIES, example_of
from tests.integrations.encoders import HEADS as FINETUNED
from tests.integrations.encoders import answer, make_plain
from tests.model.test_capture_families import REFUSED

HEADS: dict[str, Any] = {
    "input_ids": PonderForSequenceClassification,
    "pixel_values": PonderForImageClassification,
    "input_values": PonderForAudioClassification,
    "input_features": PonderForAudioClassification,
}
EVERY_DAY = (
    "roberta",
    "modernbert",
    "electra",
    "deit",
    "wav2vec2",
    "whisper",
    "t5",
    "qwen3",
    "layoutlm",
)
"""Families that are built at every run of the tests; the others are slow together."""
DEEP = {"canine", "gpt_neo"}
"""Families that have no two layers alone; of the others these are enough, and build sooner."""


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(each, marks=() if each.name in EVERY_DAY else pytest.mark.slow, id=each.name)
        for each in FAMILIES
        if each.name not in REFUSED
    ],
)
@pytest.mark.filterwarnings("default")
def test_a_family_exits_and_comes_back(family: Any, tmp_path: Path) -> None:
    encoder = family.encoder(layers=4 if family.name in DEEP else 2)
    example = example_of(encoder)
    inputs = {name: value for name, value in example.items() if isinstance(value, Tensor)}
    head = HEADS[encoder.main_input_name]
    model = head.from_encoder(encoder, "pabee", num_labels=3).eval()
    with torch.no_grad():
        if model.config.readout == "pooler":
            features = PonderModel.from_encoder(encoder, "vanilla").eval()
            assert torch.equal(features(**inputs).pooler_output, encoder(**example).pooler_output)
        model.save_pretrained(tmp_path)
        again = type(model).from_pretrained(tmp_path)
        assert_same_weights(again, model)
        for policy in (FixedStep(1), LastStep()):
            found, expected = (each(**inputs, policy=policy) for each in (again, model))
            assert_same_answers(found.logits, expected.logits)


_TIED = ("bart", "mbart", "plbart", "mvp", "t5", "mt5", "umt5", "bigbird_pegasus")
_ENDS = {"sequence": AutoModelForSequenceClassification, "span": AutoModelForQuestionAnswering}


@pytest.mark.parametrize("head", _ENDS)
@pytest.mark.parametrize(
    "name",
    [pytest.param(each, marks=() if each == "bart" else pytest.mark.slow) for each in _TIED],
)
@pytest.mark.filterwarnings("default")
def test_a_fine_tuned_model_with_tied_words_comes_back_and_reads_rows_of_several_lengths(
    name: str, head: str, tmp_path: Path
) -> None:
    (family,) = [each for each in FAMILIES if each.name == name]
    if name == "plbart" and head == "span":
        pytest.skip("Transformers has no such model")
    plain = family.finetuned(_ENDS[head])
    model = FINETUNED[head].from_finetuned(plain)
    end = plain.config.eos_token_id  # which the heads of these families look for
    rows = [{"input_ids": [*range(5, 5 + length), end]} for length in (3, 7, 2, 5, 7, 1)]
    answers = model.predict(rows, policy=FixedStep(1), batch_size=2)
    alone = [model(input_ids=torch.tensor([row["input_ids"]]), policy=FixedStep(1)) for row in rows]
    for row, one in zip(answers.outputs, alone, strict=True):
        expected = answer(one)[0]
        torch.testing.assert_close(row[: len(expected)], expected, rtol=1e-3, atol=1e-4)
    model.save_pretrained(tmp_path)
    again, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    found = again.predict(rows, policy=FixedStep(1), batch_size=2)
    torch.testing.assert_close(found.outputs, answers.outputs)


@pytest.mark.parametrize(
    ("name", "auto", "reason"),
    [
        ("squeezebert", AutoModelForSequenceClassification, r"shape \(3, 16, 9\)"),
        ("hiera", AutoModelForImageClassification, "layers inside of stages"),
        ("big_bird", AutoModelForSequenceClassification, "block-sparse attention"),
    ],
)
def test_fine_tuned_models_whose_layers_exits_cannot_read_are_refused(
    name: str, auto: Any, reason: str
) -> None:
    (family,) = [each for each in FAMILIES if each.name == name]
    if name == "big_bird":
        family = replace(family, config={"attention_type": "block_sparse"})
    head = FINETUNED["image" if name == "hiera" else "sequence"]
    with pytest.raises(ArgumentError, match=reason):
        head.from_finetuned(family.finetuned(auto))


def test_boxes_are_as_long_as_their_rows() -> None:
    (family,) = [each for each in FAMILIES if each.name == "layoutlm"]
    model = FINETUNED["sequence"].from_finetuned(
        family.finetuned(AutoModelForSequenceClassification)
    )
    rows = [
        {"input_ids": [*range(5, 5 + size)], "bbox": [[1, 2, 3, 4]] * size} for size in (3, 7, 2)
    ]
    answers = model.predict(rows, policy=FixedStep(1))
    for row, found in zip(rows, answers.outputs, strict=True):
        one = model(
            **{name: torch.tensor([value]) for name, value in row.items()}, policy=FixedStep(1)
        )
        torch.testing.assert_close(found, one.logits[0], rtol=1e-3, atol=1e-4)


def test_a_folder_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    model = FINETUNED["sequence"].from_finetuned(make_plain())
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["ponder.stem.encoder.classifier.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks ponder\.stem\.encoder\.classifier\.weight"):
        type(model).from_pretrained(tmp_path)
    model.encoder.base_model.save_pretrained(tmp_path / "bare")
    with pytest.raises(CheckpointError, match=r"lacks classifier\.bias"):
        read_stage(tmp_path / "bare")


def test_a_family_that_no_step_can_stand_for_is_refused() -> None:
    (family,) = [each for each in FAMILIES if each.name == "resnet"]
    with pytest.raises(ArgumentError, match="expected a list of layers"):
        PonderForImageClassification.from_encoder(family.encoder(), "pabee", num_labels=3)
