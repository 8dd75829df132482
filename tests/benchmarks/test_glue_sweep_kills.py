"""Sweeps that are killed end as if they were not.

Eight kills, and two of a pool of processes, which has one more checkpoint at each death and so is soon done; a hundred
kills where the environment has `PONDER_LONG`.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from benchmarks.glue.training import KeepWhole, last_whole, seconds_until
from benchmarks.locking import BusyError, hold
from tests.forking import run_forked

ROOT = Path(__file__).parents[2]
LONG = pytest.mark.skipif("PONDER_LONG" not in os.environ, reason="takes minutes: set PONDER_LONG=1")


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


@pytest.mark.slow
@pytest.mark.parametrize("kills", [8, pytest.param(100, marks=LONG)])
def test_a_sweep_that_is_killed_at_random_moments_ends_as_an_undisturbed_one(kills, backbone, glue_dir, tmp_path):
    program = Path(__file__).with_name("killed_sweeps.py")
    (done,) = run_forked([program, backbone, glue_dir, tmp_path, str(kills), "2"])
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert sum(sweep["deaths"] for sweep in told["inline"]) == kills
    assert [sweep["deaths"] for sweep in told["local"]] == [2]
    assert len(told["whole"]) == 4 + 2 + 2 + 1  # points tried, runs chosen, choices, and what is left in work
    assert told["whole"]["work"] == []
    for sweep in (*told["inline"], *told["local"]):
        assert sweep["results"] == told["whole"]


def test_a_lock_keeps_others_out_and_dies_with_its_holder(tmp_path):
    path = tmp_path / "locks" / "run.lock"
    code = f"""
import pathlib, sys
from benchmarks.locking import hold
with hold(pathlib.Path({str(path)!r}), wait=False):
    print("held", flush=True)
    sys.stdin.read()
"""
    holder = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
    )
    with holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(BusyError, match="run"), hold(path, wait=False):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert path.exists()  # what a dead process leaves is no lock
    with hold(path, wait=False):
        assert path.exists()
    assert not path.exists()


def checkpoint(folder, step, mark=True):
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "trainer_state.json").write_text("{")
    if mark:
        (path / "complete").touch()
    return path


def test_only_checkpoints_that_were_written_to_their_end_are_kept(tmp_path):
    # TRAP: the last folder by name is the one at which the process was killed.
    whole, torn = checkpoint(tmp_path, 8), checkpoint(tmp_path, 10, mark=False)
    checkpoint(tmp_path, 9, mark=False)
    assert last_whole(tmp_path) == whole
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-8"]
    assert not torn.exists()
    assert last_whole(tmp_path / "none") is None


def test_a_new_checkpoint_is_marked_before_old_ones_go_and_the_best_stays(tmp_path):
    for step in (2, 4, 6):
        checkpoint(tmp_path, step)
    checkpoint(tmp_path, 8, mark=False)
    state = TrainerState(global_step=8, best_model_checkpoint=str(tmp_path / "checkpoint-4"))
    state.is_world_process_zero = True
    KeepWhole().on_save(TrainingArguments(output_dir=str(tmp_path), use_cpu=True), state, TrainerControl())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-4", "checkpoint-8"]
    assert last_whole(tmp_path) == tmp_path / "checkpoint-8"


def test_seconds_of_training_are_those_of_all_its_parts(tmp_path):
    """The trap: a run that was cut off told the seconds of its last part alone."""
    state, args = TrainerState(global_step=2), TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    state.is_world_process_zero = True
    checkpoint(tmp_path, 2)
    for before, least in ((0.0, 0.0), (100.0, 100.0)):
        keep = KeepWhole()
        keep.before = before
        keep.on_train_begin(args, state, TrainerControl())
        keep.on_save(args, state, TrainerControl())
        assert seconds_until(tmp_path / "checkpoint-2") >= least
    checkpoint(tmp_path, 4)  # of an earlier version, which noted nothing
    assert seconds_until(tmp_path / "checkpoint-4") is None
