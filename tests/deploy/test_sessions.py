"""Graphs in onnxruntime."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, checker, helper, numpy_helper

from ponder.deploy.sessions import Graph

ROWS, WIDTH, INNER = 4096, 16, 4096
MEMORY = Path("/proc/self/statm")


def wide_graph() -> bytes:
    """Return a graph whose inner values are far larger than its input and its output."""
    weights = {
        "up": np.full((WIDTH, INNER), 0.01, np.float32),
        "down": np.full((INNER, WIDTH), 0.01, np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "up"], ["wide"]),
        helper.make_node("MatMul", ["wide", "down"], ["y"]),
    ]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", WIDTH]) for name in "xy"
    ]
    arrays = [numpy_helper.from_array(weight, name) for name, weight in weights.items()]
    graph = helper.make_graph(nodes, "wide", values[:1], values[1:], arrays)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    checker.check_model(model)
    written: bytes = model.SerializeToString()
    return written


def resident_bytes() -> int:
    return int(MEMORY.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not MEMORY.exists(), reason="the system does not tell the memory of a process")
def test_graphs_share_their_memory() -> None:
    steps = [Graph(wide_graph(), threads=1) for _ in range(8)]
    x = np.ones((ROWS, WIDTH), np.float32)
    before = resident_bytes()
    for step in steps:
        assert step({"x": x})["y"].shape == (ROWS, WIDTH)
    of_one_step = ROWS * INNER * 4
    assert resident_bytes() - before < 3 * of_one_step
