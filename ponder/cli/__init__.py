"""The command line, `ponder`: exits for a fine-tuned classifier (needs `pip install 'ponder-torch[cli]'`)."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec

__all__ = ["main"]

_NEEDED = ("typer", "rich", "jinja2", "transformers")


def main() -> None:
    """Run the command, or say in a sentence which libraries it lacks."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        print(
            f"ponder: needs {', '.join(missing)}: not installed. Run:\n  pip install 'ponder-torch[cli]'",
            file=sys.stderr,
        )
        raise SystemExit(1)
    import_module("ponder.cli.app").app()
