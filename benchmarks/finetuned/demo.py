"""The demo: a classifier of generated reviews gets exits, and answers the same texts sooner.

The reviews praise or blame something under none to three nested negations (the graded task `negation`). As in real
traffic most are easy: three in five have no negation, and one in twenty has three.
"""

from __future__ import annotations

import statistics
import time
from html import escape
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import graded
from benchmarks.command_line import hide_bars
from benchmarks.figures import new_figure, svg
from benchmarks.finetuned.fine_tune import fine_tune
from benchmarks.finetuned.measuring import give_exits, on_fresh
from ponder._utils.files import replace_text
from ponder.calibration.agreement import candidates
from ponder.integrations.transformers import ExitReport

__all__ = ["demo"]

TASK = "negation"
SHARES = (0.60, 0.25, 0.10, 0.05)
"""How many reviews have none, one, two and three negations."""
TRAIN, TRAFFIC, FRESH = 2400, 4000, 1000
EPOCHS, LEARNING_RATE = 4, 2e-4


def demo(out: Path, *, backbone: str = "minilm", scale: float = 1.0, seed: int = 0) -> dict[str, Any]:
    """Fine-tune, give exits, measure; print a summary of 80 columns and write `<out>/report.html`.

    Args:
        out: Folder of the plain model, the model with exits, and the report.
        backbone: An embedded backbone, a folder, or a hub name.
        scale: Share of the default number of texts.
        seed: Seed of the texts and of training.

    Returns:
        The report of `fit_exits` as plain JSON, and under `fresh` the measurements on fresh texts.
    """
    hide_bars()
    console, begun = Console(width=80, highlight=False), time.perf_counter()
    sizes = [max(16, round(scale * size)) for size in (TRAIN, TRAFFIC, FRESH)]
    train, texts, fresh = (
        graded.traffic(TASK, split, size, SHARES, seed) for split, size in zip(graded.SPLITS, sizes, strict=True)
    )
    console.print(f"1. Fine-tune {backbone} on {len(train)} generated reviews, as you did with your own model.")
    names = list(graded.get(TASK).labels)
    own: dict[str, Any] = {"epochs": EPOCHS, "lr": LEARNING_RATE, "seed": seed}
    fine_tune(backbone, list(train["sentence1"]), list(train["label"]), names, out / "plain", **own)
    console.print(f"2. Give it exits by {len(texts)} reviews without labels: fit_exits(model, texts).")
    model, report = give_exits(out / "plain", list(texts["sentence1"]), out / "exits", disagreement=0.01, seed=seed)
    console.print(f"   {report.statement}")
    found = on_fresh(model, list(fresh["sentence1"]), list(fresh["label"]))
    levels = fresh["difficulty"]
    by_level = {
        level: statistics.fmean(s for s, of in zip(found["exit_steps"], levels, strict=True) if of == level)
        for level in sorted(set(levels))
    }
    before, after = found["seconds_plain"], found["seconds_exits"]
    means = ", ".join(f"{level}: {mean:.2f}" for level, mean in by_level.items())
    lines = (
        f"{found['rows']} fresh reviews, which nothing was chosen on: {before:.2f} s → {after:.2f} s "
        f"(×{before / after:.2f}), {100 * found['disagreement']:.2f}% other answers, accuracy "
        f"{100 * found['plain_accuracy']:.1f}% → {100 * found['exit_accuracy']:.1f}%.",
        f"Mean exit step by negations: {means} of {report.num_steps}.",
    )
    console.print(f"3. {lines[0]}\n   {lines[1]}")
    replace_text(out / "report.html", _page(backbone, report, lines, found["exit_steps"], list(levels)))
    console.print(f"   Took {time.perf_counter() - begun:.0f} s. Now open {out / 'report.html'}", markup=False)
    return {**report.to_dict(), "fresh": {**found, "mean_exit_step_by_difficulty": by_level}}


def _page(backbone: str, report: ExitReport, lines: tuple[str, ...], steps: list[int], levels: list[int]) -> str:
    shown = {
        "Promise": report.statement,
        "Policy": report.policy,
        "On fresh reviews": lines[0],
        "By difficulty": lines[1],
        "Reviews": f"{report.fitted} to learn, {report.chosen_on} to choose, {report.certified_on} to certify",
    }
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in shown.items())
    drawn = _figure(report, steps, levels)
    style = (
        "body{font:16px sans-serif;max-width:60em;margin:2em auto}th{text-align:left;padding-right:1em}svg{width:100%}"
    )
    title = f"{backbone} with exits"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>{style}</style>'
        f"<h1>{escape(title)}</h1><table>{rows}</table>{drawn[drawn.index('<svg') :]}</html>\n"
    )


def _figure(report: ExitReport, steps: list[int], levels: list[int]) -> str:
    """Draw the share of the reviews at each exit by their negations, and other answers against the mean exit step."""
    figure, num_steps = new_figure(10, 3.6), report.num_steps
    left, right = figure.subplots(1, 2)
    bottom = [0.0] * num_steps
    for level in sorted(set(levels)):
        own = [step for step, of in zip(steps, levels, strict=True) if of == level]
        shares = [own.count(step) / len(steps) for step in range(1, num_steps + 1)]
        left.bar(range(1, num_steps + 1), shares, bottom=bottom, label=f"{level} negations")
        bottom = [low + share for low, share in zip(bottom, shares, strict=True)]
    left.set(xlabel="exit step", ylabel="share of the fresh reviews")
    left.legend()
    for like, values in candidates(report.certifying)[:4]:
        curve = report.certifying.sweep(like, values)
        other = [100 * (1 - point.agreement) for point in curve.points]
        name = type(curve.family.policy).__name__
        right.plot([point.mean_exit_step for point in curve.points], other, ".-", label=name)
    right.set(xlabel="mean exit step", ylabel="other answers than full depth, in percent", ylim=(0, 10))
    right.legend()
    return svg(figure, "demo")
