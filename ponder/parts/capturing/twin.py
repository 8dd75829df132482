"""Twins: shallow copies of a module that share its weights, in which some of the modules answer otherwise.

Watching or steering a forward pass by hooks changes the module that others may be calling at the same time. A twin
changes nothing: the modules on the paths to those that answer otherwise are copied without their weights, which takes
microseconds, and the copy is thrown away after the call.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import copy
from functools import partial
from operator import is_
from types import MethodType
from typing import Any
from weakref import ref

import torch
from torch import nn
from torch.nn.parameter import is_lazy

__all__ = [
    "Branches",
    "branches_to",
    "evaluating_twin",
    "training_twin",
    "twin_of",
    "unbound_forwards",
    "untraced_twin",
    "varied_twin",
    "watched_copy",
]

Branches = dict[str, Any]
"""The paths to some modules as nested dicts by attribute name; a leaf is the path under which its module is known."""

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def shallow_copy(module: nn.Module) -> nn.Module:
    """A copy with the same weights and the same children, whose children can be exchanged without touching `module`."""
    twin = object.__new__(type(module))
    twin.__dict__.update(module.__dict__)
    twin.__dict__["_modules"] = dict(module._modules)
    twin.__dict__.pop("_compiled_call_impl", None)  # would call the module that was compiled
    if "forward" in twin.__dict__:  # one put on the instance
        _bind_forward(twin, module)
    if isinstance(twin, nn.TransformerEncoder):
        twin.use_nested_tensor = False  # of whose kind tensors have no sizes to be learned
    if twin.training:
        _keep_all_layers(twin)
    return twin


def unbound_forwards(root: nn.Module) -> Iterator[str]:
    """The modules with lists of modules whose forward, put on the instance, calls them and no twin: a closure, say."""
    for path, module in root.named_modules():
        if "forward" not in module.__dict__ or hasattr(module, "_orig_mod"):  # that of `torch.compile`
            continue
        forward = _own_forward(module)
        holds_lists = any(isinstance(part, nn.ModuleList | nn.Sequential) for part in module.modules())
        if holds_lists and _bound_to(nn.Module(), module, forward) is forward:
            yield path


def _bind_forward(twin: nn.Module, module: nn.Module) -> None:
    """Bind the forward that was put on `module` itself to its twin; one that is not bound to it stays as it is."""
    forward = _own_forward(module)
    own = isinstance(forward, MethodType) and forward.__self__ is module
    if own and forward.__func__ is type(module).forward:
        del twin.__dict__["forward"]
    elif _bound_to(twin, module, forward) is not forward:
        # Not a method of the twin: that would hold all tensors of the call until Python looks for cycles.
        twin.__dict__["forward"] = partial(_call_bound, ref(twin), module)


def _call_bound(twin: ref[nn.Module], module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return _bound_to(twin(), module, _own_forward(module))(*args, **kwargs)


def _own_forward(module: nn.Module) -> Any:
    """The forward on `module` itself; without what `torch.compile` and the device hooks of accelerate put around it."""
    forward = module.__dict__["forward"]
    if isinstance(forward, partial) and forward.func.__module__ == "accelerate.hooks":
        forward = module.__dict__["_old_forward"]
    if not isinstance(forward, MethodType):  # which has the attributes of its function
        forward = getattr(forward, "_torchdynamo_orig_callable", forward)
    return forward


def _bound_to(twin: nn.Module | None, module: nn.Module, part: Any) -> Any:
    """`part` of a forward with the twin in the place of the module; itself, where nothing tells that it has it."""
    if part is module:
        return twin
    if isinstance(part, ref):
        return ref(twin) if part() is module else part
    if isinstance(part, MethodType):
        return partial(part.__func__, twin) if part.__self__ is module else part
    if not isinstance(part, partial):
        return part
    held = [part.func, *part.args, *part.keywords.values()]
    func, *bound = (_bound_to(twin, module, each) for each in held)
    if all(map(is_, held, (func, *bound))):
        return part
    count = len(part.args)
    return partial(func, *bound[:count], **dict(zip(part.keywords, bound[count:], strict=True)))


def _keep_all_layers(twin: nn.Module) -> None:
    """Switch LayerDrop off: which layers a call has is learned, and rows can leave at each of them."""
    own = twin.__dict__
    if own.get("layerdrop"):
        own["layerdrop"] = 0.0
    if getattr(own.get("config"), "layerdrop", None):
        own["config"] = copy(own["config"])
        own["config"].layerdrop = 0.0


def branches_to(root: nn.Module, paths: Iterable[str]) -> Branches:
    """The branches of `root` that lead to the modules at `paths`, by every name that these modules have."""
    known = {id(root.get_submodule(path)): path for path in paths}
    branches: Branches = {}
    for name, module in root.named_modules(remove_duplicate=False):
        if id(module) not in known:
            continue
        *above, last = name.split(".")
        node = branches
        for part in above:
            node = node.setdefault(part, {})
            if isinstance(node, str):  # inside a module that answers otherwise as a whole
                break
        else:
            node[last] = known[id(module)]
    return branches


def twin_of(root: nn.Module, branches: Branches, answers: Mapping[str, Callable[..., Any]]) -> nn.Module:
    """A twin of `root` in which the module known as `path` answers by `answers[path](path, *args, **kwargs)`.

    Args:
        root: The module; it is not changed.
        branches: What `branches_to` gave.
        answers: An answer for every leaf of the branches.
    """
    return _branched(root, branches, answers, {})


def evaluating_twin(root: nn.Module) -> nn.Module:
    """A twin of `root` with all its modules, in evaluation mode; `root` keeps its mode."""

    def still(_: str, module: nn.Module) -> None:
        module.__dict__["training"] = False

    return _copy_all(root, still)


def training_twin(root: nn.Module) -> nn.Module:
    """A twin of `root` with all its modules, in training mode, with buffers of its own: running statistics move."""

    def learning(path: str, module: nn.Module) -> None:
        _own_buffers(path, module)
        module.__dict__["training"] = True

    return _copy_all(root, learning)


def untraced_twin(root: nn.Module) -> nn.Module:
    """A twin of `root` with all its modules, each in its mode, whose calls leave no trace in the buffers of `root`."""
    return _copy_all(root, _own_buffers)


def varied_twin(root: nn.Module) -> nn.Module | None:
    """A twin of `root` in which parameters that are one number throughout have others; None where there are none.

    New parameters are mostly such: zeros and ones, under which a bias, a gate or a scale does nothing yet.
    """
    varied: dict[int, nn.Parameter] = {}
    generator = torch.Generator().manual_seed(0)
    for parameter in root.parameters():
        if _is_one_number(parameter):
            noise = torch.randn(parameter.shape, generator=generator).to(parameter) * parameter.abs().clamp(min=1.0)
            varied[id(parameter)] = nn.Parameter(parameter + 0.05 * noise, requires_grad=False)
    if not varied:
        return None

    def other(_: str, module: nn.Module) -> None:
        own = {name: varied.get(id(parameter), parameter) for name, parameter in module._parameters.items()}
        module.__dict__["_parameters"] = own

    return _copy_all(root, other)


def _own_buffers(_: str, module: nn.Module) -> None:
    own = {name: buffer if buffer is None else buffer.clone() for name, buffer in module._buffers.items()}
    module.__dict__["_buffers"] = own


def _is_one_number(parameter: nn.Parameter) -> bool:
    """Whether a parameter holds one number throughout; of lazy, sparse and such small types as float8 nobody asks."""
    if is_lazy(parameter) or parameter.is_meta or parameter.layout != torch.strided or not parameter.numel():
        return False
    if parameter.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        return False
    low, high = parameter.aminmax()
    return bool(low == high)


def watched_copy(root: nn.Module, watch: Callable[..., Any]) -> nn.Module:
    """A twin of `root` whose modules, each known by its path, run as `watch(path, forward, *args, **kwargs)`."""

    def watched(path: str, module: nn.Module) -> None:
        module.__dict__["forward"] = partial(watch, path, module.forward)

    return _copy_all(root, watched)


def _answering(module: nn.Module, answer: Callable[..., Any]) -> nn.Module:
    """A copy of `module`, with its attributes, that answers by `answer`: no hooks, no gradient checkpointing."""
    stub = shallow_copy(module)
    stub.__dict__.update({name: OrderedDict() for name in _HOOKS}, forward=answer)  # modules refer to them weakly
    if "gradient_checkpointing" in stub.__dict__:
        stub.__dict__["gradient_checkpointing"] = False
    return stub


def _branched(
    module: nn.Module, below: Branches, answers: Mapping[str, Callable[..., Any]], made: dict[str, nn.Module]
) -> nn.Module:
    """A copy of `module` down to what answers otherwise.

    No closure: one that calls itself outlives the call, and with it all tensors that answers hold, until Python looks
    for cycles.
    """
    twin = shallow_copy(module)
    for name, further in below.items():
        child = module._modules[name]
        assert child is not None
        if isinstance(further, dict):
            twin._modules[name] = _branched(child, further, answers, made)
        else:
            if further not in made:
                made[further] = _answering(child, partial(answers[further], further))
            twin._modules[name] = made[further]
    return twin


def _copy_all(
    module: nn.Module,
    change: Callable[[str, nn.Module], None],
    path: str = "",
    copies: dict[int, nn.Module] | None = None,
) -> nn.Module:
    copies = {} if copies is None else copies
    if id(module) not in copies:
        copies[id(module)] = twin = shallow_copy(module)
        for name, child in module._modules.items():
            if child is not None:
                twin._modules[name] = _copy_all(child, change, f"{path}.{name}".strip("."), copies)
        change(path, twin)
    return copies[id(module)]
