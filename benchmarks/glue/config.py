"""One run of the benchmark, as a value: everything that decides its result."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.files import digest
from ponder.errors import ArgumentError

__all__ = ["DEFAULT", "RunConfig", "key_of", "recipe_label"]

DEFAULT = "ponder"
"""The recipe that is the library's default, and stands first in the headline."""

_LATER = {"schedule": "linear", "selection": "held_out", "head_lr": None}
"""Fields that were added later: they are no part of a name while they have these values."""
_GONE = ("knob", "knob_keeps", "budget")
REMADE = {"ponder": "palbert-joint"}
"""A recipe that became another one under its name, and what its earlier results are called."""


def _field(default: Any, help: str, expected: str = "", holds: Callable[[Any], bool] = lambda value: True) -> Any:
    return dataclasses.field(default=default, metadata={"help": help, "expected": expected, "holds": holds})


def _whole(default: int | None, low: int, help: str) -> Any:
    return _field(default, help, f"a whole number ≥ {low}", lambda value: value >= low)


def _rate(default: float | None, help: str) -> Any:
    return _field(default, help, "a number in (0, 1)", lambda rate: 0 < rate < 1)


def _choice(*choices: str, help: str) -> Any:
    return _field(choices[0], help, " or ".join(choices), lambda value: value in choices)


@dataclass(frozen=True)
class RunConfig:
    """Every hyper-parameter of a run; names and defaults are part of the file names of results, and so stay."""

    task: str
    recipe: str = _field(DEFAULT, "A recipe, for example palbert.")
    backbone: str = _field("minilm", "minilm, mpnet, a folder, or a hub name.")
    recipe_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    policy: Mapping[str, Any] | None = None
    readout: str = _choice("mean", "pooler", help="Features of the heads: mean or pooler.")
    seed: int = _whole(0, 0, "Seed of initialisation, order, dropout and the held-out split.")
    epochs: int = _whole(3, 1, "Epochs of each stage, at most.")
    lr: float = _rate(5e-5, "Learning rate.")
    lambda_lr: float = _rate(5e-5, "Of the Lambda head, where the recipe gives it one of its own.")
    batch_size: int = _whole(32, 1, "Examples a step of the optimiser.")
    warmup: float = _field(0.1, "Share of the steps over which rates rise.", "in [0, 1)", lambda share: 0 <= share < 1)
    stop_after: int = _whole(5, 1, "Epochs without gain on the held-out part that end a stage.")
    held_out: float = _rate(0.1, "Share of train that selects the epoch.")
    max_train: int | None = _whole(None, 4, "Use at most so many training examples, drawn by seed.")
    max_length: int = _whole(128, 4, "Tokens; longer inputs are cut.")
    bf16: bool = _field(False, "Train under bfloat16 autocast.")
    schedule: str = _choice("linear", "constant", help="Rates fall to zero, or (PALBERT's paper) stay constant.")
    selection: str = _choice("held_out", "dev", help="Choose the epoch on held_out, or (PALBERT's paper) on dev.")
    head_lr: float | None = _rate(None, "Of the heads; --lr where not given.")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, expected = getattr(self, field.name), field.metadata.get("expected")
            if expected and value is not None and not field.metadata["holds"](value):
                remedy = f"Pass {field.default}, say."
                raise ArgumentError(field.name, expected=expected, got=repr(value), remedy=remedy)
            if str(field.type).startswith("float") and value is not None:
                object.__setattr__(self, field.name, float(value))  # 2 and 2.0 are one configuration

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return dataclasses.asdict(self)

    @property
    def key(self) -> str:
        """A name for the run: readable, and different for every configuration."""
        return key_of(self.to_dict())


def key_of(config: Mapping[str, Any], *, remade: bool = True) -> str:
    """Return the name of a run from the plain fields of its configuration, whatever version wrote them.

    Args:
        config: The fields.
        remade: Whether a recipe of `REMADE` is the one that has the name now, or the one of before.
    """
    hashed = {"recipe_version": 2} if remade and config["recipe"] in REMADE else {}
    for name, value in config.items():
        if name not in _GONE and not (name in _LATER and value == _LATER[name]):
            hashed[name] = value
    backbone = str(config["backbone"]).rstrip("/").rsplit("/", 1)[-1]
    return f"{config['task']}-{backbone}-{config['recipe']}-s{config['seed']}-{digest(hashed)}".lower()


def recipe_label(recipe: str, options: Mapping[str, Any]) -> str:
    """Return a recipe with its arguments, as tables show it.

    Example:
        >>> recipe_label("static", {"k": 3})
        'static (k=3)'
    """
    listed = ", ".join(f"{name}={value}" for name, value in sorted(options.items()))
    return f"{recipe} ({listed})" if listed else recipe
