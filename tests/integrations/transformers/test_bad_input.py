"""What is not what it should be: an error that names it, what was expected and what to do, before anything is computed.

Damaged and foreign files are in `test_encoder_checkpoints.py`, labels of another length in `test_task_models.py`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ponder.errors import ArgumentError, ArgumentTypeError, CheckpointError
from ponder.integrations.transformers import (
    PonderForImageClassification,
    PonderForSequenceClassification,
    PonderForTokenClassification,
)
from ponder.integrations.transformers.families import FAMILIES, Family, tiny_encoder
from ponder.policies import LastStep
from tests.integrations.transformers.encoders import make_batch, make_encoder, make_model

BY_NAME = {family.name: family for family in FAMILIES}
load = PonderForSequenceClassification.from_pretrained


def test_an_image_processors_tensors_to_a_model_of_texts() -> None:
    model, images = make_model("bert"), torch.randn(2, 3, 8, 8)
    with pytest.raises(ArgumentError, match="pixel_values: expected input_ids, which BertModel reads"):
        model(pixel_values=images)
    for call in (model, model.unroll, lambda given: model(input_ids=given)):
        with pytest.raises(ArgumentError, match=r"input_ids: expected token ids, .* got torch.float32 of shape"):
            call(images)
    with pytest.raises(ArgumentError, match="input_ids: expected input_ids, which BertModel reads; got nothing"):
        model()
    with pytest.raises(ArgumentTypeError, match="input_ids: expected a tensor; got list"):
        model.unroll([[5, 6, 7]])
    assert model(**make_batch(model.encoder)).logits.shape == (6, 2), "the next call works"


def test_a_tokenizers_tensors_to_a_model_of_images() -> None:
    model = PonderForImageClassification.from_encoder(tiny_encoder(BY_NAME["vit"]), "vanilla", num_labels=3).eval()
    with pytest.raises(ArgumentError, match="input_ids: expected pixel_values, which ViTModel reads; got input_ids"):
        model(input_ids=torch.tensor([[5, 6]]))


@pytest.mark.parametrize("model", [PonderForSequenceClassification, PonderForTokenClassification])
def test_a_checkpoint_of_another_family(model: Any, tmp_path: Path) -> None:
    """The configuration says ALBERT, the weights are BERT's."""
    kind = {"num_labels": 3} if model is PonderForTokenClassification else {}
    for name in ("albert", "bert"):
        model.from_encoder(make_encoder(name), "vanilla", **kind).save_pretrained(tmp_path / name)
    config = json.loads((tmp_path / "albert" / "config.json").read_text())
    del config["weights_digest"]
    (tmp_path / "bert" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"it has no place for|it lacks|of another shape"):
        model.from_pretrained(tmp_path / "bert")


def test_a_head_of_the_wrong_width(tmp_path: Path) -> None:
    model = make_model("bert", num_labels=3)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["weights_digest"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = load_file(tmp_path / "model.safetensors")
    name = next(name for name in weights if name.startswith("ponder.head.") and weights[name].dim() == 2)
    save_file({**weights, name: torch.zeros(3, 20)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"of another shape are ponder\.head\.1\.weight, which has \(3, 20\) for"):
        load(tmp_path)
    with pytest.raises(CheckpointError, match="of another shape"):
        load(tmp_path, num_labels=3)


def test_an_encoder_that_cannot_be_captured_says_why_and_what_to_write() -> None:
    for name, why in (("swin", "keep the shape of the hidden state"), ("vit_mae", "draws random numbers")):
        with pytest.raises(ArgumentError, match=why) as caught:
            PonderForImageClassification.from_encoder(tiny_encoder(BY_NAME[name]))
        assert "give PonderWrapper" in caught.value.remedy


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_flex_attention_is_refused(name: str, tmp_path: Path) -> None:
    """Trap: its kernel takes the mask of a batch for that of the rows that stay, and reads memory that is not there."""
    encoder = tiny_encoder(BY_NAME[name], "flex_attention")
    with pytest.raises(
        ArgumentError, match=r"encoder: expected attention whose mask is a tensor, .* got flex attention"
    ):
        PonderForSequenceClassification.from_encoder(encoder)
    encoder.set_attn_implementation("sdpa")
    PonderForSequenceClassification.from_encoder(encoder, "vanilla").save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="does not support an attention implementation"):
        load(tmp_path, attn_implementation="flex_attention")


def test_an_encoder_without_a_token_for_padding(tmp_path: Path) -> None:
    """Trap: adapters that need a pad_token_id; padding is hidden, so that any id may stand there."""
    for name in ("bert", "albert", "distilbert", "gpt2"):
        encoder = make_encoder(name) if name in ("bert", "albert") else tiny_encoder(Family(name))
        encoder.config.pad_token_id = None
        model = PonderForSequenceClassification.from_encoder(encoder, "vanilla").eval()
        assert model.ponder.padding is not None
        ids, mask = torch.tensor([[5, 6, 7, 8], [5, 6, 0, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
        with torch.no_grad():
            together = model(ids, attention_mask=mask, policy=LastStep()).logits
            found = model.predict([{"input_ids": [5, 6, 7, 8]}, {"input_ids": [5, 6]}])
            torch.testing.assert_close(found.outputs, together, atol=1e-5, rtol=1e-4)
        model.save_pretrained(tmp_path / name)
        assert load(tmp_path / name).encoder.config.pad_token_id is None


@pytest.mark.parametrize("name", ["bert", "distilbert"])
def test_names_that_the_encoder_does_not_read_are_refused_by_the_wrapper_too(name: str) -> None:
    """`distilbert` is captured, whose stem takes any name; `bert` has an adapter."""
    model = PonderForSequenceClassification.from_encoder(tiny_encoder(BY_NAME[name]), "pabee", num_labels=2).eval()
    ids, mask = torch.tensor([[5, 6, 7], [8, 9, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]])
    with pytest.raises(ArgumentError, match="Did you mean 'attention_mask'"):
        model.ponder(ids, atention_mask=mask)
    assert len(model.ponder(ids, attention_mask=mask, token_type_ids=torch.zeros_like(ids)).outputs) == 2
