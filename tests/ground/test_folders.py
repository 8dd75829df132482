"""A folder that is replaced is the old one or the new one, at every moment and on every file system."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ponder._utils import files
from ponder._utils.files import digest_of_files, replaced_folder
from tests.ground import house

__all__ = ["files", "read", "write"]

OWNED = ("index.json", "part_*")


def write(folder: Path, words: str) -> None:
    with replaced_folder(folder, ["index.json"], OWNED) as new:
        for name in ("part_1", "part_2"):
            (new / name).mkdir()
            (new / name / "file").write_text(words)
        (new / "index.json").write_text(words)


def read(folder: Path) -> str | None:
    """Return the words of a folder, which are the same in all its files; None if readers refuse it."""
    if not (folder / "index.json").is_file():
        return None
    texts = {path.read_text() for path in [*folder.glob("part_*/file"), folder / "index.json"]}
    assert len(texts) == 1
    assert len(list(folder.glob("part_*"))) == 2
    return texts.pop()


@pytest.mark.parametrize("way", ["exchange", "renames", "entries"])
def test_a_kill_at_any_point_leaves_the_old_folder_or_the_new_one(way: str, tmp_path: Path) -> None:
    code = f"""
from tests.ground.test_folders import files, read, write
from tests.kills import kills
if "{way}" != "exchange":
    files._exchanged = lambda *_: False
if "{way}" == "entries":
    files._take_place = lambda *_: False
    listed = files.Path.iterdir  # file systems list in any order: here parts before the index
    files.Path.iterdir = lambda folder: iter(sorted(listed(folder), reverse=True))
for folder in kills(lambda folder: write(folder, "old"), lambda folder: write(folder, "new")):
    assert read(folder) is None or (folder / "notes.txt").read_text() == "of the user"
    print(read(folder))
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    made = subprocess.run(command, check=True, capture_output=True, text=True, cwd=house.ROOT)
    found = made.stdout.split()
    assert len(found) > 20
    assert found[-1] == "new"
    assert {"old", "new"} <= set(found)
    assert ("None" in found) == (way != "exchange")


def test_an_error_leaves_the_old_folder_and_nothing_beside_it(tmp_path: Path) -> None:
    write(tmp_path / "saved", "old")

    def interrupted() -> None:
        with replaced_folder(tmp_path / "saved", ["index.json"], OWNED) as new:
            (new / "index.json").write_text("new")
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
    monkeypatch.chdir(tmp_path)  # which cannot be exchanged
    flush = files._flush

    def another_process_writes(new: Path) -> None:
        flush(new)
        (folder / "late").write_text("of another process")

    for folder in (tmp_path, tmp_path / "saved"):
        write(folder, "old")
        (folder / "part_3").touch()
        (folder / "own").mkdir()
        (folder / "own" / "notes").write_text("of the user")
        before = digest_of_files(folder)
        with monkeypatch.context() as patched:
            patched.setattr(files, "_flush", another_process_writes)
            write(folder, "new")
        assert digest_of_files(folder) != before
        assert read(folder) == "new"
        assert (folder / "own" / "notes").read_text() == "of the user"
        assert (folder / "late").read_text() == "of another process"
        assert not list(folder.glob(".*"))
    assert Path.cwd().samefile(tmp_path)


def test_the_digest_is_of_names_and_contents(tmp_path: Path) -> None:
    one = tmp_path / "one"
    other = tmp_path / "other"
    for folder in (one, other):
        write(folder, "same")
    assert digest_of_files(one) == digest_of_files(other)
    (other / "part_1" / "file").rename(other / "part_1" / "name")
    assert digest_of_files(one) != digest_of_files(other)
