"""Policies on the Lambda head's halting distribution: the quantile (Q-exit of PALBERT), and a seeded draw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ponder._utils.validation import check_real
from ponder.export.policies.base import Array, NumpyPolicy, StepView, refusal, registry

__all__ = ["Bernoulli", "Quantile"]


@registry.register("quantile")
@dataclass(frozen=True)
class Quantile(NumpyPolicy):
    """Twin of `ponder.policies.Quantile`."""

    q: float
    needs = frozenset({"hazard"})

    def __post_init__(self) -> None:
        check_real("q", self.q, 0.0, 1.0)

    def decide(self, step: StepView, state: Any) -> tuple[Array, Any]:
        assert step.cdf is not None
        return step.cdf > np.float32(self.q), state


@registry.register("bernoulli")
@dataclass(frozen=True)
class Bernoulli(NumpyPolicy):
    """Twin of `ponder.policies.Bernoulli` with a seed."""

    seed: int
    needs = frozenset({"hazard"})

    @classmethod
    def arguments(cls, fields: Mapping[str, Any]) -> dict[str, Any]:
        if fields.get("seed") is None:
            raise refusal("a Bernoulli without a seed, whose exits nobody could check")
        return super().arguments(fields)

    def init(self, row_ids: Array) -> Any:
        with np.errstate(over="ignore"):
            key = _mix(np.array([(self.seed + _GAMMA) & _MASK], dtype=np.uint64))
            bits = _mix(key + row_ids.astype(np.int64).astype(np.uint64) * np.uint64(_GAMMA))
        return (bits >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)

    def decide(self, step: StepView, state: Any) -> tuple[Array, Any]:
        assert step.cdf is not None
        return step.cdf > state, state


_GAMMA = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def _mix(x: Array) -> Array:
    """The SplitMix64 finaliser, as in `ponder.policies.halting`; arithmetic modulo 2^64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Array = x ^ (x >> np.uint64(31))
    return mixed
