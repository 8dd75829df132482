"""What torch.compile makes of a model; run without what counts lines, which would be traced too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ponder
from ponder import objectives, policies
from tests import toys
from tests.toys import CLASSES, CLOSE, ROWS, build

LABELS = torch.arange(ROWS).remainder(CLASSES)
ArgumentError = ponder.errors.ArgumentError


def _distance(outputs: Tensor, labels: Tensor) -> Tensor:
    return (outputs - labels).abs().mean(-1)


class Counter:
    """A backend that compiles nothing and counts graphs."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, module: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        self.graphs += 1
        return module.forward


@pytest.mark.parametrize(
    ("kind", "policy"), [("stacked", policies.LastStep()), ("shared", policies.FixedStep(2))]
)
@torch.no_grad()
def test_a_known_depth_is_one_graph_without_a_break(kind: str, policy: policies.ExitPolicy) -> None:
    torch.compiler.reset()
    made = build(kind, policy=policy, lambda_head=None)
    expected = made.call()
    counter = Counter()
    found = torch.compile(made.model, backend=counter, fullgraph=True)(made.inputs, **made.context)
    assert counter.graphs == 1
    assert torch.equal(found.outputs, expected.outputs)
    assert torch.equal(found.exit_step, expected.exit_step)


def test_a_training_call_is_one_graph() -> None:
    torch.compiler.reset()
    made = build("shared", objective=objectives.DeepSupervision("uniform"), task=_distance)
    counter = Counter()
    made.model.train()
    labels = torch.randn(ROWS, CLASSES)
    found = torch.compile(made.model, backend=counter, fullgraph=True)(made.inputs, labels=labels)
    torch.testing.assert_close(found.loss, made.call(labels=labels).loss)
    assert counter.graphs == 1


@torch.no_grad()
def test_compiled_steps_and_a_compiled_model_exit_as_they_did() -> None:
    torch.compiler.reset()
    made = build("stacked")
    policy = toys.middle(made)
    expected = made.call(policy=policy)
    counter = Counter()
    found = torch.compile(made.model, backend=Counter())(made.inputs, policy=policy)
    made.model.steps.fns = nn.ModuleList(
        torch.compile(step, backend=counter) for step in made.model.steps.fns
    )
    for out in (found, made.call(policy=policy)):
        assert torch.equal(out.exit_step, expected.exit_step)
        torch.testing.assert_close(out.outputs, expected.outputs, **CLOSE)
    assert counter.graphs > 1
