"""`PonderTrainer`: stages, rates, joined batches, smoothed labels, checkpoints, and adapters of peft."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments

import ponder
from ponder import objectives, recipes
from ponder.errors import ArgumentError
from ponder.integrations.transformers import PonderForSequenceClassification, PonderTrainer
from ponder.policies import Confidence, FixedStep
from ponder.recipes import Recipe, Stage
from ponder.tasks import Classification
from tests.compare import assert_same_answers, assert_same_weights
from tests.integrations.encoders import (
    HEADS,
    answer,
    make_batch,
    make_encoder,
    make_model,
    make_tokenizer,
)

BATCH = make_batch(labels=True)
ROWS = [{name: value[row] for name, value in BATCH.items()} for row in range(6)] * 2


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    defaults = {
        "num_train_epochs": 2,
        "per_device_train_batch_size": 4,
        "save_strategy": "no",
        "report_to": [],
    }
    return TrainingArguments(
        str(folder), **{**defaults, "disable_tqdm": True, "use_cpu": True, **options}
    )


def make_trainer(
    model: Any, folder: Path, rows: Any = ROWS, *, own: Any = None, **options: Any
) -> PonderTrainer:
    return PonderTrainer(
        model,
        arguments(folder, **options),
        train_dataset=rows,
        eval_dataset=ROWS[:6],
        **(own or {}),
    )


def still(model: Any) -> Any:
    """The model without dropout, whose training is the same every time."""
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    return model


def moved(model: Any, before: dict[str, Tensor]) -> set[str]:
    return {
        name for name, weight in model.state_dict().items() if not torch.equal(before[name], weight)
    }


@pytest.mark.parametrize(
    "recipe", ["palbert", "pondernet", "pabee", "deebert", "fastbert", "frozen", "static"]
)
def test_every_recipe_trains_through_all_its_stages(recipe: str, tmp_path: Path) -> None:
    model = make_model(recipe=recipe)
    before = copy.deepcopy(model.state_dict())
    stages = model.ponder.stages
    trainer = make_trainer(model, tmp_path, learning_rate=1e-2, weight_decay=0.01)
    result = trainer.train()
    assert result.global_step == 6
    assert any(".head." in name for name in moved(model, before))
    assert model.ponder.stages == stages
    assert all(weight.requires_grad for weight in model.parameters())
    found = trainer.evaluate()
    assert 1 <= found["eval_exit_step"] <= 4
    predicted = trainer.predict(ROWS[:6])
    assert predicted.predictions.shape == (6, 3)


def test_it_trains_what_ponder_fit_trains(tmp_path: Path) -> None:
    for recipe in ("palbert", "deebert"):
        model = still(make_model(recipe=recipe))
        other = copy.deepcopy(model)
        rates = {"lambda_lr": 1e-3, "head_lr": 2e-3}
        make_trainer(
            model,
            tmp_path / recipe,
            ROWS[:6],
            own=rates,
            per_device_train_batch_size=6,
            learning_rate=1e-2,
        ).train()
        loader = [BATCH]
        ponder.fit(other.ponder, loader, epochs=2, lr=1e-2, **rates, warmup=0.0)
        # Adam makes steps of the rounding of gradients that are 0, so that weights differ where
        # answers do not.
        found, expected = (each.eval().unroll(**make_batch()).outputs for each in (model, other))
        torch.testing.assert_close(found, expected, atol=2e-3, rtol=1e-2)


def test_accumulated_batches_weigh_as_their_labelled_rows(tmp_path: Path) -> None:
    labels = torch.tensor([0, -100, -100, 1, 2, 0])
    rows = [{**row, "labels": label} for row, label in zip(ROWS[:6], labels, strict=True)]
    states = []
    for size, parts in ((6, 1), (3, 2), (2, 3)):
        model = still(make_model())
        options = {
            "per_device_train_batch_size": size,
            "gradient_accumulation_steps": parts,
            "num_train_epochs": 1,
        }
        make_trainer(
            model, tmp_path, rows, learning_rate=1e-2, optim="sgd", max_grad_norm=0.0, **options
        ).train()
        states.append(model.state_dict())
    for other in states[1:]:
        for name, weight in states[0].items():
            torch.testing.assert_close(other[name], weight, atol=1e-5, rtol=1e-4)
    found = make_trainer(make_model(), tmp_path, per_device_eval_batch_size=4).evaluate(rows)
    expected = make_model()(**{**BATCH, "labels": labels}).loss
    assert found["eval_loss"] == pytest.approx(expected.item(), rel=1e-4)


def test_sampled_exits_depend_on_the_row_and_not_on_its_batch(tmp_path: Path) -> None:
    model = make_model(recipe="pondernet")
    made = [
        make_trainer(model, tmp_path, per_device_eval_batch_size=size).predict(ROWS[:6])
        for size in (1, 4, 6)
    ]
    assert len({each.metrics["test_exit_step"] for each in made}) == 1


def test_smoothed_labels_teach_every_step(tmp_path: Path) -> None:
    model = still(make_model())
    smoothed = copy.deepcopy(model)
    smoothed.ponder.task = Classification(label_smoothing=0.2)
    for each, share in ((model, 0.2), (smoothed, 0.0)):
        make_trainer(each, tmp_path, learning_rate=1e-2, label_smoothing_factor=share).train()
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight, smoothed.state_dict()[name])
    assert model.ponder.task.label_smoothing == 0


@pytest.mark.parametrize("options", [{"label_smoothing_factor": 0.1}, {}])
def test_plain_trainer_never_trains_the_last_head_alone_in_silence(
    options: dict[str, Any], tmp_path: Path
) -> None:
    own = (
        {}
        if options
        else {"compute_loss_func": lambda out, labels, **_: out.logits.logsumexp(-1).mean()}
    )
    trainer = Trainer(make_model(), arguments(tmp_path, **options), train_dataset=ROWS, **own)
    with pytest.raises(ArgumentError, match="the last step alone"):
        trainer.train()
    vanilla = Trainer(
        make_model(recipe="vanilla"), arguments(tmp_path, **options), train_dataset=ROWS, **own
    )
    assert vanilla.train().global_step == 6
    model = make_model().train()
    model(
        **make_batch()
    ).step_logits.square().mean().backward()  # a loss of one's own of every step


class _Stop(TrainerCallback):
    """Ends a training at a step of a stage, as a lost machine does."""

    def __init__(self, stage: str, step: int) -> None:
        self.stage = stage
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if args.output_dir.endswith(self.stage) and state.global_step == self.step:
            raise KeyboardInterrupt


def test_a_training_that_was_cut_off_goes_on(tmp_path: Path) -> None:
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3, "learning_rate": 1e-2}
    whole = still(make_model(recipe="deebert"))
    make_trainer(whole, tmp_path / "whole", **options).train()
    for stage, step in (("stage-1", 4), ("stage-2", 1), ("stage-2", 4)):
        folder, broken, again = (
            tmp_path / f"{stage}-{step}",
            *(still(make_model(recipe="deebert")) for _ in range(2)),
        )
        trainer = make_trainer(broken, folder, own={"callbacks": [_Stop(stage, step)]}, **options)
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
        make_trainer(again, folder, **options).train(resume_from_checkpoint=True)
        for name, weight in whole.state_dict().items():
            torch.testing.assert_close(again.state_dict()[name], weight, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["bert", "vit"])
def test_the_best_checkpoint_comes_back_also_where_files_name_weights_otherwise(
    family: str, tmp_path: Path
) -> None:
    head = "image" if family == "vit" else "sequence"
    model = make_model(head, family)
    batch = make_batch(head, labels=True)
    rows = [{name: value[row] for name, value in batch.items()} for row in range(6)]
    seen: list[dict[str, Tensor]] = []

    class Keep(TrainerCallback):
        def on_evaluate(self, *_: Any, metrics: dict[str, float], **__: Any) -> None:
            seen.append(copy.deepcopy(model.state_dict()))

    trainer = PonderTrainer(
        model,
        arguments(
            tmp_path,
            eval_strategy="epoch",
            save_strategy="epoch",
            load_best_model_at_end=True,
            metric_for_best_model="eval_exit_step",
            greater_is_better=False,
            learning_rate=1e-2,
            num_train_epochs=3,
        ),
        train_dataset=rows,
        eval_dataset=rows,
        callbacks=[Keep(), EarlyStoppingCallback(5)],
    )
    trainer.train()
    best = int(Path(trainer.state.best_model_checkpoint or "").name.rpartition("-")[2]) // 2 - 1
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, seen[best][name]), name


def test_a_column_that_the_encoder_reads_is_kept(tmp_path: Path) -> None:
    trainer = make_trainer(make_model("sequence", "distilbert"), tmp_path)
    trainer._set_signature_columns_if_needed()
    assert {"input_ids", "attention_mask", "labels", "inputs_embeds"} <= set(
        trainer._signature_columns or ()
    )


def test_wrong_losses_and_policies_are_refused_with_a_remedy(tmp_path: Path) -> None:
    own = {"compute_loss_func": lambda out, labels, **_: out.logits.logsumexp(-1).mean()}
    with pytest.raises(ArgumentError, match="the last step alone"):
        make_trainer(make_model(), tmp_path, own=own).train()
    with pytest.raises(ArgumentError, match="policy"):
        make_model().train()(**BATCH, policy=FixedStep(2))


peft = pytest.importorskip("peft", reason="peft is not installed")
LORA = [
    ("sequence", "bert", "palbert", {"task_type": "SEQ_CLS"}),
    ("sequence", "albert", "pabee", {"task_type": "SEQ_CLS"}),
    ("token", "bert", "pabee", {"task_type": "TOKEN_CLS"}),
    ("span", "bert", "palbert", {"task_type": "QUESTION_ANS"}),
    (
        "image",
        "vit",
        "palbert",
        {"modules_to_save": ["classifier"], "target_modules": ["q_proj", "v_proj"]},
    ),
]


@pytest.mark.parametrize(("head", "family", "recipe", "options"), LORA)
def test_lora_trains_adapters_and_heads_and_comes_back(
    head: str, family: str, recipe: str, options: dict[str, Any], tmp_path: Path
) -> None:
    model = make_model(head, family, recipe)
    batch = make_batch(head)
    plain = copy.deepcopy(model)
    config = {"r": 2, "target_modules": ["query", "value"], "init_lora_weights": False, **options}
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**config))
    before = {
        name: weight.detach().clone()
        for name, weight in wrapped.named_parameters()
        if weight.requires_grad
    }
    heads = [
        *plain.ponder.head.parameters(),
        *(plain.ponder.lambda_head or torch.nn.Identity()).parameters(),
    ]
    assert sum(".modules_to_save." in name for name in before) == len(heads)
    rows = make_batch(head, labels=True)
    trainer = PonderTrainer(
        wrapped,
        arguments(tmp_path, learning_rate=1e-2),
        train_dataset=[{name: value[row] for name, value in rows.items()} for row in range(6)],
    )
    trainer.train()
    now = dict(wrapped.named_parameters())
    changed = {name for name, weight in before.items() if not torch.equal(now[name], weight)}
    assert any("lora_" in name for name in changed)
    assert any("modules_to_save" in name for name in changed)
    wrapped.eval().save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    with torch.no_grad():
        expected = wrapped(**batch)
        found = again(**batch)
        assert_same_weights(again, wrapped)
        assert_same_answers(answer(found), answer(expected))
        merged = again.merge_and_unload()
        assert type(merged) is HEADS[head]
        torch.testing.assert_close(answer(merged(**batch)), answer(expected), rtol=1e-3, atol=1e-4)
        merged.save_pretrained(tmp_path / "merged")
        loaded = HEADS[head].from_pretrained(tmp_path / "merged")
        assert_same_weights(loaded, merged)
        assert_same_answers(answer(loaded(**batch)), answer(merged(**batch)))


@pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing.*:FutureWarning"
)  # peft asks the plain encoder
def test_what_peft_cannot_do_here_is_said_in_our_words(tmp_path: Path) -> None:
    prompts = peft.get_peft_model(
        make_model(), peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=4)
    )
    with pytest.raises(ArgumentError, match=r"inputs_embeds: .* Prompt tuning .* use LoRA"):
        prompts(**make_batch())
    frozen = peft.get_peft_model(make_model(), peft.LoraConfig(target_modules=["query"]))
    with pytest.raises(
        ArgumentError, match=r"modules_to_save: .* modules_to_save=model.head_names"
    ):
        PonderTrainer(frozen, arguments(tmp_path), train_dataset=ROWS)
    adapted = peft.get_peft_model(make_model().encoder, peft.LoraConfig(target_modules=["query"]))
    with pytest.raises(ArgumentError, match="merge_and_unload"):
        PonderForSequenceClassification.from_encoder(adapted.base_model.model)


def test_a_recipe_of_ones_own_and_a_tokenizer(tmp_path: Path) -> None:
    own = Recipe(
        "mine",
        "nowhere",
        stages=(Stage(objectives.DeepSupervision("uniform")),),
        policy=Confidence(0.9),
        per_step_heads=True,
    )
    model = PonderForSequenceClassification.from_encoder(make_encoder("bert"), own, num_labels=3)
    rows = [
        {**make_tokenizer()(text), "labels": n % 3}
        for n, text in enumerate(["a b", "c", "d e f", "a"] * 2)
    ]
    trainer = PonderTrainer(
        model, arguments(tmp_path), train_dataset=rows, processing_class=make_tokenizer()
    )
    trainer.train()
    assert recipes.get("pabee").name != model.recipe.name == "mine"
