"""Gradient checkpointing as Transformers switches it on: the steps are checkpointed, and nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.integrations.transformers.encoders import FAMILIES, layers_of, make_batch, make_model, rows_computed
from tests.integrations.transformers.test_ponder_trainer import make_trainer

# Later versions of Transformers 5 know a second name for it; this one, all of them.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*is deprecated:FutureWarning")


def gradients(model: Any) -> tuple[dict[str, torch.Tensor], int]:
    """Of one training batch, and how many row-layers were computed for them."""
    batch = make_batch(model.encoder)
    model.zero_grad()
    torch.manual_seed(0)  # dropout
    with rows_computed(layers_of(model.encoder)) as rows:
        model.train()(**batch, labels=torch.zeros(len(batch["input_ids"]), dtype=torch.long)).loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, sum(rows)


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_are_the_same_and_layers_run_twice(name: str) -> None:
    model = make_model(name)
    expected, once = gradients(model)
    model.gradient_checkpointing_enable()
    assert model.is_gradient_checkpointing
    again, twice = gradients(model)
    torch.testing.assert_close(again, expected, rtol=0.0, atol=0.0)
    assert twice == 2 * once
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing
    assert gradients(model)[1] == once


def test_the_trainer_switches_it_on(tmp_path: Path) -> None:
    model = make_model("bert")
    make_trainer(model, tmp_path, gradient_checkpointing=True, max_steps=2).train()
    assert model.ponder.checkpoint_steps
