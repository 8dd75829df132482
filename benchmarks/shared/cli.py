"""The command line, `python -m benchmarks.shared`, which makes the backbone `shared`."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.command_line import bar, hide_bars, run_app

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
TASKS = ("SST-2", "CoLA", "MRPC", "RTE", "STS-B", "Banking77", "CLINC150")
"""Their training texts, without labels, are what the teacher is watched on."""


@app.command()
def shared_command(
    glue_dir: Annotated[Path, typer.Option(envvar="GLUE_DIR", help="Folder of GLUE's tasks.")],
    text_dir: Annotated[
        Path, typer.Option(envvar="TEXT_DIR", help="Folder of banking77 and clinc150.")
    ],
    teacher: Annotated[
        str, typer.Option(help="A BERT: an embedded backbone, a folder, or a hub name.")
    ] = "minilm",
    updates: Annotated[
        int, typer.Option(min=1, help="Batches of 64; 5,000 take an hour of one core.")
    ] = 5000,
    tasks: Annotated[str, typer.Option(help="Tasks whose training texts are used.")] = ",".join(
        TASKS
    ),
    out: Annotated[
        Path | None, typer.Option(help="Its folder; in the cache of backbones where not given.")
    ] = None,
) -> None:
    """Train one BERT layer, applied N times, to predict the hidden states of a teacher of N layers."""
    from benchmarks import backbones
    from benchmarks import tasks as registry
    from benchmarks.shared.encoder import teach

    hide_bars()
    texts = dict[str, None]()
    for task in map(registry.get, tasks.split(",")):
        folder = {"--glue-dir": glue_dir, "--text-dir": text_dir}[task.folder_option]
        rows = task.load(folder, ["train"])["train"]
        columns = [name for name in ("sentence1", "sentence2") if name in rows.column_names]
        texts |= dict.fromkeys(text for name in columns for text in rows[name] if text.strip())
    shuffled = list(texts)
    random.Random(0).shuffle(shuffled)
    target = backbones.cache() / "shared" if out is None else out
    with bar("shared", updates) as advance:
        loss = teach(str(backbones.resolve(teacher)), shuffled, updates, target, advance)
    print(f"{target}: {len(shuffled):,} texts, {updates:,} updates, last loss {loss:.4f}")


def main() -> None:
    """Run the command line."""
    import torch

    torch.set_float32_matmul_precision(
        "medium"
    )  # a third less time; under autocast the loss stays half as high again
    run_app(app)
