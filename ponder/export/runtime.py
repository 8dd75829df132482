"""`OnnxModel`: an exported model, run to its exits with numpy and onnxruntime alone."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ponder._utils.certificates import certificates_in, json_digest, warn_of_part
from ponder._utils.columns import EXPORT_REPORT, fitted_columns
from ponder._utils.files import locked, read_json
from ponder._utils.validation import check_int
from ponder.errors import ArgumentError, CheckpointError, PonderError
from ponder.export.assembling import masks_in_order, outputs_in_order
from ponder.export.examples import Batch, Row, batches, is_text, join, open_tokenizer, read_rows
from ponder.export.manifest import FILE, NEXT, Manifest
from ponder.export.policies import ModelSpec, NumpyPolicy, StepView, TaskSpec, read_policy
from ponder.export.policies.base import ask, take
from ponder.export.sessions import Graph

__all__ = ["Answers", "OnnxModel", "Record"]

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Answers:
    """The answers to examples, in their order.

    Args:
        outputs: The head's outputs at each row's exit, `(rows, …)`; where they have positions, `(rows, longest, …)`,
            with zeros beyond the end of a row (−10,000 where a start and an end are chosen).
        exit_step: The step at which each row left, `(rows,)`, from 1.

    Example:
        >>> answers = OnnxModel(folder).predict(inputs.numpy(), policy=policies.FixedStep(2))
        >>> len(answers), answers.outputs.shape, answers.exit_step[:3]
        (300, (300, 3), array([2, 2, 2]))
    """

    outputs: Array
    exit_step: Array

    def __len__(self) -> int:
        return len(self.exit_step)


@dataclass(frozen=True, eq=False)
class Record:
    """A full-depth run over examples, in their order.

    Args:
        outputs: Outputs of every step, `(rows, steps, …)`; where they have positions, as for `Answers`.
        hazard_logits: Hazard logits of every step, `(rows, steps)`; None without a Lambda head.
        features: What the heads read at every step, `(rows, steps, width)`, where they were asked for.
        mask: Which positions are no padding, `(rows, longest)` bool, where outputs have positions and it is known.
        weights: Digest of the files that gave them, by which certificates are known; None where it is not known.

    Example:
        >>> record = OnnxModel(folder).record(inputs.numpy())
        >>> len(record), record.outputs.shape, record.hazard_logits
        (300, (300, 4, 3), None)
    """

    outputs: Array
    hazard_logits: Array | None
    weights: str | None = None
    features: Array | None = None
    mask: Array | None = None

    def __len__(self) -> int:
        return len(self.outputs)


class OnnxModel:
    """A model that `ponder.export.onnx` wrote: rows leave the batch at their exits, as they do in PyTorch.

    Args:
        folder: The export.
        threads: Threads of one operation; None lets onnxruntime choose.

    Raises:
        CheckpointError: The folder is no export, or is broken.
        PonderError: onnxruntime is not installed (the extra ``onnx`` brings it).

    Example:
        >>> exported = OnnxModel(folder)
        >>> exported.num_steps, exported.policy
        (4, {'name': 'confidence', 'threshold': 0.9})
        >>> exported.predict(inputs.numpy()).exit_step.shape
        (300,)
    """

    def __init__(self, folder: str | Path, *, threads: int | None = None) -> None:
        if threads is not None:
            check_int("threads", threads)
        self.folder, self._threads = Path(folder), threads
        self.manifest = Manifest.read(self.folder)
        self._graphs = _Graphs.open(self.folder, self.manifest, threads)
        if (read_json(self.folder / FILE).get("digests") or self.manifest.digests) != self.manifest.digests:
            raise CheckpointError(
                f"{self.folder}: another export was written there while it was opened. Open it again."
            )
        self._tokenizer: Any = None
        self._policy = self._read(self.manifest.policy)

    @property
    def num_steps(self) -> int:
        """N, the number of steps at full depth."""
        return self.manifest.num_steps

    @property
    def policy(self) -> dict[str, Any]:
        """The exit policy, as its `to_dict` gives it; assigning one, or such a dict, changes it for this object.

        What is read is a copy: change it, and assign it again. A certificate for other weights is refused.
        """
        return deepcopy(self._policy[0])

    @policy.setter
    def policy(self, policy: Any) -> None:
        read = self._read(policy)
        if self._is_foreign(read[0]):
            raise ArgumentError(
                "policy",
                expected="one that was certified on this export"
                + ("" if self.manifest.int8 else ", or on the model inside it"),
                got="a certificate for other weights: it says nothing of these",
                remedy="Certify it here: ponder.export.certify; or pass policy.policy, which promises nothing.",
            )
        if read[0].get("name") != "certified" and any(certificates_in(read[0])):
            warn_of_part(stacklevel=3)
        self._policy = read

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy, or what another process reads, opens the folder again, and keeps the policy."""
        return _reopened, (self.folder, self._threads, self.manifest.digests, self.policy)

    def save_policy(self) -> None:
        """Keep the policy in the folder, for those who open it later.

        What `ponder export` reported of another policy goes from the folder: its promise is not one of this policy.

        Raises:
            CheckpointError: The folder is gone, or holds another export by now.
        """
        with locked(self.folder):
            kept = Manifest.read(self.folder)
            if kept.digests != self.manifest.digests:
                raise CheckpointError(
                    f"{self.folder}: holds another export than the one that was opened. Open it again."
                )
            report = self.folder / EXPORT_REPORT
            if report.is_file() and json_digest(kept.policy) != json_digest(self.policy):
                self.manifest = replace(self.manifest, columns=fitted_columns(self.folder))
                replace(self.manifest, policy=kept.policy).write(self.folder)  # or the columns went with the report
                report.unlink()
            self.manifest = replace(self.manifest, policy=self.policy)
            self.manifest.write(self.folder)

    def predict(self, examples: Any, *, batch_size: int = 32, policy: Any = None, row_ids: Any = None) -> Answers:
        """Every example to its exit; in batches of similar length.

        Args:
            examples: Texts (or pairs of texts), arrays, dicts of arrays, one an example; or one dict of arrays with
                the batch first.
            batch_size: Rows of a batch at most.
            policy: Decides instead of the model's own: a policy, or what its `to_dict` gives.
            row_ids: Who each row is, for seeded sampling; the position where None.

        Raises:
            ArgumentError: An example that cannot be read; the message names its position.
        """
        data, own = self._policy if policy is None else self._read(policy)
        if policy is not None and self._is_foreign(data):
            warnings.warn(
                "The policy of this run was certified for other weights than those of the export: it promises nothing "
                "here. Certify it here: ponder.export.certify; or pass policy.policy, the policy inside.",
                stacklevel=2,
            )
        ids = None if row_ids is None else np.asarray(row_ids)
        rows = read_rows(examples, self.manifest, self._texts(examples))
        if ids is not None and (ids.shape != (len(rows),) or ids.dtype.kind not in "iu"):
            raise ArgumentError(
                "row_ids",
                expected=f"integers, shape ({len(rows)},)",
                got=f"{ids.dtype} {ids.shape}",
                remedy="One id for each example.",
            )
        exit_step, chunks, found = np.zeros(len(rows), dtype=np.int64), self._batches(rows, batch_size), list[Array]()
        for chunk in chunks:
            with self._naming(chunk, rows):
                outputs, steps = self._run(chunk, own, chunk.positions if ids is None else ids[chunk.positions])
            exit_step[chunk.positions] = steps
            found.append(outputs)
        return Answers(outputs_in_order(found, chunks, self.manifest) if found else self._nothing(), exit_step)

    def record(self, examples: Any, *, batch_size: int = 32, keep_features: bool = False) -> Record:
        """The outputs, and hazards where there are any, of every step.

        Args:
            examples: As for `predict`.
            batch_size: Rows of a batch at most.
            keep_features: Keep what the heads read, for policies that read it too.

        Raises:
            ArgumentError: An example that cannot be read, or features that are not known to be one vector a row.
        """
        if keep_features and len(self.manifest.features) != 1:
            raise ArgumentError(
                "keep_features",
                expected="False, where features are not known to be one vector a row",
                got="True",
                remedy="Export the model again, if an earlier version did.",
            )
        rows = read_rows(examples, self.manifest, self._texts(examples))
        steps = self.num_steps
        hazards: Array = np.zeros((len(rows), steps), dtype=np.float32)
        features: Array = np.zeros((len(rows), steps, *self.manifest.features) if keep_features else 0, np.float32)
        chunks, found = self._batches(rows, batch_size), [list[Array]() for _ in range(steps)]
        for chunk in chunks:
            with self._naming(chunk, rows):
                running = _Running.start(self._graphs, self.manifest, chunk)
                for step in range(1, steps + 1):
                    running.advance(step)
                    found[step - 1].append(running.output())
                    if keep_features:
                        features[chunk.positions, step - 1] = running.features()
                    if self._graphs.lambda_head is not None:
                        hazards[chunk.positions, step - 1] = running.hazard_logit()
        return Record(
            np.stack(
                [outputs_in_order(of_step, chunks, self.manifest) if rows else self._nothing() for of_step in found], 1
            ),
            None if self._graphs.lambda_head is None else hazards,
            json_digest(self.manifest.digests),
            features if keep_features else None,
            masks_in_order(found[-1], chunks, self.manifest),
        )

    def _nothing(self) -> Array:
        """The outputs of no rows."""
        made = self.manifest
        return np.zeros((0, *[0] * made.per_position, *made.outputs), dtype=np.float32)

    def _run(self, batch: Batch, policy: NumpyPolicy, row_ids: Array) -> tuple[Array, Array]:
        """Outputs and exit steps of a batch: the loop of `ponder.engine.loop`, in numpy."""
        steps, task = self.num_steps, TaskSpec.of(self.manifest)
        running, state = _Running.start(self._graphs, self.manifest, batch), policy.init(row_ids)
        rows, exit_step = np.arange(len(row_ids)), np.full(len(row_ids), steps)
        log_survival: Array = np.zeros(len(row_ids), dtype=np.float32)
        mask_of = batch.mask if task.per_position else None
        left: list[tuple[Array, Array]] = []
        for step in range(1, steps):
            running.advance(step)
            seen: dict[str, Array] = {}
            if "hazard" in policy.needs:
                logit = running.hazard_logit()
                seen["hazard"], seen["survival"] = np.exp(-np.logaddexp(0, -logit)), np.exp(log_survival)
                log_survival = log_survival - np.logaddexp(0, logit)
                seen["cdf"] = -np.expm1(log_survival)
            if "output" in policy.needs:
                seen["output"] = task.without_padding(running.output(), mask_of)
            if "features" in policy.needs:
                seen["features"] = running.features()
            if mask_of is not None:
                seen["mask"] = mask_of
            for name, array in seen.items():  # the head answers from them: a policy that writes into them is told
                seen[name] = array.view()
                seen[name].flags.writeable = False
            mask, state = ask(policy, StepView(step, steps, len(rows), task, **seen), state)
            if not mask.any():
                continue
            leaving, staying = np.flatnonzero(mask), np.flatnonzero(~mask)
            left.append((rows[leaving], running.output_of(leaving)))
            exit_step[rows[leaving]] = step
            if not len(staying):
                break
            rows, state, log_survival = rows[staying], take(state, staying), log_survival[staying]
            mask_of = None if mask_of is None else mask_of[staying]
            running.keep(staying)
        else:
            running.advance(steps)
            left.append((rows, running.output()))
        order = np.argsort(np.concatenate([rows for rows, _ in left]))
        return np.concatenate([outputs for _, outputs in left])[order], exit_step

    @contextmanager
    def _naming(self, batch: Batch, rows: Sequence[Row]) -> Iterator[None]:
        """Where a batch cannot be run, say which of its rows is the cause: the first that cannot be run alone."""
        try:
            yield
        except PonderError as error:
            for position in batch.positions.tolist():
                alone = join([rows[position]], self.manifest)
                try:
                    _Running.start(self._graphs, self.manifest, alone).advance(1)
                except PonderError as cause:
                    raise ArgumentError(
                        f"examples[{position}]",
                        expected="an example that the model can run",
                        got=str(cause),
                        remedy="Repair this example, or leave it out.",
                    ) from error
            raise

    def _batches(self, rows: Any, batch_size: int) -> list[Batch]:
        check_int("batch_size", batch_size)
        return [join(chunk, self.manifest) for chunk in batches(rows, batch_size, self.manifest)]

    def _texts(self, examples: Any) -> Any:
        """The tokenizer, opened when the first text comes."""
        given = isinstance(examples, Sequence) or hasattr(examples, "__array__")
        texts = given and any(is_text(example) for example in examples)
        if texts and self._tokenizer is None and self.manifest.tokenizer is not None:
            self._tokenizer = open_tokenizer(self.folder, self.manifest)
        return self._tokenizer

    def check(self, policy: Any) -> None:
        """Raise where a policy, or what its `to_dict` gives, cannot decide for this model.

        Raises:
            ArgumentError: It reads what there is not, or has no place in the task or the steps of the model.
        """
        self._read(policy)

    def _is_foreign(self, policy: dict[str, Any]) -> bool:
        """Whether a promise is about another model than this export, or the one that it was made from."""
        made, known = self.manifest, {each.get("weights") for each in certificates_in(policy)} - {None}
        before = made.weights is None and not made.int8  # by an earlier version, which did not say
        return not before and bool(known - {made.weights, json_digest(made.digests)})

    def _read(self, policy: Any) -> tuple[dict[str, Any], NumpyPolicy]:
        data = policy if isinstance(policy, type | Mapping) or not hasattr(policy, "to_dict") else policy.to_dict()
        read = read_policy(data)
        read.check(ModelSpec.of(self.manifest))
        return deepcopy(dict(data)), read


def _reopened(folder: Path, threads: int | None, digests: dict[str, str], policy: dict[str, Any]) -> OnnxModel:
    """The export of before with the policy that it had, which may have been changed there.

    Raises:
        CheckpointError: The folder is gone, or holds another export by now.
    """
    model = OnnxModel(folder, threads=threads)
    if model.manifest.digests != digests:
        raise CheckpointError(f"{folder}: holds another export than the one that was copied. Open it again.")
    model._policy = model._read(policy)
    return model


@dataclass(frozen=True)
class _Graphs:
    """The opened graphs of an export."""

    stem: Graph | None
    steps: tuple[Graph, ...]
    readout: Graph
    heads: tuple[Graph, ...]
    halting_readout: Graph | None
    lambda_head: Graph | None

    @classmethod
    def open(cls, folder: Path, manifest: Manifest, threads: int | None) -> _Graphs:
        def one(name: str | None) -> Graph | None:
            return None if name is None else Graph(folder / name, threads)

        return cls(
            stem=one(manifest.stem),
            steps=tuple(Graph(folder / name, threads) for name in manifest.steps),
            readout=Graph(folder / manifest.readout, threads),
            heads=tuple(Graph(folder / name, threads) for name in manifest.heads),
            halting_readout=one(manifest.halting_readout),
            lambda_head=one(manifest.lambda_head),
        )


class _Running:
    """The rows of a batch that still run: `ponder.engine.sources.ModelSource`, in numpy.

    Args:
        graphs: The model.
        manifest: Its description.
        arrays: Hidden state and context, by name.
        lengths: Length of each row, `(rows,)`; None where rows have none.
    """

    def __init__(self, graphs: _Graphs, manifest: Manifest, arrays: dict[str, Array], lengths: Array | None) -> None:
        self._graphs, self._manifest, self._arrays, self._lengths = graphs, manifest, arrays, lengths
        self._specs = {spec.name: spec for spec in (*manifest.hidden, *manifest.context)}
        self._cache: dict[str, Array] = {}
        self._step = 0
        self._past: list[Array] = []
        if graphs.lambda_head is not None and manifest.history > 1:
            first = self._halting_features()
            self._cache.clear()
            before = first if manifest.initial == "stem" else np.zeros_like(first)
            self._past = [before] * (manifest.history - 1)

    @classmethod
    def start(cls, graphs: _Graphs, manifest: Manifest, batch: Batch) -> _Running:
        """Run the stem: rows before their first step."""
        arrays = dict(batch.arrays) if graphs.stem is None else graphs.stem(batch.arrays)
        return cls(graphs, manifest, arrays, batch.lengths)

    def advance(self, step: int) -> None:
        """Bring all rows to a step."""
        if self._step and self._past:
            self._past = [self._halting_features(), *self._past[:-1]]
        self._cache.clear()
        self._step = step
        graph = self._graphs.steps[self._manifest.schedule[step - 1]]
        at = np.full(self._size, step, dtype=np.int64) if "index" in graph.inputs else np.zeros(0)
        after = graph({**self._arrays, "index": at})
        self._arrays.update({name.removesuffix(NEXT): array for name, array in after.items()})

    def output(self) -> Array:
        """The outputs of all rows, `(rows, …)`."""
        if "output" not in self._cache:
            self._cache["output"] = self._answer(self.features())
        return self._cache["output"]

    def output_of(self, rows: Array) -> Array:
        """The outputs of some rows, computed for no others."""
        return self._cache["output"][rows] if "output" in self._cache else self._answer(self.features()[rows])

    def hazard_logit(self) -> Array:
        """The hazard logits of all rows, `(rows,)`."""
        assert self._graphs.lambda_head is not None
        features = np.concatenate([self._halting_features(), *self._past], axis=-1)
        logit: Array = self._graphs.lambda_head({"features": features})["hazard"]
        return logit.astype(np.float32)

    def keep(self, rows: Array) -> None:
        """Go on with some rows; the batch gets narrower where the longest have left."""
        self._cache = {name: kept[rows] for name, kept in self._cache.items() if name.endswith("features")}
        self._past = [kept[rows] for kept in self._past]
        self._lengths = None if self._lengths is None else self._lengths[rows]
        length = None if self._lengths is None or not self._manifest.narrows else int(self._lengths.max())
        for name, spec in self._specs.items():
            array = self._arrays[name] if spec.shared else self._arrays[name][rows]
            for dim in spec.along if length is not None else ():
                if array.shape[dim] > length:
                    array = array[(slice(None),) * dim + (slice(0, length),)]
            self._arrays[name] = array

    @property
    def _size(self) -> int:
        return int(self._arrays[self._manifest.hidden[0].name].shape[0])

    def features(self) -> Array:
        """What the heads read, `(rows, …)`."""
        if "features" not in self._cache:
            self._cache["features"] = self._graphs.readout(self._arrays)["features"]
        return self._cache["features"]

    def _halting_features(self) -> Array:
        if self._graphs.halting_readout is None:
            return self.features()
        if "halting_features" not in self._cache:
            self._cache["halting_features"] = self._graphs.halting_readout(self._arrays)["features"]
        return self._cache["halting_features"]

    def _answer(self, features: Array) -> Array:
        heads = self._graphs.heads
        return (heads[0] if len(heads) == 1 else heads[self._step - 1])({"features": features})["output"]
