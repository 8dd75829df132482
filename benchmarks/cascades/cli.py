"""The command line, `python -m benchmarks.cascades run|curve|redraw`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.cascades.setting import Setting
from benchmarks.command_line import hide_bars, print_table, run_app

__all__ = ["app", "main"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
Task = Annotated[str, typer.Option(help="Banking77, CLINC150, SST-2, MRPC, …: a task with classes.")]
GlueDir = Annotated[Path | None, typer.Option(envvar="GLUE_DIR", help="Folder of GLUE's tasks.")]
TextDir = Annotated[Path | None, typer.Option(envvar="TEXT_DIR", help="Folder of the other tasks.")]
Backbone = Annotated[str, typer.Option(help="An embedded backbone, a folder, or a hub name.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of texts, training and splits.")]
Texts = Annotated[int, typer.Option(min=100, help="Training texts that the model did not learn on, at most.")]
Work = Annotated[Path, typer.Option(help="Folder of models; those that are there are not trained again.")]
Out = Annotated[Path, typer.Option(help="Folder of results.")]


@app.command("run")
def run_command(
    task: Task, glue_dir: GlueDir = None, text_dir: TextDir = None, backbone: Backbone = "minilm", seed: Seed = 0,
    texts: Texts = 10_000, work: Work = Path("runs/cascades/models"), out: Out = Path("runs/cascades"),
) -> None:  # fmt: skip
    """Exits, a cascade, exits behind it, int8 and a blind mix, beside each other at promises of 1, 2 and 5%."""
    from benchmarks.cascades.measuring import run

    setting = _setting(task, backbone, seed, (glue_dir, text_dir), work, texts)
    found = run(setting, {"backbone": backbone, "seed": seed}, out, typer.echo)
    for level, ways in found["promises"].items():
        rows = [
            (name, f"{way['other']:.2%}", f"{way['accuracy']:.2%}", *(
                f"×{way[key]['times'][1]:.2f}" if key in way else "" for key in ("batches", "alone")
            ))
            for name, way in ways.items()
        ]  # fmt: skip
        print_table((f"promised {level}", "other answers", "accuracy", "batches", "alone"), rows)


@app.command("curve")
def curve_command(
    task: Task, glue_dir: GlueDir = None, text_dir: TextDir = None, backbone: Backbone = "minilm", seed: Seed = 0,
    texts: Texts = 10_000, work: Work = Path("runs/cascades/models"), out: Out = Path("runs/cascades"),
) -> None:  # fmt: skip
    """How many texts teach exits and students, and what stands in for texts that are not there."""
    from benchmarks.cascades.curve import run

    setting = _setting(task, backbone, seed, (glue_dir, text_dir), work, texts)
    found = run(setting, {"backbone": backbone, "seed": seed}, out, typer.echo)
    print_table(tuple(found["points"][0]), [tuple(point.values()) for point in found["points"]])


@app.command("redraw")
def redraw_command(
    task: Task, glue_dir: GlueDir = None, text_dir: TextDir = None, backbone: Backbone = "minilm", seed: Seed = 0,
    texts: Texts = 10_000, work: Work = Path("runs/cascades/models"), out: Out = Path("runs/cascades"),
    draws: Annotated[int, typer.Option(min=2, help="Sets of texts that choose and certify.")] = 1000,
    taught: Annotated[int, typer.Option(min=0, help="Of these, those with a student of their own.")] = 100,
) -> None:  # fmt: skip
    """Count broken promises over many draws, where policy, thresholds and, of some, the student are made anew."""
    from benchmarks.cascades.redraws import run

    setting = _setting(task, backbone, seed, (glue_dir, text_dir), work, texts)
    found = run(setting, {"backbone": backbone, "seed": seed, "draws": draws, "taught": taught}, out)
    print_table(tuple(found["outcomes"][0]), [tuple(outcome.values()) for outcome in found["outcomes"]])


def _setting(
    task: str, backbone: str, seed: int, folders: tuple[Path | None, Path | None], work: Path, texts: int
) -> Setting:
    hide_bars()
    named = dict(zip(("--glue-dir", "--text-dir"), folders, strict=True))
    return Setting.read(task, backbone, seed, named, work, texts)


def main() -> None:
    """Run the command line."""
    run_app(app)
