"""Readings: what the layers of a module are called with, read by one forward of a twin.

`read_call` runs the module's own forward in a twin, whose stubs name every tensor that reaches a
layer. The first reading of a kind of call *learns*: layers run, and the forward ends. Later
readings run no layers: a stand-in is handed on in the place of a layer's output, and the forward
stops once all tensors are known. A later call *fits* a kind if its layers are called in the same
way; rows of calls of one kind can share a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves

from ponder._utils.trees import Tree, map_tensors
from ponder.model.twins import (
    Arguments,
    NamedArguments,
    PositionalArguments,
    Slot,
    Stubs,
    WatchedCall,
    make_stubs,
    make_twin,
    refusal,
)

__all__ = ["LayerCall", "LayerContract", "ReadStem", "Reading", "Select", "read_call"]

Select = Callable[[Any], Any]
"""A function from the output of a module to the tensor that a readout returns."""


@dataclass(frozen=True)
class LayerContract:
    """How the layers of a module hand on the hidden state.

    Args:
        order: The paths of the layers, in the order in which they are called.
        stubs: The stubs of the module.
        entry: Where the hidden state lies among the leaves of a layer's arguments.
        handed: By name, where a layer's output has what the next layer reads: ``"hidden"``, and
            ``"other1"`` … if layers hand on more.
        output: A layer's output with slots for its tensors; the key says whether it is the state.
    """

    order: list[str]
    stubs: Stubs
    entry: int
    handed: dict[str, int]
    output: Any

    @classmethod
    def read(cls, module: nn.Module, layers: Sequence[WatchedCall]) -> LayerContract:
        """Read the contract from the calls of the layers, as they were watched.

        The hidden state is the first tensor that the first layer returns and the second one reads.
        """
        outputs = [leaf for call in layers for leaf in tree_leaves(call.output)]
        if any(isinstance(leaf, int | float) for leaf in outputs):
            got = "layers that hand on numbers, which may depend on their input"
            raise refusal(got, "Let them hand on tensors.")
        order = [call.path for call in layers]
        returned = tree_leaves(layers[0].output)
        read = [id(leaf) for leaf in tree_leaves((layers[1].args, layers[1].kwargs))]
        first, *others = _places_read(returned, read) or [0]
        hidden = returned[first]
        entry = 0
        if id(hidden) in read:
            entry = read.index(id(hidden))
        return cls(
            order=order,
            stubs=make_stubs(module, {id(module.get_submodule(path)): path for path in order}),
            entry=entry,
            handed={"hidden": first, **{f"other{place}": place for place in others}},
            output=map_tensors(lambda tensor: Slot(tensor is hidden), layers[0].output),
        )

    def stand_in(self, hidden: Tensor) -> Tree:
        """Return a placeholder for a layer's output: `hidden`, and zeros for other tensors."""

        def fill(slot: Slot) -> Tensor:
            is_state = slot.key
            return hidden if is_state else hidden.new_zeros(())

        return map_tensors(fill, self.output, Slot)


def _places_read(returned: Sequence[object], read: Collection[int]) -> list[int]:
    """Return the places of the tensors, among what a layer returned, that the next one reads.

    Args:
        returned: The leaves of the layer's output.
        read: The identities of the leaves of the next layer's arguments.
    """
    places: list[int] = []
    for place, leaf in enumerate(returned):
        if isinstance(leaf, Tensor) and id(leaf) in read:
            places.append(place)
    return places


class ReadStem(Protocol):
    """The stem of a captured module, as a reading needs it."""

    module: nn.Module
    contract: LayerContract
    selects: list[Select]


@dataclass(frozen=True)
class LayerCall:
    """A call of a layer: its path, and its arguments as leaves (with slots) and their structure."""

    path: str
    leaves: list[Any]
    spec: TreeSpec


@dataclass(eq=False)
class Reading:
    """A call of a captured module, as its layers met it.

    Args:
        stem: The stem that read it.
        name: The first part of the names of its tensors.
        calls: The calls of the layers.
        tensors: All tensors that layers are called with, by name; ``"hidden"`` is h_0.
        handed: The tensors that the last layer hands on, by name.
        early: Whether all tensors are known when the first layer is called.
        following: For each part of the output that a readout selects, the paths of the modules that
            make it of the last hidden state, one after the other; None if other code does.
        replays: Whether a readout needs the module's own forward again.
        before: What the modules in front of the layers returned, with slots for tensors; None for
            one that code behind it writes into. Empty if nothing is replayed.
        needed: How many layers were called, in a call that was read until all tensors were known;
            None for a call that ended.
        shared: The names of the tensors that have no rows.
    """

    stem: ReadStem
    name: str
    calls: list[LayerCall]
    tensors: dict[str, Tensor]
    handed: dict[str, Tensor]
    early: bool
    following: dict[Select, tuple[str, ...] | None]
    replays: bool
    before: list[Any]
    needed: int | None
    shared: set[str] = field(default_factory=set)

    def fits(self, kind: Reading) -> bool:
        """Whether the call went like the one that taught `kind`, as far as it was read."""
        return self.calls == kind.calls[: self.needed] and self.before == kind.before

    def replay(self, hidden: Tensor, context: Arguments) -> Tree:
        """Return the module's output by its own forward, in which every layer returns `hidden`.

        Modules in front of the layers return what they returned in the stem. All are clones, since
        code that follows may write into them.
        """
        contract = self.stem.contract
        before = iter(self.before)

        def answer(path: str, part: nn.Module, *args: Any, **kwargs: Any) -> Tree:
            if path in contract.order:
                return contract.stand_in(hidden.clone())
            known = next(before, None)
            if known is None:
                return part(*args, **kwargs)
            return map_tensors(lambda slot: context[slot.key].clone(), known, Slot)

        arguments = {
            name.removeprefix("given_"): value
            for name, value in context.items()
            if name.startswith("given_")
        }
        return make_twin(self.stem.module, contract.stubs, answer)(**arguments)


def read_call(
    stem: ReadStem, module: nn.Module, arguments: Arguments, kind: Reading | None, name: str = ""
) -> Reading:
    """Read a call of a captured module.

    Args:
        stem: The stem, with the contract of the layers.
        module: The module that runs: the stem's, or a copy of it.
        arguments: The arguments of the call.
        kind: The kind that the call is expected to fit; None to learn a new one.
        name: The first part of the names of a new kind's tensors.

    Raises:
        ArgumentError: Code of the module's own changes the hidden state between two layers.
    """
    reader = _CallReader(stem, kind, name)
    following: dict[Select, tuple[str, ...] | None] = {}
    with suppress(_EnoughError):
        output = make_twin(module, stem.contract.stubs, reader.answer)(**arguments)
        slots = map_tensors(reader.made_by, output)
        for select in stem.selects:
            following[select] = None
            with suppress(Exception):  # a function that computes something of several tensors
                following[select] = select(slots).key
    if kind is None:
        replays = None in following.values()
    else:
        replays = kind.replays
    before: list[Tree] = []
    if replays:
        before = reader.answers_before()
    return Reading(
        stem=stem,
        name=reader.names.prefix,
        calls=reader.calls,
        before=before,
        tensors=reader.names.tensors,
        handed=reader.handed,
        early=reader.early,
        following=following,
        replays=replays,
        needed=reader.needed,
    )


def _calls_needed(kind: Reading) -> int:
    """Return how many layers must be called until all tensors of a call of this kind are known."""
    return 1 if kind.early else len(kind.stem.contract.order)


class _EnoughError(Exception):
    """Raised by a stub: the stem needs no more of the forward."""


class _TensorKey(NamedTuple):
    """Identity of a tensor in one call; writing in place makes another version."""

    identity: int
    version: int


def _key_of(tensor: Tensor) -> _TensorKey:
    if tensor.is_inference():
        # In inference mode versions are not counted; capture itself never runs in it.
        return _TensorKey(id(tensor), 0)
    return _TensorKey(id(tensor), tensor._version)


def _keys_of(value: Tree) -> list[_TensorKey]:
    return [_key_of(leaf) for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


class _TensorNames:
    """Names of the tensors that one call meets.

    A name of None marks a tensor that layers may not read, as the state of an earlier layer. All
    tensors that are met are kept alive until the call ends: the identity of one that was freed
    could be given to another.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.tensors: dict[str, Tensor] = {}
        """All tensors that layers were called with, by name."""
        self._names: dict[_TensorKey, str | None] = {}
        self._alive: list[Any] = []

    def keep_alive(self, *values: Any) -> None:
        """Keep values until the call ends."""
        self._alive += values

    def set(self, tensor: Tensor, name: str) -> None:
        """Name a tensor."""
        self._names[_key_of(tensor)] = name

    def hide(self, value: Tree) -> None:
        """Forbid layers to read the tensors of a value."""
        self._names |= dict.fromkeys(_keys_of(value))

    def hide_names(self, names: Collection[str]) -> None:
        """Forbid layers to read the tensors that have had these names so far."""
        self._names |= {key: None for key, name in self._names.items() if name in names}

    def forget_states(self) -> None:
        """Keep the names of the tensors that are not states, which replays put in."""
        lasting = self.tensors.keys() - {"hidden"}
        self._names = {key: name for key, name in self._names.items() if name in lasting}

    def slot_of(self, tensor: Tensor) -> Slot:
        """Return the slot of a tensor; a new one gets a name, unless it was written in place."""
        key = _key_of(tensor)
        if key not in self._names:
            written = any(known.identity == key.identity for known in self._names)
            if written:
                self._names[key] = None
            else:
                name = f"{self.prefix}_{len(self.tensors)}"
                self._names[key] = name
                self.tensors[name] = tensor
        return Slot(self._names[key])


class _CallReader:
    """The answers of the stubs in one call, and what they note."""

    def __init__(self, stem: ReadStem, kind: Reading | None, name: str) -> None:
        self.contract = stem.contract
        self.learns = kind is None
        self.needed: int | None = None
        if kind is not None:
            self.needed = _calls_needed(kind)
            name = kind.name
        self.names = _TensorNames(name)
        self.calls: list[LayerCall] = []
        self.handed: dict[str, Tensor] = {}
        self.early = True
        # Outputs of the modules in front of the layers, and the keys of their tensors then.
        self._outputs_before: list[tuple[Any, list[_TensorKey]]] = []
        # The modules that made a tensor of the last hidden state, by their paths.
        self._chains: dict[_TensorKey, tuple[str, ...]] = {}

    def answer(self, path: str, part: nn.Module, *args: Any, **kwargs: Any) -> Tree:
        """Answer for a module of the twin, and note the call."""
        if path in self.contract.order:
            return self._answer_layer(path, part, args, kwargs)
        return self._answer_other(path, part, args, kwargs)

    def made_by(self, tensor: Tensor) -> Slot:
        """Return a slot with the modules that make a tensor of the last hidden state."""
        return Slot(self._chains.get(_key_of(tensor)))

    def answers_before(self) -> list[Tree]:
        """Return the outputs of the modules in front of the layers, with slots for tensors."""
        self.names.forget_states()
        answers: list[Tree] = []
        for output, keys in self._outputs_before:
            if _keys_of(output) == keys:
                answers.append(map_tensors(self.names.slot_of, output))
            else:
                # The forward would write into it once more if it were put in.
                answers.append(None)
        return answers

    def _answer_other(
        self, path: str, part: nn.Module, args: PositionalArguments, kwargs: NamedArguments
    ) -> Tree:
        """Run a module beside the layers: one in front of them, or one that follows them."""
        before = None
        if args and isinstance(args[0], Tensor):
            before = _key_of(args[0])
        output = part(*args, **kwargs)
        self.names.keep_alive(args, output)
        if not self.calls:
            self._outputs_before.append((output, _keys_of(output)))
        elif before in self._chains and isinstance(output, Tensor) and len(args) + len(kwargs) == 1:
            self._chains[_key_of(output)] = (*self._chains[before], path)
        return output

    def _answer_layer(
        self, path: str, part: nn.Module, args: PositionalArguments, kwargs: NamedArguments
    ) -> Tree:
        """Note what a layer is called with; run it, or hand on a stand-in for its output."""
        is_first = not self.calls
        known = len(self.names.tensors)
        leaves, spec = tree_flatten((args, kwargs))
        if is_first:
            hidden = leaves[self.contract.entry]
            self.names.tensors["hidden"] = hidden
            self.names.set(hidden, "hidden")
        for place, leaf in enumerate(leaves):
            if isinstance(leaf, Tensor):
                leaves[place] = self.names.slot_of(leaf)
        self._check_reads(path, leaves)
        self.calls.append(LayerCall(path, leaves, spec))
        if not is_first and len(self.names.tensors) > known:
            self.early = False
        if len(self.calls) == self.needed:
            raise _EnoughError
        if self.learns:
            output = part(*args, **kwargs)
        else:
            output = self.contract.stand_in(self.names.tensors["hidden"].detach())
        returned = tree_leaves(output)
        self.names.keep_alive(args, kwargs, returned)
        self._hand_on(returned)
        return output

    def _check_reads(self, path: str, leaves: Iterable[object]) -> None:
        """Refuse a layer that does not read the hidden state, or reads a tensor that was hidden."""
        read = [leaf.key for leaf in leaves if isinstance(leaf, Slot)]
        if "hidden" not in read or None in read:
            previous = self.contract.order[len(self.calls) - 1]
            cure = "Move it into the layers: of `x = x + block(x)`, the addition into the block."
            raise refusal(f"code of its own between {previous!r} and {path!r}", cure)

    def _hand_on(self, returned: list[Tree]) -> None:
        """Name what a layer returned; nothing may read the states before it any more."""
        handed = self.contract.handed
        self.names.hide_names(handed)
        self.names.hide(returned)
        self.handed = {name: returned[place] for name, place in handed.items()}
        for name, tensor in reversed(self.handed.items()):  # one tensor twice is the hidden state
            self.names.set(tensor, name)
        self._chains = {_key_of(self.handed["hidden"]): ()}
