"""The demo: vanilla, PALBERT and PABEE on the graded tasks, a table, and exits by difficulty."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, DatasetDict
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks import graded
from benchmarks.command_line import check_writable
from benchmarks.examples import load_tokenizer, tokenize
from benchmarks.glue.config import RunConfig
from benchmarks.glue.report.groups import policy_text
from benchmarks.glue.report.tables import numbers
from benchmarks.glue.results import Result
from benchmarks.glue.run import evaluate, prepare
from benchmarks.glue.training import train
from benchmarks.graded.report import write_report
from benchmarks.tasks import Task
from benchmarks.terminal import hide_bars, is_watched
from ponder.integrations.transformers import PonderForSequenceClassification

__all__ = ["RECIPES", "demo", "run_table"]

RECIPES = ("vanilla", "palbert", "pabee")
_INTRODUCTION = (
    "Each recipe fine-tuned the same encoder on texts whose difficulty is known by construction. "
    "The epoch was selected on held-out training texts; everything shown was measured on test texts."
)


class _GradedTask(Task):
    """A graded task in the form that the benchmark takes."""

    @property
    def dev_splits(self) -> tuple[str, ...]:
        """What is reported."""
        return ("test",)

    def load(self, folder: Path | None, only: Sequence[str] = ()) -> DatasetDict:
        """Generated on the spot, in its usual size."""
        return graded.load(self.name)


def demo(out: Path, *, backbone: str = "minilm", scale: float = 1.0, console: Console | None = None) -> list[Result]:
    """Train and evaluate `RECIPES` on every graded task; print a table and write `<out>/report.html`.

    Args:
        out: Folder of the report and of one JSON a run.
        backbone: An embedded backbone, a folder, or a hub name.
        scale: Share of the default number of examples.
        console: Where to print.

    Returns:
        The results, task by task.
    """
    check_writable(out)
    hide_bars()
    console, shown = console or Console(), is_watched()
    results: list[Result] = []
    exits: dict[str, dict[int, list[int]]] = {}
    data = {name: _data(name, scale) for name in graded.names()}  # all of it before any training
    for name, splits in data.items():
        task = _GradedTask(name, ("accuracy",), tuple(graded.get(name).labels))
        baseline: PonderForSequenceClassification | None = None
        for recipe in RECIPES:
            console.rule(f"{name}: {recipe}")
            config = _config(name, recipe, backbone)
            ready = prepare(config, splits)
            with tempfile.TemporaryDirectory() as work:
                trained = train(config, task, ready.pop("train"), ready["held_out"], Path(work), progress=shown)
            result, _ = evaluate(config, task, trained, ready, baseline)
            result.save(out / f"{name}-{recipe}.json")
            results.append(result)
            if baseline is None:
                baseline = trained.model
            else:
                exits[f"{name}: {recipe}"] = _exits_by_difficulty(trained.model, backbone, splits["test"])
    console.print(run_table(results))
    write_report(
        out / "report.html",
        title="ponder: how deep do texts of known difficulty go?",
        intro=_INTRODUCTION,
        rows=[_row(result) for result in results],
        exits=exits,
        num_steps=results[0]["num_steps"],
        notes=_notes(backbone, results),
    )
    console.print(f"Report: {out / 'report.html'}")
    return results


def run_table(results: Sequence[Result]) -> Table:
    """One line a run, for the terminal: scores, mean exit step, and the speed-up in steps, FLOPs and wall-clock."""
    table = Table(box=SIMPLE, pad_edge=False, collapse_padding=True)
    table.add_column("task", no_wrap=True)
    table.add_column("recipe\nand policy", overflow="fold")  # the one that gives way on a narrow terminal
    for name in ("full\ndepth", "at\nexits", "exit\nstep", "×\nsteps", "×\nFLOPs", "×\nclock"):
        table.add_column(name, justify="right", no_wrap=True)
    for result in results:
        policy = policy_text(result["policy"])
        table.add_row(result["task"], f"{result['recipe']}\n[dim]{escape(policy)}[/dim]", *numbers(result))
    return table


def _config(name: str, recipe: str, backbone: str) -> RunConfig:
    return RunConfig(
        task=name,
        recipe=recipe,
        backbone=backbone,
        epochs=graded.EPOCHS,
        lr=graded.LEARNING_RATE,
        lambda_lr=graded.LEARNING_RATE,
        held_out=0.05,
        bf16=_has_bf16(),
    )


def _data(name: str, scale: float) -> DatasetDict:
    train = max(16, round(graded.get(name).demo_examples * scale))
    test = max(16, round(graded.TEST * scale))
    splits = graded.load(name, seed=0, train=train, dev=test, test=test)
    return DatasetDict(train=splits["train"], test=splits["test"])


def _exits_by_difficulty(model: PonderForSequenceClassification, backbone: str, test: Dataset) -> dict[int, list[int]]:
    steps = model.predict(tokenize(test, load_tokenizer(backbone), 128)).exit_step.tolist()
    exits: dict[int, list[int]] = defaultdict(list)
    for difficulty, step in zip(test["difficulty"], steps, strict=True):
        exits[difficulty].append(step)
    return dict(exits)


def _row(result: Result) -> dict[str, Any]:
    test, speed = result["splits"]["test"], result["speed_up"]
    return {
        "task": result["task"],
        "recipe": result["recipe"],
        "accuracy": f"{100 * test['exits']['score']:.1f} %",
        "mean exit step": f"{test['mean_exit_step']:.2f} of {result['num_steps']}",
        "speed-up (steps)": f"×{speed['steps']:.2f}",
        "speed-up (FLOPs)": f"×{speed['flops']:.2f}",
        "speed-up (wall-clock)": f"×{speed['wall_clock']:.2f}",
    }


def _notes(backbone: str, results: list[Result]) -> list[str]:
    size = results[0]["splits"]["test"]["examples"]
    return [
        f"Backbone {backbone}; {results[0]['config']['epochs']} epochs; {size} test texts a task; one seed.",
        "Speed-ups are against the vanilla model. Wall-clock is the median of pairs timed in turn on this machine, "
        f"batches of {results[0]['speed_up']['wall_clock_batch_size']}, {torch.get_num_threads()} threads.",
    ]


def _has_bf16() -> bool:
    """Whether bfloat16 arithmetic is in hardware (without it, autocast is slower than float32)."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())
    capabilities: Any = getattr(torch.cpu, "get_capabilities", dict)()  # newer than the oldest torch we serve
    return bool(capabilities.get("avx512_bf16", False))
