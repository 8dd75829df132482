"""Exports in tests take a third of the time, and their sessions one thread.

For every graph PyTorch reads its tables of operators anew, notes where each operation was called, and decomposes code
that it decomposed before, with other weights. By default all cores wait for the work of a session in a loop, which
costs more than the work.
"""

from __future__ import annotations

import copy
import typing
from functools import cache
from pathlib import Path
from typing import Any

import torch

from tests.known_graphs import remember_graphs

__all__ = ["make_exports_quick", "single_thread_session"]


@cache
def make_exports_quick() -> None:
    """From now on, for this process; the tables change only by custom operators, which no test has."""
    from torch._export import utils
    from torch.onnx._internal.exporter import _core, _registration

    torch._ops.Callable = typing.Callable  # hundreds of thousands of annotations, which `typing` makes once each
    utils._materialize_cpp_cia_ops = cache(utils._materialize_cpp_cia_ops)
    torch.fx.config.do_not_emit_stack_traces = True
    torch._dynamo.config.fake_tensor_cache_enabled = False  # what is traced once pays for it and gets nothing
    registry: Any = _registration.ONNXRegistry
    if hasattr(registry, "from_torchlib"):
        registry.from_torchlib = staticmethod(cache(registry.from_torchlib))
    decompose, known = _core._prepare_exported_program_for_export, dict[str, Any]()

    def decomposed(program: Any, *, registry: Any) -> Any:
        key = _code(program)
        if key not in known:
            known[key] = decompose(program, registry=registry)
        made = copy.copy(known[key])
        made._state_dict, made._constants = program.state_dict, program.constants
        made._example_inputs = program.example_inputs
        return made

    _core._prepare_exported_program_for_export = decomposed
    remember_graphs()


def _code(program: Any) -> str:
    """All that the decomposition of a program depends on: operations, types, shapes, constants; not the weights."""
    nodes = [
        (node.op, node.name, str(node.target), str(node.args), str(node.kwargs), str(node.meta.get("val")))
        for module in program.graph_module.modules()
        if isinstance(module, torch.fx.GraphModule)
        for node in module.graph.nodes
    ]
    constants = {
        name: value.tolist() if isinstance(value, torch.Tensor) else id(value)
        for name, value in program.constants.items()
    }
    return repr((nodes, str(program.graph_signature), str(program.range_constraints), constants))


def single_thread_session(path: Path) -> Any:
    """A graph as onnxruntime runs it, without `ponder`."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options)
