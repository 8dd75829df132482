"""The demo, on a tiny backbone and a few texts."""

import contextlib
import io
import json

import pytest
from rich.console import Console
from rich.text import Text

from benchmarks import graded
from benchmarks.glue.report.groups import policy_text
from benchmarks.graded import base
from benchmarks.graded.demo import RECIPES, demo, run_table
from ponder.errors import ArgumentError, DataError


@pytest.fixture(scope="module")
def shown(shallow, tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    console, errors = Console(file=io.StringIO(), width=160), io.StringIO()
    with contextlib.redirect_stderr(errors):
        results = demo(folder, backbone=shallow, scale=0.02, console=console)
    assert errors.getvalue() == "", "bars in a pipe"
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


def test_a_task_that_cannot_be_loaded_is_refused_before_another_is_trained(backbone, tmp_path, monkeypatch):
    base.names()  # reads the folder of the benchmark's own
    monkeypatch.setattr(base, "_TASKS", dict(base._TASKS))
    graded.register(
        graded.GradedTask("poor", ("a", "b"), "d", (0, 1), lambda rng, d: graded.Example("one", None, rng.randrange(2)))
    )
    monkeypatch.setattr("benchmarks.graded.demo.train", lambda *given, **named: pytest.fail("trained, then refused"))
    with pytest.raises(DataError, match=r"'poor'.*its grammar made"):
        demo(tmp_path, backbone=backbone, scale=0.02)


def test_the_table_is_whole_on_eighty_columns_and_in_a_pipe(shown):
    # Trap: columns that share a narrow terminal cut the names of policies into four letters a line.
    _, results, _ = shown
    policies = {policy_text(result["policy"]) for result in results}
    assert any(policy.startswith("quantile(q=") for policy in policies)
    for terminal in (True, False):
        console = Console(file=io.StringIO(), width=80, force_terminal=terminal, no_color=True)
        console.print(run_table(results))
        lines = console.file.getvalue().splitlines()
        assert max(len(Text.from_ansi(line).plain.rstrip()) for line in lines) <= 80
        words = {word for policy in policies for word in policy.split()}  # a line may break between words, not in them
        for word in (*words, *RECIPES, *graded.names()):
            assert any(word in Text.from_ansi(line).plain for line in lines), word
