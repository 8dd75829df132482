"""Decision models of Transformers: an encoder that gets exits."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import ponder

transformers = pytest.importorskip("transformers", minversion="5.24")


def config() -> Any:
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "intermediate_size": 32}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    return transformers.Qwen2Config(vocab_size=40, **sizes, **heads)


def test_the_encoder_of_a_decision_model_gets_exits() -> None:
    torch.manual_seed(0)
    made = transformers.models.jev.JevConfig(text_config=config().to_dict())
    decider = transformers.AutoModelForDecision.from_config(made).eval()
    call = {"input_ids": torch.randint(2, 9, (3, 7)), "use_cache": False}
    model = ponder.PonderWrapper.from_recipe(
        decider.model, "pabee", num_outputs=2, example=call, readout=ponder.readouts.last_token
    ).eval()
    with torch.no_grad():
        full = model(**call, policy=ponder.policies.LastStep())
        early = model(**call, policy=ponder.policies.FixedStep(1))
        hidden = decider.model(**call).last_hidden_state[:, -1]
        torch.testing.assert_close(full.outputs, model.head.heads[-1](hidden))
    assert early.exit_step.tolist() == [1, 1, 1]
