"""`ponder.fit` and `PonderTrainer` in two processes: the ranks agree, and with one process on the joined batches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.integrations.transformers import two_ranks
from tests.ranks import as_torchrun, run_ranks

pytest.importorskip("accelerate", reason="accelerate is not installed")


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes wrote."""
    if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
        pytest.skip("this PyTorch has no distributed training on processors (gloo)")
    folder = tmp_path_factory.mktemp("ranks")
    first, second = ({**rank, "ACCELERATE_USE_CPU": "true"} for rank in as_torchrun())
    run_ranks(two_ranks.__file__, folder, own=(first, second))
    return [json.loads((folder / f"told-{rank}.json").read_text()) for rank in range(2)]


def test_two_processes_train_what_one_trains_on_the_joined_batches(told: list[dict[str, Any]], tmp_path: Path) -> None:
    alone = two_ranks.train(tmp_path)
    for case, expected in alone.items():
        first, second = (rank[case] for rank in told)
        assert first["weights"] == second["weights"], f"{case}: the ranks have drifted apart"
        start = two_ranks.build(case.split(", ")[1]).state_dict()
        for name, weight in expected["weights"].items():
            torch.testing.assert_close(torch.tensor(first["weights"][name]), torch.tensor(weight), atol=1e-6, rtol=1e-5)
        assert any(start[name].flatten().tolist() != weight for name, weight in expected["weights"].items())
        for name in expected.keys() - {"weights"}:
            assert first[name] == second[name], f"{case}: {name} is of one rank alone"
            assert first[name] == pytest.approx(expected[name], rel=1e-3), f"{case}: {name}"
    assert alone["trainer, pabee"]["exit_step"] % 1, (
        "rows leave at different steps; those that are given twice count once"
    )


def test_batches_that_cannot_be_shared_are_refused(told: list[dict[str, Any]]) -> None:
    for rank in told:
        assert "loader: expected a DataLoader, whose batches 2 processes can share; got a list" in rank["refusal"]
