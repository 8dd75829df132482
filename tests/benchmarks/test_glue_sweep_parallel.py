"""Data-parallel training of one run."""

import json
from pathlib import Path

import pytest

from benchmarks.glue import distributed
from ponder.errors import ArgumentError
from tests.forking import run_forked
from tests.ranks import as_torchrun


@pytest.mark.slow
def test_two_processes_train_as_one_does_and_the_first_alone_writes(backbone, glue_dir, tmp_path):
    program, told = Path(__file__).with_name("data_parallel_run.py"), {}
    for name, ranks in (("one", [{}]), ("two", as_torchrun())):
        (tmp_path / name).mkdir()
        arguments = [backbone, glue_dir, tmp_path / name]
        for done in run_forked(*[[program, *arguments]] * len(ranks), own=ranks):
            assert done.returncode == 0, done.stderr[-3000:]
        told[name] = [json.loads(path.read_text()) for path in sorted((tmp_path / name).glob("told-*.json"))]
    (one,), (first, second) = told["one"], told["two"]
    assert len(one["losses"]) == 2 * 3  # two epochs of three steps
    assert first["losses"] == pytest.approx(one["losses"], rel=1e-3)
    assert (len(first["written"]), second["written"]) == (1, [])
    assert first["splits"] == second["splits"]
    assert first["splits"]["dev"]["per_step"] == pytest.approx(one["splits"]["dev"]["per_step"], abs=0.051)
    assert not any((tmp_path / "two" / "work").iterdir())


def test_a_batch_is_divided_evenly(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert distributed.share(12) == 4
    with pytest.raises(ArgumentError, match="multiple of the 3 processes"):
        distributed.share(16)
