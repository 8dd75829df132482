"""Figures: the numbers against plain Python, and what is on the axes; no picture is compared."""

from __future__ import annotations

import dataclasses
import math
import statistics
import sys
from collections.abc import Callable, Iterator
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import ponder
from ponder import plots, policies, priors
from ponder._utils.numerics import exit_shares, interpolate
from ponder._utils.seeds import Band
from ponder.analysis.overthinking import overthinking_of
from ponder.analysis.reliability import Reliability, confidences
from ponder.errors import PonderError
from ponder.plots.axes import shades
from tests.ponder import oracles
from tests.ponder.checks import refused

ROWS, STEPS = 50, 5


@pytest.fixture
def ax() -> Axes:
    return Figure().subplots()


@pytest.fixture(autouse=True)
def _no_figure_is_left() -> Iterator[None]:
    yield
    plt.close("all")


def made(seed: int = 0, steps: int = STEPS, rows: int = ROWS) -> ponder.Trajectory:
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.randn(rows, steps, 3, generator=generator).cumsum(1)
    hazards = torch.randn(rows, steps, generator=generator)
    labels = torch.randint(3, (rows,), generator=generator)
    return ponder.Trajectory(outputs, hazards, torch.arange(rows), labels=labels, task="classification")


def curves(policy: Any = policies.Quantile, grid: Any = (0.2, 0.5, 0.8), seeds: int = 3) -> list[ponder.Curve]:
    return [made(seed).sweep(policy, grid) for seed in range(seeds)]


def series(ax: Axes) -> list[Any]:
    return [line for line in ax.lines if line.get_gid() == "ponder-series"]


def points(line: Any) -> tuple[list[float], list[float]]:
    return [float(x) for x in line.get_xdata()], [float(y) for y in line.get_ydata()]


def entries(ax: Axes) -> list[str]:
    legend = ax.get_legend()
    return [] if legend is None else [text.get_text() for text in legend.get_texts()]


def edges(ax: Axes) -> tuple[list[float], list[float]]:
    """Lower and upper edge of the one band on the axes, in the order of x."""
    (band,) = [each for each in ax.collections if type(each).__name__.startswith("FillBetween")]
    vertices = sorted({(round(float(x), 9), round(float(y), 9)) for x, y in band.get_paths()[0].vertices})
    columns = sorted({x for x, _ in vertices})
    return (
        [min(y for x, y in vertices if x == column) for column in columns],
        [max(y for x, y in vertices if x == column) for column in columns],
    )


# -- the numbers -------------------------------------------------------------------------------------------------


def test_band() -> None:
    band = Band.of([[1.0, 5.0, math.nan], [2.0, 7.0, math.nan], [6.0, math.nan, math.nan]])
    assert band.mean[:2] == [3.0, 6.0]
    assert math.isnan(band.mean[2])
    assert band.std == pytest.approx([statistics.stdev([1, 2, 6]), statistics.stdev([5, 7]), 0.0])
    assert Band.of([[4.0]]).std == [0.0]
    assert Band.of([[4.0]]).name("a") == "a"
    assert band.name("a") == "a (mean ± std, 3 seeds)"


def plain_reliability(pairs: list[tuple[float, bool]], bins: int) -> tuple[list[list[tuple[float, bool]]], float]:
    inside: list[list[tuple[float, bool]]] = [[] for _ in range(bins)]
    for sure, right in pairs:
        inside[next(m for m in range(bins) if sure <= (m + 1) / bins)].append((sure, right))
    gaps = [abs(sum(right for _, right in each) - sum(sure for sure, _ in each)) for each in inside]
    return inside, sum(gaps) / len(pairs)


@pytest.mark.parametrize("bins", [1, 4, 10])
def test_reliability_is_that_of_plain_python(bins: int) -> None:
    sure = torch.rand(200, dtype=torch.float64)
    sure[:6] = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0, 1.0])  # on the edges
    right = torch.rand(200) < sure
    inside, ece = plain_reliability(list(zip(sure.tolist(), right.tolist(), strict=True)), bins)
    found = Reliability.of(sure, right, bins)
    assert found.count == [len(each) for each in inside]
    for place, each in enumerate(inside):
        assert found.confidence[place] == pytest.approx(statistics.fmean(s for s, _ in each))
        assert found.accuracy[place] == pytest.approx(statistics.fmean(r for _, r in each))
    assert found.ece == pytest.approx(ece)


def test_an_empty_bin_has_no_place_and_adds_nothing() -> None:
    found = Reliability.of(torch.tensor([0.9, 0.7]), torch.tensor([True, False]), 2)
    assert found.count == [0, 2]
    assert math.isnan(found.accuracy[0])
    assert found.ece == pytest.approx(abs(0.5 - 0.8))


def test_confidences_of_each_task() -> None:
    trajectory = made()
    sure, right = confidences(trajectory)
    row, step = 7, 2
    logits = trajectory.outputs[row, step].tolist()
    expected = max(math.exp(z) for z in logits) / sum(math.exp(z) for z in logits)
    assert sure[row, step].item() == pytest.approx(expected, rel=1e-5)
    assert bool(right[row, step]) == (logits.index(max(logits)) == int(trajectory.labels[row]))

    outputs = torch.tensor([[[3.0, -1.0], [-2.0, 4.0]]])  # one row, two steps, two labels
    labels = torch.tensor([[1.0, 1.0]])
    several = ponder.Trajectory(outputs, None, torch.arange(1), labels=labels, task="multilabel")
    sure, right = confidences(several)
    torch.testing.assert_close(sure, torch.tensor([[3.0, 2.0], [1.0, 4.0]]).sigmoid())
    assert right.tolist() == [[True, False], [False, True]]

    tokens = torch.tensor([[[[2.0, 0.0], [0.0, 1.0], [5.0, 0.0]], [[0.0, 2.0], [0.0, 3.0], [5.0, 0.0]]]])
    tagged = ponder.Trajectory(
        tokens, None, torch.arange(1), labels=torch.tensor([[0, 1, -100]]), task="token_classification"
    )
    sure, right = confidences(tagged)
    torch.testing.assert_close(sure, torch.tensor([[2.0, 2.0], [1.0, 3.0]]).sigmoid())
    assert right.tolist() == [[True, False], [True, True]]


def test_overthinking_is_that_of_plain_python() -> None:
    trajectory = made(3)
    rights = [
        [logits.index(max(logits)) == label for logits in steps]
        for steps, label in zip(trajectory.outputs.tolist(), trajectory.labels.tolist(), strict=True)
    ]
    found = overthinking_of(trajectory)
    assert found.right == pytest.approx([sum(row[n] for row in rights) / ROWS for n in range(STEPS)])
    assert found.right_by == pytest.approx([sum(any(row[: n + 1]) for row in rights) / ROWS for n in range(STEPS)])
    assert found.lost == pytest.approx(sum(any(row) and not row[-1] for row in rights) / ROWS)
    assert found.lost == pytest.approx(found.right_by[-1] - found.right[-1])
    assert 0 < found.lost < 1


def test_exit_shares() -> None:
    assert exit_shares(torch.tensor([1, 3, 3, 4]), 5) == [0.25, 0.0, 0.5, 0.25, 0.0]


def test_interpolation() -> None:
    costs, scores = [0.5, 0.1, 0.5, 1.0], [3.0, 1.0, 5.0, 0.0]  # in no order; two at 0.5
    assert interpolate(costs, scores, [0.1, 0.2, 0.3, 0.5, 0.75, 1.0]) == pytest.approx([1.0, 1.75, 2.5, 4.0, 2.0, 0.0])
    assert interpolate([0.5], [2.0], [0.5]) == [2.0]


def test_interpolation_is_the_mixture_of_two_policies() -> None:
    trajectory = made()
    low, high = trajectory.sweep(policies.FixedStep, [2, 4]).points
    coin = torch.arange(ROWS) % 2 == 0  # half of the rows meet each
    halves = [dataclasses.replace(trajectory.map(lambda tensor, rows=rows: tensor[rows])) for rows in (coin, ~coin)]
    mixed = [half.sweep(policies.FixedStep, [2, 4]).points for half in halves]
    cost = (low.mean_exit_step + high.mean_exit_step) / 2
    (score,) = interpolate([2.0, 4.0], [low.score, high.score], [cost])
    either = [(mixed[0][a].score + mixed[1][1 - a].score) / 2 for a in (0, 1)]
    assert score == pytest.approx(sum(either) / 2)


# -- the figures -------------------------------------------------------------------------------------------------


def test_posterior(ax: Axes) -> None:
    seeds = [made(seed) for seed in range(3)]
    assert plots.posterior(seeds, priors.Geometric(0.3), ax=ax, label="RTE") is ax
    means = []
    for trajectory in seeds:
        rows = [oracles.pmf(logits) for logits in trajectory.hazard_logits.tolist()]
        means.append([statistics.fmean(row[n] for row in rows) for n in range(STEPS)])
    (line,) = series(ax)
    steps, values = points(line)
    assert steps == [1, 2, 3, 4, 5]
    assert values == pytest.approx([statistics.fmean(each) for each in zip(*means, strict=True)], rel=1e-5)
    low, high = edges(ax)
    spread = [statistics.stdev(each) for each in zip(*means, strict=True)]
    assert [up - down for up, down in zip(high, low, strict=True)] == pytest.approx([2 * s for s in spread], rel=1e-4)
    prior = next(line for line in ax.lines if line.get_label() == "prior")
    assert points(prior)[1] == pytest.approx(oracles.pmf([math.log(0.3 / 0.7)] * STEPS), rel=1e-5)
    assert entries(ax) == ["RTE (mean ± std, 3 seeds)", "prior"]
    assert list(ax.get_xticks()) == [1, 2, 3, 4, 5]
    assert ax.get_xlabel() == "step n"
    assert ax.get_ylim()[0] == 0


def test_a_second_call_takes_the_next_colour_and_widens_the_axes(ax: Axes) -> None:
    plots.posterior(made(steps=3), ax=ax, label="three")
    top = ax.get_ylim()[1]
    certain = dataclasses.replace(made(steps=6), hazard_logits=torch.full((ROWS, 6), -50.0))
    plots.posterior(certain, ax=ax, label="six")
    plots.posterior(made(steps=3), ax=ax, label="three again", color="red")
    first, second, third = series(ax)
    assert first.get_color() != second.get_color()
    assert third.get_color() == "red"
    assert list(ax.get_xticks()) == [1, 2, 3, 4, 5, 6]
    assert ax.get_ylim()[0] == 0
    assert ax.get_ylim()[1] > 1.0 > top
    assert not ax.collections  # one seed has no band


def test_posterior_takes_a_distribution_and_a_prior_that_learns(ax: Axes) -> None:
    plots.posterior(made(), priors.Geometric(0.3)(STEPS), ax=ax)
    plots.posterior(made(), ponder.StepDistribution(torch.full((STEPS,), -math.log(STEPS)).requires_grad_()), ax=ax)
    with refused("prior", "(4,)"):
        plots.posterior(made(), priors.Geometric(0.3)(4), ax=ax)


def test_many_steps_have_few_ticks(ax: Axes) -> None:
    plots.posterior(made(steps=50, rows=4), ax=ax)
    ticks = list(ax.get_xticks())
    assert (ticks[0], ticks[-1]) == (1, 50)
    assert len(ticks) <= 17
    assert all(tick == int(tick) for tick in ticks)


def test_score_by_threshold(ax: Axes) -> None:
    seeds = curves()
    plots.score_by_threshold(seeds, ax=ax, label="palbert")
    (line,) = series(ax)
    values, scores = points(line)
    assert values == [0.2, 0.5, 0.8]
    assert scores == pytest.approx(
        [statistics.fmean(curve.points[place].score for curve in seeds) for place in range(3)]
    )
    full = next(line for line in ax.lines if line.get_linestyle() == ":" and len(line.get_xdata()))
    assert full.get_ydata()[0] == pytest.approx(statistics.fmean(curve.full_depth.score for curve in seeds))
    assert full.get_color() == line.get_color()
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("q", "accuracy")
    assert entries(ax) == ["palbert (mean ± std, 3 seeds)", "full depth"]
    plots.score_by_threshold(seeds[0], ax=ax, label="one")
    assert entries(ax) == ["palbert (mean ± std, 3 seeds)", "full depth", "one"]


def test_curves_plot_themselves(ax: Axes) -> None:
    (curve,) = curves(policies.Patience, None, seeds=1)
    assert curve.plot(ax=ax, color="black") is ax
    (line,) = series(ax)
    assert points(line) == (curve.to_dict()["threshold"], curve.to_dict()["score"])
    assert line.get_color() == "black"
    ax.figure.canvas.draw()
    assert all(tick == int(tick) for tick in ax.get_xticks())


@pytest.mark.parametrize("by", ["steps", "cost"])
def test_score_by_speed_up(ax: Axes, by: Any) -> None:
    costs = [1.0, 1.0, 1.0, 1.0, 10.0]
    curve = made().sweep(policies.FixedStep, [1, 2, 4], costs=costs)
    plots.score_by_speed_up({"fixed": curve}, by=by, baseline=0.4, ax=ax)
    expected = [5.0, 2.5, 1.25] if by == "steps" else [10.0, 10.0, 10.0]
    dots = next(line for line in ax.lines if line.get_marker() == "o" and line.get_linestyle() == "None")
    assert points(dots) == (pytest.approx(expected), curve.to_dict()["score"])
    (line,) = series(ax)
    for speed_up in set(expected):  # the line goes through the dots
        scores = [y for x, y in zip(*points(dots), strict=True) if x == pytest.approx(speed_up)]
        drawn = [y for x, y in zip(*points(line), strict=True) if x == pytest.approx(speed_up)]
        assert drawn == [pytest.approx(statistics.fmean(scores))]
    assert by in ax.get_xlabel()
    assert entries(ax)[:2] == ["fixed", "baseline"]
    assert "full depth" in entries(ax)
    assert ax.xaxis.get_major_formatter()(2.0) == "2×"


def test_seeds_are_compared_at_equal_cost(ax: Axes) -> None:
    def curve(steps: list[float], scores: list[float]) -> ponder.Curve:
        (like,) = curves(seeds=1)
        made = [
            ponder.Point(value, score, step, step / 10, 1.0)
            for value, (score, step) in enumerate(zip(scores, steps, strict=True))
        ]
        return dataclasses.replace(like, points=tuple(made), full_depth=ponder.Point(math.nan, 0.9, 10.0, 1.0, 1.0))

    slow, fast = curve([4.0, 8.0], [0.4, 0.8]), curve([2.0, 6.0], [0.1, 0.5])
    plots.score_by_speed_up({"two": [slow, fast]}, ax=ax)
    (line,) = series(ax)
    speed_ups, scores = points(line)
    assert (max(speed_ups), min(speed_ups)) == pytest.approx((10 / 4, 10 / 6))  # what both reach
    for speed_up, score in zip(speed_ups, scores, strict=True):
        steps = 10 / speed_up
        assert score == pytest.approx((0.1 * steps + (0.1 * steps - 0.1)) / 2)
    apart = curve([9.0, 9.5], [0.8, 0.9])
    with refused("curves['two']", "0.9", "0.6"):
        plots.score_by_speed_up({"two": [apart, fast]}, ax=ax)


def test_exit_histogram(ax: Axes) -> None:
    seeds = [[1, 1, 2, 4], [1, 2, 2, 4], [1, 4, 4, 4]]
    plots.exit_histogram(seeds, 4, ax=ax, label="palbert")
    bars = ax.patches
    assert [bar.get_height() for bar in bars] == pytest.approx([4 / 12, 3 / 12, 0.0, 5 / 12])
    assert [round(bar.get_x() + bar.get_width() / 2, 6) for bar in bars] == [1, 2, 3, 4]
    (errors,) = [each for each in ax.collections if type(each).__name__ == "LineCollection"]
    lengths = [segment[1][1] - segment[0][1] for segment in errors.get_segments()]
    spread = [statistics.stdev(each) for each in ([0.5, 0.25, 0.25], [0.25, 0.5, 0], [0, 0, 0], [0.25, 0.25, 0.75])]
    assert lengths == pytest.approx([2 * each for each in spread])
    assert entries(ax) == [f"all rows: mean exit step {(8 + 9 + 13) / 12:.2f}"]
    assert ax.get_legend().get_title().get_text() == "palbert (mean ± std, 3 seeds)"
    assert list(ax.get_xticks()) == [1, 2, 3, 4]


def test_exit_histogram_by_group(ax: Axes) -> None:
    exits, groups = torch.tensor([1, 1, 3, 2, 3]), torch.tensor([0, 0, 0, 5, 5])
    plots.exit_histogram(exits, 3, groups, ax=ax, label="difficulty")
    easy, hard = ax.containers
    assert [bar.get_height() for bar in easy] == pytest.approx([2 / 3, 0, 1 / 3])
    assert [bar.get_height() for bar in hard] == pytest.approx([0, 1 / 2, 1 / 2])
    assert entries(ax) == ["0: mean exit step 1.67", "5: mean exit step 2.50"]
    assert easy[0].get_x() + easy[0].get_width() <= hard[0].get_x()  # side by side
    assert easy[0].get_facecolor() != hard[0].get_facecolor()
    for mixed in (["b", "b", "b", "a", "a"], ["b", "b", "b", 1, 1]):  # sorted where that has a meaning
        other = Figure().subplots()
        plots.exit_histogram(exits.tolist(), 3, mixed, ax=other)
        assert entries(other)[0].startswith("a" if "a" in mixed else "b")


def test_reliability(ax: Axes) -> None:
    trajectory = made(rows=200)
    plots.reliability(trajectory, step=2, bins=5, ax=ax, label="palbert")
    sure, right = confidences(trajectory)
    pairs = [(s, bool(r)) for s, r in zip(sure[:, 1].tolist(), right[:, 1].tolist(), strict=True)]
    inside, ece = plain_reliability(pairs, 5)
    (line,) = series(ax)
    x, y = points(line)
    full = [each for each in inside if each]
    assert x == pytest.approx([statistics.fmean(s for s, _ in each) for each in full])
    assert y == pytest.approx([statistics.fmean(r for _, r in each) for each in full])
    assert entries(ax) == [f"palbert, step 2, ECE {ece:.3f}"]
    (dots,) = ax.collections
    assert [(size - 4) / 160 for size in dots.get_sizes()] == pytest.approx([len(each) / 200 for each in full])


def test_reliability_of_every_step(ax: Axes) -> None:
    plots.reliability([made(seed) for seed in range(3)], ax=ax)
    lines = series(ax)
    assert len({line.get_color() for line in lines}) == len(lines) == STEPS
    assert [entry.split(",")[0] for entry in entries(ax)] == [f"step {n}" for n in range(1, STEPS + 1)]
    assert all(" ± " in entry for entry in entries(ax))
    one = Figure().subplots()
    plots.reliability([made(seed) for seed in range(3)], step=1, ax=one)
    assert points(series(one)[0]) == points(lines[0])
    assert len(one.collections) == 2  # the band, and the dots
    luminance = [0.2 * r + 0.7 * g + 0.1 * b for r, g, b, _ in shades(6)]
    assert luminance == sorted(luminance)


def test_overthinking(ax: Axes) -> None:
    seeds = [made(seed) for seed in range(3)]
    plots.overthinking(seeds, ax=ax, label="palbert")
    each = [overthinking_of(trajectory) for trajectory in seeds]
    (line,) = series(ax)
    assert points(line) == (
        [1, 2, 3, 4, 5],
        pytest.approx([statistics.fmean(o.right[n] for o in each) for n in range(STEPS)]),
    )
    dashed = next(line for line in ax.lines if line.get_linestyle() == "--" and len(line.get_xdata()))
    assert points(dashed)[1][-1] == pytest.approx(statistics.fmean(o.right_by[-1] for o in each))
    lost = [100 * o.lost for o in each]
    (text,) = ax.texts
    assert text.get_text() == f"{statistics.fmean(lost):.1f} ± {statistics.stdev(lost):.1f} %"
    assert entries(ax) == [
        "palbert (mean ± std, 3 seeds)",
        "right at step n or before",
        "right at some step, wrong at the last",
    ]
    plots.overthinking(made(), ax=ax, label="one")
    assert series(ax)[1].get_color() != line.get_color()


# -- all of them -------------------------------------------------------------------------------------------------

DRAW: dict[str, Callable[..., Axes]] = {
    "posterior": lambda **options: plots.posterior(made(), priors.Geometric(0.3), **options),
    "score_by_threshold": lambda **options: plots.score_by_threshold(curves(), **options),
    "score_by_speed_up": lambda **options: plots.score_by_speed_up(
        {"q": curves(), "patience": curves(policies.Patience, None)}, baseline=[0.3, 0.4], **options
    ),
    "exit_histogram": lambda **options: plots.exit_histogram([1, 2, 3], 3, **options),
    "reliability": lambda **options: plots.reliability(made(), **options),
    "overthinking": lambda **options: plots.overthinking(made(), **options),
    "frontiers": lambda **options: plots.frontiers(ponder.diagnose(made(), samples=40), **options),
}


def test_every_figure_is_here() -> None:
    assert set(DRAW) == set(plots.__all__)


@pytest.mark.parametrize("name", DRAW)
def test_what_every_figure_keeps(name: str) -> None:
    before = dict(mpl.rcParams)
    with torch.no_grad():
        ax = DRAW[name]()  # a new pyplot figure
    assert plt.get_fignums() == [ax.figure.number]
    ax.figure.canvas.draw()
    assert dict(mpl.rcParams) == before
    assert ax.get_xlabel()
    assert ax.get_ylabel()
    own = Figure().subplots()
    assert DRAW[name](ax=own) is own
    own.figure.canvas.draw()
    assert plt.get_fignums() == [ax.figure.number]  # no other figure was made


@pytest.mark.parametrize("name", DRAW)
def test_without_matplotlib(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(PonderError, match=r"pip install 'ponder-torch\[plots\]'"):
        DRAW[name]()


def test_the_old_name_warns_and_draws(ax: Axes) -> None:
    with pytest.warns(DeprecationWarning, match="score_by_knob is called ponder.plots.score_by_threshold"):
        draw = plots.score_by_knob
    draw(curves(), ax=ax)
    assert series(ax)


def test_what_is_refused(ax: Axes) -> None:
    unlabelled = dataclasses.replace(made(), labels=None)
    with refused("curves", "NaN"):
        plots.score_by_threshold(unlabelled.sweep(policies.Quantile), ax=ax)
    with refused("curves['q']", "NaN"):
        plots.score_by_speed_up({"q": unlabelled.sweep(policies.Quantile)}, ax=ax)
    with refused("curves", "(0.2, 0.5, 0.8)"):
        plots.score_by_threshold([*curves(), *curves(grid=[0.1])], ax=ax)
    with refused("curves", "patience"):
        plots.score_by_threshold([*curves(), *curves(policies.Patience, [1, 2])], ax=ax)
    with refused("curves"):
        plots.score_by_threshold([], ax=ax)
    with refused("curves"):
        plots.score_by_speed_up({}, ax=ax)
    with refused("by", "'seconds'"):
        plots.score_by_speed_up({"q": curves()}, by="seconds", ax=ax)  # type: ignore[arg-type]
    with refused("baseline"):
        plots.score_by_speed_up({"q": curves()}, baseline=math.nan, ax=ax)
    with refused("curves", "Trajectory", type_error=True):
        plots.score_by_threshold(made(), ax=ax)  # type: ignore[arg-type]
    for figure in (plots.posterior, plots.overthinking, plots.reliability):
        with refused("trajectories", "5 and 4"):
            figure([made(), made(steps=4)], ax=ax)
        with refused("trajectories"):
            figure(made(rows=0), ax=ax)
    for figure in (plots.overthinking, plots.reliability):
        with refused("trajectories", "no labels"):
            figure(unlabelled, ax=ax)
        with refused("trajectories", "regression"):
            figure(dataclasses.replace(made(), task="regression"), ax=ax)
    with refused("trajectories", "NaN"):
        plots.reliability(dataclasses.replace(made(), outputs=made().outputs * math.nan), ax=ax)
    with refused("trajectories", "NaN"):
        plots.posterior(dataclasses.replace(made(), hazard_logits=made().hazard_logits * math.nan), ax=ax)
    with pytest.raises(PonderError, match="Lambda head"):
        plots.posterior(dataclasses.replace(made(), hazard_logits=None), ax=ax)
    for step in (0, STEPS + 1, 1.5, True):
        with refused("step"):
            plots.reliability(made(), step=step, ax=ax)  # type: ignore[arg-type]
    for bins in (0, 2.0):
        with refused("bins"):
            plots.reliability(made(), bins=bins, ax=ax)  # type: ignore[arg-type]
    for exits in ([0, 1], [1, 6], [], [1.5], [[1], []], 3, torch.tensor([[[1]]])):
        with refused("exit_steps"):
            plots.exit_histogram(exits, STEPS, ax=ax)  # type: ignore[arg-type]
    with refused("by"):
        plots.exit_histogram([1, 2], STEPS, [0], ax=ax)
    assert not ax.lines  # nothing is drawn before all is checked
    assert not ax.patches
