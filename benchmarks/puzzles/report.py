"""Tables and the figure, from results alone."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.puzzles.setting import PUZZLES
from benchmarks.puzzles.summary import Results
from ponder._utils.files import write_text
from ponder.errors import PonderError

__all__ = ["COLUMNS", "draw_figure", "level_table", "markdown", "rows", "write_page"]

COLUMNS = ("network", "halting", "accuracy", "mean steps", "largest level", "rank correlation")
_NETWORKS = {"looped": "looped", "pondernet": "PonderNet", "act": "ACT", "feed-forward": "feed-forward"}
_BEGIN, _END = "<!-- results: written by the benchmark -->", "<!-- end of results -->"
_COLORS = {
    "converged": "#D55E00",
    "confidence": "#009E73",
    "converged and confident": "#56B4E9",
    "fitted gate": "#CC79A7",
    "oracle": "#666666",
}


def rows(results: Results) -> Iterator[tuple[str, ...]]:
    """Every network with every way to stop, over seeds, under `COLUMNS`."""
    for learner, of_learner in results.items():
        if learner == "stream":
            continue
        chosen = [result.get("best_rule") for result in of_learner]
        for way in of_learner[0]["ways"]:
            told = [result["ways"][way]["test"] for result in of_learner]
            star = f" (chosen by {chosen.count(way)} of {len(chosen)})" if way in chosen else ""
            yield (
                _NETWORKS[learner],
                way + star,
                _spread([one["accuracy"] for one in told], "{:.1%}"),
                _spread([one["mean_steps"] for one in told], "{:.1f}"),
                _spread([one["by_level"][-1]["accuracy"] for one in told], "{:.1%}"),
                _spread([one["rank_correlation"] for one in told], "{:.2f}"),
            )


def level_table(results: Results, ways: Sequence[str] = ("best fixed depth", "oracle")) -> Iterator[tuple[str, ...]]:
    """For each level: accuracy and mean exit step of the chosen rule, and of `ways`; the mean over seeds."""
    looped = results["looped"]
    told = [
        [result["ways"][result["best_rule"]]["test"]["by_level"] for result in looped],
        *([result["ways"][way]["test"]["by_level"] for result in looped] for way in ways),
    ]
    for place, entry in enumerate(told[0][0]):
        cells = [str(entry["level"])]
        for of_way in told:
            for key, form in (("accuracy", "{:.1%}"), ("mean_steps", "{:.1f}")):
                cells.append(form.format(statistics.fmean(by_level[place][key] for by_level in of_way)))
        yield tuple(cells)


def markdown(everything: Mapping[str, Results]) -> str:
    """Two tables a puzzle."""
    lines: list[str] = []
    for puzzle, results in everything.items():
        task, looped = PUZZLES[puzzle], results["looped"]
        setting = looped[0]["setting"]
        lines += [
            f"### {puzzle.capitalize()}",
            "",
            f"Trained on {_listed(task.trained_levels)} {task.level_name}, {setting['num_steps']} steps at most; "
            f"reported on {setting['examples']:,} problems of each of {_listed(task.levels)}, up to "
            f"{setting['run_steps']} steps. Seeds: {_seeds(results)}.",
            "",
            *_table(COLUMNS, rows(results)),
            "",
            *_table(
                (
                    task.level_name,
                    "halting: accuracy",
                    "steps",
                    "best fixed depth: accuracy",
                    "steps",
                    "oracle: accuracy",
                    "steps",
                ),
                level_table(results),
            ),
            "",
            *_of_streams(results.get("stream", ())),
        ]
    return "\n".join(lines).rstrip()


def write_page(page: Path, everything: Mapping[str, Results]) -> None:
    """Put the tables between the marks of a Markdown page."""
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    if _BEGIN not in text or _END not in text:
        raise PonderError(
            f"{page}: expected a page with the marks {_BEGIN!r} and {_END!r}. Add them where tables belong."
        )
    before, rest = text.split(_BEGIN, 1)
    after = rest.split(_END, 1)[1]
    write_text(page, f"{before}{_BEGIN}\n\n{markdown(everything)}\n\n{_END}{after}")


def draw_figure(path: Path, everything: Mapping[str, Results]) -> None:
    """For each puzzle: accuracy against mean steps, and mean exit step against difficulty (means over seeds)."""
    import matplotlib as mpl  # of the extra plots
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2 * len(everything)), layout="constrained")
    axes = figure.subplots(len(everything), 2, squeeze=False)
    for (puzzle, results), (left, right) in zip(everything.items(), axes, strict=True):
        _accuracy_by_steps(left, results)
        _steps_by_level(right, puzzle, results)
        left.set_title(puzzle)
    # Text stays text, and two drawings of the same numbers are the same file.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": path.stem}):
        figure.savefig(path, metadata={"Date": None, "Creator": None})


def _accuracy_by_steps(axes: Any, results: Results) -> None:
    looped = results["looped"]
    curves = [result["by_step"]["test"]["all"] for result in looped]
    accuracy = [statistics.fmean(at_step) for at_step in zip(*curves, strict=True)]
    axes.plot(range(1, len(accuracy) + 1), accuracy, color="#0072B2", label="every fixed depth")
    for way, color in _COLORS.items():
        told = [result["ways"][way]["test"] for result in looped]
        _point(axes, told, color, "o" if way != "oracle" else "*", way)
    for learner, marker in (("pondernet", "s"), ("act", "^"), ("feed-forward", "D")):
        if learner in results:
            way = next(iter(results[learner][0]["ways"]))
            _point(axes, [r["ways"][way]["test"] for r in results[learner]], "#E69F00", marker, _NETWORKS[learner])
    axes.set_xlabel("mean steps")
    axes.set_ylabel("problems solved")
    axes.set_ylim(-0.02, 1.04)
    axes.legend(fontsize="x-small", loc="lower right")


def _steps_by_level(axes: Any, puzzle: str, results: Results) -> None:
    task = PUZZLES[puzzle]
    for way, color in _COLORS.items():
        by_level = [result["ways"][way]["test"]["by_level"] for result in results["looped"]]
        steps = [statistics.fmean(one["mean_steps"] for one in of_level) for of_level in zip(*by_level, strict=True)]
        axes.plot(task.levels, steps, color=color, marker=".", label=way, linestyle=":" if way == "oracle" else "-")
    axes.axvline(max(task.trained_levels), color="#BBBBBB", linestyle="--", linewidth=1)
    axes.set_xlabel(f"{task.level_name} (trained up to the dashed line)")
    axes.set_ylabel("mean exit step")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize="x-small", loc="upper left")


def _point(axes: Any, told: Sequence[Mapping[str, Any]], color: str, marker: str, label: str) -> None:
    x, y = (statistics.fmean(one[key] for one in told) for key in ("mean_steps", "accuracy"))
    axes.plot([x], [y], marker, color=color, label=label, markersize=9 if marker == "*" else 6)


def _of_streams(streams: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A line a stream: what halting saves in steps, and by the clock."""
    for one in streams:
        yield (
            f"Stream of {one['problems']:,} problems of all levels, seed {one['seed']}: against {one['depth']} steps "
            f"in full batches, `StreamEngine` saves {one['steps_saved']:.1%} of the steps, {one['time_saved']:.1%} of "
            f"the time by the clock and {one['cpu_time_saved']:.1%} of the processor's; {one['answers_equal']:,} "
            f"answers are those of the same rule in batches."
        )
        yield ""


def _table(columns: Sequence[str], cells: Iterator[tuple[str, ...]]) -> list[str]:
    return [
        "| " + " | ".join(columns) + " |",
        "| " + " | ".join("---" for _ in columns) + " |",
        *("| " + " | ".join(row) + " |" for row in cells),
    ]


def _spread(values: Sequence[float], form: str) -> str:
    mean = form.format(statistics.fmean(values))
    return mean if len(values) < 2 else f"{mean} ± {form.format(statistics.stdev(values))}"


def _listed(levels: Sequence[int]) -> str:
    return ", ".join(map(str, levels))


def _seeds(results: Results) -> str:
    return "; ".join(
        f"{_NETWORKS[learner]} {_listed([result['seed'] for result in of_learner])}"
        for learner, of_learner in results.items()
        if learner != "stream"
    )
