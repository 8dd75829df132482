"""Tables and the figure, from results alone."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.figures import new_figure, save_svg
from benchmarks.puzzles.config import PUZZLES
from benchmarks.puzzles.summary import GOALS, Results
from benchmarks.tables import spread
from ponder._utils.markdown import markdown_table

__all__ = ["COLUMNS", "draw_figure", "goal_table", "markdown", "rows"]

COLUMNS = ("network", "halting", "accuracy", "mean steps", "largest level", "rank correlation")
_NETWORKS = {"looped": "looped", "pondernet": "PonderNet", "act": "ACT", "feed-forward": "feed-forward"}
_COLORS = {
    "converged": "#D55E00",
    "confidence": "#009E73",
    "converged and confident": "#56B4E9",
    "fitted gate": "#CC79A7",
    "oracle": "#666666",
}


def rows(results: Results) -> Iterator[tuple[str, ...]]:
    """Every network with every way to stop, over the seeds that have it, under `COLUMNS`."""
    for learner, of_learner in results.items():
        if learner == "stream":
            continue
        chosen = [result.get("best_rule") for result in of_learner]
        network = _NETWORKS[learner] + _shorter(of_learner, results.get("looped", of_learner))
        for way in dict.fromkeys(way for result in of_learner for way in result["ways"]):
            told = [result["ways"][way]["test"] for result in of_learner if way in result["ways"]]
            star = f" (chosen by {chosen.count(way)} of {len(chosen)})" if way in chosen else ""
            some = "" if len(told) == len(of_learner) else f" ({len(told)} of {len(of_learner)} seeds)"
            yield (
                network,
                way + star + some,
                spread([one["accuracy"] for one in told], "{:.1%}"),
                spread([one["mean_steps"] for one in told], "{:.1f}"),
                spread([one["by_level"][-1]["accuracy"] for one in told], "{:.1%}"),
                spread([one["rank_correlation"] for one in told], "{:.2f}"),
            )


def level_table(results: Results, ways: Sequence[str] = ("best fixed depth", "oracle")) -> Iterator[tuple[str, ...]]:
    """Accuracy and mean exit step at each level, of the chosen rule and of `ways`; the mean over seeds."""
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


def goal_table(summary: Mapping[str, Mapping[str, Any]]) -> str:
    """What was asked and what came, a column a puzzle; a goal that is not reached says so."""

    def line(name: str, goal: str | None, read: Callable[[Mapping[str, Any]], str]) -> list[str]:
        cells = [name, "" if goal is None else GOALS[goal]]
        for told in summary.values():
            missed = goal is not None and told["goals"][goal] is False
            cells.append(read(told) + (" (missed)" if missed else ""))
        return cells

    lines = [
        line("solved by halting", "as_accurate_as_the_best_fixed_depth", lambda told: f"{told['accuracy']:.2%}"),
        line("solved at the best fixed depth", None, lambda told: f"{told['best_fixed_accuracy']:.2%}"),
        line("mean steps of halting, of the best fixed depth, of the oracle", None, _steps),
        line(
            "steps, of those of the best fixed depth",
            "at_60_percent_of_its_steps",
            lambda told: f"{told['mean_steps'] / told['best_fixed_steps']:.1%}",
        ),
        line(
            "steps, times the oracle's",
            "at_1.35_times_the_oracles_steps",
            lambda told: f"{told['mean_steps'] / told['oracle_steps']:.2f}",
        ),
        line(
            "solved at the last step",
            "more_accurate_than_running_on",
            lambda told: f"{told['last_step_accuracy']:.2%}",
        ),
        line(
            "rank correlation of steps with difficulty",
            "steps_rise_with_difficulty",
            lambda told: f"{told['rank_correlation']:.2f}",
        ),
        line("solved at twice the trained size", "larger_ones_solved", _share("larger_accuracy")),
        line("processor time saved by a stream, of the steps saved", "stream_saves_what_steps_do", _stream_share),
        line("solved by a feed-forward network of the same cost", None, _share("feed_forward_accuracy")),
        line("minutes of one core to train the solver from one seed, the baselines", None, _minutes),
        line("seeds", None, lambda told: str(len(told["seeds"]))),
    ]
    return "\n".join(markdown_table(("", "goal", *summary), lines))


def markdown(everything: Mapping[str, Results]) -> str:
    """Two tables a puzzle."""
    lines: list[str] = []
    for puzzle, results in everything.items():
        task, looped = PUZZLES[puzzle], results["looped"]
        config = looped[0]["setting"]
        lines += [
            f"### {puzzle.capitalize()}",
            "",
            f"Trained on {_listed(task.trained_levels)} {task.level_name}, {config['num_steps']} steps at most; "
            f"reported on {config['examples']:,} problems of each of {_listed(task.levels)}, up to "
            f"{config['run_steps']} steps. Seeds, and processor time of a training: {_trainings(results)}.",
            "",
            *markdown_table(COLUMNS, rows(results)),
            "",
            *markdown_table(
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


def draw_figure(path: Path, everything: Mapping[str, Results]) -> None:
    """Draw, for each puzzle, accuracy against mean steps, and mean exit step against difficulty (means over seeds)."""
    figure = new_figure(9, 3.2 * len(everything))
    axes = figure.subplots(len(everything), 2, squeeze=False)
    for (puzzle, results), (left, right) in zip(everything.items(), axes, strict=True):
        _accuracy_by_steps(left, results)
        _steps_by_level(right, puzzle, results)
        left.set_title(puzzle)
    save_svg(path, figure)


def _accuracy_by_steps(axes: Any, results: Results) -> None:
    looped = results["looped"]
    curves = [result["by_step"]["test"]["all"] for result in looped]
    accuracy = [statistics.fmean(at_step) for at_step in zip(*curves, strict=True)]
    axes.plot(range(1, len(accuracy) + 1), accuracy, color="#0072B2", label="every fixed depth")
    for way, color in _drawn(looped):
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
    for way, color in _drawn(results["looped"]):
        by_level = [result["ways"][way]["test"]["by_level"] for result in results["looped"]]
        steps = [statistics.fmean(one["mean_steps"] for one in of_level) for of_level in zip(*by_level, strict=True)]
        axes.plot(task.levels, steps, color=color, marker=".", label=way, linestyle=":" if way == "oracle" else "-")
    axes.axvline(max(task.trained_levels), color="#BBBBBB", linestyle="--", linewidth=1)
    axes.set_xlabel(f"{task.level_name} (trained up to the dashed line)")
    axes.set_ylabel("mean exit step")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize="x-small", loc="upper left")


def _drawn(looped: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """The ways to stop that all seeds have, and their colors."""
    return [(way, color) for way, color in _COLORS.items() if all(way in result["ways"] for result in looped)]


def _point(axes: Any, told: Sequence[Mapping[str, Any]], color: str, marker: str, label: str) -> None:
    x, y = (statistics.fmean(one[key] for one in told) for key in ("mean_steps", "accuracy"))
    axes.plot([x], [y], marker, color=color, label=label, markersize=9 if marker == "*" else 6)


def _of_streams(streams: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A line a stream: what halting saves in steps, and by the clock."""
    for one in streams:
        batch = one.get("max_batch", 64)  # older results do not name it
        yield (
            f"Stream of {one['problems']:,} problems of all levels, seed {one['seed']}: against {one['depth']} steps "
            f"in full batches of {batch}, `StreamEngine` saves {one['steps_saved']:.1%} of the steps, "
            f"{one['time_saved']:.1%} of the time by the clock and {one['cpu_time_saved']:.1%} of the processor's; "
            f"{one['answers_equal']:,} answers are those of the same rule in batches."
        )
        yield ""


def _steps(told: Mapping[str, Any]) -> str:
    return ", ".join(f"{told[key]:.1f}" for key in ("mean_steps", "best_fixed_steps", "oracle_steps"))


def _minutes(told: Mapping[str, Any]) -> str:
    seconds = told["training_seconds"]
    baselines = sum(value for learner, value in seconds.items() if learner != "looped")
    return f"{seconds['looped'] / 60:.1f}, {baselines / 60:.1f}"


def _share(key: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda told: "–" if told[key] is None else f"{told[key]:.1%}"


def _stream_share(told: Mapping[str, Any]) -> str:
    saved, steps = told["stream_cpu_time_saved"], told["stream_steps_saved"]
    return f"{saved / steps:.2f}" if steps else "–"  # None where nothing was timed


def _shorter(of_learner: Sequence[Mapping[str, Any]], looped: Sequence[Mapping[str, Any]]) -> str:
    """How long a baseline was trained, where that is not as long as the looped solver was."""
    updates = {result["setting"]["updates"] for result in of_learner}
    return "" if updates == {looped[0]["setting"]["updates"]} else f", {_listed(sorted(updates))} updates"


def _listed(levels: Sequence[int]) -> str:
    return ", ".join(map(str, levels))


def _trainings(results: Results) -> str:
    return "; ".join(
        f"{_NETWORKS[learner]} {_listed([result['seed'] for result in of_learner])} "
        f"({statistics.fmean(result['training']['seconds'] for result in of_learner) / 60:.1f} minutes)"
        for learner, of_learner in results.items()
        if learner != "stream"
    )
