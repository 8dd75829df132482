"""Temperatures and gates against independent optimisers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from ponder import Trajectory, policies
from ponder.calibration import calibrate, fit_gate, fit_temperatures
from ponder.calibration.fitting import staying_pays
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


def test_temperatures_have_the_least_log_loss() -> None:
    seen = record(300)
    rows = np.arange(300)

    def loss(log_t: float, n: int) -> float:
        return -log_softmax(seen.outputs[:, n] / 10**log_t, axis=-1)[rows, seen.labels].mean()

    for n, temperature in enumerate(fit_temperatures(seen)):
        best = minimize_scalar(loss, bounds=(-2, 2), args=(n,), method="bounded", options={"xatol": 1e-9}).x
        assert np.log10(temperature) == pytest.approx(best, abs=1e-6)
    assert fit_temperatures(trajectory()) == pytest.approx(fit_temperatures(seen))


def test_rows_that_teach_nothing_take_no_part() -> None:
    seen, fewer = record(300), record(300)
    seen.outputs[:40, 2] = np.nan
    seen.outputs[40:60, :, 0] = np.where(seen.labels[40:60, None] == 0, seen.outputs[40:60, :, 0], -np.inf)
    seen.labels[60:90] = -100
    keep = np.r_[40:60, 90:300]
    fewer.outputs, fewer.labels = seen.outputs[keep], seen.labels[keep]
    assert fit_temperatures(seen)[2] == pytest.approx(fit_temperatures(fewer)[2])


def test_temperatures_are_for_labelled_classes() -> None:
    seen = record(30)
    seen.labels = None
    with pytest.raises(ValueError, match="one class a row, with labels"):
        fit_temperatures(seen)


@pytest.mark.parametrize("target", ["gain", "error", "agreement", "unsettled"])
def test_events_in_hindsight_equal_plain_loops(target: Any) -> None:
    run = trajectory(80)
    delta = 0.1 if target == "gain" else 0.0
    found = staying_pays(run, target, delta)
    outputs, labels = run.outputs.numpy(), run.labels.numpy()
    answers = outputs.argmax(-1)
    losses = -log_softmax(outputs, axis=-1)[np.arange(80)[:, None], np.arange(5), labels[:, None]]
    for row in range(80):
        right = answers[row] == labels[row]
        for n in range(5):
            expected = {
                "gain": any(losses[row, m] < losses[row, n] - delta for m in range(n + 1, 5)),
                "error": not right[n] and any(right[n + 1 :]),
                "agreement": answers[row, n] != answers[row, -1],
                "unsettled": n < 4 and not all(right[n:]),
            }[target]
            assert found[row, n] == expected


@pytest.mark.parametrize("signals", [("confidence",), ("streak", "shift", "confidence"), ("movement",)])
def test_a_gate_is_the_logistic_regression_of_scikit_learn(signals: tuple[str, ...]) -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    run = trajectory()
    gate = fit_gate(run, "error", signals=signals)
    state, pays = gate.init(run.batch), staying_pays(run, "error")
    for n, view in zip(range(4), run.views(gate.needs), strict=False):
        x, state = gate.read(view, state)
        x = x.double().numpy()
        centre, scale = x.mean(0), x.std(0)
        scale = np.where(scale > 0, scale, 1.0)
        fitted = linear.LogisticRegression(max_iter=10_000, tol=1e-10).fit((x - centre) / scale, pays[:, n])
        weights = fitted.coef_[0] / scale
        assert gate.tables[n][:-1] == pytest.approx(weights, rel=1e-3, abs=1e-4)
        assert gate.tables[n][-1] == pytest.approx(fitted.intercept_[0] - weights @ centre, rel=1e-3, abs=1e-3)


def test_gates_serve_sweeps_and_runs() -> None:
    run = trajectory()
    gate = fit_gate(run, "error", floor=2)
    assert gate.signals[-1] == "expected"  # the trajectory has hazards
    assert int(run.replay(gate).exit_step.min()) >= 2
    assert calibrate(run, gate, at_most_steps=3.0).met
    shared = fit_gate(run, "agreement", shared=True)
    assert (shared.num_steps, len(shared.tables)) == (None, 1)
    assert policies.Gate.from_dict(gate.to_dict()) == gate


def test_an_event_that_never_comes_lets_all_rows_go() -> None:
    run = trajectory()
    run.outputs[:] = run.outputs[:, -1:].clone()
    gate = fit_gate(run, "agreement")
    assert run.replay(gate).exit_step.tolist() == [1] * 300
