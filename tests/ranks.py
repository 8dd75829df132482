"""Two processes that train one model: a program runs twice, and both have to end well."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path

from tests.forking import run_forked

__all__ = ["as_torchrun", "run_ranks"]


def run_ranks(program: str | Path, *arguments: str | Path, own: tuple[Mapping[str, str], Mapping[str, str]]) -> None:
    """Run a program as rank 0 and as rank 1, and wait for both; what the one that fails wrote is shown.

    Args:
        program: The file.
        arguments: What both are told.
        own: What each finds in its environment besides.
    """
    ended = run_forked([program, *arguments], [program, *arguments], own=own, timeout=300)
    assert [rank.returncode for rank in ended] == [0, 0], "\n".join(rank.stderr[-3000:] for rank in ended)


def as_torchrun() -> tuple[dict[str, str], dict[str, str]]:
    """What `torchrun --standalone --nproc-per-node=2` tells its two processes, which meet at a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    shared |= {"GROUP_RANK": "0", "GROUP_WORLD_SIZE": "1", "ROLE_NAME": "default", "ROLE_WORLD_SIZE": "2"}
    shared |= {"TORCHELASTIC_RESTART_COUNT": "0", "TORCHELASTIC_MAX_RESTARTS": "0", "TORCHELASTIC_RUN_ID": "tests"}
    first, second = ({**shared, "RANK": rank, "LOCAL_RANK": rank, "ROLE_RANK": rank} for rank in "01")
    return first, second
