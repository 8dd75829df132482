"""Folders: code that travels with an encoder, configurations that are odd, tokenizers, cards, and what is refused."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    BertModel,
    FunnelConfig,
    FunnelModel,
    GPT2Config,
    GPT2Model,
    LayoutLMConfig,
    LayoutLMModel,
    Mamba2Config,
    Mamba2Model,
    T5Config,
    T5GemmaConfig,
    T5GemmaModel,
    T5Model,
)

import ponder
from ponder import policies
from ponder.errors import ArgumentError, CheckpointError
from ponder.integrations.transformers import (
    PonderConfig,
    PonderForSequenceClassification,
    PonderForTokenClassification,
    PonderModel,
)
from ponder.integrations.transformers.texts import tokenize
from ponder.policies import FixedStep, LastStep
from tests.compare import assert_same_answers, assert_same_rows, assert_same_weights, clear_rows
from tests.integrations.encoders import (
    make_batch,
    make_encoder,
    make_model,
    make_plain,
    make_tokenizer,
    some_texts,
    stir,
)

LAST = LastStep()
_GEMMA = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
_CONFIGURATION = """
from transformers import PretrainedConfig


class OwnConfig(PretrainedConfig):
    model_type = "own"

    def __init__(self, width=16, layers=3, vocab_size=40, **kwargs):
        self.width, self.hidden_size, self.layers, self.vocab_size = width, width, layers, vocab_size
        super().__init__(**kwargs)
"""
_MODEL = """
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, SequenceClassifierOutput

from .configuration_own import OwnConfig


class OwnModel(PreTrainedModel):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.words = nn.Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList([nn.Linear(config.width, config.width) for _ in range(config.layers)])
        self.post_init()

    def forward(self, input_ids, attention_mask=None, **kwargs):
        hidden = self.words(input_ids)
        for layer in self.layers:
            hidden = layer(hidden)
        return BaseModelOutput(last_hidden_state=hidden)


class OwnForSequenceClassification(PreTrainedModel):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.model, self.score = OwnModel(config), nn.Linear(config.width, config.num_labels)
        self.post_init()

    def forward(self, input_ids, attention_mask=None, labels=None, **kwargs):
        return SequenceClassifierOutput(logits=self.score(self.model(input_ids).last_hidden_state[:, 0]))
"""


@pytest.fixture
def of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an encoder with code of its own, as its owner saves one."""
    package = tmp_path / "source" / "own_package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "configuration_own.py").write_text(_CONFIGURATION)
    (package / "modeling_own.py").write_text(_MODEL)
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    from own_package.configuration_own import OwnConfig
    from own_package.modeling_own import OwnForSequenceClassification, OwnModel

    OwnConfig.register_for_auto_class()
    OwnModel.register_for_auto_class("AutoModel")
    OwnForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
    OwnModel(OwnConfig()).save_pretrained(tmp_path / "encoder")
    OwnForSequenceClassification(OwnConfig(num_labels=3)).save_pretrained(tmp_path / "finetuned")
    for name in [name for name in sys.modules if name.startswith("own_package")]:
        del sys.modules[name]
    return tmp_path


@pytest.mark.parametrize("kind", ["encoder", "finetuned"])
def test_code_of_an_encoders_own_travels_along_and_is_run_by_who_trusts_it(
    kind: str, of_its_own: Path
) -> None:
    source = of_its_own / kind
    saved = of_its_own / "saved"
    batch = {"input_ids": make_batch()["input_ids"]}
    with pytest.raises(ValueError, match="trust_remote_code"):
        PonderForSequenceClassification.from_encoder(source)
    if kind == "encoder":
        model = PonderForSequenceClassification.from_encoder(
            source, "pabee", num_labels=3, trust_remote_code=True
        )
    else:
        model = PonderForSequenceClassification.from_finetuned(source, trust_remote_code=True)
    model.eval().save_pretrained(saved)
    assert {"configuration_own.py", "modeling_own.py"} <= {path.name for path in saved.iterdir()}
    with pytest.raises(
        CheckpointError, match=r"brings code \(configuration_own.py, modeling_own.py\)"
    ):
        PonderForSequenceClassification.from_pretrained(saved)
    for read in (PonderForSequenceClassification, AutoModelForSequenceClassification):
        again = read.from_pretrained(saved, trust_remote_code=True)
        assert type(again) is PonderForSequenceClassification
        assert type(again.encoder).__module__.startswith("transformers_modules.")
        assert_same_weights(again, model)
        assert_same_answers(again(**batch, policy=LAST).logits, model(**batch, policy=LAST).logits)
    again.save_pretrained(of_its_own / "twice")
    twice = PonderForSequenceClassification.from_pretrained(
        of_its_own / "twice", trust_remote_code=True
    )
    assert_same_weights(twice, model)
    assert_same_answers(twice(**batch, policy=LAST).logits, model(**batch, policy=LAST).logits)


def test_a_class_that_no_file_makes_again_is_refused_before_training() -> None:
    class Doubled(BertModel):
        """A model of a notebook, which nothing would find again."""

    with pytest.raises(
        ArgumentError, match=r"encoder: expected a model that can be read again .*; got a Doubled"
    ):
        PonderForSequenceClassification.from_encoder(Doubled(make_encoder("bert").config))


@pytest.mark.parametrize("family", ["mamba2", "t5", "t5gemma", "funnel", "gpt2", "layoutlm"])
def test_odd_configurations_come_back(family: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = {
        "mamba2": lambda: Mamba2Model(
            Mamba2Config(
                hidden_size=16,
                num_heads=4,
                head_dim=8,
                n_groups=1,
                vocab_size=40,
                state_size=8,
                num_hidden_layers=3,
            )
        ),
        "t5": lambda: T5Model(
            T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=3, num_heads=2)
        ),
        "t5gemma": lambda: T5GemmaModel(T5GemmaConfig(encoder=_GEMMA, decoder=_GEMMA)),
        "funnel": lambda: FunnelModel(
            FunnelConfig(
                vocab_size=40, block_sizes=[1, 2], d_model=16, n_head=2, d_head=8, d_inner=24
            )
        ),
        "gpt2": lambda: GPT2Model(
            GPT2Config(vocab_size=40, n_embd=16, n_layer=3, n_head=2, n_positions=32)
        ),
        "layoutlm": lambda: LayoutLMModel(
            LayoutLMConfig(
                vocab_size=40,
                hidden_size=16,
                num_hidden_layers=3,
                num_attention_heads=2,
                intermediate_size=24,
            )
        ),
    }[family]()
    stir(encoder)
    model = PonderForSequenceClassification.from_encoder(
        encoder.eval(),
        "palbert",
        num_labels=3,
        readout="last_token" if family == "gpt2" else None,
        policy=policies.Quantile(0.6),  # far from 0.5, at which hazards that have not learned begin
    ).eval()
    batch: dict[str, Any] = make_batch()
    if family == "layoutlm":
        with pytest.raises(ArgumentError, match="bbox: expected an input of LayoutLMModel"):
            model(**batch)
        batch["bbox"] = torch.zeros(6, 7, 4, dtype=torch.long)
    with torch.no_grad():
        expected = model(**batch)
        if family == "gpt2":
            tokens = encoder(**batch).last_hidden_state
            last = tokens[torch.arange(6), batch["attention_mask"].sum(1) - 1]
            full = (
                PonderModel.from_encoder(encoder, "vanilla", readout="last_token")
                .eval()(**batch)
                .pooler_output
            )
            assert torch.equal(full, last)
        model.save_pretrained(tmp_path)
        again = PonderForSequenceClassification.from_pretrained(tmp_path)
        assert_same_weights(again, model)
        clear = clear_rows(model.unroll(**batch), model.policy)
        found = again(**batch)
        assert_same_rows(found.exit_step, expected.exit_step, clear)
        assert_same_answers(found.logits[clear], expected.logits[clear])


def test_an_example_of_ones_own_is_saved_with_the_model(tmp_path: Path) -> None:
    encoder = make_encoder("distilbert")
    batch = make_batch()
    model = PonderForSequenceClassification.from_encoder(
        encoder, "pabee", num_labels=3, example=batch
    ).eval()
    model.save_pretrained(tmp_path)
    again = PonderForSequenceClassification.from_pretrained(tmp_path)
    assert again.config.example["input_ids"]["value"] == batch["input_ids"].tolist()
    assert_same_weights(again, model)
    assert_same_answers(again(**batch, policy=LAST).logits, model(**batch, policy=LAST).logits)


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_an_export_breaks_nothing_that_is_read_later(family: str, tmp_path: Path) -> None:
    model = make_model("sequence", family, policy=FixedStep(2))
    batch = make_batch()
    model.save_pretrained(tmp_path)
    context = {"attention_mask": batch["attention_mask"]}
    with contextlib.suppress(
        RuntimeError, NameError
    ):  # of a captured encoder only its parts are exported
        exported = torch.export.export(model.ponder, (batch["input_ids"],), context, strict=False)
        out = exported.module()(batch["input_ids"], **context)
        torch.testing.assert_close(out.outputs, model(**batch).logits, atol=1e-5, rtol=1e-4)
    again = PonderForSequenceClassification.from_pretrained(tmp_path)
    assert_same_weights(again, model)
    assert_same_answers(again(**batch).logits, model(**batch).logits)


def test_the_tokenizer_stays_beside_the_model(tmp_path: Path) -> None:
    make_encoder("bert").save_pretrained(tmp_path / "encoder")
    assert PonderForSequenceClassification.from_encoder(str(tmp_path / "encoder")).tokenizer is None
    make_tokenizer().save_pretrained(tmp_path / "encoder")
    names = {0: "no", 1: "maybe", 2: "yes"}
    model = PonderForSequenceClassification.from_encoder(
        str(tmp_path / "encoder"), "pabee", id2label=names
    )
    assert model.training
    answers = model.predict(["a b", "c"])
    assert model.training, "predict leaves the mode as it was"
    assert set(answers.labels) <= set(names.values())
    assert answers.outputs.shape == (2, 3)
    assert answers.probabilities.max() <= 1
    model.save_pretrained(tmp_path / "saved")
    again = PonderForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert_same_weights(again, model)
    clear = clear_rows(model.record(["a b", "c"]), model.policy)
    assert_same_rows(again.predict(["a b", "c"]).labels, answers.labels, clear)
    pairs = again.predict([("a b", "c"), ("d", "e f")], policy=FixedStep(1))
    assert pairs.exit_step.tolist() == [1, 1]
    assert torch.equal(
        again.predict([again.tokenizer("a b")]).outputs, again.predict(["a b"]).outputs
    )
    long = again.predict([" ".join("a" * 100)])
    assert long.outputs.isfinite().all(), "cut to the positions of the encoder"


def test_a_text_is_cut_if_it_is_longer_than_the_model_takes() -> None:
    tokenizer = make_tokenizer()
    texts = [" ".join("a" * words) for words in range(2, 8)]
    lengths = [len(ids) for ids in tokenizer(texts)["input_ids"]]
    found = tokenize(tokenizer, texts, longest=lengths[2])
    assert found.cut == [False] * 3 + [True] * 3
    assert [len(row["input_ids"]) for row in found.rows] == [*lengths[:3], *[lengths[2]] * 3]


def test_the_configuration_of_an_encoder_is_left_as_it_was() -> None:
    encoder = make_encoder("bert", attn_implementation="eager")
    before = encoder.config.to_dict()
    model = PonderForSequenceClassification.from_encoder(encoder)
    assert encoder.config.to_dict() == before
    assert encoder.config._attn_implementation == "eager"
    assert (model.config.hidden_size, model.config.num_hidden_layers, model.config.vocab_size) == (
        16,
        4,
        40,
    )


def test_weights_come_in_the_type_and_attention_that_are_asked_for(tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path)
    for dtype in (torch.bfloat16, torch.float32):
        model = PonderForSequenceClassification.from_pretrained(
            tmp_path, dtype=dtype, attn_implementation="eager"
        )
        assert {weight.dtype for weight in model.parameters()} == {dtype}
        assert model.encoder.config._attn_implementation == "eager"
    make_encoder("bert").save_pretrained(tmp_path / "encoder")
    model = PonderForSequenceClassification.from_encoder(tmp_path / "encoder", dtype=torch.bfloat16)
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}


def test_resized_embeddings_are_saved(tmp_path: Path) -> None:
    model = make_model()
    model.resize_token_embeddings(50)
    ids = {"input_ids": torch.tensor([[45, 49]])}
    model.save_pretrained(tmp_path)
    again = PonderForSequenceClassification.from_pretrained(tmp_path)
    assert again.config.vocab_size == 50
    assert_same_weights(again, model)
    assert_same_answers(again(**ids, policy=LAST).logits, model(**ids, policy=LAST).logits)


def test_what_is_assigned_is_saved(tmp_path: Path) -> None:
    model = make_model(recipe="palbert")
    model.policy = policies.Quantile(0.9) | FixedStep(3)
    model.ponder.prior = type(model.ponder.prior)(0.3)
    model.ponder.objective = ponder.objectives.Ponder(0.1)
    model.save_pretrained(tmp_path)
    again = PonderForSequenceClassification.from_pretrained(tmp_path)
    assert again.policy == model.policy
    assert again.ponder.prior == model.ponder.prior
    assert again.ponder.objective == model.ponder.objective


def test_a_card_says_what_was_measured_and_promised(tmp_path: Path) -> None:
    model = make_model()
    batch = make_batch(labels=True)
    rows = [{name: value[row] for name, value in batch.items()} for row in range(6)]
    model.note_evaluation(model.record(rows), "Six rows, made up")
    model.save_pretrained(tmp_path / "saved")
    card = ModelCard.load(tmp_path / "saved" / "README.md")
    result = card.data.eval_results[0]
    assert result.dataset_name == "Six rows, made up"
    assert result.metric_type == "accuracy"
    assert "ponder" in card.data.tags
    assert PonderConfig.from_pretrained(tmp_path / "saved").evaluations[0]["rows"] == 6
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "README.md").write_text("---\ntags:\n- mine\n---\nMy own words.")
    model.save_pretrained(tmp_path / "theirs")
    assert "My own words." in (tmp_path / "theirs" / "README.md").read_text()


def test_a_folder_of_another_class_is_refused_with_a_remedy(tmp_path: Path) -> None:
    make_model("token").save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="Load it with PonderForTokenClassification"):
        PonderForSequenceClassification.from_pretrained(tmp_path)
    assert (
        type(PonderForTokenClassification.from_pretrained(tmp_path)) is PonderForTokenClassification
    )
    with pytest.raises(
        ArgumentError, match="encoder: expected a bare encoder; got BertForSequenceClassification"
    ):
        PonderForSequenceClassification.from_encoder(make_plain())
    with pytest.raises(ArgumentError, match="readout: expected one of mean"):
        PonderForSequenceClassification.from_encoder(make_encoder("distilbert"), readout="pooler")
    with pytest.raises(ArgumentError, match="recipe: expected one of"):
        PonderForSequenceClassification.from_encoder(make_encoder("bert"), "palbrt")
    with pytest.raises(ArgumentError, match="output_hidden_states"):
        make_model()(**make_batch(), output_hidden_states=True)
    with pytest.raises(
        ArgumentError, match="input_ids: expected an input of BertModel; got attention_mask"
    ):
        make_model()(attention_mask=make_batch()["attention_mask"])
    assert AutoConfig.from_pretrained(tmp_path).model_type == "ponder"
    assert type(AutoModel.from_pretrained(tmp_path)) is PonderModel


@pytest.mark.slow
def test_an_export_answers_as_the_model_does(tmp_path: Path) -> None:
    model = make_model("sequence", "distilbert", policy=policies.Confidence(0.6))
    model.tokenizer = make_tokenizer()
    texts = some_texts(20)
    exported = ponder.export.OnnxModel(ponder.export.onnx(model, tmp_path / "export"))
    found = exported.predict(texts)
    expected = model.predict(texts)
    clear = clear_rows(model.record(texts), model.policy)
    assert_same_rows(found.exit_step, expected.exit_step, clear)
    assert_same_answers(found.outputs[clear], expected.outputs[clear], atol=1e-5)
    with pytest.raises(ArgumentError, match="reads pixel_values"):
        ponder.export.onnx(make_model("image", "vit"), tmp_path / "none")
