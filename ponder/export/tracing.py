"""Tracing: each part of a model becomes a graph, which is run and compared with PyTorch before it counts."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ponder._utils.trees import Shared, Tree
from ponder.engine.certificates import policy_to_hand_on
from ponder.engine.model import EarlyExitModel
from ponder.engine.sources import ask_stem
from ponder.errors import ArgumentError, CheckpointError, PonderError
from ponder.export.graphs import (
    FlatTree,
    Part,
    Slot,
    flatten,
    head_part,
    lambda_part,
    readout_part,
    stem_part,
    step_part,
    write_graph,
)
from ponder.export.manifest import NEXT, Manifest, TensorSpec
from ponder.export.sessions import Graph
from ponder.export.single import can_be_one_graph, write_single
from ponder.export.source import ExportSource, named
from ponder.parts.heads import PerStep
from ponder.parts.padding import Along, Padding
from ponder.parts.readouts import ReadoutCall
from ponder.parts.tasks import Classification, Custom, Multilabel, Regression, Span, Task, task_named
from ponder.parts.tasks.classification import Unnamed

__all__ = ["Tracer"]


class Tracer:
    """Traces the parts of a model, one after the other, and checks each against PyTorch.

    Args:
        source: What is exported, its model in evaluation mode.
        folder: Where graphs are written.
        int8: Whether the steps will be quantised.
    """

    def __init__(self, source: ExportSource, folder: Path, int8: bool) -> None:
        self.source, self.model, self.folder, self.int8 = source, source.model, folder, int8
        padding, inputs, context = self.model.padding, source.inputs, dict(source.context)
        self.stem = self.model.stem if padding is None or padding.stem is None else padding.stem
        hidden: Tree = inputs
        after: Mapping[str, Any] = context
        if self.stem is not None:
            hidden, after = ask_stem(self.stem, inputs, context)
        self.task = self.model.task or task_named(None)
        self.pooled = padding is not None and padding.pooled and not self.task.per_position
        self.narrows = padding is not None and self.pooled and _keeps_lengths(padding, hidden, after, context)
        self.inputs, self.call = FlatTree(inputs), FlatTree(context)
        self.hidden, self.context = FlatTree(hidden), FlatTree(after)
        of_inputs = [None if padding is None else padding.of_inputs(tensor) for tensor in self.inputs.values()]
        of_hidden = None if padding is None else [along for _, along in padding.of_state(hidden)]
        self.input_slots = [
            *_slots(named(source.name, inputs), self.inputs.values(), of_inputs),
            *_context_slots("", context, self.model, source.defaults),
        ]
        own_names = self.stem is not None  # without a stem, what is given is the hidden state itself
        self.hidden_slots = _slots(
            named("hidden" if own_names else source.name, hidden), self.hidden.values(), of_hidden
        )
        self.context_slots = _context_slots(
            "context." if own_names else "", after, self.model, source.defaults, filled=not own_names
        )

    def write(self) -> Manifest:
        """Write all graphs, and say what they are."""
        _check_positions(self.input_slots)
        model, state = self.model, [*self.hidden_slots, *self.context_slots]
        inputs, stem = self._write_stem(state)
        readout, features = self._graph("readout", self._readout(model.readout), state, ["features"])
        task, padding = self.task, model.padding
        heads, outputs = self._write_heads(_slots(["features"], features, [self._along_positions(features[0])]))
        if task.per_position:
            self._check_outputs(outputs)
        return Manifest(
            num_steps=model.num_steps,
            schedule=model.steps.schedule,
            task=task.name,
            classes=task.classes,
            numbers=task.numbers,
            own_answers=_has_own_answers(task),
            per_token=task.per_token,
            per_position=task.per_position,
            blank=task.blank,
            policy=policy_to_hand_on(model).to_dict(),
            inputs=inputs,
            hidden=tuple(slot.spec for slot in self.hidden_slots),
            context=tuple(slot.spec for slot in self.context_slots),
            outputs=tuple(outputs.shape[2 if task.per_position else 1 :]),
            features=tuple(features[0].shape[1:]),
            steps=self._write_steps(state),
            readout=readout,
            heads=heads,
            stem=stem,
            mask=None if padding is None or padding.mask not in {spec.name for spec in inputs} else padding.mask,
            real=1 if padding is None else int(padding.real),
            narrows=self.narrows,
            single=self._write_single(),
            labels=self.source.labels,
            columns=self.source.columns,
            weights=model.weights_digest(),
            **self._write_halting(state, features[0]),
        )

    def _along_positions(self, features: Tensor) -> Along | None:
        """The positions of features that the readout does not pool, which are as many as those of the batch."""
        lengths = {slot.value.shape[dim] for slot in self.hidden_slots for dim in slot.spec.along}
        unpooled = not self.pooled and features.dim() > 2
        return Along((1,)) if unpooled and features.shape[1] in lengths else None

    def _check_outputs(self, outputs: Tensor) -> None:
        """Refuse outputs whose positions are not those that the inputs have, or whose padding an export cannot know."""
        padding, context = self.model.padding, self.source.context
        real = self.model.positions(context, self.context.tree)
        if real is not None and (padding is None or padding.mask not in context):
            raise ArgumentError(
                "example",
                expected="a call with the mask of a model whose ponder.Padding names it, by which padding is known",
                got="a mask that "
                + ("no padding names" if padding is None else "the stem makes, and none in the call"),
                remedy="Wrap the model with padding=ponder.Padding(…), and pass the mask in the example.",
            )
        given = self.model.positions(context)
        width = None if given is None else given.shape[1]
        if outputs.dim() < 3 or width not in (None, outputs.shape[1]):
            raise ArgumentError(
                "model",
                expected=f"outputs (batch, {width or 'length'}, …): one for each position of the inputs",
                got=f"shape {tuple(outputs.shape)}",
                remedy="Serve a model whose stem makes other positions with PyTorch.",
            )

    def _write_stem(self, state: list[Slot]) -> tuple[tuple[TensorSpec, ...], str | None]:
        """The inputs that are read, and the graph of the stem."""
        specs = tuple(slot.spec for slot in self.input_slots)
        if self.stem is None:
            return specs, None
        part = stem_part(self.model, self.stem, self.inputs, self.call)
        name, _ = self._graph("stem", part, self.input_slots, [slot.name for slot in state])
        padding, read = self.model.padding, Graph(self.folder / name).inputs
        kept = [spec for spec in specs if spec.name in read or (padding is not None and spec.name == padding.mask)]
        refused = {slot.name for slot in self.input_slots if self._refuses_below_zero(part, slot)}
        return tuple(replace(spec, indexes=spec.name in refused) for spec in kept), name

    def _refuses_below_zero(self, part: Part, slot: Slot) -> bool:
        """Whether PyTorch takes no number below 0 at an input, as of an embedding; a graph counts it from the end."""
        if slot.value.dtype not in (torch.int16, torch.int32, torch.int64):
            return False
        below = slot.value.clone()
        below.view(-1)[-1] = -1
        try:
            part([below if other is slot else other.value for other in self.input_slots])
        except Exception:  # whatever PyTorch stumbles over
            return True
        return False

    def _write_single(self) -> str | None:
        """The one graph that stops by itself, where weights are shared; it is quantised nowhere, so int8 has none."""
        if self.int8 or not can_be_one_graph(self.model):
            return None
        inputs = self.inputs, self.call, self.input_slots
        state = self.hidden, self.context, self.hidden_slots, self.context_slots
        path = self.folder / "model.onnx"
        try:
            write_single(self.model, self.stem, inputs, state, path)
        except PonderError as error:  # the parts have been traced by now: it is the policy among them that cannot be
            warnings.warn(
                f"{path.name} is not written, since {self.model.policy!r} cannot be traced: {error} "
                "ponder.export.OnnxModel needs no such graph, and runs the policy by its twin.",
                stacklevel=4,
            )
            return None
        for row in range(2):  # as in PyTorch, where the example's rows run alone
            values = {slot.name: slot.value if slot.spec.shared else slot.value[[row]] for slot in self.input_slots}
            found = _opened(path)({name: value.numpy() for name, value in values.items()})
            rest = [values[slot.name] for slot in self.input_slots]
            count = len(self.inputs.values())
            called = self.call.filled(rest[count:])
            want = self.model.exits(
                self.inputs.filled(rest[:count]), called, self.model.policy, row_ids=torch.tensor([0])
            )
            same = np.allclose(found["output"], want.outputs.numpy(), rtol=1e-4, atol=1e-4)
            if not same or found["exit_step"].tolist() != want.exit_step.tolist():
                raise PonderError(
                    "model.onnx does not answer as PyTorch does on the example; please report this model."
                )
        return path.name

    def _write_steps(self, state: list[Slot]) -> tuple[str, ...]:
        rows = self.hidden_slots[0].value.shape[0]
        at = Slot(TensorSpec("index", "int64", (None,)), torch.ones(rows, dtype=torch.long))
        names, schedule = [slot.name + NEXT for slot in self.hidden_slots], self.model.steps.schedule
        parts = [
            step_part(self.model, schedule.index(place) + 1, self.hidden, self.context)
            for place in range(len(self.model.steps.fns))
        ]
        return tuple(self._graph(f"step_{n}", part, [*state, at], names)[0] for n, part in enumerate(parts, start=1))

    def _write_heads(self, features: list[Slot]) -> tuple[tuple[str, ...], Tensor]:
        """The graphs of the heads, and the outputs of the example."""
        if not isinstance(self.model.head, PerStep):
            name, made = self._graph("head", head_part(self.model, 1), features, ["output"])
            return (name,), made[0]
        written = [
            self._graph(f"head_{step}", head_part(self.model, step), features, ["output"])
            for step in range(1, self.model.num_steps + 1)
        ]
        return tuple(name for name, _ in written), written[0][1][0]

    def _write_halting(self, state: list[Slot], features: Tensor) -> dict[str, Any]:
        """The graphs of the Lambda head, and what the manifest says of it."""
        model, halting = self.model, None
        if model.lambda_head is None:
            return {}
        if model.halting_readout is not None:
            halting, made = self._graph("halting", self._readout(model.halting_readout), state, ["features"])
            features = made[0]
        head = model.lambda_head
        read = _slots(["features"], [torch.cat([features] * head.history, dim=-1)])
        name, _ = self._graph("lambda", lambda_part(model), read, ["hazard"])
        return {
            "halting_readout": halting,
            "lambda_head": name,
            "history": head.history,
            "initial": head.initial,
        }

    def _readout(self, readout: ReadoutCall) -> Part:
        return readout_part(self.model, readout, self.hidden, self.context)

    def _graph(self, name: str, part: Part, given: Sequence[Slot], outputs: Sequence[str]) -> tuple[str, list[Tensor]]:
        """Write a part, run it, and compare with PyTorch: on the example, its last row alone, and one position less."""
        path = self.folder / f"{name}.onnx"
        write_graph(part, given, outputs, path)
        graph = _opened(path)
        expected = _computed(part, [slot.value for slot in given])
        calls = {
            "all rows": {slot.name: slot.value for slot in given},
            "one row": {slot.name: slot.value if slot.spec.shared else slot.value[-1:] for slot in given},
        }
        for which, values in calls.items():
            try:
                other = _difference(part, graph, values, outputs)
            except PonderError as error:
                if which == "all rows":
                    raise
                raise PonderError(
                    f"{path.name}: the graph takes no other number of rows than the example has ({error}) A part "
                    "cannot be traced whose code fixes their number: write x.shape[0] where it says len(x), say."
                ) from error
            if other is not None:
                raise PonderError(
                    f"{path.name}: {other} is not what PyTorch gives for {which} of the example. "
                    "A part cannot be traced whose code depends on the values of its input, or whose state takes "
                    "another form: write it without Python conditions on tensors, or serve the model with PyTorch."
                )
        _check_another_length(part, graph, path.name, given, outputs)
        return path.name, expected


def _opened(path: Path) -> Graph:
    """A graph that was just written, which onnxruntime may have no operators for."""
    try:
        return Graph(path, threads=1)
    except CheckpointError as error:
        if "NOT_IMPLEMENTED" not in str(error.__cause__):
            raise PonderError(
                f"{path.name}: onnxruntime cannot read it ({error.__cause__}). Is a tensor of the example called as "
                "one that graphs have themselves, such as 'index', 'output' or 'exit_step'? Give it another name; "
                "else please report this model."
            ) from error
        raise PonderError(
            f"{path.name}: onnxruntime has no such operators for numbers of the model's type ({error.__cause__}). "
            "It has most in float32: export a copy, copy.deepcopy(model).float(), or serve the model with PyTorch."
        ) from error


def _computed(part: Part, given: Sequence[Tensor]) -> list[Tensor]:
    """What PyTorch makes of these, which it may change in place: they are given to the graph after it."""
    made: list[Tensor] = part([tensor.clone() for tensor in given])
    return made


def _difference(part: Part, graph: Graph, values: Mapping[str, Tensor], outputs: Sequence[str]) -> str | None:
    """What a graph gives that PyTorch does not; None where there is nothing."""
    want = _computed(part, list(values.values()))
    found = graph({key: value.numpy() for key, value in values.items()})
    if len(want) != len(outputs):
        return f"the number of its tensors, {len(outputs)},"
    for key, value in zip(outputs, want, strict=True):
        same = found[key].shape == value.shape  # or allclose would stretch them, or stumble
        if not same or not np.allclose(found[key], value.numpy(), rtol=1e-4, atol=1e-4, equal_nan=True):
            return key
    return None


def _check_another_length(part: Part, graph: Graph, name: str, given: Sequence[Slot], outputs: Sequence[str]) -> None:
    """Refuse a graph that takes the example's length alone; some parts take multiples of a number, in PyTorch too."""
    length = max((slot.value.shape[dim] for slot in given for dim in slot.spec.along), default=1)
    if length == 1:
        return
    for other in (length - 1, length // 2, 2 * length):
        values = {slot.name: _resized(slot, other) for slot in given}
        try:
            why = None
            part(list(values.values()))
        except Exception as error:  # whatever PyTorch stumbles over
            why = str(error).strip().partition("\n")[0] or type(error).__name__
            continue
        try:
            why = _difference(part, graph, values, outputs)
        except Exception as error:
            why = str(error).strip().partition("\n")[0] or type(error).__name__
        if why is None:
            return
        break
    raise PonderError(
        f"{name}: takes no other number of positions than {length}, as many as the example has, of those that were "
        f"tried ({why}). Name every tensor of the context that is as long as the sequences in `padding`, and write the "
        "part for any length."
    )


def _resized(slot: Slot, length: int) -> Tensor:
    """The value of a slot at another length: cut, or repeated."""
    value = slot.value
    for dim in slot.spec.along:
        value = torch.cat([value, value], dim).narrow(dim, 0, length)
    return value


def _keeps_lengths(padding: Padding, hidden: Tree, after: Mapping[str, Any], context: Mapping[str, Any]) -> bool:
    """Whether sequences behind the stem are as long as before it, so that the lengths of rows tell where to cut."""
    own, given = padding.lengths_of_stem(after, context), padding.lengths(context)
    same = own is None or (given is not None and torch.equal(own, given))
    return same and (after is context or padding.can_be_cut(hidden, after, context))


def _check_positions(given: Sequence[Slot]) -> None:
    """Refuse an example of one position: its graphs would take no other length."""
    for slot in given:
        if any(slot.value.shape[dim] == 1 for dim in slot.spec.along):
            raise ArgumentError(
                "example",
                expected="sequences of at least two positions, or the graphs would take one alone",
                got=f"{slot.name!r} of shape {tuple(slot.value.shape)}",
                remedy="Pass longer ones; positions that the mask hides will do.",
            )


def _has_own_answers(task: Task) -> bool:
    """Whether a task finds or compares answers otherwise than `TaskSpec` does: with methods of its own."""
    own, by_kind = type(task), task.numbers or task.classes
    chooses = task.per_position and not task.per_token
    known: Any = Regression if task.numbers else Span if chooses else Classification if task.classes else Multilabel
    found = own.predictions == known.predictions or (by_kind and not chooses and own.predictions in _FOUND_BY_KIND)
    return not found or any(getattr(own, name) != getattr(known, name) for name in _COMPARING)


_COMPARING = ("same", "answered", "distance", "_counted", "without_padding")
"""What all kinds of tasks take from `Task`, but for a `Span`, of which no position of padding is chosen."""


_FOUND_BY_KIND = (Custom.predictions, Unnamed.predictions)
"""Which give the largest of classes, and numbers as they are."""


def _slots(names: Sequence[str], values: Sequence[Tensor], lengths: Sequence[Along | None] | None = None) -> list[Slot]:
    lengths = [None] * len(values) if lengths is None else lengths
    return [_slot(name, value, along) for name, value, along in zip(names, values, lengths, strict=True)]


def _context_slots(
    prefix: str,
    context: Mapping[str, Any],
    model: EarlyExitModel,
    defaults: Mapping[str, float],
    *,
    filled: bool = True,
) -> list[Slot]:
    """The tensors of a context, in the order of `FlatTree`; `filled` where it is given and padded by a caller."""
    found = []
    for name, value in context.items():
        along = None if model.padding is None else model.padding.of_context(name)
        shared = isinstance(value, Shared)
        tree = value.value if isinstance(value, Shared) else value
        for own, tensor in zip(named(prefix + name, tree), flatten(tree), strict=True):
            found.append(_slot(own, tensor, along, default=defaults.get(name), shared=shared, filled=filled))
    return found


def _slot(
    name: str,
    value: Tensor,
    along: Along | None,
    *,
    default: float | None = None,
    shared: bool = False,
    filled: bool = True,
) -> Slot:
    dims = tuple(sorted(dim % value.dim() for dim in along.dims)) if along is not None else ()
    varies = {*dims} if shared else {0, *dims}
    spec = TensorSpec(
        name=name,
        dtype=str(value.dtype).removeprefix("torch."),
        shape=tuple(None if dim in varies else size for dim, size in enumerate(value.shape)),
        along=dims,
        fill=float(along.value(value)) if along is not None and filled else 0.0,
        default=default,
        shared=shared,
    )
    return Slot(spec, value.detach().cpu().contiguous())
