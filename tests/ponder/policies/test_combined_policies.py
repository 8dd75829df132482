"""`a | b`, `a & b`, `p.after(k)`, `p.before(k)`, and steps that are fixed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

import ponder
from ponder import policies
from ponder.errors import PonderError
from ponder.policies import After, All, Any_, Before, Bernoulli, FixedStep, LastStep, ModelSpec, Patience, Quantile
from tests.ponder.checks import refused


def exit_of(policy: object, hazards: tuple[float, ...] = (0.3, 0.4, 0.5, 0.6, 0.7)) -> int:
    logits = torch.tensor([hazards]).logit()
    outputs = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]]])
    return int(ponder.Trajectory(outputs, logits, torch.arange(1)).replay(policy).exit_step)


def test_operators_build_the_classes() -> None:
    a, b = Quantile(0.5), Patience(2)
    assert a | b == Any_((a, b))
    assert a & b == All((a, b))
    assert a.after(3) == After(a, 3)
    assert a.before(3) == Before(a, 3)
    assert Any_([a, b]).policies == (a, b)
    assert (a | b).needs == {"hazard", "output"}
    assert a.after(2).needs == {"hazard"}


@pytest.mark.parametrize(
    ("policy", "step"),
    [
        (Quantile(0.5) | Patience(3), 2),
        (Quantile(0.5) & Patience(3), 5),
        (Quantile(0.85) | Patience(1), 3),
        (FixedStep(2) | FixedStep(4), 2),
        (FixedStep(2) & FixedStep(4), 4),
        (LastStep() | LastStep(), 5),
        (LastStep() & FixedStep(1), 5),
        (LastStep() | FixedStep(3), 3),
        (Quantile(0.5).after(4), 4),
        (Quantile(0.5).after(1), 2),
        (Quantile(0.95).before(3), 3),
        (Quantile(0.5).before(4), 2),
        (LastStep().before(2), 2),
        (LastStep().after(2), 5),
        (FixedStep(1).after(2).before(4), 2),
        (LastStep().before(1), 1),
        (Any_((FixedStep(3),)), 3),
    ],
    ids=str,
)
def test_where_a_combination_exits(policy: object, step: int) -> None:
    assert exit_of(policy) == step


def test_state_runs_from_the_first_step_although_no_exit_is_allowed() -> None:
    assert exit_of(Patience(2).after(4)) == 4  # the agreements at 3 and 4 count


def test_parts_are_checked_against_the_model() -> None:
    spec = ModelSpec(6, "classification", has_hazard=False)
    for policy in (Quantile(0.5) | LastStep(), LastStep() & Bernoulli(), Quantile(0.5).after(2)):
        with refused("policy", "needs no hazard"):
            policy.check(spec)
    for policy in (Patience(9) | LastStep(), Patience(9).before(2)):
        with refused("patience"):
            policy.check(spec)


def test_parts_are_rescaled() -> None:
    both = (Patience(6) | FixedStep(8)).rescaled(12, 6)
    assert both == Patience(3) | FixedStep(4)
    assert Patience(6).after(4).rescaled(12, 6) == Patience(3).after(2)
    assert FixedStep(1).rescaled(12, 2) == FixedStep(1)


@pytest.mark.parametrize("make", [lambda: Quantile(0.5) | "quantile", lambda: All((1,)), lambda: After(None, 2)])
def test_only_policies_combine(make) -> None:
    with refused("policy", "ExitPolicy", type_error=True):
        make()


@pytest.mark.parametrize("kind", [Any_, All])
def test_a_combination_of_nothing_is_refused(kind: type) -> None:
    with refused("policies", "at least one"):
        kind(())


@pytest.mark.parametrize("step", [0, -1, 1.0, True, "2"])
@pytest.mark.parametrize(
    "make", [FixedStep, Quantile(0.5).after, Quantile(0.5).before], ids=["fixed", "after", "before"]
)
def test_steps_count_from_one(make, step: object) -> None:
    with refused("step", "whole number", repr(step)):
        make(step)


@pytest.mark.parametrize("policy", [FixedStep(7), LastStep().after(7), LastStep().before(7)], ids=str)
def test_steps_beyond_the_model_are_refused(policy) -> None:
    with refused("step", "from 1 to 6", "7"):
        policy.check(ModelSpec(6, None, has_hazard=True))
    type(policy).check(policy, ModelSpec(7, None, has_hazard=True))


class NeverLeaves:
    """Decides for what it stands before."""

    def decide(self, step: Any, state: Any) -> Any:
        return False, state


class NeverFixed(NeverLeaves, policies.FixedStep):
    """Overrides by a base class what tells the exit of all rows."""


def test_what_a_base_class_decides_is_not_passed_over() -> None:
    model = ponder.PonderWrapper(torch.nn.Linear(4, 4), 5, head=torch.nn.Linear(4, 2)).eval()
    assert model(torch.randn(3, 4), policy=NeverFixed(2)).exit_step.tolist() == [5, 5, 5]
    assert model(torch.randn(3, 4), policy=policies.FixedStep(2)).exit_step.tolist() == [2, 2, 2]


class Statistic(policies.ThresholdPolicy):
    needs, level = frozenset({"output"}), 0.5
    tunable = policies.Threshold("level", "above")

    def statistic(self, step: Any, state: Any) -> Any:
        return step.output[:, 0], state


@pytest.mark.parametrize(
    ("changes", "argument"),
    [
        ({"tunable": policies.Threshold("other", "above")}, "Wrong.tunable"),
        ({"tunable": None}, "Wrong.tunable"),
        ({"needs": ["output"]}, "Wrong.needs"),
        ({"needs": "output"}, "Wrong.needs"),
        ({"needs": frozenset({"logits"})}, "Wrong.needs"),
    ],
)
def test_wrong_declarations_are_found_before_a_batch_comes(changes: dict[str, Any], argument: str) -> None:
    policy = type("Wrong", (Statistic,), changes)()
    with pytest.raises(PonderError, match=argument):
        ponder.PonderWrapper(torch.nn.Linear(4, 4), 5, head=torch.nn.Linear(4, 2), policy=policy)


@pytest.mark.parametrize("wrong", [lambda value: value[:, None], lambda value: value[:1], lambda value: value.sum()])
def test_a_statistic_is_one_number_a_row(wrong: Any) -> None:
    @dataclass(frozen=True)
    class Wrong(Statistic):
        level: float = 0.5

        def statistic(self, step: Any, state: Any) -> Any:
            return wrong(step.output[:, 0]), state

    trajectory = ponder.Trajectory(torch.randn(30, 3, 2), None, torch.arange(30), task="classification")
    with refused("Wrong.statistic", "shape"):
        ponder.control_risk(trajectory, Wrong, level=0.1)


@pytest.mark.parametrize("wrong", [lambda a, b: a and b, lambda a, b: a or b, lambda a, b: not a])
def test_python_s_own_and_and_or_would_drop_a_policy(wrong: Any) -> None:
    with refused("policy", "is None", type_error=True):
        wrong(policies.Confidence(0.9), policies.Patience(2))


class FixedByMixin:
    def exit_of_all(self, num_steps: int) -> int:
        return 2


class LeavesAtTwo(policies.ExitPolicy):
    def decide(self, step: Any, state: Any) -> Any:
        return step.index >= 2, state


def test_what_tells_the_exit_of_all_may_stand_in_front() -> None:
    assert type("Fast", (FixedByMixin, LeavesAtTwo), {})().exit_of_all(5) == 2
    assert type("Slow", (LeavesAtTwo, FixedByMixin), {})().exit_of_all(5) is None


def test_a_combination_has_no_threshold_of_its_own() -> None:
    with refused("policy", "a threshold of its own", "LastStep", type_error=True):
        policies.LastStep().with_threshold(0.5)
