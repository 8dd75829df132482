"""The contract of the twins by which exports decide: those of the library keep it, and those that do not are told."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from ponder import policies
from ponder.errors import ArgumentError
from ponder.export.policies import NumpyPolicy, StepView
from ponder.export.policies import outputs as export_outputs
from ponder.export.policies.base import registry
from ponder.policies import (
    Bernoulli,
    Confidence,
    Converged,
    Energy,
    Entropy,
    ExitPolicy,
    Expected,
    FixedStep,
    Gate,
    Margin,
    Patience,
    Quantile,
    Tempered,
    Voting,
)
from ponder.testing import ContractError, check_twin
from tests.ponder.test_sweep import recorded


def gate(**options: Any) -> policies.Gate:
    fields = {"num_steps": 6, "signals": ("margin",), "kind": "logistic", "tables": ((1.0, 0.0),) * 5, **options}
    return policies.Gate(**fields)


@pytest.mark.parametrize(
    "policy",
    [
        policies.Bernoulli(3),
        policies.Energy(0.9) | Patience(2),
        policies.Entropy(0.5, normalize=True).after(2) & Quantile(0.2),
        policies.Voting(3).before(5),
        Converged(0.6, on="features"),
        FixedStep(3),
        policies.LastStep(),
        gate(signals=("margin", "shift", "expected", "movement"), tables=((-3.0, 1.0, 0.2, 0.1, 0.5),) * 5),
        gate(signals=("hidden",), tables=((0.3, -0.2, 0.5, 0.1, 0.7, -1.0, 0.2, 0.3, 0.0),) * 5),
        Expected.fit(dataclasses.replace(recorded(200), labels=None), price=0.02),
    ],
    ids=repr,
)
def test_the_contract_of_twins(policy: ExitPolicy) -> None:
    check_twin(policy)


@pytest.mark.parametrize("task", ["regression", "multilabel"])
def test_the_contract_of_twins_without_classes(task: str) -> None:
    check_twin(Converged(0.4), task=task, num_outputs=2, num_steps=4)


GATE = Gate(
    4, ("confidence", "margin", "shift", "streak", "movement"), "logistic", ((-1.0, -1.0, 1.0, -1.0, 0.5, 1.0),) * 3
)
AT_TOKENS: list[ExitPolicy] = [
    Confidence(0.6),
    Margin(0.3),
    Entropy(0.8) | Patience(2),
    Entropy(0.6, normalize=True),
    Energy(0.8),
    Voting(2),
    Tempered(Confidence(0.6), (2.0,)),
    GATE,
]
AT_POSITIONS: list[ExitPolicy] = [
    Patience(1),
    Converged(),
    Converged(0.4),
    Bernoulli(3),
    Gate(4, ("movement",), "logistic", ((1.0, -0.5),) * 3),
]


@pytest.mark.parametrize("policy", [*AT_TOKENS, *AT_POSITIONS], ids=repr)
def test_the_contract_at_each_token(policy: ExitPolicy) -> None:
    """Padding does not count, and the least sure position does."""
    check_twin(policy, task="token_classification", num_steps=4)


@pytest.mark.parametrize("policy", AT_POSITIONS, ids=repr)
def test_the_contract_where_positions_are_chosen(policy: ExitPolicy) -> None:
    check_twin(policy, task="span", num_steps=4)


def test_padding_that_counts_breaks_the_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_outputs, "least", lambda values, mask: values.min(1))
    with pytest.raises(ContractError, match="rows leave where they leave in PyTorch"):
        check_twin(Confidence(0.6), task="token_classification")


def test_features_of_tokens_are_no_signal() -> None:
    gate = Gate(6, ("hidden",), "logistic", ((0.1,) * 9,) * 5)
    with pytest.raises(ArgumentError, match="signals: expected one number a row"):
        check_twin(gate, task="token_classification")


@dataclass(frozen=True)
class Steady(ExitPolicy):
    """Exit once the first output has been above `level` twice; the twins below do it wrong."""

    level: float = 0.0
    needs = frozenset({"output"})

    def to_dict(self) -> dict[str, Any]:
        return {"name": "steady", "level": self.level}

    def init(self, batch: policies.PolicyBatch) -> torch.Tensor:
        return torch.zeros(batch.size, dtype=torch.long, device=batch.device)

    def decide(self, step: policies.StepView, state: Any) -> tuple[torch.Tensor, Any]:
        state = torch.where(step.output[:, 0] > self.level, state + 1, state)
        return state >= 2, state


@dataclass(frozen=True)
class Sound(NumpyPolicy):
    level: float
    needs = frozenset({"output"})

    def init(self, row_ids: Any) -> Any:
        return np.zeros(len(row_ids), dtype=np.int64)

    def decide(self, step: StepView, state: Any) -> tuple[np.ndarray, Any]:
        assert step.output is not None
        state = np.where(step.output[:, 0] > self.level, state + 1, state)
        return state >= 2, state


class Other(Sound):
    def decide(self, step: StepView, state: Any) -> tuple[np.ndarray, Any]:
        mask, state = super().decide(step, state)
        return mask & (step.index > 2), state


class InPlace(Sound):
    def decide(self, step: StepView, state: Any) -> tuple[np.ndarray, Any]:
        assert step.output is not None
        state += step.output[:, 0] > self.level
        return state >= 2, state


class OfBatch(Sound):
    def decide(self, step: StepView, state: Any) -> tuple[np.ndarray, Any]:
        mask, state = super().decide(step, state)
        return mask | (len(mask) == 1), state


class Numbers(Sound):
    def decide(self, step: StepView, state: Any) -> tuple[np.ndarray, Any]:
        mask, state = super().decide(step, state)
        return mask.astype(int), state


class Blind(Sound):
    needs = frozenset({"hazard"})


class WithoutNan(Sound):
    def decide(self, step: StepView, state: Any) -> tuple[np.ndarray, Any]:
        assert step.output is not None
        state = np.where(step.output[:, 0] > self.level, state + 1, state) + np.isnan(step.output[:, 0])
        return state >= 2, state


@dataclass(frozen=True)
class OtherFields(Sound):
    times: int = 2


class Raises(Sound):
    def decide(self, step: StepView, state: Any) -> tuple[np.ndarray, Any]:
        raise ValueError("no")


WRONG = {
    Other: "rows leave where they leave in PyTorch",
    InPlace: "a twin changes nothing that it is given",
    OfBatch: "a row's exit does not depend on the other rows",
    Numbers: "a twin answers wherever its policy does, with a bool for each running row",
    Blind: "a twin reads what its policy reads",
    WithoutNan: "rows leave where they leave in PyTorch",
    OtherFields: "a twin has the fields of its policy",
    Raises: "a twin answers wherever its policy does",
}


class InDict(Sound):
    def init(self, row_ids: Any) -> Any:
        return {"count": [super().init(row_ids)]}

    def decide(self, step: StepView, state: Any) -> tuple[np.ndarray, Any]:
        mask, count = super().decide(step, state["count"][0])
        return mask, {"count": [count]}


class Count(NamedTuple):
    so_far: np.ndarray


class InNamedTuple(Sound):
    def init(self, row_ids: Any) -> Any:
        return Count(super().init(row_ids))

    def decide(self, step: StepView, state: Any) -> tuple[np.ndarray, Any]:
        mask, count = super().decide(step, state.so_far)
        return mask, Count(count)


SOUND = (Sound, InDict, InNamedTuple)


@pytest.mark.parametrize("twin", [*SOUND, *WRONG])
def test_the_contract_sees_a_twin_that_is_none(twin: type[NumpyPolicy], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._factories, "steady", twin)
    with nullcontext() if twin in SOUND else pytest.raises(ContractError, match=WRONG[twin]):
        check_twin(Steady())
