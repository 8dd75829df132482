"""Everything that a call could leave behind on a model."""

from __future__ import annotations

from typing import Any

from torch import nn

from ponder._utils.trees import alike

__all__ = ["differences", "snapshot"]

_HOOKS = tuple(name for name in vars(nn.Module()) if name.endswith(("hooks", "_kwargs", "always_called")))


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Weights, buffers, modes, hooks, names of attributes and gradients' flags, by module or tensor."""
    return {
        **{f"the weights {name}": tensor.clone() for name, tensor in model.state_dict().items()},
        **{f"the gradient of {name}": weight.requires_grad for name, weight in model.named_parameters()},
        **{f"the mode of {_named(name)}": module.training for name, module in model.named_modules()},
        **{f"the attributes of {_named(name)}": sorted(vars(module)) for name, module in model.named_modules()},
        **{f"the hooks of {_named(name)}": _hooks(module) for name, module in model.named_modules()},
    }


def differences(before: dict[str, Any], model: nn.Module) -> list[str]:
    """What is not as it was when the snapshot `before` was taken."""
    after = snapshot(model)
    return [name for name in {**before, **after} if not alike(before.get(name), after.get(name))]


def _hooks(module: nn.Module) -> list[int]:
    return [len(getattr(module, name) or ()) for name in _HOOKS]


def _named(name: str) -> str:
    return name or "the model"
