"""Two processes that train one model: a program is started twice, and both have to end well."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

__all__ = ["run_ranks"]

ROOT = Path(__file__).parents[1]


def run_ranks(program: str | Path, *arguments: Path, own: tuple[Mapping[str, str], Mapping[str, str]]) -> None:
    """Run a program as rank 0 and as rank 1, and wait for both; what the one that fails wrote is shown.

    Args:
        program: The file.
        arguments: What both are told.
        own: What each finds in its environment besides.
    """
    shared = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(program), *map(str, arguments)],
            env={**shared, **of_rank},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for of_rank in own
    ]
    try:
        errors = [rank.communicate(timeout=300)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    for rank, error in zip(ranks, errors, strict=True):
        assert rank.returncode == 0, error[-3000:]
