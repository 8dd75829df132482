"""`torch.compile` and `torch.export` of a model of Transformers at a depth that is known: one graph, no break."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from ponder.policies import ExitPolicy, FixedStep, LastStep
from tests.integrations.transformers.encoders import make_batch, make_model


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("policy", [LastStep(), FixedStep(2)], ids=repr)
@pytest.mark.parametrize("name", ["albert", "bert"])
@torch.no_grad()
def test_one_graph_with_padding(name: str, policy: ExitPolicy) -> None:
    model = make_model(name).eval()
    model.policy = policy
    batch = make_batch(model.encoder)
    expected = model(**batch)
    found = torch.compile(model, backend="eager", fullgraph=True)(**batch)
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found.exit_step, expected.exit_step)
    program = torch.export.export(model, (), kwargs=batch, strict=False)
    torch.testing.assert_close(program.module()(**batch).logits, expected.logits)
