"""`report.html`: an outcome as a page, with the figure and the changed texts of a policy."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from ponder._utils.files import replace_text
from ponder._utils.rows import Text, one_line
from ponder.calibration.certifying import Candidate, certainties
from ponder.calibration.records import Record
from ponder.calibration.sweeps import sweep
from ponder.cli.outcome import DataTable, Outcome
from ponder.policies import ExitPolicy, FixedStep

__all__ = ["changed_texts", "policy_figure", "student_figure", "write_page"]

_MOST = 50
"""Changed texts that are listed."""
_LEAST = 2.0
"""Percent of other answers that the axis covers at least."""
_GREY = "#595959"


def write_page(path: Path, outcome: Outcome, made: Mapping[str, str]) -> None:
    """Write an outcome as a page; `made` holds the time, the machine and the version."""
    svg = Markup()
    if outcome.figure is not None:
        file = io.StringIO()
        outcome.figure.savefig(file, format="svg", metadata={"Date": None})
        text = file.getvalue()
        svg = Markup(text[text.index("<svg") :])  # without the XML declaration
    templates = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    page = templates.get_template("page.html.jinja")
    replace_text(path, page.render(outcome=outcome, figure=svg, made=made))


def changed_texts(
    record: Record,
    policy: ExitPolicy,
    texts: Sequence[Text],
    names: Sequence[str],
    step: str = "exit step",
) -> DataTable:
    """Return the texts of a record to which a policy gives another answer than full depth.

    Args:
        record: The full-depth run.
        policy: The policy.
        texts: The texts of its rows.
        names: Names of the classes.
        step: Heading of the column of exit steps.
    """
    steps = record.exit_steps(policy)
    answers = np.asarray(record.outputs).argmax(axis=-1)
    at_exit = answers[np.arange(len(steps)), steps - 1]
    full_depth = answers[:, -1]
    changed = np.flatnonzero(at_exit != full_depth).tolist()
    rows: list[tuple[str, ...]] = []
    for row in changed[:_MOST]:
        before = str(names[full_depth[row]])
        after = str(names[at_exit[row]])
        rows.append((one_line(texts[row]), before, after, str(steps[row])))
    note = f"{len(changed)} of {len(steps)}."
    if not changed:
        note = f"None of {len(steps)}."
    if len(changed) > _MOST:
        note = f"{len(changed)} of {len(steps)}; the first {_MOST}."
    columns = ("text", "answer now", "here", step)
    return DataTable("Texts whose answer changed", columns, rows, note)


def policy_figure(record: Record, policy: ExitPolicy, level: float | None) -> Figure:
    """Draw the share of other answers against the mean exit step, a line for each kind of policy.

    Args:
        record: The full-depth run that certified.
        policy: The policy that was chosen.
        level: The level that it promises; None without a promise.
    """
    steps = record.exit_steps(policy)
    agrees = record.agreement()[np.arange(len(steps)), steps - 1]
    mean_step = float(np.mean(steps))
    chosen = _Point(mean_step, 100 * float(1.0 - agrees.mean()), f"at exit step {mean_step:.2f}")
    figure = Figure(figsize=(7.2, 4.0), layout="constrained")
    axes: Axes = figure.subplots()
    fixed: Candidate = (FixedStep, range(record.num_steps, 0, -1))
    for like, values in [fixed, *certainties(record)]:
        curve = sweep(record, like, values)
        mean_steps = [point.mean_exit_step for point in curve.points]
        other = [100 * (1 - point.agreement) for point in curve.points]
        name = type(curve.family.policy).__name__
        axes.plot(mean_steps, other, marker="o" if name == "FixedStep" else None, label=name)
    _mark(axes, chosen, level)
    axes.set(xlim=(1.0, record.num_steps + 0.05), xlabel="mean exit step")

    def inverted(values: ArrayLike) -> ArrayLike:
        """Return speed-ups from mean exit steps, or mean exit steps from speed-ups."""
        return record.num_steps / np.maximum(values, 1e-3)

    # The function is its own inverse.
    axes.secondary_xaxis("top", functions=(inverted, inverted)).set_xlabel("× in steps")
    axes.legend(fontsize=9)
    return figure


def student_figure(record: Record, policy: ExitPolicy, level: float | None) -> Figure:
    """Draw the share of other answers against the share of texts that a student answers.

    Each kind of certainty is a line over its thresholds. Arguments are those of `policy_figure`.
    """
    steps = record.exit_steps(policy)
    differs = 1.0 - record.agreement()
    at_exits = differs[np.arange(len(steps)), steps - 1]
    share = 100 * float((steps == 1).mean())
    chosen = _Point(share, 100 * float(at_exits.mean()), f"with {share:.0f}% of the texts")
    figure = Figure(figsize=(7.2, 4.0), layout="constrained")
    axes: Axes = figure.subplots()
    shares = np.linspace(0.0, 1.0, 101)
    for kind, _ in certainties(record):
        scores = np.asarray(kind.scores(record))[:, 0]
        order = np.argsort(-scores, kind="stable")
        wrong = np.append(0.0, np.cumsum(differs[order, 0]))  # if so many texts are answered
        answered = np.rint(shares * len(order)).astype(int)
        other = wrong[answered] / len(order)
        axes.plot(100 * shares, 100 * other, label=type(kind).__name__)
    _mark(axes, chosen, level)
    axes.set(xlim=(0.0, 101.0), xlabel="texts that the student answers, %")
    axes.legend(fontsize=9)
    return figure


@dataclass(frozen=True)
class _Point:
    """The chosen policy in a figure.

    Args:
        x: Its place on the horizontal axis.
        other: Percent of other answers.
        where: The place in words.
    """

    x: float
    other: float
    where: str


def _mark(axes: Axes, chosen: _Point, level: float | None) -> None:
    """Draw the promise and the chosen point, and fit the axis of other answers to them."""
    highest = max(_LEAST, 3 * chosen.other)
    if level is not None:
        percent = 100 * level
        highest = max(highest, 2 * percent)
        label = f"promised: {percent:.3g}%"
        axes.axhline(percent, color=_GREY, linestyle="--", label=label)
    label = f"chosen: {chosen.other:.2f}% {chosen.where}"
    axes.plot(chosen.x, chosen.other, "D", color="black", label=label)
    axes.set(ylim=(-0.02 * highest, highest), ylabel="other answers than now, %")
