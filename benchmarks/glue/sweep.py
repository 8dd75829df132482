"""Sweeps: all points of a grid for each task and recipe, then the best point with several seeds.

All state is in the files of results, so a sweep that was killed continues when it is started again.
A suite is a JSON file in `suites/`: `tasks`, `recipes` (names, or `{"recipe", "options",
"fields"}`), fields of `RunConfig` that all runs share (`fixed`) or those of one task (`by_task`), a
`grid` of values to try, and the number of `seeds`.
"""

from __future__ import annotations

import dataclasses
import itertools
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import tasks
from benchmarks.files import DataError, read_json, write_json
from benchmarks.glue.config import RunConfig, recipe_label
from benchmarks.glue.results import Result
from ponder import recipes
from ponder.errors import ArgumentError
from ponder.policies import ModelSpec
from ponder.tasks import task_named

__all__ = ["Cell", "RecipeSpec", "Suite", "suite_named", "suites", "sweep"]

_FOLDER = Path(__file__).with_name("suites")
Run = Callable[[RunConfig, Path], Result]
"""Does a run whose result lies in a folder, or reads it there."""


@dataclass(frozen=True)
class RecipeSpec:
    """A recipe with its arguments, and fields of `RunConfig` that override those of the suite."""

    recipe: str
    options: Mapping[str, Any] = field(default_factory=dict)
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """One task with one recipe: the points of the grid, and the number of seeds of the chosen one."""

    label: str
    points: tuple[RunConfig, ...]
    seeds: int

    def finals(self, point: RunConfig) -> list[RunConfig]:
        """Return the chosen point with each seed."""
        return [
            dataclasses.replace(point, seed=point.seed + number) for number in range(self.seeds)
        ]


@dataclass(frozen=True)
class Suite:
    """All that a sweep tries; fields as in its file."""

    description: str
    tasks: tuple[str, ...]
    recipes: tuple[RecipeSpec, ...]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    grid: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    seeds: int = 5
    by_task: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def cells(self, backbone: str, **changed: Any) -> list[Cell]:
        """Return every task with every recipe whose policy serves it.

        Args:
            backbone: The backbone of all runs.
            changed: Fields that are the same for all runs, instead of those of the suite.
        """
        made = []
        for name, spec in itertools.product(self.tasks, self.recipes):
            task = tasks.get(name)
            if not _serves(spec, task.kind):
                continue
            settled = {**self.fixed, **self.by_task.get(task.name, {}), **spec.fields, **changed}
            grid = {each: values for each, values in self.grid.items() if each not in settled}
            points = tuple(
                RunConfig(
                    task.name, spec.recipe, **{"backbone": backbone, "recipe_options": dict(spec.options), **settled},
                    **dict(zip(grid, values, strict=True)),
                )
                for values in itertools.product(*grid.values())
            )  # fmt: skip
            made.append(
                Cell(
                    f"{recipe_label(spec.recipe, spec.options)} on {task.name}", points, self.seeds
                )
            )
        return made

    def has(self, result: Result) -> bool:
        """Return whether a run has the fields that the suite sets for its task and recipe.

        Recipes that the suite does not name belong to it too, under the same budget.
        """
        config = result.config
        if result["task"] not in self.tasks or config["policy"] is not None or self.grid:
            return False
        specs = [spec for spec in self.recipes if spec.recipe == result["recipe"]]
        alike = [spec for spec in specs if dict(spec.options) == dict(config["recipe_options"])]
        if specs and not alike:
            return False
        spec = alike[0] if alike else RecipeSpec(config["recipe"])
        fields = {**self.fixed, **self.by_task.get(result["task"], {}), **spec.fields}
        wanted = RunConfig(
            result["task"], config["recipe"], backbone=config["backbone"], **fields
        ).to_dict()
        free = {"seed", "recipe_options"} if alike else {"seed", "recipe_options", "lambda_lr"}
        return all(config.get(name, wanted[name]) == wanted[name] for name in wanted.keys() - free)


def suites() -> tuple[str, ...]:
    """Return the names of the suites."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.json")))


def suite_named(name: str) -> Suite:
    """Return a suite by its name, or from a JSON file of one's own."""
    path = Path(name) if name.endswith(".json") else _FOLDER / f"{name}.json"
    if not path.is_file():
        expected = f"one of {', '.join(suites())}, or a JSON file"
        raise ArgumentError(
            "--suite", expected=expected, got=repr(name), remedy="Name one of them."
        )
    data = read_json(path)
    try:
        specs = [
            RecipeSpec(**each) if isinstance(each, dict) else RecipeSpec(each)
            for each in data["recipes"]
        ]
        return Suite(**{**data, "tasks": tuple(data["tasks"]), "recipes": tuple(specs)})
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{path}: expected a suite, as those in {_FOLDER} are ({error})."
        ) from error


def sweep(
    cells: Sequence[Cell], out: Path, run: Run, say: Callable[[str], object] = print
) -> list[str]:
    """Do the remaining runs of a sweep, all cells with the first seed, then all with the next.

    The points of a grid are in `<out>/grid`, the chosen ones with each seed in `out`, and the
    reasons for the choice in `<out>/chosen`. A run that fails is noted in `<out>/failed`, and the
    others continue; the next sweep tries it again.

    Returns:
        The keys of the runs that failed.
    """
    runs = _Runs(out, run, say)
    finals: list[list[RunConfig]] = []
    for cell in cells:
        point: RunConfig | None = cell.points[0]
        if len(cell.points) > 1:
            point = runs.choose(cell)
        if point is not None:
            finals.append(cell.finals(point))
    # Seeds in the outer loop: whatever is there when a sweep is stopped is a whole table.
    for of_seed in itertools.zip_longest(*finals):
        for config in of_seed:
            if config is not None:
                runs.attempt(config, out)
    return runs.failed


class _Runs:
    """The runs of a sweep; `failed` has the keys of those that failed."""

    def __init__(self, out: Path, run: Run, say: Callable[[str], object]) -> None:
        self.failed: list[str] = []
        self._out = out
        self._run = run
        self._say = say

    def attempt(self, config: RunConfig, folder: Path) -> Result | None:
        """Do a run, or read it if it was done; None if it fails."""
        note = self._out / "failed" / f"{config.key}.json"
        is_done = (folder / f"{config.key}.json").exists()
        try:
            result = self._run(config, folder)
        except Exception as error:  # of any kind: the other runs continue
            self.failed.append(config.key)
            details = traceback.format_exc()
            write_json(note, {"error": f"{type(error).__name__}: {error}", "details": details})
            self._say(f"{config.key}: failed ({error})")
            return None
        note.unlink(missing_ok=True)
        if not is_done:
            self._say(f"{config.key}: {100 * result.held_out.score('exits'):.1f}")
        return result

    def choose(self, cell: Cell) -> RunConfig | None:
        """Run the points of a grid, and return that with the best held-out score."""
        scores: dict[str, float] = {}
        best: RunConfig | None = None
        for point in cell.points:
            result = self.attempt(point, self._out / "grid")
            if result is None:
                continue
            scores[point.key] = result.held_out.score("exits")
            if best is None or scores[point.key] > scores[best.key]:
                best = point
        if best is not None:
            tried = [{"key": key, "score": score} for key, score in scores.items()]
            note = self._out / "chosen" / f"{cell.points[0].key}.json"
            write_json(note, {"chosen": best.key, "tried": tried})
            kept = self._out / f"{best.key}.json"
            if not kept.exists():
                Result.read(self._out / "grid" / kept.name).save(kept)
        return best


def _serves(spec: RecipeSpec, kind: str) -> bool:
    policy = recipes.get(spec.recipe, **spec.options).for_task(kind).policy
    try:
        policy.check(ModelSpec(num_steps=1000, task=task_named(kind), has_hazard=True))
    except ArgumentError:
        return kind == "classification"
    return True
