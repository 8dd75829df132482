"""The application `ponder` with its commands.

A command's options are declared in `ponder.cli.making` or `ponder.cli.using`; those that several
commands share are in `ponder.cli.options`. A command calls `run` of a module, for example of
`ponder.cli.exits`, which is imported when the command runs, so that `ponder --help` is fast, and
exports need no PyTorch.
"""

from ponder.cli import making, using
from ponder.cli.root import app

__all__ = ["app", "making", "using"]
