"""`report.html`: an outcome as a page, with the figure and the changed texts of a policy."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from matplotlib.figure import Figure

from ponder._utils.files import replace_text
from ponder._utils.rows import Text, one_line
from ponder.calibration.certifying import Candidate, certainties
from ponder.calibration.records import Record
from ponder.calibration.sweeps import sweep
from ponder.cli.outcome import DataTable, Outcome
from ponder.policies import ExitPolicy, FixedStep

__all__ = ["changed_texts", "policy_figure", "student_figure", "write_page"]

_MOST = 50  # changed texts that are listed
_LEAST = 2.0  # percent of other answers that the axis covers at least


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
    rows = [
        (one_line(texts[n]), str(names[full_depth[n]]), str(names[at_exit[n]]), str(steps[n]))
        for n in changed[:_MOST]
    ]
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
    differs = 1.0 - record.agreement()[np.arange(len(steps)), steps - 1]
    point = float(np.mean(steps)), 100 * float(differs.mean())
    figure = Figure(figsize=(7.2, 4.0), layout="constrained")
    axes: Any = figure.subplots()
    fixed: Candidate = (FixedStep, range(record.num_steps, 0, -1))
    for like, values in [fixed, *certainties(record)]:
        curve = sweep(record, like, values)
        mean_steps = [each.mean_exit_step for each in curve.points]
        other = [100 * (1 - each.agreement) for each in curve.points]
        name = type(curve.family.policy).__name__
        axes.plot(mean_steps, other, marker="o" if name == "FixedStep" else None, label=name)
    _mark(axes, point, level, f"at exit step {point[0]:.2f}")
    axes.set(xlim=(1.0, record.num_steps + 0.05), xlabel="mean exit step")

    def speed_up(steps: Any) -> Any:
        return record.num_steps / np.maximum(steps, 1e-3)

    # The function is its own inverse.
    axes.secondary_xaxis("top", functions=(speed_up, speed_up)).set_xlabel("× in steps")
    axes.legend(fontsize=9)
    return figure


def student_figure(record: Record, policy: ExitPolicy, level: float | None) -> Figure:
    """Draw the share of other answers against the share of texts that a student answers.

    Each kind of certainty is a line over its thresholds. Arguments are those of `policy_figure`.
    """
    steps = record.exit_steps(policy)
    differs = 1.0 - record.agreement()
    chosen = float(differs[np.arange(len(steps)), steps - 1].mean())
    point = 100 * float((steps == 1).mean()), 100 * chosen
    figure = Figure(figsize=(7.2, 4.0), layout="constrained")
    axes: Any = figure.subplots()
    shares = np.linspace(0.0, 1.0, 101)
    for kind, _ in certainties(record):
        scores = np.asarray(kind.scores(record))[:, 0]
        order = np.argsort(-scores, kind="stable")
        other = np.append(0.0, np.cumsum(differs[order, 0])) / len(order)  # by texts answered
        answered = np.rint(shares * len(order)).astype(int)
        axes.plot(100 * shares, 100 * other[answered], label=type(kind).__name__)
    _mark(axes, point, level, f"with {point[0]:.0f}% of the texts")
    axes.set(xlim=(0.0, 101.0), xlabel="texts that the student answers, %")
    axes.legend(fontsize=9)
    return figure


def _mark(axes: Any, point: tuple[float, float], level: float | None, where: str) -> None:
    """Draw the promise and the chosen point, and fit the axis of other answers to them."""
    if level is not None:
        line = f"promised: {100 * level:.3g}%"
        axes.axhline(100 * level, color="#595959", linestyle="--", label=line)
    axes.plot(*point, "D", color="black", label=f"chosen: {point[1]:.2f}% {where}")
    highest = max(_LEAST, 3 * point[1], 200 * (level or 0.0))
    axes.set(ylim=(-0.02 * highest, highest), ylabel="other answers than now, %")
