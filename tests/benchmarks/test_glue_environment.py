"""What a result says of the process that made it."""

import json
from pathlib import Path

from benchmarks.environment import _command

FILES = sorted((Path(__file__).resolve().parents[2] / "benchmarks" / "results").rglob("*.json"))


def test_the_command_names_no_machine():
    argv = [
        "/some/where/benchmarks/glue/__main__.py",
        "run",
        "--out",
        "/some/where/a/b/",
        "--work=/tmp/w",
        "../glue",
        "q=0.5",
    ]
    assert _command(argv) == "python -m benchmarks.glue run --out b --work=w ../glue q=0.5"
    assert _command(["/some/where/benchmarks/risk/__main__.py"]) == "python -m benchmarks.risk"
    assert _command(["/some/where/.venv/bin/pytest", "tests"]) == "library"


def test_committed_results_name_no_machine():
    results = [json.loads(file.read_text()) for file in FILES]
    places = [
        place for each in results for place in (each.get("environment", {}), *each.get("environments", {}).values())
    ]
    commands = [place.get("command", "") for place in places]
    assert commands
    assert not [command for command in commands if any(word.startswith("/") for word in command.split())]
