"""The command line, `python -m benchmarks.quantised`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks import backbones
from benchmarks.command_line import check_free, check_writable, run_app
from benchmarks.environment import environment
from benchmarks.quantised.measuring import KINDS, measure
from benchmarks.tables import check_marks, write_between_marks
from benchmarks.terminal import hide_bars, print_table
from ponder._utils.files import read_json, write_json
from ponder._utils.markdown import markdown_table
from ponder.errors import DataError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
FILE = "quantised.json"


@app.command()
def run(
    backbone: Annotated[
        list[str] | None,
        typer.Option(help="Embedded, a folder, or a hub name; repeatable. All embedded by default."),
    ] = None,
    texts: Annotated[int, typer.Option(min=1, help="Texts that are compared.")] = 200,
    calibrating: Annotated[int, typer.Option(min=1, help="Other texts, which fix the ranges.")] = 200,
    out: Annotated[Path, typer.Option(help="Folder of the result.")] = Path("benchmarks/results/quantised"),
    page: Annotated[Path | None, typer.Option(help="Markdown page to write the table into.")] = None,
    report: Annotated[bool, typer.Option("--report", help="Measure nothing; tell what the folder holds.")] = False,
) -> None:
    """Say how near encoders in 8 bits are to those in fp32, by the cosine of their last mean hidden states.

    Each backbone is written as it is measured, beside the others that the folder holds, which are of the same settings.
    """
    path, settings = out / FILE, {"texts": texts, "calibrating": calibrating}
    check_marks(page)
    if not report:
        check_free(path, {"settings": settings})
        check_writable(out)
        hide_bars()
        for name in backbone or backbones.names():
            _add(path, settings, name, measure(name, texts, calibrating))
    if not path.is_file():
        raise DataError(f"{out}: no results {FILE}. Run `python -m benchmarks.quantised` first.")
    cosines = read_json(path)["cosines"]
    print_table(("quantised", *cosines), rows(cosines), title="Cosine with fp32: median, worst")
    if page is not None:
        write_between_marks(page, "\n".join(markdown_table(("", *cosines), rows(cosines))))


def _add(path: Path, settings: dict[str, int], name: str, cosines: dict[str, dict[str, float]]) -> None:
    """Write what one backbone came to; the others of the file stay, each with the environment that it was made in."""
    found: dict[str, Any] = read_json(path) if path.is_file() else {"cosines": {}, "environments": {}}
    before = found["cosines"]
    made_in = found.get("environments") or dict.fromkeys(before, found.get("environment"))  # older ones have one
    told = {
        "cosines": {**before, name: cosines},
        "environments": {**made_in, name: environment(torch.device("cpu"))},
    }
    write_json(path, {"settings": settings, **told})


def rows(cosines: dict[str, dict[str, dict[str, float]]]) -> list[list[str]]:
    """A line a kind: its name, and the median and the worst cosine of each backbone."""
    return [
        [kind, *(f"{told[kind]['median']:.3f}, {told[kind]['worst']:.3f}" for told in cosines.values())]
        for kind in KINDS
    ]


def main() -> None:
    """Run the command line."""
    run_app(app)
