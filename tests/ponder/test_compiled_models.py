"""A whole model through `torch.compile` and `torch.export`: one graph where it is known when all rows leave."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import ponder
from ponder.parts.tasks import Regression
from ponder.policies import Confidence, ExitPolicy, FixedStep, LastStep, Quantile
from tests.ponder.test_compilation import Counter

pytestmark = pytest.mark.usefixtures("fresh_compiler")

WIDTH, LENGTH, STEPS = 8, 5, 3


def layer() -> nn.Module:
    return nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True)


def make(kind: str) -> ponder.PonderWrapper:
    torch.manual_seed(0)
    encoder: Any = {
        "captured": lambda: nn.TransformerEncoder(layer(), STEPS, nn.LayerNorm(WIDTH), enable_nested_tensor=False),
        "stacked": lambda: [layer() for _ in range(STEPS)],
        "shared": layer,
    }[kind]()
    recipe = "pabee" if kind == "stacked" else "palbert"
    steps = STEPS if kind == "shared" else None
    example = torch.randn(2, LENGTH, WIDTH)
    return ponder.PonderWrapper.from_recipe(encoder, recipe, num_outputs=2, example=example, num_steps=steps).eval()


known = pytest.mark.parametrize(
    ("kind", "policy"),
    [("captured", LastStep()), ("stacked", FixedStep(2)), ("shared", LastStep()), ("shared", FixedStep(2))],
    ids=repr,
)


@known
@torch.no_grad()
def test_a_known_depth_is_one_graph_without_a_break(kind: str, policy: ExitPolicy) -> None:
    model, inputs = make(kind), torch.randn(4, LENGTH, WIDTH)
    model.policy = policy
    expected = model(inputs)
    counter = Counter()
    found = torch.compile(model, backend=counter, fullgraph=True)(inputs)  # which raises at a break
    assert counter.graphs == 1
    assert torch.equal(found.outputs, expected.outputs)
    assert found.exit_step.tolist() == [2 if policy == FixedStep(2) else STEPS] * 4


@torch.no_grad()
def test_compiled_steps_are_one_graph_a_step_with_exits() -> None:
    counter = Counter()
    model, inputs = make("stacked"), torch.randn(12, LENGTH, WIDTH)
    model.policy = Confidence(0.6)
    expected = model(inputs)
    assert len(set(expected.exit_step.tolist())) > 1
    ponder.compile_steps(model, backend=counter)
    found = model(inputs)
    assert found.exit_step.tolist() == expected.exit_step.tolist()
    torch.testing.assert_close(found.outputs, expected.outputs, atol=1e-5, rtol=1e-5)
    assert 0 < counter.graphs <= 2 * STEPS, "one for several rows, and one for a row alone"
    before = counter.graphs
    model(inputs)
    assert counter.graphs == before


@torch.no_grad()
def test_a_compiled_model_whose_rows_exit_answers_the_same() -> None:
    """There are breaks where rows leave, since no graph knows how many stay; the answers do not change."""
    model, inputs = make("shared"), torch.randn(12, LENGTH, WIDTH)
    model.policy = Quantile(0.5)
    expected = model(inputs)
    found = torch.compile(model, backend="eager", dynamic=True)(inputs)
    assert found.exit_step.tolist() == expected.exit_step.tolist()
    torch.testing.assert_close(found.outputs, expected.outputs, atol=1e-5, rtol=1e-5)


@known
@torch.no_grad()
def test_a_known_depth_is_exported_for_any_number_of_rows(kind: str, policy: ExitPolicy) -> None:
    model = make(kind)
    model.policy = policy
    rows = torch.export.Dim("rows", min=2, max=64)
    program = torch.export.export(model, (torch.randn(4, LENGTH, WIDTH),), dynamic_shapes=({0: rows},), strict=False)
    for count in (2, 9):
        inputs = torch.randn(count, LENGTH, WIDTH)
        found, expected = program.module()(inputs), model(inputs)
        assert isinstance(found, ponder.PonderOutput)
        torch.testing.assert_close(found.outputs, expected.outputs, atol=1e-6, rtol=1e-5)
        assert torch.equal(found.exit_step, expected.exit_step)


class Unrolled(nn.Module):
    def __init__(self, model: ponder.PonderWrapper) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        trajectory = self.model.unroll(inputs)
        return trajectory.outputs, trajectory.halting.pmf


@pytest.mark.parametrize("kind", ["captured", "shared"])
@torch.no_grad()
def test_an_unroll_is_exported(kind: str) -> None:
    model, inputs = make(kind), torch.randn(4, LENGTH, WIDTH)
    program = torch.export.export(Unrolled(model), (inputs,), strict=False)
    trajectory = model.unroll(inputs)
    outputs, pmf = program.module()(inputs)
    torch.testing.assert_close(outputs, trajectory.outputs, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(pmf, trajectory.halting.pmf, atol=1e-6, rtol=1e-5)


def test_the_loss_of_numbers_is_one_graph() -> None:
    """Trap: the look at NaN in labels broke it."""
    task, outputs, labels = Regression(), torch.randn(5, 1), torch.randn(5)

    def loss(given: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return task.losses(given, task.check(given, wanted))

    found = torch.compile(loss, fullgraph=True, backend="eager")(outputs, labels)
    assert torch.equal(found, loss(outputs, labels))
