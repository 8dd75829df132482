"""Two processes started as `torchrun` does, without a GPU: they train one model together."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

PROGRAM = Path(__file__).with_name("two_ranks.py")


def start(folder: Path, recipe: str, batch: int, environment: dict[str, str]) -> subprocess.Popen[str]:
    command = [sys.executable, str(PROGRAM), str(folder), recipe, str(batch)]
    given = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROGRAM.parents[2]), **environment}
    return subprocess.Popen(command, env=given, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["deebert", "static"])
def test_two_processes_train_as_one_does(recipe: str, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    ranks = [start(tmp_path, recipe, 4, {**shared, "RANK": rank, "LOCAL_RANK": rank}) for rank in "01"]
    alone = start(tmp_path, recipe, 8, {})
    for process in (*ranks, alone):
        _, wrote = process.communicate(timeout=300)
        assert process.returncode == 0, wrote[-3000:]
    weights = [torch.load(tmp_path / f"rank{name}.pt", weights_only=True) for name in ("0", "1", "alone")]
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name])
        torch.testing.assert_close(value, weights[2][name], rtol=1e-2, atol=1e-3)  # Adam enlarges what rounding leaves
