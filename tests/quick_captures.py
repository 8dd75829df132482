"""A module that is captured again, with the same weights and settings, is not learned and proved anew.

Tests make the same tiny encoder over and over, and to read it costs a few dozen calls of it each time. What is kept is
what was learned of the layers; the copy that is handed out calls those of the module that was given. For tests of what
is built on captured encoders, not for those of the capture itself.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ponder._utils.trees import leaves
from ponder.integrations.transformers import captured
from ponder.parts.capturing import captured as capturing
from ponder.parts.capturing.learning import learn

__all__ = ["quick_captures"]

_KNOWN: dict[bytes, tuple[list[nn.Module], Any]] = {}
_OF_FILES = {
    "config",
    "name_or_path",
    "_name_or_path",
    "_weight_conversions",
    "architectures",
    "dtype",
    "weights_digest",
}
"""What tells where weights came from; the weights themselves are looked at."""


@contextmanager
def quick_captures() -> Iterator[None]:
    """Within, what was learned once in this process is taken over by modules of which nothing differs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(captured, "learn", _learn_once)
        patch.setattr(capturing, "learn", _learn_once)
        yield


def _learn_once(module: nn.Module, example: Any, **options: Any) -> Any:
    tensors = [*module.parameters(), *module.buffers(), *leaves(example)]
    if any(isinstance(tensor, Tensor) and tensor.is_meta for tensor in tensors):
        return learn(module, example, **options)
    key, parts = _key(module, example, tensors, options), list(module.modules())
    if key not in _KNOWN:
        layered = learn(module, example, **options)
        _KNOWN[key] = parts, copy.deepcopy(layered, {id(part): part for part in parts})
        return layered
    theirs, layered = _KNOWN[key]
    return copy.deepcopy(layered, {id(old): new for old, new in zip(theirs, parts, strict=True)})


def _key(module: nn.Module, example: Any, tensors: list[Any], options: dict[str, Any]) -> bytes:
    """All that is learned depends on: code, settings, modes, hooks, weights, and what the module is called with."""
    told: list[Any] = [list(example) if isinstance(example, dict) else type(example)]
    told += [(name, _told(value)) for name, value in options.items()]
    for path, part in module.named_modules():
        told.append((path, type(part).__module__, type(part).__qualname__, len(part._modules)))
        own = {name: _told(value) for name, value in vars(part).items() if name not in _OF_FILES}
        told += [(name, value) for name, value in own.items() if value not in (None, False)]
    configs = {id(part.config): part.config for part in module.modules() if hasattr(part, "config")}
    for config in configs.values():
        settings = {name: value for name, value in config.to_dict().items() if name not in _OF_FILES}
        told.append((settings, config._attn_implementation))
    digest = hashlib.sha256(repr(told).encode())
    for value in tensors:
        if isinstance(value, Tensor):
            digest.update(repr((value.dtype, value.shape)).encode())
            digest.update(value.detach().reshape(-1).view(torch.uint8).numpy().tobytes())
        else:
            digest.update(repr(value).encode())
    return digest.digest()


def _told(value: Any) -> Any:
    if isinstance(value, bool | int | float | str | torch.dtype | torch.device | None):
        return value
    if isinstance(value, Callable):
        return getattr(value, "__qualname__", type(value))
    if isinstance(value, Tensor):
        return value.tolist()
    return type(value), len(value) if isinstance(value, dict | list | tuple | set) else None
