"""Families of encoders: built from a configuration, exiting, saved and read again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ponder.errors import ArgumentError
from ponder.integrations.transformers import (
    PonderForAudioClassification,
    PonderForImageClassification,
    PonderForSequenceClassification,
    PonderModel,
)
from ponder.policies import FixedStep, LastStep
from tests.compare import assert_same_answers, assert_same_weights
from tests.families import FAMILIES, example_of
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


def test_a_family_that_no_step_can_stand_for_is_refused() -> None:
    (family,) = [each for each in FAMILIES if each.name == "resnet"]
    with pytest.raises(ArgumentError, match="expected a list of layers"):
        PonderForImageClassification.from_encoder(family.encoder(), "pabee", num_labels=3)
