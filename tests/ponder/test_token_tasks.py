"""An answer at each position: an example halts once its least sure position is sure, and padding is no position."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ponder
from ponder import policies, readouts
from tests.ponder.checks import refused

WIDTH, CLASSES, STEPS, SCALE = 6, 3, 5, 5.0
LENGTHS = (4, 1, 3, 4, 2)
POLICIES = (
    policies.Confidence(0.7),
    policies.Entropy(0.7),
    policies.Margin(0.5),
    policies.Patience(1),
    policies.Voting(3),
    policies.Quantile(0.7),
    policies.Confidence(0.6).after(2) | policies.Patience(3),
    policies.Bernoulli(3),
)
RULES = policies.ThresholdPolicy  # policies of one rule, which the oracle below knows
every_policy = pytest.mark.parametrize("policy", POLICIES, ids=repr)


class Mix(nn.Module):
    """A step in which positions look at the real positions of their own row, and at nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.own, self.others = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        mean = readouts.mean(hidden, attention_mask=attention_mask).unsqueeze(1)
        return torch.tanh(1.7 * self.own(hidden) + self.others(mean))


def make(**options: Any) -> ponder.PonderWrapper:
    torch.manual_seed(1)
    head = nn.Linear(WIDTH, CLASSES)
    with torch.no_grad():
        head.weight.mul_(SCALE)
    return ponder.PonderWrapper(
        Mix(),
        num_steps=STEPS,
        readout=readouts.identity,
        head=head,
        lambda_head=ponder.LambdaHead(WIDTH, history=2),
        halting_readout=readouts.mean,
        task="token_classification",
        **options,
    ).eval()


def batch(length: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(len(LENGTHS), 4, WIDTH, generator=generator)
    more = torch.full((len(LENGTHS), length - 4, WIDTH), 9.0)
    mask = (torch.arange(length) < torch.tensor(LENGTHS).unsqueeze(1)).long()
    return torch.cat([inputs, more], dim=1), mask


def oracle(outputs: Tensor, hazards: Tensor, mask: Tensor, policy: Any) -> list[int]:
    """Exit steps of a policy with one rule, in plain Python."""
    steps = []
    for row, length in enumerate(mask.sum(1).tolist()):
        survival, kept, votes, before = 1.0, 0, [[0] * CLASSES for _ in range(length)], None
        for step in range(1, STEPS + 1):
            p = outputs[row, step - 1, :length].double().softmax(-1).tolist()
            answer = [each.index(max(each)) for each in p]
            for position, chosen in enumerate(answer):
                votes[position][chosen] += 1
            survival *= 1.0 - torch.sigmoid(hazards[row, step - 1].double()).item()
            kept = kept + 1 if answer == before else 0
            before = answer
            match policy:
                case policies.Confidence(threshold):
                    leaves = min(max(each) for each in p) > threshold
                case policies.Entropy(threshold):
                    leaves = max(-sum(q * math.log(q) for q in each) for each in p) < threshold
                case policies.Margin(threshold):
                    leaves = min(sorted(each)[-1] - sorted(each)[-2] for each in p) > threshold
                case policies.Patience(patience):
                    leaves = kept >= patience
                case policies.Voting(needed):
                    leaves = min(votes[position][chosen] for position, chosen in enumerate(answer)) >= needed
                case policies.Quantile(q):
                    leaves = 1.0 - survival > q
                case _:
                    raise AssertionError(policy)
            if leaves or step == STEPS:
                steps.append(step)
                break
    return steps


@pytest.mark.parametrize("policy", [p for p in POLICIES if isinstance(p, RULES)], ids=repr)
@torch.no_grad()
def test_the_exits_are_those_of_plain_python(policy: policies.ExitPolicy) -> None:
    model, (inputs, mask) = make(), batch()
    trajectory = model.unroll(inputs, attention_mask=mask)
    assert trajectory.hazard_logits is not None
    expected = oracle(trajectory.outputs, trajectory.hazard_logits, mask, policy)
    assert model(inputs, attention_mask=mask, policy=policy).exit_step.tolist() == expected
    assert len(set(expected)) > 1, "every row leaves together: this shows nothing"


@every_policy
@torch.no_grad()
def test_run_equals_replay_equals_more_padding(policy: policies.ExitPolicy) -> None:
    model, (inputs, mask) = make(), batch()
    run = model(inputs, attention_mask=mask, policy=policy)
    replayed = model.unroll(inputs, attention_mask=mask).replay(policy)
    assert torch.equal(run.exit_step, replayed.exit_step)
    torch.testing.assert_close(run.outputs, replayed.outputs)
    longer, its_mask = batch(7)
    padded = model(longer, attention_mask=its_mask, policy=policy)
    assert torch.equal(run.exit_step, padded.exit_step)
    for row, length in enumerate(LENGTHS):
        torch.testing.assert_close(run.outputs[row, :length], padded.outputs[row, :length])
        alone = model(
            inputs[row : row + 1, :length],
            attention_mask=mask[row : row + 1, :length],
            policy=policy,
            row_ids=torch.tensor([row]),
        )
        assert alone.exit_step.item() == run.exit_step[row].item()


@pytest.mark.parametrize("family", [policies.Confidence, policies.Entropy, policies.Margin, policies.Patience])
@torch.no_grad()
def test_a_sweep_equals_replay(family: type[policies.ExitPolicy]) -> None:
    model, (inputs, mask) = make(), batch()
    labels = torch.where(mask.bool(), torch.randint(CLASSES, mask.shape), -100)
    trajectory = model.unroll(inputs, attention_mask=mask, labels=labels)
    curve = trajectory.sweep(family)
    for point, policy in zip(curve.points, curve.policies, strict=True):
        exits = trajectory.replay(policy)
        assert point.mean_exit_step == pytest.approx(exits.exit_step.double().mean().item())
        real = mask.bool()
        same = (exits.outputs.argmax(-1) == trajectory.outputs[:, -1].argmax(-1)) | ~real
        assert point.agreement == pytest.approx(same.all(1).double().mean().item())


def test_training_reaches_every_part() -> None:
    model, (inputs, mask) = make().train(), batch()
    labels = torch.where(mask.bool(), torch.ones_like(mask), -100)
    model(inputs, attention_mask=mask, labels=labels).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@torch.no_grad()
def test_trajectories_of_other_lengths_join(tmp_path: Any) -> None:
    model, (inputs, mask) = make(), batch()
    whole = model.unroll(inputs, attention_mask=mask, row_ids=torch.arange(5), labels=torch.where(mask.bool(), 1, -100))
    longest_first = [
        model.unroll(
            inputs[rows, :length],
            attention_mask=mask[rows, :length],
            row_ids=torch.tensor(rows),
            labels=torch.where(mask[rows, :length].bool(), 1, -100),
        )
        for rows, length in (([0, 3], 4), ([2], 3), ([1, 4], 2))
    ]
    joined = ponder.Trajectory.cat(longest_first)
    joined.save(tmp_path / "tokens.safetensors")
    order = torch.tensor([0, 3, 2, 1, 4])
    for kept in (joined, ponder.Trajectory.load(tmp_path / "tokens.safetensors")):
        assert kept.outputs.shape == (5, STEPS, 4, CLASSES)
        for policy in POLICIES:
            assert torch.equal(kept.replay(policy).exit_step, whole.replay(policy).exit_step[order])
        assert ponder.control_risk(kept, policies.Patience, level=0.9).met in (True, False)


def test_without_a_halting_readout_the_lambda_head_says_what_it_needs() -> None:
    model = ponder.PonderWrapper(
        Mix(),
        num_steps=STEPS,
        readout=readouts.identity,
        head=nn.Linear(WIDTH, CLASSES),
        lambda_head=ponder.LambdaHead(WIDTH),
        task="token_classification",
    ).eval()
    inputs, mask = batch()
    with refused("width of the Lambda head", "halting_readout"):
        model(inputs, attention_mask=mask)


@pytest.mark.parametrize("name", ["padding_mask", None])
def test_a_teacher_of_tokens_teaches_no_padding_where_labels_alone_tell_of_it(name: str | None) -> None:
    class Step(nn.Linear):
        def forward(self, hidden: Tensor, **_: Any) -> Tensor:
            return hidden + super().forward(hidden).tanh()

    torch.manual_seed(0)
    real = torch.arange(4) < torch.tensor(LENGTHS)[:, None]
    labels = torch.randint(CLASSES, real.shape).masked_fill(~real, -100)
    labels[:, 0] = -100  # as of [CLS], which is taught
    model = ponder.PonderWrapper(
        Step(WIDTH, WIDTH),
        num_steps=STEPS,
        head=nn.Linear(WIDTH, CLASSES),
        readout=lambda hidden, **_: hidden,
        task="token_classification",
        objective=ponder.objectives.Distillation(),
    )
    inputs = torch.randn(*real.shape, WIDTH)
    of_padding, of_start = inputs.clone(), inputs.clone()
    of_padding[~real] += 9.0
    of_start[0, 0] += 9.0
    masks = {} if name is None else {name: real}
    plain, padded, other = (model(each, labels=labels, **masks).loss for each in (inputs, of_padding, of_start))
    torch.testing.assert_close(padded, plain)
    assert abs(float((other - plain).detach())) > 1e-4
