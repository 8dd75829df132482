"""The command line, `python -m benchmarks.anything`: one result a problem; finished ones are kept."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.anything.measuring import CONFIDENCE, REDRAWN, measured, redrawn, timed
from benchmarks.anything.problems import PROBLEMS
from benchmarks.anything.report import COLUMNS, FORMAT, results, saved
from benchmarks.command_line import hide_bars, print_table, run_app
from benchmarks.environment import environment
from benchmarks.files import with_digest, write_json

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def run(
    problem: Annotated[
        list[str] | None, typer.Option(help=f"One of {', '.join(PROBLEMS)}; repeatable.")
    ] = None,
    redraws: Annotated[int, typer.Option(min=1, help="Draws of the rows that certify.")] = 1000,
    out: Annotated[Path, typer.Option(help="Folder of results.")] = Path("runs/anything"),
) -> None:
    """Measure members, seconds and broken promises of problems; see the docstring for the rule."""
    hide_bars()
    torch.set_num_threads(1)
    for name in problem or PROBLEMS:
        path = out / f"{name.lower().replace(' ', '-')}.json"
        if path.exists():
            continue
        began = time.process_time()
        made = PROBLEMS[name]()
        ways = measured(made)
        result = {
            "format": FORMAT,
            "problem": name,
            "what": (PROBLEMS[name].__doc__ or "").strip(),
            "members": made.ensemble.members.count,
            "block": made.ensemble.block,
            "rows": {"certifying": made.certifying, "fresh": len(made.rows) - made.certifying},
            "tolerance": made.tolerance,
            "confidence": CONFIDENCE,
            "ways": ways,
            "timed": timed(made),
            "redraws": {"rows": REDRAWN, "levels": redrawn(made, redraws)},
            "seconds": round(time.process_time() - began, 1),
            "environment": environment(),
        }
        write_json(path, with_digest(result))
    print_table(COLUMNS, saved(results(out)))


def main() -> None:
    """Run the command line."""
    run_app(app)
