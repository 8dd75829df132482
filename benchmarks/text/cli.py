"""The command line, `python -m benchmarks.text`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.checksum import is_intact
from benchmarks.command_line import MAX_SEED, check_folder, check_writable, parse_policy, run_app
from benchmarks.terminal import hide_bars, is_watched, print_table
from benchmarks.text.tagging import FORMAT, TaggingConfig, recipe_of, run
from ponder._utils.files import read_json, write_json
from ponder.errors import ArgumentError, DataError
from ponder.recipes import Recipe

__all__ = ["app", "main"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
_DEFAULT = TaggingConfig()


@app.callback()
def _commands() -> None:
    """Fine-tune and score token classification with early exits."""


@app.command("run")
def run_command(
    task: Annotated[str, typer.Argument(help="wnut17; intents are tasks of benchmarks.glue.")],
    text_dir: Annotated[
        Path | None, typer.Option(envvar="TEXT_DIR", help="The folder that holds the folder wnut17.")
    ] = None,
    recipe: Annotated[str, typer.Option(help="A recipe, for example palbert.")] = _DEFAULT.recipe,
    policy: Annotated[str | None, typer.Option(help="An exit policy, for example confidence:threshold=0.9.")] = None,
    backbone: Annotated[str, typer.Option(help="minilm, mpnet, a folder, or a hub name.")] = _DEFAULT.backbone,
    seed: Annotated[int, typer.Option(min=0, max=min(MAX_SEED, 2**32 - 1), help="Seed of weights and order.")] = 0,
    epochs: Annotated[int, typer.Option(help="Epochs of each stage.")] = _DEFAULT.epochs,
    lr: Annotated[float, typer.Option(help="Learning rate of the encoder.")] = _DEFAULT.lr,
    head_lr: Annotated[float, typer.Option(help="Learning rate of the heads.")] = _DEFAULT.head_lr,
    lambda_lr: Annotated[
        float, typer.Option(help="Learning rate of the Lambda head, where the recipe has one for it.")
    ] = _DEFAULT.lambda_lr,
    batch_size: Annotated[int, typer.Option(help="Sentences a step.")] = _DEFAULT.batch_size,
    max_length: Annotated[int, typer.Option(help="Pieces of words; longer sentences are cut.")] = _DEFAULT.max_length,
    max_train: Annotated[int | None, typer.Option(help="Train on the first so many sentences.")] = None,
    bf16: Annotated[bool, typer.Option("--bf16", help="Train under bfloat16 autocast.")] = False,
    out: Annotated[Path, typer.Option(help="Folder of results.")] = Path("runs/text"),
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bars; a pipe or a log has none anyhow.")] = False,
) -> None:
    """Train one recipe and write one JSON result; a result that is there already is shown again."""
    if task != "wnut17":
        raise ArgumentError(
            "task",
            expected="wnut17",
            got=repr(task),
            remedy="Intents (Banking77, CLINC150) are run by python -m benchmarks.glue run --task Banking77.",
        )
    config = TaggingConfig(
        recipe=recipe,
        policy=None if policy is None else parse_policy(policy).to_dict(),
        backbone=backbone,
        seed=seed,
        epochs=epochs,
        lr=lr,
        head_lr=head_lr,
        lambda_lr=lambda_lr,
        batch_size=batch_size,
        max_length=max_length,
        max_train=max_train,
        bf16=bf16,
    )
    check_folder("--text-dir", text_dir)
    check_writable(out)
    path = out / f"{config.key}.json"
    if path.exists():
        print(f"{path} was there already (with other data, pass another --out).\n")
    else:
        hide_bars()
        write_json(path, run(config, text_dir, progress=is_watched() and not quiet))
    _tell(_checked(path, config))
    print(f"\nResult: {path}")


def _checked(path: Path, config: TaggingConfig) -> dict[str, Any]:
    """The result of a run, as it was written.

    Raises:
        DataError: It was changed since, or is of something else, or of the recipe as it was before it changed.
    """
    found = read_json(path)
    own = dataclasses.asdict(config)
    if found.get("format") != FORMAT or not is_intact(found) or {**own, **found["config"]} != own:
        raise DataError(
            f"{path}: expected the result of this run as it was written, of the format {FORMAT!r}; got something else. "
            "Move it away, and run again."
        )
    now = recipe_of(config, found["num_steps"]).to_dict()
    if "recipe_fields" in found:
        then = Recipe.from_dict(found["recipe_fields"]).to_dict()  # with the fields that were added since
        then.pop("tuned_for")  # it is scaled
    else:  # results of before tell the policy alone
        then = {} if config.policy is not None else {"policy": found["policy"]}
    changed = {name: {"then": value, "now": now[name]} for name, value in then.items() if value != now[name]}
    if changed:
        raise DataError(
            f"{path}: expected a result of the recipe {config.recipe!r} as it is; got one of it as it was, {changed}. "
            "Move it away, and run again."
        )
    return found


def _tell(result: dict[str, Any]) -> None:
    test = result["splits"]["test"]
    shown = [(f"all at step {step}", f"{step}", f"{f1:.3f}") for step, f1 in enumerate(test["per_step"], start=1)]
    for name, at in (("the recipe's policy", test["exits"]), ("a threshold chosen on dev", test["exits_by_dev"])):
        if at is not None:
            shown.append((name, f"{at['mean_exit_step']:.2f}", f"{at['f1']:.3f}"))
    print_table(("exits by", "mean step", "entity F1 on test"), shown)


def main() -> None:
    """Run the command line."""
    run_app(app)
