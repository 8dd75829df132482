"""Command lines with absurd arguments, and on disks that are full: one clear message, and never a traceback."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from benchmarks import command_line

HUGE = str(10**30)
CASES = [
    ("glue", ["run", "--task", "rte", "--seed", HUGE]),
    ("glue", ["run", "--task", "rte", "--seed", "-1"]),
    ("glue", ["run", "--task", "rte", "--lr", "nan"]),
    ("glue", ["run", "--task", "rte", "--epochs", "0"]),
    ("glue", ["run", "--task", "rte", "--budget", "nan"]),
    ("glue", ["run", "--task", "rte", "--out", "{file}/below"]),
    ("glue", ["demo", "--scale", "nan"]),
    ("finetuned", ["demo", "--scale", "nan"]),
    ("finetuned", ["demo", "--out", "{file}/below"]),
    ("finetuned", ["run", "--task", "sst-2", "--kept", "{file}/typo"]),
    ("finetuned", ["run", "--task", "sst-2", "--seed", HUGE]),
    ("finetuned", ["run", "--task", "sst-2", "--lr", "nan"]),
    ("finetuned", ["run", "--task", "sst-2", "--disagreement", "nan"]),
    ("finetuned", ["run", "--task", "sst-2", "--out", "{file}/below"]),
    ("gallery", ["--out", "{file}/below"]),
    ("gallery", ["--only", "nothing"]),
    ("glue", ["report", "--results", "{committed}", "--only", "figure-2"]),
    ("puzzles", ["run", "prefix-sums", "--seed", HUGE]),
    ("parity", ["--seed", HUGE]),
    ("parity", ["--seed", "-1"]),
    ("parity", ["--beta", "nan"]),
    ("parity", ["--beta", "inf"]),
    ("parity", ["--tau", "nan"]),
    ("parity", ["--minutes", "nan"]),
    ("parity", ["--minutes", "inf"]),
    ("parity", ["--steps", "0"]),
    ("parity", ["--out", "{file}/below"]),
    ("parity", ["--report", "--out", "{file}"]),
    ("risk", ["--seed", HUGE]),
    ("risk", ["--seed", "-1"]),
    ("risk", ["--trials", "0"]),
    ("risk", ["--trials", HUGE]),
    ("risk", ["--rows", "0"]),
    ("risk", ["--rows", "10000000000000"]),
    ("risk", ["--confidence", "nan"]),
    ("risk", ["--confidence", "2"]),
    ("risk", ["--trajectory", "{file}"]),
    ("risk", ["--out", "{file}/below"]),
    ("speed", ["--sections", "0"]),
    ("speed", ["--sections", "nan"]),
    ("speed", ["--threads", HUGE]),
    ("speed", ["--pairs", HUGE]),
    ("speed", ["--device", "abacus"]),
    ("speed", ["--device", "cuda:77"]),
    ("speed", ["--out", "{file}/below"]),
    ("speed", ["--glue-dir", "{file}/typo"]),
    ("speed", ["--page", "{file}/below"]),
    ("text", ["run", "wnut17", "--text-dir", "{file}/typo"]),
    ("serving", ["load", "--tokens", "0"]),
    ("serving", ["load", "--texts", HUGE]),
    ("serving", ["load", "--seconds", "nan"]),
    ("serving", ["load", "--clients", HUGE]),
    ("serving", ["load", "--out", "{file}/below"]),
    ("serving", ["soak", "--requests", HUGE]),
    ("serving", ["soak", "--seed", "-1"]),
    ("serving", ["soak", "--out", "{file}/below"]),
]


COMMITTED = Path("benchmarks/results/glue").resolve()


def run(benchmark: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The exit code of a command line, which is run in this process as `python -m` runs it."""
    monkeypatch.setattr(sys, "argv", [f"benchmarks.{benchmark}", *arguments])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"benchmarks.{benchmark}.cli").main()
    return ended.value.code


@pytest.mark.parametrize(("benchmark", "arguments"), CASES)
def test_absurd_arguments_are_one_message(benchmark, arguments, tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    given = [argument.format(file=tmp_path / "file", committed=COMMITTED) for argument in arguments]
    assert run(benchmark, given, monkeypatch) == 2
    said = capsys.readouterr().err
    assert "error" in said.lower()
    assert "Traceback" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["file"], "no folder is made for what is refused"


def test_a_full_disk_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device", str(tmp_path))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("benchmarks.speed.cli.write_json", full)
    monkeypatch.setattr("benchmarks.speed.overhead.measure", lambda options: [])
    monkeypatch.setattr("torch.set_num_threads", lambda threads: None)
    assert run("speed", ["--sections", "1", "--quick"], monkeypatch) == 2
    assert "No space left on device" in capsys.readouterr().err


def test_a_quick_look_does_not_take_the_place_of_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr("benchmarks.speed.overhead.measure", lambda options: pytest.fail("measured, and then refused"))
    (tmp_path / "overhead.json").write_text('{"quick": false}')
    assert run("speed", ["--sections", "1", "--quick", "--out", str(tmp_path)], monkeypatch) == 2
    assert "--out: expected a folder without a result of other settings" in capsys.readouterr().err
    assert (tmp_path / "overhead.json").read_text() == '{"quick": false}'


@pytest.mark.parametrize("benchmark", sorted(path.parent.name for path in Path("benchmarks").glob("*/cli.py")))
def test_everything_has_a_help_text_that_fits_a_terminal(benchmark: str) -> None:
    app = importlib.import_module(f"benchmarks.{benchmark}.cli").app

    def check(command: Any, *path: str) -> None:
        assert command.help, path
        for option in command.params:
            assert (option.help or "").endswith("."), f"{path} {option.opts}"
        shown = CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": "80"}).output
        assert not re.findall(r"\S+…", shown), path  # cut off
        for below, of_group in getattr(command, "commands", {}).items():
            check(of_group, *path, below)

    check(typer.main.get_command(app))


def test_other_faults_stay_visible() -> None:
    def fault() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        command_line.run_app(fault)  # type: ignore[arg-type]
