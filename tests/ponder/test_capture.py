"""`capture`: stem, steps and readout of a module with a list of layers compute what it computes, or it says why not."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ponder
from ponder.errors import ArgumentError, ArgumentTypeError
from ponder.parts.capturing.captured import CapturedStem
from ponder.parts.capturing.closeness import close
from ponder.policies import ExitPolicy, FixedStep, LastStep, PolicyBatch, StepView
from ponder.testing import check_backbone
from tests.ponder.capturable import (
    LAYERS,
    LENGTHS,
    MODULES,
    NARROWING,
    REAL,
    WIDTH,
    Block,
    ByTurns,
    TextEncoder,
    make,
    other_example,
    states,
    token_ids,
)
from tests.ponder.checks import refused

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
modules = pytest.mark.parametrize("name", MODULES)


class Pooled(nn.Module):
    """A head for features with or without positions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 2)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(features[:, 0] if features.dim() == 3 else features)


def wrapped(module: nn.Module, example: dict[str, Any], **options: Any) -> ponder.PonderWrapper:
    """The module with its own output as the answer."""
    parts = ponder.capture(module, example)
    return ponder.PonderWrapper(
        parts.steps, stem=parts.stem, readout=parts.readout, padding=parts.padding, head=nn.Identity(), **options
    ).eval()


def call(model: Any, example: dict[str, Any], **options: Any) -> Any:
    first, *others = example
    return model(example[first], **{name: example[name] for name in others}, **options)


def plain(module: nn.Module, example: dict[str, Any]) -> Tensor:
    out = module(**example)
    return out["tokens"] if isinstance(out, dict) else out


@modules
@torch.no_grad()
def test_full_depth_is_the_module_bit_for_bit(name: str) -> None:
    module, example = make(name)
    model = wrapped(module, example)
    assert model.num_steps == LAYERS
    for batch in (example, other_example(name)):
        assert torch.equal(call(model, batch, policy=LastStep()).outputs, plain(module, batch))


@modules
def test_it_keeps_the_contract_of_backbones(name: str) -> None:
    module, example = make(name)
    parts = ponder.capture(module, example)
    head = Pooled(5 if name == "image-classifier" else WIDTH)
    model = ponder.PonderWrapper(parts.steps, stem=parts.stem, readout=parts.readout, head=head)
    first, *others = example
    check_backbone(model, example[first], **{other: example[other] for other in others})


@modules
@torch.no_grad()
def test_an_earlier_exit_reads_what_a_shorter_module_would_give(name: str) -> None:
    module, example = make(name)
    model = wrapped(module, example)
    for step in range(1, LAYERS):
        short = copy.deepcopy(module)
        for path, box in list(short.named_children()):
            if isinstance(box, nn.ModuleList | nn.Sequential) and len(box) == LAYERS:
                setattr(short, path, box[:step])
        assert torch.equal(call(model, example, policy=FixedStep(step)).outputs, plain(short, example))


@dataclass(frozen=True)
class LongestFirst(ExitPolicy):
    """Rows leave by their length, which is their id: the longest after the first step, the shortest after the last."""

    def init(self, batch: PolicyBatch) -> Any:
        order = batch.row_ids.argsort(descending=True).argsort()
        return {"exit": 1 + order.clamp(max=batch.num_steps - 1)}

    def decide(self, step: StepView, state: Any) -> tuple[Tensor | bool, Any]:
        return step.index >= state["exit"], state


@pytest.mark.parametrize("name", NARROWING)
@torch.no_grad()
def test_batches_get_narrower_when_the_longest_rows_leave(name: str) -> None:
    module, example = make(name)
    parts = ponder.capture(module, example)
    assert parts.padding is not None
    assert not parts.padding.pooled, "its own features have positions"
    model = ponder.PonderWrapper(
        parts.steps,
        stem=parts.stem,
        readout=lambda hidden: hidden[:, 0],
        head=nn.Linear(WIDTH, 2),
        padding=replace(parts.padding, pooled=True),
    ).eval()
    widths: list[int] = []
    hook = model.steps.register_forward_pre_hook(lambda _, args: widths.append(args[1].shape[1]))
    out = call(model, example, policy=LongestFirst(), row_ids=LENGTHS)
    hook.remove()
    assert out.exit_step.tolist() == [1, 3, 2, 3]
    assert widths == [6, 5, 4]
    first, *others = example
    full = model.unroll(example[first], **{name: example[name] for name in others}).outputs
    expected = full[torch.arange(len(LENGTHS)), out.exit_step - 1]
    torch.testing.assert_close(out.outputs, expected, atol=1e-5, rtol=1e-5)


class Ending(nn.Module):
    """A classifier of tokens with a mask, whose end is a function of its last states and its ids."""

    def __init__(self, end: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.out, self.end = TextEncoder(), nn.Linear(WIDTH, 3), end
        self.eval()

    def forward(self, ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.out(self.end(self.inner(ids, attention_mask)["tokens"], ids))


@pytest.mark.parametrize(
    "end",
    [
        lambda tokens, ids: tokens.mean(1),
        lambda tokens, ids: tokens.amax(1),
        lambda tokens, ids: tokens[:, -1],
        lambda tokens, ids: tokens - tokens.mean(1, keepdim=True),
    ],
    ids=["mean", "maximum", "last", "centred"],
)
@torch.no_grad()
def test_an_end_that_reads_padding_keeps_batches_as_wide_as_they_are(end: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Trap: states that stay as they are in narrower batches were proved, and what is read of them was not."""
    module, example = Ending(end), make("text-masked")[1]
    assert ponder.capture(module, example).padding is None
    model = ponder.PonderWrapper.from_recipe(module, "pabee", num_outputs=3, example=example).eval()
    ran = call(model, example, policy=LongestFirst(), row_ids=LENGTHS)
    record = model.unroll(example["ids"], attention_mask=REAL.long(), row_ids=LENGTHS)
    expected = record.replay(LongestFirst())
    assert torch.equal(ran.exit_step, expected.exit_step)
    torch.testing.assert_close(ran.outputs, expected.outputs, atol=1e-6, rtol=1e-5)


def test_an_end_that_reads_what_stands_at_padding_keeps_lengths_apart_in_a_stream() -> None:
    example = {"ids": token_ids() % 29 + 1, "attention_mask": REAL.long()}  # a stream pads with 0
    module = Ending(lambda tokens, ids: tokens[:, 0] * (1 + (ids[:, -1:] > 0)))
    padding = ponder.capture(module, example).padding
    assert padding is not None
    assert padding.pooled
    assert not padding.mixed


class Hiding(nn.Module):
    """Scores of tokens, of which a mask hides those at padding; rows may feel each other behind the layers."""

    def __init__(self, hide: Callable[[Tensor, Tensor], Tensor], centred: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.out, self.hide, self.centred = TextEncoder(), nn.Linear(WIDTH, 2), hide, centred
        self.eval()

    def forward(self, ids: Tensor, attention_mask: Tensor) -> Tensor:
        tokens = self.inner(ids, attention_mask)["tokens"]
        scores = self.out(tokens - tokens.mean(0) if self.centred else tokens)
        return self.hide(scores, (attention_mask == 0)[..., None])


hidings = pytest.mark.parametrize(
    "hide",
    [
        lambda scores, hidden: scores.masked_fill(hidden, -1e4),
        lambda scores, hidden: scores.masked_fill(hidden, torch.finfo(scores.dtype).min),
        lambda scores, hidden: scores.masked_fill(hidden, -torch.inf),
        lambda scores, hidden: scores.masked_fill(hidden, 1e9),
        lambda scores, hidden: scores - 1e4 * hidden,
    ],
    ids=["-1e4", "lowest", "-inf", "1e9", "added"],
)


@hidings
def test_rows_that_feel_each_other_are_refused_beside_the_numbers_of_a_mask(hide: Callable[..., Tensor]) -> None:
    """Trap: a mask's large number, the same in both outputs, was the measure of how far the others may be apart."""
    with pytest.raises(ArgumentError, match=r"rows that do not affect one another; got other .* differ by [0-9.]+\."):
        ponder.capture(Hiding(hide, centred=True), make("text-masked")[1])


@hidings
def test_lengths_share_a_stream_where_an_end_hides_padding(hide: Callable[..., Tensor]) -> None:
    """Trap: an end that hides padding by minus infinity was asked for outputs that are finite."""
    padding = ponder.capture(Hiding(hide, centred=False), make("text-masked")[1]).padding
    assert padding is not None
    assert padding.mixed


def test_rounding_is_measured_by_the_entries_that_differ() -> None:
    own = torch.tensor([300.0, 0.0, -2e4, -torch.inf, torch.nan])
    assert close(own.clone(), own)
    assert close(own + torch.tensor([1e-3, 1e-3, 1.0, 0.0, 0.0]), own)
    for apart in ([0.0, 1e-3, 1.0, 0.0, 0.0], [1e-3, 1.0, 0.0, 0.0, 0.0], [0.0, torch.inf, 0.0, 0.0, 0.0]):
        assert not close(own + torch.tensor(apart), own)
    assert not close(own.nan_to_num(neginf=-1e30, nan=torch.nan), own)
    assert not close(own.nan_to_num(nan=0.0, neginf=-torch.inf), own)


def test_without_a_mask_no_lengths_are_claimed() -> None:
    for name in ("torch", "text", "folded"):
        assert ponder.capture(*make(name)).padding is None


@modules
def test_gradients_are_the_modules_own(name: str) -> None:
    module, example = make(name)
    model = wrapped(module, example)
    call(model, example, policy=LastStep()).outputs.square().sum().backward()
    got = {name: weight.grad for name, weight in module.named_parameters()}
    module.zero_grad()
    plain(module, example).square().sum().backward()
    for key, weight in module.named_parameters():
        assert got[key] is not None
        torch.testing.assert_close(got[key], weight.grad, msg=key)


@pytest.mark.parametrize("name", ["torch", "text-masked", "image-classifier"])
def test_training_draws_the_modules_own_dropout(name: str) -> None:
    module, example = make(name)
    model = wrapped(module, example, objective=ponder.objectives.FinalStep()).train()
    torch.manual_seed(5)
    expected = plain(module, example)
    torch.manual_seed(5)
    assert torch.equal(call(model, example).outputs, expected)
    assert not torch.equal(plain(module, example), expected), "dropout is on"


@modules
def test_the_module_is_not_touched(name: str) -> None:
    module, example = make(name)
    module.train()
    before = _looks(module)
    model = wrapped(module, example)
    assert module.training is False, "the wrapper owns it now, and was put into evaluation mode"
    module.train()
    assert _looks(module) == before
    module.eval()
    with torch.no_grad():
        call(model, example, policy=LastStep())
    module.train()
    assert _looks(module) == before


def _looks(module: nn.Module) -> list[Any]:
    """Everything on every module that a capture could have left behind."""
    return [
        (
            path,
            part.training,
            sorted(part.__dict__),
            [len(part.__dict__[name]) for name in HOOKS],
            id(part.forward.__func__),
        )
        for path, part in module.named_modules()
    ]


@modules
def test_weights_are_registered_once_under_stable_names(name: str) -> None:
    module, example = make(name)
    model = wrapped(module, example)
    assert list(model.state_dict()) == [f"stem.module.{key}" for key in module.state_dict()]
    assert [id(weight) for weight in model.parameters()] == [id(weight) for weight in module.parameters()]
    call(model, example)
    assert list(model.state_dict()) == [f"stem.module.{key}" for key in module.state_dict()]


@modules
@torch.no_grad()
def test_copies_are_whole_and_their_own(name: str, tmp_path: Path) -> None:
    module, example = make(name)
    model = wrapped(module, example)
    expected = call(model, example, policy=LastStep()).outputs
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(call(twin, example, policy=LastStep()).outputs, expected)
        for weight in twin.parameters():
            weight.add_(1.0)
        assert torch.equal(call(model, example, policy=LastStep()).outputs, expected), "the first one has not moved"
        assert not torch.equal(call(twin, example, policy=LastStep()).outputs, expected)
        ponder.save(model, tmp_path)
        ponder.load(twin, tmp_path)
        assert torch.equal(call(twin, example, policy=LastStep()).outputs, expected)


@pytest.mark.parametrize("name", ["torch", "text", "code-between", "image-classifier"])
@torch.no_grad()
def test_it_moves_with_the_module_to_another_precision(name: str) -> None:
    module, example = make(name)
    model = wrapped(module, example).double()
    batch = {key: value.double() if value.is_floating_point() else value for key, value in example.items()}
    assert torch.equal(call(model, batch, policy=LastStep()).outputs, plain(module, batch))


@pytest.mark.parametrize("name", ["text-masked", "code-between", "handing-on"])
@torch.no_grad()
def test_threads_may_call_it_at_once(name: str) -> None:
    module, example = make(name)
    model = wrapped(module, example)
    batches = [MODULES[name][1](seed) for seed in range(8)]
    expected = [plain(module, batch) for batch in batches]

    def run(number: int) -> bool:
        with torch.no_grad():
            ours = call(model, batches[number % 8], policy=LastStep()).outputs
            return torch.equal(ours, expected[number % 8]) and torch.equal(plain(module, batches[number % 8]), ours)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(run, range(64)))


@torch.no_grad()
def test_hooks_on_layers_see_the_rows_that_run() -> None:
    module, example = make("text-masked")
    rows: list[int] = []
    module.layers[1].register_forward_hook(lambda _, args, out: rows.append(len(args[0])))
    model = wrapped(module, example)
    rows.clear()
    call(model, example, policy=LongestFirst(), row_ids=LENGTHS)
    assert rows == [3]


@torch.no_grad()
def test_a_tail_of_modules_runs_only_what_is_read() -> None:
    module, example = make("torch")
    parts = ponder.capture(module, example)
    calls: list[int] = []
    module.norm.register_forward_hook(lambda *_: calls.append(1))
    model = ponder.PonderWrapper(parts.steps, stem=parts.stem, readout=lambda h: h[:, 0], head=nn.Identity()).eval()
    call(model, example)
    assert calls == []


@torch.no_grad()
def test_inputs_may_be_a_tensor_a_tuple_or_a_dict() -> None:
    module, example = make("text-masked")
    ids, mask = example.values()
    expected = plain(module, example)
    for given in (example, (ids, mask)):
        parts = ponder.capture(module, given, features=lambda out: out["tokens"])
        state, context = parts.stem(given)
        for step in range(1, LAYERS + 1):
            state = parts.steps(step, state, **ponder._utils.trees.unwrap(context))
        assert torch.equal(parts.readout(state), expected)


@torch.no_grad()
def test_the_list_of_layers_may_be_named() -> None:
    class TwoLists(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.ModuleList([Block() for _ in range(2)])
            self.second = nn.ModuleList([Block() for _ in range(4)])

        def forward(self, hidden: Tensor) -> Tensor:
            for layer in (*self.first, *self.second):
                hidden = layer(hidden)
            return hidden

    torch.manual_seed(0)
    module = TwoLists().eval()
    assert ponder.capture(module, states()).steps.num_steps == 4, "the larger one"
    model = ponder.capture(module, states(), layers="first")
    assert model.steps.num_steps == 2
    state, context = model.stem(states())
    for step in (1, 2):
        state = model.steps(step, state, **ponder._utils.trees.unwrap(context))
    assert torch.equal(model.readout(state, **ponder._utils.trees.unwrap(context)), module(states()))


class Widening(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([nn.Linear(8, 16), nn.Linear(16, 32)])

    def forward(self, hidden: Tensor) -> Tensor:
        for stage in self.stages:
            hidden = stage(hidden)
        return hidden


class OfTheBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(2)])

    def forward(self, hidden: Tensor) -> Tensor:
        for layer in self.layers:
            hidden = layer(hidden - hidden.mean(0))
        return hidden


class OfTheBatchAround(OfTheBatch):
    """Statistics of the batch before or behind its layers, or handed to each of them."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where
        self.layers = nn.ModuleList([Shifted() for _ in range(2)])

    def forward(self, hidden: Tensor) -> Tensor:
        if self.where == "before":
            hidden = hidden - hidden.mean(0)
        shift = hidden.mean(0) if self.where == "handed on" else torch.zeros(WIDTH)
        for layer in self.layers:
            hidden = layer(hidden, shift)
        return hidden - hidden.mean(0) if self.where == "behind" else hidden


class Shifted(nn.Linear):
    def __init__(self) -> None:
        super().__init__(WIDTH, WIDTH)

    def forward(self, hidden: Tensor, shift: Tensor) -> Tensor:
        return super().forward(hidden - shift)


@torch.no_grad()
def test_layers_may_write_into_what_they_are_given() -> None:
    """Trap: h_0 of fewer rows compared with what the first layer had made of h_0; every step ran the module again."""
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.ReLU(inplace=True), nn.Linear(WIDTH, WIDTH)) for _ in range(3)]
    module = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Sequential(*layers)).eval()
    parts = ponder.capture(module, states(), layers="1")
    model = ponder.PonderWrapper(**vars(parts), head=nn.Identity()).eval()
    assert torch.equal(model(states(), policy=LastStep()).outputs, module(states()))
    assert isinstance(parts.stem, CapturedStem)
    assert not parts.stem.layered.between


class Skips(nn.Module):
    """A U-Net: what the first layer gave is added after the last."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(4)])

    def forward(self, hidden: Tensor) -> Tensor:
        kept = []
        for number, layer in enumerate(self.layers):
            if number >= 2:
                hidden = hidden + kept.pop()
            hidden = layer(hidden)
            if number < 2:
                kept.append(hidden)
        return hidden


class Random(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(2)])

    def forward(self, hidden: Tensor) -> Tensor:
        for layer in self.layers:
            hidden = layer(hidden) + torch.randn_like(hidden)
        return hidden


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([CountingLayer() for _ in range(2)])

    def forward(self, hidden: Tensor) -> Tensor:
        for layer in self.layers:
            hidden = layer(hidden, len(hidden))
        return hidden


class CountingLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden: Tensor, rows: int) -> Tensor:
        return self.linear(hidden).reshape(rows, -1, WIDTH)


@torch.no_grad()
def test_layers_that_are_told_the_number_of_rows_are_told_anew() -> None:
    """Trap: a number of rows noted once, and given to the layers after rows have left."""
    module = Counting().eval()
    parts = ponder.capture(module, states())
    model = ponder.PonderWrapper(parts.steps, stem=parts.stem, readout=parts.readout, head=Pooled(WIDTH))
    check_backbone(model, states())


class Telling(nn.Module):
    """Layers that are told by a flag whether any row has a mark."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([ToldLayer() for _ in range(LAYERS)])

    def forward(self, hidden: Tensor, marks: Tensor) -> Tensor:
        any_marks = bool(marks.any())
        for layer in self.layers:
            hidden = layer(hidden, marks, any_marks)
        return hidden.mean(1)


class ToldLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden: Tensor, marks: Tensor, any_marks: bool) -> Tensor:
        if any_marks:
            assert bool(marks.any()), "told of marks that are not there"
            hidden = hidden + marks.unsqueeze(-1) * self.linear(hidden)
        return torch.tanh(hidden)


@pytest.mark.parametrize("seen", [False, True], ids=["none in the example", "one in the example"])
@torch.no_grad()
def test_layers_that_are_told_by_a_flag_what_holds_of_some_rows_are_told_anew(seen: bool) -> None:
    """Trap: a flag of the whole batch, noted once, where the rows of which it holds have left."""
    module, hidden = Telling().eval(), states()
    marks = torch.zeros(hidden.shape[:2])
    marks[0, 1] = 1.0
    model = wrapped(module, {"hidden": hidden, "marks": marks if seen else torch.zeros_like(marks)})
    every = model.unroll(hidden, marks=marks).outputs
    out = model(hidden, marks=marks, policy=ByTurns())
    assert out.exit_step[0] == 1
    assert len(set(out.exit_step.tolist())) > 1
    torch.testing.assert_close(out.outputs, every[torch.arange(len(hidden)), out.exit_step - 1])
    for each in (marks, torch.zeros_like(marks)):
        assert torch.equal(model(hidden, marks=each, policy=LastStep()).outputs, module(hidden, each))


@pytest.mark.parametrize(
    ("module", "example", "says"),
    [
        (Widening(), states(), "keep the shape of the hidden state; got .* after layer 1 of 'stages'"),
        (OfTheBatch(), states(), "rows that do not affect one another"),
        (OfTheBatchAround("before"), states(), "rows that do not affect one another; got other arguments"),
        (OfTheBatchAround("handed on"), states(), "rows that do not affect one another"),
        (OfTheBatchAround("behind"), states(), "rows that do not affect one another; got other outputs"),
        (Skips(), states(), "nothing but the hidden state is handed on; got other outputs"),
        (Random(), states(), "draws random numbers"),
        (nn.Linear(WIDTH, 2), states(), "a list of layers that are called"),
        (nn.LSTM(WIDTH, WIDTH, 2), states(), "a list of layers that are called"),
        (OfTheBatch(), states()[:1], "example: expected tensors of two rows or more"),
        (OfTheBatch(), {"hidden": 3}, "example: expected tensors of two rows or more"),
    ],
)
def test_what_cannot_be_captured_is_refused_with_the_reason(module: nn.Module, example: Any, says: str) -> None:
    before = _looks(module)
    with pytest.raises(ArgumentError, match=says) as caught:
        ponder.capture(module, example)
    assert caught.value.remedy
    assert _looks(module) == before


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(ArgumentTypeError, match=r"module: expected an nn\.Module; got function"):
        ponder.capture(states, states())


def test_a_name_that_is_no_list_is_refused() -> None:
    with pytest.raises(ArgumentError, match="a list of layers at 'norm'"):
        ponder.capture(*make("text"), layers="norm")


@torch.no_grad()
def test_an_encoder_of_pytorch_in_one_line() -> None:
    module, example = make("torch")
    model = ponder.PonderWrapper(**vars(ponder.capture(module, example["src"])), head=nn.Identity()).eval()
    assert torch.equal(model(states(), policy=LastStep()).outputs, module(states()))


@torch.no_grad()
def test_a_vision_transformer_of_torchvision() -> None:
    torchvision = pytest.importorskip("torchvision")
    _check_classifier(torchvision.models.VisionTransformer(16, 8, LAYERS, 2, 16, 32, num_classes=4), 16)


@torch.no_grad()
def test_a_vision_transformer_of_timm() -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=LAYERS, num_classes=4)
    _check_classifier(model, 32)


def _check_classifier(module: nn.Module, size: int) -> None:
    for weight in module.parameters():
        if weight.dim() > 1:
            weight.normal_(std=0.2)
    module.eval()
    images = torch.randn(3, 3, size, size)
    model = ponder.PonderWrapper(**vars(ponder.capture(module, images)), head=nn.Identity()).eval()
    assert model.num_steps == LAYERS
    assert torch.equal(model(images, policy=LastStep()).outputs, module(images))
    check_backbone(model, images)


@torch.no_grad()
def test_an_encoder_of_x_transformers() -> None:
    x_transformers = pytest.importorskip("x_transformers")
    torch.manual_seed(0)
    layers = x_transformers.Encoder(dim=16, depth=LAYERS, heads=2, attn_dim_head=8)
    module = x_transformers.TransformerWrapper(num_tokens=30, max_seq_len=16, attn_layers=layers, num_memory_tokens=0)
    module.eval()
    ids = torch.randint(0, 30, REAL.shape)
    parts = ponder.capture(module, {"x": ids, "mask": REAL})
    model = ponder.PonderWrapper(**vars(parts), head=nn.Identity()).eval()
    assert model.num_steps == 2 * LAYERS, "attention and feed-forward parts are layers of their own there"
    assert torch.equal(model(ids, mask=REAL, policy=LastStep()).outputs, module(ids, mask=REAL))
    assert parts.padding is not None
    model = ponder.PonderWrapper(
        parts.steps,
        stem=parts.stem,
        readout=parts.readout,
        head=Pooled(30),
        padding=replace(parts.padding, pooled=False),
    )
    check_backbone(model, ids, mask=REAL)


@modules
def test_it_works_in_inference_mode(name: str) -> None:
    module, example = make(name)
    with torch.inference_mode():
        model = wrapped(module, {key: value.clone() for key, value in example.items()})
        assert torch.equal(call(model, example, policy=LastStep()).outputs, plain(module, example))


def first_token_of(parts: ponder.Captured) -> ponder.PonderWrapper:
    """A model with an answer a row, whose rows leave at different steps."""
    assert parts.padding is not None
    return ponder.PonderWrapper(
        parts.steps,
        stem=parts.stem,
        readout=lambda hidden: hidden[:, 0],
        head=nn.Linear(WIDTH, 2),
        padding=replace(parts.padding, pooled=True),
        policy=ByTurns(),
    ).eval()


def rows_of_all_lengths(example: dict[str, Any]) -> tuple[dict[str, Any], list[Any], Tensor]:
    """The example three times over, and its rows one by one, each at its own length and without a mask."""
    first = next(iter(example))
    batch = {key: value.repeat(3, *[1] * (value.dim() - 1)) for key, value in example.items()}
    lengths = LENGTHS.repeat(3)
    return batch, [(batch[first][row, :length], {}) for row, length in enumerate(lengths.tolist())], lengths


@pytest.mark.parametrize("name", NARROWING)
@torch.no_grad()
def test_rows_of_all_lengths_share_a_stream(name: str) -> None:
    module, example = make(name)
    model = first_token_of(ponder.capture(module, example))
    batch, rows, _ = rows_of_all_lengths(example)
    expected = call(model, batch).outputs
    for max_batch in (2, 3, 5):
        with ponder.StreamEngine(model, max_batch=max_batch) as engine:
            answers = dict(engine.run(rows))
        for row, answer in answers.items():
            torch.testing.assert_close(answer.output, expected[row], atol=1e-5, rtol=1e-5)


class LookingAhead(nn.Module):
    """Its stem adds the next token to each: the last real one sees what stands at padding."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = make("text-masked")[0]

    def forward(self, ids: Tensor, attention_mask: Tensor) -> Tensor:
        words = self.inner.words(ids)
        hidden = words + nn.functional.pad(words[:, 1:], (0, 0, 0, 1))
        for layer in self.inner.layers:
            hidden = layer(hidden, attention_mask == 0)
        return hidden


@torch.no_grad()
def test_rows_whose_neighbours_padding_would_change_them_share_a_stream_with_their_own_length_only() -> None:
    """Trap: no mask is made where nothing is padded, so that rows of another length see each other's padding."""
    example = make("text-masked")[1]
    model = first_token_of(ponder.capture(LookingAhead().eval(), example))
    assert model.padding is not None
    assert not model.padding.mixed
    _, rows, lengths = rows_of_all_lengths(example)
    for max_batch in (2, 5):
        with ponder.StreamEngine(model, max_batch=max_batch) as engine:
            answers = dict(engine.run(rows))
        for row, length in enumerate(lengths.tolist()):
            mask = torch.ones(1, length, dtype=torch.long)
            alone = model(rows[row][0][None], attention_mask=mask, row_ids=torch.tensor([row]))
            torch.testing.assert_close(answers[row].output, alone.outputs[0], atol=1e-5, rtol=1e-5)


def test_a_mask_that_is_compiled_for_the_whole_batch_is_made_anew_for_the_rows_that_stay() -> None:
    """Trap: flex attention's kernel, given the mask of more rows, reads the memory of others and ends the process."""

    class BlockMask:
        def __init__(self, rows: int) -> None:
            self.rows = rows

    class Layer(nn.Linear):
        def forward(self, states: Tensor, mask: Any = None) -> Tensor:
            assert mask.rows == len(states)
            return super().forward(states)

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(Layer(4, 4) for _ in range(3))

        def forward(self, states: Tensor) -> Tensor:
            mask = BlockMask(len(states))
            for layer in self.layers:
                states = layer(states, mask)
            return states

    encoder, given = Encoder(), torch.randn(3, 4)
    parts = ponder.capture(encoder, given)
    model = ponder.PonderWrapper(parts.steps, stem=parts.stem, readout=parts.readout, head=nn.Identity()).eval()
    out = model(given, policy=LongestFirst())
    assert out.exit_step.tolist() == [3, 2, 1]
    torch.testing.assert_close(out.outputs[0], encoder(given)[0])


class Net(nn.Module):
    """An encoder with a list of layers, and an end."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.out = OfLayers(), nn.Linear(WIDTH, 3)
        self.eval()

    def forward(self, hidden: Tensor) -> Tensor:
        return self.out(self.encoder(hidden).mean(1))


class OfLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Block() for _ in range(LAYERS)])

    def forward(self, hidden: Tensor) -> Tensor:
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden

    def other(self, hidden: Tensor) -> Tensor:
        return OfLayers.forward(self, 4 * hidden)


def of_maximum(self: Net, hidden: Tensor) -> Tensor:
    return self.out(self.encoder(hidden).amax(1))


def twice(forward: Callable[..., Tensor], hidden: Tensor) -> Tensor:
    return 2 * forward(hidden)


def on_the_module(net: Any) -> None:
    net.forward = MethodType(of_maximum, net)


def in_part(net: Any) -> None:
    net.forward = partial(of_maximum, net)


def around(net: Any) -> None:
    net.forward = partial(twice, net.forward)


def on_the_encoder(net: Any) -> None:
    net.encoder.forward = net.encoder.other


def on_a_layer(net: Any) -> None:
    net.encoder.layers[1].forward = partial(twice, net.encoder.layers[1].forward)


def by_a_closure_on_a_layer(net: Any) -> None:
    plain = net.encoder.layers[1].forward
    net.encoder.layers[1].forward = lambda hidden: 2 * plain(hidden)


def dispatched(net: Any) -> None:
    hooks = pytest.importorskip("accelerate.hooks")
    for module in (net, net.encoder, net.encoder.layers[0], net.out):
        hooks.add_hook_to_module(module, hooks.AlignDevicesHook("cpu", io_same_device=True))


def patched_and_dispatched(net: Any) -> None:
    on_the_module(net)
    on_the_encoder(net)
    dispatched(net)


PATCHES = [
    on_the_module,
    in_part,
    around,
    on_the_encoder,
    on_a_layer,
    by_a_closure_on_a_layer,
    dispatched,
    patched_and_dispatched,
]


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.__name__)
@torch.no_grad()
def test_a_forward_that_was_put_on_a_module_is_its_own(patch: Callable[[Any], None]) -> None:
    """Trap: it was dropped, and what was proved was the module of its class."""
    net, hidden = Net(), states()
    patch(net)
    expected = net(hidden)
    model = wrapped(net, {"hidden": hidden})
    assert torch.equal(model(hidden, policy=LastStep()).outputs, expected)
    assert torch.equal(net(hidden), expected)
    again = copy.deepcopy(model)
    assert torch.equal(again(hidden, policy=LastStep()).outputs, expected)


@torch.no_grad()
def test_a_forward_that_was_compiled_is_read_as_what_it_compiles() -> None:
    net, hidden = Net(), states()
    on_the_module(net)
    expected = net(hidden)
    net.forward = torch.compile(net.forward, backend="eager")
    assert torch.equal(wrapped(net, {"hidden": hidden})(hidden, policy=LastStep()).outputs, expected)


@torch.no_grad()
def test_a_forward_on_a_module_leaves_nothing_for_the_garbage_collector() -> None:
    net = Net()
    on_the_module(net)
    on_the_encoder(net)
    model = wrapped(net, {"hidden": states()})
    gc.collect()
    gc.disable()
    try:
        hidden = states()
        model(hidden)
        kept = weakref.ref(hidden)
        del hidden
        assert kept() is None
    finally:
        gc.enable()


def test_a_closure_around_the_layers_is_refused_by_its_name() -> None:
    net: Any = Net()
    plain = net.encoder.forward
    net.encoder.forward = lambda hidden: 2 * plain(hidden)
    with pytest.raises(ArgumentError, match=r"got .*module\.encoder\.forward, .*module\.encoder\.forward = types\."):
        ponder.capture(net, states())


class Positions(nn.Module):
    """A table of positions, which has no rows, is added before every layer; `input_ids` is a name of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor, table: Tensor, input_ids: Tensor | None = None) -> Tensor:
        for layer in self.layers:
            x = layer(x + table).tanh()
        return (x if input_ids is None else x + input_ids[..., None]).mean(1)


@pytest.mark.parametrize("rows", [4, 5, 6])
def test_what_is_marked_as_shared_has_no_rows_however_many_rows_there_are(rows: int) -> None:
    """A table `(length, width)` was cut like the batch where that had `length` rows."""
    torch.manual_seed(0)
    x, table = torch.randn(3, 5, WIDTH), torch.randn(5, WIDTH)
    parts = ponder.capture(Positions(), {"x": x, "table": table})
    model = ponder.PonderWrapper(**vars(parts), head=nn.Identity(), task="classification").eval()
    inputs, shared = torch.randn(rows, 5, WIDTH), ponder.Shared(table)
    record = model.unroll(inputs, table=shared).detach()
    least = float(record.outputs[:, 0].softmax(-1).amax(-1).min())
    policy = ponder.policies.Confidence(least + 1e-5)  # all but one row leave at the first step
    found, expected = model(inputs, table=shared, policy=policy), record.replay(policy)
    assert found.exit_step.tolist() == expected.exit_step.tolist()
    assert len(set(found.exit_step.tolist())) == 2
    torch.testing.assert_close(found.outputs, expected.outputs, rtol=0, atol=1e-6)


def test_the_modules_own_arguments_are_no_misspelt_ones() -> None:
    x, table, ids = torch.randn(3, 5, WIDTH), torch.randn(5, WIDTH), torch.ones(3, 5)
    parts = ponder.capture(Positions(), {"x": x, "table": table, "input_ids": ids})
    model = ponder.PonderWrapper(**vars(parts), head=nn.Identity()).eval()
    assert model(x, table=ponder.Shared(table), input_ids=ids).outputs.shape == (3, WIDTH)
    for name, told in (
        ("input_idss", "Did you mean"),
        ("tables", "mean 'table'"),
        ("idx", "nothing would read"),
    ):
        with pytest.raises(ArgumentError, match=told):
            model(x, table=ponder.Shared(table), **{name: ids})


def test_what_a_module_hands_on_may_be_given() -> None:
    class HandsOn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Positions()

        def forward(self, *args: Any, **kwargs: Any) -> Tensor:
            return self.inner(*args, **kwargs)

    x, table, ids = torch.randn(3, 5, WIDTH), torch.randn(5, WIDTH), torch.ones(3, 5)
    given = {"x": x, "table": table, "input_ids": ids}
    module = HandsOn()
    parts = ponder.capture(module, given)
    model = ponder.PonderWrapper(**vars(parts), head=nn.Identity()).eval()
    with torch.no_grad():
        found = model(x, table=ponder.Shared(table), input_ids=ids, policy=LastStep()).outputs
        torch.testing.assert_close(found, module(**given))
    with pytest.raises(ArgumentError, match="nothing would read"):
        model(x, table=ponder.Shared(table), idx=ids)


def test_a_causal_mask_is_no_mask_of_rows() -> None:
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True, dropout=0.0)
    encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False).eval()
    mask = nn.Transformer.generate_square_subsequent_mask(6)
    parts = ponder.capture(encoder, {"src": torch.randn(3, 6, WIDTH), "mask": mask})
    model = ponder.PonderWrapper(**vars(parts), head=nn.Identity()).eval()
    inputs = torch.randn(4, 6, WIDTH)
    with torch.no_grad():
        expected = encoder(inputs, mask=mask)
        torch.testing.assert_close(model(inputs, mask=ponder.Shared(mask)).outputs, expected, atol=1e-5, rtol=1e-4)


class Masked(nn.Module):
    """Layers of PyTorch whose padding mask is called `mask`, True at padding or at real positions."""

    def __init__(self, real: bool) -> None:
        super().__init__()
        self.real, self.embed = real, nn.Linear(WIDTH, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True)
        self.layers = nn.ModuleList(copy.deepcopy(layer) for _ in range(3))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        hidden = self.embed(x)
        for layer in self.layers:
            hidden = layer(hidden, src_key_padding_mask=(mask != self.real).expand(len(hidden), -1))
        return hidden


@pytest.mark.parametrize("real", [True, False])
def test_what_a_mask_hides_is_seen_in_the_example(real: bool) -> None:
    torch.manual_seed(0)
    module, x = Masked(real).eval(), torch.randn(3, 7, WIDTH)
    is_real = torch.arange(7) < torch.tensor([[7], [4], [5]])
    mask = is_real == real
    model = ponder.PonderWrapper.from_recipe(module, "pabee", num_outputs=3, example={"x": x, "mask": mask}).eval()
    assert model.padding is not None
    assert model.padding.real == real
    features = model.unroll(x, mask=mask, keep_features=True).features
    assert features is not None
    whole = module(x, mask) * is_real.unsqueeze(-1)
    torch.testing.assert_close(features[:, -1], whole.sum(1) / is_real.sum(1, keepdim=True), atol=1e-5, rtol=1e-5)
    check_backbone(model, x, mask=mask)


def test_a_mask_that_does_not_say_what_it_hides_claims_no_lengths() -> None:
    mask = torch.tensor([[1, 1, 1], [0, 1, 1]]) == 1
    assert ponder.capture(Masked(real=True).eval(), {"x": torch.randn(2, 3, WIDTH), "mask": mask}).padding is None


@pytest.mark.filterwarnings("ignore:.*nested tensors is in prototype stage")
def test_the_encoder_that_pytorch_builds_by_default() -> None:
    """Its nested tensors have no sizes to be learned."""
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True)
    encoder, x = nn.TransformerEncoder(layer, 3).eval(), torch.randn(3, 7, WIDTH)
    hidden = torch.arange(7) >= torch.tensor([[7], [4], [5]])
    with torch.no_grad():
        expected = encoder(x, src_key_padding_mask=hidden)
        for example in (x, {"src": x, "src_key_padding_mask": hidden}):
            model = ponder.PonderWrapper.from_recipe(encoder, "pabee", num_outputs=3, example=example).eval()
            found = model.unroll(x, src_key_padding_mask=hidden, keep_features=True).features
            assert found is not None
            shown = expected * ~hidden.unsqueeze(-1)
            torch.testing.assert_close(found[:, -1], shown.sum(1) / (~hidden).sum(1, True), atol=1e-5, rtol=1e-4)
            check_backbone(model, x, src_key_padding_mask=hidden)
    assert encoder.use_nested_tensor, "the module is as it was"


def test_none_in_a_tuple_keeps_its_place() -> None:
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True)
    encoder, x = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False).eval(), torch.randn(3, 7, WIDTH)
    hidden = torch.arange(7) >= torch.tensor([[7], [4], [5]])
    parts = ponder.capture(encoder, (x, None, hidden))
    model = ponder.PonderWrapper(parts.steps, stem=parts.stem, readout=parts.readout, head=nn.Identity()).eval()
    found = model((x, None, hidden), policy=LastStep()).outputs
    torch.testing.assert_close(found, encoder(x, None, hidden), atol=1e-5, rtol=1e-4)


def test_a_mask_that_all_rows_share_is_seen_by_the_mean() -> None:
    torch.manual_seed(0)
    module, x = Masked(real=True).eval(), torch.randn(3, 6, WIDTH)
    mask = torch.arange(6) < torch.tensor([[6], [4], [3]])
    model = ponder.PonderWrapper.from_recipe(module, "pabee", num_outputs=2, example={"x": x, "mask": mask}).eval()
    one = torch.arange(6)[None] < 4
    for policy in (LastStep(), ByTurns()):
        found = model(x, mask=ponder.Shared(one), policy=policy).outputs
        torch.testing.assert_close(found, model(x, mask=one.expand(3, -1), policy=policy).outputs, atol=1e-5, rtol=1e-4)


class Pairs(nn.Module):
    """Layers that take a mask of pairs of positions, for all rows."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True)
        self.layers = nn.ModuleList(copy.deepcopy(layer) for _ in range(3))

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, src_mask=~attention_mask)
        return x


@pytest.mark.parametrize("rows", [5, 3])
def test_a_shared_mask_of_pairs_is_no_padding(rows: int) -> None:
    torch.manual_seed(0)
    module, x = Pairs().eval(), torch.randn(rows, 5, WIDTH)
    earlier = torch.ones(5, 5, dtype=torch.bool).tril()
    example = {"x": x[:3], "attention_mask": earlier}
    model = ponder.PonderWrapper.from_recipe(module, "pabee", num_outputs=2, example=example).eval()
    found = model.unroll(x, attention_mask=ponder.Shared(earlier), keep_features=True).features
    assert found is not None
    torch.testing.assert_close(found[:, -1], module(x, earlier).mean(1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["one", "a list"])
def test_a_skip_from_a_stem_of_another_shape(kind: str) -> None:
    """Trap: the first layer was made as long as the others, and took the convolution before it in."""

    class Skipping(nn.Module):
        """Blocks, to each of which a projection of the stem's state is added."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(3, 16, 3, padding=1)
            self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(16, 16), nn.Tanh()) for _ in range(4))
            self.skips = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))

        def forward(self, inputs: Tensor) -> Tensor:
            hidden = first = self.conv(inputs.transpose(1, 2)).transpose(1, 2)
            for number, block in enumerate(self.blocks):
                hidden = block(hidden) + self.skips[number if kind == "a list" else 0](first)
            return hidden

    torch.manual_seed(0)
    module = Skipping().eval()
    parts = ponder.capture(module, torch.randn(4, 9, 3))
    model = ponder.PonderWrapper(
        parts.steps, stem=parts.stem, readout=parts.readout, head=nn.Identity(), task="token_classification"
    ).eval()
    rows = torch.randn(7, 11, 3)
    assert torch.equal(model(rows, policy=LastStep()).outputs, module(rows))
    assert parts.steps.num_steps == 4


class Skipping(nn.Module):
    """A model whose configuration leaves a layer out, and whose layers are lists themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(6))

    def forward(self, hidden: Tensor) -> Tensor:
        for number, layer in enumerate(self.layers):
            hidden = hidden if number == 2 else layer(hidden)
        return hidden


class Towers(nn.Module):
    """A model of several stacks, of which a call runs two: the layers of the longer one are most of it."""

    def __init__(self) -> None:
        super().__init__()
        self.towers = nn.ModuleList(nn.Sequential(*(nn.Linear(8, 8) for _ in range(size))) for size in (2, 8, 2))

    def forward(self, hidden: Tensor) -> Tensor:
        answer: Tensor = self.towers[1](self.towers[0](hidden))
        return answer


def test_the_layers_of_one_stack_of_several_are_taken() -> None:
    assert ponder.capture(Towers(), torch.randn(3, 8)).steps.num_steps == 8


def test_a_list_whose_layers_are_not_all_called_is_not_taken_apart() -> None:
    # Trap: the two parts of its first layer were the steps, and four layers ran behind every exit.
    with refused("module", "2 of it that the call left out", "layers='layers.0'"):
        ponder.capture(Skipping(), torch.randn(3, 8))


class Sorting(nn.Module):
    """Sorts its rows by their lengths, longest first, and puts them back, as stacks of packed sequences do."""

    def __init__(self, between: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.between = between

    def forward(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        order = attention_mask.sum(1).argsort(descending=True, stable=True)
        hidden, mask = hidden[order], attention_mask[order].unsqueeze(-1)
        for layer in self.layers:
            hidden = layer(hidden)
            hidden = hidden * mask if self.between else hidden
        return ((hidden * mask).sum(1) / mask.sum(1))[order.argsort()]


@pytest.mark.parametrize("lengths", [(5, 3, 2), (5, 5, 5), (2, 3, 5)])
@pytest.mark.parametrize("between", [False, True])
def test_rows_that_are_sorted_by_length_are_refused(lengths: tuple[int, ...], between: bool) -> None:
    """The trap: an example whose longest row is the first is sorted already, and rows of later batches got mixed up."""
    mask = (torch.arange(5) < torch.tensor(lengths)[:, None]).long()
    with refused("module"):
        ponder.capture(Sorting(between).eval(), {"hidden": torch.randn(3, 5, WIDTH), "attention_mask": mask})


class Chancy(nn.Module):
    """Leaves layers out by chance, in training, with code of its own between them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, hidden: Tensor) -> Tensor:
        for place, layer in enumerate(self.layers):
            if not self.training or torch.rand(()) < 0.5:
                hidden = layer(hidden) * self.scale[place]
        return hidden


def test_layers_that_are_left_out_by_chance_between_code_are_an_error_in_training() -> None:
    """The trap: each step drew anew, and ran a layer twice, or another one."""
    torch.manual_seed(0)
    model = ponder.PonderWrapper.from_recipe(Chancy(), "vanilla", num_outputs=2, example=torch.randn(3, WIDTH))
    inputs, labels = torch.randn(3, WIDTH), torch.tensor([0, 1, 0])
    assert model.eval()(inputs).outputs.shape == (3, 2)
    model.train()
    with pytest.raises(ponder.PonderError, match="was left out in training"):
        [model(inputs, labels=labels) for _ in range(4)]


class MaskedLayer(nn.Linear):
    def __init__(self) -> None:
        super().__init__(WIDTH, WIDTH)

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        return hidden + super().forward(hidden if mask is None else hidden * mask.unsqueeze(-1))


class Dropped(nn.Module):
    """Leaves layers out by chance, in training, with nothing between them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(MaskedLayer() for _ in range(4))
        self.dropout, self.norm = nn.Dropout(0.1), nn.LayerNorm(WIDTH)

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        hidden = self.dropout(hidden)
        for layer in self.layers:
            if not self.training or torch.rand(()) < 0.6:
                hidden = layer(hidden, mask)
        return self.norm(hidden)


def test_layers_that_are_left_out_by_chance_are_so_in_calls_of_another_kind_too() -> None:
    """The trap: a kind of call was learned from two calls, which had drawn other layers."""
    torch.manual_seed(0)
    module, inputs, labels = Dropped(), torch.randn(3, 5, WIDTH), torch.zeros(3, 5, dtype=torch.long)
    for seed in range(4):
        model = wrapped(module, {"hidden": inputs}, task="token_classification").train()
        torch.manual_seed(seed)
        assert model(inputs, mask=torch.ones(3, 5), labels=labels).loss.isfinite()


class InDict(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({name: nn.Linear(WIDTH, WIDTH) for name in ("low", "middle", "high")})

    def forward(self, hidden: Tensor) -> Tensor:
        for layer in self.layers.values():
            hidden = torch.tanh(layer(hidden))
        return hidden


@pytest.mark.parametrize("layers", [None, "layers"])
@torch.no_grad()
def test_layers_may_stand_in_a_dict(layers: str | None) -> None:
    torch.manual_seed(0)
    module = InDict().eval()
    parts = ponder.capture(module, states(), layers=layers)
    assert parts.steps.num_steps == 3
    model = ponder.PonderWrapper(**vars(parts), head=nn.Identity()).eval()
    assert torch.equal(model(states(), policy=LastStep()).outputs, module(states()))


@dataclass
class Answer:
    hidden: Tensor


class Answering(nn.Module):
    """Layers whose answers are objects."""

    class Layer(nn.Linear):
        def forward(self, hidden: Tensor) -> Answer:
            return Answer(super().forward(hidden))

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(self.Layer(WIDTH, WIDTH) for _ in range(3))

    def forward(self, hidden: Tensor) -> Tensor:
        for layer in self.layers:
            hidden = layer(hidden).hidden
        return hidden


def test_what_layers_answer_and_cannot_be_read_is_told() -> None:
    with refused("module", "in a tuple, list or dict; got a Answer from layer 1 of 'layers'", "Let the layers give"):
        ponder.capture(Answering(), states())


def test_where_there_are_no_lists_none_is_to_be_named() -> None:
    with refused("module", "lists in the module: none. Keep the layers in an nn.ModuleList"):
        ponder.capture(nn.Linear(WIDTH, 2), states())
