"""Gates against scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ponder import Trajectory, policies
from ponder.calibration import calibrate, fit_gate
from tests.calibration.records import record


def trajectory(rows: int = 300, **options: Any) -> Trajectory:
    seen = record(rows)
    generator = torch.Generator().manual_seed(0)
    return Trajectory(
        torch.from_numpy(seen.outputs),
        torch.randn(rows, 5, generator=generator),
        torch.arange(rows),
        labels=torch.from_numpy(seen.labels),
        task="classification",
        **options,
    )


@pytest.mark.parametrize("arrays", [False, True], ids=["tensors", "arrays"])
def test_a_gate_is_the_logistic_regression_of_scikit_learn(arrays: bool) -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    run = record(300) if arrays else trajectory()
    run.outputs[:10, 1] = np.nan  # teaches nothing
    gate = fit_gate(run)
    state = gate.init(run.batch)
    differs = ~run.agreement()
    for n, view in zip(range(4), run.views(gate.needs), strict=False):
        signals, state = gate.read(view, state)
        x = np.asarray(signals, dtype=np.float64)
        taught = np.isfinite(x).all(1)
        x = x[taught]
        y = differs[taught, n]
        centre = x.mean(0)
        scale = x.std(0)
        scale = np.where(scale > 0, scale, 1.0)
        fitted = linear.LogisticRegression(max_iter=10_000, tol=1e-10).fit((x - centre) / scale, y)
        weights = fitted.coef_[0] / scale
        assert gate.tables[n][:-1] == pytest.approx(weights, rel=1e-3, abs=1e-3)
        assert gate.tables[n][-1] == pytest.approx(
            fitted.intercept_[0] - weights @ centre, rel=1e-3, abs=1e-2
        )


def test_gates_serve_sweeps_and_runs() -> None:
    run = trajectory()
    gate = fit_gate(run)
    assert calibrate(run, gate, at_most_steps=3.0).met
    assert policies.Gate.from_dict(gate.to_dict()) == gate


def test_an_event_that_never_comes_lets_all_rows_go() -> None:
    run = trajectory()
    run.outputs[:] = run.outputs[:, -1:].clone()
    assert run.replay(fit_gate(run)).exit_step.tolist() == [1] * 300
