"""One mixin for every head with every encoder, in the manner of Transformers' own ModelTesterMixin."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, Trainer, TrainingArguments

from ponder import policies
from ponder.integrations.transformers import PonderModel
from ponder.policies import FixedStep
from tests.compare import assert_same_answers, assert_same_weights
from tests.integrations.encoders import (
    CASES,
    answer,
    make_batch,
    make_encoder,
    make_model,
    rows_computed,
)

every_case = pytest.mark.parametrize(("head", "family"), CASES)
"""Heads that answer with numbers or positions have no confidence; patience suits them all."""


def recipe_for(head: str) -> str:
    return "palbert" if head == "features" else "pabee"


def build(head: str, family: str, **options: Any) -> Any:
    return make_model(head, family, recipe_for(head), **options)


@every_case
def test_a_training_step_moves_encoder_and_heads_and_evaluation_exits(
    head: str, family: str
) -> None:
    model = build(head, family)
    batch = make_batch(head, labels=True)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    out = model.train()(**batch)
    assert out.step_logits.shape[:2] == (6, 4)
    out.loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    moved = {
        name.split(".")[1]
        for name, weight in model.named_parameters()
        if not torch.equal(before[name], weight)
    }
    assert moved == {"stem", model.heads_name}
    found = model.eval()(**batch, policy=FixedStep(2))
    assert found.exit_step.tolist() == [2] * 6
    assert bool(found.loss.isfinite())
    assert found.step_logits is None


@every_case
def test_a_row_exits_alone_as_in_a_batch_and_nothing_is_computed_that_no_row_needs(
    head: str, family: str
) -> None:
    model = build(head, family)
    batch = make_batch(head)
    policy = _ByRow()
    with torch.no_grad():
        whole = model(**batch, policy=policy, row_ids=torch.arange(6))
        assert whole.exit_step.tolist() == [1, 2, 3, 4, 1, 2]
        for row in range(6):
            real = int(batch["attention_mask"][row].sum()) if "attention_mask" in batch else None
            one = {
                name: value[row : row + 1, :real] if real else value[row : row + 1]
                for name, value in batch.items()
            }
            alone = model(**one, policy=policy, row_ids=torch.tensor([row]))
            assert int(alone.exit_step) == int(whole.exit_step[row])
            own = answer(whole)[row : row + 1]
            own = own[:, :real] if real and own.dim() > 2 else own
            torch.testing.assert_close(answer(alone), own, atol=1e-5, rtol=1e-4)


@every_case
def test_saved_and_loaded_copied_and_pickled_it_is_the_same(
    head: str, family: str, tmp_path: Path
) -> None:
    model = build(head, family, policy=FixedStep(3))
    batch = make_batch(head)
    with torch.no_grad():
        expected = model(**batch)
        model.save_pretrained(tmp_path)
        others = [
            type(model).from_pretrained(tmp_path),
            model.auto_class.from_pretrained(tmp_path),
            copy.deepcopy(model),
            pickle.loads(pickle.dumps(model)),
        ]
        for other in others:
            assert type(other) is type(model)
            assert not other.training
            found = other(**batch)
            assert_same_weights(other, model)
            assert_same_answers(answer(found), answer(expected))
            assert torch.equal(found.exit_step, expected.exit_step)
            assert other.config.to_dict().keys() == model.config.to_dict().keys()
    bare = AutoModel.from_pretrained(tmp_path)
    assert type(bare) is PonderModel
    assert torch.equal(next(bare.encoder.parameters()), next(model.encoder.parameters()))
    changed = copy.deepcopy(model)
    with torch.no_grad():
        for weight in changed.encoder.parameters():
            weight.zero_()
    assert torch.equal(answer(model(**batch)), answer(expected)), "a copy has an encoder of its own"


@pytest.mark.parametrize(
    ("head", "family"), [case for case in CASES if case[1] in ("bert", "vit", "ast")]
)
def test_transformers_own_trainer_trains_and_evaluates_it(
    head: str, family: str, tmp_path: Path
) -> None:
    model = build(head, family).train()
    batch = make_batch(head, labels=True)
    rows = [{name: value[row] for name, value in batch.items()} for row in range(6)]
    arguments = TrainingArguments(
        str(tmp_path),
        max_steps=2,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        save_strategy="no",
    )
    trainer = Trainer(model, arguments, train_dataset=rows, eval_dataset=rows)
    assert trainer.train().global_step == 2
    assert trainer.evaluate()["eval_loss"] > 0


@every_case
def test_half_precision_and_gradient_checkpointing(head: str, family: str) -> None:
    model = build(head, family)
    batch = make_batch(head, labels=True)
    model.train()
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    plain = model(**batch).loss
    model.activation_checkpointing_enable()
    assert model.is_gradient_checkpointing
    again = model(**batch).loss
    again.backward()
    torch.testing.assert_close(again, plain)
    half = model.eval().to(torch.bfloat16)
    given = {
        k: v.to(torch.bfloat16) if v.is_floating_point() else v for k, v in make_batch(head).items()
    }
    assert answer(half(**given)).dtype is torch.bfloat16


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["albert", "albert-2-uneven-groups", "bert", "distilbert"])
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("grad", [True, False])
def test_at_full_depth_the_tokens_are_the_encoders_bit_for_bit(
    family: str, attention: str, padded: bool, grad: bool
) -> None:
    encoder = make_encoder(family, attn_implementation=attention)
    model = PonderModel.from_encoder(encoder, "vanilla", readout="tokens").eval()
    batch = make_batch()
    batch = batch if padded else {"input_ids": batch["input_ids"]}
    with torch.set_grad_enabled(grad):
        assert torch.equal(model(**batch).last_hidden_state, encoder(**batch).last_hidden_state)


def test_tokens_are_recorded_and_halt_without_the_padding_of_their_batch() -> None:
    model = PonderModel.from_encoder(make_encoder("bert"), "palbert", readout="tokens").eval()
    batch = make_batch()
    rows = [
        ids[:n]
        for ids, n in zip(batch["input_ids"], batch["attention_mask"].sum(1).tolist(), strict=True)
    ]
    found = model.record([{"input_ids": row} for row in rows])
    alone = torch.cat([model.unroll(input_ids=row[None]).hazard_logits for row in rows])
    torch.testing.assert_close(found.hazard_logits, alone)


@pytest.mark.parametrize("family", ["albert", "bert", "mpnet"])
def test_an_exit_is_the_encoder_cut_at_that_layer(family: str) -> None:
    encoder = make_encoder(family)
    batch = make_batch()
    model = PonderModel.from_encoder(encoder, "vanilla").eval()
    layers = encoder.encoder.albert_layer_groups if family == "albert" else encoder.encoder.layer
    with torch.no_grad():
        model(**batch)  # the first call of its kind is read by further calls of the encoder
        with rows_computed(list(layers)) as calls:
            found = model(**batch, policy=FixedStep(2)).pooler_output
    assert sum(calls) == 12, "two steps of six rows"
    cut = copy.deepcopy(encoder)
    cut.config.num_hidden_layers = 2
    if family != "albert":
        cut.encoder.layer = cut.encoder.layer[:2]
    with torch.no_grad():
        assert_same_answers(found, cut(**batch).pooler_output)


class _ByRow(policies.ExitPolicy):
    """A row exits at the step of its id."""

    def init(self, first: Any) -> Any:
        return {"exit": 1 + first.row_ids % first.num_steps}

    def decide(self, step: Any, state: Any) -> Any:
        return step.index >= state["exit"], state
