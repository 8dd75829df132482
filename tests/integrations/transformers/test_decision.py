"""Decision models of Transformers: as a stage, as a reference, and as an encoder that gets exits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import ponder
from ponder.cascade.clients import DecisionStage

transformers = pytest.importorskip("transformers", minversion="5.24")

WORDS = ["[PAD]", "[UNK]", "Yes", "No", "A", "B", "refund", "order", "thanks"]
QUESTIONS: dict[str, Any] = {
    "noul": {"type": "noul", "instructions": "refund ?"},
    "choice": {"type": "choice", "criteria": {"calm": None, "angry": None}},
    "score": {"type": "score", "criteria": ["low", "high"]},
}


def config() -> Any:
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "intermediate_size": 32}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    return transformers.Qwen2Config(vocab_size=40, **sizes, **heads)


@pytest.fixture(scope="module")
def decide() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({w: n for n, w in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]"
    )
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    torch.manual_seed(0)
    model = transformers.Qwen2ForCausalLM(config()).eval()
    return transformers.pipeline(
        "decision",
        model=model,
        tokenizer=tokenizer,
        decision_config=transformers.DecisionConfig(),
    )


@pytest.mark.parametrize("kind", QUESTIONS)
def test_a_decision_pipeline_is_a_stage(decide: Any, kind: str) -> None:
    stage = DecisionStage(decide, QUESTIONS[kind])
    found = stage.predict_proba(["refund order", "thanks"])
    answer = decide({"state": "thanks", "questions": {"it": QUESTIONS[kind]}})["it"]
    probabilities = answer.get("probabilities")
    if kind == "noul":
        probabilities = {"true": answer["noul"], "false": 1.0 - answer["noul"]}
    assert stage.classes_ == tuple(probabilities)
    np.testing.assert_allclose(found[1], list(probabilities.values()), atol=1e-6)
    assert abs(found[0] - found[1]).max() > 1e-6
    labels = [stage.classes_[place] for place in found.argmax(1)]
    assert ponder.Live(stage, 0.0).answer(["refund order", "thanks"]).labels == labels
    cascade = ponder.cascade.Cascade([stage, stage], costs=[1, 2])
    assert list(cascade.predict(["refund order", "thanks"]).labels) == labels


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
