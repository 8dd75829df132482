"""What the products of an export's steps read on given examples: the ranges of a static quantisation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ponder.errors import ArgumentError
from ponder.export.products import products
from ponder.export.runtime import OnnxModel
from ponder.export.sessions import Graph
from ponder.export.smoothing import Channels

__all__ = ["ranges_of"]


def ranges_of(folder: Path, examples: Any) -> list[Channels]:
    """The range of every channel that products with weights read, for each graph of the steps, at full depth.

    Args:
        folder: An export in fp32.
        examples: Examples to run, as for `OnnxModel.predict`.

    Raises:
        ArgumentError: No examples, or one on which a value is not finite.
    """
    model = OnnxModel(folder)
    with TemporaryDirectory() as scratch:
        steps = tuple(_Watched(folder / name, Path(scratch) / name) for name in model.manifest.steps)
        model._graphs = replace(model._graphs, steps=steps)
        seen = len(model.record(examples))
    if not seen or not all(np.isfinite(end).all() for step in steps for pair in step.ranges.values() for end in pair):
        raise ArgumentError(
            "calibration",
            expected="examples on which every value is finite",
            got="none" if not seen else "one with NaN or infinity on its way",
            remedy="Pass some hundred examples like those to come.",
        )
    return [step.ranges for step in steps]


class _Watched(Graph):
    """A graph of a step that notes what its products read.

    Args:
        path: The file.
        scratch: File into which a copy of the graph is written that gives these tensors too.

    Attributes:
        ranges: What was seen so far.
    """

    def __init__(self, path: Path, scratch: Path) -> None:
        import onnx
        from onnx import TensorProto, helper

        model = onnx.load(str(path))
        given = {value.name for value in (*model.graph.input, *model.graph.output)}
        self._names = sorted({node.input[0] for node, _ in products(model.graph)})
        self._inner = [name for name in self._names if name not in given]
        model.graph.output.extend(
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in self._inner]
        )
        onnx.save(model, str(scratch))
        super().__init__(scratch)
        self.ranges: dict[str, tuple[NDArray[Any], NDArray[Any]]] = {}

    def __call__(self, arrays: Any) -> dict[str, NDArray[Any]]:
        """Run the graph, and note the ranges of what its products read."""
        found = super().__call__(arrays)
        seen = {**arrays, **found}
        for name in self._names:
            rows = seen[name].reshape(-1, seen[name].shape[-1])
            low, high = self.ranges.get(name, (np.inf, -np.inf))
            self.ranges[name] = np.minimum(low, rows.min(axis=0)), np.maximum(high, rows.max(axis=0))
        return {name: value for name, value in found.items() if name not in self._inner}
