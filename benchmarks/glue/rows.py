"""Answers of every row at every step, compressed into one line, for a bootstrap over rows.

Answers are class numbers, or numbers in float16; confidences are rounded to 1/255. With them and
the labels of the task, which results do not keep, every threshold of confidence can be replayed on
a resample of the rows.
"""

from __future__ import annotations

import base64
import zlib
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.tasks import Task
from ponder import Trajectory

__all__ = ["pack_rows", "unpack_rows"]

_LEVELS = 255


def pack_rows(task: Task, trajectory: Trajectory) -> dict[str, Any]:
    """Return the answers of a trajectory, and the confidences where there are classes, as JSON."""
    outputs = trajectory.outputs.float()
    if task.kind == "regression":
        return {"answers": _packed(outputs[..., 0].numpy().astype(np.float16))}
    confidence, answers = outputs.softmax(-1).max(-1)
    rounded = torch.round(_LEVELS * confidence).to(torch.uint8)
    return {
        "answers": _packed(answers.numpy().astype(np.uint8)),
        "confidences": _packed(rounded.numpy()),
    }


def unpack_rows(packed: dict[str, Any]) -> dict[str, NDArray[Any]]:
    """Return what `pack_rows` packed, `(rows, steps)` each; confidences are in [0, 1]."""
    arrays = {name: _unpacked(one) for name, one in packed.items()}
    if "confidences" in arrays:
        arrays["confidences"] = arrays["confidences"].astype(np.float64) / _LEVELS
    return arrays


def _packed(array: NDArray[Any]) -> dict[str, Any]:
    # Steps first: the answers of neighbouring rows at one step compress better than those of one
    # row.
    data = zlib.compress(np.ascontiguousarray(array.T).tobytes(), 9)
    return {
        "shape": list(array.shape),
        "dtype": array.dtype.str,
        "data": base64.b64encode(data).decode("ascii"),
    }


def _unpacked(packed: dict[str, Any]) -> NDArray[Any]:
    rows, steps = packed["shape"]
    content = zlib.decompress(base64.b64decode(packed["data"]))
    return np.frombuffer(content, packed["dtype"]).reshape(steps, rows).T
