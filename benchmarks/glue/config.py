"""One run of the benchmark, as a value: everything that decides its result."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.checksum import digest
from ponder import policies
from ponder.errors import ArgumentError, ArgumentTypeError, DataError
from ponder.policies import ExitPolicy

__all__ = ["RunConfig", "parse_fields", "parse_policy", "parse_recipe", "recipe_label"]


@dataclass(frozen=True)
class RunConfig:
    """Every hyper-parameter of a run.

    Args:
        task: Name of the task.
        recipe: Name of the recipe.
        backbone: An embedded backbone, a folder, or a hub name.
        recipe_options: Arguments of the recipe, for example `{"hidden_concat": False}`.
        policy: An exit policy instead of the recipe's: its `to_dict()`, or text that `parse_policy` reads.
        readout: What the heads read: ``"pooler"`` or ``"mean"``.
        seed: Of initialisation, order, dropout and the held-out split.
        epochs: Epochs of each stage.
        lr: Learning rate, decayed linearly to zero after a warm-up.
        lambda_lr: That of the Lambda head, where the recipe gives it one of its own.
        head_lr: That of the heads that answer; `lr` where None.
        batch_size: Examples a step of the optimiser.
        warmup: Share of the steps over which the rate rises.
        stop_after: Epochs without improvement on the held-out split before training stops.
        held_out: Share of train on which the epoch is selected.
        max_train: Use at most so many training examples (drawn by seed).
        max_length: Tokens; longer inputs are cut.
        bf16: Train under bfloat16 autocast.
        schedule: The learning rate falls linearly to zero, or (as in PALBERT's paper) stays where it is.
        selection: Where epoch and hyper-parameters are chosen: ``"held_out"``, or ``"dev"`` (as in PALBERT's paper,
            with nothing held out, and with a dev score that is too good).
        knob: Who chooses the policy's threshold: the ``"recipe"``, or after training the held-out part of train, where
            ``"held_out"`` takes the cheapest that keeps the score, and ``"budget"`` the best that is cheap enough.
            (The name, as all others here, is part of the file names of results, and so stays.)
        knob_keeps: Share of the held-out score at full depth that a threshold chosen by ``"held_out"`` has to keep.
        budget: Least speed-up in steps, on the held-out part, of a threshold chosen by ``"budget"``.
    """

    task: str
    recipe: str = "ponder"
    backbone: str = "minilm"
    recipe_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    policy: Mapping[str, Any] | None = None
    readout: Literal["pooler", "mean"] = "mean"
    seed: int = 0
    epochs: int = 3
    lr: float = 5e-5
    lambda_lr: float = 5e-5
    batch_size: int = 32
    warmup: float = 0.1
    stop_after: int = 5
    held_out: float = 0.1
    max_train: int | None = None
    max_length: int = 128
    bf16: bool = False
    schedule: Literal["linear", "constant"] = "linear"
    selection: Literal["held_out", "dev"] = "held_out"
    knob: Literal["recipe", "held_out", "budget"] = "recipe"
    knob_keeps: float = 0.99
    budget: float = 1.5
    head_lr: float | None = None

    def __post_init__(self) -> None:
        for argument, low in _WHOLE.items():
            value = getattr(self, argument)
            if not (value is None and argument == "max_train"):
                self._check(argument, type(value) is int and value >= low, f"a whole number ≥ {low}", low)
        for argument, (interval, holds) in _REAL.items():
            value = getattr(self, argument)
            if not (value is None and argument == "head_lr"):
                self._check(argument, type(value) in (int, float) and holds(value), f"a number {interval}", 1e-3)
                object.__setattr__(self, argument, float(value))  # 2 and 2.0 are one configuration
        for argument, choices in _CHOICES.items():
            self._check(argument, getattr(self, argument) in choices, " or ".join(choices), choices[0])
        self._check("bf16", type(self.bf16) is bool, "true or false", True)
        if self.selection == "dev" and self.knob != "recipe":
            raise ArgumentError(
                "knob",
                expected="recipe where selection is dev, since then nothing is held out",
                got=self.knob,
                remedy="Select on the held-out part, or leave the threshold to the recipe.",
            )
        self._check_policy()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RunConfig:
        """Inverse of `to_dict`; fields that an older version did not have are at their defaults.

        Raises:
            DataError: A field is unknown (a newer version wrote it), or a value cannot be used.
        """
        try:
            return cls(**data)
        except (TypeError, ArgumentError) as error:
            raise DataError(f"config: no configuration of this version ({error}).") from error

    @property
    def key(self) -> str:
        """A name for the run: readable, and different for every configuration.

        A field that was added later counts only where it is not at its default, so that the runs of before keep their
        names.
        """
        fields = self.to_dict()
        hashed = {
            name: value for name, value in fields.items() if name not in _LATER or value != getattr(RunConfig, name)
        }
        backbone = self.backbone.rstrip("/").rsplit("/", 1)[-1]
        return f"{self.task}-{backbone}-{self.recipe}-s{self.seed}-{digest(hashed)}".lower()

    def _check(self, argument: str, holds: bool, expected: str, example: object) -> None:
        if not holds:
            remedy = f"Pass {getattr(RunConfig, argument) or example}, say."
            raise ArgumentError(argument, expected=expected, got=repr(getattr(self, argument)), remedy=remedy)

    def _check_policy(self) -> None:
        given: Any = self.policy
        if given is None:
            return
        if isinstance(given, str):  # as on a command line
            given = parse_policy(given).to_dict()
            object.__setattr__(self, "policy", given)
        if not isinstance(given, Mapping):
            raise ArgumentTypeError(
                "policy",
                expected="an exit policy, as text or as an object with its name and fields",
                got=repr(given),
                remedy='Write "quantile:q=0.3" or {"name": "quantile", "q": 0.3}, say.',
            )
        ExitPolicy.from_dict(dict(given))


_WHOLE = {"seed": 0, "epochs": 1, "batch_size": 1, "stop_after": 1, "max_train": 4, "max_length": 1}
_REAL: dict[str, tuple[str, Callable[[float], bool]]] = {
    "lr": ("in (0, 1)", lambda rate: 0 < rate < 1),
    "lambda_lr": ("in (0, 1)", lambda rate: 0 < rate < 1),
    "head_lr": ("in (0, 1)", lambda rate: 0 < rate < 1),
    "warmup": ("in [0, 1)", lambda share: 0 <= share < 1),
    "held_out": ("in (0, 1)", lambda share: 0 < share < 1),
    "knob_keeps": ("in (0, 1]", lambda share: 0 < share <= 1),
    "budget": ("≥ 1, a speed-up", lambda speed_up: 1 <= speed_up < math.inf),
}
_CHOICES = {
    "readout": ("pooler", "mean"),
    "schedule": ("linear", "constant"),
    "selection": ("held_out", "dev"),
    "knob": ("recipe", "held_out", "budget"),
}
_LATER = ("schedule", "selection", "knob", "knob_keeps", "budget", "head_lr")


def recipe_label(recipe: str, options: Mapping[str, Any]) -> str:
    """A recipe with its arguments, as tables show it.

    Example:
        >>> recipe_label("static", {"k": 3})
        'static (k=3)'
    """
    listed = ", ".join(f"{name}={value}" for name, value in sorted(options.items()))
    return f"{recipe} ({listed})" if listed else recipe


def parse_policy(text: str) -> ExitPolicy:
    """A policy as it is written on a command line: `name`, or `name:field=value,field=value`.

    Example:
        >>> parse_policy("quantile:q=0.4")
        Quantile(q=0.4)
    """
    name, _, rest = text.partition(":")
    return policies.get(name.strip(), **parse_fields("--policy", filter(None, rest.split(","))))


def parse_recipe(option: str, text: str) -> tuple[str, dict[str, Any]]:
    """A recipe and its arguments as they are written in a list: `name`, or `name:argument=value:argument=value`.

    Example:
        >>> parse_recipe("--recipes", "static:k=3")
        ('static', {'k': 3})
    """
    name, *arguments = text.split(":")
    return name.strip(), parse_fields(option, arguments)


def parse_fields(option: str, parts: Iterable[str]) -> dict[str, Any]:
    """`field=value` pairs, with values as in JSON (other text stays text)."""
    fields: dict[str, Any] = {}
    for part in parts:
        field, equals, value = part.partition("=")
        if not equals or not field.strip():
            raise ArgumentError(option, expected="field=value", got=repr(part), remedy="Write for example q=0.3.")
        try:
            fields[field.strip()] = json.loads(value)
        except ValueError:
            fields[field.strip()] = value.strip()
    return fields
