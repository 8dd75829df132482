"""Figures show the numbers that they are given."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from ponder import Trajectory
from ponder.calibration import diagnose, plots, sweep
from ponder.policies import Confidence, Patience
from tests.calibration.records import record

mpl.use("Agg")


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    plt.close("all")


def lines(ax: Any) -> dict[str, Any]:
    return {line.get_label(): line.get_xydata() for line in ax.lines}


def test_score_by_threshold_over_seeds() -> None:
    curves = [sweep(record(60, seed=seed), Confidence, [0.3, 0.6, 0.9]) for seed in range(3)]
    ax = plots.score_by_threshold(curves, label="sure")
    scores = np.array([[point.score for point in curve.points] for curve in curves])
    assert lines(ax)["sure (mean ± std, 3 seeds)"] == pytest.approx(np.stack([[0.3, 0.6, 0.9], scores.mean(0)], 1))
    band = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert band.max() == pytest.approx((scores.mean(0) + scores.std(0, ddof=1)).max())
    second = plots.score_by_threshold(curves[0], ax=ax)
    assert second is ax
    assert ax.lines[2].get_color() != ax.lines[0].get_color()


@pytest.mark.parametrize("by", ["steps", "cost"])
def test_score_by_speed_up_compares_seeds_at_equal_cost(by: Any) -> None:
    costs = [1.0, 1.5, 4.0, 5.0, 10.0]
    one, two = (sweep(record(60, seed=seed), Confidence, costs=costs) for seed in (0, 1))
    ax = plots.score_by_speed_up({"one": one, "both": [one, two]}, by=by, baseline=0.5)
    found = lines(ax)["one"]
    for point in one.points:
        cost = point.mean_exit_step / 5 if by == "steps" else point.cost
        place = np.abs(found[:, 0] - 1 / cost).argmin()
        same = [p.score for p in one.points if round(p.mean_exit_step, 9) == round(point.mean_exit_step, 9)]
        assert found[place] == pytest.approx([1 / cost, np.mean(same)])
    assert ax.get_xlabel() == f"speed-up in {by}"
    assert "both (mean ± std, 2 seeds)" in lines(ax)
    assert set(lines(ax)["baseline"][:, 1]) == {0.5}


def test_frontiers_of_a_diagnosis() -> None:
    made = diagnose(record(60), [Confidence, Patience])
    found = lines(plots.frontiers(made))
    for name, line in made.frontiers.items():
        assert found[name] == pytest.approx(np.stack([line.costs, line.scores], 1))


def test_exit_histogram_of_groups() -> None:
    ax = plots.exit_histogram(torch.tensor([1, 2, 2, 4]), 4, by=["b", "a", "a", "b"], label="letter")
    assert [[bar.get_height() for bar in bars] for bars in ax.containers] == [[0, 1, 0, 0], [0.5, 0, 0, 0.5]]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "a: mean exit step 2.00",
        "b: mean exit step 2.50",
    ]


def test_halting_is_the_mean_distribution() -> None:
    run = Trajectory(torch.randn(8, 4, 2), torch.randn(8, 4), torch.arange(8))
    ax = plots.halting(run, torch.tensor([0.1, 0.2, 0.3, 0.4]))
    assert lines(ax)["posterior"][:, 1] == pytest.approx(run.halting.pmf.mean(0).numpy(), abs=1e-6)
    assert lines(ax)["prior"][:, 1] == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_reliability_bins_equal_a_plain_loop() -> None:
    seen = record(200)
    p = np.exp(seen.outputs[:, 1]) / np.exp(seen.outputs[:, 1]).sum(-1, keepdims=True)
    sure, right = p.max(-1), seen.correct()[:, 1]
    dots, error = [], 0.0
    for m in range(10):
        inside = (sure > m / 10) & (sure <= (m + 1) / 10)
        if inside.any():
            dots.append([sure[inside].mean(), right[inside].mean()])
            error += inside.mean() * abs(sure[inside].mean() - right[inside].mean())
    found = lines(plots.reliability(seen, step=2))
    assert found[f"step 2, ECE {error:.3f}"] == pytest.approx(np.array(dots))
    assert len(plots.reliability(seen).lines) == 6
