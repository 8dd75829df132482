"""A captured module answers as itself in calls that differ from the example: longer ones, other arguments, training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ponder
from ponder import policies
from ponder.parts.capturing import layered
from tests.ponder.checks import refused

WIDTH = 8
STATES = torch.randn(4, 5, WIDTH, generator=torch.Generator().manual_seed(0))
LONGER = torch.randn(4, 9, WIDTH, generator=torch.Generator().manual_seed(1))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.norm(hidden + torch.tanh(self.linear(hidden)))


class Encoder(nn.Module):
    """Layers, and an end that subclasses write."""

    layer: type[nn.Module] = Layer

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers, self.norm = nn.ModuleList(self.layer() for _ in range(3)), nn.LayerNorm(WIDTH)

    def forward(self, states: Tensor, **given: Any) -> Tensor:
        for layer in self.layers:
            states = layer(states)
        return self.end(self.norm(states), **given)

    def end(self, states: Tensor) -> Tensor:
        return states


def wrapped(encoder: nn.Module, example: Any, **options: Any) -> ponder.PonderWrapper:
    parts = ponder.capture(encoder, example)
    return ponder.PonderWrapper(
        parts.steps, stem=parts.stem, readout=parts.readout, padding=parts.padding, head=nn.Identity(), **options
    )


class DividedBy(nn.Module):
    def forward(self, states: Tensor, number: float) -> Tensor:
        return states.sum(1) / number


class Averaged(Encoder):
    """A module behind the layers is told the length."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = DividedBy()

    def end(self, states: Tensor) -> Tensor:
        return self.pool(states, states.shape[1])


@torch.no_grad()
def test_a_number_behind_the_layers_is_that_of_the_call() -> None:
    encoder = Averaged().eval()
    assert torch.equal(wrapped(encoder, STATES).eval()(LONGER).outputs, encoder(LONGER))


class Dropping(Encoder):
    def end(self, states: Tensor) -> Tensor:
        return F.dropout(states, 0.5, self.training)


class Shifted(Encoder):
    def end(self, states: Tensor) -> Tensor:
        return states + 1.0 if self.training else states


@pytest.mark.filterwarnings("ignore:.*never trained:UserWarning")
def test_what_is_done_behind_the_layers_in_training_alone_is_done() -> None:
    model = wrapped(Dropping(), STATES, task=lambda outputs, labels: outputs.mean((1, 2))).train()
    assert not torch.equal(model(STATES).outputs, model(STATES).outputs)
    encoder = Shifted().train()
    model = wrapped(encoder, STATES, task=lambda outputs, labels: outputs.mean((1, 2))).train()
    assert torch.equal(model(STATES).outputs, encoder(STATES))


class Hiding(Encoder):
    """What is padding becomes zeros, where there is any."""

    def end(self, states: Tensor, padding: Tensor | None = None) -> Tensor:
        return states if padding is None or not bool(padding.any()) else states.masked_fill(padding[..., None], 0.0)


@torch.no_grad()
def test_what_the_end_asks_of_a_tensor_is_asked_in_each_call() -> None:
    encoder, none = Hiding().eval(), torch.zeros(4, 5, dtype=torch.bool)
    model = wrapped(encoder, {"states": STATES, "padding": none}).eval()
    some = none.clone()
    some[1:, 3:] = True
    assert torch.equal(model(STATES, padding=some).outputs, encoder(STATES, padding=some))
    assert torch.equal(model(STATES, padding=none).outputs, encoder(STATES))


class Scaling(Encoder):
    def forward(self, states: Tensor, scale: Tensor | float | None = None, unused: Any = None) -> Tensor:  # type: ignore[override]
        states = super().forward(states)
        return states if scale is None else states * scale


@torch.no_grad()
def test_arguments_that_the_example_had_not_are_refused_where_the_end_reads_them() -> None:
    encoder = Scaling().eval()
    model, scale = wrapped(encoder, {"states": STATES}).eval(), torch.full((4, 1, 1), 2.0)
    with refused("inputs", "scale", "Capture the module with an example that has these arguments"):
        model(STATES, scale=scale)
    with refused("inputs", "scale"):
        model(STATES, scale=3.0)
    for unused in (scale, np.ones(2), [1.0, 2.0], object()):
        assert torch.equal(model(STATES, unused=unused).outputs, encoder(STATES)), "nothing reads it"
    assert torch.equal(model(STATES).outputs, encoder(STATES))
    model = wrapped(encoder, {"states": STATES, "scale": scale}).eval()
    assert torch.equal(model(STATES, scale=3 * scale).outputs, encoder(STATES, scale=3 * scale))


class Tasks(Encoder):
    """A head for each task, which the call names."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(WIDTH, 2) for _ in range(3))

    def forward(self, states: Tensor, task: Any = 0) -> Tensor:  # type: ignore[override]
        states = super().forward(states)
        return self.heads[task if isinstance(task, int) else task[0]](states)


@pytest.mark.parametrize("kind", [int, lambda task: (task,), lambda task: [task]], ids=["int", "tuple", "list"])
@torch.no_grad()
def test_plain_values_are_told_apart_by_value(kind: Any) -> None:
    # Trap: once one number had been looked at, every other one was answered as that.
    encoder = Tasks().eval()
    model = wrapped(encoder, {"states": STATES}).eval()
    assert torch.equal(model(STATES, task=kind(0)).outputs, encoder(STATES, task=kind(0)))
    for task in (1, True, 2):
        with refused("inputs", "states, task", "these values of those that are no tensors"):
            model(STATES, task=kind(task))


class Noisy(Encoder):
    def forward(self, states: Tensor, noise: float = 0.0, length: int = 0) -> Tensor:
        return super().forward(states + noise * torch.randn_like(states))


def test_numbers_that_are_drawn_before_the_layers_are_no_other_call() -> None:
    # Trap: the module and its layers step by step drew one after the other, and were compared.
    encoder = Noisy().eval()
    model = wrapped(encoder, {"states": STATES}).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        own = encoder(STATES, noise=0.1)
        torch.manual_seed(0)
        torch.testing.assert_close(model(STATES, noise=0.1).outputs, own)


def test_a_number_that_differs_from_call_to_call_is_not_looked_at_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    model = wrapped(Noisy().eval(), {"states": STATES}).eval()
    looked = []
    monkeypatch.setattr(layered.LayeredModule, "_goes_alike", lambda *parts, **named: looked.append(1) or True)
    with torch.no_grad():
        for length in range(1, 80):
            model(STATES, length=length)
    assert len(looked) == 50


def test_only_whole_numbers_stop_being_looked_at() -> None:
    # Trap: after fifty lengths any other word, and any other keys of a mapping, were taken to go alike too.
    class Choosing(Encoder):
        def forward(self, states: Tensor, mode: str = "a", length: int = 0, options: Any = None) -> Tensor:
            made: Tensor = super().forward(states)
            return -made if mode == "c" or (options and "turned" in options) else made

    model = wrapped(Choosing().eval(), {"states": STATES}).eval()
    with torch.no_grad():
        for length in range(1, 60):
            model(STATES, mode="b", length=length)
            model(STATES, options={"length": length})
        with refused("inputs", "with which it does something else"):
            model(STATES, mode="c", length=60)
        with refused("inputs", "with which it does something else"):
            model(STATES, options={"turned": True})


class Aside(Encoder):
    """It writes in place behind its layers, aside from the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.aside = nn.Linear(8, 8)

    def end(self, states: Tensor, mask: Tensor | None = None) -> Tensor:
        other = self.aside(states)
        other.mul_(2.0)
        self.aside(other)
        return self.norm(states)


def test_an_argument_that_is_left_out_in_inference_mode_is_looked_at_as_elsewhere() -> None:
    encoder, mask = Aside().eval(), torch.ones(4, 5, dtype=torch.bool)
    model = wrapped(encoder, {"states": STATES, "mask": mask}).eval()
    with torch.inference_mode():
        torch.testing.assert_close(model(STATES).outputs, encoder(STATES))


class Normed(Encoder):
    def end(self, states: Tensor, mask: Tensor | None = None, unused: Any = None) -> Tensor:
        return states if mask is None else self.norm(states)


@torch.no_grad()
def test_arguments_that_the_example_had_are_refused_where_they_are_missed() -> None:
    encoder, mask = Normed().eval(), torch.ones(4, 5, dtype=torch.bool)
    example = {"states": STATES, "mask": mask, "unused": mask}
    model = wrapped(encoder, example).eval()
    assert torch.equal(model(STATES, mask=mask).outputs, encoder(STATES, mask=mask)), "nothing reads the other"
    with refused("inputs", "states, unused", "these arguments and no others"):
        model(STATES, unused=mask)


adapter: ContextVar[int] = ContextVar("adapter", default=0)


@contextmanager
def adapted(number: int) -> Iterator[None]:
    token = adapter.set(number)
    try:
        yield
    finally:
        adapter.reset(token)


class Adapted(nn.Module):
    """A layer that is told by a context which of its weights are meant."""

    def __init__(self) -> None:
        super().__init__()
        self.adapters = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + torch.tanh(self.adapters[adapter.get()](hidden))


class Adapting(Encoder):
    layer = Adapted

    def forward(self, states: Tensor, number: int = 0) -> Tensor:  # type: ignore[override]
        with adapted(number):
            return super().forward(states)[:, 0]


@pytest.mark.filterwarnings("ignore:.*never trained:UserWarning")
@pytest.mark.parametrize("training", [False, True])
def test_an_argument_that_works_through_a_context_is_refused(training: bool) -> None:
    encoder, task = Adapting().eval(), lambda outputs, labels: outputs.mean(1)
    model = wrapped(encoder, {"states": STATES}, task=task).train(training)
    with refused("inputs", "number, states", "around and behind its layers"):
        model(STATES, number=1)
    assert torch.equal(model(STATES, number=0).outputs, encoder(STATES))
    model = wrapped(encoder, {"states": STATES, "number": 1}, task=task).train(training)
    assert torch.equal(model(STATES).outputs, encoder(STATES, number=1))


class Cast(Encoder):
    """Autocast around its layers, or none where it is on around the module."""

    def forward(self, states: Tensor, cast: bool = False) -> Tensor:  # type: ignore[override]
        with torch.autocast("cpu", torch.bfloat16, enabled=cast):
            for layer in self.layers:
                states = layer(states)
        return self.norm(states.float())


@pytest.mark.parametrize("cast", [False, True])
@torch.no_grad()
def test_layers_run_under_the_autocast_that_the_module_sets_in_the_call(cast: bool) -> None:
    encoder = Cast().eval()
    model = wrapped(encoder, {"states": STATES}).eval()
    assert not model.stem.layered.between, "no step runs the module again"
    with torch.autocast("cpu", torch.bfloat16, enabled=not cast):
        found, expected = model(STATES, cast=cast).outputs, encoder(STATES, cast)
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)


class CastBehind(Encoder):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, 2)

    def end(self, states: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return self.linear(states)


@torch.no_grad()
def test_the_end_runs_under_the_autocast_that_the_module_sets() -> None:
    encoder = CastBehind().eval()
    model = wrapped(encoder, STATES).eval()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(STATES).outputs, encoder(STATES))


class Counting(Layer):
    """A layer that hands a number on."""

    def forward(self, hidden: Tensor, number: float) -> tuple[Tensor, float]:  # type: ignore[override]
        return super().forward(hidden + hidden.sum(1, keepdim=True) / number), number


class Handing(Encoder):
    layer = Counting

    def forward(self, states: Tensor, number: float | None = None) -> Tensor:  # type: ignore[override]
        number = states.shape[1] if number is None else number
        for layer in self.layers:
            states, number = layer(states, number)
        return self.norm(states)


@torch.no_grad()
def test_numbers_that_layers_hand_on_are_refused_where_another_call_has_others() -> None:
    encoder = Handing().eval()
    with refused("module", "layers that hand on tensors", "5 from 'layers.0', and 6"):
        ponder.capture(encoder, STATES)
    model = wrapped(encoder, {"states": STATES, "number": 4.0}).eval()
    assert torch.equal(model(LONGER).outputs, encoder(LONGER, number=4.0)), "what is no tensor is that of the example"
    with refused("inputs", "number, states", "these values of those that are no tensors"):
        model(STATES, number=5.0)


class Divided(Layer):
    def forward(self, hidden: Tensor, number: Any) -> Tensor:  # type: ignore[override]
        return super().forward(hidden + hidden.sum(1, keepdim=True) / number)


class Flagged(Layer):
    """A layer that hands its mode on, which the next one reads."""

    def forward(self, hidden: Tensor, evaluated: bool) -> tuple[Tensor, bool]:  # type: ignore[override]
        return super().forward(hidden if evaluated else -hidden), not self.training


class ByMode(Encoder):
    layer = Flagged

    def forward(self, states: Tensor) -> Tensor:  # type: ignore[override]
        evaluated = True
        for layer in self.layers:
            states, evaluated = layer(states, evaluated)
        return self.norm(states)


def test_a_flag_that_layers_hand_on_and_that_is_another_in_training_is_refused() -> None:
    with refused("module", "layers that hand on tensors", "True from 'layers.0', and False"):
        ponder.capture(ByMode().eval(), STATES)


class Told(Encoder):
    """Layers that are told how long the longest row is, as a number or a tensor."""

    layer = Divided

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, states: Tensor, attention_mask: Tensor) -> Tensor:  # type: ignore[override]
        longest = self.kind(attention_mask.sum(1).max())
        states = states * attention_mask[..., None]
        for layer in self.layers:
            states = layer(states, longest)
        return states[:, 0]


@pytest.mark.parametrize("kind", [int, float, torch.clone], ids=["int", "float", "tensor"])
def test_what_layers_are_told_of_the_longest_row_is_refused(kind: Any) -> None:
    mask = (torch.arange(5) < torch.tensor([[5], [3], [2], [2]])).long()
    with refused("module", "rows that do not affect one another"):
        ponder.capture(Told(kind).eval(), {"states": STATES, "attention_mask": mask})


class Reporting(Layer):
    """A layer that hands on what nobody reads: a loss in training, and a number elsewhere."""

    def forward(self, hidden: Tensor) -> tuple[Tensor, Any, int]:  # type: ignore[override]
        return super().forward(hidden), hidden.mean() if self.training else 0.0, hidden.shape[1]


class Unread(Encoder):
    layer = Reporting

    def forward(self, states: Tensor) -> Tensor:  # type: ignore[override]
        for layer in self.layers:
            states = layer(states)[0]
        return self.norm(states)


@torch.no_grad()
def test_numbers_that_nobody_reads_may_be_others() -> None:
    encoder = Unread().eval()
    assert torch.equal(wrapped(encoder, STATES).eval()(LONGER).outputs, encoder(LONGER))


class Dropped(Encoder):
    """A dropout and a classifier behind the layers, as classifiers have them."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout, self.classifier = nn.Dropout(0.5), nn.Linear(WIDTH, 2)

    def end(self, states: Tensor) -> Tensor:
        return self.classifier(self.dropout(states))


def test_a_dropout_behind_the_layers_is_called_and_no_more_of_the_module_is() -> None:
    encoder = Dropped().eval()
    parts = ponder.capture(encoder, STATES)
    assert parts.stem.layered.tail is not None, "its modules are called one by one"
    model = ponder.PonderWrapper(**vars(parts), head=nn.Identity(), task=lambda outputs, labels: outputs.mean((1, 2)))
    assert torch.equal(model.eval()(STATES).outputs, encoder(STATES))
    model.train()
    assert not torch.equal(model(STATES).outputs, model(STATES).outputs)


@torch.no_grad()
def test_a_module_that_cannot_be_watched_any_more_is_called_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    # Trap: weights that are fetched where a layer is called are elsewhere when the whole module is.
    encoder, unused = Scaling().eval(), torch.ones(4)
    model = wrapped(encoder, {"states": STATES}).eval()

    def fail(*_: Any) -> None:
        raise RuntimeError("Tensor.item() cannot be called on meta tensors")

    monkeypatch.setattr("ponder.parts.capturing.layered.watch", fail)
    assert torch.equal(model(STATES, unused=unused).outputs, encoder(STATES))


@torch.no_grad()
def test_numbers_that_differ_from_call_to_call_are_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, calls = Scaling().eval(), []
    model = wrapped(encoder, {"states": STATES, "unused": 0.0}).eval()
    watch = layered.watch
    monkeypatch.setattr(layered, "watch", lambda *given: calls.append(given) or watch(*given))
    for number in range(1, 5):
        assert torch.equal(model(STATES, unused=float(number)).outputs, encoder(STATES))
    assert len(calls) == 1
    assert calls[0][2]["states"].shape[0] == 2, "of two rows, whatever the batch"


@dataclass(frozen=True)
class At(policies.ExitPolicy):
    """Rows leave where the call says."""

    needs = frozenset({"context"})

    def decide(self, step: policies.StepView, state: Any) -> tuple[Tensor, Any]:
        return step.index >= step.context["at"], state


class Reader(nn.Module):
    """A text that reads another one: two sequences, each with its mask."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.TransformerDecoderLayer(WIDTH, 2, 16, batch_first=True) for _ in range(4))

    def forward(self, text: Tensor, attention_mask: Tensor, other: Tensor, other_mask: Tensor) -> Tensor:
        for layer in self.layers:
            text = layer(text, other, tgt_key_padding_mask=attention_mask == 0, memory_key_padding_mask=other_mask == 0)
        return text[:, 0]


def two_texts(lengths: list[int], others: list[int]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(sum(lengths))

    def text(sizes: list[int]) -> tuple[Tensor, Tensor]:
        mask = (torch.arange(max(sizes)) < torch.tensor(sizes)[:, None]).long()
        return torch.randn(*mask.shape, WIDTH, generator=generator), mask

    (states, mask), (other, other_mask) = text(lengths), text(others)
    return {"text": states, "attention_mask": mask, "other": other, "other_mask": other_mask}


@pytest.mark.parametrize("others", [[6, 4], [6, 6], [8, 5]], ids=["of the same lengths", "equally long", "of others"])
@torch.no_grad()
def test_a_second_sequence_is_not_cut_with_the_first(others: list[int]) -> None:
    encoder, call = Reader().eval(), two_texts([9, 3, 2], [12, 12, 10])
    model, own = wrapped(encoder, two_texts([6, 4], others), policy=At()).eval(), encoder(**call)

    def answers() -> Tensor:
        given = dict(call)
        found = model(given.pop("text"), policy_context={"at": torch.tensor([1, 4, 4])}, **given)
        assert found.exit_step.tolist() == [1, 4, 4]
        return found.outputs[1:]

    torch.testing.assert_close(answers(), own[1:])
    one = two_texts([7], [7])  # of which each could be as long as the other by chance
    model(one.pop("text"), policy_context={"at": torch.tensor([4])}, **one)
    torch.testing.assert_close(answers(), own[1:])


class Typed(nn.Module):
    """A second argument of which the example has as many as positions."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True) for _ in range(2))

    def forward(self, states: Tensor, attention_mask: Tensor, added: Tensor) -> Tensor:
        states = states + added[:, : states.shape[1]]
        for layer in self.layers:
            states = layer(states, src_key_padding_mask=attention_mask == 0)
        return states[:, 0]


@torch.no_grad()
def test_what_was_as_long_as_the_sequences_and_is_not_any_more_is_refused() -> None:
    mask = (torch.arange(5) < torch.tensor([[5], [4], [3], [3]])).long()
    model = wrapped(Typed().eval(), {"states": STATES, "attention_mask": mask, "added": STATES}).eval()
    assert model.padding is not None
    assert model(STATES, attention_mask=mask, added=STATES).outputs.shape == (4, WIDTH)
    with refused("added", "5 positions, as 'attention_mask' has", "(4, 9, 8)"):
        model(STATES, attention_mask=mask, added=LONGER)
