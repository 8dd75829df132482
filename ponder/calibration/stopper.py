"""`Stopper`: the callback of a sampler, which asks after each answer whether to ask again.

The answers so far to an item are read as the lines of a table are (`ponder.calibration.tables`), so
an item stops where it would stop in the record that certified the policy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import repeat
from pathlib import Path
from typing import Any, Self

import numpy as np

from ponder._utils.checks import check_choice, check_int
from ponder._utils.files import reading
from ponder._utils.plain import from_plain
from ponder.calibration.records import Record
from ponder.calibration.risks import Moved, RiskLike, loss_at
from ponder.calibration.tables import COMBINE, Combine, read_steps
from ponder.errors import ArgumentError
from ponder.policies.base import ExitPolicy, ModelSpec, PolicyState
from ponder.policies.combine import Certified
from ponder.policies.files import read_policy, write_policy
from ponder.statistics.certificate import CONFIDENCE
from ponder.statistics.used import Used
from ponder.statistics.verdict import Verdict, judge_losses

__all__ = ["Stopper"]


@dataclass(frozen=True)
class Stopper:
    """Say when the answers to an item suffice, of a budget of answers.

    Args:
        policy: A policy on the answers so far: `policies.Lead(budget)` stops votes once those that
            remain cannot change the leader; a certified one sooner.
        budget: N, the most answers that are asked for.
        combine: How answers become the answer to an item: ``"votes"``, the most frequent one;
            ``"mean"``, the mean of numbers; ``"last"``, the last one stands.
        tolerance: For means: by how much a mean may differ from that of the whole budget.
        columns: Names of the columns of the table that certified it, if they are others than those
            of `Record.from_table`.
        used: The items that certified it.

    Example:
        >>> stopper = ponder.calibration.Stopper(policies.Lead(5), budget=5)
        >>> stopper.should_stop(["42", "42"]), stopper.should_stop(["42", "42", "42"])
        (False, True)
        >>> stopper.should_stop_each([["42", "41"], ["7", "7", "7"]])
        [False, True]
        >>> stopper.answer(["42", "41", "42"])
        '42'
    """

    policy: ExitPolicy
    budget: int
    combine: Combine = "votes"
    tolerance: float | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    used: Used = field(default_factory=Used, repr=False)

    def __post_init__(self) -> None:
        check_int("budget", self.budget)
        check_choice("combine", self.combine, list(COMBINE))

    @property
    def statement(self) -> str:
        """The promise in one sentence."""
        if isinstance(self.policy, Certified):
            return self.policy.certificate.sentence
        return "Nothing is promised."

    def should_stop(self, answers_so_far: Sequence[Any], confidences: Sequence[float] = ()) -> bool:
        """Return whether no further answer is needed.

        Args:
            answers_so_far: The answers to one item in the order in which they came: anything that
                compares equal, such as texts; or numbers, for means.
            confidences: The confidence in each answer, if the policy reads confidences.
        """
        if not answers_so_far:
            return False
        if len(answers_so_far) >= self.budget:
            return True
        lines = [
            {"item": 0, "step": step, "answer": answer}
            for step, answer in enumerate(answers_so_far, 1)
        ]
        for line, confidence in zip(lines, confidences, strict=False):
            line["confidence"] = confidence
        record = Record.from_table(lines, combine=self.combine)
        task = record.batch.task
        spec = ModelSpec(
            self.budget,
            task,
            has_hazard=record.hazard_logits is not None,
            has_features=record.features is not None,
        )
        self.policy.check(spec)
        exits: Any = False
        state: PolicyState = None
        for number, view in enumerate(record.views(self.policy.needs)):
            of_budget = replace(view, num_steps=self.budget)
            if number == 0:
                state = self.policy.init(of_budget)
            exits, state = self.policy.decide(of_budget, state)
        return bool(np.all(exits))

    def should_stop_each(
        self,
        answers_of_items: Iterable[Sequence[Any]],
        confidences_of_items: Iterable[Sequence[float]] = repeat(()),
    ) -> list[bool]:
        """Return `should_stop` of each item."""
        items = zip(answers_of_items, confidences_of_items, strict=False)
        return [self.should_stop(answers, confidences) for answers, confidences in items]

    def answer(self, answers_so_far: Sequence[Any]) -> Any:
        """Return the answer to an item: of equal votes, the one that came first."""
        if self.combine == "mean":
            return float(np.mean(answers_so_far))
        if self.combine == "last":
            return answers_so_far[-1]
        votes: Counter[Hashable] = Counter(answers_so_far)
        return votes.most_common(1)[0][0]

    def save(self, file: str | Path) -> None:
        """Write the stopper as a JSON file, with its promise."""
        write_policy(
            file,
            self.policy,
            budget=self.budget,
            combine=self.combine,
            tolerance=self.tolerance,
            columns=dict(self.columns),
            used=self.used.to_dict(),
        )

    @classmethod
    def load(cls, file: str | Path) -> Self:
        """Read what `save`, or ``ponder certify --steps``, wrote.

        Raises:
            CheckpointError: The file is damaged, or was edited.
        """
        policy, settings = read_policy(file)
        with reading(file, "stopper"):
            saved = from_plain(_Settings, settings)
            return cls(policy, **{**vars(saved), "used": Used.from_dict(saved.used)})

    def check(self, table: Any) -> Verdict:
        """Judge the promise on fresh items, with the whole budget of each.

        Args:
            table: Lines of fresh items, with the columns of the table that certified.

        Raises:
            ArgumentError: Nothing is promised, or most items are those that certified.
        """
        if not isinstance(self.policy, Certified) or not self.policy.certificate.met:
            raise ArgumentError(
                "stopper",
                expected="one with a promise",
                got="one that promises nothing",
                remedy="Certify it: ponder.calibration.certify_steps(table).",
            )
        options: dict[str, Any] = {"combine": self.combine, "budget": self.budget, **self.columns}
        record = Record.from_table(table, **options)
        fresh = np.flatnonzero(self.used.fresh(read_steps(table, **options).keys))
        record = record.map(lambda values: values[fresh])
        risk: RiskLike = "disagreement"
        if self.tolerance is not None:
            risk = Moved(self.tolerance)
        losses = loss_at(risk, record)(record.exit_steps(self.policy)[None])[0]
        promise = self.policy.certificate
        return judge_losses(losses, promise.level, promise.confidence or CONFIDENCE, "fresh item")


@dataclass(frozen=True)
class _Settings:
    """The settings of a file, without the policy."""

    budget: int
    combine: Any
    tolerance: float | None
    columns: dict[str, str]
    used: dict[str, str]
