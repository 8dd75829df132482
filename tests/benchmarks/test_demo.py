"""The demo, on a tiny backbone and a few texts."""

import io
import json

import pytest
from rich.console import Console

from benchmarks import graded
from benchmarks.graded.demo import RECIPES, demo
from ponder.errors import ArgumentError


@pytest.fixture(scope="module")
def shown(backbone, tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    console = Console(file=io.StringIO(), width=160)
    results = demo(folder, backbone=backbone, scale=0.02, console=console)
    return folder, results, console.file.getvalue()


def test_demo_runs_every_recipe_on_every_task(shown):
    folder, results, printed = shown
    assert [(r["task"], r["recipe"]) for r in results] == [(t, r) for t in graded.names() for r in RECIPES]
    for result in results:
        written = json.loads((folder / f"{result['task']}-{result['recipe']}.json").read_text())
        assert written["speed_up"] == result["speed_up"]
        assert result["recipe"] in printed
    assert str(folder / "report.html") in printed.replace("\n", "")


def test_demo_compares_with_vanilla(shown):
    _, results, _ = shown
    for result in results:
        steps = result["num_steps"] / result["splits"]["test"]["mean_exit_step"]
        assert result["speed_up"]["steps"] == pytest.approx(steps)
        if result["recipe"] == "vanilla":
            assert result["speed_up"]["flops"] == 1.0


def test_report_page_names_what_was_measured(shown):
    folder, results, _ = shown
    page = (folder / "report.html").read_text()
    assert all(f"{name}: palbert" in page for name in graded.names())
    assert f"{100 * results[0].data['splits']['test']['exits']['score']:.1f} %" in page


def test_a_folder_that_cannot_be_written_is_refused_first(backbone, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ArgumentError, match="can be written"):
        demo(tmp_path / "file" / "demo", backbone=backbone)
