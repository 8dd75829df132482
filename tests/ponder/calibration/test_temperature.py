"""Temperatures: the optimum by brute force, and what they do to a policy."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import ponder
from ponder.calibration import fit_temperatures
from ponder.policies import Confidence, ModelSpec, Quantile, Tempered
from tests.ponder import oracles
from tests.ponder.checks import refused
from tests.ponder.test_sweep import recorded


def likelihood(rows: list[Any], labels: list[int], temperature: float) -> float:
    return math.fsum(
        oracles.log_softmax([z / temperature for z in row])[y] for row, y in zip(rows, labels, strict=True)
    )


def test_each_temperature_is_the_best_of_its_step() -> None:
    trajectory = recorded(60, steps=3)
    aligned = trajectory.outputs + 1.5 * torch.nn.functional.one_hot(trajectory.labels, 3)[:, None]
    trajectory = ponder.Trajectory(aligned, None, trajectory.row_ids, labels=trajectory.labels)
    for step, temperature in enumerate(fit_temperatures(trajectory)):
        rows, labels = aligned[:, step].tolist(), trajectory.labels.tolist()
        best = likelihood(rows, labels, temperature)
        assert 0.02 < temperature < 50
        for factor in (0.8, 0.98, 1.02, 1.25):
            assert likelihood(rows, labels, temperature * factor) < best


def test_hopeless_and_perfect_steps_stay_within_bounds() -> None:
    labels = torch.arange(12) % 3
    perfect = torch.nn.functional.one_hot(labels, 3).float()
    outputs = torch.stack([perfect, -perfect], dim=1)
    low, high = fit_temperatures(ponder.Trajectory(outputs, None, torch.arange(12), labels=labels))
    assert low == pytest.approx(0.01, rel=1e-3)
    assert high == pytest.approx(100, rel=1e-3)


def test_a_tempered_policy_decides_on_divided_outputs() -> None:
    trajectory = recorded(50)
    temperatures = (0.5, 1.0, 2.0, 4.0, 1.0, 1.0)
    divided = ponder.Trajectory(
        trajectory.outputs / torch.tensor(temperatures)[:, None], trajectory.hazard_logits, trajectory.row_ids
    )
    tempered = trajectory.replay(Tempered(Confidence(0.8), temperatures))
    plain = divided.replay(Confidence(0.8))
    assert torch.equal(tempered.exit_step, plain.exit_step)
    assert torch.equal(tempered.outputs, trajectory.outputs[torch.arange(50), tempered.exit_step - 1])
    assert len(set(tempered.exit_step.tolist())) > 2
    same = trajectory.replay(Tempered(Quantile(0.5), (3.0,)))  # a policy that reads no output is not touched
    assert torch.equal(same.exit_step, trajectory.replay(Quantile(0.5)).exit_step)


def test_bad_temperatures() -> None:
    for wrong in ((), (1.0, 0.0), (math.inf,), (math.nan,)):
        with refused("temperatures"):
            Tempered(Confidence(0.5), wrong)
    with refused("temperatures", "6 steps", "got 2"):
        Tempered(Confidence(0.5), (1.0, 2.0)).check(ModelSpec(6, "classification", has_hazard=False))
    for trajectory in (recorded(task="regression"), ponder.Trajectory(torch.randn(4, 3, 2), None, torch.arange(4))):
        with refused("trajectory", "labels"):
            fit_temperatures(trajectory)


def test_excluded_classes_change_no_temperature() -> None:
    """A logit of −inf says that a class cannot be; where it is the label, the row tells nothing."""
    trajectory = recorded(60, steps=3)
    aligned = trajectory.outputs + 1.5 * torch.nn.functional.one_hot(trajectory.labels, 3)[:, None]
    plain = ponder.Trajectory(aligned, None, trajectory.row_ids, labels=trajectory.labels)
    excluded = torch.nn.functional.pad(aligned, (0, 1), value=-math.inf)
    wider = ponder.Trajectory(excluded, None, trajectory.row_ids, labels=trajectory.labels)
    assert fit_temperatures(wider) == pytest.approx(fit_temperatures(plain), rel=1e-9)


def test_labels_that_are_no_class_are_refused() -> None:
    trajectory = recorded(20, steps=3)
    moved = ponder.Trajectory(trajectory.outputs, None, trajectory.row_ids, labels=trajectory.labels + 1)
    with refused("labels", "classes 0 … 2"):
        fit_temperatures(moved)


def test_runs_of_training_mode_are_refused() -> None:
    trajectory = ponder.Trajectory(
        torch.randn(30, 3, 2), None, torch.arange(30), labels=torch.arange(30) % 2, training=True
    )
    with refused("trajectory", "evaluation mode"):
        fit_temperatures(trajectory)


def test_rows_of_which_none_has_a_label_are_told_apart_from_broken_outputs() -> None:
    trajectory = recorded(20, steps=3)
    with refused("trajectory", "at least one row with a label", "20 without"):
        fit_temperatures(
            ponder.Trajectory(
                trajectory.outputs,
                None,
                trajectory.row_ids,
                labels=torch.full_like(trajectory.labels, -100),
                task="classification",
            )
        )
