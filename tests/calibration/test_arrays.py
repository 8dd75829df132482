"""The library's record in arrays says what a trajectory says, and what the record of these tests says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ponder import Trajectory, policies
from ponder.calibration.records import Record
from tests.calibration.records import record

POLICIES = [
    policies.Confidence(0.8),
    policies.Quantile(0.6),
    policies.Patience(2) | policies.Margin(0.9),
    policies.Voting(3),
    policies.Entropy(0.3).after(2),
]


def pair(tokens: bool) -> tuple[Trajectory, Record]:
    generator = torch.Generator().manual_seed(0)
    shape = (40, 5, 6, 3) if tokens else (40, 5, 3)
    outputs = torch.randn(shape, generator=generator) * torch.arange(1, 6).view(
        1, 5, *[1] * (len(shape) - 2)
    )
    hazards = torch.randn(40, 5, generator=generator)
    labels = torch.randint(3, (40, 6) if tokens else (40,), generator=generator)
    mask = torch.arange(6) < torch.randint(1, 7, (40, 1), generator=generator) if tokens else None
    outputs[3, 1] = torch.nan
    task = "token_classification" if tokens else "classification"
    run = Trajectory(outputs, hazards, torch.arange(40), labels=labels, task=task, mask=mask)
    arrays: Any = {"hazard_logits": hazards.numpy(), "mask": None if mask is None else mask.numpy()}
    return run, Record(
        outputs.numpy(), row_ids=np.arange(40), labels=labels.numpy(), task=run.task, **arrays
    )


@pytest.mark.parametrize("tokens", [False, True])
def test_it_says_what_a_trajectory_says(tokens: bool) -> None:
    run, seen = pair(tokens)
    for policy in POLICIES:
        assert seen.exit_steps(policy).tolist() == run.exit_steps(policy).tolist()
        np.testing.assert_allclose(policy.scores(seen), policy.scores(run), rtol=1e-5)
    for name in ("agreement", "correct", "score_table"):
        np.testing.assert_array_equal(getattr(seen, name)(), getattr(run, name)())
    assert (len(seen), seen.num_steps, seen.width) == (len(run), run.num_steps, run.width)


def test_it_says_what_the_record_of_these_tests_says() -> None:
    own = record(100)
    seen = Record(own.outputs, None, own.row_ids, labels=own.labels)

    def risk(outputs: Any, labels: Any) -> Any:
        return outputs.argmax(-1) != labels

    assert seen.exit_steps(POLICIES[0]).tolist() == own.exit_steps(POLICIES[0]).tolist()
    np.testing.assert_array_equal(seen.losses(risk), own.losses(risk))
    np.testing.assert_array_equal(
        seen.answers_at(np.full(100, 2))[0], own.answers_at(np.full(100, 2))[0]
    )
