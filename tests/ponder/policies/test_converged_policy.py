"""Converged: fixed points of answers and of features, and what it refuses. The contracts run over it as well."""

from __future__ import annotations

import math

import pytest
import torch

import ponder
from ponder import policies
from tests.ponder.checks import refused
from tests.ponder.test_token_tasks import LENGTHS, STEPS, WIDTH, Mix, batch


def trajectory(outputs, features=None, task="classification"):
    outputs = torch.as_tensor(outputs)
    return ponder.Trajectory(outputs, None, torch.arange(len(outputs)), features, task=task)


def norm(vector):
    return math.sqrt(math.fsum(x * x for x in vector))


@pytest.mark.parametrize("tolerance", [0.05, 0.3])
@pytest.mark.parametrize("patience", [1, 2, 3])
def test_features_against_a_plain_loop(tolerance, patience):
    generator = torch.Generator().manual_seed(patience)
    moves = torch.randn(40, 12, 5, generator=generator, dtype=torch.float64)
    features = (moves * 0.6 ** torch.arange(12).view(1, 12, 1)).cumsum(1)  # settles, each row at a pace of its own
    outputs = torch.zeros(40, 12, 2)
    exits = trajectory(outputs, features).replay(policies.Converged(tolerance, patience, on="features"))
    expected = []
    for row in features.tolist():
        count, left = 0, 12
        for n in range(2, 13):
            now, before = row[n - 1], row[n - 2]
            still = norm([a - b for a, b in zip(now, before, strict=True)]) <= tolerance * norm(now)
            count = count + 1 if still else 0
            if count >= patience:
                left = n
                break
        expected.append(left)
    assert exits.exit_step.tolist() == expected
    assert len(set(expected)) > 2


def test_features_that_are_zero_rest():
    features = torch.zeros(2, 4, 3)
    features[1] = torch.tensor([1.0, 2.0, 4.0, 8.0]).view(4, 1)
    exits = trajectory(torch.zeros(2, 4, 2), features).replay(policies.Converged(0.1, on="features"))
    assert exits.exit_step.tolist() == [2, 4]


def test_every_position_must_rest():
    """Token-level outputs halt per sequence: one position that still changes keeps the row."""
    answers = torch.tensor([[[0, 0], [0, 1], [0, 1], [0, 1]], [[0, 0], [0, 1], [0, 0], [0, 1]]])
    outputs = torch.nn.functional.one_hot(answers, 3).float()
    exits = trajectory(outputs, task="token_classification").replay(policies.Converged(patience=1))
    assert exits.exit_step.tolist() == [3, 4]
    half = trajectory(outputs, task="token_classification").replay(policies.Converged(0.5, patience=1))
    assert half.exit_step.tolist() == [2, 2]


class First(torch.nn.Linear):
    """A head that reads the first token of features `(batch, length, width)`."""

    def forward(self, features):
        return super().forward(features[:, 0])


@pytest.mark.parametrize("padding", [ponder.Padding(pooled=False), None], ids=["declared", "by the name of the mask"])
@pytest.mark.parametrize("task", ["classification", None])
@torch.no_grad()
def test_padding_does_not_count_where_features_alone_have_positions(task, padding):
    torch.manual_seed(8)
    step, head = Mix(), First(WIDTH, 3)
    model = ponder.PonderWrapper(
        step, num_steps=STEPS, head=head, readout=ponder.readouts.identity, task=task, padding=padding
    ).eval()
    policy, (inputs, mask) = policies.Converged(0.6, on="features"), batch(length=9)
    alone = [inputs[row : row + 1, :length] for row, length in enumerate(LENGTHS)]
    expected = [model(x, attention_mask=torch.ones(x.shape[:2]), policy=policy).exit_step.item() for x in alone]
    assert len(set(expected)) > 2, "a policy that decides nothing proves nothing"
    assert model(inputs, attention_mask=mask, policy=policy).exit_step.tolist() == expected
    unrolled = model.unroll(inputs, attention_mask=mask, keep_features=True)
    assert unrolled.replay(policy).exit_step.tolist() == expected
    assert model.unroll(inputs, attention_mask=mask).mask is None, "outputs have no positions"
    parts = [model.unroll(x, keep_features=True, attention_mask=torch.ones(x.shape[:2])) for x in alone[:2]]
    parts.append(model.unroll(inputs[2:], attention_mask=mask[2:], keep_features=True))
    assert ponder.Trajectory.cat(parts).replay(policy).exit_step.tolist() == expected
    rows = [(inputs[row], {"attention_mask": mask[row]}) for row in range(len(LENGTHS))]
    assert ponder.predict(model, rows, policy=policy, batch_size=2).exit_step.tolist() == expected
    assert model.record(rows, keep_features=True, batch_size=2).replay(policy).exit_step.tolist() == expected
    others = [policies.FixedStep(2), policy, policies.FixedStep(3), policy, policy]
    with ponder.StreamEngine(model, max_batch=3, policy=policy) as engine:
        assert [found.exit_step for _, found in engine.run(rows, ordered=True)] == expected
    with ponder.StreamEngine(model, max_batch=3) as engine:
        waiting = [engine.submit(row, policy=own) for row, own in zip(rows, others, strict=True)]
        found = [future.result().exit_step for future in waiting]
    assert [found[row] for row in (1, 3, 4)] == [expected[row] for row in (1, 3, 4)]


@torch.no_grad()
def test_a_policy_that_reads_no_features_is_shown_no_mask_of_theirs():
    """A run has none for it, and so have a replay with features and a stream."""
    seen = []

    class Looks(policies.ExitPolicy):
        needs = frozenset({"output"})

        def decide(self, step, state):
            seen.append(step.mask)
            return False, state

    model = ponder.PonderWrapper(Mix(), num_steps=STEPS, head=First(WIDTH, 3), readout=ponder.readouts.identity).eval()
    inputs, mask = batch()
    model(inputs, attention_mask=mask, policy=Looks())
    model.unroll(inputs, attention_mask=mask, keep_features=True).replay(Looks())
    with ponder.StreamEngine(model, Looks()) as engine:
        engine.submit((inputs[0], {"attention_mask": mask[0]})).result()
    assert seen == [None] * 3 * (STEPS - 1)


@torch.no_grad()
def test_features_of_a_declared_length_of_none_have_no_padding():
    """Memory slots, which by chance are as many as the tokens are long, are no positions."""
    features = torch.randn(3, 4, 5, 2).cumsum(1)

    class Slots(torch.nn.Module):
        def forward(self, hidden, attention_mask):
            return hidden + attention_mask.sum(1).view(-1, 1, 1)

    model = ponder.PonderWrapper(
        Slots(), num_steps=4, head=First(2, 2), readout=ponder.readouts.identity, padding=ponder.Padding(hidden=None)
    ).eval()
    mask = torch.ones(3, 5).tril(2)
    assert model.unroll(features[:, 0], attention_mask=mask, keep_features=True).mask is None


def test_what_it_cannot_serve():
    two = trajectory(torch.zeros(1, 2, 3))
    with refused("patience", "2 steps"):
        two.replay(policies.Converged(patience=2))
    with refused("tolerance", "regression"):
        trajectory(torch.zeros(1, 4, 1), task="regression").replay(policies.Converged())
    with refused("policy", "features"):
        two.replay(policies.Converged(on="features"))
    for arguments in ({"tolerance": -0.1}, {"patience": 0}, {"patience": 1.5}, {"on": "hazards"}):
        with refused(next(iter(arguments))):
            policies.Converged(**arguments)
