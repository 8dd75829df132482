"""The command line, `python -m benchmarks.advice run|redraw`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.command_line import hide_bars, print_table, run_app
from benchmarks.environment import environment
from benchmarks.files import write_json

__all__ = ["app", "main"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command("run")
def run_command(
    task: Annotated[
        str, typer.Option(help="Banking77, CLINC150, SST-2, MRPC, CoLA, or generated.")
    ],
    glue_dir: Annotated[
        Path | None, typer.Option(envvar="GLUE_DIR", help="Folder of GLUE's tasks.")
    ] = None,
    text_dir: Annotated[
        Path | None, typer.Option(envvar="TEXT_DIR", help="Folder of the other tasks.")
    ] = None,
    backbone: Annotated[str, typer.Option(help="minilm, mpnet or e5.")] = "minilm",
    disagreement: Annotated[float, typer.Option(help="Share of answers that may differ.")] = 0.02,
    texts: Annotated[int, typer.Option(min=50, help="Largest number of texts of the race.")] = 3000,
    tokens: Annotated[
        int | None, typer.Option(min=16, help="Join short texts of one class up to so many tokens.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of training and of the race.")] = 0,
    work: Annotated[Path, typer.Option(help="Folder of fine-tuned models.")] = Path("runs/models"),
    out: Annotated[Path, typer.Option(help="Folder of results.")] = Path("runs/advice"),
) -> None:
    """Race one model on fresh training texts, and evaluate choice and promise on the test texts."""
    from benchmarks.advice.measuring import measure

    hide_bars()
    folders = {"--glue-dir": glue_dir, "--text-dir": text_dir}
    found = measure(task, backbone, folders, work, disagreement, texts, seed, tokens)
    name = f"{found['task'].lower()}-{found['backbone']}-s{seed}.json"
    if tokens is not None:
        name = f"long/{tokens}-{name}"
    write_json(out / name, found)
    rows = [
        (
            row["name"],
            f"{1e3 * row['seconds']:.2f}",
            f"{100 * row['other_answers']:.2f}%",
            row["promise"] or "–",
        )
        for row in found["test"]["ways"]
    ]
    print_table(("way, on test texts", "ms", "other answers", "promised"), rows)
    print(found["sentence"], found["test"]["choice"], found["test"]["promise"])


@app.command("redraw")
def redraw_command(
    redraws: Annotated[int, typer.Option(min=2, help="Number of races.")] = 300,
    rows: Annotated[
        int, typer.Option(min=100, help="Texts of a race that choose and certify.")
    ] = 1500,
    level: Annotated[float, typer.Option(help="The promised disagreement.")] = 0.03,
    out: Annotated[Path, typer.Option(help="Folder of results.")] = Path("runs/advice"),
) -> None:
    """Repeat a race on newly drawn texts, and count how often a promise is broken."""
    from benchmarks.advice.redraws import redraw

    found = {**redraw(redraws, rows, level), "environment": environment(torch.device("cpu"))}
    write_json(out / "redraws.json", found)
    print(f"broken: any way {found['any_broken']:.3f}, the winner {found['winner_broken']:.3f}")


def main() -> None:
    """Run the command line."""
    run_app(app)
