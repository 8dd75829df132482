"""Damaged files are refused with a `CheckpointError`, or load: nothing else is ever raised.

`PONDER_FUZZED_LOADS=2000 python -m pytest tests/test_fuzzed_loads.py` looks at as many damaged folders of each kind.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import ponder
from ponder import objectives, policies, priors
from ponder.errors import CheckpointError
from tests.fuzzing import damage
from tests.ponder.checks import assert_unchanged, snapshot
from tests.toys import make_toy, wrap

LOADS = int(os.environ.get("PONDER_FUZZED_LOADS", "60"))
SAVED = Path(__file__).parent / "saved" / "0.1.0"
GIBIBYTE = 2**30


def wrapper() -> ponder.PonderWrapper:
    made: ponder.PonderWrapper = wrap(
        make_toy("stacked"),
        policy=(policies.Quantile(0.4).after(2) | policies.Confidence(0.8)) & policies.Patience(2),
        prior=priors.Geometric(0.2) if hasattr(priors, "Geometric") else None,
        objective=objectives.Ponder(0.3) + 0.5 * objectives.DeepSupervision("uniform"),
    )
    return made.eval()


@pytest.fixture(autouse=True)
def _little_memory() -> Iterator[None]:
    """What asks for all the memory there is fails at once, in place of filling it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = (
        int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() if os.path.exists("/proc") else 0
    )
    if used:
        resource.setrlimit(resource.RLIMIT_AS, (used + 8 * GIBIBYTE, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def fuzz(folder: Path, work: Path, load: Callable[[Path], Any], seed: str) -> int:
    """Damage copies of a folder and load them; gives how many were refused."""
    refused = 0
    for number in range(LOADS):
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(folder, work)
        told = damage(work, random.Random(f"{seed} {number}"))
        try:
            load(work)
        except CheckpointError:
            refused += 1
        except BaseException as error:
            pytest.fail(f"number {number}, {told}: {type(error).__name__}: {error}")
    return refused


@pytest.mark.parametrize("layout", ["of today", "of 0.1"])
def test_a_wrapper(layout: str, tmp_path: Path) -> None:
    ponder.save(wrapper(), tmp_path / "saved")
    if layout == "of 0.1":
        settings = ponder._utils.files.read_json(tmp_path / "saved" / "ponder.json")
        name = settings.pop("weights")
        weights, _ = ponder._utils.files.read_tensors(tmp_path / "saved" / name, "ponder-model-2")
        shutil.rmtree(tmp_path / "saved")
        ponder._utils.files.write_json(tmp_path / "saved" / "ponder.json", {**settings, "format": "ponder-model-1"})
        ponder._utils.files.write_tensors(
            tmp_path / "saved" / "model.safetensors", weights, {"format": "ponder-model-1"}
        )
    ponder.load(wrapper(), tmp_path / "saved")

    def load(folder: Path) -> None:
        target = wrapper()
        before, settings = snapshot(target), target.settings()
        try:
            ponder.load(target, folder)
        except CheckpointError:
            assert_unchanged(before, target)
            assert target.settings() == settings
            raise

    assert fuzz(tmp_path / "saved", tmp_path / "damaged", load, layout) > LOADS // 2


def test_a_trajectory(tmp_path: Path) -> None:
    (tmp_path / "saved").mkdir()
    shutil.copy(SAVED / "trajectory.safetensors", tmp_path / "saved")
    load = lambda folder: ponder.Trajectory.load(folder / "trajectory.safetensors")  # noqa: E731
    assert fuzz(tmp_path / "saved", tmp_path / "damaged", load, "trajectory") > LOADS // 4


@pytest.mark.parametrize("kind", ["model", "encoder"])
def test_a_transformers_model(kind: str, tmp_path: Path) -> None:
    from ponder.integrations.transformers import PonderForSequenceClassification
    from tests.integrations.transformers.encoders import make_encoder, make_model

    if kind == "model":
        make_model("bert").save_pretrained(tmp_path / "saved")
        load: Callable[[Path], Any] = PonderForSequenceClassification.from_pretrained
    else:
        make_encoder("albert").save_pretrained(tmp_path / "saved")
        load = PonderForSequenceClassification.from_encoder

    def answers(folder: Path) -> None:
        model = load(folder).eval()
        assert sum(parameter.numel() for parameter in model.parameters()) < 1e6

    with torch.inference_mode():
        refused = fuzz(tmp_path / "saved", tmp_path / "damaged", answers, kind)
    assert refused > LOADS // 3
