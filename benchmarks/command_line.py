"""What the command lines of the benchmarks have in common: how errors are shown, folders checked, values written."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape

from ponder import policies
from ponder._utils.files import read_json
from ponder.errors import ArgumentError, PonderError
from ponder.policies import ExitPolicy

__all__ = [
    "MAX_SEED",
    "check_file",
    "check_folder",
    "check_free",
    "check_writable",
    "parse_fields",
    "parse_policy",
    "run_app",
]

MAX_SEED = 2**63 - 1
"""The largest seed that every generator of random numbers takes."""


def run_app(app: typer.Typer) -> None:
    """Run a command line; errors of `ponder`, and of files and disks, are one clear message, and exit code 2."""
    try:
        app()
    except (PonderError, OSError) as error:
        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True, highlight=False)
        sys.exit(2)


def check_folder(option: str, folder: Path | None) -> None:
    """Refuse a folder to read from that is not there; `option` gave it."""
    if folder is not None and not folder.is_dir():
        raise ArgumentError(option, expected="a folder that is there", got=str(folder), remedy="Correct the path.")


def check_file(option: str, path: Path | None) -> None:
    """Refuse, before anything is measured, a file that cannot be written; `option` gave it."""
    if path is None:
        return
    if path.is_dir():
        raise ArgumentError(option, expected="a file", got=f"the folder {path}", remedy="Name a file in it.")
    check_writable(path.parent, option)


def check_free(path: Path, made_by: Mapping[str, Any]) -> None:
    """Refuse, before anything is measured, to write over a result of other settings, or of another model."""
    found = read_json(path) if path.is_file() else made_by
    before = {name: found.get(name) for name in made_by}
    if before != made_by:
        told = {name: found.get(name, "that it does not tell") for name in made_by}  # as older ones
        other = ", ".join(f"{name} {told[name]}" for name in made_by if before[name] != made_by[name])
        raise ArgumentError(
            "--out",
            expected=f"a folder without a result of other settings, or of another model, called {path.name}",
            got=f"{path.parent}, where it was made with {other}",
            remedy="Pass another folder, or move that result.",
        )


def check_writable(folder: Path | None, option: str = "--out") -> None:
    """Refuse, before anything is trained, a folder that cannot be written to; `option` gave it."""
    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()  # it has no name, so a kill leaves nothing
    except OSError as error:
        got = f"{folder} ({error.strerror})"
        raise ArgumentError(
            option, expected="a folder that can be written", got=got, remedy="Choose another."
        ) from error


_AS_JSON = {"True": "true", "False": "false", "None": "null"}


def parse_fields(option: str, parts: Iterable[str]) -> dict[str, Any]:
    """`field=value` pairs, with values as in JSON, or as Python writes True, False and None (other text stays text)."""
    fields: dict[str, Any] = {}
    for part in parts:
        field, equals, value = part.partition("=")
        if not equals or not field.strip():
            raise ArgumentError(option, expected="field=value", got=repr(part), remedy="Write for example q=0.3.")
        if field.strip() in fields:
            remedy = "Leave one out."
            raise ArgumentError(option, expected="each field once", got=f"{field.strip()} again", remedy=remedy)
        try:
            fields[field.strip()] = json.loads(_AS_JSON.get(value.strip(), value))
        except ValueError:
            fields[field.strip()] = value.strip()
    return fields


def parse_policy(text: str) -> ExitPolicy:
    """A policy as it is written on a command line: `name`, or `name:field=value,field=value`.

    Example:
        >>> parse_policy("quantile:q=0.4")
        Quantile(q=0.4)
    """
    name, _, rest = text.partition(":")
    return policies.get(name.strip(), **parse_fields("--policy", filter(None, rest.split(","))))
