"""`from_encoder`: from a folder, an instance or an embedded backbone, for every recipe and kind of labels."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModel,
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    PreTrainedModel,
    ResNetConfig,
    ResNetModel,
)

from benchmarks import backbones
from ponder import PerStep, policies, recipes
from ponder.errors import ArgumentError, ArgumentTypeError, CheckpointError
from ponder.integrations.transformers import (
    EncoderAdapter,
    PonderForSequenceClassification,
    PonderForTokenClassification,
    adapters,
)
from ponder.integrations.transformers.adapter import LayerStep
from ponder.parts.heads import NormPerStep
from ponder.parts.steps import Steps
from tests.integrations.transformers.encoders import (
    CONFIGS,
    FAMILIES,
    RECIPES,
    WIDTH,
    make_batch,
    make_encoder,
    rows_computed,
)

build = PonderForSequenceClassification.from_encoder
families = pytest.mark.parametrize("name", FAMILIES)
every_recipe = pytest.mark.parametrize("recipe", RECIPES)
KINDS = {
    "regression": (1, None, torch.randn(6, generator=torch.Generator().manual_seed(0))),
    "two classes": (2, None, torch.tensor([0, 1, 1, 0, 1, 0])),
    "three classes": (3, None, torch.tensor([0, 1, 2, 2, 1, 0])),
    "several regressions": (2, "regression", torch.randn(6, 2, generator=torch.Generator().manual_seed(0))),
    "multilabel": (3, "multi_label_classification", torch.eye(3).repeat(2, 1)),
}
CLASSES_ONLY = {"deebert", "fastbert"}


def equal_states(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize("start", [True, False])
def test_a_lambda_head_starts_at_the_hazard_of_its_recipe(start: bool, tmp_path: Path) -> None:
    # TRAP: Transformers draws the weights of all linear layers anew, and sets their biases to 0.
    recipe = recipes.get("palbert-joint", start=start)
    model = build(make_encoder("bert"), recipe).eval()
    assert model.recipe.prior is not None
    expected = float(model.recipe.prior(model.ponder.num_steps).pmf[0]) if start else 0.5
    lambda_head = model.ponder.lambda_head
    assert lambda_head is not None
    with torch.no_grad():
        assert lambda_head(torch.zeros(1, 2 * WIDTH)).sigmoid().item() == pytest.approx(expected, abs=1e-3)
        lambda_head.layers[-1].bias.fill_(3.0)  # as training would
    model.save_pretrained(tmp_path)
    loaded = PonderForSequenceClassification.from_pretrained(tmp_path)
    assert equal_states(model.state_dict(), loaded.state_dict())


@families
def test_a_head_that_is_shared_behind_norms_comes_back(name: str, tmp_path: Path) -> None:
    model = build(make_encoder(name), recipes.get("ponder", heads="norms"))
    norms = model.ponder.head.heads[:-1]
    with torch.no_grad():
        for norm in norms:
            norm.weight.normal_()  # as training would
    model.save_pretrained(tmp_path)
    loaded = PonderForSequenceClassification.from_pretrained(tmp_path)
    assert isinstance(loaded.ponder.head, NormPerStep)
    assert equal_states(model.state_dict(), loaded.state_dict())


class TestSources:
    @families
    @torch.no_grad()
    def test_a_folder_with_a_plain_checkpoint(self, name: str, tmp_path: Path) -> None:
        encoder = make_encoder(name)
        encoder.save_pretrained(tmp_path)
        model = build(tmp_path, "vanilla").eval()
        assert equal_states(model.encoder.state_dict(), encoder.state_dict())
        batch = make_batch(encoder)
        plain = AutoModel.from_pretrained(tmp_path).eval()(**batch)
        features = model.unroll(**batch, keep_features=True).features
        torch.testing.assert_close(features[:, -1], plain.pooler_output, atol=1e-6, rtol=1e-6)
        assert build(str(tmp_path), "vanilla").config.encoder == model.config.encoder

    @families
    def test_an_encoder_is_used_and_not_copied(self, name: str) -> None:
        encoder = make_encoder(name)
        before = copy.deepcopy(encoder.state_dict())
        model = build(encoder)
        assert model.encoder is encoder
        assert equal_states(encoder.state_dict(), before)

    @pytest.mark.parametrize(
        "change",
        [
            lambda encoder: encoder,
            copy.deepcopy,
            lambda encoder: pickle.loads(pickle.dumps(encoder)),
            lambda encoder: encoder.resize_token_embeddings(50) and encoder,
            lambda encoder: setattr(encoder.pooler, "dense", nn.Linear(WIDTH, WIDTH)) or encoder,
            lambda encoder: setattr(encoder.encoder.layer[1].intermediate, "dense", nn.Linear(WIDTH, 24)) or encoder,
        ],
        ids=["as it is", "copied", "pickled", "more tokens", "own pooler", "own layer"],
    )
    def test_no_weight_of_a_given_encoder_is_drawn_anew(self, change: Callable[[Any], PreTrainedModel]) -> None:
        """Trap: weights that the framework takes for missing are initialised when the model is put together."""
        encoder = change(make_encoder("bert"))
        before = copy.deepcopy(encoder.state_dict())
        assert equal_states(build(encoder).encoder.state_dict(), before)

    @pytest.mark.parametrize("kind", ["folder", "evaluated"])
    def test_the_encoder_is_in_training_mode_too(self, kind: str, tmp_path: Path) -> None:
        """Trap: Transformers gives it in evaluation mode, and it was fine-tuned without dropout."""
        encoder = make_encoder("bert").eval()
        encoder.save_pretrained(tmp_path)
        model = PonderForSequenceClassification.from_encoder(tmp_path if kind == "folder" else encoder)
        assert all(module.training for module in model.modules())

    def test_weights_of_the_heads_are_initialised_like_the_encoders(self) -> None:
        model = build(make_encoder("bert"), "palbert")
        for part in (*model.ponder.head.modules(), *model.ponder.lambda_head.modules()):
            if isinstance(part, nn.Linear):
                assert part.weight.abs().max() < 0.2, "initializer_range is 0.02"
                assert not part.bias.any()

    def test_an_encoder_in_bfloat16_gets_heads_in_bfloat16(self) -> None:
        model = build(make_encoder("bert").to(torch.bfloat16)).eval()
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
        assert model(**make_batch(model.encoder)).logits.dtype == torch.bfloat16

    def test_a_folder_of_a_model_with_heads_gives_its_encoder(self, tmp_path: Path) -> None:
        headed = BertForSequenceClassification(CONFIGS["bert"]())
        headed.save_pretrained(tmp_path)
        with pytest.warns(UserWarning, match="head of this BertForSequenceClassification is left out.* from_finetuned"):
            assert equal_states(build(tmp_path).encoder.state_dict(), headed.bert.state_dict())

    def test_a_folder_of_a_fine_tuned_model_names_the_labels_where_the_caller_does_not(self, tmp_path: Path) -> None:
        config = CONFIGS["bert"]()
        names = dict(enumerate(("card", "loan", "fees")))
        config.id2label, config.label2id = names, {name: place for place, name in names.items()}
        BertForSequenceClassification(config).save_pretrained(tmp_path / "texts")
        BertForTokenClassification(config).save_pretrained(tmp_path / "tokens")

        def made(name: str, kind: Any = PonderForSequenceClassification, **options: Any) -> Any:
            with pytest.warns(UserWarning, match="is left out"):
                return kind.from_encoder(tmp_path / name, "pabee", **options)

        kept, own, others = made("texts"), made("texts", num_labels=4), made("tokens")
        tokens = made("tokens", PonderForTokenClassification)
        assert kept.config.id2label == tokens.config.id2label == names
        assert kept.config.label2id == config.label2id
        assert (kept.config.num_labels, own.config.num_labels, others.config.num_labels) == (3, 4, 2)
        assert kept.config.problem_type == "single_label_classification"
        config.problem_type = "multi_label_classification"
        BertForSequenceClassification(config).save_pretrained(tmp_path / "several")
        assert made("several").config.problem_type == "multi_label_classification"

    def test_a_folder_in_half_precision_is_read_in_full(self, tmp_path: Path) -> None:
        make_encoder("bert").to(torch.bfloat16).save_pretrained(tmp_path)
        assert {parameter.dtype for parameter in build(tmp_path).parameters()} == {torch.float32}


class TestMiniLM:
    @torch.no_grad()
    def test_the_embedded_backbone(self) -> None:
        folder = Path(backbones.resolve("minilm"))
        model = build(folder, "palbert", num_labels=3).eval()
        assert model.ponder.num_steps == 6
        assert model.recipe.prior.rate == pytest.approx(1 - 0.9**2), "0.1 of 12 steps"
        plain = AutoModel.from_pretrained(folder, use_safetensors=True).eval()
        ids = torch.randint(1000, 30000, (3, 9), generator=torch.Generator().manual_seed(0))
        mask = torch.tensor([[1] * 9, [1] * 4 + [0] * 5, [1] * 7 + [0] * 2])
        expected = plain(ids, mask)
        assert torch.isfinite(expected.pooler_output).all()
        features = model.unroll(ids, attention_mask=mask, keep_features=True).features
        torch.testing.assert_close(features[:, -1], expected.pooler_output, atol=1e-5, rtol=1e-5)
        with rows_computed(list(model.encoder.encoder.layer)) as calls:
            out = model(ids, mask, policy=policies.Bernoulli(0))
        assert sum(calls) == out.exit_step.sum()
        replayed = model.unroll(ids, attention_mask=mask).replay(policies.Bernoulli(0))
        assert torch.equal(replayed.exit_step, out.exit_step)


class TestRecipesAndLabels:
    @pytest.mark.parametrize("kind", KINDS)
    @every_recipe
    def test_every_recipe_serves_every_kind_of_labels_or_says_why_not(self, recipe: str, kind: str) -> None:
        num_labels, problem, labels = KINDS[kind]
        encoder = make_encoder("bert")
        if recipe in CLASSES_ONLY and not kind.endswith("classes"):
            with pytest.raises(ArgumentError, match=r"policy: expected class logits .*Patience|Patience.*hazard"):
                build(encoder, recipe, num_labels, problem_type=problem)
            return
        model = build(encoder, recipe, num_labels, problem_type=problem)
        batch = make_batch(encoder)
        for stage in model.recipe.stages:
            model.start_stage(stage)
            out = model.train()(**batch, labels=labels)
            assert out.step_logits.shape == (6, 5, num_labels)
            assert (out.hazard_logits is None) == (model.ponder.lambda_head is None)
            assert torch.equal(out.logits, out.step_logits[:, -1])
            assert out.exit_step.tolist() == [5] * 6
            assert out.loss.isfinite()
            out.loss.backward()
        out = model.eval()(**batch, labels=labels)
        assert out.logits.shape == (6, num_labels)
        assert out.step_logits is None
        assert out.hazard_logits is None
        loss = {
            "regression": lambda: nn.functional.mse_loss(out.logits.reshape(labels.shape), labels),
            "several regressions": lambda: nn.functional.mse_loss(out.logits, labels),
            "multilabel": lambda: nn.functional.binary_cross_entropy_with_logits(out.logits, labels),
        }.get(kind, lambda: nn.functional.cross_entropy(out.logits, labels))()
        torch.testing.assert_close(out.loss, loss)

    @every_recipe
    def test_a_recipe_is_scaled_to_the_encoder(self, recipe: str) -> None:
        for name, num_steps in (("bert", 5), ("albert", 6), ("albert-3-uneven-groups-inner-2", 7)):
            model = build(make_encoder(name), recipe)
            scaled = recipes.get(recipe).for_steps(num_steps).for_task("classification")
            assert model.recipe == scaled
            assert model.policy == scaled.policy
            assert model.ponder.prior == scaled.prior
            assert model.ponder.objective == scaled.stages[0].objective
            assert isinstance(model.ponder.head, PerStep) == scaled.per_step_heads

    def test_a_recipe_exits_by_the_policy_that_it_has_for_the_task(self) -> None:
        for kwargs, expected in (
            ({"num_labels": 2}, policies.Confidence),
            ({"num_labels": 1}, policies.Quantile),
            ({"num_labels": 3, "problem_type": "multi_label_classification"}, policies.Quantile),
        ):
            model = build(make_encoder("bert"), "ponder", **kwargs)
            assert type(model.policy) is expected
            assert model.recipe.policy == model.policy

    def test_what_a_recipe_of_12_steps_becomes_on_6(self) -> None:
        assert build(make_encoder("albert"), "pabee").policy.patience == 3
        rate = build(make_encoder("albert"), "pondernet").ponder.prior.rate
        assert rate == pytest.approx(0.19)

    def test_a_recipe_with_arguments_and_a_policy_of_ones_own(self) -> None:
        own = recipes.palbert(hidden_concat=False, deep_lambda=False, beta=0.1)
        model = build(make_encoder("bert"), own, policy=policies.Entropy(0.3) | policies.Quantile(0.2))
        assert model.ponder.lambda_head.history == 1
        assert model.ponder.objective.beta == 0.1
        assert model.policy == policies.Entropy(0.3) | policies.Quantile(0.2)
        assert policies.from_dict(model.config.recipe["policy"]) == model.policy
        assert model.recipe.policy == model.policy

    @pytest.mark.parametrize("recipe", sorted(CLASSES_ONLY))
    def test_a_policy_of_ones_own_stands_in_for_one_that_the_task_has_not(self, recipe: str, tmp_path: Path) -> None:
        """The error said "Use Patience", and with it came again."""
        own = policies.Patience(1, tolerance=0.1)
        for labels, problem in ((1, None), (3, "multi_label_classification")):
            model = build(make_encoder("bert"), recipe, labels, problem_type=problem, policy=own)
            assert model.policy == model.recipe.policy == own
        model.save_pretrained(tmp_path)
        assert PonderForSequenceClassification.from_pretrained(tmp_path).policy == own
        with pytest.raises(ArgumentError, match="policy: expected class logits"):
            build(make_encoder("bert"), "vanilla", 1, policy=policies.Entropy(0.2))

    def test_fields_of_the_configuration(self) -> None:
        names = {0: "no", 1: "yes", 2: "maybe"}
        model = build(
            make_encoder("bert"),
            num_labels=3,
            readout="mean",
            head_dropout=0.3,
            id2label=names,
            label2id={name: number for number, name in names.items()},
        )
        config = model.config
        assert config.model_type == "ponder"
        assert (config.num_labels, config.id2label, config.label2id["maybe"]) == (3, names, 2)
        assert (config.readout, config.head_dropout) == ("mean", 0.3)
        assert config.problem_type == "single_label_classification"
        assert [part.p for part in model.ponder.head if isinstance(part, nn.Dropout)] == [0.3]
        assert isinstance(config.encoder_config(), BertConfig)
        assert config.encoder_config().hidden_size == WIDTH

    def test_what_the_defaults_are(self) -> None:
        config = build(make_encoder("bert")).config
        assert (config.recipe["name"], config.num_labels, config.readout) == ("palbert", 2, "pooler")
        assert build(make_encoder("bert"), num_labels=1).config.problem_type == "regression"


class TestRefusals:
    def test_an_unknown_recipe_names_the_known(self) -> None:
        with pytest.raises(ArgumentError) as caught:
            build(make_encoder("bert"), "palbret")
        assert "'palbret'" in str(caught.value)
        assert all(name in str(caught.value) for name in recipes.names())

    @pytest.mark.parametrize("readout", ["cls", "Pooler", ""])
    def test_an_unknown_readout_names_the_known(self, readout: Any) -> None:
        with pytest.raises(ArgumentError, match="readout: expected pooler or mean") as caught:
            build(make_encoder("bert"), readout=readout)
        assert repr(readout) in str(caught.value)

    def test_an_unknown_problem_type_names_the_known(self) -> None:
        with pytest.raises(ArgumentError, match=r"problem_type.*regression.*'ranking'"):
            build(make_encoder("bert"), problem_type="ranking")

    @pytest.mark.parametrize("num_labels", [0, -1])
    def test_a_model_without_labels(self, num_labels: int) -> None:
        with pytest.raises(ArgumentError, match="num_labels"):
            build(make_encoder("bert"), num_labels=num_labels)

    def test_an_encoder_without_its_pooler(self) -> None:
        for bare in (AutoModel.from_config(CONFIGS[name](), add_pooling_layer=False) for name in FAMILIES):
            with pytest.raises(ArgumentError, match=r"without a pooler.*readout='mean'"):
                build(bare, readout="pooler")
            model = build(bare).eval()
            assert model.config.readout == "mean", "where nobody says"
            assert model(**make_batch(bare)).logits.shape == (6, 2)

    def test_a_decoder(self) -> None:
        with pytest.raises(ArgumentError, match=r"is_decoder=True.*is_decoder=False"):
            build(BertModel(BertConfig(hidden_size=WIDTH, num_attention_heads=2, vocab_size=9, is_decoder=True)))

    def test_a_model_that_has_a_head_already(self) -> None:
        headed = BertForSequenceClassification(CONFIGS["bert"]())
        with pytest.raises(ArgumentError, match=r"bare encoder.*BertForSequenceClassification.*base_model"):
            build(headed)
        assert build(headed.base_model).encoder is headed.bert

    def test_something_that_is_no_encoder(self) -> None:
        with pytest.raises(ArgumentTypeError, match=r"encoder: expected .*Linear"):
            build(nn.Linear(2, 2))

    @pytest.mark.parametrize("source", ["albert-base-v2", "somebody/something", "no/such/folder"])
    def test_a_name_that_leads_nowhere_without_a_network(self, source: str) -> None:
        with pytest.raises(CheckpointError, match="hub name or folder") as caught:
            build(source)
        assert repr(source) in str(caught.value)
        assert "with a network" in str(caught.value)
        assert "there is no such folder" in str(caught.value)
        assert ("no hub of models can be reached" in str(caught.value)) == (source.count("/") < 2)

    def test_a_name_of_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "model").write_text("")
        with pytest.raises(CheckpointError, match="it is a file"):
            build(str(tmp_path / "model"))


class TestAnotherFamily:
    """A family without an adapter of its own is captured; one may be written for it."""

    @pytest.fixture
    def distilbert(self) -> DistilBertModel:
        config = DistilBertConfig(
            vocab_size=40, dim=16, n_layers=3, n_heads=2, hidden_dim=24, max_position_embeddings=9
        )
        return DistilBertModel(config).eval()

    @pytest.fixture
    def _own_registry(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(adapters, "_factories", dict(adapters._factories))

    @torch.no_grad()
    def test_it_needs_no_adapter(self, distilbert: DistilBertModel, tmp_path: Path) -> None:
        distilbert.save_pretrained(tmp_path)
        ids = torch.randint(3, 40, (2, 6))
        for source in (distilbert, tmp_path):
            model = build(source).eval()
            features = model.unroll(ids, keep_features=True).features
            torch.testing.assert_close(features[:, -1], distilbert(ids).last_hidden_state.mean(1))

    def test_what_cannot_be_captured_says_why(self) -> None:
        convolutions = ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1]))
        with pytest.raises(ArgumentError, match=r"keep the shape of the hidden state.*'encoder\.stages'"):
            build(convolutions)

    @pytest.mark.usefixtures("_own_registry")
    @torch.no_grad()
    def test_an_adapter_of_a_few_lines_is_enough(self, distilbert: DistilBertModel, tmp_path: Path) -> None:
        @adapters.register("distilbert")
        class DistilBertAdapter(EncoderAdapter):
            def embed(self, input_ids: torch.Tensor, token_type_ids: torch.Tensor | None) -> torch.Tensor:
                return self.encoder.embeddings(input_ids)

            def steps(self) -> Steps:
                return Steps([LayerStep(layer) for layer in self.encoder.transformer.layer])

            def pool(self, hidden: torch.Tensor) -> torch.Tensor:
                return hidden[:, 0]

        batch = {
            "input_ids": torch.randint(3, 40, (4, 6)),
            "attention_mask": (torch.arange(6) < torch.tensor([[6], [2], [4], [1]])).long(),
        }
        plain = distilbert(**batch).last_hidden_state
        for readout in ("pooler", "mean"):
            model = build(distilbert, "palbert", readout=readout).eval()
            features = model.unroll(**batch, keep_features=True).features
            if readout == "pooler":
                assert torch.equal(features[:, -1], plain[:, 0])
            with rows_computed(list(distilbert.transformer.layer)) as calls:
                out = model(**batch, policy=policies.Bernoulli(0))
            assert sum(calls) == out.exit_step.sum()
            model.save_pretrained(tmp_path / readout)
            again = PonderForSequenceClassification.from_pretrained(tmp_path / readout)
            torch.testing.assert_close(again(**batch).logits, model(**batch).logits)

    @pytest.mark.usefixtures("_own_registry")
    def test_a_family_has_one_adapter(self) -> None:
        with pytest.raises(ArgumentError, match="'bert'"):
            adapters.register("bert")(type("Other", (), {}))
