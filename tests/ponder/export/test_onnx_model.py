"""An exported model answers as PyTorch does: same exits, outputs within 1e-4, whatever the policy and the batch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ponder
from ponder import policies
from ponder.export import OnnxModel
from ponder.export.policies import NumpyPolicy
from ponder.export.policies.base import registry
from ponder.policies import ExitPolicy
from ponder.policies.tempered import Temperatures
from tests.ponder.export.exported import exported
from tests.quick_exports import single_thread_session
from tests.toys import make_toy, wrap

pytest.importorskip("onnxruntime", reason="exports need the extra onnx")
pytest.importorskip("onnxscript", reason="exports need the extra onnx")
pytestmark = pytest.mark.slow  # exporting takes seconds

CLASSES = ["words", "scheduled", "gru-cell", "lstm-cell"]
CERTIFICATE = {"statement": "", "risk": "", "level": 0.1, "confidence": 0.9, "bound": "", "rows": 9}
POLICIES: list[ExitPolicy] = [
    policies.Quantile(0.5),
    policies.Bernoulli(7),
    policies.Confidence(0.8),
    policies.Entropy(0.4),
    policies.Entropy(0.3, normalize=True),
    policies.Margin(0.6),
    policies.Energy(0.9),
    policies.Patience(2),
    policies.Voting(3),
    policies.FixedStep(3),
    policies.LastStep(),
    policies.Confidence(0.9) | policies.Patience(2),
    policies.Confidence(0.6) & policies.Quantile(0.3),
    policies.Confidence(0.7).after(3),
    policies.Entropy(0.01).before(4),
    policies.Tempered(policies.Confidence(0.6), (2.0, 1.5, 1.0, 0.5, 0.3)),
    policies.Tempered(policies.Entropy(0.4) | policies.Quantile(0.9), Temperatures((1.7,), ((3, 0.25),))),
    policies.Certified(
        policies.Margin(0.5), **CERTIFICATE, threshold_name="", threshold_value=0.5, p_value=0.1, path=()
    ),
]


def same(found: Any, expected: Any, rows: Any = slice(None)) -> None:
    assert found.exit_step.tolist() == expected.exit_step[rows].tolist()
    np.testing.assert_allclose(found.outputs, expected.outputs[rows].detach().numpy(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
@pytest.mark.parametrize("name", CLASSES)
def test_exits_and_outputs_are_those_of_pytorch(name: str, policy: ExitPolicy) -> None:
    made = exported(name)
    inputs, context, arrays = made.call(24, seed=5)
    expected = made.model(inputs, policy=policy, **context)
    same(made.onnx.predict(arrays, policy=policy, batch_size=7), expected)
    same(made.onnx.predict(arrays, policy=policy.to_dict(), batch_size=24), expected)


def test_the_policies_of_the_test_tell_rows_apart() -> None:
    made = exported("words")
    _, _, arrays = made.call(24, seed=5)
    spread = [len(set(made.onnx.predict(arrays, policy=policy).exit_step.tolist())) for policy in POLICIES]
    assert sum(steps > 1 for steps in spread) >= len(POLICIES) - 3


@pytest.mark.parametrize("name", ["regression", "multilabel"])
def test_tasks_without_classes(name: str) -> None:
    made = exported(name)
    inputs, context, arrays = made.call(16, seed=2)
    policy = policies.Patience(1, tolerance=0.3 if name == "regression" else 0.0)
    expected = made.model(inputs, policy=policy, **context)
    assert len(set(expected.exit_step.tolist())) > 1
    same(made.onnx.predict(arrays, policy=policy), expected)


@pytest.mark.parametrize("name", CLASSES)
def test_a_record_is_the_trajectory_of_pytorch(name: str) -> None:
    made = exported(name)
    inputs, context, arrays = made.call(10, seed=1)
    trajectory, record = made.model.unroll(inputs, **context).detach(), made.onnx.record(arrays, batch_size=4)
    np.testing.assert_allclose(record.outputs, trajectory.outputs.numpy(), rtol=0, atol=1e-4)
    np.testing.assert_allclose(record.hazard_logits, trajectory.hazard_logits.numpy(), rtol=0, atol=1e-4)
    assert len(record) == 10


def test_a_row_does_not_depend_on_the_others_nor_on_the_padding() -> None:
    made = exported("words")
    inputs, context, _ = made.call(20, seed=3)
    lengths = (~context["src_key_padding_mask"]).sum(1).tolist()
    ragged = [{"inputs": row[:length].tolist()} for row, length in zip(inputs, lengths, strict=True)]
    assert len(set(lengths)) > 4
    expected = made.model(inputs, policy=policies.Confidence(0.8), **context)
    for size in (1, 3, 20):
        same(made.onnx.predict(ragged, policy=policies.Confidence(0.8), batch_size=size), expected)
    shuffled = [ragged[place] for place in reversed(range(20))]
    same(made.onnx.predict(shuffled, policy=policies.Confidence(0.8)), expected, rows=list(reversed(range(20))))


class Counting:
    """A session that counts the rows it is given."""

    def __init__(self, session: Any) -> None:
        self.session, self.rows = session, 0

    def run(self, outputs: Any, arrays: dict[str, Any]) -> Any:
        self.rows += len(next(iter(arrays.values())))
        return self.session.run(outputs, arrays)


def test_nothing_is_computed_that_no_row_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    made = exported("words")
    graphs = made.onnx._graphs
    counts = {name: Counting(graph._session) for name, graph in (("step", graphs.steps[0]), ("head", graphs.heads[0]))}
    monkeypatch.setattr(graphs.steps[0], "_session", counts["step"])
    monkeypatch.setattr(graphs.heads[0], "_session", counts["head"])
    _, _, arrays = made.call(24, seed=5)
    found = made.onnx.predict(arrays, policy=policies.Quantile(0.5))
    assert counts["step"].rows == found.exit_step.sum()
    assert counts["head"].rows == 24


def test_row_ids_decide_what_a_seeded_draw_gives() -> None:
    made = exported("gru-cell")
    inputs, context, arrays = made.call(12, seed=4)
    ids = torch.arange(12) * 1_000_003 - 5
    expected = made.model(inputs, policy=policies.Bernoulli(-3), row_ids=ids, **context)
    same(made.onnx.predict(arrays, policy=policies.Bernoulli(-3), row_ids=ids.numpy(), batch_size=5), expected)


def test_no_examples_give_no_answers() -> None:
    made = exported("words")
    empty = made.onnx.predict([])
    assert (empty.outputs.shape, empty.exit_step.shape) == ((0, 3), (0,))
    assert made.onnx.record([]).outputs.shape == (0, 5, 3)


@pytest.mark.parametrize("name", ["words", "gru-cell", "lstm-cell"])
def test_the_one_graph_stops_where_pytorch_does(name: str) -> None:
    made = exported(name)
    assert made.onnx.manifest.single == "model.onnx"
    session = single_thread_session(made.folder / "model.onnx")
    inputs, context, arrays = made.call(12, seed=6)
    expected = made.model(inputs, **context)
    assert len(set(expected.exit_step.tolist())) > 1
    for row in range(12):
        own = {given.name: arrays[given.name][row : row + 1] for given in session.get_inputs()}
        output, exit_step = session.run(["output", "exit_step"], own)
        assert exit_step.tolist() == [expected.exit_step[row].item()]
        np.testing.assert_allclose(output[0], expected.outputs[row].detach().numpy(), rtol=0, atol=1e-4)


def _gate(record: ponder.Trajectory, **options: Any) -> ExitPolicy:
    pytest.importorskip("sklearn", reason="gates are fitted with scikit-learn, which is not installed")
    return ponder.calibration.fit_gate(record, target="agreement", **{"threshold": 0.3, **options})


LEARNED: dict[str, Callable[[ponder.Trajectory], ExitPolicy]] = {
    "logistic": lambda record: _gate(record) | policies.Quantile(0.95),
    "boosted, shared": lambda record: _gate(record, model="boosted", trees=40, shared=True, threshold=0.1),
    "hidden": lambda record: _gate(record, signals=("margin", "movement", "hidden", "expected")).after(2),
    "stopping": lambda record: policies.Expected.fit(record, price=0.005, bins=5),
    "converged": lambda record: policies.Converged(patience=2),
    "at rest": lambda record: policies.Converged(0.3, on="features"),
}


@pytest.mark.parametrize("name", LEARNED)
def test_what_was_fitted_runs_without_pytorch(name: str, tmp_path: Path) -> None:
    """In the graphs of the parts, and in the one graph, which is traced with the policy inside."""
    toy = make_toy("gru-cell")
    model = wrap(toy).eval()
    inputs, context = toy.batch(200, seed=1)
    policy = LEARNED[name](model.record(inputs, keep_features=True, **context))
    model.policy = policy
    opened = OnnxModel(ponder.export.onnx(model, tmp_path / "x", example=toy.batch(3)), threads=1)
    rows, context = toy.batch(60, seed=2)
    expected = model(rows, **context)
    assert len(set(expected.exit_step.tolist())) > 1
    same(opened.predict(rows.numpy(), batch_size=7), expected)
    session = single_thread_session(tmp_path / "x" / "model.onnx")
    given = [session.run(["exit_step"], {"inputs": row[None]})[0].item() for row in rows[:20].numpy()]
    assert given == expected.exit_step[:20].tolist()


@dataclass(frozen=True)
class Curious(ExitPolicy):
    """Leaves where the first output is positive; how it is written, no trace can follow it."""

    needs = frozenset({"output"})

    def decide(self, step: Any, state: Any) -> Any:
        return torch.tensor([bool(row[0] > 0) for row in step.output]), state


@dataclass(frozen=True)
class NumpyCurious(NumpyPolicy):
    needs = frozenset({"output"})

    def decide(self, step: Any, state: Any) -> Any:
        return step.output[:, 0] > 0, state


def test_a_policy_that_cannot_be_traced_runs_by_its_twin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(policies.registry._factories, "curious", Curious)
    monkeypatch.setitem(registry._factories, "curious", NumpyCurious)
    toy = make_toy("gru-cell")
    model = wrap(toy, policy=Curious()).eval()
    with pytest.warns(UserWarning, match=r"model\.onnx is not written, since Curious\(\) cannot be traced") as seen:
        folder = ponder.export.onnx(model, tmp_path / "x", example=toy.batch(3))
    assert seen[0].filename == __file__
    assert not (folder / "model.onnx").exists()
    rows = toy.batch(40, seed=2)[0]
    expected = model(rows)
    assert len(set(expected.exit_step.tolist())) > 1
    same(OnnxModel(folder, threads=1).predict(rows.numpy(), batch_size=7), expected)


def test_the_one_graph_runs_no_step_after_the_exit() -> None:
    import onnx

    made = exported("gru-cell")
    graph = onnx.load(str(made.folder / "model.onnx")).graph
    loops = [node for node in graph.node if node.op_type == "Loop"]
    assert len(loops) == 1
    kinds = [node.op_type for node in loops[0].attribute[0].g.node]
    assert "Gemm" in kinds  # the step is inside the loop, once
    assert kinds.count("Tanh") <= 2


def test_there_is_no_one_graph_where_weights_are_not_shared() -> None:
    assert exported("scheduled").onnx.manifest.single is None


FRESH = """
import json, sys
import numpy as np
import ponder
from ponder.export import OnnxModel
from ponder.monitor import Audit

model = OnnxModel(sys.argv[1], threads=1)
found = model.predict(np.array(json.loads(sys.argv[2])))
Audit().record(False)
loaded = {name.partition(".")[0] for name in sys.modules}
print(json.dumps([sorted(loaded & {"torch", "transformers", "einops", "onnx"}), found.exit_step.tolist()]))
"""


def test_answering_imports_neither_torch_nor_transformers(tmp_path: Path) -> None:
    made = exported("gru-cell")
    inputs, context, _ = made.call(6, seed=8)
    arguments = [sys.executable, "-c", FRESH, str(made.folder), json.dumps(inputs.tolist())]
    root = Path(__file__).resolve().parents[3]
    ran = subprocess.run(arguments, cwd=root, capture_output=True, text=True, check=True)
    loaded, exit_step = json.loads(ran.stdout)
    assert loaded == []
    assert exit_step == made.model(inputs, **context).exit_step.tolist()
