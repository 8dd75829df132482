"""Files of policies: a policy, its promise included, with the settings that it needs to run.

The file is all promise, so one that was edited is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from ponder._utils.files import reading
from ponder._utils.seals import read_sealed, write_sealed
from ponder.errors import CheckpointError
from ponder.policies.base import ExitPolicy

__all__ = ["POLICY", "SavedPolicy", "read_policy", "write_policy"]

POLICY = "ponder-policy-1"
"""The format of the file."""


class SavedPolicy(NamedTuple):
    """A policy as it was read, and the settings with which it was written."""

    policy: ExitPolicy
    settings: dict[str, Any]


def write_policy(file: str | Path, policy: ExitPolicy, **settings: object) -> None:
    """Write a policy and settings in plain JSON; the file is replaced in one act."""
    write_sealed(file, POLICY, {"policy": policy.to_dict(), **settings})


def read_policy(file: str | Path) -> SavedPolicy:
    """Read what `write_policy` wrote.

    Raises:
        CheckpointError: The file is damaged, of another format, or was edited.

    Example:
        >>> from ponder.policies.files import read_policy, write_policy
        >>> write_policy("policy.json", policies.Lead(2.5), budget=20)
        >>> read_policy("policy.json")
        SavedPolicy(policy=Lead(threshold=2.5), settings={'budget': 20})
    """
    saved = read_sealed(file, POLICY, "policy")
    if saved.changed():
        raise CheckpointError(f"{file}: changed after it was written. Certify again.")
    settings = dict(saved.settings)
    with reading(file, "policy"):
        return SavedPolicy(ExitPolicy.from_dict(settings.pop("policy")), settings)
