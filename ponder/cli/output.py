"""What commands share: errors as one sentence, progress, and places that can be written."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import textwrap
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import typer
from rich.console import Console
from rich.progress import Progress

from ponder._utils.files import ABOUT, INDEXES, replaced_folder
from ponder.deploy.folders import card_of
from ponder.errors import ArgumentError, ArgumentTypeError, PonderError
from ponder.statistics.used import USED

__all__ = [
    "Advance",
    "new_folder",
    "probe_file",
    "probe_folder",
    "progress",
    "say",
    "sentences",
]

_WIDTH = 80
_EVERY = 10.0  # seconds between lines of progress
_WRITTEN = (*INDEXES, *ABOUT, USED, "*.onnx", "*.safetensors", "stage_*")
"""Patterns of what commands write into a folder, besides tokenizers."""
_OPTIONS = {
    "confidences": "--confidence-column",
    **dict.fromkeys(("rows", "examples", "trajectory", "choosing", "certifying"), "--texts"),
    **dict.fromkeys(("model", "encoder"), "MODEL"),
    "level": "--disagreement",
    "path": "--audit-file",
}
"""Options of the commands, by the names of the library's arguments that differ from them."""
_QUIET = {
    "TRANSFORMERS_VERBOSITY": "warning",  # warnings about missing weights must be shown
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
}
"""Settings of Transformers by which its notes do not mix with the output."""
Advance: TypeAlias = Callable[[str, int, int], None]
"""Called with a phase, the number of its texts that are done, and of all of them."""


@contextmanager
def sentences() -> Iterator[None]:
    """Show errors and warnings as sentences on the standard error; an error is exit code 2."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: say(str(message))
        try:
            yield
        except (ArgumentError, ArgumentTypeError) as error:
            option = _option_of(error.argument)
            say(f"{option}: expected {error.expected}; got {error.got}. {error.remedy}")
            raise typer.Exit(2) from error
        except BrokenPipeError:
            raise  # the reader of the output has gone: `ponder.cli.main` ends without a word
        except (PonderError, OSError) as error:
            say(str(error))
            raise typer.Exit(2) from error
        except ModuleNotFoundError as error:
            say(f"{error.name} is not installed. Run: pip install 'ponder-torch[cli,serve]'")
            raise typer.Exit(2) from error
        except KeyboardInterrupt as error:
            say("stopped.")
            raise typer.Exit(130) from error


def _option_of(argument: str) -> str:
    """Return the option, or the argument in capitals, that sets an argument of the library."""
    option = _OPTIONS.get(argument, argument)
    if option.startswith("-") or option.isupper():
        return option
    return f"--{option.replace('_', '-')}"


def say(sentence: str) -> None:
    """Print a sentence on the standard error."""
    line = f"ponder: {' '.join(sentence.split())}"
    typer.echo(
        textwrap.fill(line, _WIDTH, break_long_words=False, break_on_hyphens=False), err=True
    )


@contextmanager
def progress(clock: Callable[[], float] = time.monotonic) -> Iterator[Advance]:
    """Return a callback that shows progress: a bar, or a line every ten seconds."""
    last = clock()

    def write(phase: str, done: int, total: int) -> None:
        nonlocal last
        if clock() - last >= _EVERY:
            last = clock()
            typer.echo(f"{phase}: {done} of {total}", err=True)

    if not sys.stderr.isatty():
        yield write
        return
    tasks: dict[str, Any] = {}
    with Progress(console=Console(stderr=True), transient=True) as bars:

        def draw(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = bars.add_task(phase)
            bars.update(tasks[phase], completed=done, total=total)

        yield draw


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield a new folder, which takes the place of `out` as a whole when the block ends.

    So a model, its card and the texts that made it are always of one run of a command.
    """
    with replaced_folder(out, _WRITTEN) as new:
        yield new


def probe_folder(out: Path, command: str, source: str | Path) -> None:
    """Refuse, before any work, a folder that cannot be written, or that something else wrote.

    Args:
        out: The folder.
        command: The command that is to write it.
        source: Folder or hub name of the model; as much space as its files take must be free.
    """
    model = Path(source)
    if out.exists():
        is_model = model.exists() and out.samefile(model)
        if is_model or not _may_be_replaced(out, command):
            raise ArgumentError(
                "--out",
                expected=f"a new or empty folder, or one of `ponder {command}`, "
                "and not the model's",
                got=str(out),
                remedy="Name a new one.",
            )
    needed = 0
    if model.is_dir():
        needed = sum(path.stat().st_size for path in model.iterdir() if path.is_file())
    _probe(out, needed)


def _may_be_replaced(out: Path, command: str) -> bool:
    """Return whether a path is an empty folder, or one that the same command wrote."""
    if not out.is_dir():
        return False
    # A command that was killed may have left a hidden folder.
    is_empty = all(path.name.startswith(".") for path in out.iterdir())
    return is_empty or card_of(out).get("command") == command


def probe_file(out: Path, sources: Iterable[Path]) -> None:
    """Refuse an output that cannot be written, or that is an input or in a folder of inputs."""
    place = out.resolve()
    inputs = [path.resolve() for path in sources]
    if out.is_dir() or any(path in (place, *place.parents) for path in inputs):
        raise ArgumentError(
            "--out",
            expected="a file of its own, neither that of the texts nor in the model's folder",
            got=str(out),
            remedy="Name another.",
        )
    _probe(out.parent, 0)


def _probe(folder: Path, needed: int) -> None:
    """Refuse a folder in which nothing can be written, or fewer bytes than needed."""
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    problem = ""
    try:
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(b"probe")
            file.flush()
        free = shutil.disk_usage(existing).free
        if free < needed:
            problem = f"{free / 1e6:.0f} MB free, and {needed / 1e6:.0f} needed"
    except OSError as error:
        problem = error.strerror or str(error)
    if problem:
        raise ArgumentError(
            "--out",
            expected="a place that can be written",
            got=f"{folder} ({problem})",
            remedy="Name another.",
        )
