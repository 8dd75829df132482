"""One graph that stops by itself: an ONNX `Loop` over the shared step, for servers that take one file.

The graph answers one row. Begin (stem), body (step, readout, Lambda head, policy) and end (head) are traced on their
own and put together; what the policy remembers is carried from turn to turn, as in the loop of `ponder.engine`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ponder._utils.numerics import at_least_float32
from ponder._utils.trees import Tree, map_tensors, unwrap
from ponder.engine.model import EarlyExitModel
from ponder.engine.sources import ask_stem
from ponder.export.graphs import FlatTree, Part, Slot, flatten, head_part, read_out, write_graph
from ponder.export.manifest import TensorSpec
from ponder.parts.heads import PerStep
from ponder.parts.tasks import task_named
from ponder.policies import PolicyBatch, StepView

__all__ = ["can_be_one_graph", "write_single"]

_IN, _OUT, _END = "in.", "out.", "end."


def can_be_one_graph(model: EarlyExitModel) -> bool:
    """Whether all steps share their weights, and the head too; not where outputs have positions, of any number."""
    shared = len(model.steps.fns) == 1 and not isinstance(model.head, PerStep)
    return shared and not (model.task or task_named(None)).per_position


def write_single(
    model: EarlyExitModel,
    stem: Callable[..., Tree] | None,
    inputs: tuple[FlatTree, FlatTree, list[Slot]],
    state: tuple[FlatTree, FlatTree, list[Slot], list[Slot]],
    path: Path,
) -> None:
    """Write the graph: inputs of one row → ``output`` and ``exit_step``.

    Args:
        model: The model, in evaluation mode.
        stem: Its stem.
        inputs: Inputs and context of the example call, and their slots.
        state: Hidden state and context of the steps, and the slots of each.
        path: The file.
    """
    parts = _Parts(model, stem, inputs, state)
    with TemporaryDirectory() as scratch:
        files = [Path(scratch) / f"{name}.onnx" for name in ("begin", "body", "end")]
        write_graph(
            parts.begin(), parts.given, [*parts.context_names, *(slot.name for slot in parts.carried)], files[0]
        )
        turned = [Slot(_renamed(slot.spec, _IN + slot.name), slot.value) for slot in parts.carried]
        names = ["stays", *(_OUT + slot.name for slot in parts.carried)]
        write_graph(parts.body(), [*turned, *parts.context_slots], names, files[1])
        end = Slot(_renamed(parts.features.spec, _END + "features"), parts.features.value)
        write_graph(head_part(model, 1), [end], ["output"], files[2])
        _assemble(files, [slot.name for slot in parts.carried], parts.context_names, model.num_steps, path)


class _Parts:
    """What the loop carries, on one row of the example."""

    def __init__(
        self,
        model: EarlyExitModel,
        stem: Callable[..., Tree] | None,
        inputs: tuple[FlatTree, FlatTree, list[Slot]],
        state: tuple[FlatTree, FlatTree, list[Slot], list[Slot]],
    ) -> None:
        self.model, self.stem = model, stem
        self.inputs, self.call, given = inputs
        self.hidden, self.context, hidden_slots, context_slots = state
        prefix = "" if stem is not None else "context."  # or the graph would give what it takes under one name
        self.given = [_one_row(slot, slot.name) for slot in given]
        self.context_slots = [_one_row(slot, prefix + slot.name) for slot in context_slots]
        self.context_names = [slot.name for slot in self.context_slots]
        hidden = [_one_row(slot, f"h.{n}") for n, slot in enumerate(hidden_slots)]
        first = torch.zeros(1, dtype=torch.long)
        batch = PolicyBatch(first, model.num_steps, model.task or task_named(None))
        called = unwrap(self.context.filled([slot.value for slot in self.context_slots]))
        features, halting = self._features(self.hidden.filled([slot.value for slot in hidden]), called)
        self.past = 0 if model.lambda_head is None else model.lambda_head.history - 1
        begun, self.survival = model.policy.init(batch), torch.zeros(1, dtype=at_least_float32(features).dtype)
        _, after, _ = self._decide(first + 1, self.survival, [halting] * self.past, begun, features, halting)
        self.state = FlatTree(_begun(begun, after))
        self.features = _fixed("features", features)
        self.carried = [
            *hidden,
            _fixed("index", first),
            _fixed("log_survival", self.survival),
            *(_fixed(f"past.{n}", halting) for n in range(self.past)),
            *(_fixed(f"policy.{n}", tensor) for n, tensor in enumerate(self.state.values())),
            self.features,
        ]

    def begin(self) -> Part:
        """Inputs → context, and what the first turn is given."""
        count = len(self.inputs.values())

        def run(given: list[Tensor]) -> list[Tensor]:
            inputs, context = self.inputs.filled(given[:count]), self.call.filled(given[count:])
            hidden, after = inputs, context
            if self.stem is not None:
                hidden, after = ask_stem(self.stem, inputs, context)
            features, halting = self._features(hidden, unwrap(after))
            head = self.model.lambda_head
            before = halting if head is not None and head.initial == "stem" else torch.zeros_like(halting)
            kept = [torch.zeros(1, dtype=torch.long), self.survival.clone(), *[before] * self.past]
            state = [tensor.clone() for tensor in self.state.values()]
            return [*flatten(after), *flatten(hidden), *kept, *state, torch.zeros_like(features)]

        return Part(self.model, run)

    def body(self) -> Part:
        """One turn: whether the row stays, and what the next turn is given."""
        sizes = [len(self.hidden.values()), 1, 1, self.past, len(self.state.values()), 1]

        def run(given: list[Tensor]) -> list[Tensor]:
            hidden, (index,), (log_survival,), past, state, _, context = _split(given, sizes)
            called, at = unwrap(self.context.filled(context)), index + 1
            after = self.model.steps(1, self.hidden.filled(hidden), at, **called)
            features, halting = self._features(after, called)
            leaves, kept, log_survival = self._decide(
                at, log_survival, past, self.state.filled(state), features, halting
            )
            past = [halting, *past[:-1]] if past else []
            return [(~leaves).all(), *flatten(after), at, log_survival, *past, *flatten(kept), features]

        return Part(self.model, run)

    def _features(self, hidden: Tree, called: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """What the head and the Lambda head read."""
        model = self.model
        features, halting = read_out(model, model.readout, hidden, called), model.halting_readout
        return features, features if halting is None else read_out(model, halting, hidden, called)

    def _decide(
        self, at: Tensor, log_survival: Tensor, past: list[Tensor], state: Tree, features: Tensor, halting: Tensor
    ) -> tuple[Tensor, Tree, Tensor]:
        """Which rows leave, what the policy remembers, and log P(not stopped so far): `ponder.engine.loop.ask`."""
        model, policy, readings = self.model, self.model.policy, dict[str, Tensor]()
        if "hazard" in policy.needs:
            head: Any = model.lambda_head
            logit = at_least_float32(head(torch.cat([halting, *past], dim=-1)))
            readings["hazard"], readings["survival"] = logit.sigmoid(), log_survival.exp()
            log_survival = log_survival + F.logsigmoid(-logit)
            readings["cdf"] = -torch.expm1(log_survival)
        if "output" in policy.needs:
            readings["output"] = model.head(features)
        if "features" in policy.needs:
            readings["features"] = features
        task = model.task or task_named(None)
        if model.num_steps == 1:
            return torch.ones_like(at, dtype=torch.bool), state, log_survival
        asked = at.clamp(max=model.num_steps - 1)  # the last exit is the loop's own: there may be no table for it
        mask, state = policy.decide(StepView(asked, model.num_steps, readings, task), state)
        leaves = mask if isinstance(mask, Tensor) else torch.full(at.shape, bool(mask))
        return leaves, state, log_survival


def _assemble(files: Sequence[Path], carried: Sequence[str], context: Sequence[str], turns: int, path: Path) -> None:
    """Assemble one graph: the beginning, a Loop over the body, and the end."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    begin, body, end = (_prefixed(onnx.load(str(file)), f"{file.stem}/") for file in files)
    made = {value.name: value for value in body.graph.output}
    inputs = [
        helper.make_tensor_value_info("turn", TensorProto.INT64, []),
        helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []),
        *(_value(made[_OUT + name], _IN + name) for name in carried),
    ]
    outputs = [made["stays"], *(made[_OUT + name] for name in carried)]
    turn = helper.make_graph(body.graph.node, "body", inputs, outputs, list(body.graph.initializer))
    loop = helper.make_node(
        "Loop", ["turns", "go", *carried], [_END + name for name in carried], name="loop", body=turn
    )
    constants = [
        numpy_helper.from_array(torch.tensor(turns).numpy(), "turns"),
        numpy_helper.from_array(torch.tensor(True).numpy(), "go"),
    ]
    last = helper.make_node("Identity", [_END + "index"], ["exit_step"], name="exit_step")
    graph = helper.make_graph(
        [*begin.graph.node, loop, *end.graph.node, last],
        "ponder",
        list(begin.graph.input),
        [*end.graph.output, helper.make_tensor_value_info("exit_step", TensorProto.INT64, [1])],
        [*begin.graph.initializer, *constants, *end.graph.initializer],
    )
    model = helper.make_model(graph, opset_imports=list(body.opset_import), ir_version=body.ir_version)
    onnx.save(model, str(path))


def _prefixed(model: Any, prefix: str) -> Any:
    """A model whose inner names begin with a prefix, so that graphs can be joined; inputs and outputs keep theirs."""
    graph = model.graph
    kept = {"", *(value.name for value in (*graph.input, *graph.output))}

    def renamed(name: str) -> str:
        return name if name in kept else prefix + name

    for node in graph.node:
        node.name = prefix + node.name
        node.input[:] = [renamed(name) for name in node.input]
        node.output[:] = [renamed(name) for name in node.output]
    for constant in graph.initializer:
        constant.name = renamed(constant.name)
    return model


def _value(made: Any, name: str) -> Any:
    """A value of the same type under another name, without a shape, which may differ from turn to turn."""
    from onnx import helper

    return helper.make_tensor_value_info(name, made.type.tensor_type.elem_type, None)


def _begun(before: Tree, after: Tree) -> Tree:
    """A policy's first state, in the form of its later ones: zeros stand for "no value yet"."""
    if before is None:
        return map_tensors(torch.zeros_like, after)
    if isinstance(before, Mapping):
        return {key: _begun(value, after[key]) for key, value in before.items()}
    if isinstance(before, tuple | list):
        return type(before)(_begun(*pair) for pair in zip(before, after, strict=True))
    return before


def _one_row(slot: Slot, name: str) -> Slot:
    """The slot of one row alone, whose batch dimension does not vary, under another name."""
    return Slot(_renamed(slot.spec, name), slot.value if slot.spec.shared else slot.value[:1])


def _fixed(name: str, value: Tensor) -> Slot:
    return Slot(TensorSpec(name, str(value.dtype).removeprefix("torch."), tuple(value.shape), shared=True), value)


def _renamed(spec: TensorSpec, name: str) -> TensorSpec:
    """A spec whose rows do not vary, under another name."""
    return TensorSpec(name, spec.dtype, spec.shape, spec.along, spec.fill, spec.default, shared=True)


def _split(values: Sequence[Tensor], sizes: Sequence[int]) -> list[list[Tensor]]:
    """Split values into groups of these sizes, and the rest."""
    groups, start = [], 0
    for size in sizes:
        groups.append(list(values[start : start + size]))
        start += size
    return [*groups, list(values[start:])]
