"""The policies of exports decide as their twins in PyTorch do, row by row, from the same JSON."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

import ponder
from ponder import policies
from ponder.calibration import fit_gate
from ponder.errors import ArgumentError, PonderError
from ponder.export.policies import ModelSpec, NumpyPolicy, StepView, TaskSpec, read_policy
from ponder.export.policies.base import registry
from ponder.policies import Certified, Converged, ExitPolicy, Expected, FixedStep, Patience, Quantile, Tempered
from ponder.testing.twin import twin_exits
from tests.ponder.test_non_finite_rows import poisoned
from tests.ponder.test_sweep import recorded

ROWS = recorded(400, seed=1)
SPEC = ModelSpec(6, TaskSpec("classification", True, False), True, (3,), (3,))


def decided(policy: ExitPolicy, trajectory: ponder.Trajectory = ROWS) -> list[int]:
    """The exits of PyTorch, which are those of the twin."""
    expected: list[int] = trajectory.replay(policy).exit_step.tolist()
    assert twin_exits(policy, trajectory) == expected
    return expected


OTHERS: list[ExitPolicy] = [
    Converged(),
    Converged(patience=2),
    Converged(0.4, on="features"),
    Converged(0.3, patience=2, on="features") | Quantile(0.95),
    Tempered(Converged(patience=2), (2.0,)).before(4),
]


@pytest.mark.parametrize("policy", OTHERS, ids=repr)
def test_convergence(policy: ExitPolicy) -> None:
    assert len(set(decided(policy))) > 1
    decided(policy, poisoned(rows=60))


@pytest.mark.parametrize(("task", "tolerance"), [("regression", 0.34), ("regression", 0.7), ("multilabel", 0.34)])
def test_convergence_without_classes(task: str, tolerance: float) -> None:
    assert len(set(decided(Converged(tolerance), recorded(200, task=task)))) > 2
    assert len(set(decided(Patience(1, tolerance), recorded(200, task=task)))) > 2


def test_features_that_are_zero_and_stay_so_have_converged() -> None:
    still = dataclasses.replace(ROWS, features=torch.zeros_like(ROWS.outputs))
    assert set(decided(Converged(on="features"), still)) == {2}


@pytest.mark.parametrize("price", [0.0, 0.01, 0.05])
def test_optimal_stopping(price: float) -> None:
    policy = Expected.fit(dataclasses.replace(recorded(300, seed=2), labels=None), price=price, bins=7)
    assert len({*decided(policy), *decided(policy.before(3))}) > 1
    decided(policy, poisoned(rows=60))


GATES: dict[str, dict[str, Any]] = {
    "logistic": {"target": "error"},
    "shared": {"target": "agreement", "shared": True},
    "boosted": {"target": "unsettled", "model": "boosted", "trees": 6},
    "boosted and shared": {"target": "error", "model": "boosted", "trees": 4, "shared": True},
    "hidden": {"target": "gain", "delta": 0.1, "signals": ("hidden", "margin", "movement")},
    "hidden, boosted": {"target": "error", "model": "boosted", "trees": 5, "signals": ("streak", "hidden")},
    "hazards": {"target": "error", "signals": ("expected", "hazard", "cdf"), "floor": 3},
}


@pytest.mark.parametrize("name", GATES)
def test_gates(name: str) -> None:
    pytest.importorskip("sklearn", reason="gates are fitted with scikit-learn, which is not installed")
    gate = fit_gate(recorded(300, seed=3), **GATES[name])
    read_policy(gate.to_dict()).check(SPEC)
    seen = [decided(gate.with_threshold(float(threshold))) for threshold in np.linspace(0.02, 0.98, 25)]
    assert max(len(set(exit_steps)) for exit_steps in seen) > 2
    decided(Tempered(gate, (1.5,)) if gate.reader.reads_classes else gate.before(5), poisoned(rows=60))


def test_a_gate_on_numbers() -> None:
    pytest.importorskip("sklearn", reason="gates are fitted with scikit-learn, which is not installed")
    gate = fit_gate(recorded(300, task="regression", seed=3), target="gain", delta=0.1)
    assert "movement" in gate.signals
    assert len(set(decided(gate, recorded(200, task="regression")))) > 2


def gate(**options: Any) -> policies.Gate:
    fields = {"num_steps": 6, "signals": ("margin",), "kind": "logistic", "tables": ((1.0, 0.0),) * 5, **options}
    return policies.Gate(**fields)


OTHER = {
    "steps": (gate(num_steps=5, tables=((1.0, 0.0),) * 4), {}, "a gate fitted on a model of 6 steps"),
    "classes": (gate(classes=4), {}, "a gate fitted on a model of 3 classes"),
    "width": (gate(signals=("hidden",), tables=((1.0, 0.0),) * 5), {}, "a gate fitted on features"),
    "narrow": (gate(signals=("hidden",), kind="boosted", tables=((0.0, (((4, 0.5, 0, 0, 0.0),),)),) * 5), {}, "width"),
    "spans": (
        gate(signals=("hidden",), tables=((1.0,) * 9,) * 5),
        {"task": TaskSpec("span", False, False, per_position=True)},
        "features have one for each position",
    ),
    "no classes": (gate(), {"task": TaskSpec("regression", False, True)}, "class logits"),
    "positions": (Converged(on="features"), {"features": (7, 8)}, "reads no features"),
    "before": (Converged(on="features"), {"features": ()}, "Export the model again"),
    "no hazard": (gate(signals=("cdf",)), {"has_hazard": False}, "needs no hazard"),
    "patience": (Converged(patience=6), {}, "patience: expected"),
    "own answers": (Converged(), {"task": TaskSpec("own", True, False, True)}, "compares no answers"),
    "task of before": (Converged(), {"task": TaskSpec("own", True, False), "features": ()}, "Export the model again"),
    "numbers": (Converged(), {"task": TaskSpec("regression", False, True)}, "Give Converged a tolerance"),
    "stopping": (Expected.fit(recorded(50, steps=4)), {}, "over 6 steps"),
    "no class": (Expected.fit(ROWS), {"task": TaskSpec("multilabel", False, False)}, "class logits"),
}


@pytest.mark.parametrize("name", OTHER)
def test_what_another_model_has_is_refused(name: str) -> None:
    policy, changes, message = OTHER[name]
    with pytest.raises(ArgumentError, match=message):
        read_policy(policy.to_dict()).check(dataclasses.replace(SPEC, **changes))


@pytest.mark.parametrize(
    ("policy", "changes"),
    [
        (gate(), {"kind": "cubic"}),
        (gate(), {"signals": ["smell"]}),
        (gate(), {"tables": []}),
        (gate(), {"threshold": 2.0}),
        (gate(), {"mood": "good"}),
        (Expected.fit(ROWS), {"edges": [[0.5]]}),
        (Converged(), {"on": "mood"}),
        (FixedStep(2), {"name": ["fixed-step"]}),
    ],
    ids=str,
)
def test_damaged_policies_are_refused(policy: ExitPolicy, changes: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError):
        read_policy({**policy.to_dict(), **changes})


def test_ties_leave_whatever_adds_them_up() -> None:
    """With what is the same in the mean to the last bit or not, one more step earns nothing."""
    outputs = 2.0 * torch.randn(300, 5, 3, generator=torch.Generator().manual_seed(0))
    outputs[:, 1:] = outputs[:, :1]
    outputs[::3, 0] = -outputs[::3, 0]
    policy = Expected.fit(ponder.Trajectory(outputs, None, torch.arange(300), task="classification"), bins=7)
    assert all(map(all, policy.stops[1:]))
    assert (
        max(decided(policy, ponder.Trajectory(outputs, ROWS.hazard_logits[:300, :5], torch.arange(300), outputs))) < 3
    )


@pytest.mark.parametrize("signals", [("energy",), ("energy", "streak")])
def test_a_row_that_is_sure_of_nothing(signals: tuple[str, ...]) -> None:
    outputs = torch.randn(9, 6, 3)
    outputs[::2] = -torch.inf
    rows = dataclasses.replace(ROWS, outputs=outputs, **{name: getattr(ROWS, name)[:9] for name in PARTS})
    decided(gate(signals=signals, tables=((2.0,) * len(signals) + (-1.0,),) * 5), rows)


PARTS = ("hazard_logits", "row_ids", "features", "labels")


def test_messages_name_a_policy_and_not_its_tables() -> None:
    pytest.importorskip("sklearn", reason="gates are fitted with scikit-learn, which is not installed")
    for policy in (fit_gate(ROWS, "error", model="boosted", trees=10), Expected.fit(ROWS)):
        assert len(repr(read_policy(policy.to_dict()))) < 300


def test_a_model_of_one_step_has_no_tables() -> None:
    one = dataclasses.replace(SPEC, num_steps=1)
    for policy in (gate(num_steps=1, tables=()), Expected(0.0, ((0.5,),), ((0.2, 0.9),), ())):
        read_policy(policy.to_dict()).check(one)


def test_every_policy_but_one_with_a_module_inside_has_a_twin() -> None:
    assert set(policies.names()) - set(registry.names()) == {"learned"}
    with pytest.raises(ArgumentError, match=r"a policy that runs without PyTorch: after, all, any, .*'learned'"):
        read_policy(policies.Learned(policies.LinearScorer(3), 0.5).to_dict())


def test_what_no_twin_reads_of_a_policy_is_none_of_what_decides() -> None:
    """A field that a policy gets later must be read here, or be known not to decide."""
    told = {"gate": {"target", "delta"}, "certified": {field.name for field in dataclasses.fields(Certified)}}
    told["certified"] -= {"policy", "num_steps"}
    for name in set(policies.names()) - {"learned"}:
        own: Any = policies.registry.find(name)
        twin: Any = registry.find(name)
        fields = {field.name for field in dataclasses.fields(own) if field.init} - {"fitted_on"}
        assert fields - told.get(name, set()) == {field.name for field in dataclasses.fields(twin)}, name


def test_a_policy_of_the_users_own() -> None:
    @policies.register("one-leads")
    @dataclass(frozen=True)
    class OneLeads(ExitPolicy):
        by: float
        needs = frozenset({"output"})

        def decide(self, step: policies.StepView, state: Any) -> tuple[torch.Tensor, Any]:
            return step.output[:, 0] > self.by, state

    with pytest.raises(ArgumentError, match="One of your own needs a twin in numpy"):
        read_policy(OneLeads(0.5).to_dict())

    @registry.register("one-leads")
    @dataclass(frozen=True)
    class Twin(NumpyPolicy):
        by: float
        needs = frozenset({"output"})

        def decide(self, step: StepView, state: Any) -> tuple[np.ndarray, Any]:
            assert step.output is not None
            return step.output[:, 0] > self.by, state

    assert len(set(decided(OneLeads(0.5) | Quantile(0.9)))) > 2
    for one in (policies.registry, registry):
        del one._factories["one-leads"]


def test_a_package_that_is_broken_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> Any:
        raise PonderError("the entry point cannot be imported")

    monkeypatch.setattr(registry, "find", broken)
    with pytest.raises(PonderError, match="cannot be imported"):
        read_policy({"name": "of-a-package"})
