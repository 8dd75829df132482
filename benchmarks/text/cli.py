"""The command line, `python -m benchmarks.text`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.command_line import hide_bars, parse_fields, parse_policy, print_table, run_app
from benchmarks.files import read_json, write_json
from benchmarks.text.tagging import TaggingConfig, run

__all__ = ["app", "main"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def _commands() -> None:
    """Fine-tune and score token classification with early exits; intents are tasks of benchmarks.glue."""


@app.command("run")
def run_command(
    task: Annotated[str, typer.Argument(help="wnut17")] = "wnut17",
    text_dir: Annotated[Path | None, typer.Option(envvar="TEXT_DIR", help="The folder that holds wnut17.")] = None,
    recipe: Annotated[str, typer.Option(help="A recipe, for example palbert.")] = "palbert",
    policy: Annotated[str | None, typer.Option(help="An exit policy, for example confidence:threshold=0.9.")] = None,
    fixed: Annotated[
        list[str] | None, typer.Option("--set", help="seed, epochs, lr, bf16, …: epochs=5, say; repeatable.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of results.")] = Path("runs/text"),
) -> None:
    """Train one recipe and write one JSON result; a result that is there already is shown again."""
    own = None if policy is None else parse_policy(policy).to_dict()
    config = TaggingConfig(recipe=recipe, policy=own, **parse_fields("--set", fixed or []))
    path = out / f"{config.key}.json"
    if not path.exists():
        hide_bars()
        write_json(path, run(config, text_dir, progress=sys.stderr.isatty()))
    _show(read_json(path))
    print(f"Result: {path}")


def _show(result: dict[str, Any]) -> None:
    test = result["splits"]["test"]
    shown = [(f"all at step {step}", f"{step}", f"{f1:.3f}") for step, f1 in enumerate(test["per_step"], start=1)]
    for name, at in (("the recipe's policy", test["exits"]), ("a threshold chosen on dev", test["exits_by_dev"])):
        if at is not None:
            shown.append((name, f"{at['mean_exit_step']:.2f}", f"{at['f1']:.3f}"))
    print_table(("exits by", "mean step", "entity F1 on test"), shown)


def main() -> None:
    """Run the command line."""
    run_app(app)
