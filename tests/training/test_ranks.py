"""Two processes started as `torchrun` does, without a GPU: they train one model together."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.training.two_ranks import train

PROGRAM = Path(__file__).with_name("two_ranks.py")
RECIPES = ("deebert", "static")


def start(folder: Path, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(PROGRAM), str(folder), *RECIPES]
    given = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(PROGRAM.parents[2]),
        **environment,
    }
    return subprocess.Popen(command, env=given, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
    }
    ranks = [start(tmp_path, RANK=rank, LOCAL_RANK=rank, **shared) for rank in "01"]
    for process in ranks:
        _, wrote = process.communicate(timeout=300)
        assert process.returncode == 0, wrote[-3000:]
    one, other = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in "01")
    for recipe in RECIPES:
        for name, value in train(recipe, 8).items():
            assert torch.equal(one[recipe][name], other[recipe][name])
            torch.testing.assert_close(
                one[recipe][name], value, rtol=1e-2, atol=1e-3
            )  # Adam enlarges rounding
