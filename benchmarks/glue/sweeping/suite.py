"""Suites: which tasks, recipes and hyper-parameters a sweep tries, each a small JSON file in `suites/`."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.glue import tasks
from benchmarks.glue.config import RunConfig, recipe_label
from benchmarks.glue.sweeping.search import rung_sizes
from benchmarks.seal import digest
from ponder import recipes
from ponder._utils.files import read_json
from ponder.errors import ArgumentError, ArgumentTypeError, DataError
from ponder.parts.tasks import task_named
from ponder.policies import ModelSpec

__all__ = ["Cell", "RecipeSpec", "Suite", "get", "names", "read"]

_FOLDER = Path(__file__).with_name("suites")
_OF_THE_CELL = ("task", "recipe", "recipe_options", "backbone", "seed", "selection")


@dataclass(frozen=True)
class RecipeSpec:
    """A recipe with its arguments.

    Args:
        recipe: Name of the recipe.
        options: Its arguments.
        fields: Fields of `RunConfig` for this recipe, instead of those of the task and of `Suite.fixed`.
    """

    recipe: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_kind("recipe", self.recipe, str, "the name of a recipe")
        for argument in ("options", "fields"):
            _check_kind(argument, getattr(self, argument), Mapping, "an object")

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
        halving: As in `search.replay`: None tries each point with all of its epochs.
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
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    grid: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)
    seeds: int = 5
    by_task: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

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
            raise ArgumentError(
                "suite",
                expected="at least one task, one recipe, and one value for each field of the grid",
                got=f"{len(self.tasks)} tasks, {len(self.recipes)} recipes, grid {dict(self.grid)}",
                remedy="Add one.",
            )
        object.__setattr__(self, "tasks", tuple(tasks.get(task).name for task in self.tasks))
        labels = [spec.label for spec in self.recipes]
        for what, values in (("tasks", self.tasks), ("recipes", labels)):
            if len(set(values)) < len(values):
                raise ArgumentError(what, expected="each once", got=", ".join(values), remedy="Leave one out.")
        known = {field.name for field in dataclasses.fields(RunConfig)} - set(_OF_THE_CELL)
        of_parts = [*self.by_task.values(), *(spec.fields for spec in self.recipes)]
        unknown = sorted({*self.fixed, *self.grid, *itertools.chain(*of_parts)} - known)
        if unknown:
            raise ArgumentError(
                "suite",
                expected=f"fields of a run, among {', '.join(sorted(known))}",
                got=", ".join(unknown),
                remedy="Correct the name.",
            )
        object.__setattr__(self, "by_task", {tasks.get(task).name: own for task, own in self.by_task.items()})

    def with_fixed(self, fields: Mapping[str, Any]) -> Suite:
        """The suite with these fields of `RunConfig` the same for all runs, whatever it says about them itself."""

        def others(of_part: Mapping[str, Any]) -> dict[str, Any]:
            return {name: value for name, value in of_part.items() if name not in fields}

        return dataclasses.replace(
            self,
            fixed={**self.fixed, **fields},
            grid=others(self.grid),
            by_task={task: others(own) for task, own in self.by_task.items()},
            recipes=tuple(dataclasses.replace(spec, fields=others(spec.fields)) for spec in self.recipes),
        )

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

        Raises:
            ArgumentError: The budget does not reach for one point with all seeds in every cell, halving cannot be, or
                no recipe serves any of the tasks.
        """
        if halving is not None and (halving < 2 or "epochs" in self.grid):
            raise ArgumentError(
                "--halving",
                expected="a whole number ≥ 2, and a grid without epochs, since rungs differ in them",
                got=f"{halving}, grid {', '.join(self.grid)}",
                remedy="Pass --halving 3, or fix epochs with --set.",
            )
        pairs = [(task, spec) for task in self.tasks for spec in self.recipes]
        pairs = [(task, spec) for task, spec in pairs if _serves(spec, tasks.get(task).kind)]
        if not pairs:
            raise ArgumentError(
                "suite",
                expected="a recipe whose policy is defined for one of the tasks",
                got=f"{', '.join(spec.label for spec in self.recipes)} on {', '.join(self.tasks)}",
                remedy="Entropy and confidence need classes: take another recipe or task.",
            )
        share = None if max_runs is None else max_runs // len(pairs) - (self.seeds - 1)
        if share is not None and share < 1:
            raise ArgumentError(
                "--max-runs",
                expected=f"at least {len(pairs) * self.seeds}: {len(pairs)} cells of {self.seeds} seeds each",
                got=max_runs,
                remedy="Raise it, or take fewer tasks, recipes or seeds.",
            )
        return [self._cell(task, spec, backbone, selection, share, halving) for task, spec in pairs]

    def _cell(
        self, task: str, spec: RecipeSpec, backbone: str, selection: str, share: int | None, halving: int | None
    ) -> Cell:
        own_lambda_lr = recipes.get(spec.recipe, **spec.options).own_lambda_lr
        grid = {name: values for name, values in self.grid.items() if name != "lambda_lr" or own_lambda_lr}
        of_task = self.by_task.get(task, {})
        rest = {"backbone": backbone, "selection": selection, **self.fixed, **of_task, **spec.fields}
        points = [
            RunConfig(
                task, spec.recipe, recipe_options=spec.options, **{**rest, **dict(zip(grid, values, strict=True))}
            )
            for values in itertools.product(*grid.values())
        ]
        if share is not None:
            random.Random(0).shuffle(points)
            points = points[: _affordable(share, len(points), points[0].epochs, halving)]
        return Cell(task, spec, tuple(points), self.seeds, halving)


def _check_kind(argument: str, value: object, kind: Any, expected: str) -> None:
    if not isinstance(value, kind):
        raise ArgumentTypeError(
            argument, expected=expected, got=repr(value), remedy="See docs/sweep.md for what a suite holds."
        )


def _check_fields(data: Mapping[str, Any], kind: Any, *but: str) -> None:
    known = [field.name for field in dataclasses.fields(kind) if field.name not in but]
    unknown = [name for name in data if name not in known]
    if unknown:
        got, remedy = ", ".join(unknown), "See docs/sweep.md for what a suite holds."
        raise ArgumentError("fields", expected=f"some of {', '.join(known)}", got=got, remedy=remedy)


def _serves(spec: RecipeSpec, kind: str) -> bool:
    """Whether a recipe's policy is defined for a kind of task; other errors are for the runs to tell."""
    policy = recipes.get(spec.recipe, **spec.options).for_task(kind).policy
    try:
        policy.check(ModelSpec(num_steps=1000, task=task_named(kind), has_hazard=True))
    except ArgumentError:
        return kind == "classification"
    return True


def _affordable(share: int, points: int, epochs: int, halving: int | None) -> int:
    """The most points whose rungs have at most `share` runs together."""
    return next(n for n in range(points, 0, -1) if n == 1 or sum(r for r, _ in rung_sizes(n, epochs, halving)) <= share)


def names() -> tuple[str, ...]:
    """Names of the suites that are here."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.json")))


def get(name: str) -> Suite:
    """A suite by its name, or from a JSON file of one's own.

    Raises:
        ArgumentError: There is none of this name.
        DataError: The file does not hold a suite.
    """
    if name in names():
        return read(_FOLDER / f"{name}.json")
    if name.endswith(".json") and Path(name).is_file():
        return read(Path(name))
    raise ArgumentError(
        "--suite",
        expected=f"one of {', '.join(names())}, or a JSON file",
        got=repr(name),
        remedy="Choose one of them; docs/sweep.md says what a file holds.",
    )


def read(path: Path) -> Suite:
    """Read the file of a suite."""
    data = read_json(path)
    try:
        for argument in ("tasks", "recipes"):
            _check_kind(argument, data.get(argument), list, "a list")
        _check_fields(data, Suite, "name")
        for each in filter(lambda each: isinstance(each, dict), data["recipes"]):
            _check_fields(each, RecipeSpec)
        made = [RecipeSpec(**each) if isinstance(each, dict) else RecipeSpec(each) for each in data["recipes"]]
        return Suite(path.stem, **{"description": "", **data, "tasks": tuple(data["tasks"]), "recipes": tuple(made)})
    except (TypeError, ArgumentError) as error:
        raise DataError(
            f"{path}: expected a suite, as the files in benchmarks/glue/sweeping/suites/ are; got {error}."
        ) from error
