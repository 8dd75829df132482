"""What was learned of an encoder serves another one of which nothing differs, and calls that one's layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import RobertaConfig, RobertaModel

from ponder.integrations.transformers import PonderForSequenceClassification
from ponder.parts.capturing import learning
from tests import quick_captures

SIZES: dict[str, Any] = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
IDS = torch.arange(5, 17).reshape(2, 6)


def make(seed: int = 0, **more: Any) -> Any:
    torch.manual_seed(seed)
    encoder = RobertaModel(RobertaConfig(**SIZES, num_hidden_layers=3, max_position_embeddings=20, **more)).eval()
    return PonderForSequenceClassification.from_encoder(encoder, "vanilla", readout="mean").eval()


def test_only_what_differs_is_learned_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    learned: list[Any] = []

    def counted(module: Any, *given: Any, **named: Any) -> Any:
        learned.append(module)
        return learning.learn(module, *given, **named)

    monkeypatch.setattr(quick_captures, "learn", counted)
    monkeypatch.setattr(quick_captures, "_KNOWN", {})
    with quick_captures.quick_captures(), torch.no_grad():
        one, other = make(), make()
        assert learned == [one.encoder]
        expected = one(IDS).logits
        assert torch.equal(other(IDS).logits, expected)
        for weight in other.encoder.encoder.layer[1].parameters():
            weight.mul_(3.0)
        assert torch.equal(one(IDS).logits, expected)
        assert not torch.allclose(other(IDS).logits, expected)
        make(seed=1), make(hidden_act="relu"), make(attn_implementation="eager")
    assert len(learned) == 4
