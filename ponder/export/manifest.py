"""The description of an export folder, `export.json`: its graphs, their tensors, the policy, the texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from ponder._utils.files import digest_of, read_json, write_json
from ponder.errors import CheckpointError

__all__ = ["FILE", "NEXT", "Manifest", "TensorSpec"]

FILE = "export.json"
NEXT = ".next"
"""How the hidden state that a step gives is marked: a graph cannot give a tensor the name of one that it takes."""
_FORMAT = "ponder-onnx-1"


@dataclass(frozen=True)
class TensorSpec:
    """A tensor that goes into or comes out of a graph.

    Args:
        name: Its name in the graphs.
        dtype: Name of its type in numpy.
        shape: Its dimensions; None where they vary.
        along: Dimensions that are as long as the sequences.
        fill: What stands at padding.
        default: What it is filled with where the caller leaves it out; None where he must not.
        shared: Whether it belongs to the whole batch and has no rows.
        indexes: Whether its numbers are places in a table, such as token ids, of which PyTorch takes none below 0.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    along: tuple[int, ...] = ()
    fill: float = 0.0
    default: float | None = None
    shared: bool = False
    indexes: bool = False


@dataclass(frozen=True)
class Manifest:
    """What `export.json` says. Paths are file names in the folder.

    Args:
        num_steps: N.
        schedule: Which of `steps` runs at each step.
        task: Name of the task.
        classes: Whether outputs are the logits of classes.
        numbers: Whether answers are numbers.
        own_answers: Whether the task finds or compares answers in code of its own, which no policy of an export runs.
        per_token: Whether a row has an answer at each of its positions.
        per_position: Whether outputs have positions, `(rows, length, …)`.
        blank: What stands in outputs beyond the end of a row, where they have positions.
        policy: The exit policy, as `to_dict` gives it.
        inputs: What a caller gives.
        hidden: The hidden state.
        context: What the steps read besides.
        outputs: The shape of one row's outputs; of one position's, where outputs have positions.
        features: The shape of one row's features, with the example's number of positions where they have any; empty in
            exports of before.
        steps: A graph a step function.
        readout: Hidden state to features.
        heads: Features to outputs: one graph, or one a step.
        stem: Inputs to hidden state and context; None for the identity.
        halting_readout: Hidden state to what the Lambda head reads; None for the features.
        lambda_head: Features of the last steps to a hazard logit; None without a Lambda head.
        history: How many steps the Lambda head reads.
        initial: What it reads before the first: ``"stem"`` or ``"zeros"``.
        mask: Name of the input that tells lengths; None where rows have none.
        real: Its value at real positions.
        narrows: Whether batches get narrower as long rows leave.
        single: One graph for one row, which stops by itself; None where weights are not shared.
        tokenizer: The tokenizer of the texts; None where there is none.
        max_length: The number of tokens that texts are cut to; None where they are not cut, or by the tokenizer itself.
        truncation_side: Where they are cut, ``"right"`` or ``"left"``.
        tokenizer_inputs: Which inputs the tokenizer gives in Transformers, where others have a default; empty where
            nobody said, and it gives all.
        int8: Whether the steps are quantised.
        labels: Names of the classes, where they are known.
        columns: Names of the one or two columns of texts that the exits were fitted to; empty where nobody said.
        weights: Digest of the weights that were exported, by which certificates of the model are known; None where they
            were quantised, and in exports of before.
        sizes: Size in bytes of every file.
        digests: SHA-256 of every file; those of version 0.1 did not say, and are looked at when they are read.
    """

    num_steps: int
    schedule: tuple[int, ...]
    task: str
    classes: bool
    numbers: bool
    policy: dict[str, Any]
    inputs: tuple[TensorSpec, ...]
    hidden: tuple[TensorSpec, ...]
    context: tuple[TensorSpec, ...]
    outputs: tuple[int, ...]
    steps: tuple[str, ...]
    readout: str
    heads: tuple[str, ...]
    own_answers: bool = False
    per_token: bool = False
    per_position: bool = False
    blank: float = 0.0
    features: tuple[int, ...] = ()
    stem: str | None = None
    halting_readout: str | None = None
    lambda_head: str | None = None
    history: int = 1
    initial: str = "stem"
    mask: str | None = None
    real: int = 1
    narrows: bool = False
    single: str | None = None
    tokenizer: str | None = None
    max_length: int | None = None
    truncation_side: str = "right"
    tokenizer_inputs: tuple[str, ...] = ()
    int8: bool = False
    labels: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    weights: str | None = None
    sizes: dict[str, int] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write `export.json`, whole or not at all."""
        write_json(folder / FILE, {"format": _FORMAT, **dataclasses.asdict(self)})

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read `export.json`, and check that the files it names are there, whole.

        Raises:
            CheckpointError: The folder is no export, or a broken one.
        """
        data = read_json(folder / FILE)
        if data.pop("format", None) != _FORMAT:
            raise CheckpointError(f"{folder / FILE}: not written by ponder.export.onnx (no format {_FORMAT!r}).")
        try:
            for name in ("inputs", "hidden", "context"):
                data[name] = tuple(_tensor(spec) for spec in data[name])
            for name in ("schedule", "outputs", "features", "steps", "heads", "labels", "columns", "tokenizer_inputs"):
                data[name] = tuple(data.get(name, ()))
            made = cls(**data)
            places = range(len(made.steps))
            sound = len(made.schedule) == made.num_steps and all(place in places for place in made.schedule)
            sound = sound and len(made.heads) in (1, made.num_steps)
            if not (made.max_length is None or made.max_length >= 1) or made.truncation_side not in ("right", "left"):
                raise ValueError(f"texts cut to {made.max_length!r} on the {made.truncation_side!r}")
            if made.labels and made.classes and len(made.labels) != made.outputs[-1]:
                raise ValueError(f"{len(made.labels)} labels of {made.outputs[-1]} classes")
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{folder / FILE}: damaged or of another version ({error!r}).") from error
        if not sound:
            raise CheckpointError(f"{folder / FILE}: its steps, schedule and heads do not belong together.")
        found = {}
        for name in made.files():
            path, size = folder / name, made.sizes.get(name)
            if Path(name).name != name or not path.is_file() or path.stat().st_size != size:
                raise CheckpointError(f"{path}: missing, or not of the {size} bytes that were written. Export again.")
            found[name] = digest_of(path)
            if made.digests and made.digests.get(name) != found[name]:
                raise CheckpointError(f"{path}: other bytes than those that were written. Export again.")
        return made if made.digests else dataclasses.replace(made, digests=found)

    def files(self) -> list[str]:
        """Every file that the manifest names."""
        single = (self.stem, self.readout, self.halting_readout, self.lambda_head, self.single, self.tokenizer)
        return [*self.steps, *self.heads, *(name for name in single if name is not None)]


def _tensor(spec: Mapping[str, Any]) -> TensorSpec:
    return TensorSpec(**{**spec, "shape": tuple(spec["shape"]), "along": tuple(spec["along"])})
