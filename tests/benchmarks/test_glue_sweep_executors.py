"""Executors: processes that die, processes whose parent dies, and Ray where it is installed."""

import math
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from pretending import job, pretend, quick_workers

from benchmarks.glue.results import Result
from benchmarks.glue.sweeping import executors
from benchmarks.glue.sweeping.executors import Outcome
from benchmarks.glue.sweeping.suite import RecipeSpec, Suite
from benchmarks.glue.sweeping.sweep import sweep
from ponder.errors import ArgumentError

ROOT = Path(__file__).parents[2]


def test_a_process_that_is_killed_fails_its_own_run_alone(monkeypatch):
    monkeypatch.setattr(executors, "multiprocessing", SimpleNamespace())
    quick_workers("benchmarks.glue.sweeping.executors")
    with executors.local(threads=1, do=pretend) as submit:
        futures = {recipe: submit(job(recipe)) for recipe in ("vanilla", "dies", "pabee")}
        outcomes = {name: Outcome.of(future) for name, future in futures.items()}
    assert [name for name, outcome in outcomes.items() if outcome.status == "failed"] == ["dies"]
    assert "killed the worker" in outcomes["dies"].error
    done = [outcome.error.split(maxsplit=1) for name, outcome in outcomes.items() if name != "dies"]
    assert len({process for process, _ in done}) == 2
    assert {threads for _, threads in done} == {"1 1"}


def alive(process):
    """Whether a process runs (one that has ended and that nobody has asked for does not)."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks for processes in /proc")
def test_workers_end_with_the_sweep_even_where_it_is_killed(tmp_path):
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from benchmarks.glue.sweeping import executors
from pretending import job, pretend, quick_workers
if __name__ == "__main__":
    with executors.local(threads=1, do=pretend) as submit:
        submit(job("hangs", {str(tmp_path / "worker")!r})).result(timeout=600)
"""
    (tmp_path / "sweeps.py").write_text(code)
    parent = subprocess.Popen([sys.executable, tmp_path / "sweeps.py"], env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        until(lambda: (tmp_path / "worker").exists() and (tmp_path / "worker").read_text())
        worker = int((tmp_path / "worker").read_text())
        assert alive(worker)
    finally:
        parent.kill()
        parent.wait()
    until(lambda: not alive(worker))


def until(condition, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.05)


def test_names_are_checked():
    with pytest.raises(ArgumentError, match="local, ray, inline"):
        executors.get("slurm", 1, None, 1.0, 0.0, None)


def test_ray_is_asked_for_the_resources_of_a_run(monkeypatch):
    asked = {}

    class Ray:
        init = staticmethod(lambda **options: asked.update(options))
        shutdown = staticmethod(lambda: asked.update(ended=True))
        remote = staticmethod(lambda **options: asked.update(options) or (lambda function: function))

    monkeypatch.setitem(sys.modules, "ray", Ray)
    with executors.on_ray(2, 4.0, 0.5, None):
        assert not asked.get("ended")
    assert (asked["num_gpus"], asked["max_retries"], asked["ended"]) == (0.5, 0, True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_ray_runs_a_sweep_on_a_local_cluster(backbone, glue_dir, tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'ponder-torch[ray]'")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    suite = Suite("tiny", "", ("RTE", "CoLA"), (RecipeSpec("vanilla"),), {"epochs": 1, "batch_size": 16}, {}, 2)
    (glue_dir / "CoLA" / "train.tsv").rename(tmp_path / "hidden")  # two of the four runs fail
    try:
        with executors.get("ray", 1, None, 1.0, 0.0, None) as submit:
            places = {"glue_dir": glue_dir, "out": tmp_path / "out", "work": tmp_path / "work"}
            summary = sweep(suite.cells(backbone), submit, workers=math.inf, **places)
    finally:
        (tmp_path / "hidden").rename(glue_dir / "CoLA" / "train.tsv")
    assert (summary.done, len(summary.failures)) == (2, 2)
    assert all("train split of CoLA" in outcome.error for outcome in summary.failures)
    results = [Result.of_run(path) for path in (tmp_path / "out").glob("*.json")]
    assert {result["config"]["seed"] for result in results} == {0, 1}
