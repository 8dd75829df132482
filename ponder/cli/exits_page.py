"""The report of `ponder exits`: one page, with a threshold to move; and the same page, without it, as model card."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment
from markupsafe import Markup

from ponder._utils.rounding import rounded_down, rounded_up
from ponder.calibration import AgreementCurve
from ponder.cli.measuring import Measured
from ponder.cli.telling import BATCH, short
from ponder.integrations.transformers import ExitReport
from ponder.integrations.transformers.model_card import EXITS_TITLE
from ponder.pages import Block, Embedded, Heading, Page, Table, Text, templates

__all__ = ["Run", "page_of"]

_BOX = {"left": 62, "top": 14, "plot": 560, "tall": 250, "width": 640, "height": 320}  # pixels of the drawing
_READ = {"fixed step": ""}  # what the kinds of policy read; all others the output
_LEAST = 0.02  # what the axis of other answers shows at least


@dataclass(frozen=True, eq=False)
class Run:
    """What the page tells of.

    Args:
        model: Name of the plain model.
        texts: Name of the file of texts.
        report: What fitting came to.
        measured: What exits save.
        card: All numbers, as they are saved.
    """

    model: str
    texts: str
    report: ExitReport
    measured: Measured
    card: Mapping[str, Any]


def page_of(run: Run) -> Page:
    """The page that tells what was promised and measured."""
    report, blocks = run.report, list[Block]()
    blocks += [Text(f"**{report.statement}**")]
    if not report.met:
        lowest = rounded_up(100 * report.best_level, 2)
        blocks.append(Text(f"With so many texts, {lowest}% is the least that could be promised."))
    blocks += [Table(["", "plain model", "with exits"], _summary(run)), Heading("Other thresholds"), _thresholds(run)]
    blocks += [
        Table(["policy", "other answers", "could have been promised", "mean exit step"], _at_levels(report)),
        Heading("How this was found"),
        Text("* " + "\n* ".join(_notes(run))),
        Heading("How to use it"),
        Text(
            "* Without exits, Transformers reads the folder as before.\n"
            "* With them, in Python: `FinetunedClassifier.from_pretrained(folder)`.\n"
            "* For a file of texts: `ponder predict FOLDER --texts in.csv --out out.csv`.\n"
            "* Over HTTP: `ponder serve FOLDER`."
        ),
    ]
    return Page(f"{EXITS_TITLE} {Path(run.model).name}", tuple(blocks))


def _summary(run: Run) -> list[list[str]]:
    report, speed = run.report, run.measured.speed_up
    clock = speed.wall_clock
    assert clock is not None
    rows = [
        ["answers other than the plain model's", "–", f"{100 * report.disagreement:.2f}%"],
        ["the same at full depth", "–", f"{100 * report.moved:.2f}%"],
        ["steps a text", f"{report.num_steps}", f"{report.mean_exit_step:.2f} (÷ {rounded_down(report.speed_up, 3)})"],
        ["FLOPs", "1", "not counted" if speed.flops is None else f"÷ {speed.flops:.2f}"],
        ["seconds", "1", f"÷ {clock.median:.2f} ({clock.low:.2f}–{clock.high:.2f})"],
    ]
    if not math.isnan(report.plain_accuracy):
        rows.append(["accuracy", f"{100 * report.plain_accuracy:.2f}%", f"{100 * report.exit_accuracy:.2f}%"])
    return rows


def _at_levels(report: ExitReport) -> list[list[str]]:
    """The earliest exits of each kind of policy that could have been promised at a few levels."""
    rows = []
    for level in (0.005, 0.01, 0.02, 0.05):
        found = [
            (curve.mean_exit_step[place], curve, place)
            for curve in report.curves
            for place, promise in enumerate(curve.promise)
            if promise <= level
        ]
        if found:
            mean, curve, place = min(found, key=lambda each: each[0])
            rows.append(
                [
                    f"{curve.policy}, {curve.values[place]:.4g}",
                    f"{100 * curve.disagreement[place]:.2f}%",
                    f"≤ {100 * level:g}%",
                    f"{mean:.2f}",
                ]
            )
    return rows


def _how_tested(card: Mapping[str, Any]) -> str:
    if card.get("speed_up_asked") is not None:
        return "Its threshold was chosen with the kind; one exact binomial test says what it costs."
    return (
        "Exact binomial tests, which begin with the latest exits and end with the first that fails, say which "
        "thresholds pass; the one with the fewest steps is taken."
    )


def _notes(run: Run) -> list[str]:
    report, card = run.report, run.card
    notes = [
        f"{report.rows} texts of {run.texts}; {report.duplicates} repeat another one and are counted once, "
        f"{card['empty']} were empty and left out, {card['truncated']} were longer than the model takes and cut.",
        f"{report.fitted} texts taught the early heads to answer as the plain model does (no labels are needed), "
        f"{report.chosen_on} chose the kind of policy, and {report.certified_on} certified it. Everything above was "
        "measured on these last ones.",
        f"The policy is `{short(report.policy)}`. " + _how_tested(card),
        "The promise is about texts that come as these came; of texts that are alike without being equal (one author, "
        "one template) it knows nothing.",
        f"Seconds: the median of pairs of runs in turn, batches of {BATCH} texts of similar length, "
        f"{torch.get_num_threads()} thread(s), on the machine that wrote this page; other machines differ. FLOPs are "
        "those of matrix products, texts at their true length.",
    ]
    if card["recipe"] == "exits-deep":
        notes.append("The encoder learned too; the plain model is what it was before.")
    return notes


def _thresholds(run: Run) -> Embedded:
    """Every threshold that was looked at, to move through."""
    report = run.report
    most = max(_LEAST, 3 * (report.level if report.met else _LEAST))
    clock = run.measured.speed_up.wall_clock
    up = run.measured.speed_up.steps
    assert clock is not None
    assert up is not None
    steps = (report.num_steps, report.num_steps / up)  # of the texts that were timed
    data = {
        "steps": report.num_steps,
        "box": _BOX,
        "most": most,
        "kind": report.kind,
        "place": _place(report),
        "seconds": {"steps": steps, "speed": (run.measured.full_depth.median, clock.median)},
        "curves": [
            {
                "policy": curve.policy,
                "values": [float(f"{value:.6g}") for value in curve.values],
                "mean": [round(step, 3) for step in curve.mean_exit_step],
                "differ": [round(share, 5) for share in curve.disagreement],
                "promise": [float(rounded_up(level, 5)) for level in curve.promise],
                "flops": [round(_flops(run, curve, shares), 3) for shares in curve.exits],
            }
            for curve in report.curves
        ],
    }
    lines = [_line(curve, report.num_steps, most) for curve in report.curves]
    levels = [round(most * part / 4, 4) for part in range(5)]
    ups = [1.0 + (report.num_steps - 1) * part / 5 for part in range(6)]
    html = (
        _environment()
        .get_template("exits_page.html.jinja")
        .render(
            data=Markup(json.dumps(data).replace("<", "\\u003c").replace("&", "\\u0026")),
            box=_BOX,
            lines=lines,
            kinds=[curve.policy for curve in report.curves],
            levels=[(f"{100 * level:g}%", _y(level, most)) for level in levels],
            ups=[(f"×{up:.1f}", _x(up, report.num_steps)) for up in ups],
            asked=_y(report.level, most) if report.met else None,
        )
    )
    script = (Path(__file__).parent / "exits_page.js").read_text(encoding="utf-8")
    return Embedded("Every threshold that was looked at: see report.html.", Markup(html), script)


def _place(report: ExitReport) -> int | None:
    """Where the chosen threshold stands among the values of its kind; values that are shown may look the same."""
    if math.isnan(report.threshold):
        return None
    values = next(curve.values for curve in report.curves if curve.policy == report.kind)
    return min(range(len(values)), key=lambda place: abs(values[place] - report.threshold))


def _flops(run: Run, curve: AgreementCurve, shares: tuple[float, ...]) -> float:
    """Speed-up in FLOPs of these shares of rows at each step.

    Long texts may leave later than short ones, so that the mean cost is not that of texts of mean length. The
    difference is the correlation of lengths and exits times the spread of both; the correlation is taken to be that of
    the chosen policy, whose FLOPs were measured.
    """
    mean, spread = _cost(run, curve.policy, shares)
    return 1.0 / (mean + _correlation(run) * spread)


def _cost(run: Run, kind: str, shares: tuple[float, ...]) -> tuple[float, float]:
    """Mean and standard deviation of FLOPs over the exits, at the mean length; the plain model takes 1."""
    costs = run.measured.costs[_READ.get(kind, "output")]
    mean = sum(share * cost for share, cost in zip(shares, costs, strict=True))
    return mean, math.sqrt(sum(share * (cost - mean) ** 2 for share, cost in zip(shares, costs, strict=True)))


def _correlation(run: Run) -> float:
    """The correlation of lengths and exits, times the spread of lengths, on the texts whose FLOPs were measured."""
    measured = run.measured.speed_up.flops
    mean, spread = _cost(run, run.report.kind, run.measured.exit_shares)
    return 0.0 if measured is None or spread < 1e-9 else (1.0 / measured - mean) / spread


def _line(curve: AgreementCurve, steps: int, most: float) -> str:
    """The points of a curve that lie within the drawing."""
    pairs = zip(curve.mean_exit_step, curve.disagreement, strict=True)
    points = dict.fromkeys((_x(steps / mean, steps), _y(differ, most)) for mean, differ in pairs if differ <= most)
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _x(up: float, steps: int) -> float:
    return _BOX["left"] + _BOX["plot"] * (up - 1.0) / max(steps - 1, 1)


def _y(share: float, most: float) -> float:
    return _BOX["top"] + _BOX["tall"] * (1.0 - share / most)


@cache
def _environment() -> Environment:
    return templates(Path(__file__).parent)
