"""A folder that is replaced is the old one or the new one, or one that readers refuse, at every moment."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ponder._utils import files
from ponder._utils.files import replaced_folder
from tests.kills import check_outcomes

__all__ = ["files", "read", "write"]

INDEX = "export.json"
OWNED = (INDEX, "part_*")


def write(folder: Path, words: str) -> None:
    with replaced_folder(folder, OWNED) as new:
        for name in ("part_1", "part_2"):
            (new / name).mkdir()
            (new / name / "file").write_text(words)
        (new / INDEX).write_text(words)


def read(folder: Path) -> str | None:
    """Return the words of a folder, which are the same in all its files; None if readers refuse it."""
    if not (folder / INDEX).is_file():
        return None
    texts = {path.read_text() for path in [*folder.glob("part_*/file"), folder / INDEX]}
    assert len(texts) == 1
    assert len(list(folder.glob("part_*"))) == 2
    return texts.pop()


def test_a_kill_at_any_point_leaves_the_old_folder_or_the_new_one(tmp_path: Path) -> None:
    code = """
from tests.ground.test_folders import files, read, write
from tests.kills import kills
listed = files.Path.iterdir  # file systems list in any order: here parts before the index
files.Path.iterdir = lambda folder: iter(sorted(listed(folder), reverse=True))
for folder in kills(lambda folder: write(folder, "old"), lambda folder: write(folder, "new")):
    assert (folder / "notes.txt").read_text() == "of the user"
    print({"old": 0, "new": 1, None: "refused"}[read(folder)])
"""
    check_outcomes(code, tmp_path, fewest=20)


def test_an_error_leaves_the_old_folder_and_nothing_beside_it(tmp_path: Path) -> None:
    write(tmp_path / "saved", "old")

    def interrupted() -> None:
        with replaced_folder(tmp_path / "saved", OWNED) as new:
            (new / INDEX).write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert read(tmp_path / "saved") == "old"
    assert os.listdir(tmp_path) == ["saved"]
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        write(tmp_path / "file", "new")
    assert sorted(os.listdir(tmp_path)) == ["file", "saved"]


def test_what_an_older_write_left_goes_and_what_is_the_users_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flush = files._flush

    def another_process_writes(new: Path) -> None:
        flush(new)
        (folder / "late").write_text("of another process")

    for folder in (tmp_path, tmp_path / "saved"):
        write(folder, "old")
        (folder / "part_3").touch()
        (folder / "own").mkdir()
        (folder / "own" / "notes").write_text("of the user")
        with monkeypatch.context() as patched:
            patched.setattr(files, "_flush", another_process_writes)
            write(folder, "new")
        assert read(folder) == "new"
        assert (folder / "own" / "notes").read_text() == "of the user"
        assert (folder / "late").read_text() == "of another process"
        assert not list(folder.glob(".*"))
    assert Path.cwd().samefile(tmp_path)
