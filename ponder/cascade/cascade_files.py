"""Folders of cascades: `cascade.json` with the settings, and a folder for each stage.

A stage that is a function cannot be written; its entry has no folder, and whoever reads the cascade
passes the function again. The settings are sealed, and each entry has a digest of its folder, so
that a promise can be dropped if a part has changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ponder._utils.files import (
    ABOUT,
    digest_of_files,
    read_json,
    reading,
    replaced_folder,
    write_json,
)
from ponder._utils.plain import from_plain
from ponder._utils.seals import changed_parts, sealed
from ponder.cascade.stages import CascadeStage, stage_of
from ponder.errors import ArgumentError
from ponder.policies.base import ExitPolicy

__all__ = ["FILE", "SavedCascade", "read_cascade", "write_cascade"]

FILE = "cascade.json"
"""The file of a folder with a cascade."""
_FORMAT = "ponder-cascade-2"
_OWNED = (FILE, "stage_*", *ABOUT)
"""Files that belong to one saving."""


@dataclass(frozen=True)
class _Entry:
    """A stage in `cascade.json`: its folder and a digest of it, or None without a folder."""

    folder: str | None
    digest: str | None


@dataclass(frozen=True)
class _Settings:
    """The contents of `cascade.json`."""

    stages: tuple[_Entry, ...]
    costs: tuple[float, ...] | None
    classes: tuple[str, ...]
    policy: dict[str, Any]
    digests: dict[str, str] = field(default_factory=dict)


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
        entries = [
            _write_stage(stage, new, f"stage_{number}") for number, stage in enumerate(stages, 1)
        ]
        settings = {
            "stages": [asdict(entry) for entry in entries],
            "costs": costs,
            "classes": classes,
            "policy": policy.to_dict(),
        }
        write_json(new / FILE, _FORMAT, sealed(settings, {}))


def _write_stage(stage: CascadeStage, folder: Path, name: str) -> _Entry:
    """Write a stage below a folder if it can be written, and return its entry."""
    if not stage.can_be_written:
        return _Entry(folder=None, digest=None)
    stage.save(folder / name)
    return _Entry(folder=name, digest=digest_of_files(folder / name))


def read_cascade(folder: Path, given: Sequence[object] | None) -> SavedCascade:
    """Read what `write_cascade` wrote.

    Args:
        folder: The folder.
        given: For each stage, None to read it, or the stage; None to read all.
    """
    path = folder / FILE
    data = read_json(path, _FORMAT, "cascade")
    with reading(path, "cascade"):
        settings = from_plain(_Settings, data)
        policy = ExitPolicy.from_dict(settings.policy)
    entries = settings.stages
    if given is None:
        given = [None] * len(entries)
    _check_given(given, entries)
    pairs = list(zip(given, entries, strict=True))

    def changed() -> list[str]:
        names = [
            f"stage {number}"
            for number, (stage, entry) in enumerate(pairs, 1)
            if _has_changed(folder, entry, stage)
        ]
        return [*names, *changed_parts(data, lambda name: None)]

    return SavedCascade(
        stages=[_read_stage(folder, entry, stage) for stage, entry in pairs],
        costs=settings.costs,
        classes=settings.classes,
        policy=policy,
        changed=changed,
    )


def _check_given(given: Sequence[object], entries: Sequence[_Entry]) -> None:
    """Refuse another number of stages, and None for a stage that was not written."""
    missing = [
        number
        for number, (stage, entry) in enumerate(zip(given, entries, strict=False), 1)
        if stage is None and entry.folder is None
    ]
    if missing or len(given) != len(entries):
        raise ArgumentError(
            "stages",
            expected=f"{len(entries)} stages, and None only for those that were written",
            got=f"{len(given)} stages, none for the functions at {missing}",
            remedy="Pass stages=[None, ask], say.",
        )


def _read_stage(folder: Path, entry: _Entry, given: object) -> CascadeStage:
    """Return the stage that was passed, or else the one in the folder."""
    if given is not None:
        return stage_of(given)
    return stage_of(folder / str(entry.folder))


def _has_changed(folder: Path, entry: _Entry, given: object) -> bool:
    """Return whether a stage is seen to be another than the one that was written.

    Weights of stages in memory are compared by the certificate's own digest.
    """
    if given is None:
        return digest_of_files(folder / str(entry.folder)) != entry.digest
    return entry.folder is not None and stage_of(given).weights_digest() is None
