"""The command line, `python -m benchmarks.rerank train|race`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.command_line import hide_bars, print_table, run_app

__all__ = ["app", "main"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
Task = Annotated[str, typer.Option(help="Banking77 or CLINC150.")]
TextDir = Annotated[Path, typer.Option(envvar="TEXT_DIR", help="Folder of the texts.")]
Models = Annotated[Path, typer.Option(help="Folder of the models.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of texts and training.")]
Train = Annotated[int, typer.Option(min=64, help="Queries that train; exits get later ones.")]

_SHOWN = ("work", "top_k", "ndcg", "ndcg_gap")


@app.callback()
def _commands() -> None:
    """Rerank label names: candidates that leave early, beside a cut pool and a cut encoder."""


@app.command("train")
def train_command(
    task: Task,
    text_dir: TextDir,
    models: Models = Path("runs/rerank"),
    train: Train = 3000,
    layers: Annotated[int, typer.Option(min=1, help="Layers of the cut encoder.")] = 3,
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
        training.cut(whole, layers, "minilm", queries, short, epochs=1, lr=2e-4, seed=seed, bf16=True)


@app.command("race")
def race_command(
    task: Task,
    text_dir: TextDir,
    models: Models = Path("runs/rerank"),
    k: Annotated[int, typer.Option("--top-k", min=1, help="How many candidates are wanted.")] = 10,
    fit: Annotated[int, typer.Option(min=50, help="Training queries that the model did not see, for exits.")] = 400,
    test: Annotated[int, typer.Option(min=20, help="Test queries.")] = 300,
    train: Train = 3000,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="Folder of results.")] = Path("runs/rerank/results"),
) -> None:
    """Hold candidates that leave early against cut pools and cut encoders, by what they change and what they cost."""
    from benchmarks.rerank.race import race

    hide_bars()
    found = race(task, text_dir, models, out, k=k, fit=fit, test=test, train=train, seed=seed, say=typer.echo)
    print_table(
        ("way", "setting", "seconds a query", "pair-layers", "other top k", "nDCG lost", "against labels"),
        [
            (one["way"], f"{one['setting']:g}", f"{one['seconds']:.3f}", *(f"{one.get(n, 0.0):.4f}" for n in _SHOWN))
            for one in found["seconds"]
        ],
    )


@app.command("clock")
def clock_command(
    task: Task,
    text_dir: TextDir,
    models: Models = Path("runs/rerank"),
    k: Annotated[int, typer.Option("--top-k", min=1, help="How many candidates are wanted.")] = 10,
    queries: Annotated[int, typer.Option(min=3, help="Test queries.")] = 60,
    train: Train = 3000,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="Folder of results.")] = Path("runs/rerank/results"),
) -> None:
    """Time `rank` of the raced model beside Sentence Transformers, exports and int8, and count the budgets kept."""
    from benchmarks.rerank import clock

    hide_bars()
    folder = models / f"{task.lower()}-s{seed}"
    found = clock.clock(task, text_dir, folder, out, k=k, queries=queries, train=train, seed=seed)
    rows = [(way, f"{one['seconds']:.3f}", f"{one['changed']:.1%}") for way, one in found["ways"].items()]
    print_table(("way", "seconds a query", "other top k"), rows)
    budgets = [tuple(f"{value:.3f}" for value in one.values()) for one in found["budgets"]]
    print_table(tuple(found["budgets"][0]), budgets)


def main() -> None:
    """Run the command line."""
    run_app(app)
