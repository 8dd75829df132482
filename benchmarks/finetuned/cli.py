"""The command line, `python -m benchmarks.finetuned demo|run`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.command_line import MAX_SEED, check_folder, run_app
from benchmarks.finetuned import demo as demonstration
from benchmarks.finetuned.run import run

__all__ = ["app", "main"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
Backbone = Annotated[str, typer.Option(help="An embedded backbone, a folder, or a hub name.")]
Seed = Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of texts, training and splits.")]


@app.callback()
def _commands() -> None:
    """Give fine-tuned classifiers exits, and measure them on texts that neither training nor exits have seen."""


@app.command("demo")
def demo_command(
    out: Annotated[Path, typer.Option(help="Folder of models and report.")] = Path("demo"),
    backbone: Backbone = "minilm",
    scale: Annotated[float, typer.Option(min=0.01, max=10.0, help="Share of the default number of texts.")] = 1.0,
    seed: Seed = 0,
) -> None:
    """A classifier of generated reviews gets exits: a promise, and the seconds that they save."""
    demonstration.demo(out, backbone=backbone, scale=scale, seed=seed)


@app.command("run")
def run_command(
    task: Annotated[str, typer.Option(help="SST-2, CoLA, Banking77, …: a task of single texts with classes.")],
    glue_dir: Annotated[Path | None, typer.Option(envvar="GLUE_DIR", help="Folder of GLUE's tasks.")] = None,
    text_dir: Annotated[Path | None, typer.Option(envvar="TEXT_DIR", help="Folder of the other tasks.")] = None,
    backbone: Backbone = "minilm",
    train: Annotated[int, typer.Option(min=16, help="Training texts that fine-tune, at most.")] = 6000,
    texts: Annotated[int, typer.Option(min=50, help="Other training texts, which the exits get.")] = 3000,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of fine-tuning.")] = 1,
    lr: Annotated[float, typer.Option(help="Learning rate of fine-tuning.")] = 1e-4,
    bf16: Annotated[bool, typer.Option("--bf16", help="Fine-tune in bfloat16, where the processor has it.")] = False,
    disagreement: Annotated[float, typer.Option(help="How often answers may differ.")] = 0.01,
    deep: Annotated[bool, typer.Option("--deep", help="Let the encoder learn too.")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="Export to int8 as well.")] = False,
    kept: Annotated[
        Path | None,
        typer.Option(
            help="Folder of a kept BERT (glue run --keep-model); exits then get a part of the reported texts."
        ),
    ] = None,
    seed: Seed = 0,
    work: Annotated[Path, typer.Option(help="Folder of models.")] = Path("runs/finetuned"),
    out: Annotated[
        Path, typer.Option(help="Folder of results; of the committed ones where left out.", show_default=False)
    ] = Path("benchmarks/results/finetuned"),
) -> None:
    """Fine-tune on a part of a task's training texts, fit exits on others, and hold both against the labelled ones."""
    check_folder("--glue-dir", glue_dir)
    check_folder("--text-dir", text_dir)
    check_folder("--kept", kept)
    settings = {
        "train": train,
        "texts": texts,
        "epochs": epochs,
        "lr": lr,
        "bf16": bf16,
        "disagreement": disagreement,
        "seed": seed,
    }
    folders = {"--glue-dir": glue_dir, "--text-dir": text_dir}
    run(task, backbone, settings, folders, work, out, deep=deep, int8=int8, kept=kept)


def main() -> None:
    """Run the command line."""
    run_app(app)
