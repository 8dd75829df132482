"""The loop: masks and states that policies return, users' own policies, and the checking mode."""

from __future__ import annotations

import json
import math
import pickle
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ponder
from ponder import policies
from ponder.errors import NonFiniteError, PonderError
from ponder.policies import ExitPolicy, PolicyBatch, Quantile, StepView
from tests.ponder.checks import refused
from tests.toys import NUM_STEPS, TOYS, WIDTH, make_toy, wrap


@dataclass(frozen=True)
class Settled(ExitPolicy):
    """A user's own policy: out once the features move by less than `distance`."""

    distance: float
    needs = frozenset({"features"})

    def init(self, batch: PolicyBatch) -> Any:
        return {"before": torch.full((batch.size, WIDTH), torch.inf)}

    def decide(self, step: StepView, state: Any) -> tuple[Tensor | bool, Any]:
        moved = (step.features - state["before"]).abs().amax(-1)
        return moved < self.distance, {"before": step.features}


def settled_exits(model: ponder.PonderWrapper, inputs: Any, context: Any, distance: float) -> list[int]:
    exits = []
    for features in model.unroll(inputs, keep_features=True, **context).features.tolist():
        step = 1
        while step < NUM_STEPS:
            before = features[step - 2] if step > 1 else [math.inf] * WIDTH
            if max(abs(a - b) for a, b in zip(features[step - 1], before, strict=True)) < distance:
                break
            step += 1
        exits.append(step)
    return exits


@pytest.mark.parametrize("name", TOYS)
def test_a_users_policy_on_features(name: str) -> None:
    toy = make_toy(name)
    model = wrap(toy, lambda_head=None, policy=Settled(0.9)).eval()
    inputs, context = toy.batch(12, seed=1)
    calls: list[int] = []
    model.head.register_forward_hook(lambda _, args, out: calls.append(len(args[0])))
    out = model(inputs, **context)
    assert out.exit_step.tolist() == settled_exits(model, inputs, context, 0.9)
    assert sum(calls[:-1]) == 12  # the head answered at the exits only; then unroll ran, with one call
    trajectory = model.unroll(inputs, keep_features=True, **context)
    assert torch.equal(trajectory.replay(Settled(0.9)).exit_step, out.exit_step)
    with refused("policy", "reads no features", "keep_features=True"):
        model.unroll(inputs, **context).replay(Settled(0.9))


class Appointed(ExitPolicy):
    """Reads nothing: each row leaves at the step that is its id."""

    def init(self, batch: PolicyBatch) -> Any:
        return batch.row_ids

    def decide(self, step: StepView, state: Any) -> tuple[Tensor | bool, Any]:
        return step.index >= state, state


@pytest.mark.parametrize("name", TOYS)
def test_rows_that_nobody_reads_are_read_out_at_their_exit_only(name: str) -> None:
    toy = make_toy(name)
    model = wrap(toy).eval()
    inputs, context = toy.batch(6, seed=1)
    expected = model.unroll(inputs, **context).outputs
    calls: dict[str, list[int]] = {"readout": [], "head": [], "lambda_head": []}
    for part, rows in calls.items():
        getattr(model, part).register_forward_hook(lambda _, args, out, rows=rows: rows.append(len(out)))
    out = model(inputs, policy=Appointed(), row_ids=torch.tensor([3, 1, 5, 2, 9, 1]), **context)
    assert out.exit_step.tolist() == [3, 1, 5, 2, 5, 1]
    assert calls == {"readout": [2, 1, 1, 2], "head": [2, 1, 1, 2], "lambda_head": []}
    torch.testing.assert_close(out.outputs, expected[torch.arange(6), out.exit_step - 1])


def test_registering_makes_a_policy_one_of_the_librarys(monkeypatch: pytest.MonkeyPatch) -> None:
    with refused("policy", "a registered policy", "register('a-name')"):
        Settled(0.9).to_dict()
    monkeypatch.setattr(policies.ExitPolicy.registry, "_factories", dict(policies.ExitPolicy.registry._factories))
    assert policies.register("settled")(Settled) is Settled
    assert "settled" in policies.names()
    policy = policies.get("settled", distance=0.3)
    assert policy == Settled(0.3)
    combined = (policy | Quantile(0.5)).after(2)
    assert policies.from_dict(json.loads(json.dumps(combined.to_dict()))) == combined
    assert pickle.loads(pickle.dumps(combined)) == combined
    assert combined.needs == {"features", "hazard"}


class Returning(ExitPolicy):
    """Returns what it is told to."""

    def __init__(self, mask: Any, state: Any = None) -> None:
        self.mask, self.state = mask, state

    def decide(self, step: StepView, state: Any) -> tuple[Tensor | bool, Any]:
        return self.mask, self.state


@pytest.mark.parametrize(
    ("mask", "got"),
    [
        (torch.zeros(3, dtype=torch.bool), "torch.bool (3,)"),
        (torch.zeros(4, 1, dtype=torch.bool), "torch.bool (4, 1)"),
        (torch.tensor(True), "torch.bool ()"),
        (torch.zeros(4), "torch.float32 (4,)"),
        (torch.zeros(4, dtype=torch.long), "torch.int64 (4,)"),
        ([True] * 4, "list"),
        (None, "NoneType"),
        (1, "int"),
    ],
    ids=str,
)
def test_exit_masks_are_one_bool_a_row(mask: Any, got: str) -> None:
    toy = make_toy("shared")
    policy = Returning(mask)
    with refused(f"exit mask of {policy!r}", "bool, shape (4,)", got):
        wrap(toy).eval()(toy.batch(4)[0], policy=policy)


@pytest.mark.parametrize("state", [torch.zeros(3), {"a": torch.zeros(4), "b": (torch.tensor(1.0),)}], ids=str)
def test_policy_states_are_batch_first(state: Any) -> None:
    toy = make_toy("shared")
    path = "policy state" if isinstance(state, Tensor) else "policy state['b'][0]"
    with refused(path, "(4, …)"):
        wrap(toy).eval()(toy.batch(4)[0], policy=Returning(False, state))


@pytest.mark.parametrize(("mask", "step"), [(True, 1), (False, NUM_STEPS)])
def test_a_policy_may_answer_for_all_rows_at_once(mask: bool, step: int) -> None:
    toy = make_toy("shared")
    out = wrap(toy).eval()(toy.batch(4)[0], policy=Returning(mask))
    assert out.exit_step.tolist() == [step] * 4


def test_the_last_step_belongs_to_the_loop() -> None:
    asked: list[tuple[int, int]] = []

    class Curious(ExitPolicy):
        def decide(self, step, state):
            asked.append((int(step.index[0]), step.num_steps))
            return False, state

    toy = make_toy("shared")
    wrap(toy).eval()(toy.batch(2)[0], policy=Curious())
    assert asked == [(n, NUM_STEPS) for n in range(1, NUM_STEPS)]


@pytest.mark.parametrize(
    ("reading", "need"),
    [("hazard", "hazard"), ("cdf", "hazard"), ("survival", "hazard"), ("output", "output"), ("features", "features")],
)
def test_what_a_policy_does_not_declare_it_cannot_read(reading: str, need: str) -> None:
    class Sneaky(ExitPolicy):
        def decide(self, step, state):
            return getattr(step, reading) is None, state

    toy = make_toy("shared")
    model, (inputs, _) = wrap(toy).eval(), toy.batch(2)
    for run in (lambda: model(inputs, policy=Sneaky()), lambda: model.unroll(inputs).replay(Sneaky())):
        with pytest.raises(PonderError, match=rf"reads step\.{reading}.*needs = frozenset\(\{{'{need}'\}}\)"):
            run()


def test_needs_that_do_not_exist_are_refused_before_any_batch() -> None:
    class Greedy(ExitPolicy):
        needs = frozenset({"cdf", "output"})

        def decide(self, step, state):
            raise AssertionError

    with refused("Greedy.needs", "['cdf']", "come with 'hazard'"):
        wrap(make_toy("shared"), policy=Greedy())


def test_what_a_step_shows_equals_the_halting_distribution() -> None:
    seen: list[dict[str, Tensor]] = []

    class Watch(ExitPolicy):
        needs = frozenset({"hazard", "output", "features"})

        def decide(self, step, state):
            names = ("hazard", "cdf", "survival", "output", "features", "index")
            seen.append({name: getattr(step, name) for name in names})
            return False, state

    toy = make_toy("gru-cell")
    model, (inputs, _) = wrap(toy).eval(), toy.batch(6)
    model(inputs, policy=Watch())
    trajectory = model.unroll(inputs, keep_features=True)
    pmf, cdf = trajectory.halting.pmf, trajectory.halting.cdf_table
    for n, step in enumerate(seen, start=1):
        assert step["index"].tolist() == [n] * 6
        torch.testing.assert_close(step["hazard"], trajectory.hazard_logits[:, n - 1].sigmoid())
        torch.testing.assert_close(step["cdf"], cdf[:, n - 1])
        before = torch.ones(6) if n == 1 else 1 - cdf[:, n - 2]
        torch.testing.assert_close(step["survival"], before)
        torch.testing.assert_close(step["survival"] * step["hazard"], pmf[:, n - 1])
        torch.testing.assert_close(step["output"], trajectory.outputs[:, n - 1])
        torch.testing.assert_close(step["features"], trajectory.features[:, n - 1])


def test_context_leaves_with_its_rows() -> None:
    """Each row's context is a multiple of its hidden state; a step sees that it still is, whoever has left."""
    seen: list[int] = []

    def step(hidden: Tensor, *, twin: dict[str, Tensor], whole: Tensor, note: str) -> Tensor:
        torch.testing.assert_close(twin["of"][0], 2 * hidden)
        assert whole.shape == (3,)
        assert note == "unchanged"
        seen.append(len(hidden))
        return hidden

    class Leaving(ExitPolicy):
        needs = frozenset({"features"})

        def decide(self, step, state):
            return step.features[:, 0] < step.index, state

    inputs = torch.tensor([[3.5], [0.5], [2.5], [1.5], [0.7]])
    model = ponder.PonderWrapper(step, 5, head=nn.Identity()).eval()
    context = {"twin": {"of": (2 * inputs,)}, "whole": ponder.Shared(torch.zeros(3)), "note": "unchanged"}
    out = model(inputs, policy=Leaving(), **context)
    assert out.exit_step.tolist() == [4, 1, 3, 2, 1]
    assert torch.equal(out.outputs, inputs)
    assert seen == [5, 3, 2, 1]


# The checking mode


class Poisoned(nn.Module):
    """Row `row` (told by its feature) becomes NaN or infinite at step `step`."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, hidden: Any) -> Any:
        age = hidden["age"] + 1
        bad = (age == hidden["when"]) & (hidden["when"] > 0)
        x = torch.where(bad[:, None], self.value, hidden["x"])
        return {"x": x, "age": age, "when": hidden["when"], "weight": hidden["weight"]}


class Due(ExitPolicy):
    needs = frozenset({"features"})

    def decide(self, step: StepView, state: Any) -> tuple[Tensor | bool, Any]:
        return step.features[:, 0] <= step.index, state


def poisoned(value: float, **parts: Any) -> tuple[ponder.PonderWrapper, dict[str, Tensor]]:
    model = ponder.PonderWrapper(
        Poisoned(value), 4, head=nn.Linear(1, 2), readout=lambda hidden: hidden["x"], policy=Due(), **parts
    )
    hidden = {
        "x": torch.tensor([[1.0], [9.0], [2.0], [9.0], [9.0]]),  # rows 0 and 2 leave at steps 1 and 2
        "age": torch.zeros(5, dtype=torch.long),
        "when": torch.tensor([0, 0, 0, 3, 3]),
        "weight": torch.ones(5),
    }
    return model, hidden


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("training", [True, False])
def test_the_checking_mode_names_step_and_rows(value: float, training: bool) -> None:
    model, hidden = poisoned(value, check_finite=True)
    with pytest.raises(NonFiniteError, match=r"step 3 produced NaN or infinity in hidden\['x'\], rows \[3, 4\]"):
        model.train(training)(hidden)
    hidden["when"].zero_()
    assert model.eval()(hidden).exit_step.tolist() == [1, 4, 2, 4, 4]


def test_the_checking_mode_is_off_by_default() -> None:
    model, hidden = poisoned(math.nan)
    assert not model.check_finite
    assert model.eval()(hidden).exit_step.tolist() == [1, 4, 2, 4, 4]
