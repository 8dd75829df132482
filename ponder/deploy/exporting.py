"""`onnx`: a model as a folder of ONNX graphs, one a part, so that rows exit between steps; `OnnxModel` runs it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ponder._utils.files import replaced_folder
from ponder._utils.modes import evaluating
from ponder._utils.trees import Shared, Tree, tensors, unwrap
from ponder.deploy.graphs import Slot, flatten, refilled, write_graph, write_policy
from ponder.deploy.manifest import FILE, TOKENIZER, Manifest, promise_of_export
from ponder.deploy.quantize import quantize, ranges_of
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
_NEXT = ".next"  # a graph cannot give a tensor the name of one that it takes


@dataclass(frozen=True, eq=False)
class ExportSource:
    """A model with all that an export needs besides.

    Args:
        model: The wrapper.
        inputs: Inputs of an example call, batch first, two rows at least.
        context: The context of that call.
        name: Name of the inputs in the export.
        defaults: Values of the context's tensors where a caller leaves them out, by name.
        tokenizer: A fast tokenizer of Transformers, or None.
        max_length: Number of tokens that the model takes; None where it is not known.
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
    """Write a model as ONNX graphs for `ponder.export.OnnxModel`, which needs neither PyTorch nor Transformers.

    Stem, steps (one graph where weights are shared), readout, heads, Lambda head and the policy are
    graphs of their own; thresholds are inputs of the policy's. Each graph is run and compared with
    PyTorch.

    Args:
        model: A `ponder.PonderWrapper`, or a model of `ponder.integrations.transformers`; with its
            policy.
        folder: Made where it does not exist; an earlier export there is replaced.
        int8: Quantise the matrix products of the steps to 8 bits, but for those that narrow (the
            second of a feed-forward block), which some encoders do not bear; ``"all"`` quantises
            these too. Outputs move, so choose the threshold again on `OnnxModel.record`.
        example: Inputs of a call, or a pair (inputs, context), batch first, two rows at least;
            models of Transformers bring their own, and their tokenizer.
        calibration: With `int8`, some hundred examples, by which the ranges of activations are
            fixed.

    Returns:
        The folder.

    Raises:
        ArgumentError: A policy that reads `policy_context`, weights that are not float32 on the
            CPU, or no example.
        PonderError: A part cannot be traced.

    Example:
        >>> folder = ponder.export.onnx(model, "exported", example=torch.randn(2, 8))
        >>> ponder.export.OnnxModel(folder).predict(inputs.numpy()).exit_step.shape
        (300,)
    """
    source = _source(model, example)
    wrong = [
        (n, p)
        for n, p in source.model.named_parameters()
        if p.dtype != torch.float32 or p.device.type != "cpu"
    ]
    if wrong:
        expected = "weights in float32 on the CPU"
        got = f"{wrong[0][0]} in {wrong[0][1].dtype} on {wrong[0][1].device}"
        remedy = "Export a copy: copy.deepcopy(model).cpu().float()."
        raise ArgumentError("model", expected=expected, got=got, remedy=remedy)
    with _replaced(folder) as made, evaluating(source.model):
        _Tracer(source, made).write()
        if int8:
            _quantize(made, int8, calibration)
    return Path(folder)


def quantized(
    export: str | Path,
    folder: str | Path,
    int8: Literal[True, "all"] = True,
    *,
    calibration: Any = None,
) -> Path:
    """Write an export again with its steps in 8 bits, as `onnx` does with `int8`; nothing is traced anew."""
    with _replaced(folder) as made:
        shutil.copytree(export, made, dirs_exist_ok=True)
        _quantize(made, int8, calibration)
    return Path(folder)


def _source(model: Any, example: Any) -> ExportSource:
    if hasattr(model, "export_source") and example is None:
        own: ExportSource = model.export_source()
        return own
    if not isinstance(model, PonderWrapper) or example is None:
        expected = "a PonderWrapper with an example of a call, or a model of ponder.integrations.transformers"
        remedy = "Pass example=(x[:2], {'attention_mask': mask[:2]}), say: two rows that the model can run."
        raise ArgumentError("model", expected=expected, got=type(model).__name__, remedy=remedy)
    pair = isinstance(example, tuple) and len(example) == 2 and isinstance(example[1], Mapping)
    inputs, context = example if pair else (example, {})
    padding = model.padding
    if padding is not None and padding.mask in context:
        defaults = {padding.mask: float(padding.real)}
    else:
        defaults = {}
    return ExportSource(model, inputs, context, defaults=defaults)


def _replaced(folder: str | Path) -> AbstractContextManager[Path]:
    """Give an empty folder that takes the place of an export as a whole."""
    return replaced_folder(folder, FILE, ["*.onnx", TOKENIZER, FILE])


def _quantize(folder: Path, int8: bool | Literal["all"], calibration: Any) -> None:
    manifest = Manifest.read(folder)  # without a promise that was about other files
    channels = None if calibration is None else ranges_of(folder, calibration)
    for place, name in enumerate(manifest.steps):
        quantize(
            folder / f"{name}.onnx", int8 == "all", None if channels is None else channels[place]
        )
    policy = promise_of_export(manifest.policy, None)
    made = replace(manifest, int8=True, weights=None, policy=policy)
    made.with_files(folder).write(folder)


class _Tracer:
    """Writes the graphs of a model, one part after the other."""

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
        self.narrows = (
            padding is not None and padding.mask in self.after and not self.task.per_position
        )
        of_inputs = None if padding is None else padding.of_inputs
        self.inputs = [*self._slots(source.name, inputs, of_inputs), *self._context("", context)]
        own = (
            self.model.stem is not None
        )  # the given is the hidden state itself where there is no stem
        of_hidden = None if padding is None else padding.of_hidden
        if own:
            self.state = self._slots("hidden", self.hidden, of_hidden)
        else:
            self.state = self.inputs[: len(flatten(inputs))]
        self.steps_context = self._context("context." if own else "", self.after)

    def write(self) -> None:
        """Write all graphs, and describe them."""
        model = self.model
        padding = self.model.padding
        policy = promise_about(model.weights_digest, model.policy)
        self._write_stem()
        self._write_steps()
        features = self._read("readout", model.readout)
        outputs = self._write_heads(features)
        hazard = self._write_halting(features)
        specs = tuple(slot.spec for slot in self.inputs)
        Manifest(
            num_steps=model.num_steps,
            schedule=tuple(model.steps.schedule),
            task=self.task.name,
            inputs=specs,
            hidden=tuple(slot.spec for slot in self.state),
            context=tuple(slot.spec for slot in self.steps_context),
            outputs=tuple(outputs.shape[2 if self.task.per_position else 1 :]),
            policy=policy.to_dict(),
            graphs=self._write_policy(features, outputs, hazard),
            history=getattr(model.lambda_head, "history", 1),
            initial=getattr(model.lambda_head, "initial", "stem"),
            mask=padding.mask
            if padding is not None and padding.mask in {spec.name for spec in specs}
            else None,
            real=1 if padding is None else int(padding.real),
            narrows=self.narrows,
            labels=self.source.labels,
            weights=model.weights_digest(),
            **self._write_tokenizer(),
        ).with_files(self.folder).write(self.folder)

    def _write(
        self,
        name: str,
        run: Callable[[list[Tensor]], list[Tensor]],
        given: Sequence[Slot],
        outputs: Sequence[str],
    ) -> Tensor:
        """Write a graph, and return its first output on the example."""
        kind, _, number = name.partition("_")
        like = self.folder / f"{kind}_1.onnx" if number not in ("", "1") else None
        return write_graph(self.model, run, given, outputs, self.folder / f"{name}.onnx", like)[0]

    def _write_stem(self) -> None:
        count = len(flatten(self.source.inputs))
        source = self.source

        def run(given: list[Tensor]) -> list[Tensor]:
            inputs = refilled(source.inputs, given[:count])
            context = refilled(dict(source.context), given[count:])
            start = call_stem(self.model.stem, inputs, context)
            hidden = start.hidden
            after = start.context
            return [*flatten(hidden), *flatten(dict(after))]

        if self.model.stem is not None:
            self._write(
                "stem",
                run,
                self.inputs,
                [slot.spec.name for slot in (*self.state, *self.steps_context)],
            )

    def _write_steps(self) -> None:
        schedule = self.model.steps.schedule
        at = Slot.of("index", torch.ones(self.rows, dtype=torch.long))
        outputs = [slot.spec.name + _NEXT for slot in self.state]
        for place in range(len(self.model.steps.fns)):
            step = schedule.index(place) + 1

            def run(given: list[Tensor], step: int = step) -> list[Tensor]:
                hidden, called = self._filled(given[:-1])
                return flatten(self.model.steps(step, hidden, given[-1], **called))

            self._write(f"step_{place + 1}", run, [*self.state, *self.steps_context, at], outputs)

    def _filled(self, given: list[Tensor]) -> tuple[Tree, dict[str, Any]]:
        """Return the hidden state and the context of a step, with the given tensors in them."""
        count = len(self.state)
        return refilled(self.hidden, given[:count]), unwrap(
            refilled(dict(self.after), given[count:])
        )

    def _read(self, name: str, readout: ReadoutCall) -> Tensor:
        def run(given: list[Tensor]) -> list[Tensor]:
            hidden, called = self._filled(given)
            return [readout(hidden, **called)]

        return self._write(name, run, [*self.state, *self.steps_context], ["features"])

    def _write_heads(self, features: Tensor) -> Tensor:
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
        head = self.model.lambda_head
        readout = self.model.readout
        if head is None:
            return None
        if features.dim() > 2 and isinstance(
            head, LambdaHead
        ):  # which reads their mean over the positions
            features = self._read(
                "halting", ReadoutCall(readouts.mean, self.model.padding, readout)
            )
        read = Slot.of("features", torch.cat([features] * getattr(head, "history", 1), dim=-1))
        return self._write("lambda", lambda given: [head(given[0]).reshape(-1)], [read], ["hazard"])

    def _write_policy(self, features: Tensor, outputs: Tensor, hazard: Tensor | None) -> Any:
        readings = [self._at_positions("output", outputs), self._at_positions("features", features)]
        readings.append(Slot.of("group", torch.arange(self.rows) // 2))
        if hazard is not None:
            share = hazard.sigmoid()
            readings += [Slot.of(name, share) for name in ("hazard", "cdf", "survival")]
        if self.task.per_position and self.model.padding is not None:
            readings.append(
                self._at_positions("mask", torch.ones(outputs.shape[:2], dtype=torch.bool))
            )
        named = {slot.spec.name: slot for slot in readings}
        return write_policy(self.model.policy, self.model.num_steps, self.task, named, self.folder)

    def _at_positions(self, name: str, value: Tensor) -> Slot:
        """A slot whose second dimension is as long as the sequences, where features or outputs have positions."""
        lengths = [slot.value.shape[dim] for slot in self.state for dim in slot.spec.along]
        has_positions = not self.narrows and value.dim() > 1 and value.shape[1] in lengths
        return Slot.of(name, value, along=(1,) if has_positions else ())

    def _write_tokenizer(self) -> dict[str, Any]:
        tokenizer = self.source.tokenizer
        if tokenizer is None:
            return {}
        (self.folder / TOKENIZER).write_text(tokenizer.backend_tokenizer.to_str(), encoding="utf-8")
        limit = min(tokenizer.model_max_length, self.source.max_length or _LONGEST)
        return {
            "max_length": _LONGEST if limit > 10**9 else limit,  # Transformers' own word for none
            "truncation_side": tokenizer.truncation_side,
        }

    def _context(self, prefix: str, context: Mapping[str, Any]) -> list[Slot]:
        padding = self.model.padding
        made = list[Slot]()
        for name, value in context.items():
            tree = value.value if isinstance(value, Shared) else value
            options = {
                "default": self.source.defaults.get(name),
                "shared": isinstance(value, Shared),
            }
            made += self._slots(
                prefix + name,
                tree,
                None if padding is None else padding.of_context,
                name,
                **options,
            )
        return made

    def _slots(
        self, name: str, tree: Tree, lengths: Lengths | None, key: str = "", **options: Any
    ) -> list[Slot]:
        """Return the tensors of a tree, named by its keys: `name.key.0`; `key` is by what its lengths are known."""
        if isinstance(tree, Mapping) and not key:
            parts = [
                self._slots(f"{name}.{own}", part, lengths, own, **options)
                for own, part in tree.items()
            ]
            return [slot for part in parts for slot in part]
        plain = str.maketrans({"[": ".", "]": None, "'": None})
        made = list[Slot]()
        for path, value in tensors(tree):
            along = None if lengths is None else lengths(key, value)
            own = dict(options)
            if along is not None:
                own["along"] = tuple(sorted(dim % value.dim() for dim in along.dims))
                own["fill"] = float(along.fill(value) if callable(along.fill) else along.fill)
            made.append(Slot.of(name + path.translate(plain), value, **own))
        return made
