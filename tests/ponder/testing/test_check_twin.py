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
from ponder.export.policies.base import registry
from ponder.policies import Converged, ExitPolicy, Expected, FixedStep, Patience, Quantile
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


def test_the_contract_has_no_positions() -> None:
    with pytest.raises(ArgumentError, match="task: expected one with one answer a row, as exports have"):
        check_twin(Quantile(0.5), task="token_classification")


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
