"""Training: gradients, stages, `PonderTrainer` and plain `Trainer` on a handful of random examples."""

from __future__ import annotations

import copy
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    EarlyStoppingCallback,
    EvalPrediction,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    ViTConfig,
    ViTModel,
)

from ponder import StepDistribution, priors, recipes, tasks
from ponder.errors import ArgumentError
from ponder.integrations.transformers import (
    PonderForImageClassification,
    PonderForQuestionAnswering,
    PonderForSequenceClassification,
    PonderForTokenClassification,
    PonderTrainer,
)
from ponder.objectives import DeepSupervision, FinalStep
from ponder.policies import Bernoulli, Confidence, LastStep
from tests.integrations.transformers.encoders import (
    CONFIGS,
    FAMILIES,
    FIRST_TOKEN,
    IN_TURN,
    RECIPES,
    VOCABULARY,
    make_batch,
    make_encoder,
    make_model,
    make_tokenizer,
    segments,
)
from tests.ponder.checks import refused

EXAMPLES, BATCH = 24, 8
LABELS = torch.tensor([0, 1, 1, 0, 1, 0])
QUIET: dict[str, Any] = {
    "per_device_train_batch_size": BATCH,
    "per_device_eval_batch_size": BATCH,
    "save_strategy": "no",
    "logging_strategy": "epoch",
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
    "dataloader_pin_memory": False,
    "seed": 7,
}
"""Arguments of a training that prints, reports and saves nothing."""
ON_FROZEN = [name for name in recipes.names() if recipes.get(name).stages[-1].train == "early_heads"]
families = pytest.mark.parametrize("name", FAMILIES)
every_recipe = pytest.mark.parametrize("recipe", RECIPES)
two_stages = pytest.mark.parametrize("recipe", ON_FROZEN)


def examples(problem: str = "classes") -> list[dict[str, Any]]:
    """Random sentences of 3 to 20 tokens; the answer is in the first token."""
    generator = torch.Generator().manual_seed(5)
    made = []
    for index in range(EXAMPLES):
        length = int(torch.randint(3, 21, (1,), generator=generator))
        ids = torch.randint(FIRST_TOKEN, VOCABULARY, (length,), generator=generator).tolist()
        ids[0] = FIRST_TOKEN + index % 2
        label = {"classes": index % 2, "numbers": float(index % 2), "sets": [1.0, float(index % 2), 0.0]}[problem]
        made.append({"input_ids": ids, "labels": label})
    return made


class Collator:
    """Pads a batch to its own longest example, and keeps the shapes it made."""

    def __init__(self, pad_token_id: int = 0) -> None:
        self.pad_token_id = pad_token_id
        self.lengths: list[int] = []

    def __call__(self, batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        longest = max(len(example["input_ids"]) for example in batch)
        self.lengths.append(longest)
        ids = torch.full((len(batch), longest), self.pad_token_id)
        mask = torch.zeros_like(ids)
        for row, example in enumerate(batch):
            size = len(example["input_ids"])
            ids[row, :size], mask[row, :size] = torch.tensor(example["input_ids"]), 1
        return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([e["labels"] for e in batch])}


def make_trainer(model: Any, folder: Path, kind: type[Trainer] = PonderTrainer, **arguments: Any) -> Any:
    """A trainer of two epochs that prints, reports and saves nothing; `arguments` change that."""
    names = ("lambda_lr", "head_lr", "eval_dataset", "compute_metrics", "compute_loss_func", "processing_class")
    names += ("optimizers", "optimizer_cls_and_kwargs")
    own = {name: arguments.pop(name) for name in names if name in arguments}
    defaults = {"output_dir": str(folder), "num_train_epochs": 2, "learning_rate": 2e-3, **QUIET}
    data = arguments.pop("data", None) or examples()
    return kind(
        model=model,
        args=TrainingArguments(**{**defaults, **arguments}),
        train_dataset=data,
        data_collator=Collator(model.encoder.config.pad_token_id),
        **own,
    )


def weights_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def moved(before: dict[str, torch.Tensor], module: nn.Module) -> set[str]:
    return {name for name, parameter in module.named_parameters() if not torch.equal(before[name], parameter)}


def switch_dropout_off(model: nn.Module) -> None:
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0


def is_idle(name: str) -> bool:
    """Biases that softmax over the positions cancels: their gradient is zero up to rounding."""
    return name.endswith((".key.bias", ".attn.k.bias"))


def trained_by(model: Any, stage: Any, readout: str = "pooler") -> set[str]:
    """Names of the parameters that a stage trains, written apart from the library's own freezing."""
    names = {name for name, _ in model.named_parameters() if readout == "pooler" or ".pooler." not in name}
    heads = {name for name in names if name.startswith("ponder.classifier.head.heads.")}
    last = {name for name in heads if name.startswith(f"ponder.classifier.head.heads.{model.ponder.num_steps - 1}.")}
    if stage.train == "early_heads":
        return heads - last
    return names - heads | last if stage.objective == FinalStep() else names


class TestGradients:
    @families
    @every_recipe
    def test_everything_that_a_stage_trains_gets_a_gradient(self, name: str, recipe: str) -> None:
        readout: Any = ("pooler", "mean")[(FAMILIES.index(name) + RECIPES.index(recipe)) % 2]
        model = make_model(name, recipe=recipe, readout=readout)
        batch = make_batch(model.encoder)
        for stage in model.recipe.stages:
            model.start_stage(stage)
            model.zero_grad()
            model.train()(**batch, token_type_ids=segments(batch), labels=LABELS).loss.backward()
            trained = trained_by(model, stage, readout)
            for key, parameter in model.named_parameters():
                if key not in trained:
                    assert parameter.grad is None or not parameter.grad.any(), key
                elif is_idle(key):
                    assert parameter.grad is not None, key
                else:
                    assert parameter.grad.isfinite().all(), key
                    assert parameter.grad.any(), key
            if stage.train == "early_heads":
                assert {key for key, parameter in model.named_parameters() if parameter.requires_grad} == trained
            else:
                assert all(parameter.requires_grad for parameter in model.parameters())

    @pytest.mark.parametrize("name", CONFIGS)
    def test_every_shape_of_encoder(self, name: str) -> None:
        model = make_model(name).train()
        batch = make_batch(model.encoder)
        model(**batch, token_type_ids=segments(batch), labels=LABELS).loss.backward()
        without = [k for k, p in model.named_parameters() if p.grad is None or not (is_idle(k) or p.grad.any())]
        assert without == []

    @families
    def test_the_loss_of_the_last_step_has_the_gradient_of_the_plain_encoder(self, name: str) -> None:
        """With one step's loss and no dropout, wrapping must not change what training does."""
        encoder = make_encoder(name)
        model = PonderForSequenceClassification.from_encoder(encoder, "vanilla")
        switch_dropout_off(model)
        batch = make_batch(encoder)
        model.train()(**batch, labels=LABELS).loss.backward()
        wrapped = {key: parameter.grad.clone() for key, parameter in encoder.named_parameters()}
        model.zero_grad()
        logits = model.ponder.head(encoder(**batch).pooler_output)
        nn.functional.cross_entropy(logits, LABELS).backward()
        for key, parameter in encoder.named_parameters():
            torch.testing.assert_close(wrapped[key], parameter.grad, atol=1e-6, rtol=1e-4, msg=key)


class TestStages:
    @two_stages
    @families
    def test_the_second_stage_moves_the_early_heads_and_nothing_else(
        self, name: str, recipe: str, tmp_path: Path
    ) -> None:
        model = make_model(name, recipe=recipe)
        first, second = model.recipe.stages
        assert model.ponder.objective == first.objective
        model.start_stage(second)
        assert model.ponder.objective == second.objective
        before, state = weights_of(model), copy.deepcopy(model.encoder.state_dict())
        trainer = make_trainer(model, tmp_path, num_train_epochs=1, weight_decay=0.1)
        trainer.train()
        early = trained_by(model, second)
        assert len(early) == 2 * (model.ponder.num_steps - 1)
        assert moved(before, model) == early
        assert all(torch.equal(tensor, state[key]) for key, tensor in model.encoder.state_dict().items())
        assert {id(p) for g in trainer.optimizer.param_groups for p in g["params"]} == {
            id(parameter) for key, parameter in model.named_parameters() if key in early
        }

    @two_stages
    def test_the_first_stage_leaves_the_early_heads(self, recipe: str, tmp_path: Path) -> None:
        model = make_model("bert", recipe=recipe)
        model.start_stage(model.recipe.stages[0])
        before = weights_of(model)
        make_trainer(model, tmp_path, num_train_epochs=1).train()
        still = set(before) - moved(before, model)
        assert still == {
            key for key in before if key.startswith("ponder.classifier.head.heads.") and ".heads.4." not in key
        }

    @two_stages
    def test_answers_at_full_depth_are_those_of_the_first_stage(self, recipe: str, tmp_path: Path) -> None:
        model = make_model("mpnet", recipe=recipe)
        batch = make_batch(model.encoder)
        with torch.no_grad():
            before = model(**batch, policy=LastStep()).logits
        model.start_stage(model.recipe.stages[1])
        make_trainer(model, tmp_path, num_train_epochs=1).train()
        with torch.no_grad():
            assert torch.equal(model.eval()(**batch, policy=LastStep()).logits, before)

    @two_stages
    def test_going_back_to_the_first_stage_thaws_everything(self, recipe: str) -> None:
        model = make_model("albert", recipe=recipe)
        model.start_stage(model.recipe.stages[1])
        model.start_stage(model.recipe.stages[0])
        assert all(parameter.requires_grad for parameter in model.parameters())

    def test_early_heads_need_a_head_for_each_step(self) -> None:
        model = make_model("bert", recipe="vanilla")
        with pytest.raises(ArgumentError, match="PerStep"):
            model.start_stage(recipes.get("deebert").stages[1])
        assert all(parameter.requires_grad for parameter in model.parameters())


class TestLearningRates:
    @pytest.mark.parametrize(("lambda_lr", "expected"), [(5e-4, 5e-4), (None, 2e-3), (0.0, 0.0)])
    def test_the_lambda_head_has_its_own(self, lambda_lr: float | None, expected: float, tmp_path: Path) -> None:
        model = make_model("bert")
        groups = make_trainer(model, tmp_path, lambda_lr=lambda_lr).create_optimizer().param_groups
        by_name = {group["name"]: group for group in groups}
        assert set(by_name) == {"model", "lambda"}
        assert by_name["model"]["lr"] == 2e-3
        assert by_name["lambda"]["lr"] == expected
        hazards = {id(parameter) for parameter in model.ponder.lambda_head.parameters()}
        assert {id(parameter) for parameter in by_name["lambda"]["params"]} == hazards
        every = [id(parameter) for group in groups for parameter in group["params"]]
        assert len(every) == len(set(every))
        assert set(every) == {id(parameter) for parameter in model.parameters()}

    def test_a_rate_of_zero_keeps_it_where_it_is(self, tmp_path: Path) -> None:
        model = make_model("bert")
        before = weights_of(model)
        make_trainer(model, tmp_path, lambda_lr=0.0, num_train_epochs=1).train()
        changed = moved(before, model)
        assert not any(key.startswith("ponder.classifier.lambda_head.") for key in changed)
        assert {"ponder.classifier.head.1.weight", "encoder.pooler.dense.weight"} <= changed

    def test_the_schedule_scales_both(self, tmp_path: Path) -> None:
        trainer = make_trainer(make_model("bert"), tmp_path, lambda_lr=1e-3, lr_scheduler_type="linear")
        trainer.create_optimizer_and_scheduler(num_training_steps=10)
        for _ in range(4):
            trainer.optimizer.step()
            trainer.lr_scheduler.step()
        rates = {group["name"]: group["lr"] for group in trainer.optimizer.param_groups}
        assert rates == {"model": pytest.approx(0.6 * 2e-3), "lambda": pytest.approx(0.6 * 1e-3)}

    def test_hyper_parameters_of_adam_come_from_the_arguments(self, tmp_path: Path) -> None:
        asked = {"adam_beta1": 0.8, "adam_beta2": 0.97, "adam_epsilon": 1e-6}
        trainer = make_trainer(make_model("bert"), tmp_path, **asked)
        optimizer = trainer.create_optimizer()
        assert isinstance(optimizer, torch.optim.AdamW)
        for group in optimizer.param_groups:
            assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.8, 0.97), 1e-6, 0.0)
        assert trainer.create_optimizer() is optimizer

    def test_the_optimiser_is_the_one_that_the_arguments_name(self, tmp_path: Path) -> None:
        optimizer = make_trainer(make_model("bert"), tmp_path, optim="adamw_torch_fused").create_optimizer()
        assert all(group["fused"] for group in optimizer.param_groups)
        trainer = make_trainer(make_model("bert"), tmp_path, optim="sgd", lambda_lr=1e-5)
        optimizer = trainer.create_optimizer()
        assert isinstance(optimizer, torch.optim.SGD)
        assert {group["name"]: group["lr"] for group in optimizer.param_groups} == {"model": 2e-3, "lambda": 1e-5}

    def test_biases_and_norms_do_not_decay(self, tmp_path: Path) -> None:
        model = make_model("bert")
        optimizer = make_trainer(model, tmp_path, weight_decay=0.03, lambda_lr=1e-5).create_optimizer()
        groups = [(group["name"], group["weight_decay"]) for group in optimizer.param_groups]
        assert groups == [("model", 0.03), ("model", 0.0), ("lambda", 0.03), ("lambda", 0.0)]
        rates = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
        for name, parameter in model.named_parameters():
            spared = name.endswith(".bias") or "LayerNorm" in name
            assert rates[id(parameter)] == (0.0 if spared else 0.03), name

    def test_without_a_lambda_head_there_is_one_group(self, tmp_path: Path) -> None:
        trainer = make_trainer(make_model("bert", recipe="pabee"), tmp_path, lambda_lr=1e-5)
        assert [group["name"] for group in trainer.create_optimizer().param_groups] == ["model"]

    def test_an_optimiser_of_the_callers_choice_is_the_one_that_trains(self, tmp_path: Path) -> None:
        """Trap: `optimizer_cls_and_kwargs` was not read, and AdamW trained."""
        asked = (torch.optim.SGD, {"lr": 0.5, "momentum": 0.9, "weight_decay": 0.1})
        trainer = make_trainer(make_model("bert"), tmp_path, lambda_lr=1e-5, optimizer_cls_and_kwargs=asked)
        optimizer = trainer.create_optimizer()
        assert isinstance(optimizer, torch.optim.SGD)
        groups = [(group["name"], group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
        assert groups == [("model", 0.5, 0.1), ("model", 0.5, 0.0), ("lambda", 1e-5, 0.1), ("lambda", 1e-5, 0.0)]
        assert all(group["momentum"] == 0.9 for group in optimizer.param_groups)

    @pytest.mark.parametrize("rate", ["lambda_lr", "head_lr"])
    def test_a_rate_beside_an_optimiser_is_refused(self, rate: str, tmp_path: Path) -> None:
        model = make_model("bert")
        own = torch.optim.SGD(model.parameters(), lr=0.1)
        with refused(rate, "with optimizers"):
            make_trainer(model, tmp_path, optimizers=(own, None), **{rate: 1e-3})
        assert make_trainer(model, tmp_path, optimizers=(own, None)).create_optimizer() is own

    def test_a_negative_rate_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ArgumentError, match="lambda_lr"):
            make_trainer(make_model("bert"), tmp_path, lambda_lr=-1e-5).create_optimizer()


class TestRuns:
    @pytest.mark.parametrize(("name", "recipe"), IN_TURN)
    def test_two_epochs(self, name: str, recipe: str, tmp_path: Path) -> None:
        model = make_model(name, recipe=recipe)
        model.start_stage(model.recipe.stages[0])
        before = weights_of(model)
        trainer = make_trainer(model, tmp_path, lambda_lr=1e-3 if model.recipe.own_lambda_lr else None)
        result = trainer.train()
        assert result.global_step == 2 * EXAMPLES / BATCH
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        assert len(losses) == 2
        assert all(math.isfinite(loss) for loss in losses)
        still = {key for key in set(before) - moved(before, model) if not is_idle(key)}
        late = (
            {key for key in before if key.startswith("ponder.classifier.head.heads.")}
            if recipe in (*ON_FROZEN, "ponder")
            else set()
        )
        types = {"encoder.embeddings.token_type_embeddings.weight"}
        assert still <= late | types
        assert len(set(trainer.data_collator.lengths)) > 1, "batches of different lengths"

    @every_recipe
    def test_the_loss_goes_down(self, recipe: str, tmp_path: Path) -> None:
        torch.manual_seed(0)
        model = PonderForSequenceClassification.from_encoder(make_encoder("bert-of-3"), recipe)
        switch_dropout_off(model)
        model.start_stage(model.recipe.stages[0])
        trainer = make_trainer(model, tmp_path, num_train_epochs=6, learning_rate=3e-3, lr_scheduler_type="constant")
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        assert losses[-1] < 0.75 * losses[0], losses

    @pytest.mark.parametrize(
        ("problem", "arguments"),
        [
            ("numbers", {"num_labels": 1}),
            ("sets", {"num_labels": 3, "problem_type": "multi_label_classification"}),
        ],
    )
    def test_regression_and_multilabel(self, problem: str, arguments: dict[str, Any], tmp_path: Path) -> None:
        model, data = make_model("bert-of-3", **arguments), examples(problem)
        trainer = make_trainer(model, tmp_path, data=data, eval_dataset=data, num_train_epochs=1)
        trainer.train()
        assert math.isfinite(trainer.evaluate()["eval_loss"])
        assert trainer.predict(data).predictions.shape == (EXAMPLES, arguments["num_labels"])

    @pytest.mark.parametrize("kind", [Trainer, PonderTrainer])
    def test_evaluation_gives_logits_and_exit_steps_on_request(self, kind: type[Trainer], tmp_path: Path) -> None:
        model = make_model("albert")
        seen: list[EvalPrediction] = []

        def metrics(prediction: EvalPrediction) -> dict[str, float]:
            seen.append(prediction)
            correct = prediction.predictions.argmax(-1) == prediction.label_ids
            return {"accuracy": float(correct.mean())}

        data = examples()
        trainer = make_trainer(model, tmp_path, kind, eval_dataset=data, compute_metrics=metrics, eval_strategy="epoch")
        trainer.train()
        assert len(seen) == 2
        trainer.compute_metrics = None
        logits, exit_step = trainer.predict(data, ignore_keys=[]).predictions
        trainer.compute_metrics = metrics
        assert np.array_equal(logits, seen[-1].predictions)
        assert logits.shape == (EXAMPLES, 2)
        assert exit_step.shape == (EXAMPLES,)
        assert exit_step.dtype == np.int64
        measured = trainer.evaluate()
        with torch.no_grad():
            parts = [data[start : start + BATCH] for start in range(0, EXAMPLES, BATCH)]
            outs = [model.eval()(**Collator()(part)) for part in parts]
        assert torch.equal(torch.cat([out.exit_step for out in outs]), torch.from_numpy(exit_step))
        expected = torch.cat([out.logits for out in outs])
        torch.testing.assert_close(torch.from_numpy(seen[-1].predictions), expected)
        labels = torch.tensor([example["labels"] for example in data])
        assert measured["eval_accuracy"] == pytest.approx((expected.argmax(1) == labels).float().mean().item())
        assert measured["eval_loss"] == pytest.approx(nn.functional.cross_entropy(expected, labels).item(), rel=1e-4)

    def test_row_ids_reach_the_policy(self, tmp_path: Path) -> None:
        """A collator that names its rows: sampling then does not depend on how the examples are batched."""

        class Named(Collator):
            def __call__(self, batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
                return {**super().__call__(batch), "row_ids": torch.tensor([example["row_ids"] for example in batch])}

        model, data = make_model("bert-of-3"), [{**e, "row_ids": n} for n, e in enumerate(examples())]
        model.policy = Bernoulli(0)
        steps = []
        for size in (5, 24):
            trainer = make_trainer(model, tmp_path, per_device_eval_batch_size=size)
            trainer.data_collator = Named()
            steps.append(trainer.predict(data, ignore_keys=[]).predictions[1].tolist())
        assert steps[0] == steps[1]
        trainer = make_trainer(model, tmp_path, per_device_eval_batch_size=5)
        assert trainer.predict(data, ignore_keys=[]).predictions[1].tolist() == steps[0]  # by their place in the data

    def test_plain_trainer_trains_everything(self, tmp_path: Path) -> None:
        model = make_model("mpnet")
        before = weights_of(model)
        make_trainer(model, tmp_path, Trainer, learning_rate=1e-2).train()
        assert {key for key in set(before) - moved(before, model) if not is_idle(key)} == set()

    @pytest.mark.parametrize("recipe", ["palbert", "deebert"])
    def test_a_run_that_was_cut_off_ends_where_it_would_have(self, recipe: str, tmp_path: Path) -> None:
        def fresh(seed: int) -> Any:
            model = make_model("bert-of-3", seed=seed, recipe=recipe)
            model.start_stage(model.recipe.stages[-1])
            return model

        lambda_lr = 1e-3 if recipe == "palbert" else None
        whole = fresh(seed=2)
        make_trainer(whole, tmp_path / "whole", save_strategy="epoch", lambda_lr=lambda_lr).train()
        halfway = tmp_path / "whole" / f"checkpoint-{EXAMPLES // BATCH}"
        assert (halfway / "model.safetensors").exists()
        assert not list(halfway.glob("*.bin")) or [p.name for p in halfway.glob("*.bin")] == ["training_args.bin"]
        resumed = fresh(seed=2)
        make_trainer(resumed, tmp_path / "resumed", lambda_lr=lambda_lr).train(resume_from_checkpoint=str(halfway))
        for key, tensor in whole.state_dict().items():
            torch.testing.assert_close(resumed.state_dict()[key], tensor, atol=1e-6, rtol=1e-5, msg=key)
        elsewhere = fresh(seed=2)
        make_trainer(elsewhere, tmp_path / "once", num_train_epochs=1, lambda_lr=lambda_lr).train()
        assert moved(weights_of(whole), elsewhere), "the second epoch did something"

    def test_a_checkpoint_is_a_saved_model(self, tmp_path: Path) -> None:
        model = make_model("bert-of-3")
        make_trainer(model, tmp_path, num_train_epochs=1, save_strategy="epoch").train()
        folder = tmp_path / f"checkpoint-{EXAMPLES // BATCH}"
        again = PonderForSequenceClassification.from_pretrained(folder)
        assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in model.state_dict().items())
        assert json.loads((folder / "config.json").read_text())["recipe"]["name"] == "palbert"

    def test_the_best_epoch_is_brought_back(self, tmp_path: Path) -> None:
        scores = iter([0.9, 0.1, 0.2])
        model = make_model("bert-of-3")
        trainer = make_trainer(
            model,
            tmp_path,
            num_train_epochs=3,
            eval_dataset=examples(),
            compute_metrics=lambda _: {"score": next(scores)},
            eval_strategy="epoch",
            save_strategy="epoch",
            load_best_model_at_end=True,
            metric_for_best_model="score",
            greater_is_better=True,
        )
        trainer.train()
        best = PonderForSequenceClassification.from_pretrained(tmp_path / f"checkpoint-{EXAMPLES // BATCH}")
        assert all(torch.equal(tensor, best.state_dict()[key]) for key, tensor in model.state_dict().items())


class TestAccumulation:
    """Accumulated batches train what their joined batch trains, also where few of their rows have a label."""

    @pytest.mark.parametrize("kind", [PonderForSequenceClassification, PonderForQuestionAnswering])
    @pytest.mark.parametrize(
        ("recipe", "objective"), [("vanilla", "final-step"), ("pabee", "deep-supervision"), ("palbert", "ponder")]
    )
    def test_rows_weigh_the_same_in_whichever_batch_they_come(
        self, kind: Any, recipe: str, objective: str, tmp_path: Path
    ) -> None:
        def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
            ids = torch.tensor([row["input_ids"][:3] for row in rows])
            places = ids[:, 1] % 5  # 3 and 4 are beyond the text
            if kind is PonderForQuestionAnswering:
                return {"input_ids": ids, "start_positions": places, "end_positions": places}
            return {"input_ids": ids, "labels": torch.where(places < 3, ids[:, 0] % 2, -100)}

        def trained(batch: int, accumulated: int) -> tuple[float, dict[str, torch.Tensor]]:
            model = kind.from_encoder(make_encoder("bert-of-3"), recipe, head_dropout=0.0, num_labels=2)
            switch_dropout_off(model)
            assert model.ponder.objective.to_dict()["name"] == objective
            of_batch = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulated}
            plain = {"optim": "sgd", "learning_rate": 0.05, "lr_scheduler_type": "constant", "max_grad_norm": 0.0}
            arguments = TrainingArguments(str(tmp_path), **{**QUIET, **of_batch, **plain, "num_train_epochs": 1})
            rows = examples()[:22]  # 8, 8 and 6, and of these the accumulated ones are 4 and 2
            trainer = PonderTrainer(model=model, args=arguments, train_dataset=rows, data_collator=collate)
            loss = trainer.train().training_loss
            return loss, weights_of(model)

        (loss, weights), (of_parts, accumulated) = trained(8, 1), trained(4, 2)
        assert of_parts == pytest.approx(loss, rel=1e-6)
        for name, weight in weights.items():
            torch.testing.assert_close(accumulated[name], weight, atol=1e-6, rtol=0.0)


class TestFrozenStages:
    """What a stage freezes does not move, dropout included: the encoder is a part of the outer model."""

    @two_stages
    @families
    def test_full_depth_does_not_move_by_a_forward_pass_of_training(self, name: str, recipe: str) -> None:
        model = make_model(name, recipe=recipe)
        batch = make_batch(model.encoder)
        model.start_stage(model.recipe.stages[1])
        for start in (model.train, lambda: model.start_stage(model.recipe.stages[1])):
            start()
            assert not any(module.training for module in model.encoder.modules())
            first, second = (model(**batch, labels=LABELS) for _ in range(2))
            assert torch.equal(first.step_logits[:, -1], second.step_logits[:, -1]), "dropout of the encoder is on"
            assert not torch.equal(first.step_logits[:, 0], second.step_logits[:, 0]), "that of the heads is off"
        model.start_stage(model.recipe.stages[0])
        model.train()
        assert model.encoder.training
        assert not torch.equal(model(**batch).logits, model(**batch).logits)

    def test_what_the_caller_froze_after_undoing_a_stage_stays_frozen(self) -> None:
        model = make_model("bert-of-3", recipe="deebert")
        model.start_stage(model.stages[1])
        model.requires_grad_(True)
        assert model.ponder.freezing_stage is None
        for weight in model.encoder.parameters():
            weight.requires_grad_(False)
        model.start_stage(model.stages[0])
        assert not any(weight.requires_grad for weight in model.encoder.parameters())

    def test_a_trainer_leaves_a_frozen_encoder_in_evaluation_mode(self, tmp_path: Path) -> None:
        model = make_model("bert-of-3", recipe=ON_FROZEN[0])
        model.start_stage(model.recipe.stages[1])
        batch = make_batch(model.encoder)
        full = model.eval()(**batch, policy=LastStep()).logits
        seen: list[bool] = []
        model.encoder.register_forward_pre_hook(lambda *_: None)
        layer = next(module for module in model.encoder.modules() if isinstance(module, nn.Dropout))
        layer.register_forward_pre_hook(lambda module, _: seen.append(module.training))
        arguments = TrainingArguments(
            output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=BATCH, report_to=[], use_cpu=True
        )
        trainer = PonderTrainer(
            model=model, args=arguments, train_dataset=examples(), data_collator=Collator(), lambda_lr=1e-3
        )
        trainer.train()
        assert seen
        assert not any(seen)
        assert torch.equal(model.eval()(**batch, policy=LastStep()).logits, full)


class TestLogs:
    def test_expected_steps_and_kl_are_logged_and_evaluations_tell_the_exit(self, tmp_path: Path) -> None:
        model = make_model("albert")
        trainer = make_trainer(model, tmp_path, eval_dataset=examples(), learning_rate=0.0)
        switch_dropout_off(model)
        trainer.train()
        logged = [entry for entry in trainer.state.log_history if "loss" in entry]
        data = examples()
        with torch.no_grad(), pytest.warns(UserWarning, match="training mode"):
            halting = model.train().unroll(**{k: v for k, v in Collator()(data).items() if k != "labels"}).halting
        prior = model.ponder.prior(model.ponder.num_steps)
        kl = (halting.pmf * (halting.log_pmf - prior.log_pmf)).sum(1).mean()
        steps = (halting.pmf * torch.arange(1, model.ponder.num_steps + 1)).sum(1).mean()
        for entry in logged:
            assert entry["expected_steps"] == pytest.approx(float(steps), rel=1e-4)
            assert entry["kl"] == pytest.approx(float(kl), rel=1e-3)
        assert len(logged) == 2
        exits = model.eval().predict([{"input_ids": row["input_ids"]} for row in data]).exit_step
        assert trainer.evaluate()["eval_exit_step"] == pytest.approx(exits.double().mean().item())

    def test_the_loss_of_every_step_is_logged_where_the_trainer_reports_to(self, tmp_path: Path) -> None:
        class Board(TrainerCallback):
            def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
                seen.append(logs)

        seen: list[dict[str, float]] = []
        model = make_model("bert-of-3")
        trainer = make_trainer(model, tmp_path, learning_rate=0.0, num_train_epochs=1)
        trainer.add_callback(Board)
        switch_dropout_off(model)
        trainer.train()
        (logged,) = [logs for logs in seen if "loss" in logs]
        batch = Collator()(examples())
        logits = model.train()(**batch).step_logits
        for step, of_step in enumerate(logits.unbind(1), start=1):
            expected = nn.functional.cross_entropy(of_step, batch["labels"]).item()
            assert logged[f"loss_step_{step}"] == pytest.approx(expected, rel=1e-4)
        assert f"loss_step_{model.ponder.num_steps + 1}" not in logged


class OfATuple(nn.Module):
    """A model of one's own that answers as `Trainer` takes it: (loss, logits)."""

    def __init__(self) -> None:
        super().__init__()
        self.ponder = make_model("bert-of-3").ponder

    def forward(self, input_ids: Any, attention_mask: Any = None, labels: Any = None) -> tuple[Any, Any]:
        out = self.ponder(input_ids, attention_mask=attention_mask, labels=labels)
        return out.loss, out.outputs


def test_a_model_that_answers_with_a_tuple_is_trained_and_evaluated(tmp_path: Path) -> None:
    model = OfATuple()
    arguments = TrainingArguments(str(tmp_path), max_steps=1, **QUIET)
    trainer = PonderTrainer(
        model, arguments, train_dataset=examples(), eval_dataset=examples(), data_collator=Collator()
    )
    before = weights_of(model)
    assert trainer.train().global_step == 1
    assert moved(before, model)
    assert trainer.evaluate()["eval_loss"] > 0


def test_a_second_training_logs_nothing_of_the_first(tmp_path: Path) -> None:
    # Trap: rows that the first one saw after its last log.
    logged = []
    for runs in (1, 2):
        model = make_model("albert")
        switch_dropout_off(model)
        trainer = make_trainer(
            model, tmp_path, max_steps=3, logging_steps=2, logging_strategy="steps", learning_rate=0.0
        )
        for _ in range(runs):
            trainer.train()
        logged.append([entry["expected_steps"] for entry in trainer.state.log_history if "loss" in entry])
    assert logged[0] == logged[1]


class TestLossesOfTheUsers:
    """A function of one answer would train the last step alone, and nothing would tell."""

    def test_a_function_of_one_answer_is_refused(self, tmp_path: Path) -> None:
        def last(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
            return nn.functional.cross_entropy(outputs.logits, labels)

        with refused("compute_loss_func", "the recipe's objective", "tasks.Classification(weight="):
            make_trainer(make_model("bert-of-3"), tmp_path, compute_loss_func=last)

    def test_the_task_weighs_classes_at_every_step(self, tmp_path: Path) -> None:
        model = make_model("bert-of-3", recipe="pabee")
        switch_dropout_off(model)
        batch, weight = Collator()(examples()[:6]), (1.0, 7.0)
        model.ponder.task = tasks.Classification(weight=weight)
        loss = make_trainer(model, tmp_path).compute_loss(model.train(), dict(batch))
        assert batch["labels"].unique().tolist() == [0, 1]
        each = [
            nn.functional.cross_entropy(logits, batch["labels"], torch.tensor(weight), reduction="none").mean()
            for logits in model(**batch).step_logits.unbind(1)
        ]
        steps = torch.arange(1.0, len(each) + 1)
        assert loss.item() == pytest.approx((steps / steps.sum() @ torch.stack(each)).item(), rel=1e-5)


class TestLabelSmoothing:
    """Trainer's own would smooth the loss of the last step, and the Lambda head would learn nothing."""

    def test_every_step_is_smoothed_and_the_lambda_head_learns(self, tmp_path: Path) -> None:
        model = make_model("bert-of-3")
        switch_dropout_off(model)
        trainer = make_trainer(model, tmp_path, label_smoothing_factor=0.2)
        batch, task = Collator()(examples()[:6]), model.ponder.task
        loss = trainer.compute_loss(model.train(), dict(batch))
        assert model.ponder.task is task, "the model keeps its own"
        model.ponder.task = tasks.Classification(weight=(3.0,) * model.config.num_labels)
        assert trainer.compute_loss(model, dict(batch)) > loss, "and so are classes that are weighed afterwards"
        model.ponder.task = task
        out = model(**{name: value for name, value in batch.items() if name != "labels"})
        halting = StepDistribution.from_hazard_logits(out.hazard_logits)
        each = [
            nn.functional.cross_entropy(of_step, batch["labels"], reduction="none", label_smoothing=0.2)
            for of_step in out.step_logits.unbind(1)
        ]
        prior = model.ponder.prior(model.ponder.num_steps)
        divergence = (halting.pmf * (halting.log_pmf - prior.log_pmf)).sum(1)
        expected = (halting.pmf * torch.stack(each, 1)).sum(1) + model.ponder.objective.beta * divergence
        assert loss.item() == pytest.approx(expected.mean().item(), rel=1e-5)
        loss.backward()
        assert all(bool(weight.grad.any()) for weight in model.ponder.lambda_head.parameters())
        before = weights_of(model)
        trainer.train()
        assert any(name.startswith("ponder.classifier.lambda_head.") for name in moved(before, model))

    def test_labels_that_are_no_classes_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ArgumentError, match="label_smoothing: expected 0"):
            make_trainer(make_model("albert", num_labels=1), tmp_path, label_smoothing_factor=0.1)

    def test_soft_labels_and_none(self, tmp_path: Path) -> None:
        """A float a class, and −100 for a row that has no label, as they come out of a collator."""
        data = [{**example, "labels": [0.25, 0.75]} for example in examples()]
        trainer = make_trainer(
            make_model("bert-of-3"), tmp_path / "soft", data=data, eval_dataset=data, num_train_epochs=1
        )
        trainer.train()
        assert math.isfinite(trainer.evaluate()["eval_loss"])
        model = make_model("bert-of-3").eval()
        some = [{**example, "labels": -100 if n % 2 else example["labels"]} for n, example in enumerate(examples())]
        with torch.no_grad():
            found, expected = model(**Collator()(some)).loss, model(**Collator()(examples()[::2])).loss
        assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_one_call_mixes_the_weights_of_a_stage_with_those_before_it(tmp_path: Path) -> None:
    def trained(mixing: float) -> dict[str, torch.Tensor]:
        model = make_model("bert-of-3", recipe=recipes.get("ponder", mixing=mixing))
        trainer = make_trainer(model, tmp_path / str(mixing))
        trainer.all_stages = True
        trainer.train()
        return weights_of(model)

    whole, mixed, most = trained(1.0), trained(0.5), trained(1e-9)  # the last: all but what was fine-tuned
    last = max(name.split("heads.")[1].split(".")[0] for name in mixed if "head.heads." in name)
    for name, weight in mixed.items():
        is_new = "head.heads." in name and f"heads.{last}." not in name
        expected = whole[name] if is_new else (whole[name] + most[name]) / 2
        torch.testing.assert_close(weight, expected, rtol=1e-4, atol=1e-5)


@two_stages
def test_training_again_goes_on_with_the_first_stage_and_says_so(recipe: str, tmp_path: Path) -> None:
    # Trap: it went on with the last, on all parameters and in silence.
    model = make_model("bert-of-3", recipe=recipe)
    trainer = make_trainer(model, tmp_path, max_steps=1)
    trainer.all_stages = True
    trainer.train()
    trainer.all_stages = False
    with pytest.warns(UserWarning, match=r"none was started.*objective of stage 1 alone, FinalStep\(\)"):
        trainer.train()


def test_nothing_of_the_progress_is_left_and_hazards_that_nobody_teaches_are_told(tmp_path: Path) -> None:
    # Trap: a loop of one's own went on without a word with an objective that changes on the way, at its end.
    model = make_model("bert-of-3", recipe="palbert")
    trainer = make_trainer(model, tmp_path, max_steps=1)
    trainer.train()
    assert model.ponder.progress is None
    model.ponder.objective = FinalStep()
    with pytest.warns(UserWarning, match="no objective of this training reads its hazards"):
        trainer.train()
    model.policy = Confidence(0.9)
    trainer.train()
    model.stages, model.policy = (), Bernoulli(0)
    trainer.all_stages = True
    with pytest.warns(UserWarning, match="no objective of this training reads its hazards"):
        trainer.train()


def test_one_call_trains_all_stages(tmp_path: Path) -> None:
    model = make_model("bert-of-3", recipe="deebert")
    trainer = make_trainer(model, tmp_path)
    trainer.all_stages = True
    before = weights_of(model)
    assert trainer.train().global_step == 2 * EXAMPLES // BATCH
    changed = moved(before, model)
    last = f"ponder.classifier.head.heads.{model.ponder.num_steps - 1}."
    assert any(name.startswith("encoder.") for name in changed), "the first stage trains the encoder"
    assert any(name.startswith("ponder.classifier.head.heads.0.") for name in changed), "the second the early heads"
    assert any(name.startswith(last) for name in changed)
    assert all(weight.requires_grad for weight in model.parameters()), "as it was before"
    with pytest.raises(ArgumentError, match="resume_from_checkpoint: expected checkpoints of a stage"):
        trainer.train(resume_from_checkpoint=True)
    with pytest.raises(ArgumentError, match="resume_from_checkpoint: expected True"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "stage-1" / "checkpoint-1"))


def test_early_stages_are_evaluated_at_full_depth(tmp_path: Path) -> None:
    """Exits that nobody has trained do not choose the best epoch."""
    model = make_model("bert-of-3", recipe="ponder")
    often = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}
    trainer = make_trainer(model, tmp_path, eval_dataset=examples(), **often)
    trainer.all_stages = True
    kept, log = list[dict[str, Any]](), trainer.log
    model.ponder.policy = Confidence(0.0)  # where it counts, all leave at once

    def listen(logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        kept.append(logs)
        log(logs, *args, **kwargs)

    trainer.log = listen
    trainer.train()
    exits = [logs["eval_exit_step"] for logs in kept if "eval_exit_step" in logs]
    assert exits[0] == model.ponder.num_steps
    assert exits[-1] == 1.0
    saved = type(model).from_pretrained(next((tmp_path / "stage-1").glob("checkpoint-*")))
    assert model.ponder.policy == saved.ponder.policy == Confidence(0.0)


class Cut(TrainerCallback):
    """Ends the process, as it were, at a step of a stage."""

    def __init__(self, stage: int, step: int, before_it_is_saved: bool = False) -> None:
        self.stage, self.step, self.before = stage, step, before_it_is_saved

    def on_step_begin(self, args, state, control, **kwargs):
        if self.before and args.output_dir.endswith(f"stage-{self.stage}"):
            raise KeyboardInterrupt

    def on_step_end(self, args, state, control, **kwargs):
        if args.output_dir.endswith(f"stage-{self.stage}") and state.global_step == self.step:
            raise KeyboardInterrupt


class Counts(TrainerCallback):
    def __init__(self, seen: list[str]) -> None:
        self.seen = seen

    def on_step_end(self, args, state, control, **kwargs):
        self.seen.append(Path(args.output_dir).name)


def staged_trainer(folder: Path) -> Any:
    model = make_model("bert-of-3", recipe=recipes.get("ponder"))
    made = make_trainer(model, folder, save_strategy="steps", save_steps=1)
    made.all_stages = True
    return made


@pytest.fixture(scope="module")
def of_a_whole_run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    trainer = staged_trainer(tmp_path_factory.mktemp("whole"))
    trainer.train()
    return weights_of(trainer.model)


@pytest.mark.parametrize("cut_off", [Cut(1, 3), Cut(2, 3), Cut(2, 1, before_it_is_saved=True)])
def test_stages_go_on_where_they_were_cut_off(
    cut_off: Cut, of_a_whole_run: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    """In a model built anew, with the teacher and the mixed weights of one run, and its random numbers."""
    cut = staged_trainer(tmp_path)
    cut.add_callback(cut_off)
    with pytest.raises(KeyboardInterrupt):
        cut.train()
    left = cut.model.ponder
    assert (left.objective, left.progress, left.has_teacher) == (left.stages[0].objective, None, False)
    again = staged_trainer(tmp_path)
    with torch.no_grad():
        for weight in again.model.parameters():
            weight.add_(0.1)  # all of it has to be read
    again.train(resume_from_checkpoint=True)
    for name, weight in weights_of(again.model).items():
        torch.testing.assert_close(weight, of_a_whole_run[name], rtol=1e-5, atol=1e-6, msg=name)
    assert all(weight.requires_grad for weight in again.model.parameters())
    assert [path.parent.name for path in tmp_path.glob("stage-*/end")] == ["stage-1"]


def test_stages_go_on_in_a_copy_of_their_folder(tmp_path: Path) -> None:
    # Trap: what belongs to a run was told by file times, which most copies lose, and the stage began anew in silence.
    cut = staged_trainer(tmp_path)
    cut.add_callback(Cut(2, 3))
    with pytest.raises(KeyboardInterrupt):
        cut.train()
    for path in tmp_path.rglob("*"):
        os.utime(path, (10.0, 20.0 if "end" in path.parts else 10.0))  # copied last
    again, steps = staged_trainer(tmp_path), list[str]()
    again.add_callback(Counts(steps))
    again.train(resume_from_checkpoint=True)
    assert steps == ["stage-2"] * (2 * EXAMPLES // BATCH - 2), "its third step was not saved"


def test_stages_do_not_go_on_from_what_another_run_left(tmp_path: Path) -> None:
    staged_trainer(tmp_path).train()
    other = staged_trainer(tmp_path)
    other.args.num_train_epochs = 1
    other.add_callback(Cut(2, step=1, before_it_is_saved=True))
    with pytest.raises(KeyboardInterrupt):
        other.train()
    left = staged_trainer(tmp_path)
    left.args.num_train_epochs = 1
    steps: list[str] = []
    left.add_callback(Counts(steps))
    left.train(resume_from_checkpoint=True)
    assert steps == ["stage-2"] * (EXAMPLES // BATCH), "the checkpoints of the run before are no state to go on from"
    once_more = staged_trainer(tmp_path)
    once_more.args.max_steps = 1
    once_more.add_callback(Cut(1, step=1))
    with pytest.raises(KeyboardInterrupt):
        once_more.train()
    assert not list(tmp_path.glob("stage-*/end")), "the ends of another run are no state to go on from"


def test_all_stages_spare_what_was_frozen_and_the_checkpoints_of_one_another(tmp_path: Path) -> None:
    model = make_model("bert-of-3", recipe="deebert")
    frozen = model.encoder.embeddings
    frozen.requires_grad_(False)
    before = weights_of(frozen)
    trainer = make_trainer(model, tmp_path, save_strategy="steps", save_steps=1, save_total_limit=1)
    trainer.all_stages = True
    trainer.train()
    assert not moved(before, frozen)
    assert not any(weight.requires_grad for weight in frozen.parameters())
    last = f"checkpoint-{2 * EXAMPLES // BATCH}"
    assert sorted(path.name for path in tmp_path.glob("stage-*")) == ["stage-1", "stage-2"]
    assert all((tmp_path / stage / last / "model.safetensors").is_file() for stage in ("stage-1", "stage-2"))
    assert not list(tmp_path.glob("checkpoint-*"))
    assert trainer.args.output_dir == str(tmp_path)


def test_all_stages_after_one_that_was_started_by_hand_and_an_objective_that_none_trains(tmp_path: Path) -> None:
    model = make_model("bert-of-3", recipe="deebert")
    model.start_stage(model.recipe.stages[1])  # which freezes the encoder
    before = weights_of(model.encoder.encoder.layer[0])
    trainer = make_trainer(model, tmp_path)
    trainer.all_stages = True
    trainer.train()
    assert moved(before, model.encoder.encoder.layer[0])
    model.ponder.objective = DeepSupervision("linear")
    with refused("objective", "leave all_stages out"):
        trainer.train()


@pytest.mark.parametrize("kind", [PonderForTokenClassification, PonderForQuestionAnswering])
def test_the_default_recipe_teaches_every_step_of_tokens_and_spans(kind: Any, tmp_path: Path) -> None:
    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        ids = torch.stack([torch.tensor(row["input_ids"][:3]) for row in rows])
        if kind is PonderForTokenClassification:
            return {"input_ids": ids, "labels": ids % 2}
        return {"input_ids": ids, "start_positions": ids.argmax(1), "end_positions": ids.argmin(1)}

    def apart(all_stages: bool) -> float:
        """How far the answers of the early steps are from the last one's, after the first stage or after all."""
        model = kind.from_encoder(make_encoder("bert-of-3"), "ponder", num_labels=2)
        model.start_stage(model.recipe.stages[0])
        arguments = TrainingArguments(str(tmp_path), **QUIET, num_train_epochs=5, learning_rate=5e-3)
        data = {"train_dataset": examples(), "data_collator": collate}
        PonderTrainer(model=model, args=arguments, **data, all_stages=all_stages).train()
        with torch.no_grad():
            steps = model.eval().ponder.unroll(collate(examples())["input_ids"]).outputs
        return model.ponder.task.distillation_losses(steps[:, 0], steps[:, -1], 1.0).mean().item()

    assert apart(all_stages=True) < apart(all_stages=False) / 2


@pytest.mark.parametrize("given", [{"model_init": lambda: make_model("bert-of-3")}, {"optimizers": (object(), None)}])
def test_stages_and_what_is_made_anew_for_each_are_refused(given: dict[str, Any], tmp_path: Path) -> None:
    model = None if "model_init" in given else make_model("bert-of-3")
    arguments = TrainingArguments(str(tmp_path), report_to=[], use_cpu=True)
    with pytest.raises(ArgumentError, match=f"all_stages: expected False.*True with {next(iter(given))}"):
        PonderTrainer(model=model, args=arguments, all_stages=True, **given)


def test_a_column_that_the_encoder_reads_and_the_model_does_not_hand_on_is_not_dropped(tmp_path: Path) -> None:
    """Trap: Trainer drops in silence what the model's forward does not name, whatever the encoder's own does."""
    rows = [{**row, "position_ids": list(range(len(row["input_ids"]))), "idx": 3} for row in examples()]
    more = {**QUIET, "output_dir": str(tmp_path), "max_steps": 1, "per_device_train_batch_size": 1}
    with refused("position_ids", "the encoder gets no other", "ponder.capture"):
        PonderTrainer(make_model("bert-of-3"), TrainingArguments(**more), train_dataset=rows).train()
    for row in rows:
        del row["position_ids"]
    assert (
        PonderTrainer(make_model("bert-of-3"), TrainingArguments(**more), train_dataset=rows).train().global_step == 1
    )


def test_a_stage_of_which_exits_tell_nothing_runs_to_its_end(tmp_path: Path) -> None:
    """Trap: all its evaluations are alike, and the first, the least trained, was the best."""
    model = make_model("bert-of-3", recipe="deebert", policy=LastStep())
    often = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}
    trainer = make_trainer(model, tmp_path, eval_dataset=examples(), num_train_epochs=4, **often)
    trainer.add_callback(EarlyStoppingCallback(1))
    trainer.all_stages = True
    losses = list[float]()
    trainer.add_callback(Losses(losses))
    trainer.train()
    assert len(set(losses[-4:])) == 1, "four evaluations of the second stage, all alike"
    last = type(model).from_pretrained(max((tmp_path / "stage-2").glob("checkpoint-*"), key=_number))
    assert not moved(weights_of(last), model)
    assert trainer.args.load_best_model_at_end
    assert sum(isinstance(each, EarlyStoppingCallback) for each in trainer.callback_handler.callbacks) == 1


class Losses(TrainerCallback):
    """Keeps what evaluations give."""

    def __init__(self, kept: list[float]) -> None:
        self.kept = kept

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        self.kept.append(metrics["eval_loss"])


def _number(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def test_the_loss_of_an_evaluation_is_the_mean_over_labelled_rows(tmp_path: Path) -> None:
    """Trap: batches were weighed by all of their rows, and rows without a label count 0."""
    some = [{**row, "labels": -100 if n < 13 else row["labels"]} for n, row in enumerate(examples())]
    found = []
    for size in (3, 8, 24):
        trainer = make_trainer(make_model("bert-of-3"), tmp_path, eval_dataset=some, per_device_eval_batch_size=size)
        found.append(trainer.evaluate()["eval_loss"])
    with torch.no_grad():
        expected = make_model("bert-of-3").eval()(**Collator()(some[13:])).loss.item()
    assert found == pytest.approx([expected] * 3, rel=1e-5)


def test_a_learned_prior_does_not_decay(tmp_path: Path) -> None:
    model = make_model("bert-of-3", recipe="palbert")
    model.prior = priors.Learned(model.ponder.num_steps)
    groups = make_trainer(model, tmp_path, weight_decay=0.1).create_optimizer().param_groups
    logits = next(model.ponder.prior_weights.parameters())
    assert [group["weight_decay"] for group in groups if any(each is logits for each in group["params"])] == [0.0]


def test_the_fused_optimiser_is_for_parameters_without_gaps(tmp_path: Path) -> None:
    """Trap: of a view into something wider it moves the neighbours, in silence."""
    assert make_trainer(make_model("bert-of-3"), tmp_path).create_optimizer().defaults["fused"]
    model = make_model("bert-of-3")
    last = model.ponder.head[-1]
    wide = torch.zeros(last.out_features, 2 * last.in_features)
    last.weight = nn.Parameter(wide[:, : last.in_features])
    trainer = make_trainer(model, tmp_path)
    assert not trainer.create_optimizer().defaults["fused"]
    trainer.train()
    assert wide[:, : last.in_features].any(1).all()
    assert not wide[:, last.in_features :].any()


class Pictures(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    def __len__(self) -> int:
        return 16

    def __getitem__(self, place: int) -> dict[str, torch.Tensor]:
        pixels = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(place))
        return {"pixel_values": pixels, "labels": torch.tensor(place % 3)}


def seeing(seed: int) -> PonderForImageClassification:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
    config = ViTConfig(image_size=32, patch_size=8, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **sizes)
    return PonderForImageClassification.from_encoder(ViTModel(config, add_pooling_layer=False), "pabee", num_labels=3)


def test_layers_with_other_names_in_files_are_resumed_and_brought_back(tmp_path: Path) -> None:
    # Trap: Trainer reads the file as it is, and the layers of ViT stayed those of the constructor, or of the last step.
    options = {"max_steps": 4, "save_steps": 2, "save_strategy": "steps", "eval_strategy": "steps", "eval_steps": 2}
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        learning_rate=1e-2,
        load_best_model_at_end=True,
        greater_is_better=True,  # of a loss: the best is the worst, which comes first
        **{**QUIET, **options},
    )
    first = PonderTrainer(model=seeing(0), args=arguments, train_dataset=Pictures(), eval_dataset=Pictures())
    first.train()
    best = PonderForImageClassification.from_pretrained(first.state.best_model_checkpoint)
    assert first.state.best_global_step == 2  # and not the last
    for name, weight in first.model.state_dict().items():
        torch.testing.assert_close(weight, best.state_dict()[name])
    last = PonderForImageClassification.from_pretrained(tmp_path / "checkpoint-4").state_dict()
    arguments.load_best_model_at_end = False
    again = PonderTrainer(model=seeing(1), args=arguments, train_dataset=Pictures(), eval_dataset=Pictures())
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for name, weight in again.model.state_dict().items():
        torch.testing.assert_close(weight, last[name])


def test_rows_of_an_evaluation_come_in_order_also_where_training_groups_them_by_length(tmp_path: Path) -> None:
    """Trap: Transformers shuffles them then, and sampled exits are told by the place of a row."""
    model = make_model("bert")
    rows = [{"input_ids": [5] * (1 + place % 5), "labels": place // 3 % 2} for place in range(12)]
    asked = {"train_sampling_strategy": "group_by_length", "processing_class": make_tokenizer()}
    trainer = make_trainer(model, tmp_path, eval_dataset=rows, **asked)
    found = trainer.predict(rows, ignore_keys=["exit_step"])
    assert found.label_ids.tolist() == [row["labels"] for row in rows]
