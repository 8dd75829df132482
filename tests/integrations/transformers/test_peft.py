"""LoRA by peft: adapters in the encoder, heads trained in full; reloaded and merged, the answers are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainingArguments

from ponder.errors import ArgumentError
from ponder.integrations.transformers import (
    PonderForSequenceClassification,
    PonderForTokenClassification,
    PonderTrainer,
)
from tests.integrations.transformers.test_task_models import answers, batch_for, labels_for, make

peft = pytest.importorskip("peft", reason="peft is not installed")
CASES = [
    (PonderForSequenceClassification, "bert", "palbert", "SEQ_CLS"),
    (PonderForSequenceClassification, "albert", "pabee", "SEQ_CLS"),
    (PonderForTokenClassification, "roberta", "palbert", "TOKEN_CLS"),
]


@pytest.mark.parametrize(("kind", "family", "recipe", "task"), CASES)
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks for it
def test_lora_trains_the_heads_in_full_and_comes_back(
    kind: type[Any], family: str, recipe: str, task: str, tmp_path: Path
) -> None:
    model = make(kind, family, recipe=recipe)
    batch = batch_for(model)
    heads = {id(weight) for weight in model.ponder.head.parameters()}
    config = peft.LoraConfig(
        task_type=task,
        r=2,
        target_modules=["query", "value"],
        modules_to_save=model.head_names,
        init_lora_weights=False,
    )
    wrapped = peft.get_peft_model(model, config)
    trained = {name: weight.detach().clone() for name, weight in wrapped.named_parameters() if weight.requires_grad}
    assert all(".lora_" in name or ".modules_to_save." in name for name in trained)
    assert sum(".ponder.head." in name for name in trained) == len(heads)
    wrapped.train()
    optimizer = torch.optim.SGD([weight for weight in wrapped.parameters() if weight.requires_grad], lr=0.1)
    wrapped(**batch, labels=labels_for(model, batch)).loss.backward()
    optimizer.step()
    moved = {n for n, weight in wrapped.named_parameters() if n in trained and not torch.equal(trained[n], weight)}
    assert {name for name in trained if ".ponder.head." in name} <= moved
    assert any(".lora_" in name for name in moved)

    wrapped.eval().save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(make(kind, family, recipe=recipe), tmp_path / "adapter").eval()
    with torch.no_grad():
        expected, found = wrapped(**batch), again(**batch)
        assert torch.equal(answers(expected), answers(found))
        assert torch.equal(expected.exit_step, found.exit_step)
        merged = again.merge_and_unload()
        assert type(merged) is kind
        torch.testing.assert_close(answers(merged(**batch)), answers(expected), rtol=1e-4, atol=1e-5)
        merged.save_pretrained(tmp_path / "merged")
        loaded = kind.from_pretrained(tmp_path / "merged")
        assert torch.equal(answers(loaded(**batch)), answers(merged(**batch)))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks for it
def test_heads_that_would_never_learn_are_refused(tmp_path: Path) -> None:
    model = make(PonderForSequenceClassification, "bert")
    wrapped = peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query"]))
    arguments = TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    with pytest.raises(ArgumentError, match=r"modules_to_save=model\.head_names"):
        PonderTrainer(model=wrapped, args=arguments)
