"""Graphs as callables: one onnxruntime session each, which takes the arrays that it names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ponder.errors import CheckpointError, PonderError

__all__ = ["Graph"]

_SLOWER = ["SkipLayerNormFusion", "BiasGeluFusion"]
"""Optimisations of onnxruntime whose kernels take longer than what they replace."""


class Graph:
    """One ONNX graph, opened in onnxruntime.

    Args:
        path: The file.
        threads: Threads of one operation; onnxruntime's own choice where None.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise PonderError("running an export needs onnxruntime: pip install 'ponder-torch[runtime]'.") from error
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # or its threads starve all others
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=_SLOWER
            )
        except Exception as error:  # onnxruntime's own errors have no common base
            raise CheckpointError(f"{path}: onnxruntime cannot read it ({error}). Export again.") from error
        self.inputs = [(given.name, _NUMPY.get(given.type)) for given in self._session.get_inputs()]
        self.outputs = [made.name for made in self._session.get_outputs()]

    def __call__(self, arrays: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        """Return the outputs by name; `arrays` may hold more than the graph reads."""
        given = {name: np.ascontiguousarray(arrays[name], dtype) for name, dtype in self.inputs}
        return dict(zip(self.outputs, self._session.run(None, given), strict=True))


_NUMPY = {
    f"tensor({kind})": kind
    for kind in ("float16", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool")
} | {"tensor(float)": "float32", "tensor(double)": "float64"}
