"""The parts of a model as modules on flat lists of tensors, which an exporter can trace; and the tracing."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ponder._utils.trees import Shared, Tree, map_tensors, tensors, unwrap
from ponder.engine.model import EarlyExitModel
from ponder.engine.sources import ask_stem
from ponder.errors import PonderError
from ponder.export.manifest import TensorSpec
from ponder.parts.heads import PerStep
from ponder.parts.readouts import ReadoutCall, told

__all__ = [
    "FlatTree",
    "Part",
    "Slot",
    "flatten",
    "head_part",
    "lambda_part",
    "libraries",
    "read_out",
    "readout_part",
    "stem_part",
    "step_part",
    "write_graph",
]


@dataclass(frozen=True, eq=False)
class Slot:
    """A tensor of a graph: its description, and its value in the example."""

    spec: TensorSpec
    value: Tensor

    @property
    def name(self) -> str:
        """The name in the graph."""
        return self.spec.name

    @property
    def dynamic(self) -> dict[int, Any]:
        """The dimensions that vary."""
        names = {dim: torch.export.Dim("length") for dim in self.spec.along}
        return names if self.spec.shared else {0: torch.export.Dim("batch"), **names}


@dataclass(frozen=True, eq=False)
class FlatTree:
    """A tree of tensors whose tensors are taken out and put back in order; everything else is a constant.

    Args:
        tree: The tree of the example.
    """

    tree: Tree

    def values(self) -> list[Tensor]:
        """The tensors of the example."""
        return flatten(self.tree)

    def filled(self, values: Sequence[Tensor]) -> Tree:
        """The tree with other tensors."""
        rest = iter(values)
        return _map(lambda _: next(rest), self.tree)


def flatten(tree: Tree) -> list[Tensor]:
    """The tensors of a tree, those that are `Shared` included."""
    if isinstance(tree, Mapping):
        return [tensor for value in tree.values() for tensor in flatten(value)]
    if isinstance(tree, Shared):
        return [tensor for _, tensor in tensors(tree.value)]
    return [tensor for _, tensor in tensors(tree)]


def _map(fn: Callable[[Tensor], Tensor], tree: Tree) -> Tree:
    if isinstance(tree, Mapping):
        return {key: _map(fn, value) for key, value in tree.items()}
    if isinstance(tree, Shared):
        return Shared(map_tensors(fn, tree.value))
    return map_tensors(fn, tree)


class Part(nn.Module):
    """A function of a list of tensors, with the model whose weights it uses.

    Args:
        model: The model.
        run: The function; gives a list of tensors.
    """

    def __init__(self, model: nn.Module, run: Callable[[list[Tensor]], list[Tensor]]) -> None:
        super().__init__()
        self.model, self.run = model, run

    def forward(self, given: list[Tensor]) -> list[Tensor]:
        """Compute what the part makes of its tensors."""
        return self.run(given)


def stem_part(model: EarlyExitModel, stem: Callable[..., Tree], inputs: FlatTree, context: FlatTree) -> Part:
    """Inputs and context of a call → hidden state and context of the steps."""
    count = len(inputs.values())

    def run(given: list[Tensor]) -> list[Tensor]:
        hidden, after = ask_stem(stem, inputs.filled(given[:count]), context.filled(given[count:]))
        return [*flatten(hidden), *flatten(after)]

    return Part(model, run)


def step_part(model: EarlyExitModel, step: int, hidden: FlatTree, context: FlatTree) -> Part:
    """Hidden state, context, and the step of each row → hidden state."""
    count = len(hidden.values())

    def run(given: list[Tensor]) -> list[Tensor]:
        called = unwrap(context.filled(given[count:-1]))
        return flatten(model.steps(step, hidden.filled(given[:count]), given[-1], **called))

    return Part(model, run)


def readout_part(model: EarlyExitModel, readout: ReadoutCall, hidden: FlatTree, context: FlatTree) -> Part:
    """The graph from a hidden state and its context to the features."""
    count = len(hidden.values())

    def run(given: list[Tensor]) -> list[Tensor]:
        return [read_out(model, readout, hidden.filled(given[:count]), unwrap(context.filled(given[count:])))]

    return Part(model, run)


def read_out(model: EarlyExitModel, readout: ReadoutCall, hidden: Tree, context: Mapping[str, Any]) -> Tensor:
    """The features, read as `ponder.engine.sources.ModelSource` does."""
    features: Tensor = readout(hidden, told(readout, readout.reads(context), context, model.padding))
    return features


def head_part(model: EarlyExitModel, step: int) -> Part:
    """The graph from the features of a step to its outputs."""

    def run(given: list[Tensor]) -> list[Tensor]:
        head = model.head
        return [head(given[0], step) if isinstance(head, PerStep) else head(given[0])]

    return Part(model, run)


def lambda_part(model: EarlyExitModel) -> Part:
    """Features of the last steps, concatenated → hazard logit."""
    head: Any = model.lambda_head
    return Part(model, lambda given: [head(given[0])])


class _Reads(TorchDispatchMode):
    """Notes which memory the operations of a block read."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = tree_leaves((args, kwargs))
        self.found |= {_address(value) for value in given if isinstance(value, Tensor)}
        return func(*args, **(kwargs or {}))


def _address(tensor: Tensor) -> int:
    """Where the memory of a tensor begins; 0 for one that has none of its own."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):
        return 0


def _narrowed(part: Part, values: list[Tensor]) -> Part:
    """The part with those modules alone whose tensors it reads: the exporter copies all others again and again."""
    with _Reads() as reads:
        part([value.clone() for value in values])
    kept, inner = list[nn.Module](), set[nn.Module]()
    for module in part.model.modules():
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if module not in inner and any(_address(tensor) in reads.found | {0} for tensor in own):
            kept.append(module)
            inner.update(module.modules())
    return Part(nn.ModuleList(kept), part.run)


@torch.no_grad()
def write_graph(part: Part, given: Sequence[Slot], outputs: Sequence[str], path: Path) -> None:
    """Trace a part and write it as a graph that takes any batch and any length.

    Inputs that the part does not read are left out of the graph.

    Raises:
        PonderError: PyTorch cannot trace it.
    """
    onnx = libraries()
    values = [slot.value.clone() for slot in given]  # one tensor in two places would be traced as one input
    try:
        with warnings.catch_warnings(), _quiet("onnx_ir", "onnxscript", "torch.onnx"):
            warnings.simplefilter("ignore")  # of the exporter's own insides
            program: Any = torch.onnx.export(
                _narrowed(part, values),
                (values,),
                input_names=[slot.name for slot in given],
                output_names=list(outputs),
                dynamic_shapes=([slot.dynamic for slot in given],),
                dynamo=True,
                verbose=False,
            )
    except Exception as error:
        why = str(error).strip().splitlines()
        raise PonderError(
            f"{path.stem}: PyTorch cannot export this part of the model ({why[0] if why else type(error).__name__}). "
            "Steps, stem, readout and heads must be traceable by torch.export, with any batch size and length."
        ) from error
    made = program.model_proto
    read = {name for node in made.graph.node for name in node.input} | {made.name for made in made.graph.output}
    for unread in [value for value in made.graph.input if value.name not in read]:
        made.graph.input.remove(unread)
    onnx.save(made, str(path))


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Let loggers tell of errors alone while a block runs."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def libraries() -> Any:
    """The package `onnx`, with all else that an export needs.

    Raises:
        PonderError: One of them is not installed.
    """
    try:
        import onnx
        import onnxruntime  # noqa: F401 (every graph is run once)
        import onnxscript  # noqa: F401 (torch.onnx.export needs it)
    except ImportError as error:
        raise PonderError(
            "exporting needs onnx, onnxruntime and onnxscript: pip install 'ponder-torch[onnx]'."
        ) from error
    return onnx
