"""`VoteStopper`: the callback of a sampler that asks after each answer whether to ask again."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ponder._utils.checks import check_int
from ponder.calibration.records import Record
from ponder.policies.base import ExitPolicy

__all__ = ["VoteStopper"]


@dataclass(frozen=True)
class VoteStopper:
    """Say when the answers to an item suffice, of a budget of answers.

    Args:
        policy: A policy on the shares of the answers: `policies.Lead(budget)` stops once the
            answers that remain cannot change the leader; a certified one sooner.
        budget: N, the most answers that are asked for.

    Example:
        >>> stopper = ponder.ensembles.VoteStopper(policies.Lead(5), budget=5)
        >>> stopper.should_stop(["42", "42"]), stopper.should_stop(["42", "42", "42"])
        (False, True)
        >>> stopper.should_stop_each([["42", "41"], ["7", "7", "7"]])
        [False, True]
    """

    policy: ExitPolicy
    budget: int

    def __post_init__(self) -> None:
        check_int("budget", self.budget)

    def should_stop(self, answers_so_far: Sequence[Hashable]) -> bool:
        """Return whether no further answer is needed.

        Args:
            answers_so_far: The answers to one item in the order in which they came: anything that
                compares equal, such as texts.
        """
        if not answers_so_far:
            return False
        if len(answers_so_far) >= self.budget:
            return True
        numbers: dict[Hashable, int] = {}
        votes = [numbers.setdefault(answer, len(numbers)) for answer in answers_so_far]
        record = Record.from_votes([votes])
        views = [replace(view, num_steps=self.budget) for view in record.views(self.policy.needs)]
        state = self.policy.init(views[0])
        exits: Any = False
        for view in views:
            exits, state = self.policy.decide(view, state)
        return bool(np.all(exits))

    def should_stop_each(self, answers_of_items: Iterable[Sequence[Hashable]]) -> list[bool]:
        """Return `should_stop` of each item."""
        return [self.should_stop(answers) for answers in answers_of_items]
