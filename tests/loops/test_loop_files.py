"""A loop comes back from its file, from a copy and from a worker, with its policy, its prior and its promise."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import ponder
from ponder import policies, priors
from ponder.errors import CheckpointError
from ponder.loops import Loop, control_risk
from tests.loops.models import STEPS, make_batch, make_loop

MAX_STEPS = 5


def answers(loop: Loop) -> list[torch.Tensor]:
    hidden, mask = make_batch()
    with torch.no_grad():
        out = loop(hidden, max_steps=MAX_STEPS, attention_mask=mask)
    return [out.outputs, out.exit_step, out.hidden]


def through_a_file(loop: Loop, folder: Path, **other: object) -> Loop:
    ponder.save(loop, folder / "loop.safetensors")
    again = other_loop(**other)
    return ponder.load(folder / "loop.safetensors", into=again)


def other_loop(step: str = "block", halted: str = "frozen", **options: object) -> Loop:
    """A loop of other weights, that answers at the last step."""
    loop = make_loop(step, halted, **{"policy": policies.LastStep(), **options})
    with torch.no_grad():
        for weight in loop.parameters():
            weight.add_(0.1)
    return loop


COPIES: dict[str, Callable[[Loop, Path, str], Loop]] = {
    "file": lambda loop, folder, step: through_a_file(loop, folder, step=step),
    "deepcopy": lambda loop, folder, step: copy.deepcopy(loop),
    "pickle": lambda loop, folder, step: pickle.loads(pickle.dumps(loop)),
}


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("step", STEPS)
def test_a_loop_comes_back(step: str, way: str, tmp_path: Path) -> None:
    policy = policies.Confidence(0.5) | policies.Patience(2).after(2)
    loop = make_loop(step, policy=policy)
    again = COPIES[way](loop, tmp_path, step)
    assert again.policy == policy
    assert again.weights_digest() == loop.weights_digest()
    for found, expected in zip(answers(again), answers(loop), strict=True):
        assert torch.equal(found, expected)  # the same weights, batch and kernels


@pytest.mark.parametrize("prior", [None, priors.Geometric(0.1), priors.Learned(MAX_STEPS)], ids=str)
def test_a_prior_comes_back(prior: priors.Prior | None, tmp_path: Path) -> None:
    loop = make_loop(prior=prior).train()
    other = None if prior is None else priors.Prior.from_dict(prior.to_dict())
    for weight in () if loop.prior_weights is None else loop.prior_weights.parameters():
        torch.nn.init.normal_(weight)
    again = through_a_file(loop, tmp_path, prior=other).train()
    assert again.prior == loop.prior
    hidden, mask = make_batch()
    labels = torch.zeros(mask.shape, dtype=torch.long)
    call = {"max_steps": MAX_STEPS, "attention_mask": mask, "labels": labels}
    torch.testing.assert_close(again(hidden, **call).loss, loop(hidden, **call).loss)


def test_a_loop_of_another_kind_is_refused_and_stays_as_it_was(tmp_path: Path) -> None:
    ponder.save(make_loop(halted="frozen"), tmp_path / "loop.safetensors")
    for other in (make_loop("albert"), make_loop(halted="together")):
        before = other.weights_digest()
        with pytest.raises(CheckpointError, match="another model"):
            ponder.load(tmp_path / "loop.safetensors", into=other)
        assert other.weights_digest() == before
    model = ponder.PonderWrapper(torch.nn.Linear(4, 4), 3, head=torch.nn.Linear(4, 2))
    with pytest.raises(CheckpointError, match="another model"):
        ponder.load(tmp_path / "loop.safetensors", into=model)


def test_a_promise_stays_with_its_weights(tmp_path: Path) -> None:
    loop = make_loop()
    hidden, mask = make_batch((5, 3, 5, 1) * 20)
    calls = [{"hidden": hidden, "attention_mask": mask}]
    found = control_risk(loop, calls, policies.Confidence, [0.999], max_steps=MAX_STEPS, level=0.2)
    loop.policy = found.policy
    assert through_a_file(loop, tmp_path).policy == found.policy
    with torch.no_grad():
        loop.head.weight.add_(1.0)
    ponder.save(loop, tmp_path / "moved.safetensors")
    with pytest.warns(UserWarning, match="promise is dropped"):
        again = ponder.load(tmp_path / "moved.safetensors", into=other_loop())
    assert again.policy == found.policy.policy
