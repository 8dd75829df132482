"""Whether examples differ in how far they should go, and whether a model can tell them apart."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from benchmarks.glue.report.groups import Groups, of_task, ordered, task_order
from benchmarks.glue.report.page import Block, Heading, Table, Text

__all__ = ["gains_table", "optimum_table"]


def gains_table(groups: Groups) -> list[Block]:
    """How much examples differ in what going on gains them, and whether halting head or answers know it."""
    labels = ordered(name for name, _ in groups)
    rows = []
    for task in task_order(task for _, task in groups):
        for group in of_task(groups, task, labels):
            found = [split["gains"] for run in group.runs for split in run.reported if split.get("gains")]
            if found:
                mean, deviation = (statistics.fmean(each[name] for each in found) for name in ("mean", "deviation"))
                seen = [[each["halting"] for each in found], [step for each in found for step in each["unsure"] or []]]
                shown = ["–" if value is None else f"{value:+.2f}" for value in map(_mean_known, seen)]
                rows.append([task, group.label, f"{mean:+.3f}", f"{deviation:.3f}", *shown])
    if not rows:
        return []
    note = (
        "The *gain* of an example is how much its loss falls a step (least squares over the steps, on dev). Exits per "
        "example can beat one fixed step only as far as what a policy sees goes together with the gain: the last two "
        "columns are rank correlations with it, of the expected step E[n|x] of the Lambda head, and of how unsure the "
        "answer is (the mean over the steps but the last). Means over the seeds."
    )
    head = ["task", "recipe", "mean gain", "deviation over examples", "expected step and gain", "unsure and gain"]
    return [Heading("Is there something to tell apart?", 3), Text(note), Table(head, rows)]


def optimum_table(groups: Groups) -> list[Block]:
    """What Lambda heads learnt, beside what they could have learnt."""
    labels = ordered(name for name, _ in groups)
    rows = []
    for task in task_order(task for _, task in groups):
        for group in of_task(groups, task, labels):
            splits = [split for run in group.runs for split in run.reported if split.get("optimum")]
            if splits:
                found = [split["optimum"] for split in splits]
                learnt = _mean_pmf([split["halting"] for split in splits])
                blind = _mean_pmf([each["blind"] for each in found])
                spreads = [statistics.fmean(each[f"spread_{name}"] for each in found) for name in ("learnt", "oracle")]
                rows.append([task, group.label, learnt, blind, *(f"{spread:.2f}" for spread in spreads)])
    if not rows:
        return []
    note = (
        "The objective of PonderNet and PALBERT is least at p(n) exp(−ℓ_n / β), normalised, with the prior p(n) and "
        "losses ℓ_n. *Optimum, blind* is that for the mean losses over dev: the best that a head can do which cannot "
        "tell examples apart. The spreads are standard deviations over the examples of the expected step E[n|x], as "
        "the head gives it, and as one would that knew the losses of each example (*oracle*). Means over the seeds."
    )
    head = ["task", "recipe", "mean posterior, by step", "optimum, blind", "spread, learnt", "spread, oracle"]
    return [Heading("What could the Lambda head learn?", 3), Text(note), Table(head, rows)]


def _mean_pmf(found: Sequence[Sequence[float]]) -> str:
    return " ".join(f"{statistics.fmean(of_step):.2f}" for of_step in zip(*found, strict=True))


def _mean_known(values: Sequence[float | None]) -> float | None:
    """The mean of the values that are there, or None."""
    there = [value for value in values if value is not None]
    return statistics.fmean(there) if there else None
