"""Policies, objectives, priors and heads that users write: what is wrong about them is told, and never in silence."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

import ponder
from ponder import objectives, policies, priors, recipes
from ponder._utils.registry import Registry
from ponder.objectives.base import Depth
from ponder.testing import ContractError, check_objective, check_policy
from tests.ponder.checks import refused
from tests.toys import make_toy, wrap


@pytest.fixture(autouse=True)
def _own_names(monkeypatch: pytest.MonkeyPatch) -> None:
    for base in (policies.ExitPolicy, objectives.Objective, priors.Prior):
        monkeypatch.setattr(base.registry, "_factories", dict(base.registry._factories))


@dataclass(frozen=True)
class Persistent(policies.ThresholdPolicy):
    """Sure for two steps in a row, with a state that reads the threshold, as it must not."""

    level: float = 0.4
    needs = frozenset({"output"})
    tunable = policies.Threshold("level", "above")

    def init(self, batch: policies.PolicyBatch) -> Any:
        return torch.ones(batch.size, dtype=torch.bool)

    def statistic(self, step: policies.StepView, state: Any) -> tuple[torch.Tensor, Any]:
        sure = step.output.softmax(-1).amax(-1)
        return torch.where(state, sure, torch.ones_like(sure)), state & (sure > self.level)


@dataclass(frozen=True)
class InPlace(policies.ExitPolicy):
    level: float = 0.4
    needs = frozenset({"output", "features"})

    def decide(self, step: policies.StepView, state: Any) -> tuple[torch.Tensor, Any]:
        sure = step.output.softmax(-1).amax(-1)
        step.output.sub_(7.0)
        step.features.zero_()
        step.index.add_(1)
        return sure > self.level, state


def test_a_certificate_is_about_the_exits_that_the_policy_makes_even_where_its_statistic_reads_the_threshold() -> None:
    outputs = torch.zeros(400, 4, 3)
    outputs[:, :3, 0] = torch.tensor([0.2, 0.1, 0.1])
    outputs[:, 3, 1] = 4.0
    trajectory = ponder.Trajectory(
        outputs, None, torch.arange(400), labels=torch.ones(400).long(), task="classification"
    )
    made = ponder.control_risk(trajectory, Persistent, risk="disagreement", level=0.1, confidence=0.9)
    exits = trajectory.replay(made.policy)
    assert made.mean_exit_step == exits.exit_step.double().mean()
    assert (exits.outputs.argmax(-1) != 1).double().mean() <= 0.1
    curve = trajectory.sweep(Persistent, [0.2, 0.35, 0.9])
    for point, policy in zip(curve.points, curve.policies, strict=True):
        assert point.mean_exit_step == trajectory.replay(policy).exit_step.double().mean()
    assert len({point.mean_exit_step for point in curve.points}) > 1


@pytest.mark.parametrize("toy_name", ["shared", "transformer"])
def test_a_policy_that_works_in_place_changes_no_answer(toy_name: str) -> None:
    toy = make_toy(toy_name)
    model = wrap(toy).eval()
    inputs, context = toy.batch(24, seed=5)
    record = model.unroll(inputs, keep_features=True, **context)
    policy = InPlace(float(record.outputs[:, 0].detach().softmax(-1).amax(-1).median()))
    run, replayed = model(inputs, policy=policy, **context), record.replay(policy)
    assert run.exit_step.tolist() == replayed.exit_step.tolist()
    assert len(set(run.exit_step.tolist())) > 1
    torch.testing.assert_close(run.outputs, replayed.outputs)
    with pytest.raises(ContractError, match="changes nothing that it is given"):
        check_policy(InPlace())


def test_what_a_policy_or_an_objective_leaves_on_its_class_is_seen() -> None:
    @dataclass(frozen=True)
    class Remembers(policies.ExitPolicy):
        needs = frozenset({"output"})
        box: ClassVar[list[float]] = []

        def decide(self, step: policies.StepView, state: Any) -> tuple[torch.Tensor, Any]:
            sure = step.output.softmax(-1).amax(-1)
            self.box[:] = self.box or [float(sure.median())]
            return sure > self.box[0], state

    with pytest.raises(ContractError, match="remembers nothing"):
        check_policy(Remembers())

    @dataclass(frozen=True)
    class Counts(objectives.Objective):
        calls: ClassVar[list[int]] = [0]

        def per_example(self, unrolled: objectives.Unrolled) -> torch.Tensor:
            self.calls[0] += 1
            return unrolled.losses[:, -1]

    with pytest.raises(ContractError, match="per_example is pure"):
        check_objective(Counts())


@dataclass(frozen=True)
class Holding(objectives.Objective):
    module: nn.Module = field(default_factory=lambda: nn.Linear(6, 1))

    def per_example(self, unrolled: objectives.Unrolled) -> torch.Tensor:
        return self.module(unrolled.losses).squeeze(1)


@dataclass(frozen=True)
class Tilted(priors.Prior):
    weights: Any

    def log_pmf(self, num_steps: int) -> Any:
        return self.weights


def test_parameters_that_no_optimizer_would_find_are_refused() -> None:
    model = wrap(make_toy("shared"))
    with refused("objective", "Holding.module", type_error=True):
        model.objective = Holding()
    with refused("objective", "Holding.module", type_error=True):
        model.objective = objectives.FinalStep() + 0.5 * Holding()
    with refused("prior", "Tilted.weights", type_error=True):
        model.prior = Tilted(nn.Parameter(torch.zeros(model.num_steps)))
    model.objective = Holding(nn.Linear(6, 1).requires_grad_(False))  # a frozen one learns nothing
    model.objective = Holding(model.head)  # its optimizer finds these
    with refused("Both", "torch.nn.Module", type_error=True):

        class Both(objectives.Objective, nn.Module):  # type: ignore[misc]
            pass


@pytest.mark.parametrize("made", [Depth(0, 99), Depth(2, 0), 3, None])
def test_a_depth_that_a_model_does_not_have_is_refused(made: Any) -> None:
    class Deep(objectives.FinalStep):
        def depth(self, num_steps: int) -> Any:
            return made

    toy = make_toy("shared")
    model = wrap(toy).train()
    model.objective = Deep()
    inputs, context = toy.batch(4)
    with refused("Deep.depth"):
        model(inputs, labels=torch.zeros(4, dtype=torch.long), **context)


@dataclass(frozen=True)
class Sure(policies.ThresholdPolicy):
    threshold: Any = "0.3"
    needs = frozenset({"output"})
    tunable = policies.Threshold("threshold", "above")

    def statistic(self, step: policies.StepView, state: Any) -> tuple[torch.Tensor, Any]:
        return step.output.amax(-1), state


def test_what_is_of_another_kind_is_told_by_name() -> None:
    model = wrap(make_toy("shared"))
    with refused("Tilted.log_pmf", "list", type_error=True):
        model.prior = Tilted([0.0] * model.num_steps)
    with pytest.raises(TypeError, match="unsupported operand"):
        objectives.FinalStep() + 1  # type: ignore[operator]
    with refused("objective", "str", type_error=True):
        recipes.Stage("final-step")  # type: ignore[arg-type]
    trajectory = ponder.Trajectory(torch.randn(30, 4, 3), None, torch.arange(30), task="classification")
    with refused("threshold", "'0.3'", type_error=True):
        trajectory.replay(Sure())
    for number in (np.float32(0.3), np.int64(1), torch.tensor(0.3)):
        assert len(trajectory.replay(Sure(number)).exit_step) == 30

    class Plain(policies.ThresholdPolicy):
        needs = frozenset({"output"})
        tunable = policies.Threshold("level", "above")
        level = 0.3

        def statistic(self, step: policies.StepView, state: Any) -> tuple[torch.Tensor, Any]:
            return step.output.amax(-1), state

    with refused("Plain", "another class", type_error=True):
        trajectory.sweep(Plain(), [0.1, 0.2])


@pytest.mark.parametrize("answer", [lambda x: (x.sum(1), None), lambda x: x.sum(1) > 0, lambda x: x])
def test_a_lambda_head_that_gives_no_logits_is_refused(answer: Any) -> None:
    class Head(nn.Module):
        def forward(self, features: torch.Tensor) -> Any:
            return answer(features)

    model = ponder.PonderWrapper(
        nn.Linear(8, 8), 3, head=nn.Linear(8, 3), lambda_head=Head(), policy=policies.Quantile(0.5)
    ).eval()
    with refused("lambda_head"):
        model(torch.randn(4, 8))


def test_a_name_is_given_to_its_own_kind_alone() -> None:
    with refused("a-prior", "priors", type_error=True):
        policies.register("a-prior")(priors.Uniform)
    with refused("name"):
        policies.register(Persistent)  # type: ignore[arg-type]
    with refused("a-policy", "Persistent", type_error=True):
        recipes.register("a-policy")(Persistent)

    class Again(policies.FixedStep):
        registry = policies.FixedStep.registry

    assert policies.register("a-last-step")(policies.LastStep) is policies.LastStep
    free: Registry[object] = Registry("thing", "ponder.things")
    assert free.register("any")(Persistent) is Persistent


def test_a_mask_that_a_readout_alone_reads_is_not_said_to_be_read_by_nothing() -> None:
    model = ponder.PonderWrapper(nn.Linear(8, 8), 3, head=nn.Linear(8, 3), readout=ponder.readouts.mean).eval()
    with refused("attention_mask", "none of them names") as caught:
        model(torch.randn(2, 5, 8), attention_mask=torch.ones(2, 5))
    assert "The readout reads it" in caught.value.remedy
    with refused("nobody", "none of them names") as caught:
        model(torch.randn(2, 5, 8), nobody=torch.ones(2, 5))
    assert "nothing would read it" in caught.value.remedy
