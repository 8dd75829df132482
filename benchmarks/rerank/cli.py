"""The command line, `python -m benchmarks.rerank train|race`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.command_line import hide_bars, run_app

__all__ = ["app", "main"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
Task = Annotated[str, typer.Option(help="Banking77 or CLINC150.")]
TextDir = Annotated[Path, typer.Option(envvar="TEXT_DIR", help="Folder of the texts.")]
Models = Annotated[Path, typer.Option(help="Folder of the models.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of texts and training.")]
Train = Annotated[int, typer.Option(min=64, help="Queries that train; exits get later ones.")]


@app.callback()
def _commands() -> None:
    """Rerank label names: candidates that leave early, beside a cut pool and a cut encoder."""


@app.command("train")
def train_command(
    task: Task,
    text_dir: TextDir,
    models: Models = Path("runs/rerank"),
    train: Train = 3000,
    layers: Annotated[int, typer.Option(min=1, help="Layers of the cut encoder.")] = 2,
    seed: Seed = 0,
) -> None:
    """Train a cross encoder on MiniLM, and a cut one, taught by it; what is there is kept."""
    from benchmarks.rerank import data, training

    hide_bars()
    queries = data.load(task, text_dir, "train", seed).cut(0, train)
    whole, short = (models / f"{task.lower()}-s{seed}" / name for name in ("whole", f"cut{layers}"))
    if not (whole / "config.json").exists():
        training.train("minilm", queries, whole, epochs=1, lr=2e-4, seed=seed, bf16=True)
    if not (short / "config.json").exists():
        half = queries.cut(0, train // 2)
        training.cut(whole, layers, "minilm", half, short, epochs=1, lr=2e-4, seed=seed, bf16=True)


def main() -> None:
    """Run the command line."""
    run_app(app)
