"""Run the commands of a user, and keep each with what it printed.

The models and files are those of `prepare`. A command runs in their folder, on one thread, by the
interpreter that runs this one. What is kept is the standard output, without notes of progress.
"""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

from benchmarks.environment import environment
from benchmarks.files import read_json, write_json

__all__ = ["SAMPLES", "record"]

_TEXTS = "--column text"
SAMPLES = {
    "exits": f"ponder exits my-intents --texts traffic.csv {_TEXTS} --labels label --out exits",
    "check": f"ponder check exits --texts fresh.csv {_TEXTS}",
    "predict": f"ponder predict exits --texts fresh.csv {_TEXTS} --out answers.csv",
    "answers": "head -n 4 answers.csv",
    "certify": (
        "ponder certify answers.csv --answer predicted_label --confidence-column probability "
        "--reference label --disagreement 0.05 --out threshold.json"
    ),
    "export": f"ponder export exits --int8 --texts traffic.csv {_TEXTS} --out small",
    "advise": (
        f"ponder advise my-intents --texts traffic.csv {_TEXTS} --labels label --out advised"
    ),
    "advise_few": f"ponder advise my-intents --texts few.csv {_TEXTS} --out few",
    "cascade": f"ponder cascade my-intents --texts traffic.csv {_TEXTS} --out cascade",
    "label": (
        f"ponder label fresh.csv {_TEXTS} --with my_module:ask --level 0.1 --out labelled.csv "
        "--db labels.db --price 0.0004"
    ),
    "rerank": (
        "ponder rerank my-reranker --queries queries.jsonl --top-k 3 --changed 0.05 --out ranker"
    ),
    "check_ranker": "ponder check ranker --texts fresh.jsonl",
    "serve": "ponder serve small --port {port}",
}
"""The commands, in the order in which one needs what another wrote."""
_ASKED = (
    (
        "request",
        "curl -s localhost:{port}/predict -H 'content-type: application/json' "
        """-d '{{"texts": ["where is my card?"]}}'""",
    ),
)
_PORT = "8000"
_PATIENCE = 120.0  # seconds until a service answers


def record(work: Path, out: Path, only: Iterable[str]) -> None:
    """Run the commands, and update the file of samples."""
    kept: dict[str, Any] = read_json(out)["commands"] if out.exists() else {}
    chosen = set(only) or set(SAMPLES)
    for name, command in SAMPLES.items():
        if name not in chosen:
            continue
        if name == "serve":
            found = _served(work, command)
        else:
            found = {name: {"command": command, "output": _printed(command, work)}}
        made = environment()
        kept.update({each: {**sample, "environment": made} for each, sample in found.items()})
        ordered = {each: kept[each] for each in _order() if each in kept}
        write_json(out, {"task": "Banking77, MiniLM", "commands": ordered})


def _order() -> list[str]:
    return [*SAMPLES, *(name for name, _ in _ASKED)]


def _printed(command: str, work: Path) -> str:
    """Run a command to its end, and return its standard output."""
    done = subprocess.run(
        _words(command), cwd=work, env=_environment(), stdout=subprocess.PIPE, text=True
    )
    output = done.stdout.rstrip()
    if not output:  # an output of an earlier run is in its way, say
        raise SystemExit(f"{command}: nothing was printed; the message above says why.")
    return output


def _served(work: Path, command: str) -> dict[str, dict[str, str]]:
    """Start a service, ask it, and return its first words and its answers."""
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        port = str(probe.getsockname()[1])
    log = work / "serve.log"
    with log.open("w", encoding="utf-8") as file:
        words = _words(command.format(port=port))
        service = subprocess.Popen(words, cwd=work, env=_environment(), stderr=file)
    samples = {}
    try:
        _wait(f"http://127.0.0.1:{port}/health")
        # What it says of the folder comes before the log of requests.
        first = log.read_text("utf-8").split("INFO")[0].rstrip()
        samples["serve"] = {"command": command.format(port=_PORT), "output": first}
        for name, asked in _ASKED:
            answer = subprocess.run(
                shlex.split(asked.format(port=port)), capture_output=True, text=True
            )
            samples[name] = {"command": asked.format(port=_PORT), "output": answer.stdout.rstrip()}
    finally:
        service.terminate()
        service.wait()
    return samples


def _wait(address: str) -> None:
    """Return when a service answers."""
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            urllib.request.urlopen(address, timeout=5.0).close()
            return
        except urllib.error.URLError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


def _words(command: str) -> list[str]:
    """Return a command as words; `ponder` is that of this interpreter."""
    first, *others = shlex.split(command)
    if first != "ponder":
        return [first, *others]
    return [sys.executable, "-c", "from ponder.cli import main; main()", *others]


def _environment() -> dict[str, str]:
    root = Path(__file__).resolve().parents[2]
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
