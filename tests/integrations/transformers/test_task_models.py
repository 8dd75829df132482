"""One model a task: built on tiny encoders of its kind of input, trained, exited, saved, found by the Auto class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from ponder.errors import ArgumentError, ArgumentTypeError, PonderError
from ponder.integrations.transformers import (
    PonderForAudioClassification,
    PonderForImageClassification,
    PonderForQuestionAnswering,
    PonderForSequenceClassification,
    PonderForTokenClassification,
    PonderModel,
)
from ponder.integrations.transformers.examples import example_for
from ponder.integrations.transformers.families import FAMILIES, tiny_encoder
from ponder.policies import Converged, FixedStep, LastStep, Patience, Quantile

BY_NAME = {family.name: family for family in FAMILIES}
CASES: list[tuple[type[Any], str, Any]] = [
    (PonderForSequenceClassification, "roberta", AutoModelForSequenceClassification),
    (PonderForTokenClassification, "bert", AutoModelForTokenClassification),
    (PonderForTokenClassification, "modernbert", AutoModelForTokenClassification),
    (PonderForImageClassification, "vit", AutoModelForImageClassification),
    (PonderForAudioClassification, "wav2vec2", AutoModelForAudioClassification),
    (PonderForAudioClassification, "whisper", AutoModelForAudioClassification),
    (PonderModel, "bert", AutoModel),
    (PonderModel, "vit", AutoModel),
]
pytestmark = pytest.mark.usefixtures("quick_captures")
cases = pytest.mark.parametrize(("kind", "family", "auto"), CASES, ids=[f"{k.__name__}-{f}" for k, f, _ in CASES])


def make(kind: type[Any], family: str, **options: Any) -> Any:
    encoder = tiny_encoder(BY_NAME[family])
    if family == "wav2vec2":
        encoder.config.mask_time_length = 2  # in training it masks spans, of ten frames, and the example has nine
    torch.manual_seed(3)
    model = kind.from_encoder(encoder, **({} if kind is PonderModel else {"num_labels": 3}), **options)
    with torch.no_grad():
        for weight in model.ponder.head.parameters():
            weight.normal_()
    return model.eval()


def batch_for(model: Any) -> dict[str, Tensor]:
    return {name: value for name, value in example_for(model.encoder).items() if name != "bbox"}


def labels_for(model: Any, batch: dict[str, Tensor]) -> Tensor:
    rows = len(batch[model.main_input_name])
    if isinstance(model, PonderModel):
        return torch.zeros(rows, model.encoder.config.hidden_size)
    if isinstance(model, PonderForTokenClassification):
        labels = torch.ones_like(batch["input_ids"])
        return labels.masked_fill(batch["attention_mask"] == 0, -100)
    return torch.tensor([0, 1, 2])


def answers(out: Any) -> Tensor:
    return out.pooler_output if "pooler_output" in out else out.logits


@cases
def test_it_trains_exits_and_is_found_again(kind: type[Any], family: str, auto: Any, tmp_path: Path) -> None:
    model = make(kind, family)
    batch = batch_for(model)
    labels = labels_for(model, batch)
    out = model.train()(**batch, labels=labels)
    out.loss.backward()
    assert out.step_logits.shape[:2] == out.hazard_logits.shape == (3, model.ponder.num_steps)
    graded = {name for name, weight in model.named_parameters() if weight.grad is not None and weight.grad.any()}
    assert any(name.startswith("encoder.") for name in graded)
    assert any(name.startswith("ponder.classifier.lambda_head.") for name in graded)
    model.save_pretrained(tmp_path)
    again = auto.from_pretrained(tmp_path)
    assert type(again) is kind
    with torch.no_grad():
        expected, found = model.eval()(**batch, labels=labels), again(**batch, labels=labels)
        assert torch.equal(answers(expected), answers(found))
        assert torch.equal(expected.exit_step, found.exit_step)
        assert torch.equal(expected.loss, found.loss)
        assert model(**batch, policy=FixedStep(2)).exit_step.tolist() == [2, 2, 2]
        torch.testing.assert_close(answers(model(**batch, policy=FixedStep(2))), out_of_step(model, batch, 2))


def out_of_step(model: Any, batch: dict[str, Tensor], step: int) -> Tensor:
    given: Tensor = model.unroll(**batch).outputs[:, step - 1]
    return given


@cases
def test_replay_is_the_run(kind: type[Any], family: str, auto: Any) -> None:
    model = make(kind, family)
    batch = batch_for(model)
    with torch.no_grad():
        trajectory = model.unroll(**batch)
        for q in (0.2, 0.5, 0.8):
            out, replayed = model(**batch, policy=Quantile(q)), trajectory.replay(Quantile(q))
            assert torch.equal(out.exit_step, replayed.exit_step)
            torch.testing.assert_close(answers(out), replayed.outputs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "modernbert", "t5"])
def test_token_logits_at_full_depth_are_the_head_on_the_last_hidden_state(family: str) -> None:
    model = make(PonderForTokenClassification, family)
    batch = batch_for(model)
    with torch.no_grad():
        expected = model.ponder.head(model.encoder(**batch).last_hidden_state)
        assert torch.equal(model(**batch, policy=LastStep()).logits, expected)


def test_features_at_full_depth_are_the_encoders_own() -> None:
    pooled, mean = make(PonderModel, "bert"), make(PonderModel, "bert", readout="mean")
    batch = batch_for(pooled)
    with torch.no_grad():
        assert torch.equal(pooled(**batch, policy=LastStep()).pooler_output, pooled.encoder(**batch).pooler_output)
        states, mask = mean.encoder(**batch).last_hidden_state, batch["attention_mask"].unsqueeze(-1)
        expected = (states * mask).sum(1) / mask.sum(1)
        torch.testing.assert_close(mean(**batch, policy=LastStep()).pooler_output, expected)


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_tokens_that_are_ignored_and_padding_change_neither_loss_nor_gradient(family: str) -> None:
    model = make(PonderForTokenClassification, family, head_dropout=0.0)
    batch = batch_for(model)
    labels = labels_for(model, batch)
    losses = []
    for cut in (9, 4):  # the third row is four tokens long
        row = {name: value[2:, :cut] for name, value in batch.items()}
        losses.append(model(**row, labels=labels[2:, :cut], policy=LastStep()).loss)
    torch.testing.assert_close(losses[0], losses[1])
    nothing = model(**batch, labels=torch.full_like(labels, -100), policy=LastStep())
    assert nothing.loss == 0
    half = labels.clone()
    half[:, ::2] = -100
    outputs = model(**batch, policy=LastStep()).logits
    each = [
        torch.nn.functional.cross_entropy(row, label, ignore_index=-100)
        for row, label in zip(outputs, half, strict=True)
    ]
    torch.testing.assert_close(model(**batch, labels=half, policy=LastStep()).loss, torch.stack(each).mean())


@pytest.mark.parametrize("mode", [True, False])
def test_token_labels_of_another_length_are_refused(mode: bool) -> None:
    model = make(PonderForTokenClassification, "bert").train(mode)
    batch = batch_for(model)
    with pytest.raises(ArgumentError, match=r"labels: expected shape \(3, 9\); got shape \(3, 8\)"):
        model(**batch, labels=labels_for(model, batch)[:, :8])
    with pytest.raises(ArgumentError, match=r"labels: expected shape \(3, 9\); got shape \(3,\)"):
        model(**batch, labels=torch.zeros(3, dtype=torch.long))


def test_a_data_set_of_texts_of_any_length_is_tagged_in_its_order() -> None:
    model = make(PonderForTokenClassification, "bert")
    batch = batch_for(model)
    rows = [{name: value[row, : [9, 6, 4][row]].tolist() for name, value in batch.items()} for row in (2, 0, 1)]
    found = model.predict(rows, policy=FixedStep(2))
    with torch.no_grad():
        for row, logits in zip(rows, found.outputs, strict=True):
            alone = model(**{name: torch.tensor([value]) for name, value in row.items()}, policy=FixedStep(2)).logits[0]
            torch.testing.assert_close(logits[: len(alone)], alone, rtol=1e-4, atol=1e-5)
            assert not logits[len(alone) :].any()


def test_a_data_set_of_images_is_classified() -> None:
    model = make(PonderForImageClassification, "vit")
    batch = batch_for(model)
    rows = [{"pixel_values": image, "labels": n} for n, image in enumerate(batch["pixel_values"])]
    found = model.predict(rows)
    with torch.no_grad():
        out = model(**batch)
    assert torch.equal(found.exit_step, out.exit_step)
    torch.testing.assert_close(found.outputs, out.logits)
    assert model.record(rows).labels.tolist() == [0, 1, 2]


def test_the_wrong_kind_of_input_is_refused() -> None:
    image, audio, features = (make(k, f) for k, f in ((PonderForImageClassification, "vit"),
                                                      (PonderForAudioClassification, "wav2vec2"),
                                                      (PonderModel, "bert")))  # fmt: skip
    with pytest.raises(ArgumentError, match=r"expected input_values, which Wav2Vec2Model reads; got input_features"):
        audio(input_features=torch.zeros(1, 80, 40))
    with pytest.raises(ArgumentError, match=r"expected input_ids, which BertModel reads; got pixel_values"):
        features(pixel_values=batch_for(image)["pixel_values"])
    with pytest.raises(ArgumentError, match="expected input_ids, which BertModel reads; got nothing"):
        features()
    with pytest.raises(ArgumentError, match="expected an encoder of pixel_values, for a PonderForImageClassification"):
        PonderForImageClassification.from_encoder(tiny_encoder(BY_NAME["bert"]))


def test_arguments_that_nobody_reads_are_refused() -> None:
    encoder = tiny_encoder(BY_NAME["bert"])
    with pytest.raises(ArgumentTypeError, match=r"recipy: .* Did you mean 'recipe'\?"):
        PonderForSequenceClassification.from_encoder(encoder, recipy="vanilla")
    with pytest.raises(ArgumentTypeError, match="frobnicate"):
        PonderForTokenClassification.from_encoder(encoder, num_labels=3, frobnicate=1)
    with pytest.raises(ArgumentError, match="num_labels: expected no argument of a head"):
        PonderModel.from_encoder(encoder, num_labels=3)
    with pytest.raises(ArgumentError, match="at least 2 labels"):
        PonderForTokenClassification.from_encoder(encoder, num_labels=1)
    with pytest.raises(ArgumentError, match="readout: expected tokens; got 'pooler'"):
        PonderForTokenClassification.from_encoder(encoder, num_labels=3, readout="pooler")
    model = make(PonderForSequenceClassification, "bert")
    with pytest.raises(TypeError, match="unexpected keyword argument 'polcy'"):
        model(**batch_for(model), polcy=LastStep())
    for call in (model, model.unroll):
        with pytest.raises(ArgumentError, match=r"output_attentions: expected None.* ask the plain encoder"):
            call(**batch_for(model), output_attentions=True)
        with pytest.raises(ArgumentError, match=r"inputs_embeds: .* got Tensor\. Pass input_ids.*ponder\.capture"):
            call(**batch_for(model), inputs_embeds=torch.zeros(1, 2, 16))
        with pytest.raises(ArgumentError, match=r"return_dict: .* got False\. .*\.to_tuple\(\)"):
            call(**batch_for(model), return_dict=False)
    with pytest.raises(ArgumentError, match=r"position_ids: .*the encoder gets no other"):
        model(**batch_for(model), position_ids=torch.zeros(3, 9, dtype=torch.long))
    assert model(**batch_for(model), position_ids=None).logits.shape == (3, 3)
    assert model(**batch_for(model), inputs_embeds=None, return_dict=True).logits.shape == (3, 3)


def test_dtype_and_attention_of_an_encoder_that_is_loaded(tmp_path: Path) -> None:
    encoder = tiny_encoder(BY_NAME["bert"])
    encoder.save_pretrained(tmp_path)
    build = PonderForSequenceClassification.from_encoder
    model = build(tmp_path, dtype=torch.bfloat16, attn_implementation="eager")
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert model.encoder.config._attn_implementation == "eager"
    plain = build(tmp_path)
    assert {weight.dtype for weight in plain.parameters()} == {torch.float32}
    assert plain.encoder.config._attn_implementation == "sdpa"
    with pytest.raises(ArgumentError, match="dtype: expected None for an encoder that is loaded already"):
        build(encoder, dtype=torch.bfloat16)


@pytest.mark.parametrize("where", ["cpu", {"": "cpu"}])
def test_a_device_map_is_honoured_by_folders_of_both_kinds(where: Any, tmp_path: Path) -> None:
    tiny_encoder(BY_NAME["bert"]).save_pretrained(tmp_path / "encoder")
    model = PonderForSequenceClassification.from_encoder(tmp_path / "encoder", device_map=where).eval()
    with pytest.raises(PonderError, match="abacus"):
        PonderForSequenceClassification.from_encoder(tmp_path / "encoder", device_map="abacus")
    model.save_pretrained(tmp_path / "whole")
    again = PonderForSequenceClassification.from_pretrained(tmp_path / "whole", device_map=where)
    batch = batch_for(model)
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, model(**batch).logits)
    with pytest.raises(ArgumentError, match="device_map: expected None for an encoder that is loaded already"):
        PonderForSequenceClassification.from_encoder(tiny_encoder(BY_NAME["bert"]), device_map=where)


def test_layers_of_the_encoder_are_never_split() -> None:
    model = make(PonderForSequenceClassification, "roberta")
    assert model._no_split_modules
    assert set(model._no_split_modules) >= set(model.encoder._no_split_modules)


@pytest.mark.parametrize("family", ["albert", "bert", "roberta", "t5", "modernbert"])
def test_embeddings_that_were_resized_are_saved_and_loaded(family: str, tmp_path: Path) -> None:
    model = make(PonderForSequenceClassification, family)
    batch = batch_for(model)
    with torch.no_grad():
        before = model(**batch).logits
    size = model.encoder.config.vocab_size
    assert model.resize_token_embeddings(size + 5).num_embeddings == size + 5
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits, before)
        batch["input_ids"][:, 1] = size + 4  # a token that was not there
        expected = model(**batch).logits
    model.save_pretrained(tmp_path)
    again = PonderForSequenceClassification.from_pretrained(tmp_path)
    assert again.encoder.config.vocab_size == size + 5
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, expected)


def test_features_that_exit_are_no_encoder() -> None:
    model = make(PonderModel, "bert")
    with pytest.raises(ArgumentError, match="got PonderModel, which has heads"):
        PonderForSequenceClassification.from_encoder(model)
    assert PonderForSequenceClassification.from_encoder(model.base_model).encoder is model.encoder


@pytest.mark.parametrize("kind", [Patience, Converged])
@pytest.mark.parametrize("length", [9, 16])  # 16 is as long as the encoder is wide
@torch.no_grad()
def test_tokens_come_to_rest_at_the_positions_that_are_no_padding(kind: Any, length: int) -> None:
    model = make(PonderModel, "roberta", recipe="pabee", readout="tokens")
    lengths = torch.tensor([length, 3, 2, 1])
    mask = (torch.arange(length) < lengths[:, None]).long()
    ids = torch.randint(5, 64, (4, length), generator=torch.Generator().manual_seed(2)).masked_fill(mask == 0, 1)
    tokens = model.unroll(ids, attention_mask=mask)
    apart = (tokens.outputs[:, 1:] - tokens.outputs[:, :-1]).abs().amax(3)
    moved = apart.masked_fill(mask[:, None] == 0, 0.0).amax(2)
    tolerance = float(moved.median()) + 1e-4
    expected = [next((n for n, by in enumerate(row, start=2) if by < tolerance), 4) for row in moved.tolist()]
    assert len(set(expected)) > 1, "every row leaves together: this shows nothing"
    policy = kind(patience=1, tolerance=tolerance)
    assert model(ids, attention_mask=mask, policy=policy).exit_step.tolist() == expected
    assert tokens.replay(policy).exit_step.tolist() == expected


def test_a_folder_of_one_task_is_not_read_as_a_model_of_another(tmp_path: Path) -> None:
    """Two labels of each token, and the first and last place of an answer, have heads of one shape."""
    tagger, span = (make_two(kind) for kind in (PonderForTokenClassification, PonderForQuestionAnswering))
    tagger.save_pretrained(tmp_path / "tagger")
    span.save_pretrained(tmp_path / "span")
    for kind, folder, right in (
        (PonderForQuestionAnswering, "tagger", "PonderForTokenClassification"),
        (PonderForTokenClassification, "span", "PonderForQuestionAnswering"),
        (AutoModelForTokenClassification, "span", "PonderForQuestionAnswering"),
    ):
        with pytest.raises(ArgumentError, match=f"whose heads answer something else. Load it with {right}"):
            kind.from_pretrained(tmp_path / folder)

    class Own(PonderForTokenClassification):
        pass

    Own.from_pretrained(tmp_path / "tagger").save_pretrained(tmp_path / "own")
    for kind in (Own, PonderForTokenClassification):
        assert torch.equal(kind.from_pretrained(tmp_path / "own").ponder.head[1].weight, tagger.ponder.head[1].weight)


def make_two(kind: type[Any]) -> Any:
    torch.manual_seed(3)
    return kind.from_encoder(tiny_encoder(BY_NAME["bert"]), "vanilla")


@pytest.mark.parametrize("name", ["output_hidden_states", "output_attentions"])
def test_what_such_models_do_not_give_is_refused_when_they_are_built(name: str) -> None:
    with pytest.raises(ArgumentError, match=f"{name}: expected None"):
        make(PonderForSequenceClassification, "roberta", **{name: True})
