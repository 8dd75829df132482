"""Every notebook runs from top to bottom, is linked, and is kept without outputs."""

from __future__ import annotations

import json
import linecache
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
from transformers.utils import logging

DOCS = Path(__file__).resolve().parents[2] / "docs"
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))


@pytest.fixture
def _left_as_found() -> Iterator[None]:
    verbosity = logging.get_verbosity()
    yield
    plt.close("all")
    logging.set_verbosity(verbosity)
    logging.enable_progress_bar()


@pytest.mark.usefixtures("_left_as_found")
@pytest.mark.filterwarnings(
    "ignore:FigureCanvasAgg is non-interactive"
)  # a notebook shows its figures
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(notebook: Path, namespace: dict[str, Any]) -> None:
    # In this process and as plain Python: a kernel of its own would read the same libraries anew
    # for each.
    for number, cell in enumerate(json.loads(notebook.read_text())["cells"], start=1):
        if cell["cell_type"] == "code":
            source = "".join(cell["source"])
            filename = f"<{notebook.name}, cell {number}>"
            linecache.cache[filename] = (
                len(source),
                None,
                source.splitlines(keepends=True),
                filename,
            )
            exec(compile(source, filename, "exec"), namespace)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_linked_and_holds_no_outputs(notebook: Path) -> None:
    assert f"(notebooks/{notebook.name})" in (DOCS / "index.md").read_text()
    for cell in json.loads(notebook.read_text())["cells"]:
        assert not cell.get("outputs"), "clear the outputs before you commit"
        assert cell.get("execution_count") is None
