"""Promises in words: bounds are never told smaller than they are, confidences and speed-ups never greater."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ponder
from ponder import policies
from ponder._utils.rounding import rounded_down, rounded_up
from ponder.calibration import control_agreement
from ponder.monitor import Audit

LEVEL, CONFIDENCE = 0.0123000001, 0.99999999  # `:g` says 0.0123 and 1


@given(st.floats(1e-12, 1e12), st.integers(1, 8))
def test_words_lie_on_the_side_of_the_promise(value: float, digits: int) -> None:
    up, down = Decimal(rounded_up(value, digits)), Decimal(rounded_down(value, digits))
    exact, slack = Decimal(value), Decimal(value) * Decimal("1e-14")
    assert down - slack <= exact <= up + slack
    unit = Decimal(1).scaleb(exact.adjusted() - digits + 1)
    assert up - exact <= unit + slack
    assert exact - down <= unit + slack


@given(st.integers(1, 999_999), st.integers(-9, 3))
def test_what_has_few_digits_is_told_as_it_is(number: int, power: int) -> None:
    value = float(Decimal(number).scaleb(power))
    assert rounded_up(value) == rounded_down(value) == f"{value:g}"
    assert rounded_up(100 * value) == rounded_down(100 * value) == f"{100 * value:g}"


def test_the_last_digit_of_a_float_is_no_reason_to_round() -> None:
    assert (rounded_up(100 * 0.07), rounded_down(1 - 0.07), rounded_up(0.1 + 0.2)) == ("7", "0.93", "0.3")
    assert (rounded_up(0.0), rounded_down(0.0)) == ("0", "0")


@pytest.fixture
def trajectory() -> ponder.Trajectory:
    sure = 8.0 * torch.nn.functional.one_hot(torch.arange(3000) % 3, 3).float()  # the same at every step
    outputs = sure.unsqueeze(1).expand(3000, 4, 3)
    return ponder.Trajectory(outputs, None, torch.arange(3000), labels=torch.arange(3000) % 3)


def test_a_certificate_promises_no_more_than_was_tested(trajectory: ponder.Trajectory) -> None:
    found = ponder.control_risk(trajectory, policies.Confidence, level=LEVEL, confidence=CONFIDENCE)
    assert found.statement.startswith("disagreement on fresh data is at most 0.0123001 with confidence 0.999999: ")
    assert "disagreement ≤ 0.0123001 with confidence 0.999999," in repr(found.policy)
    nothing = ponder.control_risk(trajectory, policies.Confidence, level=1.0000001e-7, confidence=CONFIDENCE)
    assert "is at most 1.00001e-07 with confidence 0.999999)" in nothing.statement


def test_agreement_promises_no_more_than_was_tested(trajectory: ponder.Trajectory) -> None:
    fresh = replace(trajectory, row_ids=torch.arange(3000, 6000))
    made = control_agreement(trajectory, fresh, level=0.01231, confidence=CONFIDENCE)
    assert "on all but 1.24% of inputs like these, with 99.9999% confidence" in made.statement("full depth does")


def test_a_target_is_told_no_lower_than_it_was(trajectory: ponder.Trajectory) -> None:
    found = ponder.calibrate(trajectory, policies.Confidence, at_least=0.99999999)
    assert found.statement.startswith("cheapest with at least 0.999999 of the score")


def test_an_audit_tells_its_promise_as_it_is() -> None:
    audit = Audit(LEVEL, CONFIDENCE)
    assert repr(audit).startswith("Audit(level=0.0123001, confidence=0.999999, share=0.01; stage 0: 0 of 0 differ, ")
    told = next(left for _ in range(1000) if (left := audit.record(True)) is not None)
    assert told.statement.startswith("the promise that at most 0.0123001 of the answers differ")
    assert "(confidence 0.999999)" in told.statement
    low, high = told.statement.rpartition(" is ")[2].split(" to ")
    assert float(low) <= told.low < told.high <= float(high)
