"""What is exported: a model, an example of a call by name, and the tokenizer that makes such calls from texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ponder._utils.trees import Tree, check_rows, first_tensor, take_rows, tensors
from ponder.engine.model import EarlyExitModel
from ponder.errors import ArgumentError, ArgumentTypeError
from ponder.inference.examples import is_pair

__all__ = ["ExportSource", "SupportsExport", "check_any_length", "named", "source_of", "tokenizer_in"]


@dataclass(frozen=True, eq=False)
class ExportSource:
    """A model with all that an export needs besides.

    Args:
        model: The model.
        inputs: Inputs of an example call, batch first, two rows at least.
        context: The context of that call.
        name: What the inputs are called in the export.
        defaults: The values that tensors of the context are filled with where a caller leaves them out, by name.
        tokenizer: The tokenizer's `tokenizer.json`, or None.
        max_length: The number of tokens that the model takes, in billions where it has no limit; None where it is not
            known, and texts are cut as the tokenizer says.
        labels: Names of the classes, where they are known.
        columns: Names of the columns of texts that the exits were fitted to, where they are known.
    """

    model: EarlyExitModel
    inputs: Tree
    context: Mapping[str, Any]
    name: str = "inputs"
    defaults: Mapping[str, float] = field(default_factory=dict)
    tokenizer: Path | None = None
    max_length: int | None = None
    labels: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()


def tokenizer_in(folder: Path | None) -> Path | None:
    """The `tokenizer.json` of a folder, where there is one."""
    path = None if folder is None else folder / "tokenizer.json"
    return path if path is not None and path.is_file() else None


def check_any_length(model: EarlyExitModel, family: str) -> None:
    """Refuse a model of texts of which nobody knows where lengths lie: its graphs would take that of the example alone.

    Args:
        model: The model.
        family: The name of its family, for the message.

    Raises:
        ArgumentError: It declares no padding.
    """
    if model.padding is None:
        raise ArgumentError(
            "model",
            expected="a family whose exports answer texts of any length",
            got=f"{family!r}, in which it is not known where lengths lie, so that an export could take but one",
            remedy="Serve it with PyTorch, or export its wrapper for texts of one length: "
            "ponder.export.onnx(model.ponder, …, example=…).",
        )


@runtime_checkable
class SupportsExport(Protocol):
    """A model around an `EarlyExitModel` that can say what is to be exported."""

    def export_source(self) -> ExportSource:
        """The model, with all that an export needs besides."""


def source_of(model: Any, example: Any) -> ExportSource:
    """What a user wants exported.

    Args:
        model: An `EarlyExitModel`, or a model that holds one.
        example: Inputs of a call, or a pair (inputs, context), batch first; None where the model brings its own.
    """
    if isinstance(model, SupportsExport) and example is None:
        return model.export_source()
    if not isinstance(model, EarlyExitModel):
        raise ArgumentTypeError(
            "model",
            expected="a ponder.PonderWrapper, or a model of ponder.integrations.transformers (without example)",
            got=type(model).__name__,
            remedy="Wrap it first.",
        )
    if example is None:
        raise ArgumentError(
            "example",
            expected="inputs of a call, or a pair (inputs, context), from which shapes and types are read",
            got="None",
            remedy="Pass example=(x[:2], {'attention_mask': mask[:2]}), say: two rows that the model can run.",
        )
    inputs, context = example if is_pair(example) else (example, {})
    size = check_rows("example", inputs)
    check_rows("example", context, size)
    if size == 1:  # a tensor with one row would be taken for one that always has one
        index = first_tensor(inputs).new_zeros(2).long()
        inputs, context = take_rows((inputs, context), index)
    return ExportSource(model, inputs, context, defaults=_defaults(model, context))


def _defaults(model: EarlyExitModel, context: Mapping[str, Any]) -> dict[str, float]:
    """The mask of lengths may be left out: all positions are real then."""
    if model.padding is None or model.padding.mask not in context:
        return {}
    return {model.padding.mask: float(model.padding.real)}


def named(prefix: str, tree: Tree) -> list[str]:
    """Names for the tensors of a tree: the prefix, and their places in it."""
    paths = [path for path, _ in tensors(tree)]
    clean = [path.replace("['", ".").replace("']", "").replace("[", ".").replace("]", "") for path in paths]
    return [prefix + path for path in clean]
