"""Suites: which tasks, recipes and hyper-parameters a sweep tries, each a small JSON file in `suites/`."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import tasks
from benchmarks.checksum import digest
from benchmarks.glue.config import RunConfig, recipe_label
from benchmarks.glue.sweeping.search import rung_sizes
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
        """As tables show it."""
        return recipe_label(self.recipe, self.options)


@dataclass(frozen=True)
class Cell:
    """One task with one recipe: the points to choose from, and the seeds of the chosen one.

    Args:
        task: Name of the task.
        spec: The recipe.
        points: Configurations that differ in the grid's fields alone, all with the first seed.
        seeds: How many seeds the chosen point is run with; the first is that of the points.
        halving: As in `search.rung_sizes`: None tries each point with all of its epochs.
    """

    task: str
    spec: RecipeSpec
    points: tuple[RunConfig, ...]
    seeds: int
    halving: int | None = None

    @property
    def name(self) -> str:
        """Readable, and different for every task, recipe, backbone and way to select, whatever the points."""
        first = self.points[0]
        decides = {"options": dict(self.spec.options), "backbone": first.backbone, "selection": first.selection}
        return f"{self.task}-{self.spec.recipe}-{digest(decides)}".lower()

    @property
    def rungs(self) -> tuple[tuple[int, int], ...]:
        """(runs, epochs) of each rung, the last with all epochs."""
        return rung_sizes(len(self.points), self.points[0].epochs, self.halving)

    @property
    def tries(self) -> list[RunConfig]:
        """All runs that the search may come to ask for: every point with the epochs of every rung."""
        return [dataclasses.replace(point, epochs=epochs) for _, epochs in self.rungs for point in self.points]

    def finals(self, point: RunConfig) -> list[RunConfig]:
        """The chosen point with each seed."""
        return [dataclasses.replace(point, seed=point.seed + number) for number in range(self.seeds)]


@dataclass(frozen=True)
class Suite:
    """What a sweep tries.

    Args:
        name: Name of its file.
        description: What it is for.
        tasks: Names of tasks.
        recipes: Recipes with their arguments.
        fixed: Fields of `RunConfig` that all runs share.
        grid: Fields of `RunConfig`, each with the values to try.
        seeds: Runs of the chosen point.
        by_task: Fields of `RunConfig` for one task, instead of `fixed`.
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
        if not self.tasks or not self.recipes or not all(self.grid.values()):
            got = f"{len(self.tasks)} tasks, {len(self.recipes)} recipes, grid {dict(self.grid)}"
            expected = "at least one task, one recipe, and one value for each field of the grid"
            raise ArgumentError("suite", expected=expected, got=got, remedy="Add one.")
        object.__setattr__(self, "tasks", tuple(tasks.get(task).name for task in self.tasks))
        object.__setattr__(self, "by_task", {tasks.get(task).name: own for task, own in self.by_task.items()})
        for what, given in (("tasks", self.tasks), ("recipes", [spec.label for spec in self.recipes])):
            if len(set(given)) < len(given):
                raise ArgumentError(what, expected="each once", got=", ".join(given), remedy="Leave one out.")
        of_parts = [*self.by_task.values(), *(spec.fields for spec in self.recipes)]
        known = {each.name for each in dataclasses.fields(RunConfig)} - set(_OF_THE_CELL)
        _check_names("suite", {*self.fixed, *self.grid, *itertools.chain(*of_parts)}, sorted(known), "fields of a run")

    def with_fixed(self, fields: _Fields) -> Suite:
        """The suite with these fields of `RunConfig` the same for all runs, whatever it says about them itself."""

        def others(of_part: _Fields) -> dict[str, Any]:
            return {name: value for name, value in of_part.items() if name not in fields}

        specs = tuple(dataclasses.replace(spec, fields=others(spec.fields)) for spec in self.recipes)
        by_task = {task: others(own) for task, own in self.by_task.items()}
        parts: dict[str, Any] = {"grid": others(self.grid), "by_task": by_task, "recipes": specs}
        return dataclasses.replace(self, fixed={**self.fixed, **fields}, **parts)

    def cells(
        self, backbone: str, selection: str = "held_out", max_runs: int | None = None, halving: int | None = None
    ) -> list[Cell]:
        """Every task with every recipe whose policy serves it (the entropy of STS-B's one number is not defined).

        Args:
            backbone: The backbone of all runs.
            selection: On what hyper-parameters are chosen; see `RunConfig`.
            max_runs: The most runs of the whole sweep, the seeds of the chosen points included; each cell gets the
                same share, and tries a random subset of its grid (drawn by a fixed seed, nested: a larger budget adds
                points to those of a smaller one).
            halving: As in `Cell`.
        """
        if halving is not None and (halving < 2 or "epochs" in self.grid):
            expected = "a whole number ≥ 2, and a grid without epochs, since rungs differ in them"
            got, remedy = f"{halving}, grid {', '.join(self.grid)}", "Pass --halving 3, or fix epochs with --set."
            raise ArgumentError("--halving", expected=expected, got=got, remedy=remedy)
        pairs = [(task, spec) for task in self.tasks for spec in self.recipes if _serves(spec, tasks.get(task).kind)]
        if not pairs:
            got = f"{', '.join(spec.label for spec in self.recipes)} on {', '.join(self.tasks)}"
            expected = "a recipe whose policy is defined for one of the tasks"
            remedy = "Entropy and confidence need classes: take another recipe or task."
            raise ArgumentError("suite", expected=expected, got=got, remedy=remedy)
        share = None if max_runs is None else max_runs // len(pairs) - (self.seeds - 1)
        if share is not None and share < 1:
            expected = f"at least {len(pairs) * self.seeds}: {len(pairs)} cells of {self.seeds} seeds each"
            remedy = "Raise it, or take fewer tasks, recipes or seeds."
            raise ArgumentError("--max-runs", expected=expected, got=max_runs, remedy=remedy)
        common = {"backbone": backbone, "selection": selection, **self.fixed}
        return [self._cell(task, spec, common, share, halving) for task, spec in pairs]

    def _cell(self, task: str, spec: RecipeSpec, common: _Fields, share: int | None, halving: int | None) -> Cell:
        own_lambda_lr = recipes.get(spec.recipe, **spec.options).own_lambda_lr
        grid = {name: values for name, values in self.grid.items() if name != "lambda_lr" or own_lambda_lr}
        rest = {**common, **self.by_task.get(task, {}), **spec.fields, "recipe_options": spec.options}
        varied = (dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values()))
        points = [RunConfig(task, spec.recipe, **{**rest, **fields}) for fields in varied]
        if share is not None:
            random.Random(0).shuffle(points)
            while len(points) > 1 and sum(n for n, _ in rung_sizes(len(points), points[0].epochs, halving)) > share:
                points.pop()
        return Cell(task, spec, tuple(points), self.seeds, halving)


def _check_kind(argument: str, value: object, kind: Any, expected: str) -> None:
    if not isinstance(value, kind):
        raise ArgumentTypeError(argument, expected=expected, got=repr(value), remedy=_REMEDY)


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
        for argument in ("tasks", "recipes"):
            _check_kind(argument, data.get(argument), list, "a list")
        _check_names("fields", data, of_suite[1:], "fields of a suite")
        specs = [each if isinstance(each, dict) else {"recipe": each} for each in data["recipes"]]
        for spec in specs:
            _check_names("fields", spec, of_recipe, "fields of a recipe")
        parts = {"tasks": tuple(data["tasks"]), "recipes": tuple(RecipeSpec(**spec) for spec in specs)}
        return Suite(path.stem, **{"description": "", **data, **parts})
    except (TypeError, ArgumentError) as error:
        files = "the files in benchmarks/glue/sweeping/suites/"
        raise DataError(f"{path}: expected a suite, as {files} are; got {error}.") from error
