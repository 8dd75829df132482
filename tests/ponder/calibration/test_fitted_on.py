"""A policy that was fitted is not judged on the rows that fitted it."""

from __future__ import annotations

import dataclasses
import json
import pickle
from typing import Any

import pytest
import torch

import ponder
from ponder import policies
from ponder.calibration import fit_gate, fit_temperatures
from ponder.parts.recording import too_alike
from ponder.policies.fitted import _sums, check_unfitted
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
    trajectory = record(rows=2000)
    gate = fit_gate(part(trajectory, torch.arange(1500)), "error")
    read = policies.ExitPolicy.from_dict(gate.to_dict())
    for each in (gate, gate.with_threshold(0.1), wrapped(gate), read):
        with refused("trajectory", "not fitted"):
            check_unfitted(part(trajectory, torch.arange(1400, 2000)), [each])
        check_unfitted(part(trajectory, torch.arange(1500, 2000)), [each])


@pytest.mark.parametrize("rows", [100, 3000])
@pytest.mark.parametrize("stride", [2, 3, 4, 47])
def test_no_regular_part_of_the_rows_is_fresh(rows: int, stride: int) -> None:
    """The trap: rows were remembered at regular places, of which every second one holds none."""
    trajectory = record(rows=rows)
    policy = policies.Expected.fit(trajectory)
    for first in range(min(stride, 4)):
        some = torch.arange(first, rows, stride)
        if len(some) > 20:
            with refused("trajectory", "not fitted"):
                check_unfitted(part(trajectory, some), [policy])


def test_few_of_many_rows_are_known_again() -> None:
    trajectory, generator = record(rows=3000), torch.Generator().manual_seed(0)
    policy = policies.Expected.fit(trajectory)
    missed = 0
    for _ in range(30):
        some = torch.randperm(3000, generator=generator)[:100]
        try:
            check_unfitted(part(trajectory, some), [policy])
            missed += 1
        except ponder.PonderError:
            pass
    assert missed <= 1  # two of these rows are remembered in 99 of 100 draws


def test_what_is_remembered_of_the_rows_is_small() -> None:
    trajectory = record(rows=1000)
    kept = policies.Expected.fit(trajectory).to_dict()["fitted_on"]
    assert len(kept) == 200
    assert len(json.dumps({"policy": {"fitted_on": kept}}, indent=2)) < 10_000


def test_the_rows_that_an_earlier_version_kept_are_known_again() -> None:
    trajectory, other = record(), record(seed=1)
    saved = policies.Expected.fit(trajectory).to_dict()
    sums = _sums(trajectory)[0][:, -1].tolist()
    before = {**saved, "fitted_on": [[row, sums[row]] for row in range(0, 200, 4)]}
    policy = policies.ExitPolicy.from_dict(json.loads(json.dumps(before)))
    with refused("trajectory", "not fitted", "50 of the 50"):
        check_unfitted(trajectory, [policy])
    check_unfitted(other, [policy])


@pytest.mark.parametrize("links", [torch.softmax, torch.log_softmax])
@pytest.mark.parametrize("scale", [3.0, 14.0, 20.0])
def test_other_rows_of_the_same_ids_are_not_taken_for_them_by_chance(links: Any, scale: float) -> None:
    made = [record(seed=seed) for seed in range(12)]
    saturated = [dataclasses.replace(each, outputs=links(scale * each.outputs, -1)) for each in made]
    gate = fit_gate(saturated[0], "error")
    assert len(gate.fitted_on) > 10
    for other in saturated[1:]:
        check_unfitted(other, [gate])
    with refused("trajectory", "not fitted"):
        check_unfitted(dataclasses.replace(saturated[0], outputs=saturated[0].outputs * (1 + 1e-7)), [gate])


def test_a_class_that_is_masked_hides_no_rows() -> None:
    made = [record(seed=seed) for seed in range(12)]
    masked = [
        dataclasses.replace(each, outputs=torch.nn.functional.pad(each.outputs, (0, 1), value=value))
        for each, value in zip(made, [-1e9, -1e3] * 6, strict=True)
    ]
    for first, *others in (masked[::2], masked[1::2]):
        policy = policies.Expected.fit(first)
        assert len(policy.fitted_on) > 40
        with refused("trajectory", "not fitted"):
            check_unfitted(first, [policy])
        for other in others:
            check_unfitted(other, [policy])


def test_answers_that_many_rows_share_tell_nothing() -> None:
    hard = torch.nn.functional.one_hot(record().outputs.argmax(-1), 3).float()
    gate = fit_gate(dataclasses.replace(record(), outputs=hard), "error", signals=("streak", "hazard"))
    assert len(gate.fitted_on) < 10
    check_unfitted(dataclasses.replace(record(seed=3), outputs=hard.flip(0)), [gate])


def test_the_tables_of_expected_are_not_judged_on_their_rows_either() -> None:
    trajectory = record(hazards=False)
    policy = policies.Expected.fit(trajectory, price=0.01)
    with refused("trajectory", "not fitted"):
        ponder.control_risk(trajectory, policy, risk="error", level=0.4, grid=[0.0, 0.01])
    assert ponder.control_risk(record(seed=1, hazards=False), policy, risk="error", level=0.4, grid=[0.0, 0.01]).met


def test_the_rows_that_fitted_temperatures_choose_certify_and_judge_nothing() -> None:
    trajectory, other = record(hazards=False), record(seed=1, hazards=False)
    temperatures = fit_temperatures(trajectory)

    def tempered(threshold: float) -> policies.ExitPolicy:
        return policies.Tempered(policies.Confidence(threshold), temperatures)

    grid = [0.5, 0.7, 0.9]
    with refused("trajectory", "not fitted"):
        ponder.calibrate(trajectory, tempered, at_most_steps=3.0, grid=grid)
    with refused("trajectory", "not fitted"):
        ponder.control_risk(trajectory, tempered, level=0.2, grid=grid)
    made = ponder.control_risk(other, tempered, level=0.9, grid=grid)
    read = policies.ExitPolicy.from_dict(json.loads(json.dumps(made.policy.to_dict())))
    for each in (made.policy, read, pickle.loads(pickle.dumps(made.policy)), tempered(0.3), tempered(0.3).after(2)):
        with refused("trajectory", "not fitted"):
            check_unfitted(trajectory, [each])
        check_unfitted(other, [each])
    again = pickle.loads(pickle.dumps(temperatures))
    assert (again, again.fitted_on) == (temperatures, temperatures.fitted_on)
    changed = dataclasses.replace(tempered(0.3), policy=policies.Margin(0.5))
    with refused("trajectory", "not fitted"):
        check_unfitted(trajectory, [changed])
    assert tempered(0.3) == policies.Tempered(policies.Confidence(0.3), tuple(temperatures))
    assert "fitted_on" not in repr(changed)


def test_temperatures_that_are_exchanged_bring_their_own_rows() -> None:
    trajectory, other = record(hazards=False), record(seed=1, hazards=False)
    tempered = policies.Tempered(policies.Confidence(0.3), fit_temperatures(trajectory))
    read = policies.ExitPolicy.from_dict(json.loads(json.dumps(tempered.to_dict())))
    for policy in (tempered, read, pickle.loads(pickle.dumps(tempered))):
        again = policies.Tempered(policies.Margin(0.5), policy.temperatures)
        assert again.fitted_on == tempered.fitted_on
        with refused("trajectory", "not fitted"):
            check_unfitted(trajectory, [again])
        own = dataclasses.replace(policy, temperatures=(2.0,))
        assert (own.temperatures, own.fitted_on) == ((2.0,), ())
        check_unfitted(trajectory, [own])
        fitted = dataclasses.replace(policy, temperatures=fit_temperatures(other))
        check_unfitted(trajectory, [fitted])
        with refused("trajectory", "not fitted"):
            check_unfitted(other, [fitted])


def test_temperatures_are_fitted_on_labelled_rows_alone() -> None:
    trajectory = record(hazards=False)
    labels = trajectory.labels.clone()
    labels[100:] = -100
    policy = policies.Tempered(
        policies.Confidence(0.5), fit_temperatures(dataclasses.replace(trajectory, labels=labels))
    )
    check_unfitted(part(trajectory, torch.arange(100, len(trajectory))), [policy])
    with refused("trajectory", "not fitted"):
        check_unfitted(part(trajectory, torch.arange(100)), [policy])


def test_temperatures_of_ones_own_and_of_before_say_nothing_of_their_rows() -> None:
    trajectory = record(hazards=False)
    temperatures = fit_temperatures(trajectory)
    saved = policies.Tempered(policies.Confidence(0.5), temperatures).to_dict()
    saved.pop("fitted_on")
    for policy in (
        policies.ExitPolicy.from_dict(saved),
        policies.Tempered(policies.Confidence(0.5), tuple(temperatures)),
    ):
        assert policy.fitted_on == ()
        check_unfitted(trajectory, [policy])


@pytest.mark.parametrize("temperatures", [{}, {"temperatures": 2.0}])
def test_a_file_without_temperatures_is_refused_by_the_name_of_the_policy(temperatures: dict[str, float]) -> None:
    saved = {"name": "tempered", "policy": policies.Confidence(0.5).to_dict(), "fitted_on": [[0, 0.5]]}
    with refused("arguments of policy 'tempered'", "Confidence", type_error=True):
        policies.ExitPolicy.from_dict(saved | temperatures)


def test_rows_of_positions_are_known_again_beside_longer_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    outputs, labels = torch.randn(60, 4, 5, 3, generator=generator), torch.randint(3, (60, 5), generator=generator)
    mask = torch.ones(60, 5, dtype=torch.bool)
    narrow = ponder.Trajectory(outputs, None, torch.arange(60), labels=labels, task="token_classification", mask=mask)
    wide = torch.nn.functional.pad
    wider = dataclasses.replace(
        narrow,
        outputs=wide(outputs, (0, 0, 0, 2), value=7.0),
        labels=wide(labels, (0, 2), value=-100),
        mask=wide(mask, (0, 2)),
    )
    gate = fit_gate(narrow, "agreement")
    with refused("trajectory", "not fitted"):
        check_unfitted(wider, [gate])


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


@pytest.mark.parametrize("fit", [lambda of: fit_gate(of, "error"), policies.Expected.fit])
def test_rows_that_are_all_alike_are_known_again_as_a_whole(fit: Any) -> None:
    """The trap: no row differs from all others, so that none could be kept, and all could be certified on again."""
    kinds = torch.arange(90) % 3
    answers = torch.randn(3, 6, 3, generator=torch.Generator().manual_seed(0))
    alike = dataclasses.replace(
        record(rows=90, hazards=False), outputs=answers[kinds], row_ids=torch.arange(90), labels=kinds
    )
    policy = fit(alike)
    assert [key for key, _ in policy.fitted_on] == [-1]
    again = policies.from_dict(json.loads(json.dumps(policy.to_dict())))
    for each in (policy, again):
        with refused("trajectory", "not fitted", "all of its rows"):
            ponder.control_risk(alike, each, level=0.3)
    turned = part(alike, torch.randperm(90, generator=torch.Generator().manual_seed(1)))
    with refused("trajectory", "not fitted"):
        check_unfitted(turned, [policy])
    check_unfitted(dataclasses.replace(alike, row_ids=torch.arange(90, 180)), [policy])
    check_unfitted(dataclasses.replace(alike, outputs=answers[kinds.flip(0)]), [policy])


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_rows_in_half_precision_are_known_again(half: torch.dtype) -> None:
    """Trap: as certain as before, since another precision rounds what tells a row."""
    fitted_on, other = record(rows=400), record(seed=1, rows=400)

    def rounded(trajectory: ponder.Trajectory) -> ponder.Trajectory:
        return trajectory.map(lambda each: each.to(half) if each.is_floating_point() else each)

    found = ponder.calibrate(fitted_on, policies.Confidence, at_most_steps=3.0)
    of_half = ponder.calibrate(rounded(fitted_on), policies.Confidence, at_most_steps=3.0)
    for made, seen in ((found, rounded(fitted_on)), (of_half, fitted_on), (of_half, rounded(fitted_on))):
        with refused("test", "the same id and the same record"):
            made.evaluate(seen)
    for made in (found, of_half):
        made.evaluate(other)
        made.evaluate(rounded(other))
    for first, again in ((fitted_on, rounded(fitted_on)), (rounded(fitted_on), fitted_on)):
        gate = policies.ExitPolicy.from_dict(fit_gate(first, "error").to_dict())
        with refused("trajectory", "not fitted"):
            check_unfitted(again, [gate])
        with refused("trajectory", "not fitted"):
            check_unfitted(part(again, torch.arange(100)), [gate])
        check_unfitted(other, [gate])
        check_unfitted(rounded(other), [gate])


def test_many_rows_that_are_near_one_another_by_chance_are_no_proof() -> None:
    """The trap: of 200 pairs 192 were near, as they would be by chance, and 0.96 to the 192nd power is little."""
    for near, by_chance, shared, same in (
        (192, 192, 200, False),
        (196, 194, 200, False),
        (200, 200, 200, False),
        (180, 0, 200, False),
        (0, 0, 0, False),
        (1, 0, 1, False),
        (200, 40, 200, True),
        (196, 40, 200, True),
        (10, 1, 10, True),
    ):
        assert too_alike(near, by_chance, shared) == same, (near, by_chance, shared)


def test_saturated_rows_of_another_set_are_not_taken_for_fitted_ones() -> None:
    """Where one class is rare, the others' rows are near one another in bfloat16, whoever they are."""

    def rare(seed: int) -> ponder.Trajectory:
        generator = torch.Generator().manual_seed(seed)
        labels = (torch.rand(400, generator=generator) < 0.05).long()
        sure = torch.where(labels[:, None, None] == torch.arange(2), 6.0, -6.0).expand(400, 3, 2)
        outputs = sure + 0.02 * torch.randn(400, 3, 2, generator=generator)
        return ponder.Trajectory(outputs.bfloat16(), None, torch.arange(400), labels=labels, task="classification")

    gate = fit_gate(rare(0), "error") if bool((rare(0).labels != rare(0).outputs[:, 0].argmax(-1)).any()) else None
    tables = policies.Expected.fit(rare(0))
    for policy in (tables, *(() if gate is None else (gate,))):
        check_unfitted(rare(1), [policy])
    found = ponder.calibrate(rare(0), policies.Confidence, at_most_steps=3.0)
    found.evaluate(rare(1))
    with refused("test", "the same id and the same record"):
        found.evaluate(rare(0).map(lambda each: each.float() if each.is_floating_point() else each))
