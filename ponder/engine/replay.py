"""Replay: the loop over what a full-depth run recorded, which gives the exits that running the model would give."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ponder._utils.numerics import at_least_float32
from ponder._utils.trees import take_rows
from ponder._utils.validation import check_type
from ponder.engine.loop import Exits, run
from ponder.parts.recording import Recording
from ponder.policies.base import ExitPolicy, ModelSpec, PolicyBatch

__all__ = ["RecordedSource", "check_replay", "replay"]


def replay(recording: Recording, policy: ExitPolicy) -> Exits:
    """The exits that running the model with `policy` gives; the policy has been checked (see `check_replay`)."""
    if not len(recording):
        return Exits(recording.outputs[:, -1], recording.row_ids.new_zeros(0))
    batch = PolicyBatch(recording.row_ids, recording.num_steps, recording.meaning)
    return run(RecordedSource(recording), policy, batch)


def check_replay(recording: Recording, policy: ExitPolicy) -> None:
    """Raise where `policy` cannot be replayed on what was recorded."""
    check_type("policy", policy, ExitPolicy)
    policy.check(
        ModelSpec(
            recording.num_steps,
            recording.meaning,
            has_hazard=recording.hazard_logits is not None,
            has_features=recording.features is not None,
            has_context=recording.policy_context is not None,
        )
    )


class RecordedSource:
    """Rows of a recording, as a `loop.Source`.

    Args:
        recording: What was recorded.
    """

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.rows = torch.arange(len(recording), device=recording.outputs.device)
        self.mask = recording.mask
        self.policy_context: Mapping[str, Tensor] = recording.policy_context or {}
        self.step = 0

    def advance(self, step: int) -> None:
        """See `Source.advance`."""
        self.step = step

    def features(self) -> Tensor:
        """See `Readings.features`."""
        assert self.recording.features is not None  # the policy was checked
        return self.recording.features[self.rows, self.step - 1]

    def output(self) -> Tensor:
        """See `Readings.output`."""
        return self.recording.outputs[self.rows, self.step - 1]

    def hazard_logit(self) -> Tensor:
        """See `Readings.hazard_logit`."""
        assert self.recording.hazard_logits is not None  # the policy was checked
        return at_least_float32(self.recording.hazard_logits[self.rows, self.step - 1])

    def output_of(self, index: Tensor | None) -> Tensor:
        """See `Source.output_of`."""
        rows = self.rows if index is None else self.rows[index]
        return self.recording.outputs[rows, self.step - 1]

    def keep(self, index: Tensor) -> None:
        """See `Source.keep`."""
        index = index.to(self.rows.device)
        self.rows, self.mask, self.policy_context = take_rows((self.rows, self.mask, self.policy_context), index)
