"""The command line, `python -m benchmarks.finetuned demo|run`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.command_line import hide_bars, print_table, run_app

__all__ = ["app", "main"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
Backbone = Annotated[str, typer.Option(help="An embedded backbone, a folder, or a hub name.")]
Seed = Annotated[
    int, typer.Option(min=0, max=2**32 - 1, help="Seed of texts, training and splits.")
]


@app.callback()
def _commands() -> None:
    """Fit exits to fine-tuned classifiers, and measure them on fresh texts."""


@app.command("demo")
def demo_command(
    out: Annotated[Path, typer.Option(help="Folder of model, texts and winner.")] = Path("demo"),
    data: Annotated[
        Path | None, typer.Option(help="Folder with Banking77; reviews are generated without.")
    ] = None,
    backbone: Backbone = "minilm",
    scale: Annotated[
        float, typer.Option(min=0.01, max=10.0, help="Share of the default number of texts.")
    ] = 1.0,
    seed: Seed = 0,
) -> None:
    """Fine-tune a classifier, and run `ponder advise` on texts on which it was not trained."""
    from benchmarks.finetuned.demo import demo

    demo(out, data=data, backbone=backbone, scale=scale, seed=seed)


@app.command("run")
def run_command(
    task: Annotated[
        str, typer.Option(help="SST-2, CoLA, Banking77, …: a task of single texts with classes.")
    ],
    glue_dir: Annotated[
        Path | None, typer.Option(envvar="GLUE_DIR", help="Folder of GLUE's tasks.")
    ] = None,
    text_dir: Annotated[
        Path | None, typer.Option(envvar="TEXT_DIR", help="Folder of the other tasks.")
    ] = None,
    backbone: Backbone = "minilm",
    train: Annotated[
        int, typer.Option(min=16, help="Training texts that fine-tune, at most.")
    ] = 6000,
    texts: Annotated[
        int, typer.Option(min=50, help="Other training texts, which the exits get.")
    ] = 3000,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of fine-tuning.")] = 1,
    lr: Annotated[float, typer.Option(help="Learning rate of fine-tuning.")] = 1e-4,
    bf16: Annotated[bool, typer.Option("--bf16", help="Fine-tune in bfloat16.")] = False,
    disagreement: Annotated[float, typer.Option(help="How often answers may differ.")] = 0.01,
    seed: Seed = 0,
    work: Annotated[Path, typer.Option(help="Folder of models.")] = Path("runs/finetuned"),
    out: Annotated[Path, typer.Option(help="Folder of results.")] = Path("runs/finetuned/results"),
) -> None:
    """Fine-tune on some training texts of a task, fit exits on others, and evaluate on test texts."""
    from benchmarks.finetuned.measuring import run

    hide_bars()
    settings = {"train": train, "texts": texts, "epochs": epochs, "lr": lr, "bf16": bf16}
    settings |= {"disagreement": disagreement, "seed": seed}
    result = run(
        task, backbone, settings, {"--glue-dir": glue_dir, "--text-dir": text_dir}, work, out
    )
    print_table(
        ("on fresh texts", result["task"]),
        [(name, f"{value:.4g}") for name, value in result["test"].items()],
    )
    print(result["exits"]["statement"])


def main() -> None:
    """Run the command line."""
    run_app(app)
