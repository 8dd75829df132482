"""Kill a process before each of its calls of the system, one after the other: what does it leave on the disk?"""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.ground import house

__all__ = ["check_outcomes", "kills"]

_KILLED = 9


def check_outcomes(code: str, folder: Path, fewest: int) -> None:
    """Check that each kill leaves the old folder, the new one, or one that readers refuse.

    Args:
        code: A program that calls `kills`, and prints 0 for the old folder, 1 for the new one, and
            "refused" for one without an index, which readers refuse in words.
        folder: A scratch folder.
        fewest: There are more kills than this.
    """
    command = [sys.executable, "-c", code, str(folder)]
    made = subprocess.run(command, check=True, capture_output=True, text=True, cwd=house.ROOT)
    found = made.stdout.split()
    assert len(found) > fewest
    assert found[-1] == "1"
    assert {"0", "1"} <= set(found) <= {"0", "1", "refused"}


def kills(
    before: Callable[[Path], object], act: Callable[[Path], object], every: int = 1
) -> Iterator[Path]:
    """Yield the folder that each kill leaves, and last the one of a process that was not killed.

    Run it in an interpreter of its own, `python -c`, with a scratch folder as its argument: it
    forks.

    Args:
        before: Writes the folder as it was before.
        act: Writes it again, in a process that is killed without any clean-up.
        every: Of how many calls one is killed at.
    """
    number = 1 - every
    killed = True
    while killed:
        number += every
        folder = Path(sys.argv[1]) / str(number) / "saved"
        folder.parent.mkdir()
        before(folder)
        (folder / "notes.txt").write_text("of the user")
        child = os.fork()
        if child == 0:
            sys.addaudithook(_killer(number))
            try:
                act(folder)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, _KILLED), "the process failed by itself"
        killed = code == _KILLED
        yield folder


def _killer(number: int) -> Callable[[str, tuple[object, ...]], None]:
    """Return a hook that ends the process before its call of that number."""
    remaining = number

    def count(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal remaining
        if event.startswith(("os.", "open", "shutil.", "ctypes.")):
            remaining -= 1
            if remaining == 0:
                os._exit(_KILLED)

    return count
