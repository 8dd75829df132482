"""Suites: which tasks, recipes and hyper-parameters a sweep tries, each a small JSON file in `suites/`."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import tasks
from benchmarks.checksum import digest
from benchmarks.glue.config import RunConfig, recipe_label
from ponder import recipes
from ponder._utils.files import read_json
from ponder.errors import ArgumentError, ArgumentTypeError, DataError
from ponder.parts.tasks import task_named
from ponder.policies import ModelSpec

__all__ = ["Cell", "RecipeSpec", "Suite", "get", "names", "read"]

_FOLDER = Path(__file__).with_name("suites")
_REMEDY = "See docs/sweep.md for what a suite holds."
_OF_THE_CELL = ("task", "recipe", "recipe_options", "backbone", "seed", "selection")
_Fields = Mapping[str, Any]


@dataclass(frozen=True)
class RecipeSpec:
    """A recipe with its arguments, and fields of `RunConfig` for it, instead of those of the task and the suite."""

    recipe: str
    options: _Fields = field(default_factory=dict)
    fields: _Fields = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_kind("recipe", self.recipe, str, "the name of a recipe")
        _check_kind("options", self.options, Mapping, "an object")
        _check_kind("fields", self.fields, Mapping, "an object")

    @property
    def label(self) -> str:
        """The name that tables show."""
        return recipe_label(self.recipe, self.options)


@dataclass(frozen=True)
class Cell:
    """One task with one recipe: the points of the grid, all with the first seed, and the seeds of the chosen one."""

    task: str
    spec: RecipeSpec
    points: tuple[RunConfig, ...]
    varied: tuple[str, ...]
    seeds: int

    @property
    def name(self) -> str:
        """Readable, and different for every task, recipe, backbone and way to select, whatever the points."""
        first = self.points[0]
        decides = {"options": dict(self.spec.options), "backbone": first.backbone, "selection": first.selection}
        return f"{self.task}-{self.spec.recipe}-{digest(decides)}".lower()

    def finals(self, point: RunConfig) -> list[RunConfig]:
        """The chosen point with each seed."""
        return [dataclasses.replace(point, seed=point.seed + number) for number in range(self.seeds)]


@dataclass(frozen=True)
class Suite:
    """What a sweep tries: a run for each task, recipe and point of the grid, and `seeds` runs of the chosen points.

    Runs share the fields of `RunConfig` in `fixed`; those of one task in `by_task` count before them, and before the
    values of `grid`.
    """

    name: str
    description: str
    tasks: tuple[str, ...]
    recipes: tuple[RecipeSpec, ...]
    fixed: _Fields = field(default_factory=dict)
    grid: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    seeds: int = 5
    by_task: Mapping[str, _Fields] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if type(self.seeds) is not int or self.seeds < 1:
            raise ArgumentError("seeds", expected="a whole number ≥ 1", got=self.seeds, remedy="Pass 5, as the paper.")
        for argument in ("fixed", "grid", "by_task"):
            _check_kind(argument, getattr(self, argument), Mapping, "an object")
        for name, values in self.grid.items():
            _check_kind(f"grid.{name}", values, list | tuple, "a list of values")
        for name, own in self.by_task.items():
            _check_kind(f"by_task.{name}", own, Mapping, "an object")
        for task in self.tasks:
            _check_kind("tasks", task, str, "names of tasks")
        if not self.tasks or not self.recipes or not all(self.grid.values()):
            got = f"{len(self.tasks)} tasks, {len(self.recipes)} recipes, grid {dict(self.grid)}"
            expected = "at least one task, one recipe, and one value for each field of the grid"
            raise ArgumentError("suite", expected=expected, got=got, remedy="Add one.")
        object.__setattr__(self, "tasks", tuple(tasks.get(task).name for task in self.tasks))
        of_tasks = [(tasks.get(task).name, own) for task, own in self.by_task.items()]
        object.__setattr__(self, "by_task", dict(of_tasks))
        _check_once("tasks", self.tasks)
        _check_once("recipes", [spec.label for spec in self.recipes])
        _check_once("by_task", [task for task, _ in of_tasks])
        parts = [self.fixed, self.grid, *self.by_task.values(), *(spec.fields for spec in self.recipes)]
        known = {each.name for each in dataclasses.fields(RunConfig)} - set(_OF_THE_CELL)
        _check_names("suite", set(itertools.chain(*parts)), sorted(known), "fields of a run")
        _check_once("fixed and grid", [*self.fixed, *self.grid])
        for name, values in self.grid.items():
            made = [getattr(RunConfig(self.tasks[0], **{name: value}), name) for value in values]
            _check_once(f"grid.{name}", [json.dumps(value, sort_keys=True) for value in made])

    def with_fixed(self, fields: _Fields) -> Suite:
        """The suite with these fields of `RunConfig` the same for all runs, whatever it says about them itself."""

        def others(of_part: _Fields) -> dict[str, Any]:
            return {name: value for name, value in of_part.items() if name not in fields}

        specs = tuple(dataclasses.replace(spec, fields=others(spec.fields)) for spec in self.recipes)
        by_task = {task: others(own) for task, own in self.by_task.items()}
        parts: dict[str, Any] = {"grid": others(self.grid), "by_task": by_task, "recipes": specs}
        return dataclasses.replace(self, fixed={**self.fixed, **fields}, **parts)

    def cells(self, backbone: str, selection: str = "held_out") -> list[Cell]:
        """Every task with every recipe whose policy serves it (the entropy of STS-B's one number is not defined).

        Args:
            backbone: The backbone of all runs.
            selection: Data on which hyper-parameters are chosen; see `RunConfig`.
        """
        pairs = [(task, spec) for task in self.tasks for spec in self.recipes if _serves(spec, tasks.get(task).kind)]
        if not pairs:
            got = f"{', '.join(spec.label for spec in self.recipes)} on {', '.join(self.tasks)}"
            expected = "a recipe whose policy is defined for one of the tasks"
            remedy = "Entropy and confidence need classes: take another recipe or task."
            raise ArgumentError("suite", expected=expected, got=got, remedy=remedy)
        made = []
        for task, spec in pairs:
            own_lambda_lr = recipes.get(spec.recipe, **spec.options).own_lambda_lr
            settled = {**self.by_task.get(task, {}), **spec.fields}  # what a task or a recipe fixes does not vary
            grid = {
                name: values
                for name, values in self.grid.items()
                if name not in settled and (name != "lambda_lr" or own_lambda_lr)
            }
            common = {"backbone": backbone, "selection": selection, "recipe_options": spec.options}
            rest = {**common, **self.fixed, **settled}
            varied = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
            points = tuple(RunConfig(task, spec.recipe, **{**rest, **fields}) for fields in varied)
            made.append(Cell(task, spec, points, tuple(grid), self.seeds))
        return made


def _check_kind(argument: str, value: object, kind: Any, expected: str) -> None:
    if not isinstance(value, kind):
        raise ArgumentTypeError(argument, expected=expected, got=repr(value), remedy=_REMEDY)


def _check_once(argument: str, given: Sequence[str]) -> None:
    if len(set(given)) < len(given):
        raise ArgumentError(argument, expected="each once", got=", ".join(given), remedy="Leave one out.")


def _check_names(argument: str, given: Iterable[str], known: Sequence[str], what: str) -> None:
    unknown = sorted(name for name in given if name not in known)
    if unknown:
        expected = f"{what}, some of {', '.join(known)}"
        raise ArgumentError(argument, expected=expected, got=", ".join(unknown), remedy=_REMEDY)


def _serves(spec: RecipeSpec, kind: str) -> bool:
    """Whether a recipe's policy is defined for a kind of task; other errors are for the runs to tell."""
    policy = recipes.get(spec.recipe, **spec.options).for_task(kind).policy
    try:
        policy.check(ModelSpec(num_steps=1000, task=task_named(kind), has_hazard=True))
    except ArgumentError:
        return kind == "classification"
    return True


def names() -> tuple[str, ...]:
    """Names of the suites that are here."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.json")))


def get(name: str) -> Suite:
    """A suite by its name, or from a JSON file of one's own."""
    if name in names():
        return read(_FOLDER / f"{name}.json")
    if name.endswith(".json") and Path(name).is_file():
        return read(Path(name))
    expected = f"one of {', '.join(names())}, or a JSON file"
    raise ArgumentError("--suite", expected=expected, got=repr(name), remedy=_REMEDY)


def read(path: Path) -> Suite:
    """Read the file of a suite."""
    data = read_json(path)
    of_suite, of_recipe = ([each.name for each in dataclasses.fields(kind)] for kind in (Suite, RecipeSpec))
    try:
        json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_check_fields)
        for argument in ("tasks", "recipes"):
            _check_kind(argument, data.get(argument), list, "a list")
        _check_names("fields", data, of_suite[1:], "fields of a suite")
        specs = [each if isinstance(each, dict) else {"recipe": each} for each in data["recipes"]]
        for spec in specs:
            _check_names("fields", spec, of_recipe, "fields of a recipe")
        parts = {"tasks": tuple(data["tasks"]), "recipes": tuple(RecipeSpec(**spec) for spec in specs)}
        return Suite(path.stem, **{"description": "", **data, **parts})
    except ArgumentError as error:
        raise DataError(f"{path}, {error}") from error
    except TypeError as error:
        files = "the files in benchmarks/glue/sweeping/suites/"
        raise DataError(f"{path}: expected a suite, as {files} are; got {error}.") from error


def _check_fields(fields: list[tuple[str, Any]]) -> None:
    """Refuse an object of JSON that has a field twice, of which Python would read the last."""
    _check_once("fields of an object", [name for name, _ in fields])
