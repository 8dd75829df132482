"""Data-parallel training: every rank waits for the gradients of all others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch has no distributed training")
def test_an_empty_batch_on_one_rank_holds_nobody_up(tmp_path: Path) -> None:
    # Trap: a loss without a gradient for every parameter leaves the other ranks waiting for ever.
    program = str(Path(__file__).with_name("empty_rank.py"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    ranks = [
        subprocess.Popen(
            [sys.executable, program, str(rank), str(tmp_path)], env=environment, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    try:
        errors = [rank.communicate(timeout=180)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    for rank, error in zip(ranks, errors, strict=True):
        assert rank.returncode == 0, error[-3000:]
    first, second = (json.loads((tmp_path / f"told-{rank}.json").read_text()) for rank in range(2))
    for kind, told in first.items():
        assert told["weights"] == second[kind]["weights"]
        assert [loss == 0.0 for loss in second[kind]["losses"]] == [False, True, False, True]
        assert all(loss > 0 for loss in told["losses"])
