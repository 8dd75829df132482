"""Models of Transformers compiled: one graph at a depth that is known, and one a step where rows leave."""

from __future__ import annotations

import pytest
import torch

import ponder
from ponder.policies import Bernoulli, ExitPolicy, FixedStep, LastStep
from tests.integrations.transformers.encoders import make_batch, make_model
from tests.ponder.test_compilation import Counter

pytestmark = pytest.mark.usefixtures("fresh_compiler")


@pytest.mark.parametrize(
    ("name", "policy"), [("albert", LastStep()), ("bert-of-3", LastStep()), ("bert-of-3", FixedStep(2))], ids=repr
)
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


@pytest.mark.parametrize("family", ["albert", "bert-of-3", "mpnet-of-3"])
def test_layers_are_compiled_once(family: str) -> None:
    model = make_model(family)
    counter = Counter()
    cases = [make_batch(model.encoder, rows=rows, seed=rows) for rows in (9, 1, 5, 14)]
    with torch.inference_mode():
        expected = [model(**batch, policy=Bernoulli(len(batch["input_ids"]))) for batch in cases]
        ponder.compile_steps(model.ponder, backend=counter)
        for batch, out in zip(cases, expected, strict=True):
            found = model(**batch, policy=Bernoulli(len(batch["input_ids"])))
            assert found.exit_step.tolist() == out.exit_step.tolist()
            torch.testing.assert_close(found.logits, out.logits, atol=1e-4, rtol=1e-4)
        assert counter.graphs <= 3, "with a mask: one row, and more; one row alone needs none"
        for batch in cases:
            model(batch["input_ids"], policy=LastStep())
            model(batch["input_ids"], policy=Bernoulli(3))
        assert counter.graphs <= 4, "without a mask: two more"
