"""The samples of the pages: commands that exist, with the options and the rows of today."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup

from benchmarks.samples.recording import SAMPLES
from docs.extensions.tables import RESULTS, ROOT
from ponder.cli.app import app

RECORDED = json.loads((RESULTS / "samples.json").read_text("utf-8"))["commands"]
OF_PONDER = [name for name, sample in RECORDED.items() if sample["command"].startswith("ponder ")]
ROW = re.compile(r"^([a-z][a-z0-9 -]*?[a-z0-9])  +\S", re.M)


def constants(folder: Path) -> set[str]:
    """Return the texts that stand in the code of a folder, also inside of others."""
    found = set[str]()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
    return found


@pytest.mark.parametrize("name", OF_PONDER)
def test_a_sample_is_of_todays_command(name: str) -> None:
    command = RECORDED[name]["command"]
    assert command == SAMPLES[name].format(port="8000")
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    _, called, _ = group.resolve_command(typer.Context(group), command.split()[1:])
    assert called is not None
    known = {option for parameter in called.params for option in parameter.opts}
    assert set(re.findall(r"--[\w-]+", command)) <= known


@pytest.mark.parametrize("name", OF_PONDER)
def test_a_sample_has_rows_of_today_and_fits_the_screen(name: str) -> None:
    output = RECORDED[name]["output"]
    assert output
    assert max(map(len, output.splitlines())) <= 80
    rows = set(ROW.findall(output))
    if not name.startswith("advise"):
        assert rows <= constants(ROOT / "ponder" / "cli")
