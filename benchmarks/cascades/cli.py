"""The command line, `python -m benchmarks.cascades run|curve|redraws`."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from benchmarks.command_line import hide_bars, print_table, run_app

__all__ = ["app", "main"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def cascades_command(
    what: Annotated[
        Literal["run", "curve", "redraws", "words"],
        typer.Argument(
            help="run: exits, a cascade, both, int8 and a blind mix, under promises of 1, 2 and 5%; "
            "curve: savings by the number of texts; redraws: broken promises in 1,000 draws; "
            "words: TF-IDF with logistic regression, for tasks separated by commas."
        ),
    ],
    task: Annotated[
        str, typer.Option(help="Banking77, CLINC150, SST-2, MRPC, …: a task with classes.")
    ],
    glue_dir: Annotated[
        Path | None, typer.Option(envvar="GLUE_DIR", help="Folder of GLUE's tasks.")
    ] = None,
    text_dir: Annotated[
        Path | None, typer.Option(envvar="TEXT_DIR", help="Folder of the other tasks.")
    ] = None,
    backbone: Annotated[
        str, typer.Option(help="An embedded backbone, a folder, or a hub name.")
    ] = "minilm",
    seed: Annotated[int, typer.Option(min=0, help="Seed of texts, training and splits.")] = 0,
    texts: Annotated[
        int,
        typer.Option(min=100, help="Largest number of texts on which the model was not trained."),
    ] = 10_000,
    work: Annotated[
        Path, typer.Option(help="Folder of models; models that are there are used.")
    ] = Path("models"),
    out: Annotated[Path, typer.Option(help="Folder of results.")] = Path("runs/cascades"),
) -> None:
    """Measure cascades of a student and a fine-tuned model."""
    from benchmarks.cascades.setting import Setting

    hide_bars()
    folders = {"--glue-dir": glue_dir, "--text-dir": text_dir}
    module = import_module(f"benchmarks.cascades.{'measuring' if what == 'run' else what}")
    found: dict[str, Any]
    if what == "words":
        found = module.run(task.split(","), folders, out)
    else:
        setting = Setting.read(task, backbone, seed, folders, work, texts)
        found = module.run(setting, {"backbone": backbone, "seed": seed}, out)
    for title, rows in found.get("promises", {what: found.get("rows")}).items():
        if isinstance(rows, dict):
            rows = [{"way": name, **_flat(way)} for name, way in rows.items()]
        columns: dict[str, None] = {}
        for row in rows:
            columns |= dict.fromkeys(row)
        cells = [[_text(row.get(name, "")) for name in columns] for row in rows]
        print_table(list(columns), cells, title)


def _flat(way: dict[str, Any]) -> dict[str, Any]:
    return {name: f"×{v['times'][1]:.2f}" if isinstance(v, dict) else v for name, v in way.items()}


def _text(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def main() -> None:
    """Run the command line."""
    run_app(app)
