"""The paired bootstrap over rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks import tasks
from benchmarks.glue.bootstrap import Replayed, paired_bootstrap

ROWS = 200


def replayed(right: float, seed: int) -> Replayed:
    """A run of two steps that is right on a share of the rows at both, and leaves half of them at each step."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, 2, ROWS)
    answers = np.where(draw.random(ROWS) < right, labels, 1 - labels)
    exit_step = np.stack([np.ones(ROWS, int), 1 + draw.integers(0, 2, ROWS), np.full(ROWS, 2)])
    return Replayed(tasks.get("RTE"), np.stack([answers, answers], axis=1), labels, exit_step)


def spoilt(run: Replayed) -> Replayed:
    """The same run, which answers 0 on every second row."""
    every_second = (np.arange(ROWS) % 2)[:, None]
    return replace(run, answers=run.answers * every_second)


def test_a_run_beside_itself_has_no_gap_on_any_resample() -> None:
    run = replayed(0.8, seed=0)
    found = paired_bootstrap([run], [run], resamples=20)
    assert (found.gap, found.low, found.high) == (0.0, 0.0, 0.0)


def test_the_interval_holds_the_gap_and_narrows_with_more_pairs() -> None:
    good = [replayed(0.9, seed) for seed in range(6)]
    bad = [spoilt(run) for run in good]
    one = paired_bootstrap(good[:1], bad[:1], resamples=50)
    six = paired_bootstrap(good, bad, resamples=50)
    assert one.low <= one.gap <= one.high
    assert six.high - six.low < one.high - one.low
    accuracy = [100 * np.mean(run.answers[:, 0] == run.labels) for run in (good[0], bad[0])]
    assert one.gap == pytest.approx(accuracy[0] - accuracy[1])
