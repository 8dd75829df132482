"""Data-parallel training: every rank waits for the gradients of all others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.ranks import run_ranks


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch has no distributed training")
def test_an_empty_batch_on_one_rank_holds_nobody_up(tmp_path: Path) -> None:
    # Trap: a loss without a gradient for every parameter leaves the other ranks waiting for ever.
    run_ranks(Path(__file__).with_name("empty_rank.py"), tmp_path, own=({"RANK": "0"}, {"RANK": "1"}))
    first, second = (json.loads((tmp_path / f"told-{rank}.json").read_text()) for rank in range(2))
    for kind, told in first.items():
        assert told["weights"] == second[kind]["weights"]
        assert [loss == 0.0 for loss in second[kind]["losses"]] == [False, True, False, True]
        assert all(loss > 0 for loss in told["losses"])
