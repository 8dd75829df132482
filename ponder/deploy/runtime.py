"""`OnnxModel`: an exported model, run to its exits with NumPy, onnxruntime and tokenizers alone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ponder._utils.checks import library
from ponder._utils.files import reading, replaced_folder
from ponder._utils.rows import content_ids
from ponder.calibration.records import Record
from ponder.deploy.manifest import FILE, TOKENIZER, Manifest, PolicyGraphs, TensorSpec
from ponder.errors import ArgumentError, CheckpointError
from ponder.policies.base import ExitPolicy, ModelSpec, PolicyBatch, StepView, all_within
from ponder.running.chunk import Chunk, cut
from ponder.running.loop import Answers, exits_of
from ponder.tasks import task_named

__all__ = ["Graph", "OnnxModel"]

Array = NDArray[Any]
_TOKENS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
_NEXT = ".next"
_BATCH = 32
_AT_ONCE = 16  # rows of a batch; batches whose states are in memory together
_SLOWER = [
    "SkipLayerNormFusion",
    "BiasGeluFusion",
]  # whose kernels take longer than what they replace
_NUMPY = {"float": "float32", "double": "float64"}  # all other types have one name


class Graph:
    """One ONNX graph, a file or its bytes, and the threads of one operation; None for onnxruntime's own number."""

    def __init__(self, model: Path | bytes, threads: int | None = None) -> None:
        onnxruntime = library("onnxruntime", "running an export", "runtime")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry(
            "session.intra_op.allow_spinning", "0"
        )  # or its threads starve all others
        options.intra_op_num_threads = threads or 0
        try:
            self._session = onnxruntime.InferenceSession(
                model, options, providers=["CPUExecutionProvider"], disabled_optimizers=_SLOWER
            )
        except Exception as error:  # onnxruntime's own errors have no common base
            raise CheckpointError(
                f"{model!s:.200}: onnxruntime cannot read it ({error}). Export again."
            ) from error
        kinds = [
            (given.name, given.type[len("tensor(") : -1]) for given in self._session.get_inputs()
        ]
        self.inputs = [(name, _NUMPY.get(kind, kind)) for name, kind in kinds]
        self.outputs = [made.name for made in self._session.get_outputs()]

    def __call__(self, arrays: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        """Return the outputs by name; `arrays` may hold more than the graph reads."""
        given = {name: np.ascontiguousarray(arrays[name], dtype) for name, dtype in self.inputs}
        return dict(zip(self.outputs, self._session.run(None, given), strict=True))


class OnnxModel:
    """A model that `ponder.export.onnx` wrote: rows leave the batch at their exits, as they do in PyTorch.

    Args:
        folder: The export.
        threads: Threads of one operation; onnxruntime's own choice where None.

    Attributes:
        num_steps: N, the number of steps at full depth.

    Raises:
        CheckpointError: The folder is no export.
    """

    def __init__(self, folder: str | Path, *, threads: int | None = None) -> None:
        self.folder = Path(folder)
        self.manifest = made = Manifest.read(self.folder)
        self._graphs = {path.stem: Graph(path, threads) for path in self.folder.glob("*.onnx")}
        with reading(self.folder / FILE, "export"):
            self._set_up(made)

    def _set_up(self, made: Manifest) -> None:
        self.task = task_named(made.task)
        self.num_steps = made.num_steps
        self._regroups = not self.task.per_position and (made.narrows or made.mask is None)
        """Whether rows of several lengths may meet between steps: not where outputs have positions."""
        self._policy: Any = (
            self.policy if made.graphs is None else _GraphPolicy(made.graphs, self._graphs)
        )
        self._tokenizer: Any = None
        if made.max_length is not None:
            tokenizers = library("tokenizers", "reading texts", "runtime")
            self._tokenizer = _read_tokenizer(tokenizers, self.folder / TOKENIZER)
            self._tokenizer.no_padding()
            self._tokenizer.enable_truncation(made.max_length, direction=made.truncation_side)

    @property
    def policy(self) -> ExitPolicy:
        """The exit policy as an object; a user's own class must be registered where this is read."""
        return ExitPolicy.from_dict(self.manifest.policy)

    @policy.setter
    def policy(self, policy: ExitPolicy) -> None:
        """Take a policy: where only thresholds differ, the graphs get them as inputs; any other is run in NumPy."""
        graphs = self.manifest.graphs
        data = policy.to_dict()
        tunable = [
            (part, part.tunable.field) for part in all_within(policy) if part.tunable is not None
        ]
        inputs = {part.to_dict()["name"]: field for part, field in tunable}
        if graphs is not None and _without(inputs, data) == _without(inputs, self.manifest.policy):
            moved = [float(getattr(part, field)) for part, field in tunable]
            if graphs.thresholds:
                thresholds = dict(zip(graphs.thresholds, moved, strict=True))
            else:
                thresholds = {}
            graphs = replace(
                graphs, thresholds=thresholds, together=policy.exit_of_all(self.num_steps)
            )
            self._policy = _GraphPolicy(graphs, self._graphs)
        else:
            graphs = None
            self._policy = policy
        self.manifest = replace(self.manifest, policy=data, graphs=graphs)

    def weights_digest(self) -> str | None:
        """Return the digest of the weights that answer; None in int8."""
        return self.manifest.weights

    def save(self, folder: str | Path | None = None) -> None:
        """Write the export with the policy that it has now; where no folder is named, the policy to its own."""
        target = self.folder if folder is None else Path(folder)
        if target == self.folder:
            self.manifest.write(target)
            return
        with replaced_folder(target, FILE, ["*.onnx", TOKENIZER, FILE]) as made:
            shutil.copytree(self.folder, made, dirs_exist_ok=True)
            self.manifest.write(made)

    def predict(
        self,
        examples: Any,
        *,
        policy: ExitPolicy | None = None,
        batch_size: int = _BATCH,
        row_ids: Any = None,
        groups: Any = None,
    ) -> Answers:
        """Run every example to its exit, in batches of similar length.

        Args:
            examples: Texts (or pairs of texts), arrays or dicts of arrays, one an example.
            policy: Decides instead of the export's own, in NumPy.
            batch_size: Rows of a batch at most.
            row_ids: Identity of each row, for seeded sampling; its position where None.
            groups: The group of each row, `(rows,)` integers, for policies that decide on groups;
                these stay together.
        """
        rows = self._rows(examples)
        ids = np.arange(len(rows)) if row_ids is None else np.asarray(row_ids)
        if policy is not None:
            policy.check(ModelSpec(self.num_steps, self.task, "lambda" in self._graphs))
        own = self._policy if policy is None else policy
        outputs = [np.zeros(0)] * len(rows)
        exit_step = np.zeros(len(rows), dtype=np.int64)
        for order in self._alike(rows):
            most = batch_size * (_AT_ONCE if self._regroups else 1)
            parts = [slice(len(order))]
            if groups is None:
                parts = list(cut([rows[place].length for place in order], most))
            for places in [np.array(order[part]) for part in parts]:
                chunk = self._chunk([rows[place] for place in places], batch_size)
                chunk.policy_context = {}
                if groups is not None:
                    chunk.policy_context = {"group": np.asarray(groups)[places]}
                batch = PolicyBatch(ids[places], self.num_steps, self.task)
                for exited in exits_of(chunk, own, batch):
                    left = places if exited.rows is None else places[exited.rows]
                    exit_step[left] = exited.step
                    for place, output in zip(left, exited.outputs, strict=True):
                        outputs[place] = output
        return Answers(self._joined(outputs, rows), exit_step, self.manifest.labels)

    def record(self, examples: Any, *, labels: Any = None) -> Record:
        """Run every example through all steps, and record outputs, features and hazards.

        Args:
            examples: As for `predict`; texts are known again by their content.
            labels: Labels of the examples, kept with the record.
        """
        rows = self._rows(examples)
        texts = _are_texts(examples)
        positions = self.task.per_position
        if not rows:
            raise ArgumentError(
                "examples", expected="at least one", got="none", remedy="Record some."
            )
        reads = [_GraphSource.output, _GraphSource.features]
        reads += [_GraphSource.hazard_logit] if "lambda" in self._graphs else []
        found: list[Sequence[Array]] = [()] * len(rows)
        for places, running in self._batches(rows, _BATCH):
            steps = list[list[Array]]()
            for step in range(1, self.num_steps + 1):
                running.advance(step)
                steps.append([read(running) for read in reads])
            of_rows = [np.stack(reading, 1) for reading in zip(*steps, strict=True)]
            for number, place in enumerate(places):
                found[place] = [reading[number] for reading in of_rows]
        outputs, features, *hazards = zip(*found, strict=True)
        lengths = np.array([row.length for row in rows])
        return Record(
            self._joined(outputs, rows),
            np.stack(hazards[0]) if hazards else None,
            content_ids(examples) if texts else np.arange(len(rows)),
            labels=None if labels is None else np.asarray(labels),
            features=None
            if positions
            else np.stack(features).reshape(len(rows), self.num_steps, -1),
            mask=np.arange(lengths.max()) < lengths[:, None] if positions else None,
            task=self.task,
            weights=self.manifest.weights,
            content_ids=texts,
        )

    def start(self, examples: Any, batch_size: int) -> Chunk:
        """Return examples before their first step, in batches of similar length."""
        return self._chunk(self._rows(examples), batch_size)

    def _chunk(self, rows: Sequence[_Row], batch_size: int) -> Chunk:
        batches = list(self._batches(rows, batch_size))
        lengths = [row.length for row in rows]
        return Chunk(batches, lengths, _join, batch_size if self._regroups else None)

    def _joined(self, outputs: Sequence[Array], rows: Sequence[_Row]) -> Array:
        """Stack the outputs of rows, `(…)` or `(steps, …)` each, with blanks beyond the last position of a row."""
        if not outputs:
            return np.zeros((0, *self.manifest.outputs), dtype=np.float32)
        if self.task.per_position:
            before = (slice(None),) * (outputs[0].ndim - len(self.manifest.outputs) - 1)
            outputs = [
                output[(*before, slice(row.length))]
                for output, row in zip(outputs, rows, strict=True)
            ]
        return _concatenated([output[None] for output in outputs], self.task.blank)

    def _rows(self, examples: Any) -> list[_Row]:
        """Read what a caller gives, as rows."""
        if isinstance(examples, str) or (_are_texts(examples) and self._tokenizer is None):
            expected = "a list of texts, and a tokenizer in the export; or arrays"
            got = f"{examples!r:.40}"
            remedy = "Pass [text], or set model.tokenizer and export again."
            raise ArgumentError("examples", expected=expected, got=got, remedy=remedy)
        if _are_texts(examples):
            encoded = self._tokenizer.encode_batch(
                [one if isinstance(one, str) else tuple(one) for one in examples]
            )
            names = [spec.name for spec in self.manifest.inputs if spec.name in _TOKENS]
            dicts = [
                {name: np.array(getattr(each, _TOKENS[name])) for name in names} for each in encoded
            ]
        else:
            main = self.manifest.inputs[0].name
            dicts = [
                dict(row) if isinstance(row, Mapping) else {main: np.asarray(row)}
                for row in examples
            ]
        return [self._row(row) for row in dicts]

    def _row(self, given: Mapping[str, Any]) -> _Row:
        arrays = {name: np.asarray(value) for name, value in given.items()}
        along = next(
            (spec for spec in self.manifest.inputs if spec.name in arrays and spec.along), None
        )
        length = 0 if along is None else arrays[along.name].shape[along.along[0] - 1]
        for spec in self.manifest.inputs:
            if spec.name not in arrays:
                if spec.default is None:
                    expected = f"{[spec.name for spec in self.manifest.inputs]} in each example"
                    remedy = "Give dicts of arrays by these names."
                    raise ArgumentError(
                        "examples", expected=expected, got=sorted(arrays), remedy=remedy
                    )
                arrays[spec.name] = np.full(length, spec.default)
        mask = self.manifest.mask
        if mask is not None:
            real = (arrays[mask] != 0) == bool(self.manifest.real)
            length = max(int(np.max(np.flatnonzero(real), initial=0)) + 1, 1)
        return _Row(
            {spec.name: arrays[spec.name].astype(spec.dtype) for spec in self.manifest.inputs},
            length,
        )

    def _batches(
        self, rows: Sequence[_Row], batch_size: int
    ) -> Iterator[tuple[list[int], _GraphSource]]:
        """Give batches of rows of similar length, each with the places of its rows."""
        for order in self._alike(rows):
            for part in cut([rows[place].length for place in order], batch_size):
                yield order[part], _GraphSource(self, [rows[place] for place in order[part]])

    def _alike(self, rows: Sequence[_Row]) -> Iterator[list[int]]:
        """Give the places of rows that may share a batch, the longest first; without lengths, those of one shape."""
        of_lengths = self.manifest.mask is not None

        def key(place: int) -> Any:
            shapes = () if of_lengths else [array.shape for array in rows[place].arrays.values()]
            return shapes, -rows[place].length

        for _, group in groupby(sorted(range(len(rows)), key=key), key=lambda place: key(place)[0]):
            yield list(group)


@dataclass(frozen=True, eq=False)
class _Row:
    arrays: dict[str, Array]
    length: int


class _GraphPolicy:
    """A policy in graphs, used as an `ExitPolicy`; its state is a tuple of arrays."""

    def __init__(self, graphs: PolicyGraphs, sessions: Mapping[str, Graph]) -> None:
        self.graphs = graphs
        self._sessions = sessions
        self.needs = frozenset(graphs.needs)

    def exit_of_all(self, num_steps: int) -> int | None:
        return self.graphs.together

    def init(self, batch: PolicyBatch) -> tuple[int, list[Array]]:
        init = self._sessions.get("policy_init")
        return 0, [] if init is None else list(init({"row_ids": batch.row_ids}).values())

    def decide(
        self, view: StepView, state: tuple[int, list[Array]]
    ) -> tuple[Array, tuple[int, list[Array]]]:
        asked, held = state
        given = {"index": view.index, "mask": view.mask, **view.readings, **self.graphs.thresholds}
        given |= {f"state_{n}": value for n, value in enumerate(held)} | dict(
            view.policy_context or {}
        )
        found = self._sessions[
            "policy_later" if asked and "policy_later" in self._sessions else "policy_first"
        ](given)
        return found.pop("exits"), (asked + 1, list(found.values()))


class _GraphSource:
    """The running rows of a batch, a `ponder.running.Source` that calls a graph when its result is asked for."""

    policy_context: Mapping[str, Array] = MappingProxyType({})
    """Empty: what a caller gives for policies is kept by the `Chunk` of several batches."""

    def __init__(self, model: OnnxModel, rows: Sequence[_Row]) -> None:
        self._model = model
        self._made = model.manifest
        self._graphs = model._graphs
        made = self._made
        given = _padded(rows, model.manifest.inputs)
        self._arrays = self._graphs["stem"](given) if "stem" in self._graphs else given
        for spec in (
            *made.hidden,
            *made.context,
        ):  # a stem's graph hands on nothing that it does not make
            if spec.name not in self._arrays:
                self._arrays[spec.name] = given[spec.name.removeprefix("context.")]
        self._lengths = np.array([row.length for row in rows])
        self._step = 0
        self._cache = dict[str, Array]()
        self._past = list[Array]()
        self._halting = "halting" if "halting" in self._graphs else "readout"
        if made.history > 1:
            first = self.features(self._halting)
            self._past = [first if made.initial == "stem" else np.zeros_like(first)] * (
                made.history - 1
            )

    def advance(self, step: int) -> None:
        self._past = self.next_past()
        self._cache = {}
        self._step = step
        self._arrays["index"] = np.full(len(self._lengths), step)
        made = self._graphs[self._made.steps[self._made.schedule[step - 1]]](self._arrays)
        self._arrays |= {name.removesuffix(_NEXT): value for name, value in made.items()}

    def next_past(self) -> list[Array]:
        """Return what the Lambda head reads of earlier steps at the next one."""
        if self._step and self._past:
            return [self.features(self._halting), *self._past[:-1]]
        return self._past

    def features(self, readout: str = "readout") -> Array:
        if readout not in self._cache:
            self._cache[readout] = self._graphs[readout](self._arrays)["features"]
        return self._cache[readout]

    def output(self) -> Array:
        if "output" not in self._cache:
            self._cache["output"] = self._answer(self.features())
        return self._cache["output"]

    def output_of(self, index: Array) -> Array:
        if "output" in self._cache or len(index) == len(self._lengths):
            return self.output()[index]
        return self._answer(self.features()[index])

    def hazard_logit(self) -> Array:
        read = np.concatenate([self.features(self._halting), *self._past], axis=-1)
        return self._graphs["lambda"]({"features": read})["hazard"]

    @property
    def mask(self) -> Array | None:
        """The positions that are not padding, where outputs have positions."""
        length = self._arrays[self._made.hidden[0].name].shape[1:2]
        if self._model.task.per_position:
            return np.arange(*length) < self._lengths[:, None]
        return None

    def keep(self, index: Array) -> None:
        """Go on with some of the rows, no longer than the longest of them."""
        kept = _join([(self, index)], int(self._lengths[index].max()))
        self._arrays = kept._arrays
        self._lengths = kept._lengths
        self._past = kept._past
        self._step = kept._step
        self._cache = kept._cache

    def _answer(self, features: Array) -> Array:
        name = "head" if "head" in self._graphs else f"head_{self._step}"
        return self._graphs[name]({"features": features})["output"]


def _join(parts: Sequence[tuple[_GraphSource, Array]], longest: int) -> _GraphSource:
    """Return rows of several batches, each with their places there, as one batch; it narrows to the longest row."""
    batches = [batch for batch, _ in parts]
    joined = copy(parts[0][0])
    made = joined._made
    pasts = [[past[places] for past in batch.next_past()] for batch, places in parts]
    joined._step = 0
    joined._cache = {}
    joined._past = [np.concatenate(past) for past in zip(*pasts, strict=True)]
    joined._lengths = np.concatenate([batch._lengths[places] for batch, places in parts])
    joined._arrays = {}
    for spec in (*made.hidden, *made.context):
        arrays = [batch._arrays[spec.name] for batch in batches]
        for dim in spec.along if made.narrows else ():
            arrays = [array[(slice(None),) * dim + (slice(longest),)] for array in arrays]
        if spec.shared:
            joined._arrays[spec.name] = max(arrays, key=np.size)
        else:
            rows = [array[places] for array, (_, places) in zip(arrays, parts, strict=True)]
            joined._arrays[spec.name] = _concatenated(rows, spec.fill)
    return joined


def _read_tokenizer(tokenizers: Any, path: Path) -> Any:
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no other class
        raise CheckpointError(f"{path}: no tokenizer ({error}).") from error


def _are_texts(examples: Any) -> bool:
    first = next(iter(examples), None) if not isinstance(examples, np.ndarray) else None
    return isinstance(first, str) or (
        isinstance(first, tuple | list) and len(first) > 0 and isinstance(first[0], str)
    )


def _padded(rows: Sequence[_Row], specs: Sequence[TensorSpec]) -> dict[str, Array]:
    """Stack the inputs of rows, each padded on the right to the longest."""
    arrays = {}
    longest = max(row.length for row in rows)
    for spec in specs:
        parts = [row.arrays[spec.name] for row in rows]
        for dim in spec.along:
            parts = [part[(slice(None),) * (dim - 1) + (slice(longest),)] for part in parts]
        if spec.shared:
            arrays[spec.name] = parts[0]
        else:
            arrays[spec.name] = _concatenated([part[None] for part in parts], spec.fill)
    return arrays


def _concatenated(parts: Sequence[Array], fill: float) -> Array:
    """Join batches to one, with a fill behind the ends of shorter rows."""
    if len({part.shape[1:] for part in parts}) == 1:
        return np.concatenate(parts)
    shape = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]
    made = np.full((sum(map(len, parts)), *shape), fill, dtype=parts[0].dtype)
    start = 0
    for part in parts:
        made[(slice(start, start := start + len(part)), *map(slice, part.shape[1:]))] = part
    return made


def _without(inputs: Mapping[str, str], data: Any) -> Any:
    """Return `to_dict` of a policy without the numbers that are inputs of its graphs: a field by a policy's name."""
    if isinstance(data, Mapping):
        moved = inputs.get(data.get("name", ""))
        return {name: _without(inputs, value) for name, value in data.items() if name != moved}
    return [_without(inputs, value) for value in data] if isinstance(data, list | tuple) else data
