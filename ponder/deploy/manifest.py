"""The description of an export, `export.json`: what the runtime reads besides the graphs, and no more."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ponder._utils.files import read_json, reading, write_json
from ponder._utils.seals import changed_parts, digest_of_file, sealed
from ponder.policies.combine import warn_of_changes

__all__ = [
    "FILE",
    "TOKENIZER",
    "Manifest",
    "PolicyGraphs",
    "TensorSpec",
    "changed_in",
    "files_of",
    "promise_of_export",
]

FILE = "export.json"
TOKENIZER = "tokenizer.json"
_FORMAT = "ponder-onnx-3"


@dataclass(frozen=True)
class TensorSpec:
    """A tensor that goes into or comes out of a graph."""

    name: str
    dtype: str  # its name in NumPy
    along: Sequence[int] = ()  # dimensions that are as long as the sequences
    fill: float = 0.0  # the value at padding
    default: float | None = (
        None  # the value where the caller leaves it out; None where it is required
    )
    shared: bool = False  # whether it belongs to the whole batch and has no rows


@dataclass(frozen=True)
class PolicyGraphs:
    """What the graphs of a policy take.

    `policy_init` makes the state of row ids, where there is one; `policy_first` decides after the
    first step, and after later ones too, unless the state has other tensors then: there is
    `policy_later`.
    """

    needs: Sequence[str] = ()  # readings
    thresholds: dict[str, float] = dataclasses.field(
        default_factory=dict
    )  # by the name of their input
    together: int | None = (
        None  # the step at which all rows exit, where no row is looked at; there are no graphs then
    )


@dataclass(frozen=True)
class Manifest:
    """The contents of `export.json`.

    The graphs lie beside it: `stem`, unless it is the identity, `step_1` …, `readout`, `head`, or
    `head_1` … of each step, `lambda` and perhaps `halting`, the readout of the Lambda head.
    """

    num_steps: int
    schedule: Sequence[int]  # which of the steps' graphs runs at each step, from 0
    task: str
    inputs: Sequence[TensorSpec]
    hidden: Sequence[TensorSpec]
    context: Sequence[TensorSpec]  # what the steps read besides
    outputs: Sequence[
        int
    ]  # the shape of one row's outputs, of one position's where they have positions
    policy: dict[str, Any]  # as `to_dict` gives it
    graphs: PolicyGraphs | None  # None where the policy is run in NumPy
    history: int = 1  # number of steps that the Lambda head reads
    initial: str = "stem"  # what it reads before the first: "stem" or "zeros"
    mask: str | None = None  # the input that holds the lengths; None where rows have none
    real: int = 1  # its value at real positions
    narrows: bool = False  # whether batches get narrower as long rows exit
    max_length: int | None = (
        None  # number of tokens to which texts are cut; None without a tokenizer
    )
    truncation_side: str = "right"
    int8: bool = False  # whether the steps are quantised
    labels: Sequence[str] = ()  # names of the classes
    weights: str | None = None  # digest of the weights that answer
    digests: Mapping[str, str] = dataclasses.field(default_factory=dict)  # of the other files

    @property
    def steps(self) -> list[str]:
        """Names of the graphs of the steps."""
        return [f"step_{place + 1}" for place in range(max(self.schedule) + 1)]

    def write(self, folder: Path) -> None:
        """Write `export.json`, whole or not at all."""
        data = dataclasses.asdict(self)
        files = data.pop("digests")
        files.pop("settings", None)
        write_json(folder / FILE, _FORMAT, sealed(data, files))

    def with_files(self, folder: Path) -> Self:
        """Return the description of the graphs, and the tokenizer, that a folder holds now."""
        names = [name for name in files_of(folder) if name != FILE]
        digests = {name: digest_of_file(folder / name) for name in names}
        return dataclasses.replace(self, digests=digests)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read `export.json`.

        Raises:
            CheckpointError: The folder is no export, or one of another version.
        """
        data = read_json(folder / FILE, _FORMAT, "export")
        with reading(folder / FILE, "export"):
            return cls._parsed(data, folder)

    @classmethod
    def _parsed(cls, data: dict[str, Any], folder: Path) -> Self:
        if data["policy"]["name"] == "certified":
            changed = changed_parts(data, lambda name: folder / name)
            data["policy"] = promise_of_export(data["policy"], data["weights"], changed)
        for name in ("inputs", "hidden", "context"):
            data[name] = [TensorSpec(**spec) for spec in data[name]]
        data["graphs"] = data["graphs"] and PolicyGraphs(**data["graphs"])
        return cls(**data)


def promise_of_export(
    policy: dict[str, Any], weights: str | None, changed: Sequence[str] = ()
) -> dict[str, Any]:
    """Return a policy as plain JSON, without its promise if that was made about something else.

    As `ponder.policies.combine.promise_about`, but the classes of policies need not be known here.
    """
    if policy["name"] != "certified":
        return policy
    parts = [*changed]
    if policy["weights"] not in (None, weights):
        parts.insert(0, "weights")
    if not parts:
        return policy
    warn_of_changes(parts)
    inside: dict[str, Any] = policy["policy"]
    return inside


def changed_in(folder: Path) -> list[str]:
    """Return which parts of an export are not those that were written."""
    return changed_parts(read_json(folder / FILE, _FORMAT, "export"), lambda name: folder / name)


def files_of(folder: Path) -> list[str]:
    """Return the names of the files of an export, the description being the last."""
    tokenizer = [TOKENIZER] if (folder / TOKENIZER).exists() else []
    return [*sorted(path.name for path in folder.glob("*.onnx")), *tokenizer, FILE]
