"""The figures of README and documentation: each from `benchmarks/results`, or by a few lines of the library."""

from __future__ import annotations

import hashlib
import json
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.figures import new_figure, save_svg
from benchmarks.files import read_json
from benchmarks.gallery.paper import exits_of_palbert, palbert_beside_pabee
from benchmarks.glue.config import DEFAULT
from benchmarks.glue.report.groups import BLIND_FAIR, Group, choose
from benchmarks.glue.report.summary import COMMON, SUITES
from benchmarks.glue.results import Result, read_all
from benchmarks.glue.sweep import suite_named
from benchmarks.live import report
from ponder import StepDistribution
from ponder.statistics import Ledger

__all__ = ["FIGURES", "digest_of_figure", "draw"]

RESULTS = Path(__file__).parents[1] / "results"
TASK = "SST-2"
BACKBONE = "minilm"
_RECIPES = {DEFAULT: "#009E73", "palbert": "#D55E00", "pabee": "#CC79A7", "deebert": "#0072B2"}
_GREY = "#666666"
_STYLE: Any = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 10,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "legend.fontsize": 9,
}


def headline(figure: Any) -> None:
    """Left: score against speed-up on a GLUE task. Right: steps against difficulty, on puzzles."""
    left, right = figure.subplots(1, 2)
    runs = read_all(RESULTS / "whole")
    _score_by_speed_up(left, runs, [DEFAULT, "deebert"], "SST-2, MiniLM, all 67,349 examples")
    _steps_by_difficulty(right)


def score(figure: Any) -> None:
    """Score against speed-up on a GLUE task, with the plain model and smaller models beside it."""
    suite = suite_named(SUITES[BACKBONE])
    runs = [
        run
        for run in read_all(RESULTS / "glue")
        if run["backbone"] == BACKBONE and run["task"] == TASK and suite.has(run)
    ]
    recipes = [DEFAULT, "palbert", "pabee"]
    _score_by_speed_up(figure.subplots(), runs, recipes, "SST-2, MiniLM, 10,000 examples")


def _score_by_speed_up(
    axes: Any, runs: Sequence[Result], recipes: Sequence[str], title: str
) -> None:
    """Draw some recipes, a blind choice, the plain model and cut ones, all of one task."""
    groups = {name: group for (name, _), group in choose(runs).items()}
    for recipe in recipes:
        style = {"color": _RECIPES[recipe], "label": recipe, "linewidth": 2}
        _line(axes, groups[recipe], COMMON, **style)
    blind = {
        "color": _RECIPES[DEFAULT],
        "linestyle": ":",
        "label": f"{DEFAULT}, one step for all",
    }
    _line(axes, groups[DEFAULT], BLIND_FAIR, **blind)
    plain = groups[DEFAULT].at(1.0, COMMON)  # full depth is the plain model, bit for bit
    axes.axhline(plain, color=_GREY, linestyle="--", label="plain model, all layers")
    for taught, marker, label in (
        (False, "D", "plain model, fewer layers"),
        (True, "s", "the same, distilled"),
    ):
        cuts = [group for group in groups.values() if group.is_cut and group.is_taught == taught]
        scores = [statistics.median(cut.scores) for cut in cuts]
        style = {"color": _GREY, "fillstyle": "none" if taught else None, "label": label}
        if cuts:
            axes.plot([cut.speed_up for cut in cuts], scores, marker, **style)
    axes.set(
        xlabel="speed-up in steps; all recipes left by confidence",
        ylabel="accuracy, %",
        title=title,
    )
    axes.xaxis.set_major_formatter("×{x:.1f}")
    low, high = axes.get_ylim()
    axes.set_ylim(low - 0.6 * (high - low), high)  # room for the legend
    axes.legend(loc="lower left", ncols=2, fontsize="x-small")


def _line(axes: Any, group: Group, policy: str, **style: Any) -> None:
    points = [
        (at, score)
        for at in np.arange(1.1, 4.01, 0.1)
        if (score := group.at(float(at), policy)) is not None
    ]
    axes.plot(*zip(*points, strict=True), **style)


def _steps_by_difficulty(axes: Any) -> None:
    results = [
        read_json(path) for path in sorted((RESULTS / "levels").glob("prefix-sums-looped-s*.json"))
    ]
    shown = (
        ("converged and confident", "#D55E00", "-", "steps taken (the answer rests, and is sure)"),
        ("oracle", _GREY, ":", "fewest that solve it (oracle)"),
    )
    for way, color, style, label in shown:
        levels: dict[int, list[float]] = {}
        for result in results:
            for level in result["ways"][way]["test"]["by_level"]:
                levels.setdefault(level["level"], []).append(level["mean_steps"])
        middles = [statistics.median(steps) for steps in levels.values()]
        axes.plot(list(levels), middles, style, marker="o", markersize=4, color=color, label=label)
    axes.axvline(32, color=_GREY, linewidth=0.8, linestyle="--", label="trained up to here")
    axes.set(
        xlabel="bits of the problem (difficulty)",
        ylabel="mean exit step",
        title="Prefix sums, a looped solver",
    )
    axes.legend(loc="upper left")


def promises(figure: Any) -> None:
    """How often a promise is broken, against how often it may be."""
    axes = figure.subplots()
    found = read_json(RESULTS / "risk" / "risk.json")
    rows = [
        row
        for row in found["outcomes"]
        if row["scene"] == "synthetic" and row["bound"] != "conformal"
    ]
    rows = [row for row in rows if row["risk"] in ("disagreement", "error_gap")]
    labels = [f"{row['risk'].replace('_', ' ')}, {row['bound'].replace('_', ' ')}" for row in rows]
    axes.barh(labels, [row["violations"] for row in rows], color="#0072B2")
    axes.axvline(0.05, color="#D55E00", linestyle="--", label="allowed: 5%")
    axes.set(xlabel="share of 1,000 certificates whose risk is above the level", xlim=(0, 0.07))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.invert_yaxis()
    axes.legend(loc="center right")


def speed(figure: Any) -> None:
    """Left: the part of the saved steps that is saved time. Right: exits and int8 together."""
    left, right = figure.subplots(1, 2)
    found = read_json(RESULTS / "speed" / "exiting.json")["figures"]
    for mix, color in (
        ("early-heavy", "#D55E00"),
        ("uniform", "#0072B2"),
        ("late-heavy", "#009E73"),
    ):
        rows = [each for each in found if f", {mix}, " in each["case"]]
        sizes = [each["case"].rpartition(" ")[2] for each in rows]
        left.plot(
            sizes, [each["value"] for each in rows], marker="o", color=color, label=f"{mix} exits"
        )
    left.axhline(1, color=_GREY, linestyle="--")
    left.set(xlabel="rows of a batch", ylabel="speed-up in time ÷ in steps", ylim=(0.6, 1.1))
    left.set_title("ALBERT-base (random weights), 12 steps")
    left.legend(loc="lower right")
    _promised(right)


def _promised(axes: Any) -> None:
    """Draw the speed-up in seconds on test texts of ways that promise at most 2% other answers."""
    ways = {"exits": "#D55E00", "int8": "#0072B2", "int8 + exits": "#009E73"}
    cases = [
        ("banking77", "minilm"),
        ("sst-2", "minilm"),
        ("banking77", "e5"),
        ("sst-2", "mpnet"),
    ]
    names = {
        "minilm": "MiniLM",
        "mpnet": "MPNet",
        "e5": "E5",
        "banking77": "Banking77",
        "sst-2": "SST-2",
    }
    height = 0.8 / len(ways)
    for number, (way, color) in enumerate(ways.items()):
        speed_ups = []
        for task, backbone in cases:
            found = read_json(RESULTS / "advice" / f"{task}-{backbone}-s0.json")
            seconds = {one["name"]: one["seconds"] for one in found["test"]["ways"]}
            speed_ups.append(seconds["as it is"] / seconds[way])
        places = np.arange(len(cases)) + (number - 1) * height
        axes.barh(places, speed_ups, height, color=color, label=way)
    axes.set_yticks(range(len(cases)), [f"{names[task]},\n{names[name]}" for task, name in cases])
    axes.axvline(1, color=_GREY, linestyle="--")
    axes.set(xlabel="speed-up in seconds on test texts", title="At most 2% other answers promised")
    axes.invert_yaxis()
    axes.legend(loc="lower right")


def audit(figure: Any) -> None:
    """A stream whose cheap model becomes wrong after half: what was missed, the ledger's bound, and what is allowed."""
    axes = figure.subplots()
    rows = 12_000
    level = 0.02
    share = 0.2
    draw = random.Random(5)
    ledger = Ledger()
    missed = 0
    shown: dict[str, list[float]] = {"missed": [], "bound": [], "allowed": []}
    for row in range(rows):
        if ledger.bound_after(share) <= level * (row + 1):
            differs = draw.random() < (0.01 if row < rows // 2 else 0.1)
            audited = draw.random() < share
            ledger.answer(share, audited=audited)
            if audited:
                ledger.settle(share, differs=differs)
            else:
                missed += differs
        shown["missed"].append(missed)
        shown["bound"].append(ledger.bound)
        shown["allowed"].append(level * (row + 1))
    labels = ("answers that differ", "the ledger's bound", "2% of the answers: the promise")
    colors = ("#D55E00", "#0072B2", _GREY)
    for values, label, color in zip(shown.values(), labels, colors, strict=True):
        axes.plot(range(1, rows + 1), values, color=color, label=label)
    axes.axvline(rows // 2, color=_GREY, linestyle="--")
    axes.annotate("ten times as many differ", (rows // 2 + 100, 10), color=_GREY)
    axes.set(xlabel="rows of the stream", ylabel="answers")
    axes.legend(loc="upper left")


def streams(figure: Any) -> None:
    """Calls of the reference against other answers on streams, of `Live` and its rivals, at 2% and 5%."""
    colors = {"`Live`": "#D55E00", "fixed, chosen before": _GREY}
    colors |= {"fixed, best": "#0072B2", "B-PAC, best": "#CC79A7"}
    found = report.kinds()
    panels = figure.subplots(-(-len(found) // 3), 3, sharey=True, squeeze=False).ravel()
    for panel in panels[len(found) :]:
        panel.remove()
    for panel, kind in zip(panels, found, strict=False):
        for family, color in colors.items():
            points = list[tuple[float, float]]()
            for level in (0.02, 0.05):
                ways = report.best_way(kind.streams, level, report.STREAM_WAYS[family])
                points.append(
                    tuple(statistics.mean(way[key] for way in ways) for key in ("wrong", "asked"))
                )
            panel.plot(
                [wrong for wrong, _ in points],
                [asked for _, asked in points],
                color=color,
                label=family.replace("`", ""),
                linewidth=1,
            )
            for point, marker in zip(points, ("o", "s"), strict=True):
                panel.plot(*point, marker=marker, color=color, markersize=5)
        for level in (0.02, 0.05):
            panel.axvline(level, color=_GREY, linestyle="--", linewidth=0.8)
        panel.set_xscale("function", functions=(np.sqrt, np.square))
        panel.set(title=f"{report.TASKS[kind.task]},\n{kind.setting}", xlabel="other answers")
        panel.set(ylabel="asked", ylim=(0, 1.05), xlim=(0, 0.4))
        panel.set_xticks([0, 0.02, 0.05, 0.1, 0.2, 0.4])
        panel.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        panel.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        panel.label_outer(remove_inner_ticks=False)
        panel.xaxis.set_tick_params(labelbottom=True)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(colors))


def halting(figure: Any) -> None:
    """Hazards, and the distribution that they induce."""
    left, right = figure.subplots(1, 2)
    hazards = torch.tensor([0.05, 0.1, 0.3, 0.6, 0.5, 0.5])
    found = StepDistribution.from_hazard_logits(torch.logit(hazards))
    steps = list(range(1, 7))
    left.bar(steps, hazards.tolist(), color=["#0072B2"] * 5 + ["#CCCCCC"])
    left.set(
        xlabel="step n", ylabel="hazard λ (the last is ignored)", title="Stop here?", ylim=(0, 1)
    )
    right.bar(steps, found.pmf.tolist(), color="#0072B2", label="p(n): stops at n")
    right.step(
        steps,
        found.cdf(torch.tensor(steps)).tolist(),
        where="mid",
        color="#D55E00",
        label="stopped by n",
    )
    right.axhline(0.5, color=_GREY, linestyle="--", linewidth=0.8)
    right.set(xlabel="step n", ylabel="probability", title="Halting distribution", ylim=(0, 1.05))
    right.legend(loc="upper left")


def rerank(figure: Any) -> None:
    """Another top 10 than that of the full rerank, against the seconds of a query, by way of saving."""
    colors = {
        "cut pool": _GREY,
        "cut encoder": "#009E73",
        "TopK": "#0072B2",
        "TopK, first stage": "#D55E00",
    }
    names = {"minilm": "MiniLM", "mpnet": "MPNet", "e5": "E5"}
    results = [read_json(path) for path in sorted((RESULTS / "rerank").glob("*-s0-k10.json"))]
    raced = [found for found in results if "curves" in found]
    for axes, found in zip(
        figure.subplots(1, len(raced), sharey=True, squeeze=False)[0], raced, strict=True
    ):
        for way, color in colors.items():
            points = sorted(
                (one["seconds"], one["top_k"]) for one in found["seconds"] if one["way"] == way
            )
            axes.plot(*zip(*points, strict=True), marker="o", markersize=4, color=color, label=way)
        axes.set(
            xlabel="seconds a query, one core",
            title=f"{found['task']}, {names[found['backbone']]}:\n{found['candidates']} candidates",
            ylim=(-0.03, 1.03),
        )
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    figure.axes[0].set(ylabel="queries with another top 10")
    figure.axes[-1].legend(loc="lower left")


def texts(figure: Any) -> None:
    """How much exits and a student save, against the number of texts without labels; and what stands in for texts."""
    found = read_json(RESULTS / "cascades" / "curve-banking77-minilm-s0.json")["rows"]
    left, right = figure.subplots(1, 2, sharey=True)
    for way, label, color in (
        ("exits", "exits: steps saved", "#D55E00"),
        ("student", "texts for the student", "#0072B2"),
    ):
        rows = [row for row in found if row["way"] == way and row["stand_in"] == "none"]
        left.plot(
            [row["texts"] for row in rows],
            [row["saved"] for row in rows],
            marker="o",
            color=color,
            label=label,
        )
    left.set(
        xlabel="texts without labels",
        ylabel="share",
        title="Banking77, promised 2%",
        ylim=(-0.03, 1.03),
    )
    colors = {"none": _GREY, "words dropped": "#009E73", "halves crossed": "#CC79A7"}
    colors |= {"the model's training texts": "#0072B2", "all three": "#000000"}
    for name, color in colors.items():
        rows = [row for row in found if row["way"] == "student" and row["stand_in"] == name]
        right.plot(
            [row["texts"] for row in rows],
            [row["saved"] for row in rows],
            marker="o",
            color=color,
            label=name,
        )
    right.set(xlabel="texts without labels", title="What else teaches the student")
    for axes in (left, right):
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.legend(loc="lower right")


def masses(figure: Any) -> None:
    """Figures 2 and 3 of PALBERT's paper, from the runs here."""
    exits_of_palbert(figure, RESULTS / "glue")


def rivals(figure: Any) -> None:
    """Figure 4 of PALBERT's paper, from the runs here."""
    palbert_beside_pabee(figure, RESULTS / "glue")


FIGURES: dict[str, tuple[Callable[[Any], None], tuple[float, float]]] = {
    "headline": (headline, (9.0, 3.6)),
    "score": (score, (5.5, 3.6)),
    "promises": (promises, (7.0, 2.8)),
    "speed": (speed, (9.0, 3.2)),
    "audit": (audit, (7.0, 3.0)),
    "streams": (streams, (9.0, 5.6)),
    "halting": (halting, (8.0, 3.0)),
    "rerank": (rerank, (10.5, 3.5)),
    "texts": (texts, (9.0, 3.4)),
    "masses": (masses, (9.0, 3.4)),
    "rivals": (rivals, (9.0, 3.4)),
}
"""Each figure, and how large it is, in inches."""


def draw(folder: Path, names: Sequence[str] = tuple(FIGURES)) -> Iterator[Path]:
    """Draw figures into a folder, and yield the files one by one."""
    for name in names:
        figure = _painted(name)
        path = folder / f"{name}.svg"
        save_svg(path, figure, description=f"data: {_digest(figure)}")
        yield path


def digest_of_figure(name: str) -> str | None:
    """Return the digest of what a figure shows today; None if it is not drawn here."""
    return _digest(_painted(name)) if name in FIGURES else None


def _painted(name: str) -> Any:
    import matplotlib as mpl

    paint, size = FIGURES[name]
    with mpl.rc_context(_STYLE):
        figure = new_figure(*size)
        paint(figure)
    return figure


def _digest(figure: Any) -> str:
    """Return a digest of the numbers that a figure shows: lines, bars, and the words beside them."""
    shown: list[Any] = []
    for axes in figure.axes:
        shown += [axes.get_xlabel(), axes.get_ylabel(), axes.get_title()]
        for line in axes.get_lines():
            shown.append([line.get_label(), *np.round(line.get_xydata(), 4).ravel().tolist()])
        for bar in axes.patches:
            shown.append([round(float(value), 4) for value in bar.get_bbox().bounds])
    return hashlib.sha256(json.dumps(shown, default=str).encode()).hexdigest()[:16]
