"""What holds for every plug-in that is a hyper-parameter object: frozen, copied and written without loss."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable, Iterable
from typing import Any

from ponder._utils.registry import Plugin
from ponder.errors import ArgumentTypeError, PonderError
from ponder.testing.contract import ContractError, require

__all__ = ["Same", "check_copies", "check_frozen", "check_needs", "check_registered", "check_remembers_nothing", "kept"]

Same = Callable[[Any, Any], bool]


def check_frozen(argument: str, plugin: Any, base: type[Plugin]) -> None:
    """Check that it is an instance of `base`, a frozen dataclass, and hashable.

    Args:
        argument: Its name, for messages.
        plugin: The object.
        base: What it must be an instance of.
    """
    if not isinstance(plugin, base):
        raise ArgumentTypeError(
            argument,
            expected=f"an instance of {base.__name__}",
            got=f"the class {plugin.__name__}" if isinstance(plugin, type) else type(plugin).__name__,
            remedy=f"Pass an object with its hyper-parameters, of a subclass of {base.__name__}.",
        )
    kind = type(plugin)
    parameters = vars(kind).get("__dataclass_params__")
    require(
        parameters is not None and parameters.frozen,
        kind.__name__,
        "a plug-in is a frozen dataclass",
        f"{kind.__name__} is {'no dataclass of its own' if parameters is None else 'a dataclass that can be changed'}",
        "Put @dataclass(frozen=True) on the class.",
    )
    try:
        hash(plugin)
    except TypeError as error:
        raise ContractError(
            plugin, "a plug-in can be hashed", str(error), "Hold tuples instead of lists, and no dicts or tensors."
        ) from error


def check_needs(plugin: Any, known: Iterable[str]) -> None:
    """Check that `needs` is a frozenset of known names."""
    needs, known = plugin.needs, sorted(known)
    require(
        isinstance(needs, frozenset) and needs <= set(known),
        plugin,
        f"needs is a frozenset, part of {known}",
        repr(needs),
        f"Write needs = frozenset({{{known[0]!r}}}), say, on the class, without a type annotation.",
    )


def kept(plugin: Plugin) -> str:
    """What a plug-in and its class hold, in words: what a call could leave there for the next one."""
    held = {**vars(type(plugin)), **vars(plugin)}
    return repr({name: value for name, value in held.items() if not name.startswith("__") and not callable(value)})


def check_remembers_nothing(plugin: Plugin, before: str) -> None:
    """Check that nothing was left behind in a plug-in or its class.

    Args:
        plugin: The object, after it was called.
        before: What `kept` gave before.
    """
    require(
        kept(plugin) == before,
        plugin,
        "a plug-in remembers nothing from one call to the next",
        f"it holds {kept(plugin)}, and before the calls it held {before}",
        "Carry what changes in the state of a run; nothing belongs on the object or on its class.",
    )


def check_registered(plugin: Plugin) -> None:
    """Check that a plug-in has a name, and turns into JSON and back."""
    kind = type(plugin)
    try:
        plugin.registry.name_of(kind)
    except PonderError as error:
        raise ContractError(
            plugin,
            "a plug-in is registered",
            str(error),
            f"Put the {plugin.registry.kind} registry's register('a-name') on the class, or install the package whose "
            f"entry point (group {plugin.registry.group!r}) names it.",
        ) from error
    rule = "from_dict(to_dict()) gives an equal object, by way of JSON"
    remedy = "Keep fields plain: numbers, strings, tuples, other plug-ins; __post_init__ must take what it has made."
    try:
        data = json.loads(json.dumps(plugin.to_dict()))
        twin = type(plugin).from_dict(data)
    except Exception as error:
        raise ContractError(plugin, rule, f"{type(error).__name__}: {error}", remedy) from error
    require(twin == plugin, plugin, rule, f"{data} came back as {twin!r}", remedy)


def check_copies(plugin: Plugin, behaves_alike: Same) -> None:
    """Copies of every kind are equal and behave alike.

    Args:
        plugin: The object.
        behaves_alike: Whether two equal objects give the same results.
    """
    ways: dict[str, Callable[[Any], Any]] = {
        "from_dict(to_dict()), by way of JSON,": lambda p: type(p).from_dict(json.loads(json.dumps(p.to_dict()))),
        "copy.deepcopy": copy.deepcopy,
        "pickle": lambda p: pickle.loads(pickle.dumps(p)),
    }
    for way, make in ways.items():
        rule = f"{way} gives an equal object that behaves the same"
        remedy = "Keep everything that matters in fields, and the class at the top level of its module."
        try:
            twin = make(plugin)
        except Exception as error:
            raise ContractError(plugin, rule, f"{type(error).__name__}: {error}", remedy) from error
        require(twin == plugin and hash(twin) == hash(plugin), plugin, rule, f"got {twin!r}", remedy)
        require(behaves_alike(plugin, twin), plugin, rule, "equal objects gave different results", remedy)
