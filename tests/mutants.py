"""Break the library in one place after the other, and see the tests fail: ``python tests/mutants.py``.

A mutant is a line ``old => new`` of `mutants.txt`, below the name of its file: one string, which
stands there once, is replaced by another. It is killed where a test of its room fails or hangs, and
survives where all pass: then a test is missing, or the change means nothing and goes from the list.
Not collected by pytest, and not run in CI.

    python tests/mutants.py                       every mutant
    python tests/mutants.py --only policies/      those of some files
    python tests/mutants.py --survivors           every test of the library for those that survive
        their room
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS: dict[
    str, str
] = {  # the first that a file's path begins with: what is most likely to fail comes first
    "policies/topk": "rerank/test_topk.py policies/test_policy_contract.py matrices/test_policies.py",
    "policies/stages": "cascade/test_cascade.py",
    "policies/": "policies/test_scores.py policies/test_policy_contract.py matrices/test_policies.py",
    "distributions.py": "ground/test_distributions.py matrices/test_maths.py",
    "priors.py": "objectives/test_priors.py matrices/test_maths.py",
    "objectives/": "objectives matrices/test_maths.py",
    "recipes/": "recipes matrices/test_maths.py",
    "tasks.py": "ground/test_tasks.py matrices/test_maths.py ground/test_trajectory.py",
    "statistics/bounds": "statistics/test_bounds.py matrices/test_promises.py",
    "calibration/control": "calibration/test_control.py matrices/test_promises.py",
    "calibration/risks": "rerank/test_topk.py calibration/test_control.py",
    "statistics/ledger": "statistics/test_ledger.py",
    "calibration/cost": "calibration/test_cost.py",
    "calibration/cascades": "cascade/test_cascade.py calibration",
    "statistics/repeats": "statistics/test_repeats.py deploy/test_used.py",
    "calibration/diagnosing": "calibration/test_diagnose.py",
    "calibration/": "ground/test_trajectory.py calibration matrices/test_promises.py",
    "inference/": "inference matrices/test_streams.py",
    "model/capture": "model/test_capture.py model/test_capture_random.py model/test_capture_families.py",
    "model/proving": "model/test_capture.py model/test_capture_random.py model/test_capture_families.py",
    "model/readings": "model/test_capture.py model/test_capture_random.py model/test_capture_families.py",
    "model/twins": "model/test_capture.py model/test_capture_random.py model/test_capture_families.py",
    "model/": "model/test_loop.py model/test_parts.py model/test_padding.py model/test_unroll.py model/test_wrapper.py "
    "model/test_from_recipe.py matrices/test_policies.py",
    "saving.py": "ground/test_saving.py",
    "running/chunk": "running/test_chunk.py inference",
    "running/": "running policies matrices/test_policies.py",
    "_utils/files": "ground/test_utils.py ground/test_folders.py ground/test_saving.py",
    "_utils/rows": "ground/test_utils.py statistics/test_repeats.py",
    "_utils/seals": "integrations/transformers/test_promises.py cascade/test_cascade_files.py",
    "_utils/": "ground/test_utils.py",
    "fitting/": "training/test_stages.py training/test_fit.py model/test_parts.py",
    "deploy/auditing": "deploy/test_server.py",
    "statistics/used": "statistics/test_used.py",
    "deploy/server": "deploy/test_server.py",
    "deploy/ranking": "rerank/test_rerank.py rerank/test_topk.py",
    "deploy/": "deploy/test_export.py rerank/test_rerank.py",
    "cascade/live": "cascade/test_live_order.py cascade/test_live.py",
    "cascade/": "cascade",
    "integrations/transformers/": "integrations/transformers/test_finetuned.py integrations/transformers/test_files.py "
    "integrations/transformers/test_pipelines.py integrations/transformers/test_models.py",
    "integrations/": "integrations",
}


class Mutant(NamedTuple):
    """A change of one place.

    Args:
        file: Path below ``ponder/``.
        old: What stands there, exactly once; a break of lines is as good as a space.
        new: What is put in its place.
    """

    file: str
    old: str
    new: str

    @property
    def pattern(self) -> re.Pattern[str]:
        """What matches `old` however the formatter breaks its lines."""
        pieces = (re.escape(piece) for piece in self.old.split())
        return re.compile(re.sub(r"(\\[(\[{])", r"\1\\s*", r"\s+".join(pieces)))

    @property
    def tests(self) -> tuple[str, ...]:
        """The tests of its room."""
        return tuple(
            next(tests for start, tests in ROOMS.items() if self.file.startswith(start)).split()
        )


def mutants() -> Iterator[Mutant]:
    """Read the list."""
    file = ""
    for line in (ROOT / "tests" / "mutants.txt").read_text(encoding="utf-8").splitlines():
        old, arrow, new = line.partition(" =>")
        if arrow:
            yield Mutant(file, old, new.removeprefix(" "))
        elif line:
            file = line


def outcome(tests: Sequence[str], folder: Path, seconds: float) -> tuple[str, str]:
    """Run tests in a child that has PyTorch loaded, and return whether they fail, and the last line of pytest."""
    said = folder / "said.txt"
    child = os.fork()
    if not child:
        os.setsid()
        os.chdir(folder)
        sys.path[:0] = [str(folder)]
        os.environ.update(PYTHONPATH=str(folder), PYTHONDONTWRITEBYTECODE="1")
        code = 3
        try:
            with (
                said.open("w") as file,
                contextlib.redirect_stdout(file),
                contextlib.redirect_stderr(file),
            ):
                options = [
                    "-x",
                    "-q",
                    "-p",
                    "no:cacheprovider",
                    "--no-header",
                    "--tb=no",
                    "-m",
                    "not slow",
                ]
                options += [
                    "-W",
                    "ignore::pytest.PytestAssertRewriteWarning",
                ]  # of plugins that are loaded here
                code = int(pytest.main([*options, *(f"tests/{test}" for test in tests)]))
        finally:
            os._exit(code)
    began = time.monotonic()
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() - began > seconds:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "killed", f"no end after {seconds:.0f} s"
        time.sleep(0.1)
    lines = said.read_text().splitlines() or [""]
    last = next((line for line in lines if line.startswith(("FAILED", "ERROR"))), lines[-1])
    return {0: "survived", 1: "killed", 2: "killed"}.get(
        os.waitstatus_to_exitcode(ended[1]), "broken"
    ), last[:150]


def judge(mutant: Mutant, folder: Path, tests: Sequence[str], seconds: float) -> tuple[str, str]:
    """Break the copy, run the tests, and mend it."""
    path = folder / "ponder" / mutant.file
    text = path.read_text(encoding="utf-8")
    places = mutant.pattern.findall(text)
    if len(places) != 1:
        return "stale", f"{len(places)} places"
    path.write_text(mutant.pattern.sub(lambda _: mutant.new, text), encoding="utf-8")
    try:
        return outcome(tests, folder, seconds)
    finally:
        path.write_text(text, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge the mutants, print one line each and a summary; 1 unless all are killed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "--only", nargs="*", default=[""], help="starts of the paths of the files to break"
    )
    parser.add_argument(
        "--timeout", type=float, default=600.0, help="seconds after which a mutant counts as killed"
    )
    parser.add_argument(
        "--survivors", action="store_true", help="run every test for those that survive their room"
    )
    given = parser.parse_args(arguments)
    for module in ("torch", "numpy", "scipy.stats", "safetensors.torch", "transformers"):
        import_module(module)  # once, and not in every child
    results = Counter[str]()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name in ("ponder", "integrations", "tests"):
            shutil.copytree(
                ROOT / name,
                folder / name,
                symlinks=True,
                ignore=shutil.ignore_patterns("__pycache__"),
            )
        shutil.copy2(ROOT / "pyproject.toml", folder)
        survived = set[
            tuple[str, ...]
        ]()  # tests that passed once, so that they fail for a mutant's sake alone
        chosen = [mutant for mutant in mutants() if mutant.file.startswith(tuple(given.only))]
        for mutant in chosen:
            found, line = judge(mutant, folder, mutant.tests, given.timeout)
            survived |= {mutant.tests} if found == "survived" else set()
            if found == "survived" and given.survivors:
                found, line = judge(mutant, folder, [""], 4 * given.timeout)
            results[found] += 1
            print(f"{found:<9} {mutant.file}: {mutant.old!r} -> {mutant.new!r}  {line}", flush=True)
        for tests in dict.fromkeys(mutant.tests for mutant in chosen):
            found, line = (
                ("survived", "") if tests in survived else outcome(tests, folder, 3 * given.timeout)
            )
            if found != "survived":
                print(f"unbroken code fails {' '.join(tests)}: {line}")
    print(", ".join(f"{count} {name}" for name, count in results.items()), f"of {results.total()}")
    return int(results.total() != results["killed"])


if __name__ == "__main__":
    sys.exit(main())
