"""Save and load wrapped models and loops: one safetensors file with the settings in its metadata.

Nothing is ever unpickled.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from ponder._utils.files import reading
from ponder._utils.seals import read_sealed, write_sealed
from ponder.errors import CheckpointError
from ponder.loops import Loop
from ponder.policies import ExitPolicy
from ponder.policies.combine import promise_about
from ponder.priors import Prior
from ponder.recipes import Stage
from ponder.wrapper import PonderWrapper

__all__ = ["load", "save"]

_FORMAT = "ponder-model-4"
M = TypeVar("M", PonderWrapper, Loop)


def save(model: PonderWrapper | Loop, file: str | Path) -> None:
    """Write a wrapped model or a loop to one file.

    The file holds its weights, policy, prior, objective, stages and schedule. It is replaced in one
    act: an interrupted save leaves the old one.

    Args:
        model: The model; a `ponder.loops.Loop` has no stages and no schedule.
        file: The file, ``"model.safetensors"`` say. Its folder is made if it does not exist.

    Example:
        >>> model = PonderWrapper(nn.Linear(4, 4), num_steps=3, head=nn.Linear(4, 2))
        >>> model.policy = policies.Confidence(0.9)
        >>> ponder.save(model, "model.safetensors")
        >>> again = PonderWrapper(nn.Linear(4, 4), num_steps=3, head=nn.Linear(4, 2))
        >>> ponder.load("model.safetensors", into=again).policy
        Confidence(threshold=0.9)
    """
    write_sealed(file, _FORMAT, _settings(model), _unshared(model.state_dict()))


def load(file: str | Path, *, into: M) -> M:
    """Read what `save` wrote into a model that was built in the same way, and return it.

    The policy, prior, objective and stages become those that were saved. A certificate that is
    about other weights than those of the file is dropped, with a warning.

    Args:
        file: The file.
        into: A model of the same architecture. After an error it is as it was before.

    Raises:
        CheckpointError: The file is missing, truncated, of another format or of another model.
    """
    saved = read_sealed(file, _FORMAT, "model of ponder.save", "pt")
    settings, weights = saved.settings, saved.tensors
    expected = _unshared(into.state_dict())
    wrong = sorted(expected.keys() ^ weights.keys())
    wrong += [
        name
        for name in sorted(expected.keys() & weights.keys())
        if expected[name].shape != weights[name].shape
    ]
    own = _architecture(into)
    with reading(file, "model"):
        policy = ExitPolicy.from_dict(settings["policy"])
        stages = tuple(map(Stage.from_dict, settings["stages"]))
        prior = None if settings["prior"] is None else Prior.from_dict(settings["prior"])
    wrong += [name for name, value in own.items() if settings.get(name, "missing") != value]
    if wrong:
        raise CheckpointError(
            f"{file}: of another model: {', '.join(wrong)} missing, unknown or different. "
            "Build the model as it was when it was saved."
        )
    if isinstance(into, PonderWrapper):
        into.checked(policy)
    if settings["prior"] != _prior_of(into):
        into.prior = prior
    if isinstance(into, PonderWrapper):
        into.stages = stages
    into.load_state_dict(weights, strict=False)  # names that share a tensor stand in the file once
    into.policy = promise_about(into.weights_digest, policy, saved.changed)
    return into


def _settings(model: PonderWrapper | Loop) -> dict[str, Any]:
    """Return all that makes up a model, except its weights, in plain JSON types."""
    stages = model.stages if isinstance(model, PonderWrapper) else ()
    return {
        **_architecture(model),
        "policy": model.policy.to_dict(),
        "prior": _prior_of(model),
        "stages": [stage.to_dict() for stage in stages],
    }


def _architecture(model: PonderWrapper | Loop) -> dict[str, Any]:
    """Return the settings that a model into which a file is read must have itself."""
    own: dict[str, Any] = {
        "task": None if model.task is None else model.task.name,
        "initial": getattr(model.lambda_head, "initial", None),
    }
    if isinstance(model, Loop):
        return {**own, "halted": model.halted}
    return {**own, "num_steps": model.num_steps, "schedule": list(model.steps.schedule)}


def _prior_of(model: PonderWrapper | Loop) -> dict[str, Any] | None:
    return None if model.prior is None else model.prior.to_dict()


def _unshared(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return each tensor once, under its first name."""
    first: dict[object, tuple[str, Tensor]] = {}
    for name, tensor in state.items():
        place = (tensor.data_ptr(), tensor.shape, tensor.stride()) if tensor.numel() else name
        first.setdefault(place, (name, tensor))
    return dict(first.values())
