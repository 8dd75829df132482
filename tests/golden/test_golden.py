"""The library answers what it answered before it was rewritten: exits, outputs, losses, gradients, certificates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.compare import assert_same_answers, assert_same_rows, clear_rows
from tests.golden import cases

HERE = Path(__file__).parent
GOLDEN: dict[str, Any] = json.loads((HERE / "golden.json").read_text())
OUTPUTS = load_file(HERE / "outputs.safetensors")


@pytest.mark.parametrize("name", cases.MODELS)
def test_exits_and_outputs(name: str) -> None:
    case = cases.MODELS[name]()
    measured = cases.exits(name)
    expected = GOLDEN["exits"][name]
    assert measured.keys() == expected.keys()
    with torch.no_grad():
        record = case.unroll()
    for each, policy in cases.policies_for(case.task).items():
        (steps, outputs), clear = measured[each], clear_rows(record, policy)
        assert_same_rows(steps, expected[each], clear)
        assert_same_answers(outputs[clear], OUTPUTS[f"{name}.{each}"][clear], atol=1e-5)


@pytest.mark.parametrize("name", cases.MODELS)
def test_losses_and_gradients(name: str) -> None:
    measured = cases.training(name)
    assert measured.keys() == GOLDEN["training"][name].keys()
    for objective, numbers in measured.items():
        assert numbers == pytest.approx(GOLDEN["training"][name][objective], rel=1e-5, abs=1e-7), (
            objective
        )


def test_certificates_and_calibrations() -> None:
    measured = cases.certificates()
    for name, numbers in GOLDEN["certificates"].items():
        assert measured[name] == pytest.approx(numbers, rel=1e-6), name


def test_numbers_of_the_halting_distribution() -> None:
    measured = cases.distributions()
    for name, numbers in GOLDEN["distributions"].items():
        assert measured[name] == pytest.approx(numbers, rel=1e-5, abs=1e-7), name
