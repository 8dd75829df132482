"""The page on the architecture is true to the tree: rooms, the loop, the drawing of a batch, the files to read."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from ponder import policies
from ponder.running import loop
from ponder.running.loop import exits_of, gather
from tests.ground.test_architecture import LAYERS

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text()
DRAWINGS = re.findall(r"```text\n(.*?)```", PAGE, re.S)
TO_READ = re.findall(r"^\d+\. \*\*`([^`]+)`\*\*(.*?)(?=^\d+\. |^## |\Z)", PAGE, re.S | re.M)


def rooms_of_tree() -> set[str]:
    """Return the folders and files of `ponder/`."""
    paths = (ROOT / "ponder").iterdir()
    names = {path.stem for path in paths if path.is_dir() or path.suffix == ".py"}
    return {name for name in names if not name.startswith("__")}


def layers_of_page() -> list[set[str]]:
    """Return the names at the beginning of each line of the first drawing."""
    return [set(re.split(r"\s{3,}", line)[0].split()) for line in DRAWINGS[0].splitlines()]


def test_rooms_and_layers_are_those_of_the_tree_in_the_order_of_their_imports() -> None:
    layers = [{room.removeprefix("ponder.") for room in layer} for layer in LAYERS]
    assert layers_of_page() == layers
    rooms = set.union(*layers)
    assert rooms == rooms_of_tree()
    counts = re.search(r"(\d+) rooms in (\d+) layers", PAGE)
    assert counts is not None
    assert [int(count) for count in counts.groups()] == [len(rooms), len(layers)]


def test_the_loop_is_written_as_in_its_file() -> None:
    written = [line.strip() for line in (loop.__doc__ or "").splitlines()]
    lines = [line.strip() for line in DRAWINGS[2].splitlines()]
    start = written.index(lines[0])
    assert written[start : start + len(lines)] == lines


class Drawn:
    """Rows that are letters: a source, which notes the rows that it holds at each step."""

    mask = None

    def __init__(self, rows: str) -> None:
        self.rows = np.array(list(rows))
        self.held: list[str] = []

    def advance(self, step: int) -> None:
        self.held.append(" ".join(self.rows))

    def output(self) -> np.ndarray:
        return self.rows

    def output_of(self, index: np.ndarray) -> np.ndarray:
        return self.rows[index]

    def keep(self, index: np.ndarray) -> None:
        self.rows = self.rows[index]


EXITS = {"a": 3, "b": 1, "c": 4, "d": 3}


class Leaving(policies.ExitPolicy):
    """Let the rows of the drawing exit at its steps."""

    needs = frozenset({"output"})

    def decide(self, step: policies.StepView, state: object) -> tuple[np.ndarray, object]:
        steps = np.array([EXITS[row] for row in step.output])
        return steps <= step.index, state


def test_the_drawing_of_a_batch_is_what_the_loop_does() -> None:
    *lines, gathered = DRAWINGS[3].splitlines()[1:]
    cells = [re.split(r"\s{2,}", line) for line in lines]
    source = Drawn("abcd")
    batch = policies.PolicyBatch(np.arange(4), 4)
    exits = exits_of(source, Leaving(), batch)
    assert source.held == [held for _, held, *_ in cells]
    drawn = [leaving for *_, leaving, _ in cells if leaving != "–"]
    assert [f"({one.step}, [{' '.join(one.outputs)}], out)" for one in exits] == drawn
    answers = gather(exits, batch)
    order = " ".join(answers.outputs)
    steps = answers.exit_step.tolist()
    assert gathered.endswith(f"in the order {order}, exit_step = {steps}")
    assert f"{sum(steps)} row-steps were computed in place of {4 * 4}" in PAGE


@pytest.mark.parametrize(("path", "paragraph"), TO_READ, ids=lambda text: text[:40].strip())
def test_a_file_to_read_has_the_names_of_its_paragraph(path: str, paragraph: str) -> None:
    code = (ROOT / path).read_text()
    names = re.findall(r"`(?:\w+\.)?(_?[A-Za-z]\w+)`", paragraph)
    assert len(names) >= 2
    assert not [name for name in names if not re.search(rf"\b{name}\b", code)]


def test_ten_files_are_to_be_read() -> None:
    assert len(TO_READ) == 10
