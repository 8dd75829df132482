"""Compiled steps: the same exits and outputs, a bounded number of graphs, and nothing left in a checkpoint."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch

import ponder
from ponder.inference.compiling import compile_steps, uncompile_steps
from ponder.policies import Bernoulli
from tests.ponder.checks import refused
from tests.toys import TOYS, make_toy, wrap

pytestmark = pytest.mark.usefixtures("fresh_compiler")


class Counter:
    """A backend that runs graphs as they are, and counts them."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        self.graphs += 1
        return graph.forward


@pytest.mark.parametrize("name", [name for name in TOYS if name not in ("shared", "stacked", "gru-cell")])
def test_the_same_exits_and_no_graph_more_as_a_batch_shrinks(name: str) -> None:
    counter = Counter()
    toy = make_toy(name)
    model = wrap(toy).eval()
    with torch.inference_mode():
        cases = [(toy.batch(size, seed=size), Bernoulli(size)) for size in (9, 1, 6, 13, 2)]
        expected = [model(inputs, policy=policy, **context) for (inputs, context), policy in cases]
        compile_steps(model, backend=counter)
        for ((inputs, context), policy), out in zip(cases, expected, strict=True):
            found = model(inputs, policy=policy, **context)
            assert found.exit_step.tolist() == out.exit_step.tolist()
            torch.testing.assert_close(found.outputs, out.outputs, atol=1e-5, rtol=1e-5)
    assert any(1 in out.exit_step and out.exit_step.max() > 1 for out in expected)
    kinds = len({type(step.fn) if hasattr(step, "fn") else type(step) for step in model.steps.fns})
    functions = len(model.steps.fns) if name == "functions" else kinds
    assert 0 < counter.graphs <= 2 * functions, "one for a row alone, and one for all other batches"


def test_predict_meets_both_graphs_once() -> None:
    counter = Counter()
    toy = make_toy("transformer")
    padding = ponder.Padding(mask="src_key_padding_mask", real=False)
    model = wrap(toy, padding=padding).eval()
    inputs, context = toy.batch(30)
    rows = [row[~mask] for row, mask in zip(inputs, context["src_key_padding_mask"], strict=True)]
    expected = model.predict(rows)
    compile_steps(model, backend=counter)
    for batch_size in (32, 7, 1):
        found = model.predict(rows, batch_size=batch_size)
        assert found.exit_step.tolist() == expected.exit_step.tolist()
    # Lengths of 1 and more, batches of 1 and more.
    assert counter.graphs <= 4


@torch.no_grad()
def test_weights_names_and_copies_are_as_before() -> None:
    model = wrap(make_toy("shared")).eval()
    names = list(model.state_dict())
    counter = Counter()
    compile_steps(model, backend=counter)
    assert list(model.state_dict()) == names
    rows = torch.randn(4, 8)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        copied(rows)
        assert counter.graphs == 0
    model(rows)
    assert counter.graphs > 0
    uncompile_steps(model)
    before = counter.graphs
    torch._dynamo.reset()
    model(rows)
    assert counter.graphs == before


# PyTorch's tracer looks for the gradient of every tensor, and says so of those that have none.
@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_a_compiled_model_learns() -> None:
    model, plain = wrap(make_toy("shared")), wrap(make_toy("shared"))
    plain.load_state_dict(model.state_dict())
    compile_steps(model, backend="aot_eager")
    rows, labels = torch.randn(6, 8), torch.tensor([0, 1, 2, 0, 1, 2])
    for each in (model, plain):
        each(rows, labels=labels).loss.backward()
    for (name, weight), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(weight.grad, other.grad, msg=name)


def test_sizes_are_always_open() -> None:
    with refused("dynamic", "False"):
        compile_steps(wrap(make_toy("shared")), dynamic=False)
    with refused("model", type_error=True):
        compile_steps(torch.nn.Linear(2, 2))  # type: ignore[arg-type]
