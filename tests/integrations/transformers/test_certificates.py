"""Certificates of models of Transformers: saved with the weights that they are about, and with no others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainingArguments

import ponder
from ponder.engine.certificates import has_stale_certificate
from ponder.errors import ArgumentError
from ponder.integrations.transformers import PonderForSequenceClassification, PonderTrainer
from ponder.policies import Confidence, LastStep
from tests.integrations.transformers.encoders import make_model


@pytest.fixture
def model() -> Any:
    """A model whose policy was certified, for a promise that any policy keeps."""
    made = make_model("bert", num_labels=3).eval()
    made.policy = ponder.control_risk(made.record(rows()), Confidence, level=0.9).policy
    return made


def rows(labelled: bool = False) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 20, (24, 6), generator=generator).tolist()
    made = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in ids]
    return [{**row, "labels": place % 3} for place, row in enumerate(made)] if labelled else made


def test_it_is_saved_and_read_with_its_weights(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    again = PonderForSequenceClassification.from_pretrained(tmp_path)
    assert again.policy == model.policy
    assert not has_stale_certificate(again.ponder)
    assert model.policy.statement in (tmp_path / "README.md").read_text()


def test_training_leaves_it_behind_and_loses_no_weights(model: Any, tmp_path: Path) -> None:
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "run"), num_train_epochs=1, save_strategy="epoch", report_to="none", use_cpu=True,
        eval_strategy="epoch", disable_tqdm=True,
    )  # fmt: skip
    trainer = PonderTrainer(model, arguments, train_dataset=rows(True), eval_dataset=rows(True))
    with (
        pytest.warns(UserWarning, match="certified for the weights before"),
        pytest.warns(UserWarning, match="goes on without the certificate"),
    ):
        trainer.train()
    promised = model.policy
    with pytest.warns(UserWarning, match="goes on without the certificate"):
        model.save_pretrained(tmp_path / "made")
    again = PonderForSequenceClassification.from_pretrained(tmp_path / "made")
    assert again.policy == promised.policy
    assert all(torch.equal(one, other) for one, other in zip(again.parameters(), model.parameters(), strict=True))
    card = (tmp_path / "made" / "README.md").read_text()
    assert "its policy is not certified" in card
    assert promised.statement not in card
    with pytest.raises(ArgumentError, match="with the weights and buffers that it has now"):
        again.policy = promised
    assert model.policy is promised  # in memory nothing was taken away


def test_another_policy_for_a_while_is_no_new_promise(model: Any) -> None:
    with torch.no_grad():
        next(model.parameters()).add_(0.5)
    with model.ponder.temporary_policy(LastStep()):
        pass
    assert has_stale_certificate(model.ponder)


def test_other_weights_are_saved_without_it(model: Any, tmp_path: Path) -> None:
    """Trap: `state_dict=` of averaged weights went into a folder whose card promised what was certified of others."""
    same = {name: value.clone() for name, value in model.state_dict().items()}
    averaged = {name: value * 1.5 if value.is_floating_point() else value for name, value in same.items()}
    model.save_pretrained(tmp_path / "same", state_dict=same)
    assert model.policy.statement in (tmp_path / "same" / "README.md").read_text()
    with pytest.warns(UserWarning, match="goes on without the certificate"):
        model.save_pretrained(tmp_path / "other", state_dict=averaged)
    assert "is not certified" in (tmp_path / "other" / "README.md").read_text()
    assert PonderForSequenceClassification.from_pretrained(tmp_path / "other").policy == model.policy.policy
