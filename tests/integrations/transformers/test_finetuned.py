"""Fine-tuned models with exits beside their heads: the plain answers at full depth, and exits that are fitted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import (
    AutoModel,
    GPT2Config,
    GPT2ForSequenceClassification,
    LongformerConfig,
    LongformerForSequenceClassification,
    Trainer,
    TrainingArguments,
    Wav2Vec2Config,
    Wav2Vec2ForSequenceClassification,
)

import ponder
from ponder.errors import ArgumentError, CheckpointError
from ponder.integrations.transformers import (
    PonderForSequenceClassification,
    PonderModel,
    PonderTrainer,
    fit_exits,
)
from ponder.integrations.transformers.exits import _train, distinct
from ponder.integrations.transformers.finetuned import EarlyHead
from ponder.integrations.transformers.texts import row_ids
from ponder.policies import Certified, Confidence, FixedStep, LastStep
from ponder.trajectory import Trajectory
from tests.compare import assert_same_answers, assert_same_rows, assert_same_weights, clear_rows
from tests.integrations.encoders import (
    HEADS,
    answer,
    make_batch,
    make_plain,
    make_tokenizer,
    rows_computed,
    some_texts,
    stir,
)

CASES = [
    *(("sequence", family) for family in ("albert", "bert", "mpnet", "distilbert")),
    *(("token", family) for family in ("albert", "distilbert")),
    *(("span", family) for family in ("bert", "mpnet")),
    ("image", "vit"),
    ("audio", "ast"),
]
TEXTS = some_texts(400)


def build(plain: Any = None, tokenizer: bool = True) -> Any:
    model = PonderForSequenceClassification.from_finetuned(make_plain() if plain is None else plain)
    model.tokenizer = make_tokenizer() if tokenizer else None
    return model


@pytest.mark.parametrize(("head", "family"), CASES)
def test_at_full_depth_it_answers_as_the_plain_model_bit_for_bit(
    head: str, family: str, tmp_path: Path
) -> None:
    plain = make_plain(head, family)
    batch = make_batch(head)
    model = HEADS[head].from_finetuned(plain)
    assert type(model) is HEADS[head]
    with torch.no_grad():
        expected = answer(plain(**batch))
        assert torch.equal(answer(model(**batch)), expected)
        model.policy = FixedStep(2)
        early = model(**batch)
        assert early.exit_step.tolist() == [2] * 6
        assert not torch.equal(answer(early), expected)
        plain.save_pretrained(tmp_path / "plain")
        of_folder = HEADS[head].from_finetuned(tmp_path / "plain")
        assert_same_weights(of_folder, model)
        assert_same_answers(answer(of_folder(**batch, policy=LastStep())), expected)
        model.save_pretrained(tmp_path / "exits")
        again = HEADS[head].auto_class.from_pretrained(tmp_path / "exits")
        assert again.policy == FixedStep(2)
        assert_same_weights(again, model)
        assert_same_answers(answer(again(**batch)), answer(early))
        assert_same_answers(answer(again(**batch, policy=LastStep())), expected)
        bare = AutoModel.from_pretrained(tmp_path / "exits")
        assert type(bare) is PonderModel
        features = answer(bare(**batch))
        if bare.config.readout == "tokens":
            assert_same_answers(features, plain.base_model(**batch).last_hidden_state)


@pytest.mark.parametrize("padding", ["left", "right"])
def test_a_decoder_that_classifies_reads_its_last_token(padding: str) -> None:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=40, n_embd=16, n_layer=4, n_head=2, n_positions=32, num_labels=3, pad_token_id=0
    )
    plain = GPT2ForSequenceClassification(config).eval()
    stir(plain)
    model = PonderForSequenceClassification.from_finetuned(plain)
    batch = make_batch()
    if padding == "left":
        batch = {name: value.flip(1) for name, value in batch.items()}
    batch["input_ids"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, 0)
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, plain(**batch).logits)
        assert model(**batch, policy=FixedStep(1)).logits.isfinite().all()


def test_models_that_make_other_positions_of_their_inputs() -> None:
    """Longformer pads within, and wav2vec 2.0 makes frames of samples: early heads leave padding out all the same."""
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 24,
    }
    longformer = LongformerForSequenceClassification(
        LongformerConfig(
            **sizes, vocab_size=40, attention_window=4, max_position_embeddings=64, num_labels=3
        )
    ).eval()
    waves = {"conv_dim": [8] * 7, "num_conv_pos_embedding_groups": 2, "num_conv_pos_embeddings": 4}
    speech = Wav2Vec2ForSequenceClassification(
        Wav2Vec2Config(**sizes, **waves, num_labels=3)
    ).eval()
    for plain, batch, kind in (
        (longformer, make_batch(), "sequence"),
        (
            speech,
            {"input_values": torch.randn(2, 3000), "attention_mask": torch.ones(2, 3000).long()},
            "audio",
        ),
    ):
        stir(plain)
        model = HEADS[kind].from_finetuned(plain)
        with torch.no_grad():
            assert torch.equal(model(**batch).logits, plain(**batch).logits)
            early = model(**batch, policy=FixedStep(1)).logits
        assert early.shape == (len(early), 3)


def test_fitted_exits_keep_their_promise_and_come_back_with_it(tmp_path: Path) -> None:
    plain = make_plain()
    model = build(plain)
    report = fit_exits(model, TEXTS, disagreement=0.15, epochs=2)
    assert report.met
    assert report.mean_exit_step < 4
    assert report.rows == 400
    assert report.duplicates == 0
    assert report.fitted + report.chosen_on + report.certified_on == 400
    assert isinstance(model.policy, Certified)
    assert report.disagreement <= report.level == 0.15
    assert sum(report.exit_shares) == pytest.approx(1.0)
    assert "at most 15% of inputs like these, with 95% confidence" in report.statement
    assert report.to_dict()["plain_accuracy"] is None
    assert [TEXTS[place] for place in report.places[:2]] != TEXTS[:2]
    again = model.record([TEXTS[place] for place in report.places])
    assert_same_answers(again.outputs, report.certifying.outputs)
    fresh = some_texts(300, seed=9)
    clear = clear_rows(model.record(fresh), model.policy)
    answers = model.predict(fresh)
    full = model.predict(fresh, policy=LastStep())
    with torch.no_grad():
        encoded = make_tokenizer()(
            fresh[:5], padding=True, return_tensors="pt", return_token_type_ids=False
        )
        names = [plain.config.id2label[int(place)] for place in plain(**encoded).logits.argmax(-1)]
    assert_same_rows(full.labels[:5], names, clear[:5])
    assert np.mean([a != b for a, b in zip(answers.labels, full.labels, strict=True)]) < 0.25
    model.save_pretrained(tmp_path)
    again = PonderForSequenceClassification.from_pretrained(tmp_path)
    assert again.policy == model.policy
    assert_same_weights(again, model)
    found = again.predict(fresh)
    assert_same_answers(found.outputs[clear], answers.outputs[clear])
    assert_same_rows(found.exit_step, answers.exit_step, clear)
    assert len(set(found.exit_step.tolist())) > 1
    classify = transformers.pipeline("text-classification", model=str(tmp_path))
    labels = [one["label"] for one in classify(fresh[:5])]
    assert_same_rows(labels, found.labels[:5], clear[:5])


def test_the_sides_of_the_split_are_known_again_and_rows_that_repeat_others_are_rows() -> None:
    model = build()
    given = [model.tokenizer(text) for text in TEXTS[:200]]
    padded = [
        {**row, "input_ids": [*row["input_ids"], 1], "attention_mask": [*row["attention_mask"], 0]}
        for row in given
    ]
    assert np.array_equal(row_ids(given), row_ids(padded)), "padding makes no other input"
    assert distinct([*given, *padded])[0].tolist() == list(range(200))
    report = fit_exits(model, [*given, *given[:50]], disagreement=0.2, epochs=1, seed=3)
    assert (report.rows, report.duplicates) == (250, 50)
    rows = [*given, *given[:50]]
    taught = list(report.taught_places)
    assert len(taught) == 100
    assert not set(taught) & set(report.places)
    assert len(np.unique(row_ids(rows)[taught])) == report.fitted  # each text once
    assert (report.chosen_on, report.certified_on) == (50, 100)
    assert len(report.certifying) == 100
    assert np.array_equal(row_ids([rows[n] for n in report.places]), report.certifying.row_ids)
    alone = model.record([rows[n] for n in report.places]).outputs
    torch.testing.assert_close(report.certifying.outputs, alone)


def test_labels_tell_accuracies_and_a_speed_up_may_be_asked_for() -> None:
    model = build()
    rows = [{**model.tokenizer(text), "label": place % 3} for place, text in enumerate(TEXTS)]
    report = fit_exits(model, rows, speed_up=2.0, epochs=2)
    assert report.speed_up >= 1.9
    assert 0 <= report.exit_accuracy <= 1
    assert 0 <= report.plain_accuracy <= 1
    assert report.level >= report.disagreement


def test_a_head_learns_on_its_own_step_and_keeps_its_best_weights() -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(400, 3, generator=generator)
    noise = torch.randn(400, 3 + 2 * 5, generator=generator)
    own = torch.cat([target, noise[:, 3:]], 1)
    steps = [noise, torch.cat([noise[:, :3], target, noise[:, 6:]], 1), own]
    seen = Trajectory(
        target[:, None].repeat(1, 3, 1),
        None,
        torch.arange(400),
        features=torch.stack(steps, 1),
        task="classification",
    )
    agreements = []
    for step in range(3):
        head = EarlyHead(3, 5)
        _train(head, step, seen, 100, torch.Generator().manual_seed(1))
        agreements.append((head(steps[step]).argmax(1) == target.argmax(1)).float().mean())
    assert agreements[0] < 0.6  # of noise nothing is learned
    assert agreements[1] > 0.7
    assert head.scale.item() == 1.0  # the own answer was the best from the start
    assert not head.linear.weight.any()


def test_heads_of_tokens_learn_without_padding() -> None:
    model = HEADS["token"].from_finetuned(make_plain("token", "distilbert"))
    rows = [{"input_ids": [3 + (7 * n + k) % 37 for k in range(2 + n % 6)]} for n in range(200)]
    report = fit_exits(model, rows, disagreement=0.3, epochs=3)
    assert report.certified_on == 80
    assert model.predict(rows[:5]).outputs.shape == (5, 6, 3)


def test_training_moves_early_heads_alone(tmp_path: Path) -> None:
    model = build()
    batch = make_batch(labels=True)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    rows = [{name: value[row] for name, value in batch.items()} for row in range(6)]
    arguments = TrainingArguments(
        str(tmp_path),
        max_steps=2,
        learning_rate=0.01,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        save_strategy="no",
    )
    for trainer in (PonderTrainer, Trainer):
        trained = trainer(model, arguments, train_dataset=rows, eval_dataset=rows)
        trained.train()
        assert trained.evaluate()["eval_loss"] > 0
    moved = {
        name for name, weight in model.state_dict().items() if not torch.equal(before[name], weight)
    }
    assert moved
    assert all(name.startswith("ponder.classifier.head.heads.") for name in moved)


def test_it_is_a_citizen_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    assert model.device == torch.device("cpu")
    assert model.encoder.config.num_labels == model.config.num_labels == 3
    uploaded: list[Any] = []
    from huggingface_hub import ModelCard

    monkeypatch.setattr(
        transformers.utils.hub.PushToHubMixin,
        "push_to_hub",
        lambda self, repo_id, **options: uploaded.append(repo_id),
    )
    monkeypatch.setattr(
        ModelCard, "push_to_hub", lambda card, repo_id, **options: uploaded.append(card.data)
    )
    model.push_to_hub("me/exits")
    assert uploaded[0] == "me/exits"
    assert (uploaded[1].library_name, uploaded[1].pipeline_tag) == (
        "transformers",
        "text-classification",
    )


def test_a_promise_is_dropped_where_weights_changed(tmp_path: Path) -> None:
    model = build()
    fit_exits(model, TEXTS, disagreement=0.3, epochs=1)
    with torch.no_grad():
        next(model.encoder.parameters()).add_(1.0)
    with pytest.warns(UserWarning, match="promise is dropped"):
        model.save_pretrained(tmp_path)
    assert not isinstance(
        PonderForSequenceClassification.from_pretrained(tmp_path).policy, Certified
    )


def test_nothing_is_computed_that_no_row_needs() -> None:
    plain = make_plain()
    model = build(plain)
    model.policy = Confidence(0.6)
    model.predict(TEXTS[:60])  # the first call of a kind is looked at
    with rows_computed(list(plain.bert.encoder.layer)) as calls:
        found = model.predict(TEXTS[:60])
    assert sum(calls) == int(found.exit_step.sum())
    assert len(set(found.exit_step.tolist())) > 2


def test_heads_that_have_learned_nothing_are_exported(tmp_path: Path) -> None:
    model = build(
        make_plain("sequence", "bert", labels=2)
    )  # the zeros of a bias are as long as one integer
    model.policy = Confidence(0.6)
    exported = ponder.export.OnnxModel(ponder.export.onnx(model.eval(), tmp_path / "export"))
    found = exported.predict(TEXTS[:9])
    expected = model.predict(TEXTS[:9])
    clear = clear_rows(model.record(TEXTS[:9]), model.policy)
    assert_same_rows(found.exit_step, expected.exit_step, clear)


def test_wrong_models_and_options_are_refused_with_a_remedy(tmp_path: Path) -> None:
    plain = make_plain()
    with pytest.raises(
        ArgumentError, match=r"model: expected a fine-tuned model .*; got BertModel"
    ):
        PonderForSequenceClassification.from_finetuned(plain.base_model)
    plain.base_model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="lacks classifier"):
        PonderForSequenceClassification.from_finetuned(tmp_path)
    model = build(plain, tokenizer=False)
    with pytest.raises(ArgumentError, match=r"rows: expected a list of texts, and a tokenizer"):
        model.predict(["a text"])
    with pytest.raises(ArgumentError, match="at least 50 distinct inputs"):
        fit_exits(build(), TEXTS[:20])
    with pytest.raises(ArgumentError, match="a fine-tuned classifier with exits beside its head"):
        fit_exits(HEADS["span"].from_finetuned(make_plain("span")), [{"input_ids": [3, 4]}])
    with pytest.raises(ArgumentError, match="without exits"):
        PonderForSequenceClassification.from_finetuned(model)
