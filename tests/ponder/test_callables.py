"""Callables as parts: what they hold is the model's, or they are refused. Nothing is left out without a word."""

from __future__ import annotations

import copy
import functools
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ponder
from ponder import policies
from tests.ponder.checks import refused

WIDTH = 4
PARTS = ("steps", "stem", "readout", "head")
torch.manual_seed(0)
GLOBAL = nn.Linear(WIDTH, WIDTH)
GLOBALS = {"layer": nn.Linear(WIDTH, WIDTH)}
WEIGHT = nn.Parameter(torch.randn(WIDTH, WIDTH))


class Noisy(nn.Module):
    """A linear layer with dropout, so that its mode shows."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.dropout = nn.Linear(WIDTH, WIDTH), nn.Dropout(0.5)

    def forward(self, hidden: Tensor, gain: float = 1.0) -> Tensor:
        return gain * torch.tanh(self.dropout(self.linear(hidden)))

    def other(self, hidden: Tensor) -> Tensor:
        return self.linear(hidden)


class Caller:
    """An object that is no module, and holds one: by itself, or in a container."""

    def __init__(self, layer: nn.Module) -> None:
        self.layers = {"only": [layer]}

    def __call__(self, hidden: Tensor) -> Tensor:
        return self.layers["only"][0](hidden)

    def method(self, hidden: Tensor) -> Tensor:
        return self(hidden)


class Holder:
    """An object that cannot be called, whose method is a step."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer

    def run(self, hidden: Tensor) -> Tensor:
        return self.layer(hidden)


def scaled(hidden: Tensor, layer: Callable[..., Tensor], gain: float) -> Tensor:
    return gain * layer(hidden)


def uses_a_global(hidden: Tensor) -> Tensor:
    return GLOBAL(hidden)


def uses_a_global_container(hidden: Tensor) -> Tensor:
    return GLOBALS["layer"](hidden)


def uses_a_global_parameter(hidden: Tensor) -> Tensor:
    return hidden @ WEIGHT


def uses_a_function_of_the_file(hidden: Tensor) -> Tensor:
    return uses_a_global(hidden)


def names_an_attribute_only(hidden: Tensor) -> Tensor:
    return getattr(hidden, "GLOBAL", hidden) + (hidden.GLOBAL if hasattr(hidden, "GLOBAL") else 0)


def closure(layer: nn.Module) -> Callable[..., Tensor]:
    return lambda hidden: layer(hidden)


def default(layer: nn.Module) -> Callable[..., Tensor]:
    return lambda hidden, own=layer: own(hidden)


def keyword_default(layer: nn.Module) -> Callable[..., Tensor]:
    def step(hidden: Tensor, *, own: nn.Module = layer) -> Tensor:
        return own(hidden)

    return step


def container_in_a_closure(layer: nn.Module) -> Callable[..., Tensor]:
    layers = {"first": (layer,)}
    return lambda hidden: layers["first"][0](hidden)


def decorated(layer: nn.Module) -> Callable[..., Tensor]:
    inner = closure(layer)

    @functools.wraps(inner)
    def step(hidden: Tensor) -> Tensor:
        return inner(hidden)

    return step


def inner_function(layer: nn.Module) -> Callable[..., Tensor]:
    def step(hidden: Tensor) -> Tensor:
        return (lambda: GLOBAL(hidden))()

    return step


def partial_of_a_closure(layer: nn.Module) -> Callable[..., Tensor]:
    return functools.partial(closure(layer))


def object_with_a_closure(layer: nn.Module) -> Callable[..., Tensor]:
    return Caller(closure(layer))  # type: ignore[arg-type]


class OfTheFile:
    """An object at the top of a file."""


OBJECT = OfTheFile()
OBJECT.layer = nn.Linear(WIDTH, WIDTH)  # type: ignore[attr-defined]


def uses_a_global_object(hidden: Tensor) -> Tensor:
    return OBJECT.layer(hidden)  # type: ignore[attr-defined]


class WithSlots:
    """What attrs and dataclasses with slots make."""

    __slots__ = ("layer",)

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer

    def __call__(self, hidden: Tensor) -> Tensor:
        return self.layer(hidden)


def object_of_a_class_with(layer: nn.Module) -> Callable[..., Tensor]:
    class Step:
        """Its layer is that of the class."""

        held = layer

        def __call__(self, hidden: Tensor) -> Tensor:
            return self.held(hidden)

    return Step()


REFUSED: dict[str, Callable[[nn.Module], Callable[..., Any]]] = {
    "closure": closure,
    "default": default,
    "keyword default": keyword_default,
    "container in a closure": container_in_a_closure,
    "decorated closure": decorated,
    "global": lambda layer: uses_a_global,
    "global in a container": lambda layer: uses_a_global_container,
    "global in an inner function": inner_function,
    "global by another function": lambda layer: uses_a_function_of_the_file,
    "global object": lambda layer: uses_a_global_object,
    "global parameter": lambda layer: uses_a_global_parameter,
    "partial of a closure": partial_of_a_closure,
    "object with a closure": object_with_a_closure,
}
ACCEPTED: dict[str, Callable[[nn.Module], Callable[..., Any]]] = {
    "module": lambda layer: layer,
    "forward": lambda layer: layer.forward,
    "__call__": lambda layer: layer.__call__,
    "another bound method": lambda layer: layer.other,
    "partial of another bound method": lambda layer: functools.partial(layer.other),
    "partial": lambda layer: functools.partial(layer, gain=1.0),
    "partial of forward": lambda layer: functools.partial(layer.forward, gain=1.0),
    "partial of a function": lambda layer: functools.partial(scaled, layer=layer, gain=1.0),
    "object": Caller,
    "method of an object": lambda layer: Caller(layer).method,
    "method of an object that cannot be called": lambda layer: Holder(layer).run,
}


def build(part: str, fn: Callable[..., Any]) -> ponder.PonderWrapper:
    parts: dict[str, Any] = {"steps": nn.Linear(WIDTH, WIDTH), "head": nn.Linear(WIDTH, WIDTH), part: fn}
    return ponder.PonderWrapper(parts.pop("steps"), 3, policy=policies.Confidence(0.5), **parts)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("kind", REFUSED)
def test_a_function_that_uses_modules_is_refused(kind: str, part: str) -> None:
    # Trap: `lambda h: layer(h)` leaves the weights of `layer` out of parameters(), eval() and files.
    with refused(part, "which uses a", "nn.Module"):
        build(part, REFUSED[kind](Noisy()))


def test_a_name_of_an_attribute_is_no_global() -> None:
    build("steps", names_an_attribute_only)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("kind", ACCEPTED)
def test_what_an_accepted_callable_holds_is_the_models(kind: str, part: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    layer = Noisy()
    model, inputs = build(part, ACCEPTED[kind](layer)), torch.randn(5, WIDTH)
    assert {id(p) for p in layer.parameters()} <= {id(p) for p in model.parameters()}
    assert sum(module is layer for module in model.modules()) == 1
    model.eval()
    assert not layer.training
    assert not layer.dropout.training
    expected = model(inputs)
    torch.manual_seed(2)
    twin = build(part, ACCEPTED[kind](Noisy())).eval()
    ponder.save(model, tmp_path)
    copies = [ponder.load(twin, tmp_path), copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    for other in copies:
        found = other(inputs)
        assert torch.equal(found.outputs, expected.outputs)
        assert torch.equal(found.exit_step, expected.exit_step)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(0.5)
    changed = model(inputs).outputs
    assert not torch.equal(changed, expected.outputs)
    for other in copies:
        assert torch.equal(other(inputs).outputs, expected.outputs), "it still calls the first model's layer"
        other.load_state_dict(model.state_dict())
        assert torch.equal(other(inputs).outputs, changed), "its weights are not those that it calls"


def test_one_module_behind_several_callables_is_registered_once() -> None:
    layer = Noisy()
    model = ponder.PonderWrapper([functools.partial(layer, gain=1.0), Caller(layer), layer.forward], head=nn.Identity())
    assert len(list(model.parameters())) == 2
    assert len(list(copy.deepcopy(model).parameters())) == 2


def test_plain_functions_stay_as_they_are() -> None:
    model = ponder.PonderWrapper(torch.sin, 3, head=ponder.readouts.identity, readout=ponder.readouts.identity)
    assert not list(model.parameters())
    x = torch.randn(2, 3)
    assert torch.equal(model.eval()(x).outputs, x.sin().sin().sin())


class Cell(nn.Module):
    """A cell that also makes its first state, as recurrent cells do: one module behind two parts."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.update = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def start(self, inputs: Tensor) -> Tensor:
        return torch.tanh(self.first(inputs))

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.tanh(self.update(hidden))


def test_a_method_of_the_step_may_be_the_stem(tmp_path: Path) -> None:
    cell, x = Cell(), torch.randn(3, WIDTH)
    model = ponder.PonderWrapper(cell, 3, head=nn.Linear(WIDTH, 2), stem=cell.start).eval()
    assert len(list(model.parameters())) == 6
    ponder.save(model, tmp_path)
    other = Cell()
    twin = ponder.load(ponder.PonderWrapper(other, 3, head=nn.Linear(WIDTH, 2), stem=other.start).eval(), tmp_path)
    assert torch.equal(twin(x).outputs, model(x).outputs)
    assert torch.equal(copy.deepcopy(model)(x).outputs, model(x).outputs)


@pytest.mark.parametrize("kind", [WithSlots, object_of_a_class_with])
def test_modules_that_no_dict_of_an_object_shows_are_the_models(kind: Any) -> None:
    layer = Noisy()
    model = build("steps", kind(layer))
    assert {id(weight) for weight in layer.parameters()} <= {id(weight) for weight in model.parameters()}


def test_a_loss_with_weights_that_learn_is_told() -> None:
    class Centers(nn.Module):
        """A loss with a centre for each class."""

        def __init__(self) -> None:
            super().__init__()
            self.centers = nn.Parameter(torch.randn(3, WIDTH))

        def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
            return (outputs - self.centers[labels]).square().sum(-1)

    loss, head = Centers(), nn.Linear(WIDTH, WIDTH)
    for task in (loss, lambda outputs, labels: loss(outputs, labels), ponder.tasks.Custom(loss, classes=False)):
        with pytest.warns(UserWarning, match="the loss uses a Centers whose weights learn"):
            ponder.PonderWrapper(nn.Linear(WIDTH, WIDTH), 3, head=head, task=task)
    ponder.PonderWrapper(
        nn.Linear(WIDTH, WIDTH),
        3,
        head=head,
        task=lambda outputs, labels: (outputs - head.weight[labels]).abs().sum(-1),
    )

    class Owner(nn.Module):
        """A module that owns the model, and gives it its loss."""

        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))
            self.model = ponder.PonderWrapper(nn.Linear(WIDTH, WIDTH), 3, head=nn.Linear(WIDTH, 3), task=self.loss)

        def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
            return self.scale * nn.functional.cross_entropy(outputs, labels, reduction="none")

    Owner()
    loss.requires_grad_(False)
    ponder.PonderWrapper(nn.Linear(WIDTH, WIDTH), 3, head=head, task=loss)


SETTINGS = OfTheFile()
SETTINGS.teacher, SETTINGS.scale = nn.Linear(WIDTH, WIDTH), 2.0  # type: ignore[attr-defined]


def reads_a_number_of_a_global_object(hidden: Tensor) -> Tensor:
    return torch.tanh(hidden * SETTINGS.scale)  # type: ignore[attr-defined]


def test_what_a_global_object_holds_besides_is_not_used() -> None:
    build("steps", reads_a_number_of_a_global_object)
