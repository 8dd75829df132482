"""The command line, `ponder` (needs `pip install 'ponder-torch[cli]'`)."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec

__all__ = ["main"]


def main() -> None:
    """Run the command, or say which library it lacks."""
    if find_spec("typer") is None:
        print(
            "ponder: typer is not installed. Run:\n  pip install 'ponder-torch[cli]'",
            file=sys.stderr,
        )
        raise SystemExit(2)
    import_module("ponder.cli.app").app()
