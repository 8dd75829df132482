"""Break the library in one place after the other, and see the tests fail: ``python tests/mutants.py``.

A mutant is one string of one file replaced by another. It is killed where a test of its room fails (or hangs), and
survives where all pass: then either a test is missing, or the change means nothing and the mutant is deleted from the
list. A mutant whose string is not in the file exactly once is stale. Not collected by pytest, and not run in CI.

    python tests/mutants.py                     every mutant, two at a time
    python tests/mutants.py --only policies/    those of some files
    python tests/mutants.py --jobs 1 --tests tests/matrices/test_streams.py
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("ponder", "integrations", "tests", "pyproject.toml")


class Mutant(NamedTuple):
    """A change of one place.

    Args:
        file: Path below ``ponder/``.
        old: What stands there, exactly once.
        new: What is put in its place.
        tests: Tests instead of those of the file's room.
    """

    file: str
    old: str
    new: str
    tests: tuple[str, ...] = ()


MATRICES = "tests/matrices/"
ROOMS: dict[str, tuple[str, ...]] = {  # the first that fits a file's path: what is most likely to fail comes first
    "policies/": (MATRICES + "test_policies.py", MATRICES + "test_promises.py", "tests/policies"),
    "distributions.py": (MATRICES + "test_maths.py", MATRICES + "test_policies.py"),
    "priors.py": (MATRICES + "test_maths.py", "tests/priors"),
    "objectives/": (MATRICES + "test_maths.py", "tests/objectives"),
    "recipes/": (MATRICES + "test_maths.py", "tests/recipes"),
    "tasks.py": (MATRICES + "test_maths.py", MATRICES + "test_policies.py", "tests/tasks"),
    "calibration/": (MATRICES + "test_promises.py", "tests/calibration"),
    "inference/": (MATRICES + "test_streams.py", MATRICES + "test_policies.py", "tests/inference"),
    "saving.py": (MATRICES + "test_identity.py", "tests/test_saving.py"),
    "trajectory.py": (MATRICES + "test_identity.py", MATRICES + "test_policies.py", "tests/test_trajectory.py"),
    "_utils/": (MATRICES + "test_policies.py", MATRICES + "test_identity.py", "tests/ground"),
    "model/": (MATRICES + "test_policies.py", MATRICES + "test_identity.py", MATRICES + "test_maths.py", "tests/model"),
    "training.py": ("tests/training",),
    "integrations/": ("tests/integrations",),
    "deploy/": ("tests/deploy",),
    "cascade/": ("tests/cascade",),
    "": ("tests/matrices",),
}

MUTANTS: list[Mutant] = [
    Mutant("policies/halting.py", "return step.cdf > state, state", "return step.cdf >= 1 - state, state"),
    Mutant("distributions.py", "(self.cdf_table[..., :-1] < value", "(self.cdf_table[..., :-1] <= value"),
    Mutant("tasks.py", "weighted(log_teacher.exp(), log_teacher", "weighted(log_student.exp(), log_teacher"),
]


def tests_of(mutant: Mutant, folder: Path) -> list[str]:
    """The tests that look at a mutant, of those that exist."""
    chosen = mutant.tests or next(tests for start, tests in ROOMS.items() if mutant.file.startswith(start))
    return [test for test in chosen if (folder / test.split("::")[0]).exists()]


def copy_tree(to: Path) -> Path:
    """A copy of what is changed and run."""
    leave_out = shutil.ignore_patterns("__pycache__", "*.pyc")
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, to / name, symlinks=True, ignore=leave_out)
        else:
            shutil.copy2(source, to / name)
    return to


def run_tests(tests: Sequence[str], folder: Path, seconds: float) -> tuple[str, str]:
    """Whether the tests pass in a folder, and the last line that pytest wrote."""
    environment = {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(folder)}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--no-header", "--tb=no", *tests]
    try:
        done = subprocess.run(
            command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return "killed", f"no end after {seconds:.0f} s"
    lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    last = (lines or done.stdout.splitlines() or done.stderr.splitlines() or [""])[-1]
    return {0: "survived", 1: "killed", 2: "killed"}.get(done.returncode, "broken"), last[:150]


def judge(mutant: Mutant, folder: Path, tests: Sequence[str], seconds: float) -> tuple[str, str]:
    """Break the copy, run the tests, and mend it."""
    path = folder / "ponder" / mutant.file
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if text.count(mutant.old) != 1:
        return "stale", f"{text.count(mutant.old)} places"
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        return run_tests(tests, folder, seconds)
    finally:
        path.write_text(text, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge the mutants, print one line each and a summary; 1 unless all are killed.

    Tests that fail without a mutant judge none: those of their rooms are counted as untested.
    """
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--only", default="", help="start of the path of the files to break")
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds after which a mutant counts as killed")
    parser.add_argument("--tests", nargs="*", default=[], help="tests instead of those of the rooms")
    given = parser.parse_args(arguments)
    chosen = [mutant for mutant in MUTANTS if mutant.file.startswith(given.only)]
    with tempfile.TemporaryDirectory() as place, ThreadPoolExecutor(given.jobs) as pool:
        copies: SimpleQueue[Path] = SimpleQueue()
        for number in range(given.jobs):
            copies.put(copy_tree(Path(place) / str(number)))

        def in_a_copy(mutant: Mutant | None, tests: Sequence[str]) -> tuple[str, str]:
            folder = copies.get()
            try:
                return (
                    judge(mutant, folder, tests, given.timeout) if mutant else run_tests(tests, folder, given.timeout)
                )
            finally:
                copies.put(folder)

        tests = [tuple(given.tests or tests_of(mutant, ROOT)) for mutant in chosen]
        sound = dict(zip(each := sorted(set(tests)), pool.map(partial(in_a_copy, None), each), strict=True))
        for group, (outcome, line) in sound.items():
            if outcome != "survived":
                print(f"unbroken code fails {' '.join(group)}: {line}")
        judged = [(mutant, group) for mutant, group in zip(chosen, tests, strict=True) if sound[group][0] == "survived"]
        results = ["untested"] * (len(chosen) - len(judged))
        for (mutant, _), result in zip(judged, pool.map(lambda pair: in_a_copy(*pair), judged), strict=True):
            results.append(result[0])
            change = f"{mutant.old.strip()!r} -> {mutant.new.strip()!r}"
            print(f"{result[0]:<9} {mutant.file}: {change}  {result[1]}", flush=True)
    counts = Counter(results)
    print(", ".join(f"{count} {outcome}" for outcome, count in counts.items()), f"of {len(results)}")
    return int(len(results) != counts["killed"])


if __name__ == "__main__":
    sys.exit(main())
