"""The parts of a model, and its policy, as ONNX graphs, each run once and compared with PyTorch."""

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
from ponder.deploy.runtime import Graph
from ponder.errors import ArgumentError, PonderError
from ponder.policies.base import ExitPolicy, PolicyBatch, StepView, all_within
from ponder.tasks import Task

__all__ = ["Slot", "flatten", "refilled", "write_graph", "write_policy"]

onnx: Any = library("onnx", "exporting", "cli")

_READINGS = {"hazard": ("hazard", "cdf", "survival")}
"""What is read where a policy needs more than one reading."""


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
        names = {dim: torch.export.Dim("length") for dim in self.spec.along}
        return names if self.spec.shared else {0: torch.export.Dim("batch"), **names}


class _Part(nn.Module):
    """A function of tensors, with the module whose weights it uses."""

    def __init__(self, module: nn.Module, run: Callable[[list[Tensor]], list[Tensor]]) -> None:
        super().__init__()
        self.module = module
        self.run = run

    def forward(self, given: list[Tensor]) -> list[Tensor]:
        return self.run(given)


def flatten(tree: Tree) -> list[Tensor]:
    """Return the tensors of a tree, those in `Shared` values included."""
    leaves = [leaf.value if isinstance(leaf, Shared) else leaf for leaf in pytree.tree_leaves(tree)]
    return [leaf for leaf in pytree.tree_leaves(leaves) if isinstance(leaf, Tensor)]


def refilled(tree: Tree, values: Sequence[Tensor]) -> Tree:
    """Return a tree with other tensors, in its order; everything else is a constant."""
    rest = iter(values)

    def put(leaf: Any) -> Any:
        if isinstance(leaf, Shared):
            return Shared(pytree.tree_map(put, leaf.value))
        return next(rest) if isinstance(leaf, Tensor) else leaf

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
    """Write a part as a graph for any number of rows and any length, and return its outputs on the example.

    Args:
        module: The module whose weights the part uses.
        run: The part, a function of the values of the slots.
        given: Its inputs; those that it does not read are left out of the graph.
        outputs: Names of its outputs.
        path: The file.
        like: The graph of the first part of this kind: with the weights of this part it is taken,
            where it answers as this part does, since tracing takes long.

    Raises:
        PonderError: PyTorch cannot trace the part, or the graph answers in another way.
    """
    copied = (
        like is not None
        and _write_like(module, like, path)
        and _differs(run, given, outputs, path) is None
    )
    if not copied:
        _trace(module, run, given, outputs, path)
    wrong = None if copied else _differs(run, given, outputs, path)
    if wrong is not None:
        raise PonderError(
            f"{path.name}: {wrong!r} is not what PyTorch gives on the example. A part cannot be traced whose "
            "code depends on the values of its input: write it without Python conditions on tensors."
        )
    return run([slot.value.clone() for slot in given])


def _trace(
    module: nn.Module, run: Any, given: Sequence[Slot], outputs: Sequence[str], path: Path
) -> None:
    part = _Part(module, run)
    disabled = logging.root.manager.disable
    library("onnxscript", "exporting", "cli")  # which torch.onnx.export reads
    try:
        with warnings.catch_warnings():
            logging.disable(logging.WARNING)  # of the exporter's own insides, as are its warnings
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
        why = str(error).strip().splitlines()
        raise PonderError(
            f"{path.stem}: PyTorch cannot export this part of the model ({why[0] if why else type(error).__name__}). "
            "Steps, stem, readout, heads and policies must be traceable by torch.export, for any batch and length."
        ) from error
    finally:
        logging.disable(disabled)
    proto = program.model_proto
    read = {name for node in proto.graph.node for name in node.input} | {
        made.name for made in proto.graph.output
    }
    for unread in [value for value in proto.graph.input if value.name not in read]:
        proto.graph.input.remove(unread)
    onnx.save(proto, str(path))


def _write_like(module: nn.Module, like: Path, path: Path) -> bool:
    """Write the graph of the first of several parts with the weights of a later one, and return whether it has them.

    The number of a part stands in the names of its weights, `layer.0.…` say, and at the end of the
    file's name.
    """
    place = int(path.stem.rpartition("_")[2]) - 1
    own = {name: p.detach().numpy() for name, p in module.named_parameters()}
    proto = onnx.load(str(like))
    moved = 0
    later: dict[
        tuple[Any, bytes], Any
    ] = {}  # eight zero bytes may be a bias of two numbers, or one integer
    for name, value in own.items():
        other = own.get(name.replace(".0.", f".{place}.", 1))
        if ".0." in name and other is not None and other.shape == value.shape:
            later |= {
                (value.dtype, value.tobytes()): other,
                (value.dtype, value.T.tobytes()): other.T,
            }
    for weight in proto.graph.initializer:
        first = onnx.numpy_helper.to_array(weight)
        other = later.get((first.dtype, first.tobytes()))
        if other is not None:
            made = np.ascontiguousarray(other).reshape(tuple(weight.dims))
            weight.CopyFrom(onnx.numpy_helper.from_array(made, weight.name))
            moved += 1
    onnx.save(proto, str(path))
    return moved > 0


def _differs(run: Any, given: Sequence[Slot], outputs: Sequence[str], path: Path) -> str | None:
    """Return the output in which a graph and PyTorch differ, on all rows of the example or on the last alone."""
    graph = Graph(path, 1)
    for rows in (slice(None), slice(-1, None)):
        chosen = [slot.value if slot.spec.shared else slot.value[rows] for slot in given]
        found = graph(
            {slot.spec.name: value.numpy() for slot, value in zip(given, chosen, strict=True)}
        )
        for name, value in zip(outputs, run([value.clone() for value in chosen]), strict=True):
            if not np.allclose(found[name], value.numpy(), rtol=1e-4, atol=1e-4, equal_nan=True):
                return name
    return None


def write_policy(
    policy: ExitPolicy, num_steps: int, task: Task, readings: Mapping[str, Slot], folder: Path
) -> PolicyGraphs:
    """Write a policy's `init` and `decide` as graphs; its thresholds are inputs of them.

    Args:
        policy: Any policy, one of the user's own included.
        num_steps: N.
        task: The meaning of the outputs.
        readings: Examples of what a policy may read, by name, and of the mask.
        folder: The folder.
    """
    if "context" in policy.needs:
        expected = "a policy that reads the model alone"
        remedy = "Serve it with PyTorch."
        raise ArgumentError(
            "policy",
            expected=expected,
            got=f"{policy!r}, which reads policy_context",
            remedy=remedy,
        )
    together = policy.exit_of_all(num_steps)
    if together is not None:
        return PolicyGraphs(together=together)
    tunable = [part for part in all_within(policy) if part.tunable is not None]
    thresholds = {}
    for number, part in enumerate(tunable):
        assert part.tunable is not None
        thresholds[f"threshold_{number}"] = float(getattr(part, part.tunable.field))
    limits = [Slot.of(name, torch.tensor(value), shared=True) for name, value in thresholds.items()]
    names = [name for need in sorted(policy.needs) for name in _READINGS.get(need, (need,))]
    names += ["mask"] if "mask" in readings else []
    rows = next(iter(readings.values())).value.shape[0]
    length = next((slot.value.shape[1] for slot in readings.values() if slot.spec.along), None)
    ids = Slot.of("row_ids", torch.arange(rows))
    count = 1 + len(names)

    def init(given: list[Tensor]) -> Tree:
        return policy.init(PolicyBatch(given[0], num_steps, task))

    def decide(given: list[Tensor], state: Tree) -> tuple[Tensor, Tree]:
        moved = _with_thresholds(policy, given[count : count + len(limits)])
        seen = dict(zip(names, given[1:count], strict=True))
        real = seen.pop("mask", None)
        context = {"group": seen.pop("group")} if "group" in seen else None
        view = StepView(given[0], num_steps, seen, task, real, context)
        mask, after = moved.decide(view, refilled(state, given[count + len(limits) :]))
        return torch.full(given[0].shape, mask) if isinstance(mask, bool) else mask, after

    state = init([ids.value])
    module = nn.Module()
    if flatten(state):
        outputs = [f"state_{n}" for n in range(len(flatten(state)))]
        write_graph(
            module, lambda given: flatten(init(given)), [ids], outputs, folder / "policy_init.onnx"
        )
    for step, file in ((1, "policy_first.onnx"), (2, "policy_later.onnx")):
        given = [
            Slot.of("index", torch.full((rows,), step)),
            *(readings[name] for name in names),
            *limits,
        ]
        for n, value in enumerate(flatten(state)):
            given.append(
                Slot.of(f"state_{n}", value, along=(1,) if value.shape[1:2] == (length,) else ())
            )
        after = decide([slot.value for slot in given], state)[1]
        outputs = ["exits", *(f"next_{n}" for n in range(len(flatten(after))))]

        def decide_flat(inputs: list[Tensor], state: Tree = state) -> list[Tensor]:
            return flatten(decide(inputs, state))

        write_graph(module, decide_flat, given, outputs, folder / file)
        if _filled(after) == _filled(state):
            break
        state = after
    return PolicyGraphs(tuple(sorted(policy.needs)), thresholds)


def _filled(tree: Tree) -> list[bool]:
    """Return which leaves of a state have a value: before the first step some are None."""
    return [isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(tree)]


def _with_thresholds(policy: ExitPolicy, values: Sequence[Tensor]) -> ExitPolicy:
    """Return a copy of a policy whose thresholds are tensors, which its constructor would refuse."""
    made = copy.deepcopy(policy)
    parts = [part for part in all_within(made) if part.tunable is not None]
    for part, value in zip(parts, values, strict=True):
        object.__setattr__(part, part.tunable.field, value)  # type: ignore[union-attr]
    return made
