"""The command line, `ponder` (needs `pip install 'ponder-torch[cli]'`)."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec

__all__ = ["main"]


def main() -> None:
    """Run the command, or say which library it lacks.

    If the reader of the output has gone (`ponder … | head`), the exit code is that of other
    commands, 128 + SIGPIPE.
    """
    if find_spec("typer") is None:
        print(
            "ponder: typer is not installed. Run:\n  pip install 'ponder-torch[cli]'",
            file=sys.stderr,
        )
        raise SystemExit(2)
    try:
        import_module("ponder.cli.app").app()
    except SystemExit as stop:
        # Typer and Rich silence the stream and exit with 1, on whatever error they handle then.
        if isinstance(stop.__context__, BrokenPipeError):
            raise SystemExit(141) from None
        raise
