"""Folders of cascades: `cascade.json` with the settings, and a folder for each stage.

A stage that is a function cannot be written; its entry has no folder, and whoever reads the cascade
passes the function again. The settings are sealed with digests of the stages' folders, so that a
promise can be dropped if a part has changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ponder._utils.files import ABOUT, reading, replaced_folder
from ponder._utils.plain import from_plain
from ponder._utils.seals import read_sealed, write_sealed
from ponder.cascade.stages import CascadeStage, stage_of
from ponder.errors import ArgumentError
from ponder.policies.base import ExitPolicy

__all__ = ["FILE", "SavedCascade", "read_cascade", "write_cascade"]

FILE = "cascade.json"
"""The file of a folder with a cascade."""
_FORMAT = "ponder-cascade-3"
_OWNED = (FILE, "stage_*", *ABOUT)
"""Files that belong to one saving."""


@dataclass(frozen=True)
class _Settings:
    """The contents of `cascade.json`; the folder of a stage is None if it is a function."""

    stages: tuple[str | None, ...]
    costs: tuple[float, ...] | None
    classes: tuple[str, ...]
    policy: dict[str, Any]


@dataclass(frozen=True, eq=False)
class SavedCascade:
    """A cascade as it was read.

    Args:
        stages: Its stages.
        costs: The cost of each; None if it was not known.
        classes: Names of the classes.
        policy: The policy, with a promise if it had one.
        changed: Returns the names of the parts that are not those that were saved.
    """

    stages: Sequence[CascadeStage]
    costs: tuple[float, ...] | None
    classes: tuple[str, ...]
    policy: ExitPolicy
    changed: Callable[[], list[str]]


def write_cascade(
    folder: str | Path,
    stages: Sequence[CascadeStage],
    costs: Sequence[float] | None,
    classes: Sequence[str],
    policy: ExitPolicy,
) -> None:
    """Write a cascade; the folder is replaced as a whole."""
    with replaced_folder(folder, _OWNED) as new:
        written: list[str | None] = []
        for number, stage in enumerate(stages, 1):
            name = None
            if stage.can_be_written:
                name = f"stage_{number}"
                stage.save(new / name)
            written.append(name)
        settings = {
            "stages": written,
            "costs": costs,
            "classes": classes,
            "policy": policy.to_dict(),
        }
        write_sealed(new / FILE, _FORMAT, settings, parts=filter(None, written))


def read_cascade(folder: Path, given: Sequence[object] | None) -> SavedCascade:
    """Read what `write_cascade` wrote.

    Args:
        folder: The folder.
        given: For each stage, None to read it, or the stage; None to read all.
    """
    path = folder / FILE
    saved = read_sealed(path, _FORMAT, "cascade")
    with reading(path, "cascade"):
        settings = from_plain(_Settings, saved.settings)
        policy = ExitPolicy.from_dict(settings.policy)
    folders = settings.stages
    if given is None:
        given = [None] * len(folders)
    _check_given(given, folders)
    passed = dict(zip(folders, given, strict=True))

    def changed() -> list[str]:
        names = [name for name in saved.changed() if passed.get(name) is None]
        for name, stage in passed.items():
            # Weights in memory are compared by the certificate's own digest.
            if name and stage is not None and stage_of(stage).weights_digest() is None:
                names.append(name)
        return names

    return SavedCascade(
        stages=[
            stage_of(folder / str(name) if stage is None else stage)
            for name, stage in zip(folders, given, strict=True)
        ],
        costs=settings.costs,
        classes=settings.classes,
        policy=policy,
        changed=changed,
    )


def _check_given(given: Sequence[object], folders: Sequence[str | None]) -> None:
    """Refuse another number of stages, and None for a stage that was not written."""
    missing = [
        number
        for number, (stage, name) in enumerate(zip(given, folders, strict=False), 1)
        if stage is None and name is None
    ]
    if missing or len(given) != len(folders):
        raise ArgumentError(
            "stages",
            expected=f"{len(folders)} stages, and None only for those that were written",
            got=f"{len(given)} stages, none for the functions at {missing}",
            remedy="Pass stages=[None, ask], say.",
        )
