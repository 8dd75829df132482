"""One file a model: round trips, interrupted saves, foreign files and certificates of other weights."""

from __future__ import annotations

import copy
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ponder
from ponder import objectives, policies, priors
from ponder._utils import files
from ponder._utils.seals import read_sealed, write_sealed
from ponder.errors import CheckpointError
from tests.compare import assert_same_answers, assert_same_rows, assert_same_weights, clear_rows

INPUTS = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))


class Tied(nn.Module):
    """A head that shares the weight of the step, and looks at a part of its bias."""

    def __init__(self, step: nn.Linear) -> None:
        super().__init__()
        self.step = step
        self.weight = step.weight
        self.register_buffer("scale", torch.tensor([1.0, 2.0])[1:])

    def forward(self, features: Tensor) -> Tensor:
        return (features @ self.weight)[:, :3] * self.scale  # type: ignore[operator]


def shared(**options: Any) -> Any:
    return ponder.PonderWrapper(nn.Linear(8, 8), 4, head=nn.Linear(8, 3), **options).eval()


def stacked(**options: Any) -> Any:
    heads = ponder.PerStep([nn.Linear(8, 3) for _ in range(3)])
    hazards = ponder.LambdaHead(8, layers=2, history=2)
    return ponder.PonderWrapper(
        [nn.Linear(8, 8) for _ in range(3)], head=heads, lambda_head=hazards, **options
    ).eval()


def tied(**options: Any) -> Any:
    step = nn.Linear(8, 8)
    return ponder.PonderWrapper(step, 4, head=Tied(step), **options).eval()


BUILDS = {"shared": shared, "stacked": stacked, "tied": tied}


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
def test_a_model_comes_back(build: Any, tmp_path: Path) -> None:
    policy: policies.ExitPolicy = policies.Confidence(0.4) | policies.Patience(2).after(2)
    model = build(policy=policy)
    ponder.save(model, tmp_path / "new" / "model.safetensors")
    again = build(policy=policies.LastStep())
    assert ponder.load(tmp_path / "new" / "model.safetensors", into=again) is again
    assert again.policy == policy
    assert_same_weights(again, model)
    clear = clear_rows(model.unroll(INPUTS), policy)
    found = again(INPUTS)
    expected = model(INPUTS)
    assert_same_rows(found.exit_step, expected.exit_step, clear)
    assert_same_answers(found.outputs[clear], expected.outputs[clear])
    assert os.listdir(tmp_path / "new") == ["model.safetensors"]


def test_settings_come_back(tmp_path: Path) -> None:
    model = stacked(
        policy=policies.Quantile(0.3),
        prior=priors.Geometric(0.3),
        objective=objectives.Ponder(beta=0.2) + 0.5 * objectives.DeepSupervision(),
    )
    ponder.save(model, tmp_path / "model.safetensors")
    again = ponder.load(tmp_path / "model.safetensors", into=stacked(policy=policies.LastStep()))
    assert (again.policy, again.prior, again.stages) == (model.policy, model.prior, model.stages)


def test_an_interrupted_save_leaves_the_old_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.safetensors"
    old = shared(policy=policies.Confidence(0.5))
    new = shared(policy=policies.Confidence(0.9))
    ponder.save(old, path)
    with monkeypatch.context() as broken:
        broken.setattr(files.os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            ponder.save(new, path)
    again = ponder.load(path, into=shared(policy=policies.LastStep()))
    assert again.policy == old.policy
    assert_same_weights(again, old)


def test_a_model_of_another_shape_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    ponder.save(shared(policy=policies.Confidence(0.5)), path)
    wider = ponder.PonderWrapper(
        nn.Linear(8, 8), 4, head=nn.Linear(8, 5), policy=policies.LastStep()
    ).eval()
    longer = ponder.PonderWrapper(
        nn.Linear(8, 8), 6, head=nn.Linear(8, 3), policy=policies.LastStep()
    ).eval()
    for other, message in (
        (wider, "head.bias, head.weight missing, unknown or different"),
        (longer, "num_steps, schedule missing, unknown or different"),
        (stacked(policy=policies.LastStep()), "Build the model as it was"),
    ):
        before = copy.deepcopy(dict(other.state_dict()))
        with pytest.raises(CheckpointError, match=message):
            ponder.load(path, into=other)
        assert other.policy == policies.LastStep()
        assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


def test_trajectories_are_no_models(tmp_path: Path) -> None:
    model = shared(policy=policies.LastStep())
    model.unroll(INPUTS).save(tmp_path / "run.safetensors")
    with pytest.raises(CheckpointError, match=r"no model of ponder\.save"):
        ponder.load(tmp_path / "run.safetensors", into=model)


def test_a_load_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    ponder.save(stacked(policy=policies.Quantile(0.3), prior=priors.Geometric(0.3)), path)
    saved = read_sealed(path, "ponder-model-4", "model", "pt")
    weights, settings = saved.tensors, saved.settings
    damaged = json.loads(json.dumps(settings).replace('"quantile"', '"of-another-machine"'))
    write_sealed(path, "ponder-model-4", damaged, weights)
    into = stacked(policy=policies.LastStep())
    before = into.prior, into.policy, into.stages
    with pytest.raises(ponder.errors.ArgumentError, match="of-another-machine"):
        ponder.load(path, into=into)
    assert (into.prior, into.policy, into.stages) == before
    write_sealed(path, "ponder-model-4", {}, weights)
    with pytest.raises(CheckpointError, match="a damaged model"):
        ponder.load(path, into=into)
    beyond = {**settings, "policy": policies.FixedStep(99).to_dict()}
    write_sealed(path, "ponder-model-4", beyond, weights)
    own = copy.deepcopy(into.state_dict())
    with pytest.raises(ponder.errors.ArgumentError, match="step"):
        ponder.load(path, into=into)
    assert (into.prior, into.policy, into.stages) == before
    torch.testing.assert_close(into.state_dict(), own, rtol=0, atol=0)


def test_a_promise_goes_with_its_weights(tmp_path: Path) -> None:
    model = shared(policy=policies.LastStep(), task="classification")
    path = tmp_path / "model.safetensors"
    trajectory = replace(model.unroll(INPUTS.repeat(50, 1)), weights=model.weights_digest())
    model.policy = certified = ponder.control_risk(
        trajectory, policies.Confidence, level=0.3
    ).policy
    ponder.save(model, path)
    assert (
        ponder.load(path, into=shared(policy=policies.LastStep(), task="classification")).policy
        == certified
    )
    with torch.no_grad():
        model.head.bias.add_(1.0)
    ponder.save(model, path)
    with pytest.warns(UserWarning, match="the promise is dropped"):
        again = ponder.load(path, into=shared(policy=policies.LastStep(), task="classification"))
    assert again.policy == certified.policy
