"""What several test modules assert in the same words."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ponder.errors import ArgumentError, ArgumentTypeError, PonderError
from tests.ponder import oracles


@contextlib.contextmanager
def refused(argument: str, *words: str, type_error: bool = False) -> Iterator[pytest.ExceptionInfo[Any]]:
    """The body raises an argument error that names `argument` and says expected, got (with `words`) and remedy."""
    kind = ArgumentTypeError if type_error else ArgumentError
    with pytest.raises(kind) as caught:
        yield caught
    error = caught.value
    assert isinstance(error, PonderError)
    assert isinstance(error, TypeError if type_error else ValueError)
    message = str(error)
    assert error.argument == argument, message
    for part in (error.expected, error.got, error.remedy):
        assert part
        assert part in message
    assert message.startswith(f"{argument}: expected ")
    assert "; got " in message
    assert message.endswith((".", "?", ")"))
    for word in words:
        assert word in message, message


def records(trajectory: Any) -> list[oracles.Spec]:
    """The rows of a trajectory as plain Python, for the oracles."""
    hazards = trajectory.hazard_logits
    return [
        {
            "outputs": trajectory.outputs[row].tolist(),
            "hazard_logits": None if hazards is None else hazards[row].tolist(),
            "task": trajectory.task,
            "row_id": int(trajectory.row_ids[row]),
        }
        for row in range(len(trajectory))
    ]


def assert_exits(exits: Any, policy: Any, rows: list[oracles.Spec]) -> None:
    """Every row left where its oracle says, with the outputs of that step."""
    spec = policy.to_dict()
    assert exits.exit_step.shape == (len(rows),)
    assert exits.exit_step.dtype == torch.long
    expected = []
    for row, (record, step) in enumerate(zip(rows, exits.exit_step.tolist(), strict=True)):
        assert step in oracles.exits(spec, record), f"row {row} of {policy}: {step}, {record}"
        expected.append(record["outputs"][step - 1])
    torch.testing.assert_close(exits.outputs.double(), torch.tensor(expected).double(), atol=1e-4, rtol=1e-4)


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything that a call could leave behind on a model: weights, buffers, hooks, modes, attributes."""
    hooks = [name for name in vars(nn.Module()) if name.endswith(("hooks", "_kwargs", "always_called"))]
    return {
        "state": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "modes": {name: module.training for name, module in model.named_modules()},
        "hooks": {name: {h: len(getattr(m, h) or ()) for h in hooks} for name, m in model.named_modules()},
        "attributes": {name: sorted(vars(module)) for name, module in model.named_modules()},
        "grad": {name: parameter.requires_grad for name, parameter in model.named_parameters()},
    }


def assert_unchanged(before: dict[str, Any], model: nn.Module) -> None:
    after = snapshot(model)
    weights, now = before.pop("state"), after.pop("state")
    assert weights.keys() == now.keys()
    assert all(torch.equal(weights[name], now[name]) for name in weights)
    assert before == after
    assert torch.is_grad_enabled()


def take(tree: Any, index: Tensor) -> Any:
    """Rows of a nested state or context, written apart from the library's own."""
    if isinstance(tree, Tensor):
        return tree[index]
    if isinstance(tree, dict):
        return {key: take(value, index) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(take(value, index) for value in tree)
    return tree


def leaves(tree: Any) -> list[Tensor]:
    """The tensors of a nested state, in order."""
    if isinstance(tree, Tensor):
        return [tree]
    children = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list | tuple) else ()
    return [leaf for child in children for leaf in leaves(child)]


def to_dtype(tree: Any, dtype: torch.dtype) -> Any:
    """The floating-point tensors of a nested state in `dtype`."""
    if isinstance(tree, Tensor):
        return tree.to(dtype) if tree.is_floating_point() else tree
    if isinstance(tree, dict):
        return {key: to_dtype(value, dtype) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(to_dtype(value, dtype) for value in tree)
    return tree


class Bomb(nn.Module):
    """Passes everything through `module` until it is armed; then raises at the call numbered `armed`."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module
        self.armed: int | None = None
        self.calls = 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.armed is not None:
            self.calls += 1
            if self.calls == self.armed:
                raise Explosion
        return self.module(*args, **kwargs)

    def arm(self, call: int) -> None:
        self.armed, self.calls = call, 0

    def disarm(self) -> None:
        self.armed, self.calls = None, 0


class Explosion(Exception):
    """Not an error of the library's."""
