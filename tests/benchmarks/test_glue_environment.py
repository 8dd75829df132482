"""What a result says of the process that made it."""

import json
from pathlib import Path

from benchmarks.glue.results import _command

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"


def test_the_command_names_no_machine():
    argv = ["/home/x/benchmarks/glue/__main__.py", "run", "--out", "/home/x/a/b/", "--work=/tmp/w", "../glue", "q=0.5"]
    assert _command(argv) == "python -m benchmarks.glue run --out b --work=w ../glue q=0.5"
    assert _command(["/home/x/benchmarks/risk/__main__.py"]) == "python -m benchmarks.risk"
    assert _command(["/home/x/.venv/bin/pytest", "tests"]) == "library"


def test_committed_results_name_no_machine():
    files = list(RESULTS.rglob("*.json"))
    assert files
    for file in files:
        words = json.dumps(json.loads(file.read_text())).replace('"', " ").split()
        assert not [word for word in words if word.startswith(("/home", "/tmp", "/root", "/work", "/Users"))], file
