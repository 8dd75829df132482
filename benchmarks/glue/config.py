"""One run of the benchmark, as a value: everything that decides its result."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.files import digest

__all__ = ["DEFAULT", "RunConfig", "recipe_label"]

DEFAULT = "frozen"
"""The recipe that is the library's default, and stands first in the headline."""

_LATER = {"schedule": "linear", "head_lr": None}
"""Fields that were added later: they are no part of a name while they have these values."""


@dataclass(frozen=True)
class RunConfig:
    """The hyper-parameters of a run; names and defaults are part of the file names of results.

    Args:
        task: A task, for example RTE.
        recipe: A recipe, for example palbert.
        backbone: minilm, mpnet, a folder, or a hub name.
        recipe_options: Arguments of the recipe.
        policy: An exit policy instead of the recipe's, as `ExitPolicy.to_dict` gives it.
        readout: Features of the heads: mean or pooler.
        seed: Seed of initialisation, order, dropout and the held-out split.
        epochs: Epochs of each stage, at most.
        lr: Learning rate.
        lambda_lr: Learning rate of the Lambda head, where the recipe gives it one of its own.
        batch_size: Examples a step of the optimiser.
        warmup: Share of the steps over which rates rise.
        stop_after: Epochs without gain on the held-out part that end a stage.
        held_out: Share of train that selects the epoch.
        max_train: Use at most so many training examples, drawn by seed.
        max_length: Tokens; longer inputs are cut.
        bf16: Train under bfloat16 autocast, unless the CPU has no instructions for it.
        schedule: Rates fall linearly to zero, or (as in PALBERT's paper) stay constant.
        head_lr: Learning rate of the heads; `lr` where None.
    """

    task: str
    recipe: str = DEFAULT
    backbone: str = "minilm"
    recipe_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    policy: Mapping[str, Any] | None = None
    readout: str = "mean"
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
    schedule: str = "linear"
    head_lr: float | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if str(field.type).startswith("float") and value is not None:
                object.__setattr__(
                    self, field.name, float(value)
                )  # 2 and 2.0 are one configuration

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return dataclasses.asdict(self)

    @property
    def key(self) -> str:
        """A name for the run: readable, and different for every configuration."""
        hashed: dict[str, Any] = {}
        for name, value in self.to_dict().items():
            if not (name in _LATER and value == _LATER[name]):
                hashed[name] = value
        backbone = self.backbone.rstrip("/").rsplit("/", 1)[-1]
        return f"{self.task}-{backbone}-{self.recipe}-s{self.seed}-{digest(hashed)}".lower()


def recipe_label(recipe: str, options: Mapping[str, Any]) -> str:
    """Return a recipe with its arguments, as tables show it.

    Example:
        >>> recipe_label("static", {"k": 3})
        'static (k=3)'
    """
    listed = ", ".join(f"{name}={value}" for name, value in sorted(options.items()))
    return f"{recipe} ({listed})" if listed else recipe
