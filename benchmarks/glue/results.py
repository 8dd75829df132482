"""Results: one JSON file a run, with everything that is needed to trust and to repeat it."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import tasks
from benchmarks.checksum import check_copies, is_intact, with_checksum
from benchmarks.glue.config import REMADE, RunConfig
from ponder import recipes
from ponder._utils.files import read_json, write_json
from ponder.errors import ArgumentError, ArgumentTypeError, CheckpointError, DataError, PonderError
from ponder.objectives import Objective
from ponder.recipes import Recipe

__all__ = ["FORMAT", "Result", "read_all", "recipe_of"]

FORMAT = "ponder-glue-1"
_REQUIRED = ("format", "config", "task", "recipe", "backbone", "num_steps", "policy", "splits", "speed_up")


@dataclass(frozen=True)
class Result:
    """One run: what its file holds, and where that was read from."""

    data: dict[str, Any]
    path: Path | None = None

    def __post_init__(self) -> None:
        missing = [key for key in _REQUIRED if key not in self.data]
        if missing or self.data["format"] != FORMAT:
            got = f"{self.data.get('format')!r}, without {missing or 'nothing'}"
            raise self._refused(f"a result of the format {FORMAT!r}", got)
        if not self.reported or not all("exits" in split for split in self.data["splits"].values()):
            raise self._refused("scores of dev at the exits", f"the splits {list(self.data['splits'])}")

    def _refused(
        self, expected: str, got: str, remedy: str = "Remove it, and run that configuration again."
    ) -> DataError:
        return DataError(f"{self.path or 'result'}: expected {expected}; got {got}. {remedy}")

    @classmethod
    def of_run(cls, path: Path) -> Result:
        """The result that a run wrote at `path`, named by its configuration.

        One that is half-written, edited, of another version or recipe, or a copy under another name is refused.
        """
        try:
            result = cls(read_json(path), path)
            result._check(path)
        except CheckpointError as error:
            raise DataError(f"{error} Remove it, and run that configuration again.") from error
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, PonderError):
                raise
            raise DataError(
                f"{path}: expected a result of the format {FORMAT!r}; got other contents ({error})."
            ) from error
        return result

    def _check(self, path: Path) -> None:
        try:
            config = RunConfig.from_dict(self["config"])
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
        named = all(self[name] == self["config"][name] for name in ("task", "recipe", "backbone"))
        is_before = config.recipe in REMADE and path.stem == config.key_before
        if (config.key != path.stem and not is_before) or not named:
            raise self._refused("the run of this name", f"{config.key} (edited, or a copy?)")
        if not is_intact(self.data):
            raise self._refused("what the run wrote", "other contents: it was edited since")
        if is_before:
            self.data["recipe"] = REMADE[config.recipe]
        try:
            now = recipe_of(config, tasks.get(self["task"]).kind, self["num_steps"], self["recipe"]).to_dict()
        except (ArgumentError, ArgumentTypeError) as error:
            remedy = "Install what it comes from, or move the file away."
            raise DataError(f"{path}: expected a recipe that is here; {error} {remedy}") from error
        now["objectives"] = [stage["objective"] for stage in now["stages"]]
        then = self._recipe_then()
        changed = {name: {"then": value, "now": now[name]} for name, value in then.items() if value != now[name]}
        if changed:
            remedy = "The recipe has changed since: move the file away, and run it again."
            got = f"one of it as it was, {changed}"
            raise self._refused(f"a result of the recipe {self['recipe']!r} as it is", got, remedy)

    def _recipe_then(self) -> dict[str, Any]:
        """The fields of the recipe that was run; results of before have its objectives and its policy alone."""
        if "recipe_fields" in self.data:
            then = Recipe.from_dict(self["recipe_fields"]).to_dict()  # with the fields that were added since
            return {name: value for name, value in then.items() if name != "tuned_for"}  # it is scaled
        objectives = [stage.get("objective") for stage in self.data.get("training", [])]
        if not objectives or None in objectives:
            return {}
        objectives = [Objective.from_dict(each).to_dict() for each in objectives]  # with fields that were added since
        return {"objectives": objectives, **({"policy": self["policy"]} if self["config"]["policy"] is None else {})}

    def __getitem__(self, key: str) -> Any:
        return self.data[key]

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all, with a digest by which a later edit is seen."""
        write_json(path, with_checksum(self.data))

    @property
    def reported(self) -> list[dict[str, Any]]:
        """What was measured on the splits that are reported: dev (two for MNLI), and never the held-out one."""
        return [split for name, split in self.data["splits"].items() if name != "held_out"]

    def score(self, where: str) -> float:
        """The score on what is reported; `where` is ``"full_depth"`` or ``"exits"``."""
        return statistics.fmean(split[where]["score"] for split in self.reported)

    @property
    def selection_score(self) -> float:
        """What runs are chosen by: the held-out score at the exits; that on dev where the run selects there."""
        if self.selects_on_dev:
            return self.score("exits")
        if "held_out" not in self.data["splits"]:
            raise self._refused("a held-out score", "none")
        return float(self.data["splits"]["held_out"]["exits"]["score"])

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
    """Every result in a folder, by file name; no two are of one configuration, since that is their name.

    Raises:
        DataError: There is no such folder, or a file in it is no result, or the copy of another of another seed.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder of results. Make some with `python -m benchmarks.glue run`.")
    found = [Result.of_run(path) for path in sorted(folder.glob("*.json"))]
    check_copies((result.path, result.data) for result in found)
    return found
