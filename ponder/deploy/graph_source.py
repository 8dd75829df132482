"""The running rows of an export: a source that calls graphs, and a policy that is graphs.

A `GraphSource` holds the arrays of a batch and calls the graph of a reading on demand. When rows
exit, or batches are merged, `join` copies the rows that remain into a narrower batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from ponder.deploy.manifest import Manifest, PolicyGraphs, TensorSpec
from ponder.deploy.sessions import Array, Graph
from ponder.policies.base import StepView
from ponder.tasks import Task

__all__ = ["GraphPolicy", "GraphSource", "InputRow", "concatenate", "join"]

_NEXT = ".next"
"""The suffix of the outputs of a step that are inputs of the next one."""


@dataclass(frozen=True, eq=False)
class InputRow:
    """The inputs of one example, by name, and its length without padding."""

    arrays: dict[str, Array]
    length: int


class GraphPolicy:
    """A policy in graphs, used as an `ExitPolicy`.

    Args:
        graphs: The needs of the policy and its thresholds.
        sessions: The graphs of the export, by name.
    """

    def __init__(self, graphs: PolicyGraphs, sessions: Mapping[str, Graph]) -> None:
        self.graphs = graphs
        self.needs = frozenset(graphs.needs)
        self._init = sessions.get("policy_init")
        self._decide = sessions.get("policy_decide")

    def exit_of_all(self, num_steps: int) -> int | None:
        """See `ExitPolicy.exit_of_all`."""
        return self.graphs.together

    def init(self, first: StepView) -> list[Array]:
        """Return the arrays of the state; see `ExitPolicy.init`."""
        if self._init is None:
            return []
        return list(self._init(self._inputs(first)).values())

    def decide(self, view: StepView, state: list[Array]) -> tuple[Array, list[Array]]:
        """See `ExitPolicy.decide`."""
        assert self._decide is not None  # there is none if all rows exit together
        arrays = self._inputs(view)
        arrays |= {f"state_{number}": array for number, array in enumerate(state)}
        outputs = self._decide(arrays)
        exits = outputs.pop("exits")
        return exits, list(outputs.values())

    def _inputs(self, view: StepView) -> dict[str, Any]:
        """Return what a policy reads at a step, by the names of the inputs of its graphs."""
        return {
            "index": view.index,
            "row_ids": view.row_ids,
            "mask": view.mask,
            **view.readings,
            **(view.policy_context or {}),
            **self.graphs.thresholds,
        }


class GraphSource:
    """The running rows of a batch: a `ponder.running.Source` that calls graphs on demand.

    Args:
        manifest: The manifest of the export.
        graphs: Its graphs, by name.
        task: The meaning of the outputs.
        rows: The rows.
    """

    policy_context: Mapping[str, Array] = MappingProxyType({})
    """Empty: the `Chunk` of several batches keeps the values that a caller passes for policies."""

    def __init__(
        self,
        manifest: Manifest,
        graphs: Mapping[str, Graph],
        task: Task,
        rows: Sequence[InputRow],
    ) -> None:
        self._manifest = manifest
        self._graphs = graphs
        self._task = task
        inputs = _stack_inputs(rows, manifest.inputs)
        self._arrays = inputs
        if "stem" in graphs:
            self._arrays = graphs["stem"](inputs)
        # The graph of a stem does not return inputs that it passes on unchanged.
        for spec in (*manifest.hidden, *manifest.context):
            if spec.name not in self._arrays:
                self._arrays[spec.name] = inputs[spec.name.removeprefix("context.")]
        self._lengths = np.array([row.length for row in rows])
        self._step = 0
        self._cache: dict[str, Array] = {}
        self._halting = "halting" if "halting" in graphs else "readout"
        # The features of earlier steps that the Lambda head reads, the newest first.
        self._past: list[Array] = []
        if manifest.history > 1:
            first = self.features(self._halting)
            if manifest.initial != "stem":
                first = np.zeros_like(first)
            self._past = [first] * (manifest.history - 1)

    @classmethod
    def of_parts(cls, parts: Sequence[tuple[GraphSource, Array]], longest: int) -> GraphSource:
        """Return rows of several batches, each with their places there, as one batch.

        It is as long as the longest of the rows if the model allows it.
        """
        first = parts[0][0]
        manifest = first._manifest
        joined = copy(first)
        joined._step = 0
        joined._cache = {}
        joined._lengths = np.concatenate([batch._lengths[places] for batch, places in parts])
        pasts = [[past[places] for past in batch._next_past()] for batch, places in parts]
        joined._past = [np.concatenate(past) for past in zip(*pasts, strict=True)]
        joined._arrays = {}
        for spec in (*manifest.hidden, *manifest.context):
            rows: list[Array] = []
            for batch, places in parts:
                array = batch._arrays[spec.name]
                if manifest.narrows:
                    array = _cropped(array, spec.along, longest)
                if not spec.shared:
                    array = array[places]
                rows.append(array)
            if spec.shared:
                joined._arrays[spec.name] = max(rows, key=np.size)
            else:
                joined._arrays[spec.name] = concatenate(rows, spec.fill)
        return joined

    def advance(self, step: int) -> None:
        """See `Source.advance`."""
        self._past = self._next_past()
        self._cache = {}
        self._step = step
        self._arrays["index"] = np.full(len(self._lengths), step)
        name = self._manifest.steps[self._manifest.schedule[step - 1]]
        outputs = self._graphs[name](self._arrays)
        self._arrays |= {name.removesuffix(_NEXT): array for name, array in outputs.items()}

    def features(self, readout: str = "readout") -> Array:
        """See `Source.features`; `readout` is the name of a graph."""
        if readout not in self._cache:
            self._cache[readout] = self._graphs[readout](self._arrays)["features"]
        return self._cache[readout]

    def output(self) -> Array:
        """See `Source.output`."""
        if "output" not in self._cache:
            self._cache["output"] = self._answer(self.features())
        return self._cache["output"]

    def output_of(self, index: Array) -> Array:
        """See `Source.output_of`."""
        if "output" in self._cache or len(index) == len(self._lengths):
            return self.output()[index]
        return self._answer(self.features()[index])

    def hazard_logit(self) -> Array:
        """See `Source.hazard_logit`."""
        read = np.concatenate([self.features(self._halting), *self._past], axis=-1)
        return self._graphs["lambda"]({"features": read})["hazard"]

    @property
    def mask(self) -> Array | None:
        """The positions that are not padding; None if outputs have no positions."""
        if not self._task.per_position:
            return None
        length = self._arrays[self._manifest.hidden[0].name].shape[1]
        return np.arange(length) < self._lengths[:, None]

    def keep(self, index: Array) -> None:
        """See `Source.keep`; the batch gets as long as the longest of the rows."""
        kept = self.of_parts([(self, index)], int(self._lengths[index].max()))
        self.__dict__.update(kept.__dict__)

    def _next_past(self) -> list[Array]:
        """Return the features of earlier steps that the Lambda head reads at the next step."""
        if self._step and self._past:
            return [self.features(self._halting), *self._past[:-1]]
        return self._past

    def _answer(self, features: Array) -> Array:
        name = "head" if "head" in self._graphs else f"head_{self._step}"
        return self._graphs[name]({"features": features})["output"]


join = GraphSource.of_parts


def concatenate(parts: Sequence[Array], fill: float) -> Array:
    """Join batches to one; shorter ones are filled at their ends."""
    if len({part.shape[1:] for part in parts}) == 1:
        return np.concatenate(parts)
    rows = sum(len(part) for part in parts)
    largest = np.max([part.shape[1:] for part in parts], axis=0)
    joined = np.full((rows, *largest), fill, dtype=parts[0].dtype)
    start = 0
    for part in parts:
        stop = start + len(part)
        # The corner of the rows that this batch fills.
        corner = [slice(start, stop), *map(slice, part.shape[1:])]
        joined[tuple(corner)] = part
        start = stop
    return joined


def _stack_inputs(rows: Sequence[InputRow], specs: Sequence[TensorSpec]) -> dict[str, Array]:
    """Stack the inputs of rows, each padded on the right to the longest."""
    longest = max(row.length for row in rows)
    arrays: dict[str, Array] = {}
    for spec in specs:
        if spec.shared:
            arrays[spec.name] = _cropped(rows[0].arrays[spec.name][None], spec.along, longest)[0]
            continue
        parts = [_cropped(row.arrays[spec.name][None], spec.along, longest) for row in rows]
        arrays[spec.name] = concatenate(parts, spec.fill)
    return arrays


def _cropped(array: Array, dims: Sequence[int], length: int) -> Array:
    """Return an array that is at most so long along its dimensions."""
    for dim in dims:
        array = array[(slice(None),) * dim + (slice(length),)]
    return array
