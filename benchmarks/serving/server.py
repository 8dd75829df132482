"""A server in a process of its own: `python -m benchmarks.serving.server NAME`, as `running` starts it."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import uvicorn

from benchmarks.serving.ledger import Ledger
from benchmarks.serving.subjects import SUBJECTS
from ponder.errors import PonderError
from ponder.serving import Limits, create_app

__all__ = ["Running", "running"]


@dataclass(frozen=True)
class Running:
    """A server that runs.

    Args:
        port: Its port on the loopback interface.
        process: The process.
        ledger: The file that it writes when it ends.
    """

    port: int
    process: subprocess.Popen[str]
    ledger: Path

    def cpu_seconds(self) -> float:
        """Seconds of all cores that the process has had so far; what else the machine does is not in it."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> dict[str, Any]:
        """Tell it to stop, and wait until it has answered what it accepted; what it wrote down comes back."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)
        written: dict[str, Any] = json.loads(self.ledger.read_text())
        return written


@contextmanager
def running(name: str, ledger: Path, **limits: Any) -> Iterator[Running]:
    """A server of a subject out of `SUBJECTS`; it is killed at the end, where it still runs.

    Args:
        name: The subject.
        ledger: The file that it writes when it ends.
        limits: Fields of `Limits`, by name.
    """
    words = [sys.executable, "-m", "benchmarks.serving.server", name, str(ledger), json.dumps(limits)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            told = process.stdout.readline()
            if not told:
                raise PonderError(f"the server of {name!r} did not start; see above.")
            yield Running(int(told), process, ledger)
        finally:
            process.kill()


class _Telling(uvicorn.Server):
    """Tells its port on the standard output when it is up."""

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        print(self.servers[0].sockets[0].getsockname()[1], flush=True)


def _serve(name: str, path: Path, limits: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, lambda number, frame: None)  # uvicorn raises the signal again when it has stopped
    app = create_app(SUBJECTS[name], Limits(**limits))
    ledger = Ledger(app)
    config = uvicorn.Config(ledger, host="127.0.0.1", port=0, log_level="warning", timeout_graceful_shutdown=60)
    _Telling(config).run()
    service = app.state.service
    path.write_text(
        json.dumps({**ledger.to_dict(), "outcomes": service.metrics.outcomes(), "waiting": service.waiting})
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=SUBJECTS)
    parser.add_argument("ledger", type=Path)
    parser.add_argument("limits", type=json.loads)
    given = parser.parse_args()
    _serve(given.name, given.ledger, given.limits)
