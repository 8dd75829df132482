"""Stages with a teacher, heads at a rate of their own, and a trainer that says how far training has come."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    TrainingArguments,
)

from ponder import Progress
from ponder.integrations.transformers import (
    PonderForQuestionAnswering,
    PonderForSequenceClassification,
    PonderForTokenClassification,
    PonderTrainer,
)
from ponder.objectives import Distillation, FinalStep, Objective, Unrolled
from ponder.policies import Confidence, LastStep, Quantile
from ponder.recipes import Recipe, Stage
from tests.integrations.transformers.encoders import (
    CONFIGS,
    FAMILIES,
    ROWS,
    make_batch,
    make_encoder,
    make_model,
)
from tests.ponder.checks import refused

families = pytest.mark.parametrize("name", FAMILIES)


def make_trainer(model: Any, folder: Path, **rates: float) -> PonderTrainer:
    """A trainer of two epochs of three steps on random examples."""
    batch = make_batch(model.encoder, rows=12)
    data = [{**{key: value[i] for key, value in batch.items()}, "labels": torch.tensor(i % 3)} for i in range(12)]
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=2,
        learning_rate=2e-3,
        per_device_train_batch_size=4,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    return PonderTrainer(model=model, args=arguments, train_dataset=data, **rates)


# Two stages, with the first as the teacher of the second


TWO_STAGES = Recipe(
    name="two-stages",
    paper="a test",
    stages=(
        Stage(FinalStep()),
        Stage(Distillation(teacher="frozen"), teacher="previous", early_heads="last"),
    ),
    policy=Confidence(0.8),
    per_step_heads=True,
)


class TestTeaching:
    @families
    def test_a_stage_is_taught_by_the_model_that_the_stage_before_left(self, name: str, tmp_path: Path) -> None:
        model = make_model(name, recipe=TWO_STAGES, num_labels=3)
        first, second = model.recipe.stages
        model.start_stage(first)
        make_trainer(model, tmp_path / "first").train()
        before = copy.deepcopy(model.eval())
        keys = set(model.state_dict())
        model.start_stage(second)
        assert set(model.state_dict()) == keys  # the teacher is no part of the model
        assert model.ponder._teacher.module is not model.ponder
        head = model.ponder.head.heads
        assert all(torch.equal(each[-1].weight, head[-1][-1].weight) for each in head)
        make_trainer(model, tmp_path / "second").train()
        batch = make_batch(model.encoder)
        with torch.no_grad():
            taught = model.ponder._teacher.outputs(
                batch["input_ids"], {"attention_mask": batch["attention_mask"]}, torch.zeros(ROWS, 3)
            )
            own = before(**batch, policy=LastStep()).logits
        torch.testing.assert_close(taught, own)  # what was trained since is not the teacher

    def test_a_teacher_of_another_label_set_is_refused(self) -> None:
        model, other = (make_model("bert", recipe="pabee", num_labels=3) for _ in range(2))
        with refused("teacher", "the model itself"):
            model.attach_teacher(model)
        with refused("teacher", "Linear", type_error=True):
            model.attach_teacher(nn.Linear(2, 2))
        more = PonderForSequenceClassification.from_encoder(make_encoder("bert"), "vanilla", 5)
        with refused("teacher", "5 labels"):
            model.attach_teacher(more)
        other.config.id2label = {0: "LABEL_1", 1: "LABEL_0", 2: "LABEL_2"}
        with refused("teacher", "'LABEL_1' in place of 'LABEL_0'"):
            model.attach_teacher(other)
        other = PonderForSequenceClassification.from_encoder(
            make_encoder("bert"), "vanilla", 3, problem_type="multi_label_classification"
        )
        with refused("teacher", "'multilabel'"):
            model.attach_teacher(other)

    def test_a_teacher_of_another_vocabulary_is_refused(self) -> None:
        """Trap: it was fed ids of the student's tokenizer, and taught what other words would have meant."""
        model = make_model("bert", recipe="pabee", num_labels=3)
        config = CONFIGS["bert"]()
        config.num_labels, config.vocab_size = 3, 50
        teacher = BertForSequenceClassification(config)
        wrapped = PonderForSequenceClassification.from_encoder(teacher.bert, "vanilla", 3)
        for other in (teacher, wrapped):
            with refused("teacher", "40", "50", "the student's tokenizer"):
                model.attach_teacher(other)
        assert not model.ponder.has_teacher
        model.ponder.attach_teacher(lambda inputs, **context: teacher(inputs, **context).logits)

    def test_what_is_left_in_a_configuration_is_no_task(self) -> None:
        """Trap: Transformers writes `problem_type` where a sequence classifier is trained; no other head reads it."""
        model = PonderForTokenClassification.from_encoder(make_encoder("bert"), "pabee", 3)
        config = CONFIGS["bert"]()
        config.num_labels, config.problem_type = 3, "single_label_classification"
        model.attach_teacher(BertForTokenClassification(config))
        assert model.ponder.has_teacher
        with refused("teacher", "'classification'"):
            model.attach_teacher(BertForSequenceClassification(config))

    def test_any_classifier_of_transformers_can_teach(self) -> None:
        config = CONFIGS["bert"]()
        config.num_labels = 3
        model = make_model("bert", recipe="pabee", num_labels=3)
        teacher = BertForSequenceClassification(config)
        model.attach_teacher(teacher)
        model.ponder.objective = Distillation(teacher="frozen")
        batch = make_batch(model.encoder)
        for part in model.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.0
        out = model.train()(**batch, labels=torch.zeros(ROWS, dtype=torch.long))
        teacher.eval()
        taught = teacher(**batch).logits.log_softmax(-1).unsqueeze(1)
        students = out.step_logits.log_softmax(-1)
        torch.testing.assert_close(out.loss, (taught.exp() * (taught - students)).sum(-1).mean())

    @pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "wrapped"])
    def test_a_model_that_answers_with_spans_can_teach(self, wrapped: bool) -> None:
        """Trap: it was accepted, and its answer was asked for logits, of which it has two."""
        model = PonderForQuestionAnswering.from_encoder(make_encoder("bert"), "vanilla")
        teacher = (
            PonderForQuestionAnswering.from_encoder(make_encoder("bert", seed=3), "vanilla")
            if wrapped
            else BertForQuestionAnswering(CONFIGS["bert"]())
        ).eval()
        model.attach_teacher(teacher)
        model.ponder.objective = Distillation(teacher="frozen")
        batch, places = make_batch(model.encoder), torch.zeros(ROWS, dtype=torch.long)
        out = model.train()(**batch, start_positions=places, end_positions=places)
        assert out.loss.isfinite()
        assert out.loss > 0
        with torch.no_grad():
            expected = teacher(**batch)
            found = model.ponder._teacher.outputs(
                batch["input_ids"], {"attention_mask": batch["attention_mask"]}, out.step_logits[:, 0]
            )
        torch.testing.assert_close(found, torch.stack([expected.start_logits, expected.end_logits], -1))

    def test_a_model_that_answers_with_spans_teaches_no_tokens(self) -> None:
        model = PonderForTokenClassification.from_encoder(make_encoder("bert"), "pabee", 2)
        with refused("teacher", "'span'"):
            model.attach_teacher(BertForQuestionAnswering(CONFIGS["bert"]()))


class TestThePonderRecipe:
    def test_numbers_have_a_lambda_head_that_is_fitted_to_frozen_steps(self, tmp_path: Path) -> None:
        model = make_model("bert", recipe="ponder", num_labels=1)
        assert isinstance(model.policy, Quantile)
        assert [stage.train for stage in model.recipe.stages] == ["all", "all", "lambda_head"]
        for number, stage in enumerate(model.recipe.stages):
            model.start_stage(stage)
            before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
            trainer = make_trainer(model, tmp_path / str(number), lambda_lr=1e-2)
            trainer.train_dataset = [{**row, "labels": row["labels"].float()} for row in trainer.train_dataset]
            trainer.train()
            moved = {name for name, parameter in model.named_parameters() if not torch.equal(before[name], parameter)}
            halting = {name for name in before if name.startswith("ponder.classifier.lambda_head.")}
            assert moved == halting if stage.train == "lambda_head" else not moved & halting
        model.save_pretrained(tmp_path / "saved")
        again = PonderForSequenceClassification.from_pretrained(tmp_path / "saved")
        batch = make_batch(model.encoder)
        with torch.no_grad():
            torch.testing.assert_close(again(**batch).logits, model.eval()(**batch).logits)

    def test_classes_have_none(self) -> None:
        model = make_model("bert", recipe="ponder", num_labels=3)
        assert model.ponder.lambda_head is None
        assert isinstance(model.policy, Confidence)
        assert [stage.train for stage in model.recipe.stages] == ["all", "all"]


class TestProgress:
    def test_the_trainer_says_how_far_training_has_come(self, tmp_path: Path) -> None:
        model = make_model("bert", recipe="pabee", num_labels=3)
        seen = []

        @dataclasses.dataclass(frozen=True)
        class Listening(Objective):
            needs = frozenset({"progress"})

            def per_example(self, unrolled: Unrolled) -> torch.Tensor:
                seen.append(unrolled.progress)
                return unrolled.losses.mean(1)

        model.ponder.objective = Listening()
        trainer = make_trainer(model, tmp_path)
        trainer.train()
        total = trainer.state.max_steps
        assert seen == [Progress(step, total) for step in range(total)]

    def test_heads_learn_at_a_rate_of_their_own(self, tmp_path: Path) -> None:
        model = make_model("bert", recipe="palbert", num_labels=3)
        trainer = make_trainer(model, tmp_path, lambda_lr=3e-3, head_lr=5e-2)
        rates = {id(p): group["lr"] for group in trainer.create_optimizer().param_groups for p in group["params"]}
        for name, parameter in model.named_parameters():
            own = {"ponder.classifier.head": 5e-2, "ponder.classifier.lambda_head": 3e-3}
            expected = next((rate for prefix, rate in own.items() if name.startswith(f"{prefix}.")), 2e-3)
            assert rates[id(parameter)] == expected, name
