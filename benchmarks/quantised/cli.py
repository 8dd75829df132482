"""The command line, `python -m benchmarks.quantised`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks import backbones
from benchmarks.command_line import check_writable, run_app
from benchmarks.environment import environment
from benchmarks.quantised.measuring import KINDS, measure
from benchmarks.tables import write_between_marks
from benchmarks.terminal import hide_bars, print_table
from ponder._utils.files import read_json, write_json
from ponder._utils.markdown import markdown_table

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
FILE = "quantised.json"


@app.command()
def run(
    backbone: Annotated[
        list[str] | None, typer.Option(help="Embedded, a folder, or a hub name; repeat for several. All embedded ones.")
    ] = None,
    texts: Annotated[int, typer.Option(min=1, help="Texts that are compared.")] = 200,
    calibrating: Annotated[int, typer.Option(min=1, help="Other texts, which fix the ranges.")] = 200,
    out: Annotated[Path, typer.Option(help="Folder of the result.")] = Path("benchmarks/results/quantised"),
    page: Annotated[Path | None, typer.Option(help="Markdown page to write the table into.")] = None,
    report: Annotated[bool, typer.Option("--report", help="Measure nothing; tell what the folder holds.")] = False,
) -> None:
    """Say how near encoders in 8 bits are to those in fp32, by the cosine of their last mean hidden states."""
    check_writable(out)
    if not report:
        hide_bars()
        cosines = {name: measure(name, texts, calibrating) for name in backbone or backbones.names()}
        settings = {"texts": texts, "calibrating": calibrating}
        made_by = environment(torch.device("cpu"))
        write_json(out / FILE, {"settings": settings, "cosines": cosines, "environment": made_by})
    cosines = read_json(out / FILE)["cosines"]
    print_table(("quantised", *cosines), rows(cosines), title="Cosine with fp32: median, worst")
    if page is not None:
        write_between_marks(page, "\n".join(markdown_table(("", *cosines), rows(cosines))))


def rows(cosines: dict[str, dict[str, dict[str, float]]]) -> list[list[str]]:
    """A line a kind: its name, and the median and the worst cosine of each backbone."""
    return [
        [kind, *(f"{told[kind]['median']:.3f}, {told[kind]['worst']:.3f}" for told in cosines.values())]
        for kind in KINDS
    ]


def main() -> None:
    """Run the command line."""
    run_app(app)
