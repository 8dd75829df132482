"""A policy that was fitted is not judged on the rows that fitted it."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import ponder
from ponder import policies
from ponder.calibration import fit_gate
from ponder.policies.fitted import check_unfitted
from tests.ponder.checks import refused
from tests.ponder.policies.test_gate_policy import record

pytest.importorskip("sklearn", reason="gates are fitted with scikit-learn, which is not installed")


def part(trajectory: ponder.Trajectory, rows: torch.Tensor) -> ponder.Trajectory:
    return dataclasses.replace(trajectory, **{name: each[rows] for name, each in trajectory.tensors().items()})


def wrapped(gate: policies.Gate) -> policies.ExitPolicy:
    return policies.Tempered(gate, (2.0,)) | policies.FixedStep(5)


@pytest.mark.parametrize("rows", [20, 64, 65, 400])
def test_the_rows_that_fitted_a_gate_choose_certify_and_judge_nothing(rows: int) -> None:
    fitted_on, other = record(rows=rows), record(seed=1)  # both with the ids 0, 1, 2, …
    gate = fit_gate(fitted_on, "error")
    with refused("trajectory", "not fitted"):
        ponder.calibrate(fitted_on, gate, at_most_steps=3.0)
    with refused("trajectory", "not fitted"):
        ponder.calibrate(fitted_on, [policies.Confidence, gate], at_most_steps=3.0)
    with refused("trajectory", "not fitted"):
        ponder.control_risk(fitted_on, gate, level=0.2)
    with refused("trajectory", "not fitted"):
        ponder.diagnose(fitted_on, [policies.Confidence, gate])
    for made in (ponder.calibrate(other, gate, at_most_steps=3.0), ponder.control_risk(other, gate, level=0.2)):
        with refused("test", "not fitted"):
            made.evaluate(fitted_on)
    assert ponder.diagnose(other, [gate]).verdict


def test_a_part_of_the_rows_is_known_again_and_so_is_a_gate_within_another_policy_or_from_a_file() -> None:
    trajectory = record()
    gate = fit_gate(part(trajectory, torch.arange(300)), "error")
    read = policies.ExitPolicy.from_dict(gate.to_dict())
    for each in (gate, gate.with_threshold(0.1), wrapped(gate), read):
        with refused("trajectory", "not fitted"):
            check_unfitted(part(trajectory, torch.arange(200, 400)), [each])
        check_unfitted(part(trajectory, torch.arange(300, 400)), [each])


def test_other_rows_are_not_taken_for_them_by_chance() -> None:
    sure = record()
    saturated = [
        dataclasses.replace(
            sure, outputs=3.0 + 0.1 * torch.randn(400, 6, 3, generator=torch.Generator().manual_seed(k))
        )
        for k in range(20)
    ]
    gate = fit_gate(saturated[0], "agreement")
    for other in saturated[1:]:
        check_unfitted(other, [gate])


def test_rows_without_a_number_are_kept_as_json_can_write_them() -> None:
    trajectory = record()
    trajectory.outputs[:5] = torch.nan
    gate = fit_gate(trajectory, "agreement")
    assert all(torch.tensor(number).isfinite() for _, number in gate.fitted_on)
    with refused("trajectory", "not fitted"):
        check_unfitted(trajectory, [gate])


def test_gates_of_before_say_nothing_of_their_rows() -> None:
    trajectory = record()
    saved = fit_gate(trajectory, "error").to_dict()
    saved.pop("fitted_on")
    check_unfitted(trajectory, [policies.ExitPolicy.from_dict(saved)])
