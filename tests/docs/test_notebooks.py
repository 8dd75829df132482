"""Runs every notebook from top to bottom, and holds each to what lies in the repository: listed, without outputs."""

from __future__ import annotations

import json
import linecache
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from transformers.utils import logging

DOCS = Path(__file__).resolve().parents[2] / "docs"
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))


@pytest.fixture
def _left_as_found() -> Iterator[None]:
    """Figures are closed and Transformers tells what it told before, however a notebook has set it."""
    verbosity = logging.get_verbosity()
    yield
    plt.close("all")
    logging.set_verbosity(verbosity)
    logging.enable_progress_bar()


@pytest.mark.usefixtures("_left_as_found", "registries")
@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive")  # a notebook shows its figures
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # In this process and as plain Python: a kernel of its own would read the same libraries anew for each.
    monkeypatch.chdir(tmp_path)
    main = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)  # where pickle and dataclasses look for the classes of a cell
    for number, cell in enumerate(json.loads(notebook.read_text())["cells"], start=1):
        if cell["cell_type"] == "code":
            source, filename = "".join(cell["source"]), f"<{notebook.name}, cell {number}>"
            linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
            exec(compile(source, filename, "exec"), vars(main))


def test_notebooks_are_listed_and_hold_no_outputs() -> None:
    listed = set(re.findall(r"\(notebooks/([\w-]+\.ipynb)\)", (DOCS / "notebooks.md").read_text()))
    assert listed == {path.name for path in NOTEBOOKS}
    for path in NOTEBOOKS:
        notebook = json.loads(path.read_text())
        assert notebook["nbformat"] == 4, path.name
        for cell in notebook["cells"]:
            assert not cell.get("outputs"), f"{path.name}: clear the outputs before you commit"
            assert cell.get("execution_count") is None, path.name
