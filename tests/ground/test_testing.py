"""The contract suites find what breaks a contract, and say which rule it was."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ponder
from ponder import policies
from ponder.testing import ContractError, check_backbone, check_policy

INPUTS = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("policy", "task"),
    [
        (policies.Quantile(0.5), "classification"),
        (policies.Bernoulli(), None),
        (policies.Entropy(0.5).after(2), "token_classification"),
        (policies.Patience(2, tolerance=0.1), "regression"),
        (policies.Confidence(0.6) | policies.Patience(2), "classification"),
        (policies.Patience(1), "span"),
    ],
)
def test_good_policies_pass(policy: policies.ExitPolicy, task: str | None) -> None:
    before = torch.get_rng_state()
    check_policy(policy, task=task)
    assert torch.equal(torch.get_rng_state(), before)


@dataclass(frozen=True)
class Base(policies.ExitPolicy):
    needs = frozenset({"output"})

    def decide(self, step: policies.StepView, state: Any) -> Any:
        return self.sure(step) > 0.6, state

    def sure(self, step: policies.StepView) -> Tensor:
        return step.output.softmax(-1).amax(-1)


class InPlace(Base):
    def init(self, first: policies.StepView) -> Tensor:
        return torch.zeros(first.size)

    def decide(self, step: policies.StepView, state: Any) -> Any:
        state += self.sure(step)
        return state > 1.5, state


class Random(Base):
    def decide(self, step: policies.StepView, state: Any) -> Any:
        return torch.rand(step.index.shape) > 0.7, state


class OfTheBatch(Base):
    def decide(self, step: policies.StepView, state: Any) -> Any:
        sure = self.sure(step)
        return sure > sure.mean(), state


class FirstRow(Base):
    def decide(self, step: policies.StepView, state: Any) -> Any:
        return self.sure(step) > 0.9 - 0.1 * step.index[
            0
        ], state  # rows at other steps share a batch in a stream


class Scalar(Base):
    def decide(self, step: policies.StepView, state: Any) -> Any:
        return (self.sure(step) > 0.6).any(), state


class Overflows(Base):
    def decide(self, step: policies.StepView, state: Any) -> Any:
        powers = step.output.exp()
        return (powers / powers.sum(-1, keepdim=True)).amax(-1) > 0.6, state


class Undeclared(Base):
    needs = frozenset()


class Padded(Base):
    def sure(self, step: policies.StepView) -> Tensor:
        return super().sure(step).amin(-1)


class Wrong(Base, policies.ThresholdPolicy):
    threshold = 0.6
    tunable = policies.Threshold("threshold", "below")

    def decide(self, step: policies.StepView, state: Any) -> Any:
        return self.sure(step) > 0.6, state

    def statistic(self, step: policies.StepView, state: Any) -> Any:
        return self.sure(step), state

    def with_threshold(self, value: float) -> Any:
        return replace(self)


@pytest.mark.parametrize(
    ("kind", "task", "message"),
    [
        (InPlace, "classification", "changed in place"),
        (Random, "classification", "different answers; draw random numbers in init"),
        (OfTheBatch, "classification", "as a batch of their own"),
        (FirstRow, "classification", "in a stream .* read nothing but"),
        (Scalar, "classification", "give one bool a row"),
        (Overflows, "classification", "led to NaN"),
        (Undeclared, "classification", r"Set needs = frozenset\(\{'output'\}\)"),
        (Padded, "token_classification", "outputs at padding change exits"),
        (Wrong, "classification", "by scores and"),
    ],
)
def test_bad_policies_are_found(kind: Any, task: str, message: str) -> None:
    if kind not in policies.registry._factories.values():
        policies.register(f"bad-{kind.__name__.lower()}")(kind)
    with pytest.raises(ponder.errors.PonderError, match=message):
        check_policy(kind(), task=task)


def test_unregistered_policies_are_found() -> None:
    with pytest.raises(ponder.errors.ArgumentError, match="Give the class a name"):
        check_policy(Base())


# -- backbones ---------------------------------------------------------------------------------------------------


class Step(nn.Module):
    """A step; what it does wrong stands in a leaf."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.tanh(self.linear(hidden))


class WritesInPlace(Step):
    def forward(self, hidden: Tensor) -> Tensor:
        return hidden.add_(1.0).tanh()


class Centred(Step):
    def forward(self, hidden: Tensor) -> Tensor:
        return super().forward(hidden) - hidden.mean(0)


class Counts(Step):
    calls = 0

    def forward(self, hidden: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(hidden) / self.calls


class Noisy(Step):
    def forward(self, hidden: Tensor) -> Tensor:
        return super().forward(hidden) + 0.1 * torch.randn(hidden.shape, generator=GENERATOR)


GENERATOR = torch.Generator()


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (WritesInPlace, "inputs were written in place"),
        (Centred, "as a batch of their own"),
        (Counts, "keep no state in modules"),
        (Noisy, "draw no random numbers"),
    ],
)
def test_bad_backbones_are_found(step: Any, message: str) -> None:
    model = ponder.PonderWrapper(step(), 4, head=nn.Linear(8, 3), policy=policies.Confidence(0.5))
    with pytest.raises(ContractError, match=message):
        check_backbone(model, INPUTS.clone())
    assert model.training


def test_context_of_one_row_is_not_of_all() -> None:
    model = ponder.PonderWrapper(Cell(), 4, head=nn.Linear(8, 3), policy=policies.Confidence(0.5))
    check_backbone(model, INPUTS, x=torch.randn(6, 8))
    check_backbone(model, INPUTS, torch.randn(6, 8))
    check_backbone(model, (INPUTS, {"x": torch.randn(6, 8)}))
    with pytest.raises(ponder.errors.ArgumentError, match=r"ponder\.Shared"):
        check_backbone(model, INPUTS, x=torch.randn(1, 8))


class Cell(Step):
    def forward(self, hidden: Tensor, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(hidden) + x


def test_encoders_with_padding_pass() -> None:
    layers = [nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True) for _ in range(3)]
    model = ponder.PonderWrapper(
        layers,
        head=nn.Linear(8, 3),
        lambda_head=ponder.LambdaHead(8),
        readout=ponder.readouts.mean,
        padding=ponder.Padding("src_key_padding_mask", real=False),
        policy=policies.Quantile(0.5),
    )
    mask = torch.arange(5) >= torch.tensor([[2], [3], [5], [4], [1], [5]])
    check_backbone(model, torch.randn(6, 5, 8), src_key_padding_mask=mask)
