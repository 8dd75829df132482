"""Models from an encoder and the name of a recipe."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ponder
from ponder import objectives, policies, recipes
from tests.toys import CLOSE, LENGTH, ROWS, STEPS, WIDTH, Tanh, padding

SEED = torch.Generator().manual_seed(0)
ROWS_OF = {
    "vector": torch.randn(ROWS, WIDTH, generator=SEED),
    "sequence": torch.randn(ROWS, LENGTH, WIDTH, generator=SEED),
}


def transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 8, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(
        layer, STEPS, nn.LayerNorm(WIDTH), enable_nested_tensor=False
    ).eval()


def encoders(kind: str) -> dict[str, Any]:
    """The arguments that are an encoder."""
    if kind == "captured":
        return {"module_or_steps": transformer(), "example": ROWS_OF["sequence"]}
    if kind == "layers":
        return {"module_or_steps": list(transformer().layers), "example": ROWS_OF["sequence"]}
    if kind == "shared":
        return {"module_or_steps": Tanh(), "num_steps": STEPS, "example": ROWS_OF["vector"]}
    return {
        "module_or_steps": [Tanh() for _ in range(STEPS)],
        "stem": nn.Linear(WIDTH, WIDTH),
        "example": ROWS_OF["vector"],
    }


def test_options_of_a_recipe_come_with_its_name() -> None:
    given = {"num_outputs": 2, **encoders("captured")}
    model = ponder.PonderWrapper.from_recipe(recipe="palbert", as_released=True, **given)
    assert model.objective == recipes.get("palbert", as_released=True).stages[0].objective
    with pytest.raises(ponder.errors.ArgumentError, match="the name of a recipe"):
        ponder.PonderWrapper.from_recipe(recipe=recipes.get("palbert"), as_released=True, **given)


WITH_CLASSES = ("cosee", "deebert", "fastbert")
"""Recipes that exit by the probabilities of classes, and have no other policy."""


@pytest.mark.parametrize("name", recipes.names())
@pytest.mark.parametrize(
    ("kind", "task"),
    [(kind, "classification") for kind in ("captured", "layers", "shared", "stem")]
    + [("captured", "regression")],
)
def test_every_recipe_trains_and_exits_on_every_encoder(name: str, kind: str, task: str) -> None:
    outputs = 3 if task == "classification" else 1
    given = encoders(kind)
    if task == "regression" and name in WITH_CLASSES:
        with pytest.raises(ponder.errors.ArgumentError, match="class"):
            ponder.PonderWrapper.from_recipe(**given, recipe=name, num_outputs=outputs)
        return
    model = ponder.PonderWrapper.from_recipe(**given, recipe=name, num_outputs=outputs)
    assert (model.num_steps, model.task.name) == (STEPS, task)
    scaled = recipes.get(name).for_steps(STEPS).for_task(model.task)
    assert (model.policy, model.stages) == (scaled.policy, scaled.stages)
    model.progress = objectives.Progress(1, 2)
    labels = torch.arange(ROWS).remainder(3) if task == "classification" else torch.randn(ROWS, 1)
    for stage in model.stages:
        if stage.teacher == "attached":
            model.objective = stage.objective
            loss = model.train()(given["example"], labels=labels).loss
            loss.backward()
            assert bool(loss.isfinite())
    assert model.eval()(given["example"]).outputs.shape == (ROWS, outputs)


def test_full_depth_is_the_encoder_and_padding_does_not_count() -> None:
    encoder = transformer()
    mask = padding()
    example = {"src": ROWS_OF["sequence"], "src_key_padding_mask": mask}
    model = ponder.PonderWrapper.from_recipe(
        encoder, "vanilla", num_outputs=2, example=example, head_dropout=0.0
    )
    assert model.main_input_name == "src"
    features = encoder(ROWS_OF["sequence"], src_key_padding_mask=mask)
    expected = model.head(ponder.readouts.mean(features, ~mask))
    torch.testing.assert_close(
        model.eval()(ROWS_OF["sequence"], src_key_padding_mask=mask).outputs, expected, **CLOSE
    )
    assert model.padding is not None
    assert all(any(weight is own for own in model.parameters()) for weight in encoder.parameters())


@pytest.mark.parametrize("task", ["token_classification", "span"])
@pytest.mark.parametrize("name", recipes.names())
def test_answers_at_positions(name: str, task: str) -> None:
    if name == "cosee" or (task == "span" and name in WITH_CLASSES):
        return  # of one class a row
    mask = padding()
    example = {"src": ROWS_OF["sequence"], "src_key_padding_mask": mask}
    model = ponder.PonderWrapper.from_recipe(
        transformer(), name, num_outputs=2, example=example, task=task
    )
    model.progress = objectives.Progress(1, 2)
    labels = torch.zeros(ROWS, LENGTH if task == "token_classification" else 2, dtype=torch.long)
    out = model.train()(ROWS_OF["sequence"], labels=labels, src_key_padding_mask=mask)
    out.loss.backward()
    assert out.outputs.shape == (ROWS, LENGTH, 2)
    run = model.eval().unroll(ROWS_OF["sequence"], src_key_padding_mask=mask)
    exits = model(ROWS_OF["sequence"], src_key_padding_mask=mask)
    assert torch.equal(exits.exit_step, run.replay(model.policy).exit_step)


@pytest.mark.parametrize("name", ["mean", "first_token", "last"])
@pytest.mark.parametrize("kind", ["captured", "layers"])
def test_readouts_pool_what_the_encoder_answers(name: str, kind: str) -> None:
    given = encoders(kind)
    readout = getattr(ponder.readouts, name)
    model = ponder.PonderWrapper.from_recipe(
        **given, recipe="vanilla", num_outputs=2, readout=readout
    )
    hidden = given["example"]
    for layer in model.stem.module.layers if kind == "captured" else given["module_or_steps"]:
        hidden = layer(hidden)
    if kind == "captured":
        hidden = model.stem.module.norm(hidden)
    expected = model.eval().head(readout(hidden))
    torch.testing.assert_close(model(given["example"]).outputs, expected, **CLOSE)


def test_the_encoder_keeps_its_mode_and_dtype() -> None:
    encoder = transformer().double().train()
    model = ponder.PonderWrapper.from_recipe(
        encoder, "palbert", num_outputs=2, example=ROWS_OF["sequence"].double()
    )
    assert encoder.training
    assert {weight.dtype for weight in model.parameters()} == {torch.float64}
    policy = policies.Quantile(0.9)
    own = ponder.PonderWrapper.from_recipe(
        **encoders("shared"), recipe="palbert", num_outputs=2, policy=policy
    )
    assert (own.policy, own.objective) == (policy, own.stages[0].objective)
    assert isinstance(own.objective, objectives.Objective)


class Classifier(nn.Module):
    """An encoder with a head of its own."""

    def __init__(self, bare: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Tanh() for _ in range(STEPS))
        self.head = nn.Identity() if bare else nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def test_a_classifiers_own_head_is_taken_off_before() -> None:
    build = ponder.PonderWrapper.from_recipe
    with pytest.raises(ponder.errors.ArgumentError, match=r"module\.head = nn\.Identity\(\)"):
        build(Classifier(), "palbert", num_outputs=3, example=ROWS_OF["vector"])
    bare = build(Classifier(bare=True), "palbert", num_outputs=3, example=ROWS_OF["vector"])
    assert bare.eval()(ROWS_OF["vector"]).outputs.shape == (ROWS, 3)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"recipe": "palbrt"}, "palbert"),
        ({"num_outputs": 0}, "num_outputs"),
        ({"readout": lambda hidden: hidden[:, :, None]}, "floating point"),
        ({"readout": lambda hidden: hidden.long()}, "floating point"),
    ],
)
def test_bad_input_is_named(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ponder.errors.PonderError, match=says):
        ponder.PonderWrapper.from_recipe(**{**encoders("shared"), "num_outputs": 2, **options})
