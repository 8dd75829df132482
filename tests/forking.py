"""Programs of tests that start at once: forked from a process that has imported what takes seconds, and done nothing.

Tests themselves cannot fork programs that train: autograd has threads by then. So the process here is one of its own,
which every pytest worker that needs it starts once; it ends with the worker.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["Ended", "run_forked"]

ROOT = Path(__file__).resolve().parents[1]
IMPORTED = (
    "benchmarks.glue.run",
    "benchmarks.glue.sweeping.sweep",
    "ponder.integrations.transformers",
    "transformers.models.albert.modeling_albert",
    "transformers.models.bert.modeling_bert",
)
QUIET = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "GLOO_SOCKET_IFNAME": "lo"}
"""What libraries read when they are imported, and so is the same for all programs."""


@dataclass(frozen=True)
class Ended:
    """How a program ended."""

    returncode: int
    stdout: str
    stderr: str


def run_forked(*programs: Sequence[str | Path], own: Sequence[Mapping[str, str]] = (), timeout: int = 540) -> Any:
    """Run programs at the same time, each a file of Python and its arguments; once one fails, the others are killed.

    Args:
        programs: The programs.
        own: What each finds in its environment besides.
        timeout: After so many seconds all are killed.

    Returns:
        The `Ended` of each.
    """
    server = _server()
    with tempfile.TemporaryDirectory() as folder:
        jobs = [
            {
                "program": [str(word) for word in program],
                "environment": {**os.environ, **QUIET, "PYTHONPATH": str(ROOT), **(own[place] if own else {})},
                "stdout": f"{folder}/out-{place}",
                "stderr": f"{folder}/err-{place}",
            }
            for place, program in enumerate(programs)
        ]
        assert server.stdin is not None
        assert server.stdout is not None
        late = threading.Timer(timeout, _end, [server])
        late.start()
        try:
            server.stdin.write(json.dumps(jobs) + "\n")
            server.stdin.flush()
            answer = server.stdout.readline()
        finally:
            late.cancel()
        if not answer:
            _server.cache_clear()
        assert answer, f"programs took more than {timeout} s, or the process that forks them died"
        return [
            Ended(code, Path(job["stdout"]).read_text(), Path(job["stderr"]).read_text())
            for code, job in zip(json.loads(answer), jobs, strict=True)
        ]


@cache
def _server() -> subprocess.Popen[str]:
    server = subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, **QUIET, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    atexit.register(_end, server)
    return server


def _end(server: subprocess.Popen[str]) -> None:
    """Kill the process and all that it has started."""
    if server.poll() is None:
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()
    for line in (server.stdin, server.stdout):
        if line is not None:
            line.close()


# ---- The process -----------------------------------------------------------------------------------------------------


def serve() -> None:
    """Fork what is asked for, line by line, and answer with how it ended."""
    answers = os.dup(1)
    os.dup2(2, 1)
    for name in IMPORTED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        codes = _all_of(json.loads(line), [answers])
        os.write(answers, (json.dumps(codes) + "\n").encode())


def _all_of(jobs: list[dict[str, Any]], lines: list[int]) -> list[int]:
    running = {_forked(job, lines): place for place, job in enumerate(jobs)}
    codes, failed = [0] * len(jobs), False
    while running:
        pid, status = os.wait()
        if pid not in running:
            continue
        codes[running.pop(pid)] = os.waitstatus_to_exitcode(status)
        if status and not failed:
            failed = True
            for other in running:
                os.kill(other, signal.SIGKILL)
    return codes


def _forked(job: dict[str, Any], lines: list[int]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        for line in lines:
            os.close(line)
        for number, place in ((0, os.devnull), (1, job["stdout"]), (2, job["stderr"])):
            os.dup2(os.open(place, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT, 0o600), number)
        os.environ.clear()
        os.environ.update(job["environment"])
        sys.argv[:] = job["program"]
        code = _run(sys.argv[0])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _run(program: str) -> int:
    """Run a file as Python does: as `__main__`, with its folder first on the path."""
    import types

    sys.path[0] = str(Path(program).parent)
    module = types.ModuleType("__main__")
    module.__file__ = program
    sys.modules["__main__"] = module
    try:
        exec(compile(Path(program).read_bytes(), program, "exec"), vars(module))
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return 0


if __name__ == "__main__":
    serve()
