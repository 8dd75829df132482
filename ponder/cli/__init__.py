"""The command line, `ponder`: exits for a fine-tuned classifier (needs `pip install 'ponder-torch[cli]'`)."""

from __future__ import annotations

import importlib
import sys

__all__ = ["main"]

_NEEDED = ("typer", "rich", "transformers")


def main() -> None:
    """Run the command, or say in a sentence which library it lacks."""
    try:
        for name in _NEEDED:
            importlib.import_module(name)
    except ImportError as error:
        print(
            f"ponder: needs {error.name}, which is not installed. Run:\n  pip install 'ponder-torch[cli]'",
            file=sys.stderr,
        )
        raise SystemExit(1) from error
    importlib.import_module("ponder.cli.app").app()
