"""Stages of a cascade: anything that gives the probabilities of classes for a list of inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ponder._utils.arrays import softmax
from ponder.calibration.records import as_array
from ponder.errors import ArgumentError, CheckpointError
from ponder.policies.base import ExitPolicy, LastStep

__all__ = ["Stage", "classes_of", "stage_of"]

Floats = NDArray[Any]
_LEAST = 1e-12  # probability
_READERS = {
    "cascade.json": "ponder.cascade.cascade:Cascade.load",
    "student.json": "ponder.cascade.student:Student.load",
    "export.json": "ponder.deploy.runtime:OnnxModel",
    "head.safetensors": "model2vec.inference:StaticModelPipeline.from_pretrained",
    "config.json": "ponder.integrations.transformers.reading:read_stage",
}
"""How a folder is read, by the file that it holds; modules are loaded when a folder asks for them."""


class Stage:
    """A model in a cascade.

    Args:
        model: It has `predict_proba` (and `classes_`), as in scikit-learn, or `predict`, whose answers have `outputs`
            (logits), as those of ponder; or it is a function to probabilities.

    Attributes:
        classes: Names of its classes, in its order; None where they are those of the last stage.
        num_steps: The number of steps of a model whose policy lets rows exit; 1 of any other.
    """

    def __init__(self, model: Any) -> None:
        self.model, self.classes = model, classes_of(model)
        steps, policy = (
            getattr(getattr(model, "ponder", model), "num_steps", 1),
            getattr(model, "policy", None),
        )
        exits = isinstance(policy, ExitPolicy) and policy.exit_of_all(steps) is None
        self.num_steps: int = steps if exits else 1

    def outputs(
        self, inputs: Sequence[Any], classes: Sequence[str], policy: ExitPolicy | None = None
    ) -> Floats:
        """Return log-probabilities of `classes` for each input, `(rows, classes)`; 1e-12 stands for none.

        A `policy` decides on the exits of a model that has some, instead of its own.
        """
        if hasattr(self.model, "predict_proba"):
            answers = self.model.predict_proba(inputs)
        elif hasattr(self.model, "predict"):
            options = {} if policy is None else {"policy": policy}
            answers = softmax(as_array(self.model.predict(inputs, **options).outputs))
        else:
            answers = self.model(inputs)
        return self._logs(inputs, classes, answers, 2)

    def steps(self, inputs: Sequence[Any], classes: Sequence[str]) -> Floats:
        """Return log-probabilities at each step of a model with exits, `(rows, steps, classes)`."""
        return self._logs(inputs, classes, softmax(as_array(self.model.record(inputs).outputs)), 3)

    def full(self, inputs: Sequence[Any], classes: Sequence[str]) -> Floats:
        """Return log-probabilities at full depth, `(rows, classes)`."""
        return self.outputs(inputs, classes, LastStep() if self.num_steps > 1 else None)

    def _logs(
        self, inputs: Sequence[Any], classes: Sequence[str], answers: Any, dims: int
    ) -> Floats:
        """Return the logarithm of answers in the order of `classes`; refuse what are no probabilities of them."""
        made, own = np.asarray(answers, dtype=np.float64), tuple(self.classes or classes)
        sized = made.ndim == dims and (len(made), made.shape[-1]) == (len(inputs), len(own))
        shares = np.nanmin(made, initial=0) >= 0 and np.nanmax(made, initial=0) <= 1.001
        if not (sized and shares and set(own) <= set(classes)):
            expected = f"probabilities ({len(inputs)}, {len(own)}) of classes among those of the last stage"
            got = f"shape {made.shape} of {list(own)[:5]}, from {np.nanmin(made):.4g} to {np.nanmax(made):.4g}"
            remedy = "Return one probability a class, such as predict_proba; name the same classes in every stage."
            raise ArgumentError("stages", expected=expected, got=got, remedy=remedy)
        spread = np.zeros((*made.shape[:-1], len(classes)))
        spread[..., [classes.index(name) for name in own]] = made
        return np.asarray(np.log(np.maximum(spread, _LEAST)))

    def save(self, folder: Path) -> None:
        """Write the stage to a folder, from which `stage_of` reads it."""
        write = getattr(self.model, "save", getattr(self.model, "save_pretrained", None))
        if write is None:
            expected = "stages that can be written: a Student, a model of ponder, an export"
            remedy = "Keep it yourself, and give it again: Cascade.load(folder, stages=[…])."
            raise ArgumentError(
                "stages", expected=expected, got=f"a {type(self.model).__name__}", remedy=remedy
            )
        write(folder)


def stage_of(given: Any) -> Stage:
    """Return anything that can be a stage as one: a model, a function, or the folder of a model, which is read."""
    if isinstance(given, Stage):
        return given
    if isinstance(given, str | Path):
        folder = Path(given)
        name = next((name for name in _READERS if (folder / name).is_file()), None)
        if name is None:
            files = ", ".join(_READERS)
            raise CheckpointError(
                f"{folder}: expected the folder of a model or an export; got none of {files}."
            )
        module, _, reader = _READERS[name].partition(":")
        return Stage(attrgetter(reader)(import_module(module))(folder))
    if callable(given) or hasattr(given, "predict_proba") or hasattr(given, "predict"):
        return Stage(given)
    expected = "models with predict_proba or predict, functions, or folders"
    remedy = "Pass a function from a list of inputs to probabilities (rows, classes)."
    raise ArgumentError("stages", expected=expected, got=repr(given), remedy=remedy)


def classes_of(model: Any) -> tuple[str, ...] | None:
    """Return the names of a model's classes, in their order; None where it has none."""
    names = getattr(getattr(model, "config", None), "id2label", None)
    if isinstance(names, Mapping):
        return tuple(str(names[place]) for place in sorted(names))
    found = getattr(model, "classes_", getattr(model, "classes", None))
    found = getattr(getattr(model, "manifest", None), "labels", None) or found
    return None if found is None else tuple(map(str, found))
