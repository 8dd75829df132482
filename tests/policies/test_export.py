"""A policy exports itself: its graphs give the exits of a replay, rows leaving as they go."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch

from ponder import policies
from ponder.calibration import Record
from ponder.calibration.records import RecordedSource
from ponder.deploy.graph_source import GraphPolicy
from ponder.deploy.graphs import Slot, write_policy
from ponder.deploy.sessions import Graph
from ponder.running.loop import run
from tests.policies.records import (
    COMPOSED,
    POSITIONS,
    SIMPLE,
    as_arrays,
    exits_of,
    name,
    record,
)

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
QUICK = ("Confidence", "Quantile", "Patience")


def exits_of_graphs(policy: policies.ExitPolicy, made: Record, folder: Path) -> list[int]:
    """Write the policy on the first two rows, and run all of them to their exits by its graphs."""
    view = next(made.views(policy.needs))
    values = dict(view.readings)
    along = ()
    if made.mask is not None:
        values["mask"] = made.mask
        along = (1,)
    readings = {key: Slot.of(key, value[:2], along=along) for key, value in values.items()}
    written = write_policy(policy, made.num_steps, made.batch.task, readings, folder)
    graphs = {path.stem: Graph(path, 1) for path in folder.glob("*.onnx")}
    exported = cast(Any, GraphPolicy(written, graphs))
    arrays = as_arrays(made)
    return run(RecordedSource(arrays), exported, arrays.batch).exit_step.tolist()


SAMPLING = COMPOSED[0]
NESTED = COMPOSED[-2]
"""A policy of every combinator; the simple policies inside are traced by themselves."""
CASES = [(policy, "classification") for policy in (*SIMPLE, SAMPLING, NESTED) if policy.needs]
CASES += [(policy, "token_classification") for policy in POSITIONS]


@pytest.mark.parametrize(
    ("policy", "task"),
    [
        pytest.param(
            policy,
            task,
            marks=() if type(policy).__name__ in QUICK else pytest.mark.slow,
            id=f"{name(policy)}-{task}",
        )
        for policy, task in CASES
    ],
)
def test_a_policy_exports_itself(policy: policies.ExitPolicy, task: str, tmp_path: Path) -> None:
    made = record(task, dtype=torch.float32)
    assert exits_of_graphs(policy, made, tmp_path) == exits_of(made, policy)
