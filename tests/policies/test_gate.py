"""Gates: every signal by a plain loop, and what a linear gate makes of them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from ponder import policies
from ponder.errors import ArgumentError
from ponder.policies.gate import GATE_SIGNALS, default_signals
from tests.matrices import oracles
from tests.policies.records import Run, gate, run

ALL = tuple(name for name in GATE_SIGNALS if name != "hidden")


def probabilities(logits: list[float]) -> list[float]:
    return [math.exp(z) for z in oracles.log_softmax(logits)]


def of_cell(now: list[float], before: list[float]) -> dict[str, float]:
    """The signals of one answer, of which the least sure position counts."""
    p, old = probabilities(now), probabilities(before)
    ordered = sorted(p, reverse=True)
    return {
        "confidence": ordered[0],
        "margin": ordered[0] - ordered[1],
        "energy": oracles.sigmoid(math.log(math.fsum(math.exp(z) for z in now))),
        "negative_entropy": -oracles.entropy(p),
        "changed": float(now.index(max(now)) != before.index(max(before))),
        "shift": sum(abs(a - b) for a, b in zip(p, old, strict=True)) / 2,
        "movement": sum(abs(a - b) for a, b in zip(now, before, strict=True)) / len(now),
    }


def of_row(outputs: list[list[list[float]]], hazard_logits: list[float]) -> list[dict[str, float]]:
    """The signals of a row at every step; outputs by step and position."""
    streak, expected, found = 0.0, 0.0, []
    cdf = oracles.cdf(oracles.pmf([*hazard_logits, 0.0]))
    for n, cells in enumerate(outputs):
        before = outputs[n - 1] if n else cells
        each = [of_cell(now, old) for now, old in zip(cells, before, strict=True)]
        values = {key: min(one[key] for one in each) for key in ("confidence", "margin", "energy", "negative_entropy")}
        streak = streak + 1.0 if n and not any(one["changed"] for one in each) else 0.0
        values["streak"] = streak
        values["shift"] = max(one["shift"] for one in each) if n else 1.0
        values["movement"] = sum(one["movement"] for one in each) / len(each) if n else 0.0
        expected += 1.0 - (cdf[n - 1] if n else 0.0)
        found.append(values | {"hazard": oracles.sigmoid(hazard_logits[n]), "cdf": cdf[n], "expected": expected})
    return found


@pytest.mark.parametrize("task", ["classification", "token_classification"])
def test_signals_are_those_of_a_plain_loop(task: str) -> None:
    made, reader = run(task), gate(ALL)
    state: Any = reader.init(made.batch)
    rows = []
    for row, outputs in enumerate(made.outputs):
        cells = outputs[:, made.mask[row]] if made.mask is not None else outputs.unsqueeze(1)
        rows.append(of_row(cells.tolist(), made.hazard_logits[row].tolist()))
    for n, view in enumerate(list(made.views(reader.needs))[:-1]):
        signals, state = reader.read(view, state)
        expected = [[signals_of[n][each] for each in ALL] for signals_of in rows]
        torch.testing.assert_close(signals, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shared", [False, True], ids=["by step", "shared"])
def test_exits_are_those_of_the_line(shared: bool) -> None:
    made, policy = run(), gate(ALL, None if shared else 5, floor=2, threshold=0.5 if shared else 0.05)
    exits = []
    for outputs, hazards in zip(made.outputs.tolist(), made.hazard_logits.tolist(), strict=True):
        signals = of_row([[cell] for cell in outputs], hazards)
        for n in range(1, 7):
            table = policy.tables[0 if shared or n == 6 else n - 1]
            score = math.fsum(w * signals[n - 1][each] for w, each in zip(table, ALL, strict=False)) + table[-1]
            if n == 6 or (n >= 2 and oracles.sigmoid(score) < policy.threshold):
                exits.append(n)
                break
    assert made.exits(policy) == exits
    assert len(set(exits)) > 1


def test_hidden_features_come_last_and_rows_that_are_not_finite_stay() -> None:
    made = run()
    policy = policies.Gate(6, ("hidden",), ((1.0, 0.0, 0.0, 0.0, 0.0),) * 5)
    exits = [next((n for n in range(1, 6) if row[n - 1] < 0.0), 6) for row in made.features[..., 0].tolist()]
    assert made.exits(policy) == exits
    made.features[0] = torch.nan
    made.features[1, :, 0] = -torch.inf
    assert made.exits(policy)[:2] == [6, 6]


def test_a_shared_gate_serves_more_steps_than_it_was_fitted_on() -> None:
    policy = gate(("confidence", "streak"), None)
    policy.check(policies.ModelSpec(50))
    assert len(run(steps=50).exits(policy)) == 40
    with pytest.raises(ArgumentError, match="fitted on 6"):
        gate(("confidence",)).check(policies.ModelSpec(5))
    with pytest.raises(ArgumentError, match="signals"):
        policies.Gate(None, ("certainty",), ((1.0, 0.0),))


def test_needs_follow_the_signals() -> None:
    assert gate(("confidence",)).needs == {"output"}
    assert gate(("cdf",)).needs == {"hazard"}
    assert gate(("hidden", "movement"), width=3).needs == {"features", "output"}
    assert default_signals(classes=False, hazards=True) == ("movement", "hazard", "cdf", "expected")
    numbers = run("regression")
    assert len(set(numbers.exits(policies.Gate(None, ("movement",), ((4.0, -2.0),), floor=2)))) > 2
    assert isinstance(numbers, Run)
