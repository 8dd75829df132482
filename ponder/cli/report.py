"""`report.html` of `ponder exits` and `ponder cascade`: a table, thresholds in a figure, texts whose answer changed."""

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
from ponder.calibration.records import Record
from ponder.calibration.sweeps import sweep
from ponder.policies import ExitPolicy

__all__ = ["write_report"]

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
    given = answers[np.arange(len(steps)), steps - 1]
    changed = [
        {
            "text": text if isinstance(text, str) else " ‖ ".join(text),
            "full": names[full],
            "exit": names[own],
            "step": at,
        }
        for text, full, own, at in zip(texts, answers[:, -1], given, steps, strict=True)
        if own != full
    ]
    templates = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    point = (float(np.mean(steps)), 100 * len(changed) / len(steps))
    facts = {"looked_at": len(steps), "changed": changed[:_MOST], "count": len(changed), "step": step}
    figure = Markup(_figure(record, point, level, step))
    page = templates.get_template("report.html.jinja").render(title=title, said=said, rows=rows, figure=figure, **facts)
    replace_text(path, page)


def _figure(record: Record, point: tuple[float, float], level: float | None, word: str) -> str:
    """Draw the share of other answers against the mean step, a line for each kind of policy, as SVG."""
    figure = Figure(figsize=(7.2, 4.0), layout="constrained")
    axes: Any = figure.subplots()
    for like, values in candidates(record)[:_KINDS]:
        curve = sweep(record, like, values)
        steps, other = zip(*((each.mean_exit_step, 100 * (1 - each.agreement)) for each in curve.points), strict=True)
        name = type(curve.family.policy).__name__
        axes.plot(steps, other, marker="o" if name == "FixedStep" else None, label=name)
    if level is not None:
        axes.axhline(100 * level, color="#595959", linestyle="--", label=f"promised: {100 * level:.3g}%")
    axes.plot(*point, "D", color="black", label=f"chosen: {point[1]:.2f}% at {word} {point[0]:.2f}")
    most = max(_LEAST, 3 * point[1], 200 * (level or 0.0))
    axes.set(xlim=(1.0, record.num_steps + 0.05), ylim=(-0.02 * most, most))
    axes.set(xlabel=f"mean {word}", ylabel="other answers than now, %")
    if word == "exit step":
        axes.secondary_xaxis("top", functions=(_speed_up(record.num_steps),) * 2).set_xlabel("× in steps")
    axes.legend(fontsize=9)
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    return drawn.getvalue()[drawn.getvalue().index("<svg") :]


def _speed_up(num_steps: int) -> Callable[[Any], Any]:
    """Return the map from mean exit steps to speed-ups, which is its own inverse."""
    return lambda value: num_steps / np.maximum(value, 1e-3)
