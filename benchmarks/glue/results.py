"""Results: one JSON file a run, with everything that is needed to trust and to repeat it."""

from __future__ import annotations

import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from benchmarks import tasks
from benchmarks.checksum import is_intact, with_checksum
from benchmarks.glue.config import REMADE, RunConfig
from ponder import recipes
from ponder._utils.files import read_json, write_json
from ponder.errors import ArgumentError, ArgumentTypeError, CheckpointError, DataError, PonderError
from ponder.objectives import Objective
from ponder.recipes import Recipe

__all__ = ["FORMAT", "Result", "environment", "read_all", "recipe_of"]

FORMAT = "ponder-glue-1"
_PACKAGES = ("ponder-torch", "torch", "transformers", "datasets", "accelerate", "scikit-learn", "scipy")
_REQUIRED = ("format", "config", "task", "recipe", "backbone", "num_steps", "policy", "splits", "speed_up")
_AGAIN = "Remove it, and run that configuration again."


@dataclass(frozen=True)
class Result:
    """One run.

    Args:
        data: What the file holds: `config`, `task`, `recipe`, `backbone`, `policy`, `splits`, `speed_up`,
            `training`, `environment`.
        path: Where it was read from.
    """

    data: dict[str, Any]
    path: Path | None = None

    def __post_init__(self) -> None:
        where, missing = self.path or "result", [key for key in _REQUIRED if key not in self.data]
        if missing or self.data["format"] != FORMAT:
            got = f"{self.data.get('format')!r}, without {missing or 'nothing'}"
            raise DataError(f"{where}: expected a result of the format {FORMAT!r}; got {got}. {_AGAIN}")
        if not self.reported or not all("exits" in split for split in self.data["splits"].values()):
            got = f"the splits {list(self.data['splits'])}"
            raise DataError(f"{where}: expected scores of dev at the exits; got {got}. {_AGAIN}")

    @classmethod
    def of_run(cls, path: Path) -> Result:
        """The result that a run wrote at `path`, named by its configuration.

        One that is half-written, edited, of another version or recipe, or a copy under another name is refused.
        """
        try:
            result = cls(read_json(path), path)
            result._check()
        except CheckpointError as error:
            raise DataError(f"{error} {_AGAIN}") from error
        except PonderError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            got = f"other contents ({type(error).__name__}: {error})"
            raise DataError(f"{path}: expected a result of the format {FORMAT!r}; got {got}. {_AGAIN}") from error
        return result

    def _check(self) -> None:
        assert self.path is not None
        try:
            config = RunConfig.from_dict(self["config"])
        except DataError as error:
            raise DataError(f"{self.path}: {error}") from error
        named = all(self[name] == self["config"][name] for name in ("task", "recipe", "backbone"))
        is_before = config.recipe in REMADE and self.path.stem == config.key_before
        if (config.key != self.path.stem and not is_before) or not named:
            got = f"{config.key} (edited, or a copy?)"
            raise DataError(f"{self.path}: expected the run of this name; got {got}. {_AGAIN}")
        if not is_intact(self.data):
            raise DataError(f"{self.path}: expected what the run wrote; it was edited since. {_AGAIN}")
        if is_before:
            self.data["recipe"] = REMADE[config.recipe]
        try:
            now = recipe_of(config, tasks.get(self["task"]).kind, self["num_steps"], self["recipe"]).to_dict()
        except (ArgumentError, ArgumentTypeError) as error:
            remedy = "Install what it comes from, or move the file away."
            raise DataError(f"{self.path}: expected a recipe that is here; {error} {remedy}") from error
        now["objectives"] = [stage["objective"] for stage in now["stages"]]
        then = self._recipe_then()
        changed = {name: {"then": value, "now": now[name]} for name, value in then.items() if value != now[name]}
        if changed:
            raise DataError(
                f"{self.path}: expected a result of the recipe {self['recipe']!r} as it is; got one of it as it was, "
                f"{changed}. The recipe has changed since: move the file away, and run it again."
            )

    def _recipe_then(self) -> dict[str, Any]:
        """The fields of the recipe that was run; results of before have its objectives and its policy alone."""
        if "recipe_fields" in self.data:
            return Recipe.from_dict(self["recipe_fields"]).to_dict()  # with the fields that were added since
        objectives = [stage.get("objective") for stage in self.data.get("training", [])]
        if not objectives or None in objectives:
            return {}
        objectives = [Objective.from_dict(each).to_dict() for each in objectives]  # with fields that were added since
        own = self["config"]["policy"] is None and self.data.get("knob", {}).get("chosen_on", "recipe") == "recipe"
        return {"objectives": objectives, **({"policy": self["policy"]} if own else {})}

    def __getitem__(self, key: str) -> Any:
        return self.data[key]

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all, with a digest by which a later edit is seen."""
        write_json(path, with_checksum(self.data))

    @property
    def reported(self) -> list[dict[str, Any]]:
        """What was measured on the splits that are reported: dev (two for MNLI), and never the held-out one."""
        return [split for name, split in self.data["splits"].items() if name != "held_out"]

    @property
    def held_out(self) -> Result | None:
        """The result with the held-out part as what is reported, or None where nothing was held out."""
        held_out = self.data["splits"].get("held_out")
        return None if held_out is None else Result({**self.data, "splits": {"selection": held_out}}, self.path)

    def score(self, where: str) -> float:
        """The score on what is reported; `where` is ``"full_depth"`` or ``"exits"``."""
        return statistics.fmean(split[where]["score"] for split in self.reported)

    @property
    def selection_score(self) -> float:
        """What runs are chosen by: the held-out score at the exits; that on dev where the run selects there."""
        if self.selects_on_dev:
            return self.score("exits")
        if self.held_out is None:
            raise DataError(f"{self.path or 'result'}: expected a held-out score; it holds none. Run it again.")
        return self.held_out.score("exits")

    @property
    def selects_on_dev(self) -> bool:
        """Whether epoch and hyper-parameters were chosen on dev, as in PALBERT's paper."""
        return bool(self["config"].get("selection") == "dev")

    @property
    def per_step(self) -> list[float]:
        """The score of each step's answers on what is reported."""
        return [statistics.fmean(scores) for scores in zip(*(s["per_step"] for s in self.reported), strict=True)]

    @property
    def mean_exit_step(self) -> float:
        """Mean exit step over the examples that are reported."""
        sizes = [split["examples"] for split in self.reported]
        return statistics.fmean((split["mean_exit_step"] for split in self.reported), weights=sizes)


def recipe_of(config: RunConfig, task: str, num_steps: int, name: str | None = None) -> Recipe:
    """The recipe of a run, for a kind of task and a number of steps; `name` where it has another one now."""
    made = recipes.get(config.recipe if name is None else name, **config.recipe_options)
    return made.for_steps(num_steps).for_task(task)


def read_all(folder: Path) -> list[Result]:
    """Every result in a folder, by file name; no two are of one configuration, since that is their name."""
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder of results. Make some with `python -m benchmarks.glue run`.")
    return [Result.of_run(path) for path in sorted(folder.glob("*.json"))]


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, commit and device of this process, without anything that names the machine."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "command": _command(sys.argv),
        "commit": _git("rev-parse", "--short=12", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({platform.machine()})",
        "threads": torch.get_num_threads(),
    }


def _command(argv: Sequence[str]) -> str:
    """How this process was started; of absolute paths the last part alone, since others mean one machine."""
    program = Path(argv[0])
    if program.name != "__main__.py" or "benchmarks" not in program.parts:
        return "library"
    arguments = (re.sub(r"(^|=)/\S*?([^/\s]*)/?$", r"\1\2", argument) for argument in argv[1:])
    return " ".join([f"python -m benchmarks.{program.parent.name}", *arguments])


def _git(*arguments: str) -> str | None:
    options: dict[str, Any] = {"capture_output": True, "text": True, "check": True, "cwd": Path(__file__).parent}
    try:
        return str(subprocess.run(["git", *arguments], **options).stdout).strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
