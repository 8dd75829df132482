"""Tables and figures of LoopBench, from results alone."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.figures import new_figure, save_svg
from benchmarks.files import read_seeds
from benchmarks.markdown import spread, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "BOTH",
    "COLUMNS",
    "COMMITTED",
    "PROMISES",
    "RANKING",
    "both_modes",
    "draw_figure",
    "draw_sudoku",
    "markdown",
    "promise",
    "ranking",
    "results",
    "rows",
    "score_of",
]

FORMAT = "ponder-loops-2"
COMMITTED = Path(__file__).parents[1] / "results" / "loops"
COLUMNS = (
    "gate",
    "halts",
    "right, validation",
    "right, test",
    "position-steps",
    "as all steps",
    "ms a problem",
)
BOTH = (
    "task",
    "gate",
    "right, per row",
    "per position",
    "position-steps, per row",
    "per position",
    "ms a problem, per row",
    "per position",
)
RANKING = ("gate", "learned", "position-steps, per position", "within 0.5 points", "runs")
PROMISES = (
    "task",
    "seed",
    "rows that may differ",
    "confidence above",
    "test rows that differ",
    "position-steps",
)
_COLORS = {
    "fixed depth": "#999999",
    "hazards, trained in": "#0072B2",
    "act, trained in": "#56B4E9",
    "all right, trained in": "#8C510A",
    "hazards, head": "#003050",
    "act, head": "#7F7FFF",
    "q-head": "#009E73",
    "confidence": "#D55E00",
    "entropy": "#E69F00",
    "latent difference": "#CC79A7",
    "patience": "#000000",
}
LEARNED = (
    "hazards, trained in",
    "act, trained in",
    "all right, trained in",
    "hazards, head",
    "act, head",
    "q-head",
)
BY_ROWS = ("fixed depth", "all right, trained in")
"""Gates by which whole problems halt."""
_SLACK = 0.005
Results = Sequence[Mapping[str, Any]]


def results(folder: Path = COMMITTED) -> dict[str, Results]:
    """Return the results of a folder, by task, each by seed."""
    return read_seeds(folder, FORMAT, lambda result: str(result["setting"]["name"]))


def score_of(result: Mapping[str, Any], measured: Mapping[str, Any]) -> float:
    """Return the share of solved problems, or of right characters in texts, which nobody solves."""
    return float(measured["right" if result["setting"]["causal"] else "solved"])


def milliseconds_of(result: Mapping[str, Any], measured: Mapping[str, Any]) -> float:
    """Return the milliseconds that one problem took."""
    return 1000 * float(measured["seconds"]) / float(result["rows"])


def rows(found: Results) -> Iterator[tuple[str, ...]]:
    """Yield every gate, per row and per position, medians and ranges over the seeds, under `COLUMNS`."""
    for name in found[0]["ways"]:
        yield _row_of_way(name, found)
    for mode in ("row", "position"):
        yield _row_of_oracle(mode, found)


def _row_of_way(name: str, found: Results) -> tuple[str, ...]:
    """Return one gate per row or per position, or all steps, over the seeds."""
    first = found[0]["ways"][name]
    test = [result["ways"][name]["test"] for result in found]
    validation = "–"
    if "validation" in first:
        of_validation = [score_of(result, result["ways"][name]["validation"]) for result in found]
        validation = spread(of_validation, "{:.1%}")
    scores = [score_of(result, one) for result, one in zip(found, test, strict=True)]
    milliseconds = [milliseconds_of(result, one) for result, one in zip(found, test, strict=True)]
    return (
        first.get("gate", name),
        first.get("mode", "row"),
        validation,
        spread(scores, "{:.1%}"),
        spread([one["position_steps"] for one in test], "{:.0%}"),
        spread([one["same"] for one in test], "{:.1%}"),
        spread(milliseconds, "{:.2f}"),
    )


def _row_of_oracle(mode: str, found: Results) -> tuple[str, ...]:
    """Return halting at the first right answer, over the seeds."""
    solved = []
    position_steps = []
    for result in found:
        oracle = result["oracle"][mode]
        # Per row the file has no share of right characters: a solved row stands for it.
        solved.append(score_of(result, {"right": oracle["solved"], **oracle}))
        position_steps.append(oracle["position_steps"])
    return (
        "oracle",
        mode,
        "–",
        spread(solved, "{:.1%}"),
        spread(position_steps, "{:.0%}"),
        "–",
        "–",
    )


def both_modes(everything: Mapping[str, Results]) -> Iterator[tuple[str, ...]]:
    """Yield each gate of each task, per row beside per position, medians over the seeds, under `BOTH`."""
    for name, found in everything.items():
        task = f"{name} ({len(found)} seeds)" if len(found) > 1 else name
        for gate in _COLORS:
            of_mode = {
                mode: [(result, result["ways"][f"{gate}, {mode}"]["test"]) for result in found]
                for mode in ("row", "position")
                if f"{gate}, {mode}" in found[0]["ways"]
            }
            if of_mode:
                yield task, gate, *_side_by_side(of_mode)
        whole = [(result, result["ways"]["all steps, supervised"]["test"]) for result in found]
        yield task, "all steps", *_side_by_side({"row": whole})


def _side_by_side(
    of_mode: Mapping[str, Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]],
) -> Iterator[str]:
    """Yield accuracy, position-steps and milliseconds, per row and then per position; a dash if there is none."""
    readings: tuple[tuple[str, Callable[[Any, Any], float]], ...] = (
        ("{:.1%}", score_of),
        ("{:.0%}", lambda result, test: float(test["position_steps"])),
        ("{:.2f}", milliseconds_of),
    )
    for form, read in readings:
        for mode in ("row", "position"):
            values = [read(*pair) for pair in of_mode.get(mode, ())]
            yield form.format(statistics.median(values)) if values else "–"


def ranking(everything: Mapping[str, Results]) -> list[tuple[str, ...]]:
    """Return the gates under `RANKING`: those that most often keep what all steps solve first, then by position-steps.

    Position-steps are means over tasks and seeds.
    """
    lines = []
    for gate in _COLORS:
        mode = "row" if gate in BY_ROWS else "position"
        steps = list[float]()
        within = list[bool]()
        for found in everything.values():
            for result in found:
                # Files of earlier gates have not all of them.
                if f"{gate}, {mode}" not in result["ways"]:
                    continue
                test = result["ways"][f"{gate}, {mode}"]["test"]
                whole = result["ways"]["all steps, supervised"]["test"]
                steps.append(test["position_steps"])
                within.append(score_of(result, test) >= score_of(result, whole) - _SLACK)
        if not steps:
            continue
        learned = "yes" if gate in LEARNED else "no"
        share = f"{statistics.mean(steps):.0%}"
        kept = f"{sum(within)} of {len(within)}"
        order = (len(within) - sum(within), statistics.mean(steps))
        lines.append((order, (gate, learned, share, kept, str(len(steps)))))
    return [line for _, line in sorted(lines)]


def markdown(folder: Path = COMMITTED) -> str:
    """Return a table for each task, its certificates, and the ranking of gates."""
    everything = results(folder)
    blocks = list[str]()
    for name, found in everything.items():
        setting = found[0]["setting"]
        blocks.append(f"### {name}")
        weights = found[0]["training"]["supervised"]["parameters"]
        blocks.append(
            f"{len(found)} seeds, {setting['num_steps']} steps, width {setting['width']}, "
            f"{weights:,} weights."
        )
        blocks.append(table(COLUMNS, rows(found)))
    certificates = [promise(result) for found in everything.values() for result in found]
    blocks += ["### Certificates", table(PROMISES, certificates)]
    blocks += ["### Ranking", table(RANKING, ranking(everything))]
    return "\n\n".join(blocks)


def promise(result: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what a certificate of confidence per position promised, and what test rows did, under `PROMISES`."""
    made = result["certificate"]
    name = result["setting"]["name"]
    seed = str(result["seed"])
    promised = f"{made['level']:.0%} at {made['confidence']:.0%}"
    if made["threshold"] is None:
        return name, seed, promised, "none", "–", "–"
    test = made["test"]
    differ = f"{1 - test['same']:.1%}"
    steps = f"{test['position_steps']:.0%}"
    return name, seed, promised, f"{made['threshold']:g}", differ, steps


def draw_figure(path: Path, everything: Mapping[str, Results]) -> None:
    """Draw accuracy against seconds, one panel a task: medians over seeds; hollow per row, filled per position."""
    figure = new_figure(10, 3.1 * -(-len(everything) // 2))
    axes = figure.subplots(-(-len(everything) // 2), 2, squeeze=False).flatten()
    for panel, (name, found) in zip(axes, everything.items(), strict=False):
        _draw_task(panel, name, found)
    for panel in axes[len(everything) :]:
        panel.set_visible(False)
    save_svg(path, figure)


def _draw_task(panel: Axes, name: str, found: Results) -> None:
    """Draw one task: every fixed depth as a line, and each gate as a point."""
    depths = _draw_fixed_depths(panel, found)
    scores = []
    for way in found[0]["ways"]:
        gate = way.rpartition(", ")[0]
        if gate in _COLORS and gate != "fixed depth":
            scores.append(_draw_gate(panel, way, found))
    margin = max(0.02, (max(depths) - min(scores)) * 1.5)
    causal = found[0]["setting"]["causal"]
    panel.set(
        title=name,
        xlabel="ms a problem (one core)",
        ylabel="characters right" if causal else "problems solved",
        xlim=(0, None),
        ylim=(max(depths) - 2 * margin, max(depths) + 0.5 * margin),
    )
    panel.legend(fontsize="xx-small", loc="lower right")


def _draw_fixed_depths(panel: Axes, found: Results) -> list[float]:
    """Draw every fixed depth, with seconds in proportion to those of all steps; return their scores."""
    key = "right" if found[0]["setting"]["causal"] else "solved"
    by_step = [result["by_step"]["supervised"][key] for result in found]
    depths = [statistics.median(of_seeds) for of_seeds in zip(*by_step, strict=True)]
    whole = _median_milliseconds("all steps, supervised", found)
    places = [whole * (step + 1) / len(depths) for step in range(len(depths))]
    panel.plot(places, depths, color=_COLORS["fixed depth"], label="every fixed depth")
    return depths


def _draw_gate(panel: Axes, way: str, found: Results) -> float:
    """Draw one gate, filled per position and hollow per row; return its score."""
    gate, _, mode = way.rpartition(", ")
    score = statistics.median(score_of(result, result["ways"][way]["test"]) for result in found)
    filled = _COLORS[gate] if mode == "position" else "none"
    label = gate if mode == "position" else None
    seconds = _median_milliseconds(way, found)
    panel.plot([seconds], [score], "o", mec=_COLORS[gate], mfc=filled, label=label)
    return score


def _median_milliseconds(way: str, found: Results) -> float:
    """Return the milliseconds a problem of one way, the median over the seeds."""
    return statistics.median(
        milliseconds_of(result, result["ways"][way]["test"]) for result in found
    )


def draw_sudoku(path: Path, everything: Mapping[str, Results]) -> None:
    """Draw one test sudoku of each size, and the step at which each cell halted by its confidence."""
    shown = {
        name: found[0]["picture"] for name, found in everything.items() if found[0].get("picture")
    }
    figure = new_figure(3.4 * len(shown), 3.6)
    axes = figure.subplots(1, len(shown), squeeze=False)[0]
    for panel, (name, picture) in zip(axes, shown.items(), strict=True):
        side = round(len(picture["steps"]) ** 0.5)
        steps = [picture["steps"][row * side : (row + 1) * side] for row in range(side)]
        image = panel.imshow(steps, cmap="YlOrRd", vmin=1, vmax=1.5 * max(picture["steps"]))
        for cell, given in enumerate(picture["given"]):
            row, column = divmod(cell, side)
            weight = "bold" if given else "normal"
            symbol = str(picture["answers"][cell] + 1)
            panel.text(column, row, symbol, ha="center", va="center", weight=weight, size=11)
            step = str(picture["steps"][cell])
            panel.text(column + 0.44, row + 0.44, step, ha="right", va="bottom", size=6)
        height = 2
        width = side // height
        for line in range(1, side):
            panel.axhline(line - 0.5, color="black", lw=1.6 if line % height == 0 else 0.3)
            panel.axvline(line - 0.5, color="black", lw=1.6 if line % width == 0 else 0.3)
        panel.set(xticks=[], yticks=[], title=f"{name}: bold is given")
        figure.colorbar(image, ax=panel, label="step", shrink=0.8)
    save_svg(path, figure)
