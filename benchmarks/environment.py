"""The process that made a result: versions, commit and device, and nothing of the machine."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

__all__ = ["environment", "quick_bf16"]

_PACKAGES = (
    "ponder-torch",
    "torch",
    "transformers",
    "datasets",
    "accelerate",
    "scikit-learn",
    "scipy",
)


def environment(device: torch.device | None = None) -> dict[str, Any]:
    """Return versions, commit and device of this process, and nothing that identifies the machine."""
    on_gpu = device is not None and device.type == "cuda"
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "command": _command(sys.argv),
        "commit": _git("rev-parse", "--short=12", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "device": torch.cuda.get_device_name(device) if on_gpu else f"cpu ({platform.machine()})",
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def quick_bf16() -> bool:
    """Whether this CPU has instructions for bfloat16; without them it is far slower than float32."""
    return torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def _command(argv: Sequence[str]) -> str:
    """Return the command of this process; of absolute paths only the last part is kept."""
    program = Path(argv[0])
    if program.name != "__main__.py" or "benchmarks" not in program.parts:
        return "library"
    arguments = (re.sub(r"(^|=)/\S*?([^/\s]*)/?$", r"\1\2", argument) for argument in argv[1:])
    return " ".join([f"python -m benchmarks.{program.parent.name}", *arguments])


def _git(*arguments: str) -> str | None:
    options: dict[str, Any] = {
        "capture_output": True,
        "text": True,
        "check": True,
        "cwd": Path(__file__).parent,
    }
    try:
        return str(subprocess.run(["git", *arguments], **options).stdout).strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
