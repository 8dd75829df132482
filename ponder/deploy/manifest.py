"""The description of an export, `export.json`: what the runtime reads, and no more."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ponder._utils.files import replace_text
from ponder.errors import CheckpointError

__all__ = ["FILE", "Manifest", "PolicyGraphs", "TensorSpec"]

FILE = "export.json"
_FORMAT = "ponder-onnx-2"


@dataclass(frozen=True)
class TensorSpec:
    """A tensor that goes into or comes out of a graph.

    Args:
        name: Its name in the graphs.
        dtype: Name of its type in NumPy.
        along: Dimensions that are as long as the sequences.
        fill: The value at padding.
        default: The value where the caller leaves it out; None where it is required.
        shared: Whether it belongs to the whole batch and has no rows.
    """

    name: str
    dtype: str
    along: tuple[int, ...] = ()
    fill: float = 0.0
    default: float | None = None
    shared: bool = False


@dataclass(frozen=True)
class PolicyGraphs:
    """The graphs of a policy.

    Args:
        needs: The readings that it takes.
        thresholds: The numbers that may be changed, by the name of their input.
        together: The step at which all rows exit, where that needs no look at any; there are no graphs then.
        init: Row ids to the state before the first step; None where there is no state.
        first: The decision after the first step.
        later: The decision after later steps, whose state has other tensors; None where it is the same graph.
    """

    needs: tuple[str, ...] = ()
    thresholds: dict[str, float] = dataclasses.field(default_factory=dict)
    together: int | None = None
    init: str | None = None
    first: str | None = None
    later: str | None = None


@dataclass(frozen=True)
class Manifest:
    """The contents of `export.json`; graphs are file names in the folder.

    Args:
        num_steps: N.
        schedule: Which of `steps` runs at each step.
        task: Name of the task.
        inputs: Tensors that a caller gives.
        hidden: Tensors of the hidden state.
        context: Tensors that the steps read besides.
        outputs: The shape of one row's outputs, of one position's where outputs have positions.
        policy: The exit policy, as `to_dict` gives it, and …
        graphs: … its graphs; None where it is run in NumPy.
        steps: A graph for each step function.
        readout: Hidden state to features.
        heads: Features to outputs: one graph, or one a step.
        stem: Inputs to hidden state and context; None for the identity.
        halting_readout: Hidden state to the features of the Lambda head; None for those of the heads.
        lambda_head: Features of the last steps to a hazard logit; None without a Lambda head.
        history: Number of steps that the Lambda head reads.
        initial: Features before the first: ``"stem"`` or ``"zeros"``.
        mask: Name of the input that holds the lengths; None where rows have none.
        real: Its value at real positions.
        narrows: Whether batches get narrower as long rows exit.
        tokenizer: File of the tokenizer; None where there is none.
        max_length: Number of tokens to which texts are cut.
        truncation_side: Where they are cut.
        int8: Whether the steps are quantised.
        labels: Names of the classes.
        columns: Names of the columns of texts to which the exits were fitted.
        weights: Digest of the weights that answer.
    """

    num_steps: int
    schedule: tuple[int, ...]
    task: str
    inputs: tuple[TensorSpec, ...]
    hidden: tuple[TensorSpec, ...]
    context: tuple[TensorSpec, ...]
    outputs: tuple[int, ...]
    policy: dict[str, Any]
    graphs: PolicyGraphs | None
    steps: tuple[str, ...]
    readout: str
    heads: tuple[str, ...]
    stem: str | None = None
    halting_readout: str | None = None
    lambda_head: str | None = None
    history: int = 1
    initial: str = "stem"
    mask: str | None = None
    real: int = 1
    narrows: bool = False
    tokenizer: str | None = None
    max_length: int | None = None
    truncation_side: str = "right"
    int8: bool = False
    labels: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    weights: str | None = None

    def write(self, folder: Path) -> None:
        """Write `export.json`, whole or not at all."""
        replace_text(folder / FILE, json.dumps({"format": _FORMAT, **dataclasses.asdict(self)}, indent=1))

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read `export.json`.

        Raises:
            CheckpointError: The folder is no export, or one of another version.
        """
        path = folder / FILE
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data.pop("format") != _FORMAT:
                raise KeyError("format")
            for name in ("inputs", "hidden", "context"):
                data[name] = tuple(TensorSpec(**{**spec, "along": tuple(spec["along"])}) for spec in data[name])
            graphs = data["graphs"]
            data["graphs"] = None if graphs is None else PolicyGraphs(**{**graphs, "needs": tuple(graphs["needs"])})
            lists: Mapping[str, Any] = {name: tuple(value) for name, value in data.items() if isinstance(value, list)}
            return cls(**{**data, **lists})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path}: no export of this version, `ponder.export.onnx` ({error!r}).") from error

    def files(self) -> list[str]:
        """Return every file that the manifest names."""
        policy = self.graphs or PolicyGraphs()
        graphs = (policy.init, policy.first, policy.later)
        single = (self.stem, self.readout, self.halting_readout, self.lambda_head, self.tokenizer, *graphs)
        return [*self.steps, *self.heads, *(name for name in single if name is not None)]
