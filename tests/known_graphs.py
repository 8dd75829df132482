"""Graphs that tests write again are traced once a process: tracing is nearly all that an export costs.

Tests of tokenizers, folders and policies export the same few models. What a graph depends on is what is pickled here:
the part with its model, weights and closures, and the slots by which it is called. What cannot be pickled is traced
each time. Parts of `ponder.export.graphs` read the modules of a model alone, those of the graph that stops by itself
its policy too. Exports go on comparing each graph with PyTorch, so that one of another model would be told.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from ponder.engine.model import EarlyExitModel

__all__ = ["remember_graphs"]


def remember_graphs() -> None:
    """From now on, for this process."""
    from ponder.export import graphs, single, writing

    write_graph, known = graphs.write_graph, dict[bytes, bytes]()

    def written(part: Any, given: Sequence[Any], outputs: Sequence[str], path: Path) -> None:
        key = _key(part, given, outputs, whole=part.run.__code__.co_filename != graphs.__file__)
        if key in known:
            graphs.libraries()
            path.write_bytes(known[key])
            return
        write_graph(part, given, outputs, path)
        if key is not None:
            known[key] = path.read_bytes()

    for module in (single, writing):
        module.write_graph = written  # type: ignore[attr-defined]


def _key(part: Any, given: Sequence[Any], outputs: Sequence[str], *, whole: bool) -> bytes | None:
    """All that a graph depends on; None where something of it cannot be pickled."""
    slots = [(slot.spec, slot.value) for slot in given]
    file = io.BytesIO()
    try:
        _Pickler(file, whole).dump((part.model, part.run, slots, list(outputs), torch.get_default_dtype()))
    except (pickle.PicklingError, TypeError, AttributeError):
        return None
    return file.getvalue()


class _Pickler(pickle.Pickler):
    """Tensors by their numbers, and functions without a name of their own by their place and what they hold."""

    def __init__(self, file: io.BytesIO, whole: bool) -> None:
        super().__init__(file, protocol=5)
        self.whole = whole

    def reducer_override(self, thing: Any) -> Any:
        if isinstance(thing, Tensor):
            numbers = thing.detach().reshape(-1).view(torch.uint8).numpy().tobytes()
            return _never, (type(thing), thing.dtype, tuple(thing.shape), thing.requires_grad, numbers)
        if isinstance(thing, FunctionType) and (thing.__closure__ or "<" in thing.__qualname__):
            code, cells = thing.__code__, [cell.cell_contents for cell in thing.__closure__ or ()]
            return _never, (code.co_filename, code.co_firstlineno, code.co_qualname, thing.__defaults__, cells)
        if isinstance(thing, EarlyExitModel) and not self.whole:
            return _never, (type(thing), thing._modules, thing.training)
        return NotImplemented


def _never(*parts: Any) -> Callable[..., Any]:
    raise AssertionError("keys are not read")
