"""Spans: padding is no place for an answer, so exits do not depend on how long the batch is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import ponder
from ponder import policies, readouts
from ponder.calibration.risks import losses_by_step
from ponder.monitor import Audit, Watched
from ponder.testing import check_policy
from tests.ponder.test_token_tasks import LENGTHS, STEPS, WIDTH, Mix, batch

POLICIES = (
    policies.Patience(1),
    policies.Converged(0.5, 1),
    policies.Converged(0.3, on="features"),
    policies.Patience(2) | policies.Quantile(0.9),
)
every_policy = pytest.mark.parametrize("policy", POLICIES, ids=repr)


class Ends(nn.Module):
    """Two outputs a position; a padded one, whose state is far out, would be the answer of every row."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, 2)

    def forward(self, features: Tensor) -> Tensor:
        outputs: Tensor = 5.0 * self.linear(features)
        return outputs + 50.0 * (features[..., :1].abs() > 0.999)


def make() -> ponder.PonderWrapper:
    torch.manual_seed(4)
    return ponder.PonderWrapper(
        Mix(),
        num_steps=STEPS,
        readout=readouts.identity,
        head=Ends(),
        lambda_head=ponder.LambdaHead(WIDTH),
        halting_readout=readouts.mean,
        task="span",
        padding=ponder.Padding(),
    ).eval()


def alone(model: ponder.PonderWrapper, policy: policies.ExitPolicy) -> list[int]:
    """The exits of rows that are called one by one, without padding."""
    inputs, _ = batch()
    steps = [
        model(inputs[row : row + 1, :length], attention_mask=torch.ones(1, length), policy=policy).exit_step
        for row, length in enumerate(LENGTHS)
    ]
    return torch.cat(steps).tolist()


@every_policy
@torch.no_grad()
def test_a_row_leaves_where_it_leaves_alone(policy: policies.ExitPolicy) -> None:
    model, (inputs, mask) = make(), batch(length=9)
    expected = alone(model, policy)
    assert len(set(expected)) > 1, "every row leaves together: this shows nothing"
    assert model(inputs, attention_mask=mask, policy=policy).exit_step.tolist() == expected
    unrolled = model.unroll(inputs, attention_mask=mask, keep_features=True)
    assert unrolled.replay(policy).exit_step.tolist() == expected
    parts = [model.unroll(inputs[:2, :4], attention_mask=mask[:2, :4], keep_features=True)]
    parts.append(model.unroll(inputs[2:], attention_mask=mask[2:], keep_features=True))
    assert ponder.Trajectory.cat(parts).replay(policy).exit_step.tolist() == expected


@every_policy
def test_streams_predictions_and_recordings_agree_with_it(policy: policies.ExitPolicy) -> None:
    model, (inputs, mask) = make(), batch(length=9)
    expected = alone(model, policy)
    rows = [(inputs[row], {"attention_mask": mask[row]}) for row in range(len(LENGTHS))]
    assert ponder.predict(model, rows, policy=policy).exit_step.tolist() == expected
    assert model.record(rows, keep_features=True).replay(policy).exit_step.tolist() == expected
    with ponder.StreamEngine(model, max_batch=3, policy=policy) as engine:
        assert [found.exit_step for _, found in engine.run(rows, ordered=True)] == expected


@torch.no_grad()
def test_what_is_right_and_what_agrees_is_told_without_padding() -> None:
    model, (inputs, mask) = make(), batch(length=9)
    of_rows = [
        model.unroll(inputs[row : row + 1, :length], attention_mask=torch.ones(1, length))
        for row, length in enumerate(LENGTHS)
    ]
    answers = [one.meaning.predictions(one.outputs)[0] for one in of_rows]  # (steps, 2) each
    labels = torch.stack([given[1] for given in answers])
    agrees = [(given == given[-1]).all(-1).tolist() for given in answers]
    right = [(given == given[1]).all(-1).tolist() for given in answers]
    padded = model.unroll(inputs, labels=labels, attention_mask=mask)
    assert padded.agreement().tolist() == agrees
    assert padded.correct().tolist() == right
    assert losses_by_step("disagreement", padded).tolist() == [[float(not same) for same in row] for row in agrees]
    assert padded.sweep(policies.FixedStep, [2]).points[0].score == 1.0
    plain = padded.outputs.argmax(2).amax((1, 2)) >= torch.tensor(LENGTHS)
    assert bool(plain.any()), "the toy answers in padding by itself"


@torch.no_grad()
def test_a_watched_model_compares_spans_without_padding() -> None:
    model, (inputs, mask) = make(), batch(length=9)
    differing = (~model.unroll(inputs, attention_mask=mask).agreement()).sum(0).tolist()
    audited = []
    for step in range(1, STEPS + 1):
        watched = Watched(model, [policies.FixedStep(step)], Audit(level=0.99, share=1.0))
        watched(inputs, attention_mask=mask)
        watched.run_audits()
        audited.append(watched.audit.disagreements)
    assert audited == differing
    assert sum(audited) > 0


def test_a_mask_of_other_positions_than_those_of_the_outputs_says_nothing_of_them() -> None:
    """Frames of samples: the stem makes one position of two."""

    def frames(inputs: Tensor, attention_mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return inputs.unflatten(1, (-1, 2)).mean(2), {}

    torch.manual_seed(0)
    model = ponder.PonderWrapper(
        [nn.Linear(WIDTH, WIDTH) for _ in range(4)],
        head=nn.Linear(WIDTH, 2),
        stem=frames,
        readout=readouts.identity,
        task="span",
    ).eval()
    inputs, mask = torch.randn(3, 10, WIDTH), torch.ones(3, 10)
    with torch.no_grad():
        exits = model(inputs, attention_mask=mask, policy=policies.Patience(1)).exit_step
        unrolled = model.unroll(inputs, attention_mask=mask, labels=torch.tensor([[1, 2]] * 3))
    assert torch.equal(unrolled.replay(policies.Patience(1)).exit_step, exits)
    assert unrolled.agreement().shape == unrolled.correct().shape == (3, 4)


@pytest.mark.parametrize("policy", [p for p in POLICIES if "features" not in p.needs], ids=repr)
def test_the_contract_of_policies_holds_for_spans(policy: policies.ExitPolicy) -> None:
    check_policy(policy, task="span")
