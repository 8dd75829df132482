"""LoRA by peft as its tutorials write it: adapters in the encoder, heads trained in full; saved, merged, and equal."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, TrainingArguments

import ponder
from ponder import priors
from ponder.errors import ArgumentError
from ponder.integrations.transformers import (
    FinetunedClassifier,
    PonderForAudioClassification,
    PonderForImageClassification,
    PonderForQuestionAnswering,
    PonderForSequenceClassification,
    PonderForTokenClassification,
    PonderModel,
    PonderTrainer,
    pipeline,
)
from ponder.policies import FixedStep
from tests.integrations.transformers import test_question_answering as spans
from tests.integrations.transformers.encoders import make_tokenizer
from tests.integrations.transformers.test_task_models import answers, batch_for, labels_for, make
from tests.ponder.checks import refused

peft = pytest.importorskip("peft", reason="peft is not installed")

TEXTS, TOKENS, SPANS = PonderForSequenceClassification, PonderForTokenClassification, PonderForQuestionAnswering
IMAGES, SOUND = PonderForImageClassification, PonderForAudioClassification
CLASSIFIER: dict[str, Any] = {"modules_to_save": ["classifier"]}  # what tutorials of tasks without a task_type pass
PROJECTIONS: dict[str, Any] = {**CLASSIFIER, "target_modules": ["q_proj", "v_proj"]}
CASES: list[tuple[type[Any], str, str, dict[str, Any]]] = [
    (TEXTS, "bert", "palbert", {"task_type": "SEQ_CLS"}),
    (TEXTS, "albert", "pabee", {"task_type": "SEQ_CLS"}),
    (TEXTS, "bert", "pabee", {"task_type": "SEQ_CLS", "target_modules": "all-linear"}),
    (TOKENS, "roberta", "palbert", {"task_type": "TOKEN_CLS"}),
    (SPANS, "bert", "palbert", {"task_type": "QUESTION_ANS"}),
    (IMAGES, "vit", "palbert", PROJECTIONS),
    (SOUND, "whisper", "pabee", PROJECTIONS),
    (PonderModel, "bert", "palbert", {"task_type": "FEATURE_EXTRACTION", **CLASSIFIER}),
]
cases = pytest.mark.parametrize(
    ("kind", "family", "recipe", "options"), CASES, ids=[f"{k.__name__}-{f}-{r}" for k, f, r, _ in CASES]
)


def build(kind: type[Any], family: str, recipe: str) -> Any:
    return spans.make(recipe) if kind is SPANS else make(kind, family, recipe=recipe)


def adapted(model: Any, **options: Any) -> Any:
    options = {"r": 2, "target_modules": ["query", "value"], "init_lora_weights": False, **options}
    return peft.get_peft_model(model, peft.LoraConfig(**options))


def labelled(model: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    if isinstance(model, SPANS):
        return {"start_positions": spans.START, "end_positions": spans.END}
    return {"labels": labels_for(model, batch)}


def answer(out: Any) -> Tensor:
    return torch.stack((out.start_logits, out.end_logits), -1) if "start_logits" in out else answers(out)


def trained(model: nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}


@cases
def test_the_tutorial_trains_the_heads_in_full_and_comes_back(
    kind: type[Any], family: str, recipe: str, options: dict[str, Any], tmp_path: Path
) -> None:
    model = build(kind, family, recipe)
    names, batch = list(model.state_dict()), batch_for(model)
    with torch.no_grad():
        plain = answer(model(**batch))
    heads = [weight for part in (model.ponder.head, model.ponder.lambda_head) if part for weight in part.parameters()]
    given = labelled(model, batch)
    wrapped = adapted(model, **options)
    before = trained(wrapped)
    assert all((".lora_" in name) != (".modules_to_save." in name) for name in before), "adapters, or heads in full"
    assert sum(".modules_to_save." in name for name in before) == len(heads)
    optimizer = torch.optim.SGD([weight for weight in wrapped.parameters() if weight.requires_grad], lr=0.1)
    wrapped.train()(**batch, **given).loss.backward()
    optimizer.step()
    moved = {name for name, weight in trained(wrapped).items() if not torch.equal(before[name], weight)}
    heads_in_full = {name for name in before if ".modules_to_save." in name and "lambda_head" not in name}
    if model.ponder.task.name == "span":  # what all positions get more of changes no start and no end
        heads_in_full = {name for name in heads_in_full if not name.endswith(".bias")}
    assert heads_in_full <= moved
    assert any(".lora_" in name for name in moved)
    assert any("lambda_head" in name for name in moved) == (model.ponder.lambda_head is not None)

    wrapped.eval().save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(build(kind, family, recipe), tmp_path / "adapter").eval()
    with torch.no_grad():
        expected, found = wrapped(**batch), again(**batch)
        assert torch.equal(answer(expected), answer(found))
        assert torch.equal(expected.exit_step, found.exit_step)
        assert not torch.equal(answer(expected), plain)
        with again.disable_adapter():
            assert torch.equal(answer(again(**batch)), plain), "without the adapter it is the model that was wrapped"
        merged = again.merge_and_unload()
        assert type(merged) is kind
        assert list(merged.state_dict()) == names
        torch.testing.assert_close(answer(merged(**batch)), answer(expected), rtol=1e-4, atol=1e-5)
        merged.save_pretrained(tmp_path / "merged")
        loaded = kind.from_pretrained(tmp_path / "merged")
        assert torch.equal(answer(loaded(**batch)), answer(merged(**batch)))


def test_two_adapters_have_heads_of_their_own() -> None:
    model = make(TEXTS, "bert")
    batch, labels = batch_for(model), {"labels": torch.tensor([0, 1, 2])}
    wrapped = adapted(model, task_type="SEQ_CLS")
    wrapped.add_adapter("other", peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"]))
    with torch.no_grad():
        first = wrapped.eval()(**batch).logits
    wrapped.set_adapter("other")
    optimizer = torch.optim.SGD([weight for weight in wrapped.parameters() if weight.requires_grad], lr=0.1)
    wrapped.train()(**batch, **labels).loss.backward()
    optimizer.step()
    with torch.no_grad():
        assert not torch.equal(wrapped.eval()(**batch).logits, first)
        wrapped.set_adapter("default")
        assert torch.equal(wrapped(**batch).logits, first)


def test_a_policy_is_no_part_of_an_adapter_and_that_is_told(tmp_path: Path) -> None:
    model = make(TEXTS, "bert")
    model.policy = FixedStep(2)
    wrapped = adapted(model, task_type="SEQ_CLS").eval()
    model.policy = FixedStep(2)  # nothing to tell: it is the one that the model was wrapped with
    with pytest.warns(UserWarning, match="policy: adapters of peft are saved without it"):
        model.policy = FixedStep(1)
    merged = wrapped.merge_and_unload()
    merged.policy = FixedStep(3)  # nothing to tell again
    merged.save_pretrained(tmp_path)
    assert TEXTS.from_pretrained(tmp_path).policy == FixedStep(3)


def test_the_head_has_its_rate_and_the_trainer_trains_what_learns(tmp_path: Path) -> None:
    model = make(TEXTS, "bert")
    wrapped = adapted(model, task_type="SEQ_CLS")
    groups = {group["name"]: len(group["params"]) for group in ponder.parameter_groups(wrapped, 1e-5, 1e-4, 1e-3)}
    assert groups == {"model": 4 * model.ponder.num_steps, "head": 2, "lambda": 6}
    batch = batch_for(model)
    rows = [{name: value[0] for name, value in batch.items()} | {"labels": label} for label in (0, 1)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path), report_to="none", use_cpu=True, max_steps=2, save_strategy="no", disable_tqdm=True
    )
    before = trained(wrapped)
    PonderTrainer(model=wrapped, args=arguments, train_dataset=rows, head_lr=1e-2).train()
    assert all(not torch.equal(before[name], weight) for name, weight in trained(wrapped).items() if ".head." in name)


def test_fit_trains_adapters_and_heads_and_nothing_else() -> None:
    """Trap: a stage that trains all unfreezes what peft froze."""
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    model = make(TEXTS, "bert", recipe="deebert")
    batch = {**batch_for(model), "labels": torch.tensor([0, 1, 2])}
    wrapped = adapted(model, task_type="SEQ_CLS")
    before = {name: weight.detach().clone() for name, weight in wrapped.named_parameters()}
    learns = set(trained(wrapped))
    ponder.fit(wrapped, [batch, batch], epochs=1, held_out=[batch], progress=False)
    assert {n for n, weight in wrapped.named_parameters() if not torch.equal(weight, before[n])} == learns
    with pytest.warns(UserWarning, match="adapters of peft are saved without it"):
        ponder.fit(wrapped, [batch], "pabee", epochs=1, progress=False)
    assert model.config.recipe["policy"] == model.ponder.policy.to_dict(), "the recipe's policy is saved with the model"
    with pytest.raises(ArgumentError, match=r"stage: expected a model without adapters of peft"):
        model.start_stage(model.recipe.stages[0])


@pytest.mark.parametrize("kind", [TEXTS, PonderModel])
def test_heads_that_would_never_learn_are_refused(kind: type[Any], tmp_path: Path) -> None:
    """Where no task_type tells peft of them: at the first step of training, by the trainer before that."""
    model = make(kind, "bert")
    batch = batch_for(model)
    given = labelled(model, batch)
    wrapped = adapted(copy.deepcopy(model))
    with pytest.raises(ArgumentError, match=r"modules_to_save=model\.head_names"):
        wrapped.train()(**batch, **given)
    assert wrapped.eval()(**batch).exit_step.shape == (3,), "it may answer"
    arguments = TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    with pytest.raises(ArgumentError, match=r"modules_to_save=model\.head_names"):
        PonderTrainer(model=wrapped, args=arguments)
    if kind is TEXTS:
        with pytest.raises(ArgumentError, match=r"modules_to_save=model\.head_names"):
            ponder.fit(wrapped, [{**batch, **given}], epochs=1, progress=False)
    peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["query"]), model)  # what model.add_adapter calls
    with pytest.raises(ArgumentError, match=r"got a (Lambda )?head that is frozen"):
        model.train()(**batch, **given)
    named = adapted(make(kind, "bert"), modules_to_save=model.head_names)
    named.train()(**batch, **given).loss.backward()


def test_a_wrapper_of_steps_is_looked_at_by_the_trainer_too(tmp_path: Path) -> None:
    steps = [nn.Linear(8, 8) for _ in range(3)]
    model = ponder.PonderWrapper.from_recipe(steps, "palbert", num_outputs=2, example=torch.randn(2, 8))
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=r"steps\.fns\.\d"))
    arguments = TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    with refused("modules_to_save", "a head that is frozen"):
        PonderTrainer(model=wrapped, args=arguments)


def test_a_pipeline_runs_a_model_with_adapters() -> None:
    model = make(PonderForSequenceClassification, "bert").eval()
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"]))
    classify = pipeline("text-classification", adapted.eval(), tokenizer=make_tokenizer(), policy=FixedStep(2))
    assert classify("a b c", exit_step=True)[0]["exit_step"] == 2


def test_a_learned_prior_that_would_never_learn_is_refused() -> None:
    model = make(TEXTS, "bert")
    model.ponder.prior = priors.Learned(model.ponder.num_steps)
    batch = batch_for(model)
    wrapped = adapted(model, modules_to_save=model.head_names)
    with pytest.raises(ArgumentError, match="prior: expected one that is not learned"):
        wrapped.train()(**batch, **labelled(model, batch))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # of peft's own asking
def test_a_fine_tuned_classifier_is_merged_before_it_gets_exits(tmp_path: Path) -> None:
    """Trap: layers with adapters run as any others, and cannot be read again."""
    sizes = {"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    plain = BertForSequenceClassification(BertConfig(vocab_size=40, **sizes)).eval()
    wrapped = adapted(plain, task_type="SEQ_CLS")
    wrapped.save_pretrained(tmp_path)
    for model in (wrapped, wrapped.base_model.model, tmp_path, str(tmp_path)):
        with refused("model", "adapters of peft", "peft_model.merge_and_unload()"):
            FinetunedClassifier.from_finetuned(model)
    assert FinetunedClassifier.from_finetuned(wrapped.merge_and_unload()).num_steps == 2
