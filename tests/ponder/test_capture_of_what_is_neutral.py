"""Capture of modules in which something does nothing yet: new weights of zeros and ones, dropout, gradients off."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import ponder
from ponder.errors import ArgumentError, PonderError
from ponder.policies import LastStep
from tests.ponder.capturable import LAYERS, WIDTH, Block
from tests.ponder.checks import refused

EXAMPLE = torch.randn(4, 5, WIDTH, generator=torch.Generator().manual_seed(0))


class Stack(nn.Module):
    """Blocks, and something between two of them."""

    def __init__(self, between: Callable[[nn.Module, int, Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Block() for _ in range(LAYERS)])
        self.each = nn.Parameter(torch.zeros(LAYERS, WIDTH))
        self.dropout, self.dropout_in_place = nn.Dropout(0.2), nn.Dropout(0.2, inplace=True)
        self.between = between or (lambda module, place, hidden: hidden)

    def forward(self, hidden: Tensor) -> Tensor:
        for place, layer in enumerate(self.layers):
            hidden = self.between(self, place, layer(hidden))
        return hidden.mean(1)


class Mixed(Stack):
    """A learnt mixture of all layers beside the last one, of which nothing is mixed in at first."""

    def forward(self, hidden: Tensor) -> Tensor:
        mixed = torch.zeros_like(hidden)
        for weight, layer in zip(self.each, self.layers, strict=True):
            hidden = layer(hidden)
            mixed = mixed + weight * hidden
        return (hidden + mixed).mean(1)


def added(module: Any, place: int, hidden: Tensor) -> Tensor:
    hidden += module.each[place]
    return hidden


def scaled(module: Any, place: int, hidden: Tensor) -> Tensor:
    return hidden.mul_(1.0 + module.each[place])


def dropped(module: Any, place: int, hidden: Tensor) -> Tensor:
    return module.dropout(hidden)


def dropped_in_place(module: Any, place: int, hidden: Tensor) -> Tensor:
    return module.dropout_in_place(hidden)


def noisy(module: Any, place: int, hidden: Tensor) -> Tensor:
    return hidden + 0.1 * torch.randn_like(hidden) if module.training else hidden


def wrapped(module: nn.Module, example: Any = EXAMPLE) -> ponder.PonderWrapper:
    return ponder.PonderWrapper(**vars(ponder.capture(module, example)), head=nn.Identity())


@pytest.mark.parametrize("between", [added, scaled, dropped, dropped_in_place, noisy])
@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_what_stands_between_layers_counts_once_it_has_learned(between: Any, scale: float) -> None:
    torch.manual_seed(0)
    module, given = Stack(between), EXAMPLE.clone()
    with torch.no_grad():
        module.each.fill_(0.0).add_(scale * torch.randn(LAYERS, WIDTH))
    model = wrapped(module, given)
    assert torch.equal(given, EXAMPLE)  # nobody wrote into the example
    with torch.no_grad():
        module.each.normal_()
    model.eval()
    assert torch.equal(model(EXAMPLE, policy=LastStep()).outputs, module(EXAMPLE))
    if between in (added, scaled):
        found = []
        for forward in (model, module):
            model.zero_grad()
            out = forward(EXAMPLE, policy=LastStep()).outputs if forward is model else forward(EXAMPLE)
            out.sum().backward()
            found.append(module.each.grad.clone())
        assert torch.allclose(*found, atol=1e-5)
    model.train()(EXAMPLE, labels=torch.zeros(4, dtype=torch.long))


def test_a_mixture_that_is_not_learned_yet_is_refused() -> None:
    with refused("module", "once parameters that are one number throughout have learned others"):
        ponder.capture(Mixed(), EXAMPLE)


def test_parameters_are_not_touched() -> None:
    module = Stack()
    before = {name: (id(tensor), tensor.clone()) for name, tensor in module.named_parameters()}
    ponder.capture(module, EXAMPLE)
    for name, tensor in module.named_parameters():
        assert id(tensor) == before[name][0]
        assert torch.equal(tensor, before[name][1])


def test_running_statistics_are_not_touched() -> None:
    stem = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(5))
    module = nn.Sequential(stem, Stack())
    statistics = stem[1].running_mean.clone()
    ponder.capture(module.train(), EXAMPLE, layers="1.layers")
    assert torch.equal(stem[1].running_mean, statistics)
    assert int(stem[1].num_batches_tracked) == 0


class Counted(nn.Module):
    """Statistics of its own, of the whole batch, and a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.norm = nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH)
        self.still = nn.BatchNorm1d(WIDTH).eval()
        self.stack = Stack()

    def forward(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        entered = (self.enter(hidden) * attention_mask.unsqueeze(-1)).transpose(1, 2)
        return self.stack(self.still(self.norm(entered)).transpose(1, 2))


def test_running_statistics_move_once_in_a_call() -> None:
    """The first call of a kind learns where its rows and lengths are by calls of its own, which leave no trace."""
    torch.manual_seed(0)
    mask = (torch.arange(5) < torch.tensor([[5], [4], [3], [2]])).long()
    module = Counted()
    model = ponder.PonderWrapper(
        **vars(ponder.capture(module, {"hidden": EXAMPLE, "attention_mask": mask})), head=nn.Identity()
    ).train()
    module.still.eval()
    plain = copy.deepcopy(module)
    for rows in (4, 4, 3, 1, WIDTH, 5):
        hidden, mask = torch.randn(rows, 5, WIDTH), torch.ones(rows, 5, dtype=torch.long)
        model(hidden, attention_mask=mask)
        plain(hidden, attention_mask=mask)
        for name, expected in plain.named_buffers():
            assert torch.equal(module.get_buffer(name), expected), name
    assert (module.norm.training, module.still.training) == (True, False)
    assert int(module.norm.num_batches_tracked) == 6
    model(EXAMPLE[:0], attention_mask=mask[:0])  # runs on a row that is made up
    assert torch.equal(module.norm.running_mean, plain.norm.running_mean)


class Frozen(Stack):
    """Its own code runs the first two layers without gradients."""

    def forward(self, hidden: Tensor) -> Tensor:
        with torch.no_grad():
            for layer in self.layers[:2]:
                hidden = layer(hidden)
        return self.layers[2](hidden).mean(1)


def test_layers_that_the_module_runs_without_gradients_learn_nothing() -> None:
    module = Frozen()
    model = ponder.PonderWrapper(**vars(ponder.capture(module, EXAMPLE)), head=nn.Linear(WIDTH, 2)).train()
    loss = model(EXAMPLE, labels=torch.tensor([0, 1, 1, 0])).loss
    loss.backward()
    learned = [layer.norm1.weight.grad is not None for layer in module.layers]
    assert learned == [False, False, True]


class Thawing(Stack):
    """Its own code runs the layers, and a norm behind them, without gradients for as long as it is told to."""

    frozen = True

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2)

    def forward(self, hidden: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            for layer in self.layers:
                hidden = layer(hidden)
            hidden = self.norm(hidden)
        return self.head(hidden)


@pytest.mark.parametrize("frozen", [False, True])
def test_what_learns_is_told_by_the_call_not_by_the_example(frozen: bool) -> None:
    module = Thawing()
    module.frozen = not frozen
    parts = ponder.capture(module, EXAMPLE)
    model = ponder.PonderWrapper(**vars(parts), head=nn.Identity(), task=lambda outputs, labels: outputs.mean((1, 2)))
    module.frozen = frozen
    model.train()(EXAMPLE, labels=torch.zeros(4)).loss.backward()
    assert module.head.weight.grad is not None
    assert all((parameter.grad is None) == frozen for parameter in module.layers.parameters())


def test_what_stands_behind_the_layers_without_gradients_learns_nothing() -> None:
    module = Thawing()
    parts = ponder.capture(module, EXAMPLE)
    model = ponder.PonderWrapper(**vars(parts), head=nn.Identity(), task=lambda outputs, labels: outputs.mean((1, 2)))
    model.train()(EXAMPLE, labels=torch.zeros(4)).loss.backward()
    learned = {name for name, parameter in module.named_parameters() if parameter.grad is not None}
    assert learned == {"head.weight", "head.bias"}


class Autocast(nn.Module):
    """It opens autocast in its own forward."""

    def __init__(self) -> None:
        super().__init__()
        self.opening = nn.Linear(WIDTH, WIDTH)
        self.layers = nn.ModuleList([nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(LAYERS)])

    def forward(self, hidden: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            hidden = self.opening(hidden)
            for layer in self.layers:
                hidden = layer(hidden)
        return hidden.float().mean(1)


def test_a_module_that_opens_autocast_itself() -> None:
    module = Autocast().eval()
    assert torch.equal(wrapped(module).eval()(EXAMPLE, policy=LastStep()).outputs, module(EXAMPLE))


def test_one_layer_under_several_entries_of_a_list() -> None:
    module = Stack().eval()
    module.layers = nn.ModuleList([module.layers[0]] * 4)
    model = wrapped(module).eval()
    assert model.num_steps == 4
    assert torch.equal(model(EXAMPLE, policy=LastStep()).outputs, module(EXAMPLE))


def test_compiled_modules_are_refused_and_compiled_layers_are_not() -> None:
    module = Stack().eval()
    with refused("module", "before torch.compile", "_orig_mod"):
        ponder.capture(torch.compile(module, backend="eager"), EXAMPLE)
    with torch.no_grad():
        plain = module(EXAMPLE)
    for place in range(LAYERS):
        module.layers[place] = torch.compile(module.layers[place], backend="eager")
    with torch.no_grad():
        assert torch.allclose(wrapped(module).eval()(EXAMPLE, policy=LastStep()).outputs, plain, atol=1e-6)


class Causal(nn.Module):
    """A mask for the whole batch, and inputs in a tuple."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)

    def forward(self, source: Any, mask: Tensor) -> Tensor:
        return self.encoder(source if isinstance(source, Tensor) else source[0] + source[1], mask=mask)


def test_examples_from_which_rows_cannot_be_told() -> None:
    module, states = Causal().eval(), torch.randn(4, 4, WIDTH)
    mask = torch.full((4, 4), -torch.inf).triu(1)
    with refused("example", "one row more", "another number of rows"):
        ponder.capture(module, {"source": states, "mask": mask})
    assert ponder.capture(module, {"source": states[:3], "mask": mask}).steps.num_steps == LAYERS
    with refused("example", "arguments of their own", "argument 0, a tuple"):
        ponder.capture(module, ((states, states), mask))


class Turning(Stack):
    """Other code between its layers from the second call on."""

    turned = False

    def forward(self, hidden: Tensor) -> Tensor:
        for layer in self.layers:
            hidden = layer(hidden) + 1.0 if self.turned else layer(hidden)
        return hidden.mean(1)


def test_a_call_that_differs_from_the_example_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    model = wrapped(Turning().eval()).eval()
    monkeypatch.setattr(Turning, "turned", True)
    with pytest.raises(
        PonderError, match=r"captured with: layers\.1 is not called with what .* Capture it again"
    ) as met:
        model(EXAMPLE)
    assert not isinstance(met.value, ArgumentError)
    assert str(pickle.loads(pickle.dumps(met.value))) == str(met.value)


class Recomputed(Stack):
    """Activation checkpointing by the module itself: no gradients in its forward, which its backward makes."""

    def __init__(self, *, whole: bool, reentrant: bool) -> None:
        super().__init__()
        self.whole, self.reentrant = whole, reentrant

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.each[0]
        if self.whole:
            return checkpoint_sequential(self.layers, 2, hidden, use_reentrant=self.reentrant).mean(1)
        for layer in self.layers:
            hidden = checkpoint(layer, hidden, use_reentrant=self.reentrant)
        return hidden.mean(1)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # capture looks without gradients
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("reentrant", [False, True])
def test_layers_under_activation_checkpointing_learn(whole: bool, reentrant: bool) -> None:
    module = Recomputed(whole=whole, reentrant=reentrant)
    model = ponder.PonderWrapper(**vars(ponder.capture(module, EXAMPLE)), head=nn.Linear(WIDTH, 2)).train()
    model(EXAMPLE, labels=torch.tensor([0, 1, 1, 0])).loss.backward()
    assert all(parameter.grad is not None for parameter in module.layers.parameters())
    assert module.each.grad is not None


class Odd(Stack):
    """Parameters of which no other numbers can be made, and code that looks at one."""

    def __init__(self) -> None:
        super().__init__()
        self.small = nn.Parameter(torch.zeros(4).to(torch.float8_e4m3fn), requires_grad=False)
        self.lazy = nn.LazyLinear(2)
        self.sparse = nn.Parameter(torch.zeros(4, 4).to_sparse(), requires_grad=False)
        self.one = nn.Parameter(torch.ones(2), requires_grad=False)

    def forward(self, hidden: Tensor, labels: Tensor | None = None) -> Tensor:
        assert torch.equal(self.one, torch.ones(2))
        if self.training:
            assert labels is not None
        return super().forward(hidden)


def test_modules_that_cannot_be_looked_at_more_closely_are_captured_all_the_same() -> None:
    model = wrapped(Odd().eval()).eval()
    assert torch.equal(model(EXAMPLE, policy=LastStep()).outputs, Odd.forward(model.stem.module, EXAMPLE))
