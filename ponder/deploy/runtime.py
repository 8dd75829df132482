"""`OnnxModel`: an exported model, run to its exits with NumPy, onnxruntime and tokenizers alone.

It reads examples as rows, cuts them into batches of similar length (`GraphSource`), and runs chunks
of batches in the loop that runs PyTorch models, too.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from ponder._utils.checks import library
from ponder._utils.files import reading, replaced_folder
from ponder._utils.rows import Text, check_rows, content_ids
from ponder.calibration.records import Record
from ponder.deploy.graph_source import GraphPolicy, GraphSource, InputRow, concatenate, join
from ponder.deploy.manifest import FILE, FILES_OF_AN_EXPORT, TOKENIZER, Manifest
from ponder.deploy.sessions import Array, Graph
from ponder.errors import ArgumentError, CheckpointError
from ponder.policies.base import ExitPolicy, ModelSpec, PolicyBatch
from ponder.running.chunk import Chunk, cut
from ponder.running.loop import Answers, exits_of
from ponder.tasks import task_named

__all__ = ["OnnxModel"]

_TOKENS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
"""The inputs of a text, with their names in an encoding of `tokenizers`."""
_BATCH = 32
"""Rows of a batch."""
_AT_ONCE = 16
"""Batches whose states are in memory together."""


class OnnxModel:
    """A model that `ponder.export.onnx` wrote; rows leave the batch at their exits, as in PyTorch.

    Args:
        folder: The export.
        threads: Threads of one operation. By default OMP_NUM_THREADS, or all cores.

    Attributes:
        num_steps: N, the number of steps at full depth.
        graphs: The graphs by name.

    Raises:
        CheckpointError: The folder is not an export.
    """

    def __init__(self, folder: str | Path, *, threads: int | None = None) -> None:
        self.folder = Path(folder)
        self.manifest = Manifest.read(self.folder)
        self.graphs = {path.stem: Graph(path, threads) for path in self.folder.glob("*.onnx")}
        with reading(self.folder / FILE, "export"):
            ranks = {name: graph.ranks for name, graph in self.graphs.items()}
            of_stem = self.graphs["stem"].outputs if "stem" in self.graphs else ()
            self.manifest.fit(ranks, of_stem)
            self._set_up()

    def _set_up(self) -> None:
        """Read the parts of the manifest that may be wrong."""
        manifest = self.manifest
        self.task = task_named(manifest.task)
        self.num_steps = manifest.num_steps
        # Rows of several lengths share a batch between steps only if outputs have no positions.
        can_narrow = manifest.narrows or manifest.mask is None
        self._regroups = not self.task.per_position and can_narrow
        if manifest.graphs is None:
            self._policy: Any = self.policy
        else:  # its class need not be known here
            self._policy = GraphPolicy(manifest.graphs, self.graphs)
        self._tokenizer: Any = None
        if manifest.max_length is not None:
            side = manifest.truncation_side
            self._tokenizer = _read_tokenizer(self.folder / TOKENIZER)
            self._tokenizer.no_padding()
            self._tokenizer.enable_truncation(manifest.max_length, direction=side)

    @property
    def policy(self) -> ExitPolicy:
        """The exit policy as an object; a policy of the user's must be registered before."""
        return ExitPolicy.from_dict(self.manifest.policy)

    @policy.setter
    def policy(self, policy: ExitPolicy) -> None:
        """Set the policy; if only thresholds differ, its graphs are kept, else it runs in NumPy."""
        self.manifest = self.manifest.with_policy(policy)
        self._policy = policy
        if self.manifest.graphs is not None:
            self._policy = GraphPolicy(self.manifest.graphs, self.graphs)

    def weights_digest(self) -> str | None:
        """Return the digest of the weights that answer; None in int8."""
        return self.manifest.weights

    def save(self, folder: str | Path | None = None) -> None:
        """Write the export with its present policy; by default only the policy, to its folder."""
        if folder is None or Path(folder) == self.folder:
            self.manifest.write(self.folder)
            return
        with replaced_folder(folder, FILES_OF_AN_EXPORT) as new_folder:
            shutil.copytree(self.folder, new_folder, dirs_exist_ok=True)
            self.manifest.write(new_folder)

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
            policy: A policy instead of the export's, which runs in NumPy.
            batch_size: Rows of a batch at most.
            row_ids: Identity of each row, for seeded sampling. By default the positions of the
                rows.
            groups: The group of each row, `(rows,)` integers, for policies that decide on groups;
                rows of one group stay together.
        """
        rows = self._rows(examples)
        ids = np.arange(len(rows)) if row_ids is None else np.asarray(row_ids)
        deciding = self._policy
        if policy is not None:
            policy.check(ModelSpec(self.num_steps, self.task, "lambda" in self.graphs))
            deciding = policy
        outputs = [np.zeros(0)] * len(rows)
        exit_step = np.zeros(len(rows), dtype=np.int64)
        for places in self._chunks(rows, batch_size, keep_together=groups is not None):
            chunk = self._chunk([rows[place] for place in places], batch_size)
            if groups is not None:
                chunk.policy_context = {"group": np.asarray(groups)[places]}
            batch = PolicyBatch(ids[places], self.num_steps, self.task)
            for exited in exits_of(chunk, deciding, batch):
                exited_places = places if exited.rows is None else places[exited.rows]
                exit_step[exited_places] = exited.step
                for place, output in zip(exited_places, exited.outputs, strict=True):
                    outputs[place] = output
        return Answers(self._stack(outputs, rows), exit_step, self.manifest.labels)

    def record(self, examples: Any, *, labels: Any = None) -> Record:
        """Run every example through all steps, and record outputs, features and hazards.

        Args:
            examples: As for `predict`. Row ids of texts are content hashes.
            labels: Labels of the examples, kept with the record.
        """
        rows = self._rows(examples)
        if not rows:
            raise ArgumentError(
                "examples", expected="at least one", got="none", remedy="Record some."
            )
        readings = self._run_all_steps(rows)
        features = mask = None
        if self.task.per_position:
            lengths = np.array([row.length for row in rows])
            mask = np.arange(lengths.max()) < lengths[:, None]
        else:
            features = np.stack(readings["features"]).reshape(len(rows), self.num_steps, -1)
        hazards: Array | None = None
        if "hazard" in readings:
            hazards = np.stack(readings["hazard"])
        are_texts = _are_texts(examples)
        ids = np.arange(len(rows))
        if are_texts:
            ids = content_ids(examples)
        if labels is not None:
            labels = np.asarray(labels)
        return Record(
            self._stack(readings["output"], rows),
            hazards,
            ids,
            labels=labels,
            features=features,
            mask=mask,
            task=self.task,
            weights=self.manifest.weights,
            content_ids=are_texts,
        )

    def _run_all_steps(self, rows: Sequence[InputRow]) -> dict[str, list[Array]]:
        """Return the readings of all steps, by name; for each row an array `(steps, …)`."""
        reads: dict[str, Callable[[GraphSource], Array]] = {
            "output": GraphSource.output,
            "features": GraphSource.features,
        }
        if "lambda" in self.graphs:
            reads["hazard"] = GraphSource.hazard_logit
        recorded = {name: [np.zeros(0)] * len(rows) for name in reads}
        for places, source in self._batches(rows, _BATCH):
            steps: dict[str, list[Array]] = {name: [] for name in reads}
            for step in range(1, self.num_steps + 1):
                source.advance(step)
                for name, read in reads.items():
                    steps[name].append(read(source))
            for name, arrays in steps.items():
                for place, of_row in zip(places, np.stack(arrays, axis=1), strict=True):
                    recorded[name][place] = of_row
        return recorded

    def start(self, examples: Any, batch_size: int) -> Chunk:
        """Return examples before their first step, in batches of similar length."""
        return self._chunk(self._rows(examples), batch_size)

    def _chunk(self, rows: Sequence[InputRow], batch_size: int) -> Chunk:
        batches = list(self._batches(rows, batch_size))
        lengths = [row.length for row in rows]
        return Chunk(batches, lengths, join, batch_size if self._regroups else None)

    def _chunks(
        self, rows: Sequence[InputRow], batch_size: int, keep_together: bool
    ) -> Iterator[Array]:
        """Yield the places of rows that run at the same time."""
        most = batch_size
        if self._regroups:
            most *= _AT_ONCE
        for order in self._alike(rows):
            if keep_together:
                yield np.array(order)
            else:
                for part in cut([rows[place].length for place in order], most):
                    yield np.array(order[part])

    def _stack(self, outputs: Sequence[Array], rows: Sequence[InputRow]) -> Array:
        """Stack the outputs of rows, `(…)` or `(steps, …)` each, with blanks at padding."""
        if not outputs:
            return np.zeros((0, *self.manifest.outputs), dtype=np.float32)
        if self.task.per_position:
            before = (slice(None),) * (outputs[0].ndim - len(self.manifest.outputs) - 1)
            outputs = [
                output[(*before, slice(row.length))]
                for output, row in zip(outputs, rows, strict=True)
            ]
        return concatenate([output[None] for output in outputs], self.task.blank)

    def _rows(self, examples: Any) -> list[InputRow]:
        """Return the inputs of examples: texts are tokenized, single arrays are the main input."""
        check_rows("examples", examples)
        are_texts = _are_texts(examples)
        if are_texts and self._tokenizer is None:
            raise ArgumentError(
                "examples",
                expected="a list of texts, and a tokenizer in the export; or arrays",
                got=f"{examples!r:.40}",
                remedy="Pass [text], or set model.tokenizer and export again.",
            )
        if are_texts:
            return [self._row(inputs) for inputs in self._tokenized(examples)]
        main = self.manifest.inputs[0].name
        rows: list[InputRow] = []
        for example in examples:
            inputs = example
            if not isinstance(example, Mapping):
                inputs = {main: example}
            rows.append(self._row(inputs))
        return rows

    def _tokenized(self, texts: Sequence[Text]) -> Iterator[dict[str, Array]]:
        """Yield the inputs of texts, or pairs of texts."""
        pairs = [text if isinstance(text, str) else tuple(text) for text in texts]
        names = [spec.name for spec in self.manifest.inputs if spec.name in _TOKENS]
        for encoding in self._tokenizer.encode_batch(pairs):
            yield {name: np.array(getattr(encoding, _TOKENS[name])) for name in names}

    def _row(self, inputs: Mapping[str, Any]) -> InputRow:
        """Return one example with the defaults of missing inputs, and its length by its mask."""
        specs = self.manifest.inputs
        arrays = {name: np.asarray(value) for name, value in inputs.items()}
        length = self._length_of(arrays)
        for spec in specs:
            if spec.name in arrays:
                continue
            if spec.default is None:
                raise ArgumentError(
                    "examples",
                    expected=f"{[spec.name for spec in specs]} in each example",
                    got=sorted(arrays),
                    remedy="Pass dicts of arrays with these names.",
                )
            arrays[spec.name] = np.full(length, spec.default)
        mask = self.manifest.mask
        if mask is not None:
            is_real = (arrays[mask] != 0) == bool(self.manifest.real)
            last_real = int(np.max(np.flatnonzero(is_real), initial=0))
            length = max(last_real + 1, 1)
        typed = {spec.name: arrays[spec.name].astype(spec.dtype) for spec in specs}
        return InputRow(typed, length)

    def _length_of(self, arrays: Mapping[str, Array]) -> int:
        """Return the length of an example with padding; 0 if none of its arrays has a length."""
        for spec in self.manifest.inputs:
            if spec.along and spec.name in arrays:
                batch_dim = spec.along[0]  # an example has no dimension of the batch
                length: int = arrays[spec.name].shape[batch_dim - 1]
                return length
        return 0

    def _batches(
        self, rows: Sequence[InputRow], batch_size: int
    ) -> Iterator[tuple[list[int], GraphSource]]:
        """Yield batches of rows of similar length, each with the places of its rows."""
        for order in self._alike(rows):
            for part in cut([rows[place].length for place in order], batch_size):
                places = order[part]
                chosen = [rows[place] for place in places]
                yield places, GraphSource(self.manifest, self.graphs, self.task, chosen)

    def _alike(self, rows: Sequence[InputRow]) -> Iterator[list[int]]:
        """Yield the places of rows that may share a batch, the longest first.

        Without a mask that shows their lengths, only rows of the same shapes share a batch.
        """
        have_lengths = self.manifest.mask is not None

        def shapes_of(place: int) -> list[tuple[int, ...]]:
            if have_lengths:
                return []
            return [array.shape for array in rows[place].arrays.values()]

        order = sorted(range(len(rows)), key=lambda place: (shapes_of(place), -rows[place].length))
        for _, group in groupby(order, key=shapes_of):
            yield list(group)


def _read_tokenizer(path: Path) -> Any:
    tokenizers = library("tokenizers", "reading texts", "runtime")
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no other class
        raise CheckpointError(f"{path}: no tokenizer ({error}).") from error


def _are_texts(examples: Any) -> bool:
    """Whether examples are texts or pairs of texts, by the first of them."""
    if isinstance(examples, np.ndarray):
        return False
    first = next(iter(examples), None)
    if isinstance(first, tuple | list) and first:
        first = first[0]
    return isinstance(first, str)
