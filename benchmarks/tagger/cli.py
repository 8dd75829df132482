"""The command line, `python -m benchmarks.tagger`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.command_line import print_table, run_app
from benchmarks.environment import environment
from benchmarks.files import write_json
from benchmarks.tagger.measuring import run

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
COLUMNS = ("rule", "layers", "seconds", "entity words changed or missed")


@app.command()
def tagger_command(
    data: Annotated[Path, typer.Option(help="Folder with train.conll, dev.conll and test.conll.")],
    backbone: Annotated[str, typer.Option(help="Encoder, as for the other benchmarks.")] = "minilm",
    epochs: Annotated[int, typer.Option(min=1, help="Passes of each stage.")] = 6,
    lr: Annotated[float, typer.Option(help="Learning rate of the encoder.")] = 2e-4,
    seed: Annotated[int, typer.Option(min=0, help="Seed of heads and order.")] = 0,
    texts: Annotated[int | None, typer.Option(min=1, help="Training texts; all if None.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of results.")] = Path("runs/tagger"),
) -> None:
    """Train a tagger with early heads; compare exits per token with a certified gate per text."""
    result = run(data, backbone, epochs, lr, seed, texts)
    write_json(out / "tagger.json", result | {"environment": environment()})
    rows = [
        (
            f"token, confidence {each['confidence']:g}",
            f"×{each['token_layers_times']:.2f}",
            "–",
            f"{each['entity_words_changed']:.1%}",
        )
        for each in result["per_token"]
    ]
    rows += [
        (
            f"gate, at most {each['level']:.0%} of texts missed",
            f"×{each['layers_times']:.2f}",
            f"×{each['seconds_times']:.2f}",
            f"{each['entity_words_missed']:.1%}",
        )
        for each in result["gates"]
        if each["certified"]
    ]
    print_table(COLUMNS, rows)
    print(f"Result: {out / 'tagger.json'}")


def main() -> None:
    """Run the command line."""
    run_app(app)
