"""Captured modules: full depth, exits, gradients, other calls, padding, and what is refused with its cause."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import ponder
from ponder._utils.trees import take_rows, unwrap
from ponder.errors import ArgumentError
from ponder.model.capture import Captured, capture
from ponder.model.padding import join_rows
from ponder.model.readouts import ReadoutCall
from tests.model.capturable import (
    LAYERS,
    LENGTH,
    MODULES,
    PADDED,
    REAL,
    ROWS,
    WIDTH,
    Block,
    Folded,
    LengthFirst,
    TextEncoder,
    make,
    states,
)


def through(parts: Captured, call: dict[str, Any], *, every: bool = True) -> list[Tensor]:
    """The features after each step, or after the last alone."""
    state, context = parts.stem(dict(call))
    given = unwrap(context)
    features = []
    for step in range(1, parts.steps.num_steps + 1):
        state = parts.steps(step, state, **given)
        if every or step == parts.steps.num_steps:
            features.append(parts.readout(state, **given))
    return features


def answer(module: nn.Module, call: dict[str, Any]) -> Tensor:
    return next(leaf for leaf in tree_leaves(module(**call)) if isinstance(leaf, Tensor))


def cut(module: nn.Module, order: list[str], depth: int) -> nn.Module:
    """A copy whose layers behind `depth` give what they are given."""
    module = copy.deepcopy(module)
    for path in set(order[depth:]) - set(order[:depth]):
        layer = module.get_submodule(path)
        own = layer.forward

        def forward(*args: Any, _own: Callable[..., Any] = own, **kwargs: Any) -> Any:
            out = _own(*args, **kwargs)
            hidden = args[0] if args else kwargs["hidden_states"]
            if isinstance(out, dict):
                return {**out, "hidden": hidden}
            return hidden if isinstance(out, Tensor) else (hidden, *out[1:])

        layer.forward = forward
    return module


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("grad", [False, True])
def test_steps_are_the_module_cut_at_that_layer(name: str, grad: bool) -> None:
    module, example = make(name)
    parts = capture(module, example)
    for call in (example, MODULES[name][1](1)):
        with torch.set_grad_enabled(grad):
            features = through(parts, call)
            assert len(features) == LAYERS
            assert torch.equal(features[-1], answer(module, call))
            if name != "looped":
                for depth in range(1, LAYERS):
                    assert torch.equal(
                        features[depth - 1],
                        answer(cut(module, parts.stem.contract.order, depth), call),
                    )


@pytest.mark.parametrize("name", MODULES)
def test_other_batches_lengths_and_masks(name: str) -> None:
    module, example = make(name)
    parts = capture(module, example)
    calls = [{key: value[:rows] for key, value in example.items()} for rows in (1, 2)]
    calls += [{key: torch.cat([value, value, value[:1]]) for key, value in example.items()}]
    if name not in ("image-classifier", "sequential"):
        calls += [{key: value[:, :-1] for key, value in example.items()}]
    if name in ("torch", "text", "pooling"):
        mask = (
            {"src_key_padding_mask": ~REAL} if name == "torch" else {"attention_mask": REAL.long()}
        )
        calls += [
            {**example, **mask},
            {
                **example,
                **{key: torch.full_like(value, key[0] == "a") for key, value in mask.items()},
            },
        ]
    if name in ("torch-masked", "text-masked", "pooling-masked"):
        calls += [{key: value for key, value in example.items() if "mask" not in key}]
    for call in calls:
        assert torch.equal(through(parts, call)[-1], answer(module, call))


@pytest.mark.parametrize("name", MODULES)
def test_rows_exit_and_others_do_not_feel_it(name: str) -> None:
    module, example = make(name)
    parts = capture(module, example)
    whole = through(parts, example)
    state, context = parts.stem(dict(example))
    rows = torch.arange(ROWS)
    for step in range(1, LAYERS + 1):
        state = parts.steps(step, state, **unwrap(context))
        torch.testing.assert_close(parts.readout(state, **unwrap(context)), whole[step - 1][rows])
        if step < LAYERS:
            keep = torch.arange(len(rows)) != 1 if step == 1 else torch.arange(len(rows)) > 0
            index = keep.nonzero().flatten()
            state = take_rows(state, index)
            context = take_rows(context, index)
            rows = rows[index]


@pytest.mark.parametrize("name", MODULES)
def test_training_is_the_modules_own(name: str) -> None:
    module, example = make(name)
    parts = capture(module, example)
    module.train()
    through(parts, example)  # learns this kind of call
    gradients = []
    for call in (lambda: through(parts, example, every=False)[-1], lambda: answer(module, example)):
        torch.manual_seed(3)
        module.zero_grad()
        out = call()
        out.square().sum().backward()
        gradients.append((out, [weight.grad for weight in module.parameters()]))
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("name", MODULES)
def test_copies_and_pickles_have_one_module(name: str) -> None:
    module, example = make(name)
    parts = capture(module, example)
    whole = through(parts, example)
    for other in (copy.deepcopy(parts), pickle.loads(pickle.dumps(parts))):
        assert len(
            list(nn.ModuleList([other.stem, other.steps, other.readout]).parameters())
        ) == len(list(module.parameters()))
        torch.testing.assert_close(through(other, example), whole, rtol=0, atol=0)
        with torch.no_grad():
            for weight in other.stem.parameters():
                weight.zero_()
        assert not torch.equal(through(other, example)[-1], whole[-1])
    torch.testing.assert_close(through(parts, example), whole, rtol=0, atol=0)
    assert list(module.state_dict()) == list(parts.stem.module.state_dict())


@pytest.mark.parametrize("name", PADDED)
def test_batches_get_narrower_and_rows_of_several_lengths_meet(name: str) -> None:
    module, example = make(name)
    parts = capture(module, example)
    assert parts.padding is not None
    whole = through(parts, example)[-1]

    def at_real(features: Tensor, rows: Tensor) -> Tensor:
        return features[REAL[rows, : features.shape[1]]] if features.dim() == 3 else features

    state, context = parts.stem(dict(example))
    state = parts.steps(1, state, **unwrap(context))
    index = torch.tensor([1, 3])
    state = join_rows([take_rows(state, index)], parts.padding.of_hidden, 4)
    context = join_rows([take_rows(dict(context), index)], parts.padding.of_context, 4)
    for step in range(2, LAYERS + 1):
        state = parts.steps(step, state, **unwrap(context))
    narrow = parts.readout(state, **unwrap(context))
    torch.testing.assert_close(at_real(narrow, index), at_real(whole[index], index))
    alone = []
    for row, length in enumerate(REAL.sum(1).tolist()):
        alone.append(
            parts.stem({key: value[row : row + 1, :length] for key, value in example.items()})
        )
    state = join_rows([own for own, _ in alone], parts.padding.of_hidden, LENGTH)
    context = join_rows([dict(own) for _, own in alone], parts.padding.of_context, LENGTH)
    for step in range(1, LAYERS + 1):
        state = parts.steps(step, state, **unwrap(context))
    every = torch.arange(ROWS)
    torch.testing.assert_close(
        at_real(parts.readout(state, **unwrap(context)), every), at_real(whole, every)
    )


class Neighbours(TextEncoder):
    """Every token reads the next one's vector, behind the end of a row too (MobileBERT)."""

    def forward(self, ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
        hidden = self.words(ids)
        hidden = hidden + nn.functional.pad(hidden[:, 1:], (0, 0, 0, 1))
        for layer in self.layers:
            hidden = layer(hidden, None if attention_mask is None else attention_mask == 0)
        return hidden


def test_where_ends_of_rows_are_read_rows_of_one_length_share_a_batch() -> None:
    module = Neighbours().eval()
    example = make("text-masked")[1]
    parts = capture(module, example)
    assert parts.padding is None
    readout = ReadoutCall(ponder.readouts.mean, states=parts.readout)
    own = ponder.PonderWrapper(parts.steps, stem=parts.stem, readout=readout, head=nn.Identity())
    rows = [ids[:length] for ids, length in zip(example["ids"], [LENGTH, 4, 5, 4], strict=True)]
    expected = torch.stack([module(ids[None])[0].mean(0) for ids in rows])
    torch.testing.assert_close(ponder.predict(own, rows).outputs, expected)


def test_shared_layers_are_one_step() -> None:
    module, example = make("looped")
    parts = capture(module, example)
    assert parts.steps.shared
    state, context = parts.stem(dict(example))
    hidden = example["hidden"]
    for step in range(1, 9):
        state = parts.steps(step, state, **unwrap(context))
        hidden = module.block(hidden)
        assert torch.equal(state, hidden)


def test_a_classifier_is_known_by_its_head() -> None:
    module, example = make("image-classifier")
    assert capture(module, example).classifier == "head"
    module, example = make("text")
    assert capture(module, example).classifier is None


def test_readouts_of_other_parts_of_the_output() -> None:
    class Two(Block):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([Block() for _ in range(LAYERS)])
            self.pooler = nn.Linear(WIDTH, 3)

        def forward(self, hidden: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
            for layer in self.layers:
                hidden = layer(hidden)
            return {"tokens": hidden, "pooled": self.pooler(hidden)}

    module = Two().eval()
    parts = capture(module, {"hidden": states(0)})
    read = parts.readout_of(lambda output: output["pooled"])
    both = parts.readout_of(lambda output: torch.cat([output["tokens"], output["pooled"]], -1))
    state, context = parts.stem({"hidden": states(1)})
    for step in range(1, LAYERS + 1):
        state = parts.steps(step, state, **unwrap(context))
    out = module(states(1))
    assert torch.equal(read(state, **unwrap(context)), out["pooled"])
    assert torch.equal(both(state, **unwrap(context)), torch.cat([*out.values()], -1))


def layers() -> nn.ModuleList:
    return nn.ModuleList([Block() for _ in range(LAYERS)])


def module_of(forward: Callable[..., Any], **parts: Any) -> nn.Module:
    """A module with these parts, whose forward is a function of itself and the input."""

    class Own(nn.Module):
        def forward(self, hidden: Tensor) -> Any:
            return forward(self, hidden)

    module = Own()
    for name, part in parts.items():
        if isinstance(part, Tensor):
            module.register_buffer(name, part)
        else:
            setattr(module, name, part)
    return module.eval()


def in_a_loop(module: Any, hidden: Tensor) -> Tensor:
    for layer in module.layers:
        hidden = layer(hidden)
    return hidden


def adding(module: Any, hidden: Tensor) -> Tensor:
    for layer in module.layers:
        hidden = hidden + layer(hidden)
    return hidden


def as_attributes(module: Any, hidden: Tensor) -> Tensor:
    return module.third(module.second(module.first(hidden)))


def counting(module: Any, hidden: Tensor) -> Tensor:
    if module.training:
        module.calls += 1
    return in_a_loop(module, hidden)


@dataclass
class Answer:
    hidden: Tensor


def to_dataclass(module: Any, hidden: Tensor) -> Answer:
    return Answer(in_a_loop(module, hidden))


def mixing(module: Any, hidden: Tensor) -> Tensor:
    for layer in module.layers:
        hidden = layer(hidden)
    return hidden - hidden.mean(0)


def gated(module: Any, hidden: Tensor) -> Tensor:
    start = hidden
    for layer in module.layers:
        hidden = layer(hidden)
    return hidden + module.gate(start) * hidden.mean(1, keepdim=True).roll(1, 0)


def by_number(module: Any, hidden: Tensor) -> Tensor:
    hide = torch.zeros(hidden.shape[:2], dtype=torch.bool) if len(hidden) > ROWS else None
    for layer in module.layers:
        hidden = layer(hidden, hide)
    return hidden


def noisy(module: Any, hidden: Tensor) -> Tensor:
    return in_a_loop(module, hidden) + torch.randn(())


def dropping_between(module: Any, hidden: Tensor) -> Tensor:
    for layer in module.layers:
        hidden = nn.functional.dropout(layer(hidden), 0.5, module.training)
    return hidden


def masking_in_place(module: Any, hidden: Tensor) -> Tensor:
    real = torch.ones(hidden.shape[:2])  # of an example in which nothing is hidden
    for layer in module.layers:
        hidden = layer(hidden)
        hidden *= real[..., None]
    return hidden


def dropping_in_place(module: Any, hidden: Tensor) -> Tensor:
    for layer in module.layers:
        hidden = nn.functional.dropout(layer(hidden), 0.5, module.training, inplace=True)
    return hidden


def dropping_by_a_module(module: Any, hidden: Tensor) -> Tensor:
    for layer in module.layers:
        hidden = module.dropout(layer(hidden))
    return hidden


def fading_context(module: Any, hidden: Tensor) -> Tensor:
    hide = torch.zeros(hidden.shape[:2])
    for layer in module.layers:
        hidden = layer(hidden, hide)
        hide -= 1.0
    return hidden


def writing_around(module: Any, hidden: Tensor) -> Tensor:
    """Write in place in front of the layers and behind them, which is captured."""
    hidden = module.first(hidden)
    hidden += hidden.mean(-1, keepdim=True)
    hidden = in_a_loop(module, hidden)
    hidden *= 2.0
    return module.last(hidden)


def heavy_end(module: Any, hidden: Tensor) -> Tensor:
    return module.end(in_a_loop(module, hidden))


def zeros() -> nn.Linear:
    linear = nn.Linear(WIDTH, WIDTH)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


class Growing(nn.Module):
    def __init__(self, number: int) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH + number, WIDTH + number + 1)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.linear(hidden)


def recurrent(module: Any, hidden: Tensor) -> Tensor:
    return module.lstm(hidden)[0]


REFUSED: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "batch_first": (
        lambda: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(WIDTH, 2, 16), LAYERS, enable_nested_tensor=False
        ),
        "batch_first=False",
        "batch_first=True",
    ),
    "attributes": (
        lambda: module_of(as_attributes, first=Block(), second=Block(), third=Block()),
        "attributes: first, second, third",
        "nn.ModuleList([self.first, …])",
    ),
    "recurrent": (
        lambda: module_of(recurrent, lstm=nn.LSTM(WIDTH, WIDTH, num_layers=2, batch_first=True)),
        "recurrent",
        "one layer each",
    ),
    "adding": (
        lambda: module_of(adding, layers=layers()),
        "between 'layers.0' and 'layers.1'",
        "the addition into the block",
    ),
    "a dataclass": (
        lambda: module_of(to_dataclass, layers=layers()),
        "type Answer",
        "tuple or dict",
    ),
    "buffers": (
        lambda: module_of(counting, layers=layers(), calls=torch.zeros(())),
        "calls",
        "Keep them in a module",
    ),
    "rows that mix": (
        lambda: module_of(mixing, layers=layers()),
        "rows that affect one another",
        "",
    ),
    "rows that will mix": (
        lambda: module_of(gated, layers=layers(), gate=zeros()),
        "rows that affect one another",
        "",
    ),
    "another number of rows": (
        lambda: module_of(by_number, layers=layers()),
        "with one row more",
        "",
    ),
    "random": (lambda: module_of(noisy, layers=layers()), "random numbers", ""),
    "dropout between": (
        lambda: module_of(dropping_between, layers=layers()),
        "code of its own",
        "",
    ),
    "a mask in place": (
        lambda: module_of(masking_in_place, layers=layers()),
        "code of its own between 'layers.0' and 'layers.1'",
        "",
    ),
    "dropout in place": (
        lambda: module_of(dropping_in_place, layers=layers()),
        "code of its own",
        "",
    ),
    "a module that drops in place": (
        lambda: module_of(
            dropping_by_a_module, layers=layers(), dropout=nn.Dropout(0.5, inplace=True)
        ),
        "code of its own",
        "",
    ),
    "context written in place": (
        lambda: module_of(fading_context, layers=layers()),
        "code of its own",
        "",
    ),
    "a heavy end": (
        lambda: module_of(
            heavy_end,
            layers=layers(),
            end=nn.Sequential(nn.Linear(WIDTH, 999), nn.ReLU(), nn.Linear(999, 999)),
        ),
        "cost less than what follows",
        "",
    ),
    "states that grow": (
        lambda: module_of(in_a_loop, layers=nn.ModuleList(map(Growing, range(LAYERS)))),
        "differ in shape",
        "",
    ),
    "batch second": (LengthFirst, "batch_first=False", "batch_first=True"),
    "rows and positions in one dimension": (Folded, "without the batch first", ""),
    "no layers": (lambda: nn.Linear(WIDTH, WIDTH), "a Linear without such a list", "nn.ModuleList"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_name_the_cause_and_the_cure(name: str) -> None:
    make_module, cause, cure = REFUSED[name]
    module = make_module().eval()
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(ArgumentError) as caught:
        capture(module, states(0))
    assert cause in str(caught.value)
    assert cure in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert not any(part._forward_hooks or "forward" in vars(part) for part in module.modules())


def test_writes_in_place_around_the_layers_are_made_once() -> None:
    ends = {"first": nn.Linear(WIDTH, WIDTH), "last": nn.Linear(WIDTH, WIDTH)}
    module = module_of(writing_around, layers=layers(), **ends)
    parts = capture(module, states(0))
    state, context = parts.stem(states(1))
    for step in range(1, LAYERS + 1):
        state = parts.steps(step, state, **unwrap(context))
    assert torch.equal(parts.readout(state, **unwrap(context)), module(states(1)))


def test_a_list_whose_rest_costs_more_is_refused_with_a_better_one() -> None:
    small = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(2)])

    def forward(module: Any, hidden: Tensor) -> Tensor:
        for layer in module.small:
            hidden = layer(hidden)
        return in_a_loop(module, hidden)

    module = module_of(forward, small=small, layers=layers())
    with pytest.raises(ArgumentError, match="layers='layers'"):
        capture(module, states(0), layers="small")
    assert capture(module, states(0)).stem.contract.order == ["layers.0", "layers.1", "layers.2"]
    with pytest.raises(ArgumentError, match="'wrong'"):
        capture(module, states(0), layers="wrong")


class Residual(nn.Module):
    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inner, outer, 3, outer // inner, 1)
        self.second = nn.Conv2d(outer, outer, 3, 1, 1)
        self.short = nn.Identity() if inner == outer else nn.Conv2d(inner, outer, 1, 2)

    def forward(self, maps: Tensor) -> Tensor:
        return self.short(maps) + self.second(self.first(maps).relu())


class ResNet(nn.Module):
    """Stages as attributes, each a list of blocks (torchvision)."""

    def __init__(self) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(Residual(4, 4), Residual(4, 4))
        self.layer2 = nn.Sequential(Residual(4, 8), Residual(8, 8), Residual(8, 8))
        self.fc = nn.Linear(8, 3)

    def forward(self, maps: Tensor) -> Tensor:
        return self.fc(self.layer2(self.layer1(maps)).mean((2, 3)))


def test_of_stages_the_last_is_taken() -> None:
    module = ResNet().eval()
    maps = torch.randn(3, 4, 8, 8)
    parts = capture(module, maps)
    assert parts.stem.contract.order == ["layer2.0", "layer2.1", "layer2.2"]
    assert parts.classifier == "fc"
    assert torch.equal(through(parts, {"maps": maps})[-1], module(maps))
    with pytest.raises(ArgumentError, match="Pass layers='layer2'"):
        capture(module, maps, layers="layer1")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_layers_are_captured_in_other_dtypes(dtype: torch.dtype) -> None:
    module, example = make("torch")
    parts = capture(module.to(dtype), {"src": example["src"].to(dtype)})
    assert torch.equal(
        through(parts, {"src": example["src"].to(dtype)})[-1], module(example["src"].to(dtype))
    )


def test_a_wrapper_of_a_captured_module_exits_like_its_steps_by_hand() -> None:
    module, example = make("torch-masked")
    parts = capture(module, example)
    head = ponder.PerStep(nn.Linear(WIDTH, 2) for _ in range(LAYERS))
    own = ponder.PonderWrapper(
        parts.steps,
        stem=parts.stem,
        readout=ReadoutCall(ponder.readouts.mean, parts.padding, parts.readout),
        head=head,
        padding=parts.padding,
        policy=ponder.policies.Confidence(0.6),
        task="classification",
    ).eval()
    out = own(example["src"], src_key_padding_mask=example["src_key_padding_mask"])
    assert out.exit_step.unique().numel() > 1
    features = through(parts, example)
    for row, step in enumerate(out.exit_step.tolist()):
        mean = features[step - 1][row][REAL[row]].mean(0)
        torch.testing.assert_close(out.outputs[row], head(mean[None], step)[0])


def test_a_module_in_training_mode_keeps_its_mode_and_its_padding() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.2, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    hidden = torch.arange(7) >= torch.tensor([[7], [4], [5]])
    parts = ponder.capture(encoder, {"src": torch.randn(3, 7, 16), "src_key_padding_mask": hidden})
    assert encoder.training
    assert parts.padding is not None


def test_an_example_may_have_its_context_by_name() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    encoder = nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=False)
    states = torch.randn(3, 5, 8)
    padding = torch.arange(5) >= torch.tensor([[5], [4], [3]])
    parts = ponder.capture(encoder, (states, {"src_key_padding_mask": padding}))
    assert parts.padding is not None
    assert parts.padding.mask == "src_key_padding_mask"
