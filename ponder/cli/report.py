"""`report.html`: the table of `ponder exits`, agreement against depth, and the texts whose answer changed."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from matplotlib.figure import Figure

from ponder._utils.files import replace_text
from ponder.calibration.agreement import candidates
from ponder.integrations.transformers import ExitReport
from ponder.policies import ExitPolicy

__all__ = ["write_report"]

_MOST = 50  # texts
_KINDS = 4  # a fixed step and three certainties; the rest are these from later steps on
_LEAST = 2.0  # percent of other answers that the axis shows at least


def write_report(
    path: Path,
    model: str,
    said: Sequence[str],
    rows: Sequence[tuple[str, str]],
    report: ExitReport,
    policy: ExitPolicy,
    texts: Sequence[Any],
    names: Sequence[str],
) -> None:
    """Write the page."""
    steps, answers = report.certifying.exit_steps(policy), np.asarray(report.certifying.outputs).argmax(-1)
    given = answers[np.arange(len(steps)), steps - 1]
    changed = [
        {
            "text": text if isinstance(text, str) else " ‖ ".join(text),
            "full": names[full],
            "exit": names[own],
            "step": step,
        }
        for text, full, own, step in zip(texts, answers[:, -1], given, steps, strict=True)
        if own != full
    ]
    templates = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    figure, count = Markup(_figure(report)), len(changed)
    facts = {"certified_on": report.certified_on, "changed": changed[:_MOST], "count": count, "figure": figure}
    page = templates.get_template("report.html.jinja").render(model=model, said=said, rows=rows, **facts)
    replace_text(path, page)


def _figure(report: ExitReport) -> str:
    """Draw the share of other answers against the mean exit step, a line for each kind of policy, as SVG."""
    figure = Figure(figsize=(7.2, 4.0), layout="constrained")
    axes: Any = figure.subplots()
    level, point = 100 * report.level, (report.mean_exit_step, 100 * report.disagreement)
    for like, values in candidates(report.certifying)[:_KINDS]:
        curve = report.certifying.sweep(like, values)
        steps, other = zip(
            *((point.mean_exit_step, 100 * (1 - point.agreement)) for point in curve.points), strict=True
        )
        name = type(curve.family.policy).__name__
        axes.plot(steps, other, marker="o" if name == "FixedStep" else None, label=name)
    if report.met:
        axes.axhline(level, color="#595959", linestyle="--", label=f"promised: {level:.3g}%")
    axes.plot(*point, "D", color="black", label=f"chosen: {point[1]:.2f}% at step {point[0]:.2f}")
    most = max(_LEAST, 3 * point[1], 2 * level if report.met else 0.0)
    axes.set(xlim=(1.0, report.num_steps + 0.05), ylim=(-0.02 * most, most))
    axes.set(xlabel="mean exit step", ylabel="other answers than full depth, %")
    axes.secondary_xaxis("top", functions=(_speed_up(report.num_steps),) * 2).set_xlabel("× in steps")
    axes.legend(fontsize=9)
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    return drawn.getvalue()[drawn.getvalue().index("<svg") :]


def _speed_up(num_steps: int) -> Callable[[Any], Any]:
    """Return the map from mean exit steps to speed-ups, which is its own inverse."""
    return lambda value: num_steps / np.maximum(value, 1e-3)
