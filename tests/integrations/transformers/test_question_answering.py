"""Question answering: the loss and the logits of Transformers' own model, exits, saves, and data of any length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForQuestionAnswering,
    BertForQuestionAnswering,
    LlamaConfig,
    LlamaForQuestionAnswering,
    TrainingArguments,
)

import ponder
from ponder.errors import ArgumentError
from ponder.integrations.transformers import FinetunedClassifier, PonderForQuestionAnswering, PonderTrainer
from ponder.integrations.transformers.families import tiny_encoder
from ponder.policies import FixedStep, LastStep, Patience, Quantile
from tests.integrations.transformers.test_task_models import BY_NAME, batch_for
from tests.ponder.test_loop import Appointed

START, END = torch.tensor([2, 0, 1]), torch.tensor([5, 3, 40])  # the last answer was cut off


def make(recipe: str = "palbert") -> Any:
    encoder = tiny_encoder(BY_NAME["bert"])
    torch.manual_seed(3)
    model = PonderForQuestionAnswering.from_encoder(encoder, recipe)
    with torch.no_grad():
        for weight in model.ponder.head.parameters():
            weight.normal_()
    return model.eval()


def test_full_depth_is_the_model_of_transformers() -> None:
    model = make()
    batch = batch_for(model)
    plain = BertForQuestionAnswering(model.encoder.config).eval()
    plain.bert.load_state_dict(model.encoder.state_dict(), strict=False)
    plain.qa_outputs.load_state_dict(model.ponder.head[1].state_dict())
    with torch.no_grad():
        expected = plain(**batch, start_positions=START[:2].repeat(2)[:3], end_positions=END[:2].repeat(2)[:3])
        found = model(
            **batch, start_positions=START[:2].repeat(2)[:3], end_positions=END[:2].repeat(2)[:3], policy=LastStep()
        )
    torch.testing.assert_close(found.start_logits, expected.start_logits)
    torch.testing.assert_close(found.end_logits, expected.end_logits)
    torch.testing.assert_close(found.loss, expected.loss)


@pytest.mark.parametrize("recipe", ["palbert", "pabee"])
def test_it_trains_exits_and_is_found_again(recipe: str, tmp_path: Path) -> None:
    model = make(recipe)
    batch = batch_for(model)
    out = model.train()(**batch, start_positions=START, end_positions=END)
    out.loss.backward()
    assert out.step_logits.shape == (3, model.ponder.num_steps, 9, 2)
    assert all(weight.grad is not None and weight.grad.any() for weight in model.ponder.head.parameters())
    model.save_pretrained(tmp_path)
    again = AutoModelForQuestionAnswering.from_pretrained(tmp_path)
    assert type(again) is PonderForQuestionAnswering
    with torch.no_grad():
        expected, found = model.eval()(**batch), again(**batch)
        assert torch.equal(expected.start_logits, found.start_logits)
        assert torch.equal(expected.exit_step, found.exit_step)
        trajectory = model.unroll(**batch)
        for policy in (Patience(1), Patience(2), *([Quantile(0.4)] if recipe == "palbert" else [])):
            run, replayed = model(**batch, policy=policy), trajectory.replay(policy)
            assert torch.equal(run.exit_step, replayed.exit_step)
            torch.testing.assert_close(
                torch.stack([run.start_logits, run.end_logits], -1), replayed.outputs, rtol=1e-4, atol=1e-5
            )


def test_fit_and_the_trainer_take_places_for_labels(tmp_path: Path) -> None:
    model = make("pabee")
    given = {**batch_for(model), "start_positions": START, "end_positions": END}
    report = ponder.fit(model, [given], held_out=[given], epochs=2, seed=0)
    assert [epoch.epoch for epoch in report.stages[0].epochs] == [1, 2]
    assert report.stages[0].best.score is not None
    rows = [{name: value[n] for name, value in given.items()} for n in range(3)]
    arguments = TrainingArguments(
        str(tmp_path), max_steps=1, logging_steps=1, report_to=[], disable_tqdm=True, use_cpu=True, save_strategy="no"
    )
    trainer = PonderTrainer(model, arguments, train_dataset=rows)
    trainer.train()
    assert {"loss_step_1", f"loss_step_{model.ponder.num_steps}"} <= set(trainer.state.log_history[0])


def test_an_answer_that_was_cut_off_counts_for_nothing() -> None:
    model = make()
    batch = batch_for(model)
    with torch.no_grad():
        half = model(**batch, start_positions=START, end_positions=END, policy=LastStep())
        starts = torch.nn.functional.cross_entropy(half.start_logits, START, reduction="none")
        ends = torch.nn.functional.cross_entropy(half.end_logits[:2], END[:2], reduction="none")
    torch.testing.assert_close(half.loss, (starts.sum() + ends.sum()) / 6)


def test_data_of_any_length_is_answered_in_its_order() -> None:
    model = make()
    batch = batch_for(model)
    rows = [{name: value[row, : [9, 6, 4][row]].tolist() for name, value in batch.items()} for row in (2, 0, 1)]
    found = model.predict(rows, policy=FixedStep(2))
    with torch.no_grad():
        for row, outputs in zip(rows, found.outputs, strict=True):
            alone = model(**{name: torch.tensor([value]) for name, value in row.items()}, policy=FixedStep(2))
            logits = torch.stack([alone.start_logits[0], alone.end_logits[0]], -1)
            torch.testing.assert_close(outputs[: len(logits)], logits, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_an_answer_is_refused() -> None:
    model = make()
    batch = batch_for(model)
    with pytest.raises(ArgumentError, match="start_positions and end_positions: expected both or neither"):
        model(**batch, start_positions=START)
    with pytest.raises(ArgumentError, match=r"labels: expected shape \(3, 2\)"):
        model(**batch, start_positions=START[:2], end_positions=END[:2])
    with pytest.raises(ArgumentError, match="num_labels and problem_type: expected 2"):
        PonderForQuestionAnswering.from_encoder(tiny_encoder(BY_NAME["bert"]), num_labels=3)


def test_no_answer_begins_in_the_padding_and_batches_of_other_lengths_are_joined() -> None:
    model = make()
    with torch.no_grad():
        model.ponder.head[1].bias.fill_(-30.0)  # all logits are below 0
    rows = [{"input_ids": torch.randint(5, 40, (length,))} for length in (9, 5, 4, 3, 7, 2)]
    for found in (
        model.predict(rows, policy=LastStep(), batch_size=2).outputs,
        model.predict(rows, policy=LastStep(), batch_size=8).outputs,
        model.record(rows, batch_size=2).outputs[:, -1],
    ):
        for row, answer in zip(rows, found, strict=True):
            with torch.no_grad():
                alone = model(row["input_ids"][None], policy=LastStep())
            spans = torch.stack([alone.start_logits[0], alone.end_logits[0]], dim=1)
            torch.testing.assert_close(answer[: len(spans)], spans, atol=1e-4, rtol=1e-4)
            assert answer.argmax(0).tolist() == spans.argmax(0).tolist()


def test_a_decoder_that_keeps_keys_answers_spans_with_rows_leaving() -> None:
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    torch.manual_seed(0)
    plain = LlamaForQuestionAnswering(config).eval()
    model = FinetunedClassifier.from_finetuned(plain)
    ids, row_ids = torch.randint(5, 40, (8, 9)), torch.tensor([1, 2, 3, 4, 1, 2, 3, 4])
    with torch.no_grad():
        record = model.unroll(ids, row_ids=row_ids)
        out = plain(ids)
        for _ in range(2):  # a second call does not see the keys of the first
            found = model(ids, policy=Appointed(), row_ids=row_ids)
            assert found.exit_step.tolist() == row_ids.tolist()
            torch.testing.assert_close(found.outputs, record.replay(Appointed()).outputs)
    full = torch.stack([out.start_logits, out.end_logits], dim=-1)
    torch.testing.assert_close(record.outputs[:, -1], full)
