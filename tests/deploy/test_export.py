"""Exports: graphs and policies answer as PyTorch does, thresholds move, int8 agrees, and nothing needs PyTorch."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import ponder
from ponder import policies
from ponder.calibration import Record
from ponder.deploy.graph_source import GraphPolicy
from ponder.deploy.graphs import Slot, write_policy
from ponder.deploy.manifest import FILE, Manifest, TensorSpec, files_of
from ponder.deploy.sessions import Graph
from ponder.errors import ArgumentError, CheckpointError, PonderError
from ponder.tasks import task_named
from tests.compare import assert_same_answers, assert_same_rows, clear_rows
from tests.toys import build, sequence_model, token_ids

SURE = policies.Confidence(0.55)
ROWS = token_ids(60)
ARRAYS = [row.numpy() for row in ROWS]
EXAMPLE = (torch.arange(12).reshape(2, 6), {"attention_mask": torch.ones(2, 6)})


@dataclass(frozen=True)
class Norm(policies.ThresholdPolicy):
    """A user's own policy, which nobody registered where it is served."""

    least: float
    needs = frozenset({"output"})
    tunable = policies.Threshold("least", "above", high=9.0)

    def statistic(self, step: policies.StepView, state: Any) -> tuple[Any, Any]:
        return step.output.norm(dim=-1), state

    def to_dict(self) -> dict[str, Any]:
        return {"name": "norm", "least": self.least}


@pytest.fixture(scope="module")
def made() -> ponder.PonderWrapper:
    return sequence_model(policy=SURE)


@pytest.fixture(scope="module")
def folder(made: ponder.PonderWrapper, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ponder.export.onnx(made, tmp_path_factory.mktemp("export") / "model", example=EXAMPLE)


def assert_runs_as(
    model: ponder.PonderWrapper,
    found: Any,
    policy: policies.ExitPolicy,
    rows: Any = None,
    **options: Any,
) -> None:
    """Rows exit and answer as in PyTorch, but for those that rounding can move."""
    rows = ROWS if rows is None else rows
    expected = ponder.predict(model, rows, policy=policy, **options)
    clear = clear_rows(model.record(rows, **options), policy)
    assert_same_rows(found.exit_step, expected.exit_step, clear)
    for row in np.flatnonzero(clear):
        assert_same_answers(found.outputs[row], expected.outputs[row], atol=1e-5)


def test_rows_exit_and_answer_as_in_pytorch(made: ponder.PonderWrapper, folder: Path) -> None:
    exported = ponder.export.OnnxModel(folder, threads=1)
    assert_runs_as(made, exported.predict(ARRAYS, batch_size=8), SURE)
    record = exported.record(ARRAYS)
    expected = made.record(ROWS)
    assert_same_answers(record.outputs, expected.outputs, atol=1e-5)
    assert record.weights == made.weights_digest()
    promised = [
        ponder.control_risk(each, policies.Confidence, level=0.3) for each in (record, expected)
    ]
    thresholds = [each.policy.policy.threshold for each in promised]
    assert thresholds[0] == pytest.approx(thresholds[1], abs=1e-5)
    assert [each.met for each in promised] == [True, True]
    assert len(exported.predict([])) == 0


def test_thresholds_are_inputs_of_the_graph_and_other_policies_run_in_numpy(
    made: ponder.PonderWrapper, folder: Path
) -> None:
    exported = ponder.export.OnnxModel(folder, threads=1)
    for policy in (
        policies.Confidence(0.7),
        policies.Patience(2),
        policies.FixedStep(3),
        policies.Confidence(0.4),
    ):
        exported.policy = policy
        assert_runs_as(made, exported.predict(ARRAYS), policy)
        assert_runs_as(made, exported.predict(ARRAYS, policy=SURE), SURE)
        assert exported.policy == policy


POLICIES = [
    policies.Patience(1) | policies.Confidence(0.7),
    (policies.Entropy(0.9) & policies.Margin(0.2)).after(2),
    policies.Voting(2),
    Norm(1.5),
]


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: type(policy).__name__)
def test_a_policy_is_graphs_of_its_own(
    policy: policies.ExitPolicy, made: ponder.PonderWrapper, folder: Path, tmp_path: Path
) -> None:
    readings = {"output": Slot(TensorSpec("output", "float32"), torch.randn(2, 3))}
    graphs = write_policy(policy, made.num_steps, made.task, readings, tmp_path)
    manifest = Manifest.read(folder)
    for name in files_of(folder):
        if not name.startswith("policy") and name != FILE:
            (tmp_path / name).symlink_to(folder / name)
    replace(manifest, policy=policy.to_dict(), graphs=graphs).write(tmp_path)
    exported = ponder.export.OnnxModel(tmp_path, threads=1)
    assert_runs_as(made, exported.predict(ARRAYS, batch_size=16), policy)
    if isinstance(policy, policies.All):  # whose step is a constant of the graphs
        exported.policy = later = policies.All((policy.policies[0], policies.FromStep(3)))
        assert_runs_as(made, exported.predict(ARRAYS), later)


def test_shared_steps_with_hazards_sample_the_same_exits(tmp_path: Path) -> None:
    torch.manual_seed(0)
    step = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
    heads = {"head": nn.Linear(8, 3), "lambda_head": ponder.LambdaHead(8, layers=3, history=2)}
    model = ponder.PonderWrapper(step, num_steps=5, policy=policies.Bernoulli(3), **heads).eval()
    rows = torch.randn(50, 8)
    ids = torch.arange(100, 150)
    exported = ponder.export.OnnxModel(ponder.export.onnx(model, tmp_path, example=rows[:2]))
    found = exported.predict(rows.numpy(), row_ids=ids.numpy())
    assert_runs_as(model, found, model.policy, rows, row_ids=ids)
    quantile = policies.Quantile(0.6)
    assert_runs_as(model, exported.predict(rows.numpy(), policy=quantile), quantile, rows)
    record = exported.record(rows.numpy())
    expected = model.record(rows)
    clear = clear_rows(expected, quantile)
    assert_same_rows(record.exit_steps(quantile), expected.exit_steps(quantile), clear)


@pytest.mark.slow
def test_answers_at_positions_are_as_long_as_their_rows(tmp_path: Path) -> None:
    model = sequence_model("token_classification", policy=policies.Patience(1))
    exported = ponder.export.OnnxModel(ponder.export.onnx(model, tmp_path, example=EXAMPLE))
    assert_runs_as(model, exported.predict(ARRAYS, batch_size=8), model.policy)
    record = exported.record(ARRAYS)
    expected = model.record(ROWS)
    clear = clear_rows(expected, model.policy)
    steps = record.exit_steps(model.policy), expected.exit_steps(model.policy)
    assert_same_rows(*steps, clear)


def test_a_mask_of_true_at_padding_says_how_long_rows_are(tmp_path: Path) -> None:
    made = build("padded", dtype=torch.float32, policy=SURE, lambda_head=None)
    mask = made.context["src_key_padding_mask"]
    folder = ponder.export.onnx(
        made.model, tmp_path, example=(made.inputs[:2], {"src_key_padding_mask": mask[:2]})
    )
    exported = ponder.export.OnnxModel(folder)
    names = [spec.name for spec in exported.manifest.inputs]
    rows = [
        dict(zip(names, (row.numpy(), own.numpy()), strict=True))
        for row, own in zip(made.inputs, mask, strict=True)
    ]
    clear = clear_rows(made.unroll(), SURE)
    for batch_size in (1, 4):
        found = exported.predict(rows, batch_size=batch_size)
        expected = made.call()
        assert_same_rows(found.exit_step, expected.exit_step, clear)
        assert_same_answers(found.outputs[clear], expected.outputs.detach()[clear], atol=1e-5)


@pytest.mark.parametrize("calibration", [None, ARRAYS[:40]], ids=["dynamic", "static"])
def test_eight_bits_agree_mostly_and_say_what_they_are(
    folder: Path, tmp_path: Path, calibration: Any
) -> None:
    full = ponder.export.OnnxModel(folder).predict(ARRAYS, policy=policies.LastStep()).outputs
    for everything in (True, "all"):
        made = ponder.export.quantized(
            folder, tmp_path / str(everything), everything, calibration=calibration
        )
        exported = ponder.export.OnnxModel(made)
        assert exported.manifest.int8
        assert exported.manifest.weights is None  # no certificate of the fp32 weights holds here
        found = exported.predict(ARRAYS, policy=policies.LastStep()).outputs
        assert np.abs(found - full).max() > 0
        assert (found.argmax(-1) == full.argmax(-1)).mean() > 0.9
    with pytest.raises(ArgumentError, match="at least one"):
        ponder.export.quantized(folder, tmp_path / "none", calibration=[])
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("static", [False, True])
def test_eight_bits_have_a_scale_for_each_output_and_stand_weights_of_zero(
    static: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    step = nn.Linear(8, 8)
    head = nn.Linear(8, 3)
    scales = torch.logspace(-3, 0, 8)
    with torch.no_grad():
        step.weight.mul_(scales[:, None])
        step.bias.mul_(scales)
        step.weight[:, 3] = 0.0  # nothing reads this input
        step.weight[5] = 0.0
        head.weight.div_(scales)
    model = ponder.PonderWrapper([step], head=head, policy=policies.LastStep()).eval()
    rows = torch.randn(50, 8)
    folder = ponder.export.onnx(model, tmp_path / "full", example=rows[:2])
    calibration = rows.numpy() if static else None
    int8 = ponder.export.quantized(folder, tmp_path / "int8", calibration=calibration)
    full, found = (
        ponder.export.OnnxModel(each).predict(rows.numpy()).outputs for each in (folder, int8)
    )
    assert 0 < np.abs(found - full).max() < 0.1 * full.std()


def test_an_export_is_run_where_torch_and_transformers_are_not_installed(folder: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "import ponder, numpy, json; model = ponder.export.OnnxModel(sys.argv[1])\n"
        "rows = [numpy.array(row) for row in json.loads(sys.argv[2])]\n"
        "found = model.predict(rows); promise = ponder.control_risk(model.record(rows), model.policy, level=0.5)\n"
        "print(json.dumps([found.exit_step.tolist(), promise.met]))"
    )
    given = [sys.executable, "-c", code, str(folder), json.dumps([row.tolist() for row in ROWS])]
    steps, met = json.loads(
        subprocess.run(given, capture_output=True, text=True, check=True).stdout
    )
    model = ponder.export.OnnxModel(folder)
    clear = clear_rows(model.record(ARRAYS), SURE)
    assert_same_rows(steps, model.predict(ARRAYS).exit_step, clear)
    assert met


class Branching(nn.Module):
    """A step whose code depends on the values that it is given."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden * 2 if hidden.sum() > 0 else hidden


def test_faults_name_their_cause_and_leave_nothing(tmp_path: Path) -> None:
    branching = ponder.PonderWrapper(Branching(), num_steps=2, head=nn.Linear(4, 2)).eval()
    with pytest.raises(PonderError, match="step_1: PyTorch cannot export"):
        ponder.export.onnx(branching, tmp_path / "new", example=torch.ones(2, 4))
    with pytest.raises(ArgumentError, match="with an example of a call"):
        ponder.export.onnx(branching, tmp_path / "new")
    with pytest.raises(ArgumentError, match=r"float\(\)"):
        ponder.export.onnx(branching.half(), tmp_path / "new", example=torch.ones(2, 4))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(CheckpointError, match="no export of this version"):
        ponder.export.OnnxModel(tmp_path)


@policies.register("export-smoothed")
@dataclass(frozen=True)
class Smoothed(policies.ExitPolicy):
    """The policy of docs/extend.md."""

    level: float
    needs = frozenset({"hazard"})

    def init(self, first: policies.StepView) -> Any:
        return torch.zeros_like(first.hazard)

    def decide(self, step: policies.StepView, state: Any) -> tuple[Any, Any]:
        average = 0.5 * state + 0.5 * step.hazard
        return average > self.level, average


@policies.register("export-agreed-margin")
@dataclass(frozen=True)
class AgreedMargin(policies.ThresholdPolicy):
    """The policy of docs/programs/own_policy.py, whose state is made from the first answers."""

    threshold: float
    needs = frozenset({"output"})
    tunable = policies.Threshold("threshold", "above")

    def init(self, first: policies.StepView) -> Any:
        return torch.full_like(first.index, -1)

    def statistic(self, step: policies.StepView, state: Any) -> tuple[Any, Any]:
        best, second = step.output.softmax(-1).topk(2).values.unbind(-1)
        classes = step.output.argmax(-1)
        return (best - second) * (classes == state), classes


@policies.register("export-two-rows")
@dataclass(frozen=True)
class TwoRows(Smoothed):
    """A state with the number of rows of the example, as `int` and `len` fix it in a trace."""

    rows: int | None = 2

    def init(self, first: policies.StepView) -> Any:
        return torch.zeros(len(first.row_ids) if self.rows is None else self.rows)


@policies.register("export-begun-late")
@dataclass(frozen=True)
class BegunLate(policies.ExitPolicy):
    """A state that is there after the first step alone."""

    needs = frozenset({"hazard"})

    def decide(self, step: policies.StepView, state: Any) -> tuple[Any, Any]:
        return step.hazard > 0.5, step.hazard


OF_ANY_BATCH = [
    Smoothed(0.35),
    AgreedMargin(0.2),
    Norm(1.0),
    policies.Quantile(0.5),
    policies.Patience(1),
    policies.Voting(2),
    policies.ACT(0.4),
    policies.Converged(0.2, on="features"),
    policies.Bernoulli(seed=3),
    policies.Lead(0.6),
    policies.Confidence(0.5) | policies.Patience(2),
]


@pytest.mark.parametrize("policy", OF_ANY_BATCH, ids=lambda policy: type(policy).__name__)
def test_policies_answer_batches_of_any_number_of_rows(
    policy: policies.ExitPolicy, tmp_path: Path
) -> None:
    """Their graphs are run on 1, the example's 2, 3 and 300 rows, step by step, beside PyTorch."""
    task = task_named("classification")
    draw = torch.Generator().manual_seed(0)
    readings = {
        name: Slot.of(name, torch.rand(2, *size, generator=draw))
        for name, size in {
            "hazard": (),
            "cdf": (),
            "survival": (),
            "output": (3,),
            "features": (4,),
        }.items()
    }
    written = write_policy(policy, 4, task, readings, tmp_path)
    graphs = {path.stem: Graph(path, 1) for path in tmp_path.glob("*.onnx")}
    for rows in (1, 2, 3, 300):
        record = Record(
            torch.randn(rows, 4, 3, generator=draw),
            torch.randn(rows, 4, generator=draw),
            torch.arange(rows),
            features=torch.randn(rows, 4, 4, generator=draw),
            task=task,
        )
        arrays = record.map(lambda tensor: tensor.numpy())
        exported = GraphPolicy(written, graphs)
        found_state = exported.init(next(arrays.views(policy.needs)))
        state = policy.init(next(record.views(policy.needs)))
        for view, of_arrays in zip(
            record.views(policy.needs), arrays.views(policy.needs), strict=True
        ):
            exits, state = policy.decide(view, state)
            found, found_state = exported.decide(of_arrays, found_state)
            assert found.shape == (rows,)
            assert (found == exits.numpy()).mean() >= 0.99  # rounding at a threshold


@pytest.mark.parametrize("rows", [2, None])
def test_a_state_with_the_rows_of_the_example_is_refused(tmp_path: Path, rows: int | None) -> None:
    readings = {name: Slot.of(name, torch.rand(2)) for name in ("hazard", "cdf", "survival")}
    with pytest.raises(PonderError, match=r"torch\.zeros\(first\.size\)"):
        write_policy(TwoRows(0.3, rows), 4, task_named("classification"), readings, tmp_path)


def test_a_state_that_init_does_not_return_is_refused(tmp_path: Path) -> None:
    readings = {name: Slot.of(name, torch.rand(2)) for name in ("hazard", "cdf", "survival")}
    with pytest.raises(PonderError, match="Return the whole state from `init`"):
        write_policy(BegunLate(), 4, task_named("classification"), readings, tmp_path)
