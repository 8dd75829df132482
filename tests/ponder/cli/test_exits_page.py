"""The page of `ponder exits`: FLOPs of other thresholds, where texts of different lengths leave at different steps."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("jinja2", reason="pages need the extra cli")

from ponder.calibration import AgreementCurve
from ponder.cli.exits import _sentences
from ponder.cli.exits_page import _flops, _thresholds

SHARES = (0.5, 0.0, 0.5)


def run(measured: float | None, timed: tuple[float, ...] = SHARES) -> Any:
    costs = {"output": [0.4, 0.7, 1.02], "": [0.35, 0.66, 1.0]}
    told = SimpleNamespace(costs=costs, speed_up=SimpleNamespace(flops=measured, steps=1.25), exit_shares=timed)
    return SimpleNamespace(measured=told, report=SimpleNamespace(kind="confidence", exit_shares=SHARES))


def flops(measured: float | None, shares: tuple[float, ...], kind: str = "confidence") -> float:
    curve: Any = SimpleNamespace(policy=kind)
    return _flops(run(measured), curve, shares)


def test_flops_are_those_measured_where_rows_leave_as_under_the_chosen_policy() -> None:
    # Trap: long texts leave later than short ones, and the page said ×1.52 where ×1.41 had been measured.
    assert flops(1.2, SHARES) == pytest.approx(1.2)
    assert flops(1.2, (0.25, 0.25, 0.5)) < 1 / (0.25 * 0.4 + 0.25 * 0.7 + 0.5 * 1.02)


def test_lengths_and_exits_are_held_against_one_another_on_the_texts_that_were_timed() -> None:
    # Trap: FLOPs of the timed texts minus a mean over all of them, which had left at other steps.
    timed = (0.75, 0.0, 0.25)
    told = run(1 / (0.75 * 0.4 + 0.25 * 1.02), timed)  # texts of one length
    curve: Any = SimpleNamespace(policy="confidence")
    assert _flops(told, curve, SHARES) == pytest.approx(1 / 0.71)


def test_where_all_leave_at_one_step_lengths_do_not_matter() -> None:
    assert flops(1.2, (1.0, 0.0, 0.0)) == pytest.approx(1 / 0.4)
    assert flops(1.2, (0.0, 1.0, 0.0), "fixed step") == pytest.approx(1 / 0.66)


def test_without_a_measurement_texts_are_taken_to_be_of_one_length() -> None:
    assert flops(None, SHARES) == pytest.approx(1 / 0.71)


def data_of(curve: AgreementCurve, threshold: float) -> dict[str, Any]:
    told = run(1.2)
    told.measured.speed_up.wall_clock = told.measured.full_depth = SimpleNamespace(median=1.5)
    told.report = SimpleNamespace(
        **vars(told.report), curves=(curve,), level=0.02, met=True, num_steps=3, mean_exit_step=2.0, threshold=threshold
    )
    data: dict[str, Any] = json.loads(
        _thresholds(told).html.partition('id="thresholds-data">')[2].partition("</script>")[0]
    )
    return data


def test_what_could_have_been_promised_is_told_no_lower_than_it_is() -> None:
    found, steps = 0.012300001, (1.0, 2.0)
    curve = AgreementCurve("confidence", (0.9, 0.8), steps, (0.0, 0.01), (found, 2 * found), (SHARES, SHARES))
    assert data_of(curve, 0.9)["curves"][0]["promise"] == [0.012301, 0.024601]
    short: Any = SimpleNamespace(met=False, statement="No exits.", best_level=0.0123)
    assert _sentences(short)[1] == "With so many texts, 1.3% is the least that could be promised."


def test_the_page_opens_on_the_chosen_threshold_and_joins_seconds_with_the_steps_of_the_timed_texts() -> None:
    # Trap: two values that look the same on the page, of which the other one failed; and a mean exit step of all
    # texts beside the seconds of some.
    values = (0.99999249, 0.99999170)
    curve = AgreementCurve("confidence", values, (2.0, 1.9), (0.0, 0.01), (0.01, 0.02), (SHARES, SHARES))
    data = data_of(curve, values[0])
    assert len(set(data["curves"][0]["values"])) == 1
    assert data["place"] == 0
    assert data["seconds"]["steps"] == [3, 3 / 1.25]
    assert data_of(curve, math.nan)["place"] is None
