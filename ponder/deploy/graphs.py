"""The parts of a model, and its policy, as ONNX graphs, each run once and compared with PyTorch.

`write_graph` traces one part, or copies the graph of a similar one with other weights, and runs it.
`write_policy` writes `init` and `decide` of a policy with it.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ponder._utils.checks import library
from ponder._utils.trees import Shared, Tree
from ponder.deploy.manifest import PolicyGraphs, TensorSpec
from ponder.deploy.sessions import Graph
from ponder.errors import ArgumentError, PonderError
from ponder.policies.base import ExitPolicy, StepView, all_within
from ponder.tasks import Task

__all__ = ["Slot", "flatten", "refilled", "write_graph", "write_policy"]

onnx: Any = library("onnx", "exporting", "cli")

_READINGS = {"hazard": ("hazard", "cdf", "survival")}
"""The readings of a need that has more than one."""


@dataclass(frozen=True, eq=False)
class Slot:
    """A tensor of a graph: its description, and its value in the example."""

    spec: TensorSpec
    value: Tensor

    @classmethod
    def of(cls, name: str, value: Tensor, **options: Any) -> Self:
        """Return the slot of a tensor; options are those of `TensorSpec`."""
        return cls(
            TensorSpec(name, str(value.dtype).removeprefix("torch."), **options),
            value.detach().contiguous(),
        )

    @property
    def dynamic(self) -> dict[int, Any]:
        """The dimensions that vary."""
        dimensions = {dim: torch.export.Dim("length") for dim in self.spec.along}
        if not self.spec.shared:
            dimensions[0] = torch.export.Dim("batch")
        return dimensions


class _Part(nn.Module):
    """A function of tensors, with the module whose weights it uses."""

    def __init__(self, module: nn.Module, run: Callable[[list[Tensor]], list[Tensor]]) -> None:
        super().__init__()
        self.module = module
        self.run = run

    def forward(self, given: list[Tensor]) -> list[Tensor]:
        return self.run(given)


def flatten(tree: Tree) -> list[Tensor]:
    """Return the tensors of a tree, with those in `Shared` values."""
    leaves = [leaf.value if isinstance(leaf, Shared) else leaf for leaf in pytree.tree_leaves(tree)]
    return [leaf for leaf in pytree.tree_leaves(leaves) if isinstance(leaf, Tensor)]


def refilled(tree: Tree, values: Sequence[Tensor]) -> Tree:
    """Return a tree with other tensors, in its order; other leaves are constants."""
    rest = iter(values)

    def put(leaf: Any) -> Any:
        if isinstance(leaf, Shared):
            return Shared(pytree.tree_map(put, leaf.value))
        if isinstance(leaf, Tensor):
            return next(rest)
        return leaf

    return pytree.tree_map(put, tree)


@torch.no_grad()
def write_graph(
    module: nn.Module,
    run: Callable[[list[Tensor]], list[Tensor]],
    given: Sequence[Slot],
    outputs: Sequence[str],
    path: Path,
    like: Path | None = None,
) -> list[Tensor]:
    """Write a part as a graph for any number of rows and any length.

    Args:
        module: The module whose weights the part uses.
        run: The part, a function of the values of the slots.
        given: Its inputs; the graph leaves out those that it does not read.
        outputs: Names of its outputs.
        path: The file.
        like: The graph of the first part of this kind. Since tracing takes long, it is copied with
            the weights of this part, and traced only if the copy answers differently.

    Returns:
        The outputs of the part on the example.

    Raises:
        PonderError: PyTorch cannot trace the part, or the graph answers differently.
    """
    is_copied = (
        like is not None
        and _write_like(module, like, path)
        and _differs(run, given, outputs, path) is None
    )
    if not is_copied:
        _trace(module, run, given, outputs, path)
        wrong = _differs(run, given, outputs, path)
        if wrong is not None:
            raise PonderError(
                f"{path.name}: {wrong!r} differs from PyTorch's on the example. A part whose code "
                "depends on the values of its input cannot be traced: write it without Python "
                "conditions on tensors, and make the state of a policy for any number of rows: "
                "torch.zeros(first.size)."
            )
    return run([slot.value.clone() for slot in given])


def _trace(
    module: nn.Module, run: Any, given: Sequence[Slot], outputs: Sequence[str], path: Path
) -> None:
    """Trace a part, and write its graph without the inputs that it does not read."""
    part = _Part(module, run)
    disabled = logging.root.manager.disable
    library("onnxscript", "exporting", "cli")  # torch.onnx.export imports it
    try:
        with warnings.catch_warnings():
            # The exporter logs and warns about its own internals.
            logging.disable(logging.WARNING)
            warnings.simplefilter("ignore")
            program: Any = torch.onnx.export(
                part,
                ([slot.value.clone() for slot in given],),
                input_names=[slot.spec.name for slot in given],
                output_names=list(outputs),
                dynamic_shapes=([slot.dynamic for slot in given],),
                dynamo=True,
                verbose=False,
            )
    except Exception as error:
        reason = [*str(error).strip().splitlines(), type(error).__name__][0]
        raise PonderError(
            f"{path.stem}: PyTorch cannot export this part of the model ({reason}). Steps, stem, "
            "readout, heads and policies must be traceable by torch.export, for any batch and "
            "length."
        ) from error
    finally:
        logging.disable(disabled)
    proto = program.model_proto
    read = {name for node in proto.graph.node for name in node.input}
    read |= {output.name for output in proto.graph.output}
    for unread in [value for value in proto.graph.input if value.name not in read]:
        proto.graph.input.remove(unread)
    onnx.save(proto, str(path))


def _write_like(module: nn.Module, like: Path, path: Path) -> bool:
    """Write the graph of the first of several parts with the weights of a later one.

    The names of weights contain the number of their part, as in `layer.0.…`; the file's name ends
    with it. A weight of the graph is recognised by its numbers, which may be transposed.

    Returns:
        Whether the graph has such weights.
    """
    number = int(path.stem.rpartition("_")[2]) - 1
    weights = {name: weight.detach().numpy() for name, weight in module.named_parameters()}
    proto = onnx.load(str(like))
    moved = 0
    # By type too: eight zero bytes may be a bias of two numbers, or one integer.
    later: dict[tuple[Any, bytes], Any] = {}
    for name, value in weights.items():
        other = weights.get(name.replace(".0.", f".{number}.", 1))
        if ".0." in name and other is not None and other.shape == value.shape:
            later[value.dtype, value.tobytes()] = other
            later[value.dtype, value.T.tobytes()] = other.T
    for weight in proto.graph.initializer:
        first = onnx.numpy_helper.to_array(weight)
        other = later.get((first.dtype, first.tobytes()))
        if other is not None:
            array = np.ascontiguousarray(other).reshape(tuple(weight.dims))
            weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
            moved += 1
    onnx.save(proto, str(path))
    return moved > 0


def _differs(run: Any, given: Sequence[Slot], outputs: Sequence[str], path: Path) -> str | None:
    """Return the output in which a graph and PyTorch differ, on the example or on its last row.

    None if they agree.
    """
    graph = Graph(path, 1)
    all_rows = slice(None)
    last_row = slice(-1, None)
    for rows in (all_rows, last_row):
        values = [slot.value if slot.spec.shared else slot.value[rows] for slot in given]
        names = [slot.spec.name for slot in given]
        arrays = {name: value.numpy() for name, value in zip(names, values, strict=True)}
        answers = graph(arrays)
        expected = run([value.clone() for value in values])
        for name, tensor in zip(outputs, expected, strict=True):
            answer = answers[name]
            # A fixed number of rows would be broadcast against the one row.
            if answer.shape != tuple(tensor.shape):
                return name
            if not np.allclose(answer, tensor.numpy(), rtol=1e-4, atol=1e-4, equal_nan=True):
                return name
    return None


@dataclass(frozen=True)
class _PolicyInputs:
    """The inputs of a policy's `init` and `decide` as one list of tensors, for graphs.

    The order is: the steps of the rows, their ids, the readings, the thresholds; and, for `decide`,
    the tensors of the state.

    Args:
        policy: The policy.
        num_steps: N.
        task: The meaning of the outputs.
        readings: The readings that the policy needs, and the mask, with their values on an example.
        thresholds: The thresholds of its parts, by the names of their inputs.
        rows: The number of rows of the example.
        length: The number of positions of the example; None if nothing has positions.
    """

    policy: ExitPolicy
    num_steps: int
    task: Task
    readings: Mapping[str, Slot]
    thresholds: Mapping[str, float]
    rows: int
    length: int | None

    @classmethod
    def of(
        cls, policy: ExitPolicy, num_steps: int, task: Task, readings: Mapping[str, Slot]
    ) -> Self:
        """Return the inputs of a policy, of whose readings examples are given."""
        names = [name for need in sorted(policy.needs) for name in _READINGS.get(need, (need,))]
        if "mask" in readings:
            names.append("mask")
        values = [
            float(getattr(part, part.tunable.field))
            for part in all_within(policy)
            if part.tunable is not None
        ]
        lengths = [slot.value.shape[1] for slot in readings.values() if slot.spec.along]
        first = next(iter(readings.values()))
        return cls(
            policy,
            num_steps,
            task,
            readings={name: readings[name] for name in names},
            thresholds={f"threshold_{number}": value for number, value in enumerate(values)},
            rows=first.value.shape[0],
            length=next(iter(lengths), None),
        )

    def of_step(self) -> list[Slot]:
        """Return what is read at the first step, on the example."""
        slots = [
            Slot.of("index", torch.ones(self.rows, dtype=torch.long)),
            Slot.of("row_ids", torch.arange(self.rows)),
            *self.readings.values(),
        ]
        for name, value in self.thresholds.items():
            slots.append(Slot.of(name, torch.tensor(value), shared=True))
        return slots

    def of_state(self, state: Tree) -> list[Slot]:
        """Return the tensors of a state, on the example."""
        slots: list[Slot] = []
        for number, tensor in enumerate(flatten(state)):
            has_positions = tensor.shape[1:2] == (self.length,)
            along = (1,) if has_positions else ()
            slots.append(Slot.of(f"state_{number}", tensor, along=along))
        return slots

    def init(self, inputs: Sequence[Tensor]) -> Tree:
        """Call the policy's `init` with what is read at a step."""
        policy, view = self._read(inputs)
        return policy.init(view)

    def decide(self, inputs: Sequence[Tensor], state: Tree) -> tuple[Tensor, Tree]:
        """Call the policy's `decide` with the inputs; `state` has the structure of the state."""
        policy, view = self._read(inputs)
        first_state = 2 + len(self.readings) + len(self.thresholds)
        exits, after = policy.decide(view, refilled(state, inputs[first_state:]))
        if isinstance(exits, bool):
            exits = torch.full((view.size,), exits)
        return exits, after

    def _read(self, inputs: Sequence[Tensor]) -> tuple[ExitPolicy, StepView]:
        """Return the policy with the thresholds among the inputs, and the view of the others."""
        index, row_ids, *rest = inputs
        readings = dict(zip(self.readings, rest, strict=False))
        thresholds = rest[len(readings) : len(readings) + len(self.thresholds)]
        mask = readings.pop("mask", None)
        context = None
        if "group" in readings:
            context = {"group": readings.pop("group")}
        view = StepView(index, row_ids, self.num_steps, readings, self.task, mask, context)
        return _with_thresholds(self.policy, thresholds), view


def write_policy(
    policy: ExitPolicy, num_steps: int, task: Task, readings: Mapping[str, Slot], folder: Path
) -> PolicyGraphs:
    """Write a policy's `init` and `decide` as graphs; its thresholds are inputs of them.

    Args:
        policy: Any policy of the library or of the user.
        num_steps: N.
        task: The meaning of the outputs.
        readings: Examples of the readings of policies, by name, and of the mask.
        folder: The folder.

    Raises:
        ArgumentError: The policy reads the `policy_context` of a call.
        PonderError: Its state has a fixed number of rows, or becomes another one after a step.
    """
    if "context" in policy.needs:
        raise ArgumentError(
            "policy",
            expected="a policy that reads the model alone",
            got=f"{policy!r}, which reads policy_context",
            remedy="Serve it with PyTorch.",
        )
    together = policy.exit_of_all(num_steps)
    if together is not None:
        return PolicyGraphs(together=together)
    inputs = _PolicyInputs.of(policy, num_steps, task, readings)
    state = _write_init(inputs, folder / "policy_init.onnx")
    _write_decide(inputs, state, folder / "policy_decide.onnx")
    return PolicyGraphs(tuple(sorted(policy.needs)), dict(inputs.thresholds))


def _write_init(inputs: _PolicyInputs, path: Path) -> Tree:
    """Write the graph of `init`, if the state has tensors, and return the state of the example."""
    slots = inputs.of_step()
    of_one_row = [slot.value if slot.spec.shared else slot.value[:1] for slot in slots]
    if any(tensor.shape[:1] != (1,) for tensor in flatten(inputs.init(of_one_row))):
        raise PonderError(
            f"the state of {inputs.policy!r} has a fixed number of rows. Make it in `init` for any "
            "number: torch.zeros(first.size)."
        )
    state = inputs.init([slot.value for slot in slots])
    names = [slot.spec.name for slot in inputs.of_state(state)]
    if names:

        def init(arguments: list[Tensor]) -> list[Tensor]:
            return flatten(inputs.init(arguments))

        write_graph(nn.Module(), init, slots, names, path)
    return state


def _write_decide(inputs: _PolicyInputs, state: Tree, path: Path) -> None:
    """Write the graph of `decide`."""
    slots = [*inputs.of_step(), *inputs.of_state(state)]
    _, after = inputs.decide([slot.value for slot in slots], state)
    if _kinds(after) != _kinds(state):
        raise PonderError(
            f"the state of {inputs.policy!r} is {_kinds(state)} before the first step and "
            f"{_kinds(after)} after it. Return the whole state from `init`, which may read the "
            "first step: torch.zeros_like(first.output)."
        )
    outputs = ["exits", *(f"next_{number}" for number in range(len(flatten(after))))]

    def decide(arguments: list[Tensor]) -> list[Tensor]:
        return flatten(inputs.decide(arguments, state))

    write_graph(nn.Module(), decide, slots, outputs, path)


def _kinds(state: Tree) -> list[tuple[torch.dtype, tuple[int, ...]]]:
    """Return the types and shapes of the tensors of a state."""
    return [(tensor.dtype, tuple(tensor.shape)) for tensor in flatten(state)]


def _with_thresholds(policy: ExitPolicy, values: Sequence[Tensor]) -> ExitPolicy:
    """Return a copy of a policy whose thresholds are tensors, as its constructor refuses."""
    copied = copy.deepcopy(policy)
    parts = [part for part in all_within(copied) if part.tunable is not None]
    for part, value in zip(parts, values, strict=True):
        object.__setattr__(part, part.tunable.field, value)  # type: ignore[union-attr]
    return copied
