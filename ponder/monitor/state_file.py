"""`StateFile`: where an audit's state survives a restart; it is refused where promise or policies are others."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ponder._utils.files import alone, read_json, write_json
from ponder.errors import CheckpointError, PonderError
from ponder.monitor.audit import Audit
from ponder.policies import ExitPolicy

__all__ = ["StateFile"]


@dataclass(frozen=True)
class StateFile:
    """A JSON file with the state of an audit, and the policies that it is about.

    Args:
        path: The file.
        format: What it says that it is.
        policies: The policies, from the cheapest to the safest.
        tolerance: The distance of two answers that are the same, in regression.
    """

    path: Path
    format: str
    policies: Sequence[ExitPolicy]
    tolerance: float = 0.0

    def held(self) -> AbstractContextManager[None]:
        """Keep the file for one writer: each writes what it knows itself, and two would take alarms back."""
        return alone(self.path)

    def write(self, state: dict[str, Any]) -> None:
        """Write what `Audit.to_dict` gave, whole or not at all; a link stays one."""
        told = {"format": self.format, "policies": self._names(), "tolerance": self.tolerance, "audit": state}
        write_json(Path(os.path.realpath(self.path)), told)

    def held_state(self) -> Any:
        """What the file holds now, as `write` was given it; None where there is none."""
        return read_json(self.path).get("audit") if self.path.exists() else None

    def read(self, own: Audit) -> Audit:
        """The audit of the file; `own` where there is none yet.

        Raises:
            CheckpointError: It holds no state, or that of another promise than `own` or of other policies.
        """
        if not self.path.exists():
            return own
        data = read_json(self.path)
        if data.get("format") != self.format:
            raise CheckpointError(f"{self.path}: expected the format {self.format!r}; got {data.get('format')!r}.")
        found = Audit.from_dict(data.get("audit", {}))
        terms = [(audit.level, audit.confidence, audit.share, audit.seed) for audit in (found, own)]
        as_close = data.get("tolerance", self.tolerance) == self.tolerance  # earlier versions wrote none
        if not self._are_of(data.get("policies")) or terms[0] != terms[1] or not as_close:
            raise CheckpointError(
                f"{self.path}: the state of another promise or of other policies. Go on with those it was written "
                "with, or move the file away to begin anew."
            )
        return found

    def _are_of(self, written: Any) -> bool:
        """Whether what a file names are these policies, in whichever version it was written."""
        try:
            return [ExitPolicy.from_dict(policy) for policy in written] == list(self.policies)
        except (PonderError, TypeError):
            return False

    def _names(self) -> list[dict[str, Any]]:
        return [policy.to_dict() for policy in self.policies]
