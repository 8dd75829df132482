"""`check_objective` passes the library's own objectives, and names the rule that a broken one breaks."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from ponder import objectives
from ponder.errors import ArgumentError, ArgumentTypeError
from ponder.objectives import Distillation, FinalStep, Objective, Ponder, SignalCalibration
from ponder.testing import ContractError, check_objective
from tests.ponder.examples import OBJECTIVES, Example, make_objective


@pytest.fixture(autouse=True)
def _own_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Objective.registry, "_factories", dict(Objective.registry._factories))


@pytest.mark.parametrize("case", OBJECTIVES, ids=str)
def test_the_librarys_own_objectives_keep_the_contract(case: Example) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    assert check_objective(make_objective(case), task=case.task) is None
    assert torch.equal(before, torch.get_rng_state())


def test_other_tasks_and_sizes() -> None:
    check_objective(Ponder(0.5), task="token_classification", num_steps=3)
    check_objective(FinalStep(), num_steps=1)


@dataclass(frozen=True)
class Reduced(Objective):
    def per_example(self, unrolled):
        return unrolled.losses.mean()


@dataclass(frozen=True)
class PerStepLosses(Objective):
    def per_example(self, unrolled):
        return unrolled.losses


@dataclass(frozen=True)
class CentredByTheBatch(Objective):
    def per_example(self, unrolled):
        return unrolled.losses.mean(1) - unrolled.losses.mean()


@dataclass(frozen=True)
class SaysThatItIsCentred(CentredByTheBatch):
    reads_whole_batch = True


@dataclass(frozen=True)
class SaysSoButDependsOnOrder(Objective):
    reads_whole_batch = True

    def per_example(self, unrolled):
        return unrolled.losses.mean(1) * torch.arange(len(unrolled.losses))


@dataclass(frozen=True)
class UndeclaredFeatures(Objective):
    def per_example(self, unrolled):
        return unrolled.losses.mean(1) + 0 * unrolled.features.flatten(1).mean(1)


@dataclass(frozen=True)
class UndeclaredTeacher(Objective):
    def per_example(self, unrolled):
        return unrolled.losses.mean(1) + 0 * unrolled.teacher_outputs.mean(1)


@dataclass(frozen=True)
class UndeclaredProgress(Objective):
    def per_example(self, unrolled):
        return unrolled.losses.mean(1) * unrolled.progress.share


@dataclass(frozen=True)
class UndeclaredLabels(Objective):
    def per_example(self, unrolled):
        return unrolled.losses.mean(1) + 0 * unrolled.labels.double()


@dataclass(frozen=True)
class DependsOnOrder(Objective):
    def per_example(self, unrolled):
        return unrolled.losses.mean(1) * torch.arange(len(unrolled.losses))


@dataclass(frozen=True)
class UndeclaredHazard(Objective):
    def per_example(self, unrolled):
        return (unrolled.halting.pmf * unrolled.losses).sum(1)


@dataclass(frozen=True)
class UndeclaredPrior(Objective):
    needs = frozenset({"hazard"})

    def per_example(self, unrolled):
        return (unrolled.prior.pmf * unrolled.losses).sum(1)


@dataclass(frozen=True)
class UnknownNeeds(Objective):
    needs = frozenset({"halting"})

    def per_example(self, unrolled):
        return unrolled.losses.mean(1)


@dataclass(frozen=True)
class LogOfThePmf(Objective):
    """The trap: 0 · log 0."""

    needs = frozenset({"hazard"})

    def per_example(self, unrolled):
        p = unrolled.halting.pmf
        return (p * unrolled.losses).sum(1) - (p * p.log()).sum(1)


@dataclass(frozen=True)
class InfiniteGradient(Objective):
    """A finite loss, √0, whose gradient is not finite."""

    needs = frozenset({"hazard"})

    def per_example(self, unrolled):
        return unrolled.losses.mean(1) + unrolled.halting.pmf.sqrt().sum(1)


@dataclass(frozen=True)
class NeedsTwoSteps(Objective):
    def per_example(self, unrolled):
        return unrolled.losses[:, 0] + unrolled.losses[:, 1]


@dataclass(frozen=True)
class ChangesLosses(Objective):
    def per_example(self, unrolled):
        with torch.no_grad():
            unrolled.losses.mul_(2.0)
        return unrolled.losses.mean(1)


@dataclass(frozen=True)
class DropsRandomly(Objective):
    def per_example(self, unrolled):
        return (unrolled.losses * torch.rand_like(unrolled.losses)).mean(1)


@dataclass(frozen=True)
class Unregistered(Objective):
    def per_example(self, unrolled):
        return unrolled.losses.mean(1)


@dataclass
class NotFrozen(Objective):
    def per_example(self, unrolled):
        return unrolled.losses.mean(1)


@dataclass(frozen=True)
class WeightsOfSixSteps(Objective):
    """The trap: six weights times the loss of one step are a loss, too."""

    def per_example(self, unrolled):
        return (unrolled.losses * unrolled.losses.new_tensor(range(6))).sum(1)


@dataclass(frozen=True)
class CutTooEarly(Objective):
    """Two steps run, and the fourth is meant: the second learns."""

    def depth(self, num_steps):
        return objectives.Depth(0, min(2, num_steps))

    def per_example(self, unrolled):
        return unrolled.losses[:, min(3, unrolled.losses.shape[1] - 1)]


@dataclass(frozen=True)
class DeeperThanTheModel(FinalStep):
    def depth(self, num_steps):
        return objectives.Depth(0, num_steps + 1)


ONE_LOSS, ROWS_ALONE, FINITE = "one loss per example", "does not depend on the other rows", "losses are finite"


@pytest.mark.parametrize(
    ("objective", "rule", "seen"),
    [
        (Reduced(), ONE_LOSS, "shape () for 5 examples"),
        (PerStepLosses(), ONE_LOSS, "shape (5, 6)"),
        (CentredByTheBatch(), ROWS_ALONE, "rows [3]"),
        (DependsOnOrder(), ROWS_ALONE, "rows [3]"),
        (UndeclaredHazard(), "declared in needs", "'pmf'"),
        (UndeclaredPrior(), "declared in needs", "'pmf'"),
        (SaysSoButDependsOnOrder(), ROWS_ALONE, "rows [4, 2, 0, 1, 3]"),
        (UndeclaredFeatures(), "declared in needs", "'flatten'"),
        (UndeclaredTeacher(), "declared in needs", "'mean'"),
        (UndeclaredProgress(), "declared in needs", "'share'"),
        (UndeclaredLabels(), "declared in needs", "'double'"),
        (UnknownNeeds(), "needs is a frozenset", "halting"),
        (LogOfThePmf(), FINITE, "hazard logits -1e+04"),
        (InfiniteGradient(), "gradients are finite", "hazard logits"),
        (NeedsTwoSteps(), "answers for every finite batch", "1 steps"),
        (WeightsOfSixSteps(), "answers for every finite batch", "7 steps"),
        (CutTooEarly(), "no step behind those of depth is read", "of 2 steps, and of 6"),
        (DeeperThanTheModel(), "depth gives a Depth that the model has", "Depth(warm_up=0, steps=7) for 6 steps"),
        (ChangesLosses(), "per_example is pure", "what it was given"),
        (DropsRandomly(), "per_example is pure", "different losses"),
        (Unregistered(), "is registered", "Unregistered"),
        (NotFrozen(), "frozen dataclass", "can be changed"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Objective) else None,
)
def test_a_broken_objective_is_caught(objective: Objective, rule: str, seen: str) -> None:
    with pytest.raises(ContractError) as caught:
        check_objective(objective)
    assert rule in caught.value.rule, caught.value
    assert seen in caught.value.seen, caught.value


@dataclass(frozen=True)
class Halved(Objective):
    weight: float = 1.0

    def per_example(self, unrolled):
        return self.weight * unrolled.losses.mean(1)

    def to_dict(self):
        return {"name": "halved", "weight": self.weight / 2}


def test_a_field_that_does_not_come_back() -> None:
    objectives.register("halved")(Halved)
    with pytest.raises(ContractError, match=r"by way of JSON.*came back as Halved\(weight=0.5\)"):
        check_objective(Halved())


def test_statistics_of_the_batch_are_allowed_to_an_objective_that_says_so() -> None:
    objectives.register("centred")(SaysThatItIsCentred)
    assert check_objective(SaysThatItIsCentred()) is None


def test_what_the_objective_refuses_is_refused_in_its_own_words() -> None:
    with pytest.raises(ArgumentError, match="a task with one class an example"):
        check_objective(SignalCalibration(), task="token_classification")
    check_objective(Distillation(), task="token_classification")


@dataclass(frozen=True)
class OneWeightAStep(Objective):
    """Made for one number of steps, and says so."""

    weights: tuple[float, ...]

    def per_example(self, unrolled):
        steps = unrolled.losses.shape[1]
        if len(self.weights) != steps:
            raise ArgumentError("weights", expected=f"{steps} of them", got=self.weights, remedy="Give one a step.")
        return (unrolled.losses * unrolled.losses.new_tensor(self.weights)).sum(1)


def test_other_numbers_of_steps_may_be_refused() -> None:
    objectives.register("one-weight-a-step")(OneWeightAStep)
    for objective in (
        objectives.OneStep(3),
        Distillation(teacher="frozen", step=4),
        OneWeightAStep((1.0, 0.5, 2.0, 3.0)),
    ):
        check_objective(objective, num_steps=4)
        with pytest.raises(ArgumentError, match=r"step|weights"):
            check_objective(objective, num_steps=2)


def test_what_is_no_objective() -> None:
    with pytest.raises(ArgumentTypeError, match="got float"):
        check_objective(0.5)  # type: ignore[arg-type]


@dataclass(frozen=True)
class LearnsNothing(Objective):
    def per_example(self, unrolled):
        return unrolled.losses.detach().mean(1)


def test_losses_without_a_gradient_are_caught() -> None:
    with pytest.raises(ContractError, match="losses can be learnt from"):
        check_objective(LearnsNothing())


@dataclass(frozen=True)
class OwnTokenLoss(Objective):
    """Cross-entropy of its own, in which a position without a label counts as one of class 0."""

    needs = frozenset({"labels"})
    clamped: bool = True

    def per_example(self, unrolled):
        labels = unrolled.labels.clamp(min=0) if self.clamped else unrolled.labels
        log_p = unrolled.outputs.float().log_softmax(-1)
        index = labels[:, None, :, None].expand(*log_p.shape[:3], 1)
        return -log_p.gather(-1, index).squeeze(-1).mean((1, 2))


@pytest.mark.parametrize(("clamped", "told"), [(True, "counts for nothing"), (False, "labels of -100")])
def test_positions_without_a_label_that_count_are_caught(clamped: bool, told: str) -> None:
    with pytest.raises(ContractError, match=told):
        check_objective(OwnTokenLoss(clamped), task="token_classification")


def test_the_librarys_own_objectives_look_at_no_padding() -> None:
    frozen = objectives.Distillation(teacher="frozen")
    for objective in (objectives.Ponder(0.5), objectives.DeepSupervision(), objectives.Distillation(), frozen):
        check_objective(objective, task="token_classification")
