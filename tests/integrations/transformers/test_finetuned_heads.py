"""Fine-tuned heads of every kind: full depth is the plain model's, and files know the kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AlbertConfig,
    AlbertForTokenClassification,
    ASTConfig,
    ASTForAudioClassification,
    BertConfig,
    BertForQuestionAnswering,
    BertForTokenClassification,
    DistilBertConfig,
    DistilBertForQuestionAnswering,
    PreTrainedModel,
    RobertaConfig,
    RobertaForTokenClassification,
    ViTConfig,
    ViTForImageClassification,
    Wav2Vec2Config,
    Wav2Vec2ForSequenceClassification,
)

from ponder.errors import ArgumentError
from ponder.integrations.transformers import (
    FinetunedClassifier,
    PonderForImageClassification,
    PonderForTokenClassification,
    fit_exits,
)
from ponder.policies import Confidence, FixedStep

TEXT: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "num_hidden_layers": 3,
    "max_position_embeddings": 40,
}
SMALL = {**TEXT, "num_labels": 3}
DISTIL: dict[str, Any] = {"vocab_size": 60, "dim": 16, "hidden_dim": 24, "n_heads": 2, "n_layers": 3}
PICTURE: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "num_hidden_layers": 3,
    "num_labels": 3,
}
WAVE: dict[str, Any] = {**PICTURE, "conv_dim": (8, 8), "conv_kernel": (10, 3), "conv_stride": (5, 2), "vocab_size": 12}

MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "bert-tokens": lambda: BertForTokenClassification(BertConfig(**SMALL)),
    "roberta-tokens": lambda: RobertaForTokenClassification(RobertaConfig(**SMALL)),
    "albert-tokens": lambda: AlbertForTokenClassification(AlbertConfig(**SMALL, embedding_size=8)),
    "bert-span": lambda: BertForQuestionAnswering(BertConfig(**TEXT)),
    "distilbert-span": lambda: DistilBertForQuestionAnswering(DistilBertConfig(**DISTIL)),
    "vit": lambda: ViTForImageClassification(ViTConfig(**PICTURE, image_size=16, patch_size=8)),
    "wav2vec2": lambda: Wav2Vec2ForSequenceClassification(
        Wav2Vec2Config(**WAVE, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, classifier_proj_size=8)
    ),
    "ast": lambda: ASTForAudioClassification(
        ASTConfig(**PICTURE, patch_size=4, frequency_stride=4, time_stride=4, max_length=16, num_mel_bins=8)
    ),
}


def make(name: str) -> PreTrainedModel:
    torch.manual_seed(2)
    return MODELS[name]().eval()


def batch(plain: PreTrainedModel, rows: int = 5) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    if plain.main_input_name == "pixel_values":
        return {"pixel_values": torch.randn(rows, 3, 16, 16, generator=generator)}
    if plain.main_input_name == "input_values":
        shape = (16, 8) if isinstance(plain, ASTForAudioClassification) else (400,)
        return {"input_values": torch.randn(rows, *shape, generator=generator)}
    ids = torch.randint(5, 60, (rows, 9), generator=generator)
    mask = (torch.arange(9) < torch.tensor([9, 9, 7, 5, 4, *[9] * (rows - 5)])[:, None]).long()
    return {"input_ids": ids, "attention_mask": mask}


def answer(plain: PreTrainedModel, given: dict[str, torch.Tensor]) -> torch.Tensor:
    out = plain(**given)
    return torch.stack((out.start_logits, out.end_logits), -1) if "start_logits" in out else out.logits


@pytest.mark.parametrize("name", MODELS)
def test_full_depth_is_the_plain_model_bit_for_bit(name: str) -> None:
    plain = make(name)
    given = batch(plain)
    model = FinetunedClassifier.from_finetuned(plain)
    with torch.no_grad():
        out, expected = model(**given), answer(plain, given)
        early = model(**given, policy=FixedStep(1))
    assert torch.equal(out.outputs, expected)
    assert out.exit_step.tolist() == [3] * 5
    assert early.outputs.shape == expected.shape
    assert not torch.equal(early.outputs, expected)


@pytest.mark.parametrize("name", ["bert-tokens", "bert-span", "vit", "wav2vec2", "ast"])
def test_folders_of_every_kind_are_read_saved_and_read_again(name: str, tmp_path: Path) -> None:
    plain = make(name)
    given = batch(plain)
    plain.save_pretrained(tmp_path / "plain")
    model = FinetunedClassifier.from_finetuned(tmp_path / "plain")
    assert type(model.classifier) is type(plain)
    for parameter in model.heads.parameters():
        torch.nn.init.normal_(parameter)
    model.policy = FixedStep(2)
    model.save_pretrained(tmp_path / "exits")
    again = FinetunedClassifier.from_pretrained(tmp_path / "exits")
    with torch.no_grad():
        assert torch.equal(again(**given).outputs, model(**given).outputs)
        kept = type(plain).from_pretrained(tmp_path / "exits").eval()
        assert torch.equal(answer(kept, given), answer(plain, given))


def rows_of(plain: PreTrainedModel, count: int) -> list[dict[str, Any]]:
    """Examples one by one; texts have several lengths."""
    given, generator = batch(plain, count), torch.Generator().manual_seed(4)
    if "input_ids" not in given:
        return [{name: value[row] for name, value in given.items()} for row in range(count)]
    lengths = torch.randint(3, 10, (count,), generator=generator).tolist()
    return [{"input_ids": ids[:length].tolist()} for ids, length in zip(given["input_ids"], lengths, strict=True)]


def test_the_tokens_of_a_text_leave_together_and_what_is_promised_holds_for_all_of_them() -> None:
    plain = make("bert-tokens")
    with torch.no_grad():
        plain.classifier.weight.mul_(40.0)
    model = PonderForTokenClassification.from_finetuned(plain)
    report = fit_exits(model, rows_of(plain, 400), disagreement=0.3, epochs=8, memory=0.0)
    assert report.met
    assert report.mean_exit_step < 3
    fresh = rows_of(plain, 60)
    found, full = model.predict(fresh), model.predict(fresh, policy=FixedStep(3))
    differs = [
        not torch.equal(one[: len(row["input_ids"])].argmax(-1), other[: len(row["input_ids"])].argmax(-1))
        for one, other, row in zip(found.outputs, full.outputs, fresh, strict=True)
    ]
    assert sum(differs) / 60 <= 0.3


def test_images_are_fitted_too() -> None:
    plain = make("vit")
    with torch.no_grad():
        plain.classifier.weight.mul_(40.0)
    model = PonderForImageClassification.from_finetuned(plain)
    report = fit_exits(model, rows_of(plain, 120), disagreement=0.4, epochs=2)
    assert report.certified_on + report.chosen_on + report.fitted == 120
    assert report.num_steps == 3


def test_spans_have_no_classes_to_agree_on() -> None:
    plain = make("bert-span")
    with pytest.raises(ArgumentError, match="whose answers are positions"):
        fit_exits(FinetunedClassifier.from_finetuned(plain), rows_of(plain, 60))
    model = FinetunedClassifier.from_finetuned(plain)
    with pytest.raises(ArgumentError, match="Confidence"):
        model.policy = Confidence(0.5)
