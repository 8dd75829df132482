"""`report.html`: a table, thresholds in a figure, texts whose answer changed."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from matplotlib.figure import Figure

from ponder._utils.files import replace_text
from ponder.calibration.agreement import candidates
from ponder.calibration.records import Record
from ponder.calibration.sweeps import sweep
from ponder.policies import ExitPolicy

__all__ = ["write_page", "write_report"]

_MOST = 50  # texts
_KINDS = 4  # a fixed step and three certainties; the rest are these from later steps on
_LEAST = 2.0  # percent of other answers that the axis shows at least


def write_report(
    path: Path,
    title: str,
    said: Sequence[str],
    rows: Sequence[tuple[str, str]],
    record: Record,
    policy: ExitPolicy,
    texts: Sequence[Any],
    names: Sequence[str],
    *,
    level: float | None,
    step: str = "exit step",
) -> None:
    """Write the page about the record that certified a policy; `level` is what it promises, None for nothing."""
    steps, answers = record.exit_steps(policy), np.asarray(record.outputs).argmax(-1)
    given, full = answers[np.arange(len(steps)), steps - 1], answers[:, -1]
    changed = [
        (
            texts[n] if isinstance(texts[n], str) else " ‖ ".join(texts[n]),
            names[full[n]],
            names[given[n]],
            steps[n],
        )
        for n in np.flatnonzero(given != full).tolist()
    ]
    figure = _figure(record, (float(np.mean(steps)), 100 * len(changed) / len(steps)), level, step)
    facts = {
        "looked_at": len(steps),
        "changed": changed[:_MOST],
        "count": len(changed),
        "step": step,
    }
    write_page(path, "report.html.jinja", figure, title=title, said=said, rows=rows, **facts)


def write_page(path: Path, template: str, figure: Figure, **facts: Any) -> None:
    """Write a page from one of the templates beside this file."""
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    svg = Markup(drawn.getvalue()[drawn.getvalue().index("<svg") :])
    templates = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    replace_text(path, templates.get_template(template).render(figure=svg, **facts))


def _figure(record: Record, point: tuple[float, float], level: float | None, word: str) -> Figure:
    """Draw the share of other answers against the mean step, a line for each kind of policy."""
    figure = Figure(figsize=(7.2, 4.0), layout="constrained")
    axes: Any = figure.subplots()
    for like, values in candidates(record)[:_KINDS]:
        curve = sweep(record, like, values)
        steps, other = zip(
            *((each.mean_exit_step, 100 * (1 - each.agreement)) for each in curve.points),
            strict=True,
        )
        name = type(curve.family.policy).__name__
        axes.plot(steps, other, marker="o" if name == "FixedStep" else None, label=name)
    if level is not None:
        axes.axhline(
            100 * level, color="#595959", linestyle="--", label=f"promised: {100 * level:.3g}%"
        )
    axes.plot(*point, "D", color="black", label=f"chosen: {point[1]:.2f}% at {word} {point[0]:.2f}")
    most = max(_LEAST, 3 * point[1], 200 * (level or 0.0))
    axes.set(xlim=(1.0, record.num_steps + 0.05), ylim=(-0.02 * most, most))
    axes.set(xlabel=f"mean {word}", ylabel="other answers than now, %")
    if word == "exit step":

        def times(steps: Any) -> Any:  # its own inverse
            return record.num_steps / np.maximum(steps, 1e-3)

        axes.secondary_xaxis("top", functions=(times, times)).set_xlabel("× in steps")
    axes.legend(fontsize=9)
    return figure
