"""A record without PyTorch, as a cascade has one: probabilities `(rows, steps, classes)` and costs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ponder.policies.base import ExitPolicy, ModelSpec, StepView
from ponder.tasks import Task, task_named


@dataclass
class ArrayRecord:
    outputs: Any  # (rows, steps, classes) logits
    labels: Any = None
    row_ids: Any = None
    content_ids: bool = False
    weights: str | None = None
    training: bool = False
    meaning: Task = field(default_factory=lambda: task_named("classification"))
    asked: int = 0  # how often a policy was replayed

    def __post_init__(self) -> None:
        self.num_steps, self.width = self.outputs.shape[1:]
        if self.row_ids is None:
            self.row_ids = np.arange(len(self.outputs))

    def __len__(self) -> int:
        return len(self.outputs)

    def check(self, policy: ExitPolicy) -> None:
        policy.check(ModelSpec(self.num_steps, self.meaning, has_hazard=False, has_features=False))

    def views(self, needs: frozenset[str]) -> Iterator[StepView]:
        for step in range(1, self.num_steps + 1):
            index = np.full(len(self), step)
            outputs = {"output": self.outputs[:, step - 1]}
            yield StepView(index, self.row_ids, self.num_steps, outputs, self.meaning)

    def exit_steps(self, policy: ExitPolicy) -> Any:
        """Exit steps by asking `decide` step by step, as a run does."""
        self.asked += 1
        self.check(policy)
        views = list(self.views(policy.needs))
        state = policy.init(views[0])
        exits = np.full(len(self), self.num_steps)
        for view in views[:-1]:
            mask, state = policy.decide(view, state)
            exits = np.where((exits == self.num_steps) & mask, view.index, exits)
        return exits

    def agreement(self) -> Any:
        return self._answers() == self._answers()[:, -1:]

    def correct(self) -> Any:
        return self._answers() == np.asarray(self.labels)[:, None]

    def losses(self, risk: Any, low: float = 0.0) -> Any:
        each = [risk(self.outputs[:, n], self.labels) for n in range(self.num_steps)]
        return np.maximum(np.stack(each, 1), low)

    def score_name(self, metric: Any = None) -> str:
        return getattr(metric, "__name__", "accuracy")

    def score_table(self, metric: Any = None) -> Any:
        return None if callable(metric) else self.correct() * 1.0

    def answers_at(self, steps: Any) -> Any:
        return self.outputs[np.arange(len(self)), steps - 1], self.labels

    def _answers(self) -> Any:
        answers = self.outputs.argmax(-1)
        return np.where(np.isnan(self.outputs).any(-1), -1 - np.arange(self.num_steps), answers)


def record(
    rows: int = 300, steps: int = 5, classes: int = 3, seed: int = 0, **options: Any
) -> ArrayRecord:
    """Answers that get surer and better from step to step."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=rows)
    hard = rng.uniform(0.3, 3.0, size=(rows, 1, 1))
    signal = np.eye(classes)[labels][:, None] * np.linspace(0.5, 4.0, steps)[None, :, None] / hard
    drift = (
        rng.normal(size=(rows, steps, classes)).cumsum(1)
        / np.sqrt(np.arange(1, steps + 1))[None, :, None]
    )
    return ArrayRecord(2.0 * (signal + drift), labels=labels, **options)
