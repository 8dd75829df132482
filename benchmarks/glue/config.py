"""One run of the benchmark, as a value: everything that decides its result."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.checksum import digest
from benchmarks.command_line import parse_policy
from ponder.errors import ArgumentError, ArgumentTypeError, DataError
from ponder.policies import ExitPolicy

__all__ = ["REMADE", "RunConfig", "recipe_label"]


def _field(default: Any, help: str, expected: str = "", holds: Callable[[Any], bool] = lambda value: True) -> Any:
    """A field with its help, and what its values have to be; numbers are checked to be of the kind of the field."""
    return dataclasses.field(default=default, metadata={"help": help, "expected": expected, "holds": holds})


def _whole(default: int | None, low: int, help: str) -> Any:
    return _field(default, help, f"a whole number ≥ {low}", lambda value: value >= low)


def _rate(default: float | None, help: str) -> Any:
    return _field(default, help, "a number in (0, 1)", lambda rate: 0 < rate < 1)


def _choice(*choices: str, help: str) -> Any:
    return _field(choices[0], help, " or ".join(choices), lambda value: value in choices)


_KINDS = {"int": (int,), "float": (int, float), "bool": (bool,)}


@dataclass(frozen=True)
class RunConfig:
    """Every hyper-parameter of a run: each field says what it is, here and on the command line, and what it may be.

    The names of the fields are part of the file names of results, and so stay as they are.
    """

    task: str
    recipe: str = _field("ponder", "A recipe, for example palbert.")
    backbone: str = _field("minilm", "minilm, mpnet, a folder, or a hub name.")
    recipe_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    policy: Mapping[str, Any] | None = _field(None, "For example quantile:q=0.3, instead of the recipe's.")
    readout: Literal["pooler", "mean"] = _choice("mean", "pooler", help="What the heads read: mean or pooler.")
    seed: int = _field(
        0,
        "Of initialisation, order, dropout and the held-out split.",
        "a whole number in 0 … 2³² − 1",
        lambda seed: 0 <= seed < 2**32,
    )
    epochs: int = _whole(3, 1, "Epochs of each stage, at most.")
    lr: float = _rate(5e-5, "Learning rate.")
    lambda_lr: float = _rate(5e-5, "Of the Lambda head, where the recipe gives it one of its own.")
    batch_size: int = _whole(32, 1, "Examples a step of the optimiser.")
    warmup: float = _field(
        0.1, "Share of the steps over which rates rise.", "a number in [0, 1)", lambda share: 0 <= share < 1
    )
    stop_after: int = _whole(5, 1, "Epochs without gain on the held-out part that end a stage.")
    held_out: float = _rate(0.1, "Share of train that selects the epoch.")
    max_train: int | None = _whole(None, 4, "Use at most so many training examples, drawn by seed.")
    max_length: int = _whole(128, 1, "Tokens; longer inputs are cut.")
    bf16: bool = _field(False, "Train under bfloat16 autocast.", "true or false")
    schedule: Literal["linear", "constant"] = _choice(
        "linear", "constant", help="Rates fall linearly to zero, or (as in PALBERT's paper) stay constant."
    )
    selection: Literal["held_out", "dev"] = _choice(
        "held_out", "dev", help="Choose epoch and hyper-parameters on held_out, or (as PALBERT's paper) on dev."
    )
    head_lr: float | None = _rate(None, "Of the heads that answer; --lr where not given.")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, expected = getattr(self, field.name), field.metadata.get("expected")
            kind, _, optional = str(field.type).partition(" | ")
            is_right = type(value) in _KINDS.get(kind, (type(value),)) or (optional and value is None)
            if expected and not (is_right and (value is None or field.metadata["holds"](value))):
                remedy = f"Pass {field.default}, say." if field.default is not None else "Leave it out, say."
                raise ArgumentError(field.name, expected=expected, got=repr(value), remedy=remedy)
            if kind == "float" and value is not None:
                object.__setattr__(self, field.name, float(value))  # 2 and 2.0 are one configuration
        given: Any = self.policy
        if isinstance(given, str):  # as on a command line
            given = parse_policy(given).to_dict()
            object.__setattr__(self, "policy", given)
        if not isinstance(given, Mapping | None):
            raise ArgumentTypeError(
                "policy",
                expected="an exit policy, as text or as an object with its name and fields",
                got=repr(given),
                remedy='Write "quantile:q=0.3" or {"name": "quantile", "q": 0.3}, say.',
            )
        if given is not None:
            ExitPolicy.from_dict(dict(given))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RunConfig:
        """Inverse of `to_dict`; fields that an older version did not have are at their defaults.

        Older versions could choose the policy's threshold; runs that did not are still read.
        """
        rest = {name: value for name, value in data.items() if name not in _GONE or value != _GONE[name]}
        try:
            return cls(**rest)
        except (TypeError, ArgumentError) as error:
            raise DataError(f"config: no configuration of this version ({error}).") from error

    @property
    def key(self) -> str:
        """A name for the run: readable, and different for every configuration.

        A field that was added later counts only where it is not at its default, so that the runs of before keep their
        names.
        """
        return self._named({"recipe_version": 2} if self.recipe in REMADE else {})

    @property
    def key_before(self) -> str:
        """The name that the run had before its recipe became another one under the same name (see `REMADE`)."""
        return self._named({})

    def _named(self, more: dict[str, Any]) -> str:
        fields = self.to_dict()
        hashed = more | {
            name: value for name, value in fields.items() if name not in _LATER or value != getattr(RunConfig, name)
        }
        backbone = self.backbone.rstrip("/").rsplit("/", 1)[-1]
        return f"{self.task}-{backbone}-{self.recipe}-s{self.seed}-{digest(hashed)}".lower()


REMADE = {"ponder": "palbert-joint"}
"""Recipes that became others under the same name, and what the one of before is called now."""

_LATER = ("schedule", "selection", "head_lr")
_GONE = {"knob": "recipe", "knob_keeps": 0.99, "budget": 1.5}


def recipe_label(recipe: str, options: Mapping[str, Any]) -> str:
    """A recipe with its arguments, as tables show it.

    Example:
        >>> recipe_label("static", {"k": 3})
        'static (k=3)'
    """
    listed = ", ".join(f"{name}={value}" for name, value in sorted(options.items()))
    return f"{recipe} ({listed})" if listed else recipe
