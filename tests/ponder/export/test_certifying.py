"""Int8, and the threshold that is chosen again after it against full depth in fp32."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import ponder
from ponder import policies
from ponder._utils.files import read_json, write_json
from ponder.errors import ArgumentError, CheckpointError, PonderError
from ponder.export import OnnxModel, certify, to_trajectory, writing
from ponder.export.writing import copied
from tests.ponder.export.exported import exported

pytest.importorskip("onnxruntime", reason="exports need the extra onnx")
pytest.importorskip("onnxscript", reason="exports need the extra onnx")
pytestmark = pytest.mark.slow  # exporting takes seconds


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    made, folder = exported("words"), tmp_path_factory.mktemp("int8")
    ponder.export.onnx(made.model, folder, int8=True, example=made.toy.batch(3))
    return OnnxModel(folder, threads=1)


def rows(size: int, seed: int) -> Any:
    return exported("words").call(size, seed)[2]


def test_int8_quantises_the_steps_and_nothing_else(int8: OnnxModel) -> None:
    import onnx

    def kinds(name: str) -> set[str]:
        return {node.op_type for node in onnx.load(str(int8.folder / name)).graph.node}

    assert {"MatMulInteger", "DynamicQuantizeLinear", "MatMul"} <= kinds("step_1.onnx")
    kept = onnx.load(str(int8.folder / "step_1.onnx")).graph
    weights = {weight.name: tuple(weight.dims) for weight in kept.initializer}
    plain = [weights[n.input[1]] for n in kept.node if n.op_type in ("MatMul", "Gemm") and n.input[1] in weights]
    assert plain == [(16, 8)]  # the one that narrows
    for name in ("stem.onnx", "readout.onnx", "head.onnx", "lambda.onnx"):
        assert not {"MatMulInteger", "DynamicQuantizeLinear"} & kinds(name)
    assert int8.manifest.int8
    assert int8.manifest.single is None
    assert not list(int8.folder.glob(".*"))


def test_all_products_are_quantised_where_that_is_asked_for(tmp_path: Path) -> None:
    import onnx

    from ponder.export.quantizing import quantize

    path = tmp_path / "step.onnx"
    path.write_bytes((exported("words").folder / "step_1.onnx").read_bytes())
    quantize(path, everything=True)
    kept = onnx.load(str(path)).graph
    weights = {weight.name for weight in kept.initializer}
    assert not [n for n in kept.node if n.op_type in ("MatMul", "Gemm") and n.input[1] in weights]
    with pytest.raises(ArgumentError, match="int8"):
        ponder.export.onnx(exported("words").model, tmp_path, int8="some")  # type: ignore[arg-type]


def test_int8_outputs_are_near_but_not_the_same(int8: OnnxModel) -> None:
    own, other = int8.record(rows(64, 1)).outputs, exported("words").onnx.record(rows(64, 1)).outputs
    distance = np.abs(own - other).mean() / np.abs(other).mean()
    assert 0.0 < distance < 0.2


def test_the_certificate_is_against_full_depth_in_fp32(int8: OnnxModel) -> None:
    reference, examples = exported("words").onnx, rows(600, 2)
    found = certify(int8, reference, examples, policies.Confidence, level=0.15, confidence=0.9)
    assert found.met
    assert found.mean_exit_step < int8.num_steps
    assert "disagreement_with_reference" in found.statement
    full = reference.predict(examples, policy=policies.LastStep()).outputs.argmax(-1)
    own = int8.predict(examples, policy=found.policy).outputs.argmax(-1)
    chosen = next(row for row in found.policy.path if row[0] == found.policy.threshold_value)
    assert np.mean(own != full) == pytest.approx(chosen[1], abs=2 / 600)  # what the walk counted, the model does
    assert chosen[1] < 0.15
    fresh = rows(600, 3)
    full = reference.predict(fresh, policy=policies.LastStep()).outputs.argmax(-1)
    assert np.mean(int8.predict(fresh, policy=found.policy).outputs.argmax(-1) != full) <= 0.15
    with pytest.raises(ArgumentError, match="a certificate for other weights"):
        exported("words").model.policy = found.policy  # it is about the export


def test_a_certificate_of_another_model_is_refused(int8: OnnxModel) -> None:
    made, examples = exported("words"), rows(600, 2)
    whole, before = OnnxModel(made.folder, threads=1), int8.policy
    of_int8 = certify(int8, whole, examples, policies.Confidence, level=0.15, confidence=0.9).policy
    of_whole = certify(whole, whole, examples, policies.Confidence, level=0.15, confidence=0.9).policy
    of_model = replace(of_whole, weights=made.model.weights_digest())
    whole.policy = of_whole
    with pytest.warns(UserWarning, match="A part of this policy is certified"):
        whole.policy = of_model.after(2)  # the same weights
    int8.policy = of_int8
    for export, foreign in [(whole, of_int8), (int8, of_whole), (int8, of_model.after(2))]:
        kept = export.policy
        with pytest.raises(ArgumentError, match="policy: expected one that was certified on this export"):
            export.policy = foreign
        assert export.policy == kept
        with pytest.warns(UserWarning, match="certified for other weights than those of the export"):
            export.predict(examples, policy=foreign)
    int8.predict(examples, policy=of_int8)
    whole.predict(examples, policy=of_model)
    whole.manifest = replace(whole.manifest, weights=None)  # an earlier version did not say
    whole.policy = of_int8
    int8.policy = before


def test_a_certificate_from_a_record_knows_its_export_too(int8: OnnxModel) -> None:
    # Trap: what `ponder export` and users make of `to_trajectory` named no weights, and every export took it.
    whole = OnnxModel(exported("words").folder, threads=1)
    record = whole.record(rows(600, 2))
    found = ponder.control_risk(to_trajectory(record, task="classification"), policies.Confidence, level=0.15)
    whole.policy = found.policy
    with pytest.raises(ArgumentError, match="a certificate for other weights"):
        int8.policy = found.policy
    with pytest.raises(ArgumentError, match="a certificate for other weights"):
        exported("words").model.policy = found.policy


def test_where_even_full_depth_differs_too_often_nothing_is_promised(int8: OnnxModel) -> None:
    examples = rows(400, 2)
    broken = OnnxModel(int8.folder, threads=1)
    broken._graphs = exported("words").onnx._graphs.__class__(
        **{**vars(broken._graphs), "heads": (_negated(broken._graphs.heads[0]),)}
    )
    found = certify(broken, exported("words").onnx, examples, policies.Confidence, level=0.05)
    assert not found.met
    assert "nothing could be certified" in found.statement


def _negated(head: Any) -> Any:
    def call(arrays: Any) -> Any:
        return {"output": -head(arrays)["output"]}

    return call


def test_a_chosen_policy_is_kept_in_the_folder(int8: OnnxModel) -> None:
    before = int8.policy
    int8.policy = policies.Confidence(0.75)
    int8.save_policy()
    opened = OnnxModel(int8.folder, threads=1)
    assert policies.from_dict(opened.policy) == policies.Confidence(0.75)
    examples = rows(20, 4)
    assert opened.predict(examples).exit_step.tolist() == int8.predict(examples).exit_step.tolist()
    int8.policy = before


def test_exports_of_different_tasks_are_refused(int8: OnnxModel) -> None:
    with pytest.raises(ArgumentError, match="reference"):
        certify(int8, exported("regression").onnx, rows(10, 1), policies.Confidence, level=0.1)


class Unseen(policies.LastStep):
    """A policy without a twin."""

    def to_dict(self) -> dict[str, str]:
        return {"name": "unseen"}


def test_what_an_export_cannot_run_is_refused_before_anything_is_recorded(
    int8: OnnxModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples, reference = rows(200, 2), exported("words").onnx

    def either(value: float) -> policies.ExitPolicy:
        return policies.Confidence(1.0 - value) | policies.Patience(2)

    found = certify(int8, reference, examples, either, level=0.6, grid=iter([0.1, 0.2]))
    assert found.policy.threshold_name == "value"
    assert int8.predict(examples, policy=found.policy).exit_step.max() <= int8.num_steps
    monkeypatch.setattr(OnnxModel, "record", lambda *_, **__: pytest.fail("recorded"))
    scored = policies.Learned(policies.LinearScorer(8), 0.5)
    for family, grid, message in (
        (lambda value: Unseen(), [0.5], "runs without PyTorch"),
        (scored.with_threshold, [0.5], "runs without PyTorch"),
        (scored, None, "runs without PyTorch"),
    ):
        with pytest.raises(ArgumentError, match=message):
            certify(int8, reference, examples, family, level=0.6, grid=grid)


def test_a_policy_that_reads_features_is_certified_on_features() -> None:
    made = exported("words")
    inputs, context, arrays = made.call(200, seed=7)

    def at_rest(value: float) -> policies.ExitPolicy:
        return policies.Converged(value, on="features")

    found = certify(made.onnx, made.onnx, arrays, at_rest, level=0.3, grid=[0.5, 0.1, 0.0])
    assert found.met
    expected = made.model.unroll(inputs, keep_features=True, **context)
    record = made.onnx.record(arrays, keep_features=True)
    np.testing.assert_allclose(record.features, expected.features.detach().numpy(), rtol=0, atol=1e-4)
    again = to_trajectory(record, task="classification").replay(found.policy.policy)
    assert again.exit_step.tolist() == made.onnx.predict(arrays, policy=found.policy).exit_step.tolist()
    assert made.onnx.record(arrays).features is None


def test_features_of_no_known_shape_are_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = OnnxModel(exported("words").folder, threads=1)
    monkeypatch.setattr(opened, "manifest", replace(opened.manifest, features=()))
    with pytest.raises(ArgumentError, match="keep_features: expected False, where features are not known"):
        opened.record([], keep_features=True)


def test_a_record_is_swept_and_calibrated_like_a_trajectory() -> None:
    made = exported("words")
    inputs, context, arrays = made.call(50, seed=7)
    labels = np.arange(50) % 3
    trajectory = to_trajectory(made.onnx.record(arrays), task="classification", labels=labels)
    plain = made.model.unroll(inputs, **context)
    policy = policies.Quantile(0.5)
    assert trajectory.replay(policy).exit_step.tolist() == plain.replay(policy).exit_step.tolist()
    found = ponder.calibrate(trajectory, policies.Confidence, at_most_steps=3.0)
    assert found.point.mean_exit_step <= 3.0


def test_files_have_the_sizes_that_are_noted(int8: OnnxModel) -> None:
    for name, size in int8.manifest.sizes.items():
        assert (Path(int8.folder) / name).stat().st_size == size


def test_fixed_ranges_leave_no_row_to_its_neighbours(tmp_path: Path) -> None:
    import onnx

    made = exported("words")
    ponder.export.quantized(made.folder, tmp_path, "all", calibration=rows(40, 4))
    model, examples = OnnxModel(tmp_path, threads=1), rows(30, 1)
    kinds = {node.op_type for node in onnx.load(str(tmp_path / "step_1.onnx")).graph.node}
    assert {"MatMulIntegerToFloat", "QuantizeLinear"} <= kinds
    assert not {"MatMulInteger", "DynamicQuantizeLinear"} & kinds
    own, fp32 = model.record(examples).outputs, made.onnx.record(examples).outputs
    assert 0.0 < np.abs(own - fp32).mean() / np.abs(fp32).mean() < 0.2
    alone = np.concatenate([model.record([row]).outputs for row in _apart(examples)])
    np.testing.assert_allclose(alone, own, atol=1e-4, rtol=1e-4)


def test_examples_that_give_no_ranges_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"calibration: .*got none"):
        ponder.export.quantized(exported("words").folder, tmp_path, calibration=[])


def test_an_export_that_is_quantised_later_is_the_one_that_was_quantised_at_once(
    int8: OnnxModel, tmp_path: Path
) -> None:
    fp32 = exported("words").folder
    before = {path.name: path.read_bytes() for path in fp32.iterdir()}
    later = OnnxModel(ponder.export.quantized(fp32, tmp_path), threads=1)
    np.testing.assert_array_equal(later.record(rows(20, 5)).outputs, int8.record(rows(20, 5)).outputs)
    assert later.manifest == replace(int8.manifest, policy=later.policy)  # another test changes that of `int8`
    assert {path.name: path.read_bytes() for path in fp32.iterdir()} == before
    with pytest.raises(ArgumentError, match="in 8 bits"):
        ponder.export.quantized(tmp_path, tmp_path / "again")
    with pytest.raises(ArgumentError, match="folder: expected another"):
        ponder.export.quantized(fp32, fp32)
    with pytest.raises(CheckpointError):
        ponder.export.quantized(tmp_path / "none", tmp_path / "new")


def _apart(examples: Any) -> list[Any]:
    names = list(examples)
    return [{name: examples[name][row] for name in names} for row in range(len(examples[names[0]]))]


def test_answers_that_are_nan_agree_with_nothing(int8: OnnxModel) -> None:
    for names in (("own",), ("other",), ("own", "other")):
        models = {"own": OnnxModel(int8.folder, threads=1), "other": OnnxModel(exported("words").folder, threads=1)}
        for name in names:
            graphs = models[name]._graphs
            models[name]._graphs = replace(graphs, heads=(_nan(graphs.heads[0]),))
        found = certify(models["own"], models["other"], rows(400, 2), policies.FixedStep, level=0.3)
        assert not found.met


def _nan(head: Any) -> Any:
    return lambda arrays: {"output": np.full_like(head(arrays)["output"], np.nan)}


class PerHead(nn.Module):
    """A matrix for each of two heads, and one for both."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.linear = nn.Parameter(torch.randn(2, 8, 8)), nn.Linear(8, 8)

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.tanh(self.linear((hidden[:, None, None] @ self.weight).mean((1, 2))))


class WithVector(nn.Module):
    """A product with a vector, one with a bias that is a single number, and one as they usually are."""

    def __init__(self) -> None:
        super().__init__()
        self.vector, self.bias = nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(1))
        self.linear, self.usual = nn.Linear(8, 8, bias=False), nn.Linear(8, 8)

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.tanh(self.linear(self.usual(hidden)) + self.bias) + torch.tanh(hidden @ self.vector)[:, None]


class Narrowing(nn.Module):
    """A feed-forward block on hidden states of two dimensions, whose products are called Gemm."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 32), nn.Linear(32, 8)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.down(torch.relu(self.up(hidden)))


@pytest.mark.parametrize("step", [PerHead, WithVector, Narrowing])
@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("kind", [True, "all"])
def test_int8_runs_whatever_the_weights_are(step: Any, calibrated: bool, kind: Any, tmp_path: Path) -> None:
    import onnx

    torch.manual_seed(0)
    options = {"head": nn.Linear(8, 3), "policy": policies.LastStep(), "task": "classification"}
    model = ponder.PonderWrapper(step(), num_steps=3, **options).eval()
    inputs = torch.randn(64, 8)
    calibration = inputs.numpy() if calibrated else None
    ponder.export.onnx(model, tmp_path, int8=kind, example=inputs[:2], calibration=calibration)
    found = OnnxModel(tmp_path, threads=1).predict(inputs.numpy()).outputs
    with torch.no_grad():
        expected = model(inputs).outputs.numpy()
    spread = np.abs(expected - expected.mean(0)).mean()
    assert np.abs(found - expected).mean() < 0.06 * spread, "another row's answer is as far as the spread"
    graph = onnx.load(str(tmp_path / "step_1.onnx")).graph
    quantised = sum(node.op_type in ("MatMulInteger", "MatMulIntegerToFloat") for node in graph.node)
    assert quantised == {PerHead: 1, WithVector: 1, Narrowing: 2 if kind == "all" else 1}[step]


def test_a_graph_that_no_longer_runs_is_refused_when_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "quantize", lambda path, **_: path.write_bytes(b"no graph"))
    with pytest.raises(PonderError, match="does not run in 8 bits"):
        ponder.export.quantized(exported("words").folder, tmp_path / "int8")
    assert not (tmp_path / "int8" / "export.json").exists()


def test_rows_that_fitted_a_policy_certify_it_for_no_quantised_export_either(int8: OnnxModel) -> None:
    # Trap: quantised, no row has the numbers by which the policy knows it.
    reference, examples = exported("words").onnx, rows(300, 6)
    fitted = policies.Expected.fit(to_trajectory(reference.record(examples), task="classification"), price=0.01)
    for export in (reference, int8):
        with pytest.raises(ArgumentError, match="rows on which the policy was not fitted"):
            certify(export, reference, examples, fitted, level=0.3)
    assert certify(int8, reference, rows(300, 7), fitted, level=0.3).policy.rows == 300


def test_what_was_reported_of_another_policy_goes_with_it(tmp_path: Path) -> None:
    # Trap: "Answers as the fp32 model does …" stood beside a policy that nobody had certified.
    report = tmp_path / "export-report.json"
    opened = OnnxModel(copied(exported("words").folder, tmp_path), threads=1)
    report.write_text('{"statement": "Answers as …", "columns": ["question", "reply"]}')
    opened.save_policy()
    assert report.exists()  # it is the policy of before
    opened.policy = policies.Confidence(0.45)
    opened.save_policy()
    assert not report.exists()
    assert OnnxModel(tmp_path).manifest.columns == ("question", "reply")


def test_exports_that_name_no_digests_are_known_by_their_files(int8: OnnxModel, tmp_path: Path) -> None:
    # Trap: all exports of version 0.1 had one digest, so that one took the certificate of another.
    made = []
    for name, source in (("one", int8.folder), ("other", exported("words").folder)):
        opened = OnnxModel(copied(source, tmp_path / name))
        write_json(tmp_path / name / "export.json", {**read_json(opened.folder / "export.json"), "digests": {}})
        made.append(OnnxModel(tmp_path / name, threads=1))
    one, other = (each.record(rows(3, 1)).weights for each in made)
    assert (one, other) == (int8.record(rows(3, 1)).weights, exported("words").onnx.record(rows(3, 1)).weights)
    assert one != other
