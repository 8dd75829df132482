"""Texts that were used: what a check leaves out, and which files it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ponder.deploy.used import Used
from ponder.errors import ArgumentError

LOG = ["hello", *(f"used {n}" for n in range(100)), "hello", "hello"]
FRESH = [f"fresh {n}" for n in range(50)]


@pytest.mark.parametrize(
    ("texts", "counted"),
    [
        (FRESH, 50),
        ([*FRESH, *FRESH], 100),  # rows, not distinct texts
        ([*FRESH, "used 1", "used 2"], 50),  # used once: the same row again
        ([*FRESH, "hello", "hello"], 52),  # what recurs among the used rows recurs in traffic
        (["hello"] * 10, 10),
    ],
)
def test_rows_that_judge(texts: list[str], counted: int) -> None:
    assert Used.of(LOG).fresh(texts).sum() == counted


@pytest.mark.parametrize("texts", [LOG, LOG[:40], [*LOG, *FRESH]])
def test_a_file_of_used_rows_is_refused(texts: list[str]) -> None:
    with pytest.raises(ArgumentError, match="that taught, chose or certified"):
        Used.of(LOG).fresh(texts)


def test_digests_are_kept_and_joined(tmp_path: Path) -> None:
    used = Used.of(LOG, taught=LOG[1:11])
    used.write(tmp_path)
    again = Used.read(tmp_path)
    for name, digests in vars(used).items():
        assert np.array_equal(getattr(again, name), digests)
    assert again.have_taught(LOG).sum() == 10
    assert len(Used.read(tmp_path / "none")) == 0
    # The same file for two commands is one use, and does not make its rows recur.
    both = used | Used.of(LOG)
    assert (len(both), len(both.repeated)) == (101, 1)
    assert not both.fresh([*FRESH, "used 1"])[-1]
