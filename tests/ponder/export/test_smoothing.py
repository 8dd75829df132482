"""SmoothQuant: the same products in other numbers, and less lost where a channel is far larger than the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="exports need the extra onnx")
pytest.importorskip("onnxruntime", reason="exports need the extra onnx")

from ponder.export.quantizing import quantize  # noqa: E402
from ponder.export.sessions import Graph  # noqa: E402
from ponder.export.smoothing import smooth  # noqa: E402

WIDTH = 8
LARGE = 3  # the channel that is far larger than the others


def rows(seed: int) -> Any:
    values = np.random.default_rng(seed).normal(size=(64, WIDTH)).astype(np.float32)
    values[:, LARGE] *= 200.0
    values[:, 5] = 0.0  # a channel that is never used
    return values


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Three products that read the same tensor; one of them keeps its weights by output."""
    from onnx import TensorProto, helper, numpy_helper

    generator = np.random.default_rng(0)
    weights = {name: generator.normal(size=(WIDTH, WIDTH)).astype(np.float32) for name in ("a", "b", "c")}
    for name, value in weights.items():  # what is large is read with small weights, as in trained encoders
        value[(slice(None), LARGE) if name == "b" else LARGE] *= 0.01
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["y_a"], name="first"),
        helper.make_node("Gemm", ["x", "b"], ["y_b"], name="second", transB=1),
        helper.make_node("MatMul", ["x", "c"], ["y_c"], name="kept"),
    ]
    graph = helper.make_graph(
        nodes,
        "products",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", WIDTH])],
        [helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None) for node in nodes],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    made.ir_version = 10
    onnx.save(made, str(tmp_path / "products.onnx"))
    return tmp_path / "products.onnx"


def channels() -> dict[str, Any]:
    seen = rows(1)
    return {"x": (seen.min(axis=0), seen.max(axis=0))}


def test_the_graph_computes_what_it_did(path: Path) -> None:
    before = Graph(path, threads=1)({"x": rows(2)})
    made = onnx.load(str(path))
    weights = {weight.name: onnx.numpy_helper.to_array(weight) for weight in made.graph.initializer}
    ranges = smooth(made.graph, channels(), kept=["kept"])
    onnx.save(made, str(path))
    after = Graph(path, threads=1)({"x": rows(2)})
    for name, value in before.items():
        np.testing.assert_allclose(after[name], value, rtol=1e-4, atol=1e-3)
    # By Eq. 4, for both products together; the third reads the tensor as it was.
    largest = np.maximum(np.abs(weights["a"]).max(axis=1), np.abs(weights["b"]).max(axis=0))
    seen = np.abs(rows(1)).max(axis=0)
    factors = np.where(seen > 0, seen**0.75 / largest**0.25, 1.0)
    found = {weight.name: onnx.numpy_helper.to_array(weight) for weight in made.graph.initializer}
    np.testing.assert_allclose(found["a"], factors[:, None] * weights["a"], rtol=1e-5)
    np.testing.assert_allclose(found["b"], weights["b"] * factors, rtol=1e-5)
    np.testing.assert_array_equal(found["c"], weights["c"])
    assert ranges["x"] == (rows(1).min(), rows(1).max())
    scaled = rows(1) / factors
    assert ranges["x.smoothed"] == pytest.approx((scaled.min(), scaled.max()), rel=1e-5)


def test_the_small_channels_are_no_longer_lost(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = rows(2)
    expected = Graph(path, threads=1)({"x": values})
    plain, smoothed = path.with_name("plain.onnx"), path.with_name("smoothed.onnx")
    for copy in (plain, smoothed):
        copy.write_bytes(path.read_bytes())
    quantize(smoothed, everything=True, channels=channels())
    monkeypatch.setattr("ponder.export.quantizing.smooth", _unsmoothed)
    quantize(plain, everything=True, channels=channels())

    def error(of: Path) -> float:
        found = Graph(of, threads=1)({"x": values})
        return float(np.mean([np.abs(found[name] - value).mean() for name, value in expected.items()]))

    assert error(smoothed) < error(plain) / 3


def test_joined_products_give_what_their_parts_gave(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = onnx.load(str(path))
    made.graph.initializer.append(onnx.numpy_helper.from_array(rows(3)[0], "bias"))
    made.graph.node.append(
        onnx.helper.make_node("Add", ["bias", "y_a"], ["y_d"])
    )  # y_b has none, and y_a is read twice
    made.graph.node.append(onnx.helper.make_node("MatMul", ["y_d", "c"], ["y_e"]))
    made.graph.node.append(onnx.helper.make_node("Add", ["y_e", "bias"], ["y_f"]))
    made.graph.output.append(onnx.helper.make_tensor_value_info("y_f", onnx.TensorProto.FLOAT, None))
    onnx.save(made, str(path))
    parts = path.with_name("parts.onnx")
    parts.write_bytes(path.read_bytes())
    seen = {**channels(), "y_d": (np.full(WIDTH, -30.0, np.float32), np.full(WIDTH, 30.0, np.float32))}
    quantize(path, everything=True, channels=seen)
    monkeypatch.setattr("ponder.export.quantizing._fuse", lambda model: None)
    quantize(parts, everything=True, channels=seen)
    kinds = [node.op_type for node in onnx.load(str(path)).graph.node]
    assert kinds.count("MatMulIntegerToFloat") == kinds.count("MatMul") + 4
    assert not {"MatMulInteger", "Cast"} & set(kinds)
    expected = Graph(parts, threads=1)({"x": rows(2)})
    for name, found in Graph(path, threads=1)({"x": rows(2)}).items():
        np.testing.assert_allclose(found, expected[name], rtol=1e-5, atol=1e-4)


def _unsmoothed(graph: Any, seen: Any, kept: Any = ()) -> dict[str, tuple[float, float]]:
    return {name: (float(low.min()), float(high.max())) for name, (low, high) in seen.items()}
