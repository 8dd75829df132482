"""`Graph`: one ONNX graph in onnxruntime."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ponder._utils.checks import library
from ponder.errors import CheckpointError

__all__ = ["Array", "Graph"]

Array = NDArray[Any]
# Fusions whose kernels take longer than the nodes that they replace.
_SLOWER = ["SkipLayerNormFusion", "BiasGeluFusion"]
# ONNX's names of types that NumPy calls differently.
_NUMPY_TYPES = {"float": "float32", "double": "float64"}


class Graph:
    """One ONNX graph.

    Args:
        model: A file, or its bytes.
        threads: Threads of one operation. By default OMP_NUM_THREADS, as for PyTorch, or all cores.

    Raises:
        CheckpointError: onnxruntime cannot read the graph.
    """

    def __init__(self, model: Path | bytes, threads: int | None = None) -> None:
        onnxruntime = library("onnxruntime", "running an export", "runtime")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # Threads that spin while they wait would starve all others.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.intra_op_num_threads = threads or _threads_of_environment()
        _share_memory(onnxruntime)
        options.add_session_config_entry("session.use_env_allocators", "1")
        try:
            self._session = onnxruntime.InferenceSession(
                model, options, providers=["CPUExecutionProvider"], disabled_optimizers=_SLOWER
            )
        except Exception as error:  # onnxruntime's errors have no common base
            raise CheckpointError(
                f"{model!s:.200}: onnxruntime cannot read it ({error}). Export again."
            ) from error
        self.inputs: dict[str, str] = {}
        """The type of each input, by name."""
        self.ranks: dict[str, int] = {}
        """The number of dimensions of each input, by name."""
        for value in self._session.get_inputs():
            self.ranks[value.name] = len(value.shape)
            kind = value.type.removeprefix("tensor(").removesuffix(")")
            self.inputs[value.name] = _NUMPY_TYPES.get(kind, kind)
        self.outputs = [value.name for value in self._session.get_outputs()]

    def __call__(self, arrays: Mapping[str, Any]) -> dict[str, Array]:
        """Return the outputs by name; `arrays` may hold more than the graph reads."""
        read = {
            name: np.ascontiguousarray(arrays[name], kind) for name, kind in self.inputs.items()
        }
        return dict(zip(self.outputs, self._session.run(None, read), strict=True))


@cache
def _share_memory(onnxruntime: Any) -> None:
    """Let all graphs of this process take memory from one arena.

    Steps run one after the other, and an arena keeps what it once needed. With an arena for each
    graph, a model of N steps would keep N times the memory of one step.
    """
    arena = onnxruntime.OrtMemoryInfo(
        "Cpu",
        onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR,
        0,
        onnxruntime.OrtMemType.DEFAULT,
    )
    onnxruntime.create_and_register_allocator(arena, None)


def _threads_of_environment() -> int:
    """Return the first number of OMP_NUM_THREADS, which may be a list; 0, for all, without it."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(first) if first.isdecimal() else 0
