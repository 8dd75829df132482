"""A certificate is about the weights of the run that it was given on, and is not taken for one about others."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import ponder
from ponder import policies, priors
from ponder._utils.certificates import without_certificates
from ponder._utils.weights import digest_of_weights
from ponder.engine.certificates import has_stale_certificate
from ponder.errors import ArgumentError

ROWS = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
PART = "A part of this policy is certified"
OTHER = "policy: expected one that was certified on a run of this model with the weights and buffers that it has now"


def model(seed: int = 0) -> ponder.PonderWrapper:
    torch.manual_seed(seed)
    return ponder.PonderWrapper(nn.Linear(8, 8), 4, head=nn.Linear(8, 3), task="classification").eval()


def certified(made: ponder.PonderWrapper, level: float = 0.5) -> policies.ExitPolicy:
    return ponder.control_risk(made.record(ROWS), policies.Confidence, level=level).policy


def change(made: nn.Module) -> None:
    with torch.no_grad():
        next(made.parameters()).add_(0.25)


def test_a_recording_tells_the_weights_and_a_call_does_not(tmp_path: Path) -> None:
    made = model()
    recorded = made.record(ROWS)
    assert recorded.weights == made.weights_digest() != model(1).weights_digest()
    assert made.unroll(ROWS).weights is None
    recorded.save(tmp_path / "run.safetensors")
    assert ponder.Trajectory.load(tmp_path / "run.safetensors").weights == recorded.weights
    assert recorded.map(lambda tensor: tensor[:3]).weights == recorded.weights


def test_runs_of_two_models_are_not_joined() -> None:
    one, other = model().record(ROWS), model(1).record(ROWS, first_row=300)
    with pytest.raises(ArgumentError, match="trajectories: expected runs of one model, with the same weights"):
        ponder.Trajectory.cat([one, other])
    assert ponder.Trajectory.cat([one, one]).weights == one.weights
    assert ponder.Trajectory.cat([one, replace(other, weights=None)]).weights is None  # nobody knows


def test_a_certificate_of_other_weights_is_refused() -> None:
    made, other = model(), model(1)
    policy = certified(made)
    before = other.policy
    for given in (policy, policy.after(2), policies.ExitPolicy.from_dict(policy.to_dict())):
        with pytest.raises(ArgumentError, match=OTHER):
            other.policy = given
        with nullcontext() if isinstance(given, policies.Certified) else pytest.warns(UserWarning, match=PART):
            made.policy = given
    assert other.policy is before
    other.policy = policy.policy  # type: ignore[attr-defined]  # it promises nothing
    change(made)
    made.policy = before
    with pytest.raises(ArgumentError, match=OTHER):
        made.policy = policy


def test_a_run_of_other_weights_is_told_that_its_policy_promises_nothing() -> None:
    made, other = model(), model(1)
    policy, foreign = certified(made), "was certified for other weights than those of the model"
    made.predict(ROWS, policy=policy)
    ponder.StreamEngine(made, policy).close()
    other.predict(ROWS, policy=policy.policy)  # type: ignore[attr-defined]
    with pytest.warns(UserWarning, match=foreign):
        other.predict(ROWS, policy=policy)
    with pytest.warns(UserWarning, match=foreign):
        ponder.StreamEngine(other, policy).close()
    with pytest.warns(UserWarning, match=foreign):
        ponder.monitor.Watched(other, [policy])
    with pytest.warns(UserWarning, match=foreign):
        other(ROWS, policy=policy)
    other(ROWS, policy=policy.after(2))  # was told of these weights
    with ponder.StreamEngine(copy.deepcopy(model(2))) as engine, pytest.warns(UserWarning, match=foreign):
        engine.submit(ROWS[0], policy=policy).result()
    change(made)
    with pytest.warns(UserWarning, match=foreign):
        made.predict(ROWS, policy=policy)


def test_a_run_of_other_weights_judges_nothing() -> None:
    """Trap: on the very rows that chose, another model gives other records, which look fresh."""
    made, other = model(), model(1)
    labels = torch.randint(3, (300,), generator=torch.Generator().manual_seed(1))
    seen, foreign = (each.record(ROWS, labels=labels) for each in (made, other))
    fresh = made.record(ROWS.flip(0) + 1.0, labels=labels, first_row=300)
    for found in (
        ponder.control_risk(seen, policies.Confidence, level=0.5),
        ponder.calibrate(seen, policies.Confidence, at_most_steps=3.0),
    ):
        told = (
            r"^test: expected a run of the same model, weights .*; got weights .*dataclasses\.replace\(test, weights="
        )
        with pytest.raises(ArgumentError, match=told):
            found.evaluate(foreign)
        found.evaluate(fresh)
        found.evaluate(replace(foreign, weights=None))  # nobody knows


def test_the_certificate_that_a_model_has_stays_what_it_is() -> None:
    made = model()
    made.policy = policy = certified(made)
    change(made)
    assert has_stale_certificate(made)
    made.policy = policy  # the same one: nobody claims more
    with pytest.warns(UserWarning, match=PART):
        made.policy = policy.after(2)
    with made.temporary_policy(policies.LastStep()):
        assert made.policy == policies.LastStep()
    assert has_stale_certificate(made)


@pytest.mark.parametrize("told", [True, False])
def test_a_stale_certificate_is_not_saved(told: bool, tmp_path: Path) -> None:
    made = model()
    recorded = made.record(ROWS) if told else made.unroll(ROWS)
    made.policy = ponder.control_risk(recorded, policies.Confidence, level=0.5).policy
    ponder.save(made, tmp_path / "fresh")
    fresh = ponder.load(model(2), tmp_path / "fresh")
    assert fresh.policy == made.policy
    for each in (made, fresh):
        change(each)
        with pytest.warns(UserWarning, match="changed after its policy was certified"):
            ponder.save(each, tmp_path / "stale")
        assert ponder.load(model(3), tmp_path / "stale").policy == made.policy.policy  # type: ignore[attr-defined]


def test_weights_that_come_back_are_those_of_the_certificate(tmp_path: Path) -> None:
    made = model()
    made.policy = certified(made)
    weights = copy.deepcopy(made.state_dict())
    change(made)
    made.load_state_dict(weights)
    ponder.save(made, tmp_path)
    assert ponder.load(model(1), tmp_path).policy == made.policy
    assert not has_stale_certificate(copy.deepcopy(made))


def test_weights_that_are_read_in_another_precision_are_others(tmp_path: Path) -> None:
    made = model()
    made.policy = certified(made)
    ponder.save(made, tmp_path)
    with pytest.warns(UserWarning, match="certified for other weights than were loaded"):
        half = ponder.load(model(1).bfloat16(), tmp_path)
    assert has_stale_certificate(half)


def test_a_model_is_built_before_its_weights_are_there() -> None:
    made = model()
    policy = certified(made)
    torch.manual_seed(5)
    again = ponder.PonderWrapper(nn.Linear(8, 8), 4, head=nn.Linear(8, 3), task="classification", policy=policy)
    assert has_stale_certificate(again)
    again.load_state_dict(made.state_dict())
    assert not has_stale_certificate(again)


def test_what_answers_do_not_come_from_does_not_count() -> None:
    made = model()
    lambda_head = ponder.LambdaHead(8)
    halting = ponder.PonderWrapper(nn.Linear(8, 8), 4, head=nn.Linear(8, 3), lambda_head=lambda_head)
    before = halting.weights_digest()
    halting.prior = priors.Learned(4)
    assert halting.weights_digest() == before != made.weights_digest()
    assert made.weights_digest() == made.train().weights_digest()


def test_weights_that_cannot_be_read_are_not_known() -> None:
    linear = nn.Linear(2, 2)
    assert digest_of_weights([linear, None]) == digest_of_weights([None, linear])
    assert digest_of_weights([nn.Linear(2, 2, device="meta")]) is None
    linear.register_buffer("sparse", torch.eye(2).to_sparse())
    assert digest_of_weights([linear]) is None
    made = model()
    policy = certified(made)
    made.to("meta")
    made.policy = policy  # and nothing is claimed
    assert not has_stale_certificate(made)


def test_order_shape_and_type_of_weights_count() -> None:
    zeros = nn.ParameterList([torch.zeros(2, 3), torch.zeros(0)])
    seen = {digest_of_weights([zeros]), digest_of_weights([nn.ParameterList([torch.zeros(3, 2), torch.zeros(0)])])}
    seen |= {digest_of_weights([copy.deepcopy(zeros).bfloat16()]), digest_of_weights([zeros, zeros])}
    one, two = nn.Linear(2, 2), nn.Linear(2, 2)
    seen |= {digest_of_weights([one, two]), digest_of_weights([two, one])}
    assert len(seen) == 6
    assert None not in seen
    turned = nn.ParameterList([torch.arange(6.0).reshape(2, 3).T])  # it lies otherwise in memory
    assert digest_of_weights([turned]) == digest_of_weights([nn.ParameterList([turned[0].detach().contiguous()])])


def test_certificates_are_taken_out_of_policies_of_any_form() -> None:
    inside = certified(model())
    bare = inside.policy.to_dict()  # type: ignore[attr-defined]
    mine = {"name": "mine", "first": inside.to_dict(), "others": [{"name": "after", "policy": inside.to_dict()}, 0.5]}
    found = without_certificates({"recipe": mine, "level": 0.1})
    assert found == {
        "recipe": {"name": "mine", "first": bare, "others": [{"name": "after", "policy": bare}, 0.5]},
        "level": 0.1,
    }


def test_a_scorer_that_learns_on_has_no_certificate(tmp_path: Path) -> None:
    """The trap: its weights are none of the model's, and its policy is the same object."""
    torch.manual_seed(0)
    made, scorer = model(), policies.LinearScorer(8)
    recorded = made.record(ROWS, keep_features=True)
    made.policy = found = ponder.control_risk(recorded, policies.Learned(scorer, 0.5), level=0.9).policy
    assert not has_stale_certificate(made)
    before = copy.deepcopy(scorer.state_dict())
    change(scorer)
    assert has_stale_certificate(made)
    with pytest.warns(UserWarning, match="or its policy, were changed after its policy was certified"):
        ponder.save(made, tmp_path)
    assert ponder.load(model(3), tmp_path).policy == found.policy
    scorer.load_state_dict(before)
    assert not has_stale_certificate(made)


def test_a_policy_that_no_file_can_hold_is_certified_all_the_same() -> None:
    class Nameless(nn.Linear):
        pass

    made = model()
    policy = policies.Learned(Nameless(8, 1), 0.5)
    found = ponder.control_risk(made.record(ROWS, keep_features=True), policy, level=0.9).policy
    assert found.policy_digest is None
    made.policy = found
    assert not has_stale_certificate(made)
