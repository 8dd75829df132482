"""`PonderWrapper.from_recipe`: plain PyTorch in three lines."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import ponder
from ponder import objectives, policies, readouts, recipes
from ponder.parts.heads import PerStep
from tests.ponder.checks import refused

WIDTH, CLASSES = 8, 3


def encoder(layers: int = 4) -> nn.Module:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True)
    return nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(WIDTH), enable_nested_tensor=False)


def made(module: Any, recipe: Any = "palbert", **options: Any) -> ponder.PonderWrapper:
    options = {"num_outputs": CLASSES, "example": torch.randn(2, 5, WIDTH), **options}
    return ponder.PonderWrapper.from_recipe(module, recipe, **options)


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_on_a_captured_encoder(name: str) -> None:
    given = encoder()
    model, recipe = made(given, name), recipes.get(name).for_steps(4).for_task("classification")
    assert (model.stages, model.policy, model.num_steps) == (recipe.stages, recipe.policy, 4)
    assert repr(model.prior) == repr(recipe.prior)
    assert isinstance(model.head, PerStep) == recipe.per_step_heads
    assert (model.lambda_head is None) == (recipe.lambda_head is None)
    inputs, labels = torch.randn(6, 5, WIDTH), torch.randint(CLASSES, (6,))
    for stage in model.stages:
        model.start_stage(stage)
        assert model.objective == stage.objective
        model.progress = ponder.Progress(1, 10)
        loss = model.train()(inputs, labels=labels).loss
        loss.backward()
        assert loss.isfinite()
    assert model.eval()(inputs).outputs.shape == (6, CLASSES)


def test_full_depth_is_the_encoder_and_padding_does_not_count() -> None:
    given = encoder().eval()
    states = torch.randn(3, 6, WIDTH)
    hidden = torch.arange(6) >= torch.tensor([[6], [3], [5]])
    model = made(given, example={"src": states, "src_key_padding_mask": hidden}).eval()
    with torch.no_grad():
        out = model(states, src_key_padding_mask=hidden, policy=policies.LastStep())
        plain = given(states, src_key_padding_mask=hidden)
        expected = model.head(readouts.mean(plain, src_key_padding_mask=hidden))
        alone = model(states[1:2, :3], src_key_padding_mask=hidden[1:2, :3], policy=policies.LastStep())
    torch.testing.assert_close(out.outputs, expected)
    torch.testing.assert_close(out.outputs[1:2], alone.outputs)
    assert model.padding is not None
    assert model.padding.pooled


def test_steps_shared_and_listed_and_with_a_stem() -> None:
    flat = torch.randn(2, WIDTH)
    shared = made(nn.Linear(WIDTH, WIDTH), num_steps=6, example=flat)
    assert (shared.num_steps, shared.steps.shared) == (6, True)
    for listed in ([nn.Linear(WIDTH, WIDTH) for _ in range(3)], nn.ModuleList([nn.Linear(WIDTH, WIDTH)] * 3)):
        assert made(listed, "pabee", example=flat).num_steps == 3
    several = ponder.Steps([nn.Linear(WIDTH, WIDTH) for _ in range(2)], schedule=[0, 0, 1, 1])
    assert made(several, example=flat).num_steps == 4
    embedded = made([nn.Linear(WIDTH, WIDTH)] * 2, stem=nn.Embedding(9, WIDTH), example=torch.tensor([[1, 2], [3, 4]]))
    assert embedded.eval()(torch.tensor([[5, 6, 7]])).outputs.shape == (1, CLASSES)
    recurrent = made([lambda hidden, extra: hidden + extra] * 2, example=(flat, {"extra": torch.ones(2, 1)}))
    assert recurrent.eval()(flat, extra=torch.ones(2, 1)).outputs.shape == (2, CLASSES)


@pytest.mark.parametrize("first", [{"src_key_padding_mask": None}, {"is_causal": False}], ids=["none", "flag"])
def test_the_inputs_are_the_first_of_an_example_that_are_tensors(first: dict[str, Any]) -> None:
    """Trap: the inputs had the name of what was left out; a flag in front of them was taken for the inputs."""
    model = made(encoder(), "vanilla", example={**first, "src": torch.randn(2, 5, WIDTH)})
    assert model.main_input_name == "src"
    assert model.eval()(torch.randn(3, 4, WIDTH)).outputs.shape == (3, CLASSES)
    step = made([lambda hidden, scale=1.0: hidden * scale] * 2, example={"scale": 2.0, "states": torch.ones(2, WIDTH)})
    assert step.main_input_name == "states"


def test_what_an_answer_is() -> None:
    assert made(encoder(), num_outputs=1).task.name == "regression"
    assert made(encoder()).task.name == "classification"
    assert made(encoder(), task="multilabel").task.name == "multilabel"
    tagger = made(encoder(), task="token_classification")
    inputs = torch.randn(2, 5, WIDTH)
    out = tagger.train()(inputs, labels=torch.randint(CLASSES, (2, 5)))
    assert out.trajectory.outputs.shape == (2, 4, 5, CLASSES)
    assert out.trajectory.hazard_logits.shape == (2, 4)
    own = made(encoder(), task=lambda outputs, labels: (outputs - labels).abs().mean(1))
    assert own.train()(inputs, labels=torch.zeros(2, 3)).loss.isfinite()


@pytest.mark.parametrize("name", ["mean", "first_token", "last"])
def test_named_readouts_pool_what_the_module_answers(name: str) -> None:
    given, inputs = encoder().eval(), torch.randn(3, 5, WIDTH)
    model = made(given, "vanilla", readout=name).eval()
    with torch.no_grad():
        expected = model.head(getattr(readouts, name)(given(inputs)))
        torch.testing.assert_close(model(inputs).outputs, expected)


def test_the_encoder_is_used_as_it_is_and_keeps_its_mode_and_dtype() -> None:
    given = encoder().double()
    given.layers[0].eval()
    before = [module.training for module in given.modules()]
    state = torch.random.get_rng_state()
    model = made(given, example=torch.randn(2, 5, WIDTH, dtype=torch.float64))
    assert [module.training for module in given.modules()] == before
    assert {weight.dtype for weight in model.parameters()} == {torch.float64}
    assert {id(weight) for weight in given.parameters()} <= {id(weight) for weight in model.parameters()}
    assert not torch.equal(state, torch.random.get_rng_state())  # heads are drawn


def test_stages_are_saved_and_loaded(tmp_path) -> None:
    model = made(encoder(), "deebert")
    ponder.save(model, tmp_path)
    other = made(encoder(), "pabee")
    assert other.stages != model.stages
    ponder.load(other, tmp_path)
    assert other.stages == model.stages
    assert ponder.PonderWrapper(nn.Linear(8, 8), num_steps=2, head=nn.Linear(8, 2)).stages == ()


def test_bad_input_is_named() -> None:
    flat = torch.randn(2, WIDTH)
    with refused("recipe", "palbret"):
        made(encoder(), "palbret")
    with refused("recipe", "int", type_error=True):
        made(encoder(), 3)
    with refused("num_outputs", "0"):
        made(encoder(), num_outputs=0)
    with refused("module_or_steps", "Linear", "num_steps"):
        made(nn.Linear(WIDTH, WIDTH), example=flat)
    with refused("num_steps", "12"):
        made([nn.Linear(WIDTH, WIDTH)] * 3, num_steps=12, example=flat)
    with refused("stem", "None"):
        made(encoder(), stem=nn.Identity())
    with refused("readout", "middle"):
        made(encoder(), readout="middle")
    with refused("readout", "(2, 5, 8)"):
        made(encoder(), readout=readouts.identity)
    with refused("readout", "(batch, length, width)", "(2, 8)"):
        made([nn.Linear(WIDTH, WIDTH)] * 3, example=flat, task="token_classification")
    with refused("example", "pair", type_error=True):
        made(encoder(), example=(torch.randn(2, 5, WIDTH), {"mask": None}))
    with refused("example", "empty", type_error=True):
        made([nn.Linear(WIDTH, WIDTH)] * 3, example={})
    with refused("task", "classify"):
        made(encoder(), task="classify")


@pytest.mark.parametrize(
    ("example", "words"),
    [
        (torch.randn(2, WIDTH + 1), "cannot be multiplied"),
        (torch.randn(2, WIDTH, dtype=torch.float64), "same dtype"),
        (torch.ones(2, WIDTH, dtype=torch.long), "same dtype"),
        ({"hidden": torch.randn(2, WIDTH), "extra": torch.ones(2)}, "'extra', which none of them names"),
        ("rows", "str"),
        (None, "NoneType"),
    ],
    ids=["width", "double", "integers", "context", "text", "nothing"],
)
def test_an_example_that_the_steps_cannot_take_is_named(example: Any, words: str) -> None:
    with refused("example", words):
        made([nn.Linear(WIDTH, WIDTH)] * 3, example=example)
    with refused("example", words):
        made(nn.Linear(WIDTH, WIDTH), num_steps=4, example=example)


def test_an_example_that_the_module_cannot_take_is_named() -> None:
    for example, words in (
        (torch.randn(2, 5, WIDTH + 1), "embed_dim"),
        (torch.randn(2, 5, WIDTH, dtype=torch.float64), "dtype"),
        ([torch.randn(2, 5, WIDTH)], "list"),
        (torch.full((2, 5, WIDTH), torch.nan), "NaN"),
    ):
        for build in (made, ponder.capture):
            with refused("example", words):
                build(encoder(), example=example)
    with refused("example", "cannot be multiplied"):
        made([nn.Linear(WIDTH, WIDTH)] * 3, stem=nn.Linear(4, WIDTH), example=torch.randn(2, 5))
    with refused("readout", "int64"):
        made([nn.Linear(WIDTH, WIDTH)] * 3, readout=lambda states: states.long(), example=torch.randn(2, WIDTH))


OF_CLASSES = ("cosee", "deebert", "fastbert")  # entropy and energy are of a class
CASES = [("token_classification", CLASSES, name) for name in recipes.names() if name != "cosee"]
CASES += [("span", 2, name) for name in recipes.names() if name not in OF_CLASSES]


@pytest.mark.parametrize(("task", "outputs", "name"), CASES)
def test_every_recipe_trains_answers_at_positions(task: Any, outputs: int, name: str) -> None:
    model = made(encoder(), name, task=task, num_outputs=outputs)
    inputs = torch.randn(6, 5, WIDTH)
    labels = torch.randint(CLASSES, (6, 5) if outputs == CLASSES else (6, 2))
    for stage in model.stages:
        model.start_stage(stage)
        model.progress = ponder.Progress(1, 10)
        loss = model.train()(inputs, labels=labels).loss
        loss.backward()
        assert loss.isfinite()
        model.finish_stage(stage)
    assert model.eval()(inputs).outputs.shape == (6, 5, outputs)


def test_training_the_first_of_several_stages_unasked_is_told_once() -> None:
    inputs, labels = torch.randn(6, 5, WIDTH), torch.randint(CLASSES, (6,))
    unasked = made(encoder(), "ponder").train()
    with pytest.warns(UserWarning, match=r"has 2 stages of training, and none was started.*fit.*all_stages=True"):
        unasked(inputs, labels=labels)
    unasked(inputs, labels=labels)  # warnings are errors here
    started, other, single = (made(encoder(), name).train() for name in ("ponder", "ponder", "palbert"))
    started.start_stage(started.stages[0])
    other.objective = objectives.DeepSupervision("uniform")
    for model in (started, other, single):
        model(inputs, labels=labels)
