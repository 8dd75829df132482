"""Graphs as callables: one onnxruntime session each, which is given the arrays that it names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ponder.errors import CheckpointError, PonderError

__all__ = ["Graph"]

Array = NDArray[Any]
_SLOWER = ["SkipLayerNormFusion", "BiasGeluFusion"]
"""Optimisations of onnxruntime that slow encoders down: their kernels take longer than an addition and what follows."""


class Graph:
    """One ONNX graph, opened in onnxruntime.

    Args:
        path: The file.
        threads: Threads of one operation; None lets onnxruntime choose.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        runtime = _onnxruntime()
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # or its threads starve all others
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            self._session = runtime.InferenceSession(
                str(path),
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=_SLOWER,
            )
        except Exception as error:  # onnxruntime's own errors have no common base
            raise CheckpointError(
                f"{path}: onnxruntime cannot read it ({error}). Export again; or, where the "
                "graph is of a newer version than onnxruntime knows, install a newer one."
            ) from error
        self.inputs = {given.name: given for given in self._session.get_inputs()}
        self.outputs = [made.name for made in self._session.get_outputs()]

    def __call__(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs by name; `arrays` may hold more than the graph reads.

        Raises:
            PonderError: onnxruntime cannot run them.
        """
        given = {name: np.ascontiguousarray(arrays[name]) for name in self.inputs}
        try:
            found = self._session.run(None, given)
        except Exception as error:  # onnxruntime's own errors have no common base
            raise PonderError(f"the export cannot run these examples ({error}).") from error
        return dict(zip(self.outputs, found, strict=True))


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise PonderError("running an export needs onnxruntime: pip install 'ponder-torch[onnx]'.") from error
    return onnxruntime
