"""The command line, `python -m benchmarks.rerank train|race`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.command_line import hide_bars, print_table, run_app

__all__ = ["app", "main"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
Task = Annotated[
    str,
    typer.Option(help="Banking77 or CLINC150: names of labels; RTE or QNLI: sentences, by BM25."),
]
Data = Annotated[Path, typer.Option(help="Folder of the task's data.")]
Backbone = Annotated[str, typer.Option(help="minilm or mpnet.")]
Models = Annotated[Path, typer.Option(help="Folder of the models.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of texts and training.")]
Train = Annotated[int, typer.Option(min=64, help="Queries that train; exits get later ones.")]

_SHOWN = ("work", "top_k", "ndcg", "ndcg_gap")


@app.callback()
def _commands() -> None:
    """Rerank: candidates that leave early, beside a cut pool and a cut encoder."""


@app.command("train")
def train_command(
    task: Task,
    data: Data,
    backbone: Backbone = "minilm",
    models: Models = Path("runs/rerank"),
    train: Train = 3000,
    layers: Annotated[int, typer.Option(min=1, help="Layers of the cut encoder.")] = 3,
    seed: Seed = 0,
) -> None:
    """Train a cross encoder, and a cut one, taught by it; what is there is kept."""
    from benchmarks.rerank import training
    from benchmarks.rerank.data import load

    hide_bars()
    queries = load(task, data, seed, train=True).cut(0, train)
    folder = models / f"{task.lower()}-{backbone}-s{seed}"
    whole = folder / "whole"
    short = folder / f"cut{layers}"
    lr = 5e-5 if backbone == "mpnet" else 2e-4
    if not (whole / "config.json").exists():
        training.train(backbone, queries, whole, epochs=1, lr=lr, seed=seed, bf16=True)
    if not (short / "config.json").exists():
        training.cut(whole, layers, queries, short, epochs=1, lr=lr, seed=seed, bf16=True)


@app.command("race")
def race_command(
    task: Task,
    data: Data,
    backbone: Backbone = "minilm",
    models: Models = Path("runs/rerank"),
    k: Annotated[int, typer.Option("--top-k", min=1, help="How many candidates are wanted.")] = 10,
    fit: Annotated[
        int, typer.Option(min=50, help="Training queries that the model did not see, for exits.")
    ] = 400,
    test: Annotated[int, typer.Option(min=20, help="Test queries.")] = 300,
    train: Train = 3000,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="Folder of results.")] = Path("runs/rerank/results"),
) -> None:
    """Compare exits of candidates with cut pools and cut encoders, by changes and costs."""
    from benchmarks.rerank.race import race

    hide_bars()
    found = race(
        task,
        data,
        models,
        out,
        backbone=backbone,
        k=k,
        fit=fit,
        test=test,
        train=train,
        seed=seed,
        say=typer.echo,
    )
    print_table(
        (
            "way",
            "setting",
            "seconds a query",
            "pair-layers",
            "other top k",
            "nDCG lost",
            "against labels",
        ),
        [
            (
                one["way"],
                f"{one['setting']:g}",
                f"{one['seconds']:.3f}",
                *(f"{one.get(n, 0.0):.4f}" for n in _SHOWN),
            )
            for one in found["seconds"]
        ],
    )


@app.command("clock")
def clock_command(
    task: Task,
    data: Data,
    backbone: Backbone = "minilm",
    models: Models = Path("runs/rerank"),
    k: Annotated[int, typer.Option("--top-k", min=1, help="How many candidates are wanted.")] = 10,
    queries: Annotated[int, typer.Option(min=3, help="Test queries.")] = 60,
    train: Train = 3000,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="Folder of results.")] = Path("runs/rerank/results"),
) -> None:
    """Time `rank`, Sentence Transformers, exports and int8, and count the time limits that are kept."""
    from benchmarks.rerank import clock

    hide_bars()
    folder = models / f"{task.lower()}-{backbone}-s{seed}"
    found = clock.clock(task, data, folder, out, k=k, queries=queries, train=train, seed=seed)
    rows = [
        (way, f"{one['seconds']:.3f}", f"{one['changed']:.1%}")
        for way, one in found["ways"].items()
    ]
    print_table(("way", "seconds a query", "other top k"), rows)
    budgets = [tuple(f"{value:.3f}" for value in one.values()) for one in found["budgets"]]
    print_table(tuple(found["budgets"][0]), budgets)


def main() -> None:
    """Run the command line."""
    run_app(app)
