"""The description of an export, `export.json`: all that the runtime reads but the graphs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from ponder._utils.files import ABOUT, reading
from ponder._utils.plain import from_plain
from ponder._utils.seals import read_sealed, write_sealed
from ponder.policies.base import ExitPolicy, all_within
from ponder.policies.combine import is_about

__all__ = [
    "FILE",
    "FILES_OF_AN_EXPORT",
    "TOKENIZER",
    "Manifest",
    "PolicyGraphs",
    "TensorSpec",
    "changed_in",
    "files_of",
]

FILE = "export.json"
TOKENIZER = "tokenizer.json"
FILES_OF_AN_EXPORT = (FILE, TOKENIZER, "*.onnx", *ABOUT)
"""Patterns of the files that are replaced when an export is written over an older one."""
_FORMAT = "ponder-onnx-3"


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a graph.

    Args:
        name: Its name.
        dtype: The name of its type in NumPy.
        along: The dimensions that are as long as the sequences.
        fill: The value at padding.
        default: The value if the caller leaves it out; None if it is required.
        shared: Whether it belongs to the whole batch and has no rows.
    """

    name: str
    dtype: str
    along: Sequence[int] = ()
    fill: float = 0.0
    default: float | None = None
    shared: bool = False


@dataclass(frozen=True)
class PolicyGraphs:
    """The inputs of the graphs of a policy.

    `policy_init` makes the state from what is read at the first step, if there is a state, and
    `policy_decide` decides after each step.

    Args:
        needs: The readings of the policy.
        thresholds: Its thresholds, by the names of their inputs.
        together: The step at which all rows exit, if it depends on no row; there are no graphs
            then.
    """

    needs: Sequence[str] = ()
    thresholds: dict[str, float] = dataclasses.field(default_factory=dict)
    together: int | None = None

    @property
    def reads(self) -> set[str]:
        """Names of what the first graph may read."""
        read = {"mask", "group", "row_ids", *self.needs, *self.thresholds}
        if "hazard" in self.needs:
            read |= {"cdf", "survival"}
        return read


@dataclass(frozen=True)
class Manifest:
    """The contents of `export.json`.

    The graphs are in the same folder: `stem`, unless it is the identity, `step_1` …, `readout`,
    `head`, or `head_1` … for each step, `lambda`, and `halting` if the Lambda head has another
    readout.

    Args:
        num_steps: N.
        schedule: The graph of each step, from 0.
        task: The name of the task.
        inputs: The inputs of the model.
        hidden: The tensors of the hidden state.
        context: The tensors of the steps' context.
        outputs: The shape of one row's outputs; if they have positions, of one position's.
        policy: The policy in plain JSON.
        graphs: The policy's graphs; None if it runs in NumPy.
        history: The number of steps whose features the Lambda head reads.
        initial: Its features before the first step: ``"stem"`` or ``"zeros"``.
        mask: The input that shows the lengths; None if rows have no length.
        real: Its value at real positions.
        narrows: Whether batches get narrower as long rows exit.
        max_length: The number of tokens to which texts are cut; None without a tokenizer.
        truncation_side: The side at which they are cut.
        int8: Whether the steps are quantised.
        labels: Names of the classes.
        weights: The digest of the weights that answer; None if they are quantised.
    """

    num_steps: int
    schedule: Sequence[int]
    task: str
    inputs: Sequence[TensorSpec]
    hidden: Sequence[TensorSpec]
    context: Sequence[TensorSpec]
    outputs: Sequence[int]
    policy: dict[str, Any]
    graphs: PolicyGraphs | None
    history: int = 1
    initial: Literal["stem", "zeros"] = "stem"
    mask: str | None = None
    real: Literal[0, 1] = 1
    narrows: bool = False
    max_length: int | None = None
    truncation_side: Literal["left", "right"] = "right"
    int8: bool = False
    labels: Sequence[str] = ()
    weights: str | None = None

    def __post_init__(self) -> None:
        """Refuse numbers that do not fit together.

        Raises:
            ValueError: They do not.
        """
        names = [spec.name for spec in self.inputs]
        together = None if self.graphs is None else self.graphs.together
        fits = {
            "schedule": len(self.schedule) == self.num_steps > 0 <= min(self.schedule),
            "inputs": bool(names),
            "history": self.history > 0,
            "mask": self.mask is None or self.mask in names,
            "max_length": self.max_length is None or self.max_length > 0,
            "graphs": together is None or 1 <= together <= self.num_steps,
            "outputs": all(size > 0 for size in self.outputs),
        }
        if wrong := [name for name, right in fits.items() if not right]:
            raise ValueError(f"{wrong[0]}: {getattr(self, wrong[0])!r} does not fit the rest")

    def fit(self, ranks: Mapping[str, Mapping[str, int]], of_stem: Sequence[str] = ()) -> None:
        """Refuse graphs that this does not describe.

        Args:
            ranks: The number of dimensions of each input, by its name, of each graph.
            of_stem: Names of the outputs of the stem; they leave out inputs that it passes on.

        Raises:
            ValueError: A graph is missing, or one reads what nothing gives.
        """
        given_at_start = {*of_stem, *(spec.name for spec in self.inputs)}
        for spec in (*self.hidden, *self.context):
            if given_at_start.isdisjoint([spec.name, spec.name.removeprefix("context.")]):
                raise ValueError(f"{spec.name} is neither an input nor an output of the stem")
        computed = {"index", "features"}
        if self.graphs is not None and self.graphs.together is None:
            computed |= self.graphs.reads
        for graph, given in self._specs_of_graphs(ranks).items():
            if graph not in ranks:
                raise ValueError(f"there is no {graph}.onnx")
            read = {
                name: rank
                for name, rank in ranks[graph].items()
                if name not in computed and not name.startswith("state_")
            }
            _check_inputs(graph, read, given)

    def _specs_of_graphs(
        self, ranks: Mapping[str, Mapping[str, int]]
    ) -> dict[str, Sequence[TensorSpec]]:
        """Return the graphs that must be there, each with the tensors that it is given."""
        running = [*self.hidden, *self.context]
        specs: dict[str, Sequence[TensorSpec]] = dict.fromkeys(self.steps, running)
        specs["readout"] = running
        if "stem" in ranks:
            specs["stem"] = self.inputs
        heads = ["head"] if "head" in ranks else self._heads
        specs.update(dict.fromkeys(heads, ()))
        if self.graphs is not None and self.graphs.together is None:
            specs["policy_decide"] = ()
        return specs

    @property
    def _heads(self) -> list[str]:
        return [f"head_{step + 1}" for step in range(self.num_steps)]

    @property
    def steps(self) -> list[str]:
        """Names of the graphs of the steps."""
        return [f"step_{place + 1}" for place in range(max(self.schedule) + 1)]

    def write(self, folder: Path) -> None:
        """Write `export.json` with digests of the files that the folder holds now."""
        names = [name for name in files_of(folder) if name != FILE]
        write_sealed(folder / FILE, _FORMAT, dataclasses.asdict(self), parts=names)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read `export.json`; a promise is dropped if weights or files have changed.

        Raises:
            CheckpointError: The folder is not an export, or is one of another version.
        """
        saved = read_sealed(folder / FILE, _FORMAT, "export")
        with reading(folder / FILE, "export"):
            return from_plain(cls, saved.settings).with_promise_checked(saved.changed)

    def with_promise_checked(self, changed: Callable[[], Sequence[str]] = tuple) -> Self:
        """Return the description, without its promise if that was made about something else.

        As `ponder.policies.combine.promise_about`, but the policy inside need not be known here.

        Args:
            changed: Returns the files that are not those that were saved.
        """
        policy = self.policy
        if policy["name"] != "certified":
            return self
        if is_about(policy["certificate"]["weights"], self.weights, changed()):
            return self
        return dataclasses.replace(self, policy=policy["policy"])

    def with_policy(self, policy: ExitPolicy) -> Self:
        """Return the description with another policy.

        Its graphs stay if only thresholds differ, which are inputs of them.
        """
        data = policy.to_dict()
        # The thresholds of its parts, and the fields that hold them, by the names of the policies.
        values: list[float] = []
        fields: dict[str, str] = {}
        for part in all_within(policy):
            if part.tunable is not None:
                values.append(float(getattr(part, part.tunable.field)))
                fields[part.to_dict()["name"]] = part.tunable.field
        graphs = self.graphs
        if graphs is None or _without(fields, data) != _without(fields, self.policy):
            return dataclasses.replace(self, policy=data, graphs=None)
        thresholds: dict[str, float] = {}
        if graphs.thresholds:
            thresholds = dict(zip(graphs.thresholds, values, strict=True))
        together = policy.exit_of_all(self.num_steps)
        graphs = dataclasses.replace(graphs, thresholds=thresholds, together=together)
        return dataclasses.replace(self, policy=data, graphs=graphs)


def _check_inputs(graph: str, read: Mapping[str, int], given: Sequence[TensorSpec]) -> None:
    """Refuse a graph that reads something else than it is given, or with fewer dimensions.

    Args:
        graph: The name of the graph.
        read: The number of dimensions of each input that it reads.
        given: The tensors that it is given; it may leave out some.
    """
    unknown = read.keys() - {spec.name for spec in given}
    if unknown:
        raise ValueError(f"{graph}.onnx reads {min(unknown)}, which nothing gives")
    for spec in given:
        rank = read.get(spec.name)
        if any(dim < 1 or (rank is not None and dim >= rank) for dim in spec.along):
            raise ValueError(f"{spec.name} has no dimensions {spec.along}")


def _without(fields: Mapping[str, str], data: Any) -> Any:
    """Return `to_dict` of a policy without the numbers that are inputs of its graphs.

    Args:
        fields: By the name of a policy, the field that is such a number.
        data: The policy, or a part of it.
    """
    if isinstance(data, Mapping):
        threshold = fields.get(data.get("name", ""))
        return {name: _without(fields, value) for name, value in data.items() if name != threshold}
    if isinstance(data, list | tuple):
        return [_without(fields, value) for value in data]
    return data


def changed_in(folder: Path) -> list[str]:
    """Return the parts of an export that have changed since it was written."""
    return read_sealed(folder / FILE, _FORMAT, "export").changed()


def files_of(folder: Path) -> list[str]:
    """Return the names of the files of an export; the description is the last."""
    names = sorted(path.name for path in folder.glob("*.onnx"))
    if (folder / TOKENIZER).exists():
        names.append(TOKENIZER)
    return [*names, FILE]
