"""Folders and files that earlier versions wrote: they load, and answer as they did."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ponder
from ponder import objectives, policies, priors

SAVED = Path(__file__).resolve().parents[1] / "saved"
VERSIONS = sorted(path.name for path in SAVED.iterdir())
INPUTS = torch.linspace(-1, 1, 24).reshape(6, 4)
TOKENS = torch.tensor([[2, 5, 6, 7, 3], [2, 8, 3, 0, 0]])


def expected(version: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((SAVED / version / "expected.json").read_text())[name]
    return found


@pytest.mark.parametrize("version", VERSIONS)
def test_a_wrapper(version: str) -> None:
    model = ponder.PonderWrapper(
        nn.Sequential(nn.Linear(8, 8), nn.Tanh()),
        num_steps=5,
        head=nn.Linear(8, 3),
        lambda_head=ponder.LambdaHead(8, layers=2, history=2),
        stem=nn.Linear(4, 8),
        readout=nn.Identity(),
        task="classification",
    )
    ponder.load(model, SAVED / version / "wrapper")
    out = model.eval()(INPUTS)
    torch.testing.assert_close(out.outputs, torch.tensor(expected(version, "wrapper")["outputs"]))
    assert out.exit_step.tolist() == expected(version, "wrapper")["exit_step"]
    assert model.policy == policies.Quantile(0.4).after(2) | policies.Confidence(0.8)
    assert model.prior == priors.Geometric(0.2)
    assert model.objective == objectives.Ponder(0.3) + 0.5 * objectives.DeepSupervision("uniform")


@pytest.mark.parametrize("version", VERSIONS)
def test_a_trajectory(version: str) -> None:
    trajectory = ponder.Trajectory.load(SAVED / version / "trajectory.safetensors")
    assert (len(trajectory), trajectory.num_steps, trajectory.task) == (6, 5, "classification")
    assert trajectory.features is not None
    assert trajectory.labels is not None
    exits = trajectory.replay(policies.Quantile(0.4).after(2) | policies.Confidence(0.8))
    assert exits.exit_step.tolist() == expected(version, "wrapper")["exit_step"]
    torch.testing.assert_close(exits.outputs, torch.tensor(expected(version, "wrapper")["outputs"]))


@pytest.mark.parametrize("recipe", ["palbert", "pabee"])
@pytest.mark.parametrize("family", ["bert", "albert"])
@pytest.mark.parametrize("version", VERSIONS)
def test_a_transformers_model(version: str, family: str, recipe: str) -> None:
    from ponder.integrations.transformers import PonderForSequenceClassification

    model = PonderForSequenceClassification.from_pretrained(SAVED / version / f"{family}-{recipe}").eval()
    mask, as_saved = (TOKENS != 0).long(), expected(version, f"{family}-{recipe}")
    with torch.inference_mode():
        out = model(TOKENS, attention_mask=mask)
        full = model(TOKENS, attention_mask=mask, policy=policies.LastStep())
    torch.testing.assert_close(out.logits, torch.tensor(as_saved["logits"]))
    torch.testing.assert_close(full.logits, torch.tensor(as_saved["full_depth"]))
    assert out.exit_step.tolist() == as_saved["exit_step"]


@pytest.mark.parametrize("version", VERSIONS)
def test_results_of_a_recipe_that_has_another_name_now(version: str) -> None:
    pytest.importorskip("datasets", reason="the benchmarks need the extra bench")
    from benchmarks.glue.results import read_all

    (result,) = read_all(SAVED / version / "results")
    assert result["recipe"] == "palbert-joint"
    assert result["config"]["recipe"] == "ponder"
