"""A policy with a promise: here it decides as the one inside; what is promised was checked where it was made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ponder._utils.certificates import check_digest
from ponder.errors import ArgumentError
from ponder.export.policies.base import ModelSpec, registry
from ponder.export.policies.joining import Around

__all__ = ["Certified"]


@registry.register("certified")
@dataclass(frozen=True)
class Certified(Around):
    """Twin of `ponder.policies.Certified`."""

    num_steps: int | None = None

    @classmethod
    def arguments(cls, fields: Mapping[str, Any]) -> dict[str, Any]:
        check_digest({"name": "certified", **fields})
        decides = {"policy": fields["policy"], "num_steps": fields.get("num_steps")}  # all else is about the promise
        return super().arguments(decides)

    def check(self, model: ModelSpec) -> None:
        super().check(model)
        if self.num_steps not in (None, model.num_steps):
            raise ArgumentError(
                "policy",
                expected=f"one that is certified for {model.num_steps} steps",
                got=f"a certificate for {self.num_steps}: it says nothing of others",
                remedy="Run the policy inside, without a promise, or certify it on such a run.",
            )
