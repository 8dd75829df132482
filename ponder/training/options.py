"""The numbers of a training, and how the learning rates rise and fall."""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi
from typing import Any

from ponder._utils.validation import check_choice, check_flag, check_int, check_real

__all__ = ["Options"]

_SCHEDULES = ("linear", "cosine", "constant")


@dataclass(frozen=True)
class Options:
    """The numbers of a training; fields as for `fit`."""

    epochs: int
    patience: int | None
    lr: float
    head_lr: float | None
    lambda_lr: float | None
    weight_decay: float
    warmup: float
    schedule: str
    clip: float | None
    bf16: bool

    def check(self) -> None:
        """Refuse what no training can follow; `parameter_groups` looks at the rates."""
        check_int("epochs", self.epochs)
        if self.patience is not None:
            check_int("patience", self.patience)
        check_real("weight_decay", self.weight_decay)
        check_real("warmup", self.warmup, 0.0, 1.0, open_high=True)
        check_choice("schedule", self.schedule, _SCHEDULES)
        if self.clip is not None:
            check_real("clip", self.clip, open_low=True)
        check_flag("bf16", self.bf16)

    def as_numbers(self) -> dict[str, Any]:
        """The fields that trackers are told."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def share(self, step: int, total: int | None) -> float:
        """The share of the learning rates at a step of the optimiser, counted from 0."""
        if total is None:
            return 1.0
        rising = round(self.warmup * total)
        if step < rising:
            return (step + 1) / (rising + 1)
        left = max(total - step, 0) / max(total - rising, 1)  # a loader may give more batches than its length says
        if self.schedule == "constant":
            return 1.0
        return left if self.schedule == "linear" else 0.5 * (1.0 + cos(pi * (1.0 - left)))
