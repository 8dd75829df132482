"""`onnx`: a model as a folder of ONNX graphs, one a part, so that rows exit between steps.

`_Tracer` writes the graphs and the manifest; `ponder.deploy.runtime.OnnxModel` runs them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ponder._utils.files import replaced_folder
from ponder._utils.modes import evaluating
from ponder._utils.trees import Shared, Tree, tensors, unwrap
from ponder.deploy.graphs import Slot, flatten, refilled, write_graph, write_policy
from ponder.deploy.manifest import (
    FILES_OF_AN_EXPORT,
    TOKENIZER,
    Manifest,
    PolicyGraphs,
)
from ponder.deploy.quantize import Channels, quantize, ranges_of
from ponder.errors import ArgumentError
from ponder.model import readouts
from ponder.model.heads import LambdaHead, PerStep
from ponder.model.padding import Lengths
from ponder.model.readouts import ReadoutCall
from ponder.model.source import call_stem
from ponder.policies.combine import promise_about
from ponder.tasks import task_named
from ponder.wrapper import PonderWrapper

__all__ = ["ExportSource", "onnx", "quantized"]

_LONGEST = 512
"""The number of tokens to which texts are cut if neither model nor tokenizer has a limit."""
_NEXT = ".next"
"""The suffix of a step's outputs: they cannot have the names of its inputs."""


@dataclass(frozen=True, eq=False)
class ExportSource:
    """A model, with an example of a call and the parts of an export that are not graphs.

    Args:
        model: The wrapper.
        inputs: Inputs of an example call, batch first, at least two rows.
        context: The context of that call.
        name: Name of the inputs in the export.
        defaults: By name, values of tensors of the context that a caller may leave out.
        tokenizer: A fast tokenizer of Transformers; None for a model without texts.
        max_length: Number of tokens that the model takes; None if it is not known.
        labels: Names of the classes.
    """

    model: PonderWrapper
    inputs: Tree
    context: Mapping[str, Any]
    name: str = "inputs"
    defaults: Mapping[str, float] = field(default_factory=dict)
    tokenizer: Any = None
    max_length: int | None = None
    labels: tuple[str, ...] = ()


def onnx(
    model: Any,
    folder: str | Path,
    int8: bool | Literal["all"] = False,
    *,
    example: Any = None,
    calibration: Any = None,
) -> Path:
    """Write a model as ONNX graphs for `ponder.export.OnnxModel`, which runs without PyTorch.

    The stem, the steps (one graph if they share weights), the readout, the heads, the Lambda head
    and the policy are separate graphs; thresholds are inputs of the policy's graphs. Each graph is
    run and compared with PyTorch.

    Args:
        model: A `ponder.PonderWrapper`, or a model of `ponder.integrations.transformers`, with its
            policy.
        folder: The folder, which is made, or whose earlier export is replaced.
        int8: Whether to quantise the matrix products of the steps to 8 bits. Products that narrow
            (the second of a feed-forward block) stay in float32, since some encoders lose accuracy
            there; ``"all"`` quantises them too. Outputs change, so choose the threshold again on
            `OnnxModel.record`.
        example: Inputs of a call, or a pair (inputs, context), batch first, at least two rows.
            Models of Transformers need none.
        calibration: With `int8`, some hundred examples, which fix the ranges of activations.

    Returns:
        The folder.

    Raises:
        ArgumentError: The policy reads `policy_context`, weights are not float32 on the CPU, or
            there is no example.
        PonderError: A part cannot be traced.

    Example:
        >>> folder = ponder.export.onnx(model, "exported", example=torch.randn(2, 8))
        >>> ponder.export.OnnxModel(folder).predict(inputs.numpy()).exit_step.shape
        (300,)
    """
    source = _source(model, example)
    for name, weight in source.model.named_parameters():
        if weight.dtype != torch.float32 or weight.device.type != "cpu":
            raise ArgumentError(
                "model",
                expected="weights in float32 on the CPU",
                got=f"{name} in {weight.dtype} on {weight.device}",
                remedy="Export a copy: copy.deepcopy(model).cpu().float().",
            )
    with replaced_folder(folder, FILES_OF_AN_EXPORT) as new_folder, evaluating(source.model):
        _Tracer(source, new_folder).write()
        if int8:
            _quantize(new_folder, int8, calibration)
    return Path(folder)


def quantized(
    export: str | Path,
    folder: str | Path,
    int8: Literal[True, "all"] = True,
    *,
    calibration: Any = None,
) -> Path:
    """Write an export again with its steps in 8 bits, as `onnx` does, without tracing."""
    with replaced_folder(folder, FILES_OF_AN_EXPORT) as new_folder:
        shutil.copytree(export, new_folder, dirs_exist_ok=True)
        _quantize(new_folder, int8, calibration)
    return Path(folder)


def _source(model: Any, example: Any) -> ExportSource:
    """Return the source of a wrapper with an example, or of a model that makes one."""
    if hasattr(model, "export_source") and example is None:
        source: ExportSource = model.export_source()
        return source
    if not isinstance(model, PonderWrapper) or example is None:
        raise ArgumentError(
            "model",
            expected="a PonderWrapper with an example of a call, or a model of "
            "ponder.integrations.transformers",
            got=type(model).__name__,
            remedy="Pass example=(x[:2], {'attention_mask': mask[:2]}), say: two rows that the "
            "model can run.",
        )
    inputs: Tree = example
    context: Mapping[str, Any] = {}
    if isinstance(example, tuple) and len(example) == 2 and isinstance(example[1], Mapping):
        inputs, context = example
    padding = model.padding
    defaults: dict[str, float] = {}
    if padding is not None and padding.mask in context:
        defaults[padding.mask] = float(padding.real)
    return ExportSource(model, inputs, context, defaults=defaults)


def _quantize(folder: Path, int8: bool | Literal["all"], calibration: Any) -> None:
    """Quantise the steps of an export in its folder; its promise was about other outputs."""
    manifest = Manifest.read(folder)
    channels: list[Channels | None] = [None] * len(manifest.steps)
    if calibration is not None:
        channels = [*ranges_of(folder, calibration)]
    for name, of_step in zip(manifest.steps, channels, strict=True):
        quantize(folder / f"{name}.onnx", int8 == "all", of_step)
    replace(manifest, int8=True, weights=None).with_promise_checked().write(folder)


class _Tracer:
    """The writer of a model's graphs, one part after the other.

    Args:
        source: The model with an example.
        folder: The folder of the export.
    """

    def __init__(self, source: ExportSource, folder: Path) -> None:
        self.source = source
        self.model = source.model
        self.folder = folder
        self.task = self.model.task or task_named(None)
        inputs = source.inputs
        context = dict(source.context)
        with torch.no_grad():
            start = call_stem(self.model.stem, inputs, context)
        self.hidden = start.hidden
        self.after = start.context
        self.rows = start.rows
        padding = self.model.padding
        has_mask = padding is not None and padding.mask in self.after
        self.narrows = has_mask and not self.task.per_position
        of_inputs: Lengths | None = None
        of_hidden: Lengths | None = None
        if padding is not None:
            of_inputs = padding.of_inputs
            of_hidden = padding.of_hidden
        self.inputs = [*self._slots(source.name, inputs, of_inputs), *self._context("", context)]
        if self.model.stem is None:  # the inputs are the hidden state
            self.state = self.inputs[: len(flatten(inputs))]
            self.steps_context = self._context("", self.after)
        else:
            self.state = self._slots("hidden", self.hidden, of_hidden)
            self.steps_context = self._context("context.", self.after)

    def write(self) -> None:
        """Write all graphs, and the manifest."""
        model = self.model
        padding = self.model.padding
        policy = promise_about(model.weights_digest, model.policy)
        self._write_stem()
        self._write_steps()
        features = self._write_readout("readout", model.readout)
        outputs = self._write_heads(features)
        hazard = self._write_halting(features)
        specs = tuple(slot.spec for slot in self.inputs)
        mask = None
        if padding is not None and padding.mask in {spec.name for spec in specs}:
            mask = padding.mask
        first = 2 if self.task.per_position else 1
        Manifest(
            num_steps=model.num_steps,
            schedule=tuple(model.steps.schedule),
            task=self.task.name,
            inputs=specs,
            hidden=tuple(slot.spec for slot in self.state),
            context=tuple(slot.spec for slot in self.steps_context),
            outputs=tuple(outputs.shape[first:]),
            policy=policy.to_dict(),
            graphs=self._write_policy(features, outputs, hazard),
            history=getattr(model.lambda_head, "history", 1),
            initial=getattr(model.lambda_head, "initial", "stem"),
            mask=mask,
            real=1 if padding is None or padding.real else 0,
            narrows=self.narrows,
            labels=self.source.labels,
            weights=model.weights_digest(),
            **self._write_tokenizer(),
        ).write(self.folder)

    def _write(
        self,
        name: str,
        run: Callable[[list[Tensor]], list[Tensor]],
        given: Sequence[Slot],
        outputs: Sequence[str],
    ) -> Tensor:
        """Write a graph, and return its first output on the example."""
        kind, _, number = name.partition("_")
        like = None
        if number not in ("", "1"):  # steps and heads are mostly alike but for their weights
            like = self.folder / f"{kind}_1.onnx"
        return write_graph(self.model, run, given, outputs, self.folder / f"{name}.onnx", like)[0]

    def _write_stem(self) -> None:
        """Write the stem, unless it is the identity."""
        if self.model.stem is None:
            return
        source = self.source
        count = len(flatten(source.inputs))

        def run(arguments: list[Tensor]) -> list[Tensor]:
            inputs = refilled(source.inputs, arguments[:count])
            context = refilled(dict(source.context), arguments[count:])
            start = call_stem(self.model.stem, inputs, context)
            return [*flatten(start.hidden), *flatten(dict(start.context))]

        names = [slot.spec.name for slot in (*self.state, *self.steps_context)]
        self._write("stem", run, self.inputs, names)

    def _write_steps(self) -> None:
        """Write a graph for each callable of the steps."""
        schedule = self.model.steps.schedule
        index = Slot.of("index", torch.ones(self.rows, dtype=torch.long))
        inputs = [*self.state, *self.steps_context, index]
        outputs = [slot.spec.name + _NEXT for slot in self.state]
        for place in range(len(self.model.steps.fns)):
            step = schedule.index(place) + 1

            def run(arguments: list[Tensor], step: int = step) -> list[Tensor]:
                hidden, context = self._filled(arguments[:-1])
                return flatten(self.model.steps(step, hidden, arguments[-1], **context))

            self._write(f"step_{place + 1}", run, inputs, outputs)

    def _filled(self, values: list[Tensor]) -> tuple[Tree, dict[str, Any]]:
        """Return the hidden state and the context of a step with other tensors."""
        count = len(self.state)
        hidden = refilled(self.hidden, values[:count])
        context = refilled(dict(self.after), values[count:])
        return hidden, unwrap(context)

    def _write_readout(self, name: str, readout: ReadoutCall) -> Tensor:
        """Write a readout, and return the features of the example."""

        def run(arguments: list[Tensor]) -> list[Tensor]:
            hidden, context = self._filled(arguments)
            return [readout(hidden, **context)]

        return self._write(name, run, [*self.state, *self.steps_context], ["features"])

    def _write_heads(self, features: Tensor) -> Tensor:
        """Write the head, or a head for each step, and return outputs of the example."""
        head = self.model.head
        slot = self._at_positions("features", features)
        if not isinstance(head, PerStep):
            return self._write("head", lambda given: [head(given[0])], [slot], ["output"])
        for step in range(1, self.model.num_steps + 1):

            def head_of_step(given: list[Tensor], step: int = step) -> list[Tensor]:
                return [head(given[0], step)]

            outputs = self._write(f"head_{step}", head_of_step, [slot], ["output"])
        return outputs

    def _write_halting(self, features: Tensor) -> Tensor | None:
        """Write the Lambda head, if there is one, and return hazards of the example."""
        head = self.model.lambda_head
        if head is None:
            return None
        if features.dim() > 2 and isinstance(head, LambdaHead):
            # It reads the mean over the positions.
            mean = ReadoutCall(readouts.mean, self.model.padding, self.model.readout)
            features = self._write_readout("halting", mean)
        read = Slot.of("features", torch.cat([features] * getattr(head, "history", 1), dim=-1))
        return self._write("lambda", lambda given: [head(given[0]).reshape(-1)], [read], ["hazard"])

    def _write_policy(
        self, features: Tensor, outputs: Tensor, hazard: Tensor | None
    ) -> PolicyGraphs:
        """Write the policy, with examples of all that it may read."""
        readings = [self._at_positions("output", outputs), self._at_positions("features", features)]
        readings.append(Slot.of("group", torch.arange(self.rows) // 2))
        if hazard is not None:
            probability = hazard.sigmoid()
            readings += [Slot.of(name, probability) for name in ("hazard", "cdf", "survival")]
        if self.task.per_position and self.model.padding is not None:
            mask = torch.ones(outputs.shape[:2], dtype=torch.bool)
            readings.append(self._at_positions("mask", mask))
        named = {slot.spec.name: slot for slot in readings}
        return write_policy(self.model.policy, self.model.num_steps, self.task, named, self.folder)

    def _at_positions(self, name: str, value: Tensor) -> Slot:
        """Return a slot; with positions, its second dimension varies with the length."""
        lengths = [slot.value.shape[dim] for slot in self.state for dim in slot.spec.along]
        has_positions = not self.narrows and value.dim() > 1 and value.shape[1] in lengths
        return Slot.of(name, value, along=(1,) if has_positions else ())

    def _write_tokenizer(self) -> dict[str, Any]:
        """Write the tokenizer, if there is one, and return its fields of the manifest."""
        tokenizer = self.source.tokenizer
        if tokenizer is None:
            return {}
        (self.folder / TOKENIZER).write_text(tokenizer.backend_tokenizer.to_str(), encoding="utf-8")
        limit = min(tokenizer.model_max_length, self.source.max_length or _LONGEST)
        if limit > 10**9:  # Transformers' way to say that there is no limit
            limit = _LONGEST
        return {"max_length": limit, "truncation_side": tokenizer.truncation_side}

    def _context(self, prefix: str, context: Mapping[str, Any]) -> list[Slot]:
        """Return the tensors of a context; `Shared` ones have no rows."""
        padding = self.model.padding
        lengths: Lengths | None = None
        if padding is not None:
            lengths = padding.of_context
        slots: list[Slot] = []
        for name, value in context.items():
            tree = value
            is_shared = isinstance(value, Shared)
            if is_shared:
                tree = value.value
            default = self.source.defaults.get(name)
            slots += self._slots(
                prefix + name, tree, lengths, name, default=default, shared=is_shared
            )
        return slots

    def _slots(
        self, name: str, tree: Tree, lengths: Lengths | None, key: str = "", **options: Any
    ) -> list[Slot]:
        """Return the tensors of a tree, named by its keys, as in `name.key.0`.

        Args:
            name: The first part of the names.
            tree: The tree.
            lengths: The lengths of its tensors.
            key: The name for which `lengths` is called; by default the keys of the tree.
            options: Further fields of `TensorSpec`.
        """
        slots: list[Slot] = []
        if isinstance(tree, Mapping) and not key:
            for part_key, part in tree.items():
                slots += self._slots(f"{name}.{part_key}", part, lengths, part_key, **options)
            return slots
        plain = str.maketrans({"[": ".", "]": None, "'": None})
        for path, value in tensors(tree):
            along = None
            if lengths is not None:
                along = lengths(key, value)
            fields = dict(options)
            if along is not None:
                fill = along.fill(value) if callable(along.fill) else along.fill
                fields["along"] = tuple(sorted(dim % value.dim() for dim in along.dims))
                fields["fill"] = float(fill)
            slots.append(Slot.of(name + path.translate(plain), value, **fields))
        return slots
