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
    BartConfig,
    BartForSequenceClassification,
    BertConfig,
    BertForQuestionAnswering,
    BertForTokenClassification,
    CLIPConfig,
    CLIPForImageClassification,
    DistilBertConfig,
    DistilBertForQuestionAnswering,
    FNetConfig,
    FNetForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LongformerConfig,
    LongformerForQuestionAnswering,
    PreTrainedModel,
    RobertaConfig,
    RobertaForTokenClassification,
    SEWForSequenceClassification,
    T5Config,
    T5ForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
    Wav2Vec2Config,
    Wav2Vec2ForSequenceClassification,
    XLMConfig,
    XLMForQuestionAnsweringSimple,
    XLNetConfig,
    XLNetForQuestionAnsweringSimple,
)

from ponder.errors import ArgumentError
from ponder.integrations.transformers import (
    FinetunedClassifier,
    PonderForImageClassification,
    PonderForTokenClassification,
    fit_exits,
)
from ponder.integrations.transformers.deep_exits import _loss
from ponder.policies import Confidence, FixedStep
from tests.ponder.checks import refused

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
BART: dict[str, Any] = {
    "d_model": 16,
    **dict.fromkeys(["encoder_layers", "decoder_layers"], 3),
    **dict.fromkeys(["encoder_attention_heads", "decoder_attention_heads"], 2),
    **dict.fromkeys(["encoder_ffn_dim", "decoder_ffn_dim"], 24),
    "vocab_size": 60,
    "max_position_embeddings": 40,
    "init_std": 0.3,
}
T5: dict[str, Any] = {"vocab_size": 60, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 3, "num_heads": 2}
VISION = {**PICTURE, "image_size": 16, "patch_size": 8}

MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "bert-tokens": lambda: BertForTokenClassification(BertConfig(**SMALL)),
    "roberta-tokens": lambda: RobertaForTokenClassification(RobertaConfig(**SMALL)),
    "albert-tokens": lambda: AlbertForTokenClassification(AlbertConfig(**SMALL, embedding_size=8)),
    "bert-span": lambda: BertForQuestionAnswering(BertConfig(**TEXT)),
    "distilbert-span": lambda: DistilBertForQuestionAnswering(DistilBertConfig(**DISTIL)),
    "xlnet-span": lambda: XLNetForQuestionAnsweringSimple(
        XLNetConfig(vocab_size=60, d_model=16, n_layer=3, n_head=2, d_inner=24)
    ),
    "xlm-span": lambda: XLMForQuestionAnsweringSimple(XLMConfig(vocab_size=60, emb_dim=16, n_layers=3, n_heads=2)),
    "bart": lambda: BartForSequenceClassification(BartConfig(**BART, num_labels=3)),
    "t5": lambda: T5ForSequenceClassification(T5Config(**T5, num_labels=3, decoder_start_token_id=0)),
    "clip": lambda: CLIPForImageClassification(CLIPConfig(text_config=TEXT, vision_config=VISION, num_labels=3)),
    "vit": lambda: ViTForImageClassification(ViTConfig(**PICTURE, image_size=16, patch_size=8)),
    "wav2vec2": lambda: Wav2Vec2ForSequenceClassification(
        Wav2Vec2Config(**WAVE, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, classifier_proj_size=8)
    ),
    "ast": lambda: ASTForAudioClassification(
        ASTConfig(**PICTURE, patch_size=4, frequency_stride=4, time_stride=4, max_length=16, num_mel_bins=8)
    ),
}

pytestmark = pytest.mark.usefixtures("quick_captures")


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
    lengths = torch.tensor([9, 9, 7, 5, 4, *[9] * (rows - 5)])
    mask = (torch.arange(9) < lengths[:, None]).long()
    if plain.config.is_encoder_decoder:
        ids[torch.arange(rows), lengths - 1] = plain.config.eos_token_id
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


@pytest.mark.parametrize("name", ["xlnet-span", "xlm-span", "bart", "t5"])
@torch.no_grad()
def test_an_early_answer_is_that_of_a_row_alone_without_its_padding(name: str) -> None:
    plain = make(name)
    given, model = batch(plain), FinetunedClassifier.from_finetuned(plain)
    for parameter in model.heads.parameters():
        torch.nn.init.normal_(parameter)
    together = model(**given, policy=FixedStep(2)).outputs
    for row, length in enumerate(given["attention_mask"].sum(1).tolist()):
        alone = model(**{key: value[row : row + 1, :length] for key, value in given.items()}, policy=FixedStep(2))
        expected = together[row, :length] if name.endswith("span") else together[row]
        torch.testing.assert_close(alone.outputs[0], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", [Wav2Vec2ForSequenceClassification, SEWForSequenceClassification])
@torch.no_grad()
def test_early_heads_leave_out_the_frames_of_padded_samples(kind: type[PreTrainedModel]) -> None:
    torch.manual_seed(2)
    more = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 8}
    plain = kind(kind.config_class(**WAVE, **more, feat_extract_norm="layer")).eval()
    model = FinetunedClassifier.from_finetuned(plain)
    for parameter in model.heads.parameters():
        torch.nn.init.normal_(parameter)
    wave, answers = torch.randn(1, 500, generator=torch.Generator().manual_seed(1)), []
    for width in (540, 700, 1500):  # SEW halves its frames, and reads the last of an odd number only where more follow
        mask = (torch.arange(width) < 500).long()[None]
        padded = torch.nn.functional.pad(wave, (0, width - 500))
        answers.append(model(input_values=padded, attention_mask=mask, policy=FixedStep(2)).outputs)
    torch.testing.assert_close(answers[1:], answers[:1] * 2, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("plain", "reason"),
    [
        (lambda: T5ForSequenceClassification(T5Config(**T5, num_labels=3)), "decoder_start_token_id"),
        (lambda: GPT2ForSequenceClassification(GPT2Config(**TEXT, num_labels=3)), "no padding token"),
        (lambda: LongformerForQuestionAnswering(LongformerConfig(**TEXT, attention_window=4)), "separator tokens"),
    ],
)
def test_a_model_that_does_not_answer_to_what_is_made_up_is_refused_by_its_own_words(plain: Any, reason: str) -> None:
    with refused("model", reason):
        FinetunedClassifier.from_finetuned(plain())


@pytest.mark.parametrize("name", ["bert-tokens", "bert-span", "xlnet-span", "bart", "clip", "vit", "wav2vec2", "ast"])
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


def test_a_recording_keeps_the_places_of_answers() -> None:
    model = FinetunedClassifier.from_finetuned(make("bert-span"))
    rows = [
        {**row, "start_positions": place, "end_positions": place + 1} for place, row in enumerate(rows_of(model, 5))
    ]
    expected = [[place, place + 1] for place in range(5)]
    assert model.record(rows).labels.tolist() == expected
    loader = torch.utils.data.DataLoader(rows, batch_size=2, collate_fn=lambda rows: collated(model, rows))
    assert model.record(loader).labels.tolist() == expected
    assert model.record(rows, collate=lambda rows: collated(model, rows)).labels.tolist() == expected
    assert model.record(rows, collate=model.collate).labels.tolist() == expected
    assert model.record([{**row, "labels": [0, 0]} for row in rows]).labels.tolist() == [[0, 0]] * 5
    assert FinetunedClassifier.from_finetuned(make("bert-tokens")).record(rows).labels is None


def collated(model: FinetunedClassifier, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    places = {name: torch.tensor([row[name] for row in rows]) for name in ("start_positions", "end_positions")}
    return {**model.collate(rows), **places}


@pytest.mark.parametrize("empty", [[], torch.tensor([], dtype=torch.long)])
@pytest.mark.parametrize("masked", [False, True])
def test_a_row_without_tokens_is_told_as_one(empty: Any, masked: bool) -> None:
    model = FinetunedClassifier.from_finetuned(make("bert-tokens"))
    row = {"input_ids": empty, **({"attention_mask": empty} if masked else {})}
    with refused("dataset[1]", "at least in input_ids; got none", "Drop empty examples"):
        model.predict([{"input_ids": [5, 6]}, row])


def test_places_of_answers_are_labels_of_a_call_too() -> None:
    # Trap: the classifier's forward has these names, so they were taken for context, and the loss was None.
    plain = make("bert-span")
    model, given = FinetunedClassifier.from_finetuned(plain), batch(plain)
    places = {"start_positions": torch.tensor([0, 1, 2, 3, 1]), "end_positions": torch.tensor([1, 2, 2, 3, 2])}
    with torch.no_grad():
        torch.testing.assert_close(model(**given, **places).loss, plain(**given, **places).loss)
    assert torch.equal(model.unroll(**given, **places).labels, torch.stack(list(places.values()), dim=1))
    with refused("start_positions and end_positions", "one"):
        model(**given, start_positions=places["start_positions"])
    with refused("labels", "both"):
        model(**given, **places, labels=torch.zeros(5, 2, dtype=torch.long))
    model.train()
    with pytest.raises(ArgumentError, match="abels"):
        model(**given, **places)


def test_an_answer_that_was_cut_off_is_none_in_longer_company_too() -> None:
    # Trap: its place lay beyond its own end, and not beyond that of the longest row, so that it was always wrong.
    model = FinetunedClassifier.from_finetuned(make("bert-span"))
    cut = {"input_ids": [5, 6, 7, 8, 9], "start_positions": 5, "end_positions": 6}
    whole = {"input_ids": [5, 6, 7, 8, 9, 10, 11, 12], "start_positions": 2, "end_positions": 2}
    both = model.record([cut, whole])
    with refused("labels", "-100 for 1 of 2 rows"):
        both.correct()
    counted = both.inside(both.labels)
    assert counted.tolist() == [[-100, -100], [2, 2]]
    assert torch.equal(counted[1:], model.record([whole]).labels)


def test_ids_with_a_batch_dimension_are_refused_with_what_to_do() -> None:
    model = FinetunedClassifier.from_finetuned(make("bert-tokens"))
    for use in (model.predict, model.record):
        with refused("dataset[0]", "ids of shape (1, 3)", "Leave out return_tensors"):
            use([{"input_ids": torch.tensor([[5, 6, 7]])}])


def test_one_label_for_all_tokens_is_refused_by_what_is_expected() -> None:
    model = FinetunedClassifier.from_finetuned(make("bert-tokens"))
    with refused("dataset[0]", "one for each position", "a single number"):
        model.record([{"input_ids": [5, 6, 7], "labels": 1}])


def test_what_a_call_cannot_honour_is_told_before_what_it_lacks() -> None:
    with refused("inputs_embeds", "Pass input_ids"):
        FinetunedClassifier.from_finetuned(make("bert-tokens"))(inputs_embeds=torch.zeros(1, 3, 16))


def sounds(lengths: list[int]) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(4)
    return [{"input_values": torch.randn(length, generator=generator)} for length in lengths]


def test_silence_stands_behind_a_shorter_sound() -> None:
    # Trap: there stood the number of the token for padding, which is no sound.
    plain = make("wav2vec2")
    plain.config.pad_token_id = 29
    model = FinetunedClassifier.from_finetuned(plain)
    assert model.collate(sounds([300, 400]))["input_values"][0, 300:].abs().sum() == 0


def test_rows_of_several_lengths_are_learnt_apart_where_a_model_reads_what_is_behind_their_ends() -> None:
    # Trap: texts were padded for models that read padding as text, which is no input that they have later.
    rows = sounds([300, 400, 300])
    fnet = FNetConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=3, intermediate_size=24, num_labels=3, pad_token_id=3
    )
    torch.manual_seed(0)
    texts = [{"input_ids": [5 + place + own for place in range(length)]} for own, length in enumerate((9, 4, 9))]
    for plain, given in ((make("wav2vec2"), rows), (FNetForSequenceClassification(fnet).eval(), texts)):
        model = FinetunedClassifier.from_finetuned(plain, "exits-deep").eval()
        answers = torch.randn(3, model.config.num_labels)
        with torch.no_grad():
            alone = [float(_loss(model, [row], answer[None])) for row, answer in zip(given, answers, strict=True)]
            assert float(_loss(model, given, answers)) == pytest.approx(sum(alone) / 3, rel=1e-5)
