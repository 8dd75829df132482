"""A save is whole or has not happened, whatever happens to the process, the disk, or the others that save there.

`PONDER_KILLS=100 python -m pytest tests/test_killed_saves.py` kills each saver as often.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.forking import run_forked

KILLS = int(os.environ.get("PONDER_KILLS", "10"))
ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("saver", ["wrapper", "transformers"])
def test_a_killed_saver_leaves_the_old_save_or_the_new_one(saver: str, tmp_path: Path) -> None:
    # Trap: of two files that are replaced one after the other, the first is new and the second old.
    program = [ROOT / "tests" / "killed_saves.py", saver, tmp_path / "saved", str(KILLS), "0"]
    (ran,) = run_forked(program)
    assert ran.returncode == 0, ran.stderr[-3000:]
    told = json.loads(ran.stdout.splitlines()[-1])
    assert told["deaths"]["killed"] == KILLS
    assert told["deaths"]["old"] > 0, told
    print(told)
