"""A policy exports itself: `decide` as an ONNX graph gives the exits of a replay, rows leaving as they go."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from ponder import policies
from ponder.calibration import Record
from tests.policies.records import COMPOSED, POSITIONS, SIMPLE, exits_of, name, record

pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")
QUICK = ("Confidence", "Quantile", "Patience")


class Decide(nn.Module):
    """`decide` on flat tensors; a state that is None has no tensors yet."""

    def __init__(
        self, policy: policies.ExitPolicy, made: Record, names: list[str], spec: Any
    ) -> None:
        super().__init__()
        self.policy = policy
        self.made = made
        self.names = names
        self.spec = spec

    def forward(self, index: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        readings = dict(zip(self.names, rest, strict=False))
        state = list(rest[len(self.names) :])
        mask = readings.pop("mask", None)
        view = policies.StepView(index, self.made.num_steps, readings, self.made.batch.task, mask)
        leaves, new = self.policy.decide(view, unflatten(state, self.spec))
        leaves = torch.full(index.shape, leaves) if isinstance(leaves, bool) else leaves
        return (leaves, *flatten(new)[0])


def flatten(tree: Any) -> tuple[list[Tensor], tuple[Any, tuple[bool, ...]]]:
    leaves, spec = pytree.tree_flatten(tree)
    return [leaf for leaf in leaves if leaf is not None], (
        spec,
        tuple(leaf is not None for leaf in leaves),
    )


def unflatten(leaves: list[Any], spec: tuple[Any, tuple[bool, ...]]) -> Any:
    rest = iter(leaves)
    return pytree.tree_unflatten([next(rest) if there else None for there in spec[1]], spec[0])


def session(
    policy: policies.ExitPolicy,
    made: Record,
    names: list[str],
    spec: Any,
    example: tuple[Tensor, ...],
) -> Any:
    rows = {0: torch.export.Dim.DYNAMIC}
    shapes = (rows, tuple(rows for _ in example[1:]))
    graph = Decide(policy, made, names, spec)
    program = torch.onnx.export(graph, example, dynamo=True, dynamic_shapes=shapes, verbose=False)
    stream = io.BytesIO()
    program.save(stream)
    return onnxruntime.InferenceSession(stream.getvalue(), providers=["CPUExecutionProvider"])


def exits_of_graphs(policy: policies.ExitPolicy, made: Record) -> tuple[list[int], int]:
    """Exit steps by graphs alone, and how many graphs there are: one, or another for the first step."""
    graphs = dict[str, Any]()
    exits = np.full(40, made.num_steps)
    rows = np.arange(40)
    leaves, spec = flatten(policy.init(made.batch))
    for n, view in zip(range(1, made.num_steps), made.views(policy.needs), strict=False):
        readings = dict(view.readings) | ({} if made.mask is None else {"mask": made.mask})
        values = (view.index[rows], *(reading[rows] for reading in readings.values()), *leaves)
        if str(spec) not in graphs:
            graphs[str(spec)] = session(policy, made, list(readings), spec, values)
        by_name = {"index": values[0], **{f"rest_{i}": value for i, value in enumerate(values[1:])}}
        wanted = [each.name for each in graphs[str(spec)].get_inputs()]
        found = graphs[str(spec)].run(
            None, {key: by_name[key.removesuffix("_orig")].numpy() for key in wanted}
        )
        kept = policies.StepView(
            values[0],
            made.num_steps,
            dict(zip(view.readings, values[1:], strict=False)),
            made.batch.task,
        )
        spec = flatten(policy.decide(kept, unflatten(leaves, spec))[1])[
            1
        ]  # a manifest would hold it
        exits[rows[found[0]]], rows = n, rows[~found[0]]
        leaves = [torch.as_tensor(value[~found[0]]) for value in found[1:]]
        if not len(rows):
            break
    return [int(step) for step in exits], len(graphs)


SAMPLING = COMPOSED[0]
NESTED = COMPOSED[-2]
"""A policy of every combinator; the simple policies inside are traced by themselves."""
CASES = [(policy, "classification") for policy in (*SIMPLE, SAMPLING, NESTED) if policy.needs]
CASES += [(policy, "token_classification") for policy in POSITIONS]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("policy", "task"),
    [
        pytest.param(
            policy,
            task,
            marks=() if type(policy).__name__ in QUICK else pytest.mark.slow,
            id=f"{name(policy)}-{task}",
        )
        for policy, task in CASES
    ],
)
def test_a_policy_exports_itself(policy: policies.ExitPolicy, task: str) -> None:
    made = record(task, dtype=torch.float32)
    exits, graphs = exits_of_graphs(policy, made)
    assert exits == exits_of(made, policy)
    assert graphs <= 2
