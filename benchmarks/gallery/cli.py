"""The command line: `python -m benchmarks.gallery` writes the figures to `docs/figures`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.command_line import check_writable, run_app
from benchmarks.gallery.drawing import FIGURES, draw

__all__ = ["app", "main"]

FOLDER = Path(__file__).parents[2] / "docs" / "figures"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def _main(
    out: Annotated[Path, typer.Option(help="The folder to write to.", show_default="docs/figures")] = FOLDER,
    only: Annotated[
        list[str] | None, typer.Option(help=f"One of {', '.join(FIGURES)}; repeatable. All by default.")
    ] = None,
) -> None:
    """Draw the figures of README and documentation from committed results."""
    unknown = sorted({*(only or ())} - {*FIGURES})
    if unknown:
        raise typer.BadParameter(f"no figure is called {', '.join(unknown)}; there are {', '.join(FIGURES)}")
    check_writable(out)
    for path in draw(out, only or list(FIGURES)):
        print(path)


def main() -> None:
    """Run the command line."""
    run_app(app)
