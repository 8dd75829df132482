"""A model that is saved and reloaded, pickled, copied or moved to another type answers as before."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification

import ponder
from ponder import objectives, policies, priors, recipes
from ponder.errors import ArgumentError
from ponder.integrations.transformers import PonderConfig, PonderForSequenceClassification
from ponder.policies import FixedStep, LastStep
from tests.integrations.transformers.encoders import (
    CONFIGS,
    FAMILIES,
    IN_TURN,
    PROBLEMS,
    make_batch,
    make_encoder,
    make_model,
    model_for,
    segments,
)
from tests.ponder.checks import refused

in_turn = pytest.mark.parametrize(("name", "recipe"), IN_TURN)
families = pytest.mark.parametrize("name", FAMILIES)
reload = PonderForSequenceClassification.from_pretrained


@torch.no_grad()
def assert_same(left: Any, right: Any) -> None:
    """Equal weights, bit for bit, equal settings, and (up to how files lie in memory) equal answers."""
    a, b = left.state_dict(), right.state_dict()
    assert list(a) == list(b)
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert all(a[key].dtype == b[key].dtype for key in a)
    assert left.config.to_json_string() == right.config.to_json_string()
    assert left.policy == right.policy
    assert left.recipe == right.recipe
    assert left.ponder.settings() == right.ponder.settings()
    batch = {**make_batch(left.encoder), "token_type_ids": segments(make_batch(left.encoder))}
    ids = torch.tensor([41, 7, 1000, 3, 12, 5])
    for policy in (None, LastStep(), FixedStep(2)):
        before, after = (m(**batch, policy=policy, row_ids=ids) for m in (left, right))
        assert torch.equal(before.exit_step, after.exit_step)
        torch.testing.assert_close(before.logits, after.logits, atol=1e-6, rtol=1e-5)


class TestFiles:
    @in_turn
    def test_save_and_reload(self, name: str, recipe: str, tmp_path: Path) -> None:
        model = make_model(name, recipe=recipe)
        model.save_pretrained(tmp_path)
        again = reload(tmp_path)
        assert isinstance(again, PonderForSequenceClassification)
        assert not again.training
        assert again.encoder is not model.encoder
        assert_same(model, again)
        again.save_pretrained(tmp_path / "again")
        for file in ("config.json", "model.safetensors"):
            assert (tmp_path / file).read_bytes() == (tmp_path / "again" / file).read_bytes()

    @pytest.mark.parametrize(
        ("name", "task"),
        [
            (name, task)
            for place, name in enumerate(CONFIGS)
            for turn, task in enumerate(PROBLEMS)
            if name == "bert" or place % 3 == turn
        ],
    )
    def test_every_shape_of_encoder_and_every_task(self, name: str, task: str, tmp_path: Path) -> None:
        model = model_for(name, task)
        model.save_pretrained(tmp_path)
        assert_same(model, reload(tmp_path))

    def test_the_auto_classes_know_it(self, tmp_path: Path) -> None:
        model = make_model("bert", recipe="palbert").eval()
        model.save_pretrained(tmp_path)
        assert isinstance(AutoConfig.from_pretrained(tmp_path), PonderConfig)
        again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
        assert isinstance(again, PonderForSequenceClassification)
        assert_same(model, again)

    def test_the_files_are_json_and_safetensors(self, tmp_path: Path) -> None:
        make_model("bert").save_pretrained(tmp_path)
        names = ["README.md", "config.json", "model.safetensors", "ponder_classes.py"]
        assert sorted(path.name for path in tmp_path.iterdir()) == names
        config = json.loads((tmp_path / "config.json").read_text())
        assert config["model_type"] == "ponder"
        assert config["encoder"]["model_type"] == "bert"
        assert config["recipe"] == recipes.get("palbert").for_steps(5).to_dict()
        assert config["architectures"] == ["PonderForSequenceClassification"]

    @pytest.mark.parametrize("asked", [None, "eager", "sdpa"])
    def test_the_attention_that_is_asked_for_reaches_the_encoder(self, asked: str | None, tmp_path: Path) -> None:
        model = make_model("albert").eval()
        model.save_pretrained(tmp_path)
        kwargs = {} if asked is None else {"attn_implementation": asked}
        again = PonderForSequenceClassification.from_pretrained(tmp_path, **kwargs)
        assert again.encoder.config._attn_implementation == (asked or "sdpa")
        assert_same(model, again)

    def test_no_path_of_this_machine_is_saved(self, tmp_path: Path) -> None:
        make_encoder("bert").save_pretrained(tmp_path / "secret-place")
        PonderForSequenceClassification.from_encoder(tmp_path / "secret-place").save_pretrained(tmp_path / "saved")
        assert "secret-place" not in (tmp_path / "saved" / "config.json").read_text()

    @pytest.mark.parametrize(
        "policy",
        [
            policies.Quantile(0.9),
            policies.Bernoulli(seed=12),
            (policies.Patience(2) | policies.Entropy(0.1)).after(2),
            policies.Confidence(0.7) & policies.Quantile(0.25),
        ],
        ids=str,
    )
    def test_a_policy_that_was_changed_is_saved(self, policy: policies.ExitPolicy, tmp_path: Path) -> None:
        model = make_model("bert")
        model.policy = policy
        model.save_pretrained(tmp_path)
        again = reload(tmp_path)
        assert again.policy == policy
        assert again.recipe.policy == policy
        assert_same(model, again)

    def test_a_readout_and_fields_of_the_configuration_are_saved(self, tmp_path: Path) -> None:
        names = {0: "contradiction", 1: "neutral", 2: "entailment"}
        model = make_model("mpnet", num_labels=3, readout="mean", head_dropout=0.25, id2label=names)
        model.save_pretrained(tmp_path)
        again = reload(tmp_path)
        assert (again.config.readout, again.config.head_dropout, again.config.id2label) == ("mean", 0.25, names)
        assert_same(model, again)
        config = PonderConfig.from_pretrained(tmp_path)
        assert config.num_labels == 3
        assert config.problem_type == "single_label_classification"
        assert config.make_recipe() == model.recipe
        assert config.encoder_config().to_diff_dict().keys() == model.encoder.config.to_diff_dict().keys()

    @families
    @torch.no_grad()
    def test_an_encoder_without_a_pooler(self, name: str, tmp_path: Path) -> None:
        encoder = make_encoder(name)
        encoder.pooler = None
        model = PonderForSequenceClassification.from_encoder(encoder, readout="mean").eval()
        model.save_pretrained(tmp_path)
        batch = make_batch(encoder)
        torch.testing.assert_close(reload(tmp_path)(**batch).logits, model(**batch).logits)

    def test_overrides_at_loading(self, tmp_path: Path) -> None:
        make_model("bert").save_pretrained(tmp_path)
        model, info = reload(tmp_path, output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        assert reload(tmp_path, head_dropout=0.0).config.head_dropout == 0.0
        half = reload(tmp_path, dtype=torch.bfloat16)
        assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
        assert half(**make_batch(model.encoder)).logits.dtype == torch.bfloat16

    def test_a_checkpoint_in_bfloat16(self, tmp_path: Path) -> None:
        model = make_model("bert").to(torch.bfloat16)
        model.save_pretrained(tmp_path)
        again = reload(tmp_path)
        assert {parameter.dtype for parameter in again.parameters()} == {torch.bfloat16}
        assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())

    @pytest.mark.parametrize("written", [True, False])
    def test_the_type_of_weights_is_the_callers_whatever_the_encoder_was_read_in(
        self, written: bool, tmp_path: Path
    ) -> None:
        """Trap: the configuration of an encoder that was read from files names a type, as earlier versions saved it."""
        make_encoder("bert").save_pretrained(tmp_path / "encoder")
        model, saved = PonderForSequenceClassification.from_encoder(tmp_path / "encoder"), tmp_path / "model"
        model.half().save_pretrained(saved)
        config = json.loads((saved / "config.json").read_text())
        assert "dtype" not in config["encoder"]
        if written:
            config["encoder"]["dtype"] = "float32"
            (saved / "config.json").write_text(json.dumps(config))
        for kind, asked, expected in (
            (PonderForSequenceClassification, None, torch.float16),
            (PonderForSequenceClassification, "auto", torch.float16),
            (PonderForSequenceClassification, torch.bfloat16, torch.bfloat16),
            (AutoModelForSequenceClassification, None, torch.float16),
        ):
            again = kind.from_pretrained(saved, **({} if asked is None else {"dtype": asked}))
            assert {parameter.dtype for parameter in again.parameters()} == {expected}

    def test_training_goes_on_after_reloading(self, tmp_path: Path) -> None:
        make_model("albert").save_pretrained(tmp_path)
        model = reload(tmp_path).train()
        model(**make_batch(model.encoder), labels=torch.tensor([0, 1, 1, 0, 1, 0])).loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())


class TestCopies:
    @in_turn
    def test_pickled_as_for_a_worker_process(self, name: str, recipe: str) -> None:
        model = make_model(name, recipe=recipe)
        assert_same(model, pickle.loads(pickle.dumps(model)))

    @families
    @torch.no_grad()
    def test_a_deep_copy_stands_on_its_own(self, name: str) -> None:
        """Trap: layers that are called through a closure are still the original's after a copy."""
        model = make_model(name)
        other = copy.deepcopy(model)
        assert_same(model, other)
        batch = make_batch(model.encoder)
        before = model(**batch, policy=LastStep()).logits
        for parameter in other.parameters():
            parameter.mul_(1.7)
        other.policy = policies.Quantile(0.05)
        assert torch.equal(model(**batch, policy=LastStep()).logits, before)
        assert model.policy == policies.Quantile(0.5)
        assert model.config.recipe["policy"]["q"] == 0.5
        assert not torch.allclose(other(**batch, policy=LastStep()).logits, before)

    @families
    @torch.no_grad()
    def test_a_copy_runs_the_copys_layers(self, name: str) -> None:
        model = make_model(name)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            theirs = {id(module) for module in other.encoder.modules()}
            ours = {id(module) for module in model.encoder.modules()}
            steps = [function.fn.layer for function in other.ponder.steps.fns]
            assert all(id(layer) in theirs and id(layer) not in ours for layer in steps)
            assert other.ponder.stem.encoder is other.encoder

    @torch.no_grad()
    def test_weights_loaded_into_another_model(self) -> None:
        model, other = make_model("bert"), make_model("bert", seed=9)
        assert not other.load_state_dict(model.state_dict()).missing_keys
        assert_same(model, other)


class TestTypes:
    @families
    @torch.no_grad()
    def test_bfloat16_is_the_plain_encoder_too(self, name: str) -> None:
        model = make_model(name).to(torch.bfloat16)
        batch = make_batch(model.encoder)
        plain = model.encoder(**batch).pooler_output
        trajectory = model.unroll(**batch, keep_features=True)
        assert plain.dtype == trajectory.outputs.dtype == torch.bfloat16
        assert torch.equal(trajectory.features[:, -1], plain)
        assert trajectory.hazard_logits.dtype == torch.float32, "probabilities are never formed in half precision"
        torch.testing.assert_close(trajectory.halting.pmf.sum(1), torch.ones(6))

    @in_turn
    def test_bfloat16_trains_and_exits(self, name: str, recipe: str) -> None:
        model = make_model(name, recipe=recipe).to(torch.bfloat16).train()
        model.start_stage(model.recipe.stages[0])
        batch = make_batch(model.encoder)
        loss = model(**batch, labels=torch.tensor([0, 1, 1, 0, 1, 0])).loss
        assert loss.dtype == torch.float32
        loss.backward()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
        out = model.eval()(**batch)
        assert out.logits.dtype == torch.bfloat16
        assert ((out.exit_step >= 1) & (out.exit_step <= model.ponder.num_steps)).all()
        assert torch.equal(model.unroll(**batch).replay(model.policy).exit_step, out.exit_step)

    @families
    @torch.no_grad()
    def test_float64_changes_rounding_only(self, name: str) -> None:
        model = make_model(name)
        batch = make_batch(model.encoder)
        single, double = model(**batch), copy.deepcopy(model).double()(**batch)
        assert double.logits.dtype == torch.float64
        assert torch.equal(single.exit_step, double.exit_step)
        torch.testing.assert_close(single.logits.double(), double.logits, atol=1e-4, rtol=1e-3)


class TestSeeds:
    @pytest.mark.parametrize("recipe", ["vanilla", "palbert", "ponder"])  # one of every build of heads
    def test_a_seed_fixes_weights_and_dropout(self, recipe: str) -> None:
        labels = torch.tensor([0, 1, 1, 0, 1, 0])

        def loss_with(seed: int) -> float:
            encoder = make_encoder("bert")
            torch.manual_seed(seed)
            model = PonderForSequenceClassification.from_encoder(encoder, recipe).train()
            model.start_stage(model.recipe.stages[0])
            return model(**make_batch(encoder), labels=labels).loss.item()

        first, second, other = loss_with(3), loss_with(3), loss_with(4)
        assert first == second
        assert first != other

    @torch.no_grad()
    def test_evaluation_draws_nothing(self) -> None:
        model = make_model("bert", recipe="pondernet")
        batch, before = make_batch(model.encoder), torch.get_rng_state()
        first, second = model(**batch), model(**batch)
        assert torch.equal(first.logits, second.logits)
        assert torch.equal(first.exit_step, second.exit_step)
        assert torch.equal(torch.get_rng_state(), before)


def test_what_was_assigned_to_the_wrapper_is_saved(tmp_path: Path) -> None:
    model = make_model("bert", recipe="palbert")
    model.ponder.policy = FixedStep(2)
    model.ponder.prior = priors.Learned(model.ponder.num_steps)
    model.save_pretrained(tmp_path)
    again = reload(tmp_path)
    assert again.policy == FixedStep(2)
    assert again.ponder.prior == model.ponder.prior
    assert_same(again.eval(), model.eval())


def test_a_policy_that_is_not_registered_is_told_and_the_recipes_is_saved(tmp_path: Path) -> None:
    class Mine(LastStep):
        pass

    model = make_model("bert", recipe="palbert")
    before = model.policy
    model.ponder.policy = Mine()
    with pytest.warns(UserWarning, match="policy: .* is not saved"):
        model.save_pretrained(tmp_path)
    assert reload(tmp_path).policy == before


def test_names_of_labels_say_how_many_there_are() -> None:
    names = {place: f"label {place}" for place in range(9)}
    model = PonderForSequenceClassification.from_encoder(make_encoder("bert"), "pabee", id2label=names)
    assert model.config.num_labels == 9
    assert model.config.id2label == names
    with pytest.raises(ArgumentError, match="the number of names in id2label, 9"):
        PonderForSequenceClassification.from_encoder(make_encoder("bert"), "pabee", num_labels=3, id2label=names)


def test_an_objective_that_is_assigned_is_saved_or_told(tmp_path: Path) -> None:
    model = make_model("bert", recipe="palbert")
    model.ponder.objective = objectives.Ponder(beta=2.0)
    model.save_pretrained(tmp_path / "one")
    again = PonderForSequenceClassification.from_pretrained(tmp_path / "one")
    assert again.ponder.objective == again.recipe.stages[0].objective == objectives.Ponder(beta=2.0)
    model = make_model("bert", recipe="ponder")
    model.ponder.objective = objectives.DeepSupervision()
    with pytest.warns(UserWarning, match="objective: DeepSupervision.* is not saved: the 2 stages have their own"):
        model.save_pretrained(tmp_path / "two")
    model.start_stage(model.recipe.stages[1])
    model.save_pretrained(tmp_path / "three")  # what a stage brings is the recipe's

    class Mine(objectives.FinalStep):
        """Not registered."""

    model = make_model("bert", recipe="palbert")
    model.ponder.objective = Mine()
    with pytest.warns(UserWarning, match="stages: .*Mine.* is not saved"):
        model.save_pretrained(tmp_path / "four")


def test_heads_that_the_recipe_does_not_make_are_refused(tmp_path: Path) -> None:
    """Trap: their weights have the names of the recipe's, and are read into those."""
    for name, part in (
        ("lambda_head", lambda width: ponder.LambdaHead(width, layers=3, history=2, activation="relu")),
        ("lambda_head", lambda width: ponder.LambdaHead(width, layers=3, history=2, initial="zeros")),
        ("head", lambda width: nn.Sequential(nn.Tanh(), nn.Linear(width, 2))),
    ):
        model = make_model("bert", recipe="palbert")
        setattr(model.ponder, name, part(model.encoder.config.hidden_size))
        with pytest.raises(ArgumentError, match="to be read from a folder"):
            model.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["num_steps", "readout", "feature_size", "recipe", "encoder", "policy"])
def test_what_the_weights_were_trained_with_is_no_argument_of_loading(name: str, tmp_path: Path) -> None:
    """Trap: `num_steps=2` ran two of three layers, and said nothing."""
    make_model("bert").save_pretrained(tmp_path)
    with refused(name, "2"):
        reload(tmp_path, **{name: 2})
    reload(tmp_path, **{name: None})
    if name in ("num_steps", "readout"):
        given = {"num_steps": 2, "readout": "mean"}
        with refused(name, repr(given[name])):
            AutoModelForSequenceClassification.from_pretrained(tmp_path, **{name: given[name]})


def test_a_variant_is_refused(tmp_path: Path) -> None:
    """Trap: the weights of before were removed from the folder."""
    model = make_model("bert")
    model.save_pretrained(tmp_path)
    with refused("variant", "fp16"):
        model.save_pretrained(tmp_path, variant="fp16")
    assert_same(model, reload(tmp_path))
