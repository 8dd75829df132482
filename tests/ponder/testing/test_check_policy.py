"""`check_policy` passes the library's own policies, and names the rule that a broken one breaks."""

from __future__ import annotations

import pickle
import random
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch

from ponder import policies
from ponder.errors import ArgumentError, ArgumentTypeError, PonderError
from ponder.policies import Bernoulli, ExitPolicy, Quantile, Threshold, ThresholdPolicy
from ponder.testing import ContractError, check_policy
from ponder.testing.samples import Sizes, random_trajectory
from tests.ponder.examples import POLICIES, Example, make_policy


@pytest.fixture(autouse=True)
def _own_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ExitPolicy.registry, "_factories", dict(ExitPolicy.registry._factories))


@pytest.mark.parametrize("case", POLICIES, ids=str)
def test_the_librarys_own_policies_keep_the_contract(case: Example) -> None:
    assert check_policy(make_policy(case), task=case.task) is None


def test_policies_that_were_fitted() -> None:
    sizes = Sizes("classification", num_steps=6, width=3)
    trajectory = random_trajectory(sizes, 200, 1.0, 0)
    check_policy(policies.Expected.fit(trajectory, price=0.01, bins=3))
    torch.manual_seed(0)
    check_policy(policies.Learned(policies.LinearScorer(3), 0.5), width=3)


def test_other_sizes() -> None:
    check_policy(Quantile(0.5), num_steps=1)
    check_policy(Quantile(0.5), num_steps=2, task=None)
    check_policy(policies.Confidence(0.4), num_steps=13, num_outputs=7)
    check_policy(Quantile(0.3), task="token_classification")


def test_a_policy_without_a_seed_draws_in_init_and_passes() -> None:
    check_policy(Bernoulli())


def test_the_callers_random_numbers_are_left_alone() -> None:
    torch.manual_seed(5)
    random.seed(5)
    check_policy(Bernoulli())
    got = torch.rand(3), random.random()
    torch.manual_seed(5)
    random.seed(5)
    assert torch.equal(got[0], torch.rand(3))
    assert got[1] == random.random()


# Good policies of a user's


@dataclass(frozen=True)
class Near(ExitPolicy):
    """Leaves when the features have hardly moved; reads features, and keeps them in a named tuple."""

    distance: float = 2.0
    needs = frozenset({"features"})

    def init(self, batch):
        return Memory(None, torch.zeros(batch.size, device=batch.device))

    def decide(self, step, state):
        if state.features is None:
            return False, Memory(step.features, state.moved)
        moved = torch.linalg.vector_norm(step.features.float() - state.features.float(), dim=-1)
        return (moved < self.distance) & (step.index > 1), Memory(step.features, moved)


class Memory(NamedTuple):
    features: Any
    moved: torch.Tensor


def test_a_policy_on_features() -> None:
    policies.register("near")(Near)
    check_policy(Near())
    check_policy(Near(5.0), width=3, num_steps=4)


@dataclass(frozen=True)
class Smoothed(ExitPolicy):
    """Its state begins in float32 and takes the precision of the hazard."""

    level: float = 0.4
    needs = frozenset({"hazard"})

    def init(self, batch):
        return torch.zeros(batch.size, device=batch.device)

    def decide(self, step, state):
        average = 0.5 * state + 0.5 * step.hazard
        return average > self.level, average


def test_a_state_that_takes_the_precision_of_the_hazard() -> None:
    policies.register("smoothed")(Smoothed)
    check_policy(Smoothed())


@dataclass(frozen=True)
class AveragesFromNone(ExitPolicy):
    """Its state begins as None, and is an average from then on."""

    needs = frozenset({"hazard"})

    def decide(self, step, state):
        average = step.hazard if state is None else 0.5 * state + 0.5 * step.hazard
        return average > 0.4, average


def test_a_state_that_begins_as_none() -> None:
    policies.register("averages-from-none")(AveragesFromNone)
    check_policy(AveragesFromNone())
    check_policy(AveragesFromNone() & policies.Patience(1))


@dataclass(frozen=True)
class MakesNothingAmiss(ExitPolicy):
    """Tensors that are moved, numbers without dimensions, and an index on the CPU."""

    needs = frozenset({"output"})

    def decide(self, step, state):
        device = step.index.device
        thresholds = torch.linspace(0.9, 0.4, step.num_steps).to(device)
        best = step.output.float().softmax(-1)[:, torch.arange(2)].amax(-1) * torch.tensor(1.0)
        return best > thresholds[step.index - 1], state


def test_tensors_that_may_be_made_anywhere() -> None:
    policies.register("nothing-amiss")(MakesNothingAmiss)
    check_policy(MakesNothingAmiss())


# Broken ones, a rule each


class Broken(ExitPolicy):
    needs = frozenset({"hazard"})


@dataclass(frozen=True)
class StateNotBatchFirst(Broken):
    def init(self, batch):
        return torch.zeros(1, batch.size)

    def decide(self, step, state):
        return step.cdf > 0.5, state


@dataclass(frozen=True)
class NewStateNotBatchFirst(Broken):
    def decide(self, step, state):
        return step.cdf > 0.5, {"mean": step.cdf.mean()}


@dataclass(frozen=True)
class ComparesWithTheMean(Broken):
    def decide(self, step, state):
        return step.cdf > step.cdf.mean(), state


@dataclass(frozen=True)
class RanksRows(Broken):
    """Depends on the order of rows: the first half leaves."""

    def decide(self, step, state):
        return torch.arange(len(step.index), device=step.index.device) < len(step.index) // 2, state


@dataclass(frozen=True)
class StateOfTheBatch(Broken):
    """Masks that are right by chance, and a state that is not."""

    def init(self, batch):
        return torch.zeros(batch.size, device=batch.device)

    def decide(self, step, state):
        return step.cdf > 0.5, state + step.cdf.max()


@dataclass(frozen=True)
class NumbersRows(Broken):
    def init(self, batch):
        return torch.linspace(0, 1, batch.size, device=batch.device)

    def decide(self, step, state):
        return step.cdf > state, state


@dataclass(frozen=True)
class WaitsForAll(Broken):
    """One bool for the batch that comes from the rows."""

    def decide(self, step, state):
        return bool((step.cdf > 0.3).all()), state


@dataclass(frozen=True)
class ChangesState(Broken):
    def init(self, batch):
        return torch.zeros(batch.size, device=batch.device)

    def decide(self, step, state):
        state += step.hazard
        return state > 1.0, state


@dataclass(frozen=True)
class ChangesReadings(Broken):
    def decide(self, step, state):
        return step.cdf.mul_(2.0) > 1.0, state


@dataclass(frozen=True)
class ChangesIndex(Broken):
    def decide(self, step, state):
        return step.index.add_(1) > 3, state


@dataclass(frozen=True)
class DrawsInDecide(Broken):
    def decide(self, step, state):
        return torch.rand_like(step.hazard) < step.hazard, state


@dataclass(frozen=True)
class DrawsANewState(Broken):
    def decide(self, step, state):
        return step.cdf > 0.5, torch.rand_like(step.hazard)


@dataclass(frozen=True)
class CountsOnItself(Broken):
    def decide(self, step, state):
        object.__setattr__(self, "calls", getattr(self, "calls", 0) + 1)
        return step.cdf > 0.5, state


@dataclass(frozen=True)
class ReadsUndeclared(ExitPolicy):
    def decide(self, step, state):
        return step.hazard > 0.5, state


@dataclass(frozen=True)
class HidesUndeclared(ExitPolicy):
    def decide(self, step, state):
        try:
            return step.output.amax(-1) > 1.0, state
        except PonderError:
            return False, state


@dataclass(frozen=True)
class UnknownNeeds(ExitPolicy):
    needs = frozenset({"cdf"})

    def decide(self, step, state):
        return step.cdf > 0.5, state


@dataclass(frozen=True)
class CountsCalls(Broken):
    """Carries the number of calls instead of asking step.index; rows of one age agree by chance."""

    def init(self, batch):
        return 0

    def decide(self, step, state):
        return step.cdf > 0.1 * state, state + 1


@dataclass(frozen=True)
class FirstRowsStep(Broken):
    def decide(self, step, state):
        return bool(step.index[0] >= 3), state


@dataclass(frozen=True)
class TrustsNone(Broken):
    """Takes the zeros that stand for None for a value that was seen."""

    def init(self, batch):
        return {"before": None}

    def decide(self, step, state):
        if state["before"] is None:
            return False, {"before": step.hazard}
        return step.hazard >= state["before"], {"before": step.hazard}


@dataclass(frozen=True)
class MakesOnCpu(Broken):
    def init(self, batch):
        return torch.zeros(batch.size)

    def decide(self, step, state):
        return step.cdf > 0.5, state


@dataclass(frozen=True)
class ComparesWithCpu(Broken):
    def decide(self, step, state):
        return step.cdf > torch.full((len(step.index),), 0.5).sqrt(), state


@dataclass(frozen=True)
class NamesADevice(Broken):
    def decide(self, step, state):
        return step.cdf > torch.ones(len(step.index), device="cpu"), state


@dataclass(frozen=True)
class AnswersOnCpu(Broken):
    def decide(self, step, state):
        return (step.cdf > 0.5).cpu(), state


@dataclass(frozen=True)
class RawEntropy(ExitPolicy):
    """The trap: exp overflows, NaN < threshold is False, and the surest rows never leave."""

    needs = frozenset({"output"})

    def decide(self, step, state):
        e = step.output.exp()
        p = e / e.sum(-1, keepdim=True)
        return -(p * p.log()).sum(-1) < 0.3, state


@dataclass(frozen=True)
class NanInState(Broken):
    needs = frozenset({"output"})

    def init(self, batch):
        return torch.zeros(batch.size, device=batch.device)

    def decide(self, step, state):
        return step.index > 2, step.output.flatten(1)[:, 0].exp() - step.output.flatten(1)[:, 0].exp()


@dataclass(frozen=True)
class OnlyFloat32(ExitPolicy):
    needs = frozenset({"output"})

    def decide(self, step, state):
        weight = step.output.new_ones(step.output.shape[-1], 1, dtype=torch.float64)
        return (step.output @ weight).squeeze(1) > 0.0, state


@dataclass(frozen=True)
class FloatMask(Broken):
    def decide(self, step, state):
        return step.cdf, state


@dataclass(frozen=True)
class WideMask(Broken):
    def decide(self, step, state):
        return step.cdf[:, None] > 0.5, state


@dataclass(frozen=True)
class ZeroDimensionalMask(Broken):
    def decide(self, step, state):
        return (step.cdf > 0.5).any(), state


@dataclass(frozen=True)
class ForgetsTheState(Broken):
    def decide(self, step, state):
        return step.cdf > 0.5


class NotADataclass(ExitPolicy):
    def decide(self, step, state):
        return False, state


@dataclass
class NotFrozen(ExitPolicy):
    level: float = 0.5

    def decide(self, step, state):
        return False, state


@dataclass(frozen=True)
class HoldsAList(ExitPolicy):
    levels: Any = None

    def decide(self, step, state):
        return False, state


@dataclass(frozen=True)
class Unregistered(Broken):
    def decide(self, step, state):
        return step.cdf > 0.5, state


@dataclass(frozen=True)
class WrongThreshold(ThresholdPolicy):
    """Says that it leaves above its level, and leaves below."""

    level: float = 0.5
    needs = frozenset({"hazard"})
    tunable = Threshold("level", "above")

    def statistic(self, step, state):
        return step.cdf, state

    def decide(self, step, state):
        return step.cdf < self.level, state


@dataclass(frozen=True)
class ReadsUndeclaredContext(Broken):
    def decide(self, step, state):
        return step.index >= step.context["budget"], state


@dataclass(frozen=True)
class Budget(ExitPolicy):
    """Row by row at the step that the caller allows."""

    needs = frozenset({"context"})

    def decide(self, step, state):
        return step.index >= step.context["budget"], state


@dataclass(frozen=True)
class SharedBudget(Budget):
    def decide(self, step, state):
        return step.index >= step.context["budget"].min(), state


@dataclass(frozen=True)
class LooksAtPadding(Broken):
    needs = frozenset({"output"})

    def decide(self, step, state):
        return step.output.softmax(-1).amax(-1).flatten(1).amin(1) > 0.4, state


def test_a_policy_that_reads_the_context_of_a_call() -> None:
    policies.register("budget")(Budget)
    policies.register("shared-budget")(SharedBudget)
    budgets = {"budget": torch.arange(1, 7)}
    check_policy(Budget(), context=budgets)
    check_policy(policies.After(Budget(), 2) | Quantile(0.9), context=budgets)
    with pytest.raises(ContractError, match="does not depend on the other rows"):
        check_policy(SharedBudget(), context=budgets)
    with pytest.raises(ArgumentError, match=r'context=\{"budget"'):
        check_policy(Budget())


@pytest.mark.parametrize("policy", [policies.Confidence(0.4), policies.Patience(2), policies.Voting(2)], ids=str)
def test_padding_does_not_count(policy: ExitPolicy) -> None:
    check_policy(policy, task="token_classification")
    policies.register("looks-at-padding")(LooksAtPadding)
    with pytest.raises(ContractError, match="padding does not count"):
        check_policy(LooksAtPadding(), task="token_classification")


ROWS_ALONE = "does not depend on the other rows"
PURE = "decide changes nothing that it is given"
AGAIN = "same answer to the same question"
DEVICE = "on the batch's device"
NAN = "never lead to NaN"
MASK = "the exit mask is bool"
BATCH_FIRST = "every tensor of a state has the batch first"
DECLARED = "declared in needs"


@pytest.mark.parametrize(
    ("policy", "rule", "seen"),
    [
        (StateNotBatchFirst(), BATCH_FIRST, "shape (1, 12), with 12 rows"),
        (NewStateNotBatchFirst(), BATCH_FIRST, "after decide at step 1, state['mean'] has shape ()"),
        (ComparesWithTheMean(), ROWS_ALONE, "as the batch"),
        (RanksRows(), ROWS_ALONE, "among 12 rows"),
        (StateOfTheBatch(), ROWS_ALONE, "another state after step 1"),
        (NumbersRows(), "the first state of a row depends on its row id alone", "another state"),
        (WaitsForAll(), ROWS_ALONE, "among 12 rows"),
        (ChangesState(), PURE, "its state in place"),
        (ChangesReadings(), PURE, "the readings in place"),
        (ChangesIndex(), PURE, "step.index in place"),
        (DrawsInDecide(), AGAIN, "different masks"),
        (DrawsANewState(), AGAIN, "different states"),
        (CountsOnItself(), "keeps nothing on itself", "'calls': 1"),
        (ReadsUndeclared(), DECLARED, "step.hazard"),
        (HidesUndeclared(), DECLARED, "step.output"),
        (ReadsUndeclaredContext(), DECLARED, "step.context"),
        (UnknownNeeds(), "needs is a frozenset", "cdf"),
        (
            CountsCalls(),
            "states of rows at different steps fit one batch",
            "the same value in all rows of a batch, 1; got 0",
        ),
        (FirstRowsStep(), "rows at different steps can share a batch", "row 6"),
        (TrustsNone(), "rows at different steps can share a batch", "at step 1"),
        (MakesOnCpu(), DEVICE, "torch.zeros(…)"),
        (ComparesWithCpu(), DEVICE, "torch.full(…)"),
        (NamesADevice(), DEVICE, "torch.ones(…)"),
        (AnswersOnCpu(), DEVICE, "Tensor.cpu(…)"),
        (RawEntropy(), NAN, "lt was given NaN"),
        (NanInState(), NAN, "NaN in the state"),
        (OnlyFloat32(), "answers wherever the model is finite", "float32 outputs"),
        (FloatMask(), MASK, "torch.float64 (12,) for 12 rows"),
        (WideMask(), MASK, "(12, 1)"),
        (ZeroDimensionalMask(), MASK, "torch.bool ()"),
        (ForgetsTheState(), "returns the exit mask and the new state", "Tensor"),
        (NotADataclass(), "frozen dataclass", "no dataclass of its own"),
        (NotFrozen(), "frozen dataclass", "can be changed"),
        (HoldsAList([0.5]), "can be hashed", "list"),
        (Unregistered(), "registered", "Unregistered"),
        (WrongThreshold(), "its readiness passes the threshold", "level=0.5"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, ExitPolicy) else None,
)
def test_a_broken_policy_is_caught(policy: ExitPolicy, rule: str, seen: str) -> None:
    with pytest.raises(ContractError) as caught:
        check_policy(policy)
    error = caught.value
    assert rule in error.rule, error
    assert seen in error.seen, error
    assert error.remedy.endswith((".", "?"))
    assert type(policy).__name__ in str(error)
    assert isinstance(error, AssertionError)
    assert isinstance(error, PonderError)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


# Round trips


@dataclass(frozen=True)
class LosesAField(Broken):
    level: float = 0.5

    def decide(self, step, state):
        return step.cdf > self.level, state

    def to_dict(self):
        return {"name": "loses-a-field"}


@dataclass(frozen=True)
class HoldsATensor(Broken):
    levels: Any = None

    def decide(self, step, state):
        return step.cdf > 0.5, state


@dataclass(frozen=True)
class BehavesByIdentity(Broken):
    """Equal copies that do not behave alike: what matters is in no field."""

    def decide(self, step, state):
        return step.cdf > getattr(self, "level", 0.9), state


def test_a_field_that_is_lost() -> None:
    policies.register("loses-a-field")(LosesAField)
    check_policy(LosesAField())
    with pytest.raises(ContractError, match=r"by way of JSON.*came back as LosesAField\(level=0.5\)"):
        check_policy(LosesAField(0.25))


def test_a_field_that_json_cannot_hold() -> None:
    policies.register("holds-a-tensor")(HoldsATensor)
    with pytest.raises(ContractError, match=r"by way of JSON.*plain JSON"):
        check_policy(HoldsATensor(torch.zeros(1)))


def test_copies_that_behave_otherwise() -> None:
    policies.register("behaves-by-identity")(BehavesByIdentity)
    policy = BehavesByIdentity()
    object.__setattr__(policy, "level", 0.1)
    with pytest.raises(ContractError, match=r"behaves the same.*different results"):
        check_policy(policy)


class Late(str):
    """Plain text in JSON, and after it."""


@dataclass(frozen=True)
class TellsByType(Broken):
    """Trap: copies that never went through JSON behave alike."""

    mode: str

    def decide(self, step, state):
        return step.cdf > (0.9 if isinstance(self.mode, Late) else 0.1), state


def test_a_field_that_json_turns_into_another_type() -> None:
    policies.register("tells-by-type")(TellsByType)
    check_policy(TellsByType("late"))
    with pytest.raises(ContractError, match=r"by way of JSON.*behaves the same.*different results"):
        check_policy(TellsByType(Late("late")))


def test_a_class_that_pickle_cannot_find() -> None:
    @policies.register("local")
    @dataclass(frozen=True)
    class Local(Broken):
        def decide(self, step, state):
            return step.cdf > 0.5, state

    with pytest.raises(ContractError, match=r"pickle gives an equal object.*top level of its module"):
        check_policy(Local())


# Not a broken contract: a wrong question


def test_what_the_policy_refuses_is_refused_in_its_own_words() -> None:
    with pytest.raises(ArgumentError, match="from 1 to 6"):
        check_policy(policies.FixedStep(9))
    with pytest.raises(ArgumentError, match="One number has no entropy"):
        check_policy(policies.Entropy(0.5), task="regression")


def test_what_is_no_policy() -> None:
    for wrong in (Quantile, "quantile"):
        with pytest.raises(ArgumentTypeError, match="an instance of ExitPolicy"):
            check_policy(wrong)  # type: ignore[arg-type]


# Thresholds that move, as sweeps and certificates move them


@dataclass(frozen=True)
class Twice(ThresholdPolicy):
    """Its state depends on the threshold: sure twice in a row."""

    threshold: float = 0.6
    needs, tunable = frozenset({"output"}), Threshold("threshold", "above")

    def init(self, batch):
        return torch.zeros(batch.size, dtype=torch.bool, device=batch.device)

    def statistic(self, step, state):
        sure = step.output.softmax(-1).amax(-1)
        return torch.where(state, sure, 0.0), sure > self.threshold


@dataclass(frozen=True)
class WrongWay(policies.Entropy):
    """A row leaves below the threshold, and the class says above."""

    tunable = Threshold("threshold", "above")

    def decide(self, step, state):
        value, state = self.statistic(step, state)
        return value < self.threshold, state

    def readiness(self, step, state, free):
        if self is not free:
            return super().readiness(step, state, free)
        mask, state = self.decide(step, state)
        return torch.where(mask, self.threshold + 1e-3, -torch.inf), state


@pytest.mark.parametrize(
    ("policy", "rule"),
    [
        (Twice(), "one pass tells the exits under every threshold"),
        (WrongWay(0.6), "one pass tells the exits under every threshold"),
    ],
    ids=repr,
)
def test_thresholds_that_sweeps_would_misread_are_caught(policy: ExitPolicy, rule: str) -> None:
    with pytest.raises(ContractError) as caught:
        check_policy(policy)
    assert caught.value.rule == rule
    assert "at [0.0, " in caught.value.seen


@dataclass(frozen=True)
class Upside(ExitPolicy):
    """Rows leave above the threshold, and the class says below; it has no statistic, so all is replayed."""

    threshold: float = 0.5
    needs, tunable = frozenset({"output"}), Threshold("threshold", "below")

    def decide(self, step, state):
        return step.output.softmax(-1).amax(-1) > self.threshold, state

    def readiness(self, step, state, free):
        mask, state = self.decide(step, state)
        return torch.where(mask, 1.0 - self.threshold, -self.threshold - 1.0), state


def test_a_threshold_that_moves_exits_the_other_way_is_caught() -> None:
    with pytest.raises(ContractError, match="rows were to leave earlier and earlier") as caught:
        check_policy(Upside())
    assert caught.value.rule == "a threshold moves exits the way that it declares"


@pytest.mark.parametrize("task", ["classification", "token_classification"])
def test_any_number_of_classes(task: str) -> None:
    for policy in (policies.Confidence(0.3), policies.Entropy(0.9), policies.Patience(1)):
        check_policy(policy, num_outputs=150, task=task)
    check_policy(policies.Patience(1, 0.1), num_outputs=40, task="regression")


# What leaves PyTorch


@dataclass(frozen=True)
class RawEntropyIn(Broken):
    """The trap once more: entropy from raw exponentials, compared where no comparison of PyTorch is seen."""

    how: str = "numpy"
    needs = frozenset({"output"})

    def decide(self, step, state):
        raw = step.output.exp()
        p = raw / raw.sum(-1, keepdim=True)
        entropy = -(p * p.log()).sum(-1)
        if self.how == "numpy":
            return torch.from_numpy(entropy.cpu().float().numpy() < 0.7).to(step.index.device), state
        if self.how == "python":
            return torch.tensor([value < 0.7 for value in entropy.tolist()], device=step.index.device), state
        return (entropy - 0.7).sign() == -1, state


@dataclass(frozen=True)
class AnswersInNumpy(Broken):
    needs = frozenset({"output"})

    def decide(self, step, state):
        sure = step.output.softmax(-1).amax(-1).numpy()  # no tensor of a GPU gives this
        return torch.from_numpy(sure > 0.6), state


@dataclass(frozen=True)
class Cosine(Broken):
    needs = frozenset({"features"})

    def decide(self, step, state):
        now = step.features
        cosine = (now * now).sum(-1) / (now.norm(dim=-1) * now.norm(dim=-1))
        return cosine > 0.5, state


@pytest.mark.parametrize(
    ("policy", "rule", "seen"),
    [
        (RawEntropyIn("numpy"), NAN, "numpy was given NaN"),
        (RawEntropyIn("python"), NAN, "tolist was given NaN"),
        (RawEntropyIn("sign"), NAN, "sign was given NaN"),
        (AnswersInNumpy(), DEVICE, "Tensor.numpy(…)"),
        (Cosine(), NAN, "gt was given NaN"),
    ],
    ids=repr,
)
def test_what_is_done_outside_of_comparisons_is_seen(policy: ExitPolicy, rule: str, seen: str) -> None:
    with pytest.raises(ContractError) as caught:
        check_policy(policy)
    assert rule in caught.value.rule
    assert seen in caught.value.seen
