"""The encoders of Transformers, as tiny random ones: captured bit for bit, with exits of the encoder cut there."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten
from transformers import PreTrainedModel, ResNetConfig, ResNetModel
from transformers.utils import logging

from ponder._utils.trees import take_rows, unwrap
from ponder.errors import ArgumentError
from ponder.model.capture import Captured, capture
from ponder.model.twins import Slot
from tests.compare import assert_same_answers
from tests.families import FAMILIES, Family, example_of

REFUSED = {
    "bloom": "without the batch first",
    "bros": "without the batch first",
    "convnext": "differ in shape",
    "deberta-v2 (with a convolution)": "code of its own between",
    "flaubert": "code of its own between",
    "hiera": "layers inside of stages",
    "pvt": "hand on numbers",
    "resnet": "differ in shape",
    "swin": "layers inside of stages",
    "swinv2": "layers inside of stages",
    "vit_mae": "random numbers",
    "wavlm": "without the batch first",
    "xlm": "code of its own between",
    "xlnet": "without the batch first",
    "yolos": "code of its own between",
}
LAYERS = {"moonshine": 6, "prophetnet": 12}  # of others 4
NO_EXAMPLE = {"funnel"}  # its configuration names no token to begin with


def cut(encoder: PreTrainedModel, parts: Captured, depth: int) -> PreTrainedModel:
    """A copy whose layers behind `depth` give the hidden state that they are given."""
    encoder = copy.deepcopy(encoder)
    kind = parts.stem.kinds[0].reading
    for number, path in enumerate(parts.stem.contract.order[depth:], start=depth):
        layer = encoder.get_submodule(path)
        place = kind.calls[number].leaves.index(Slot("hidden"))

        def forward(
            *args: Any,
            _own: Callable[..., Any] = layer.forward,
            _at: Any = (place, parts.stem.contract.handed["hidden"]),
            **kwargs: Any,
        ) -> Any:
            given = tree_flatten((args, kwargs))[0]
            leaves, spec = tree_flatten(_own(*args, **kwargs))
            leaves[_at[1]] = given[_at[0]]
            return tree_unflatten(leaves, spec)

        layer.forward = forward
    return encoder


def features(parts: Captured, call: dict[str, Any]) -> list[Tensor]:
    state, context = parts.stem(dict(call))
    given = unwrap(context)
    found = []
    for step in range(1, parts.steps.num_steps + 1):
        state = parts.steps(step, state, **given)
        found.append(parts.readout(state, **given))
    return found


def calls_of(call: dict[str, Any]) -> list[dict[str, Any]]:
    """Other calls: more rows, and of texts others lengths, and no mask."""
    tensors = {key: value for key, value in call.items() if isinstance(value, Tensor)}
    calls = [{**call, **{key: torch.cat([value, value[1:]]) for key, value in tensors.items()}}]
    if "input_ids" in call:
        calls.append({**call, **{key: value[:, :-1] for key, value in tensors.items()}})
        calls.append({key: value for key, value in call.items() if key != "attention_mask"})
    return calls


@pytest.mark.parametrize(
    "family", [f for f in FAMILIES if f.name not in NO_EXAMPLE], ids=lambda family: family.name
)
@torch.no_grad()
def test_layers_of_every_family_are_captured(family: Family) -> None:
    logging.set_verbosity_error()
    encoder = family.encoder()
    call = example_of(encoder)
    if family.name in REFUSED:
        with pytest.raises(ArgumentError, match=REFUSED[family.name]):
            capture(encoder, call)
        return
    parts = capture(encoder, call)
    assert parts.steps.num_steps == LAYERS.get(family.name, 4)
    found = features(parts, call)
    assert torch.equal(found[-1], encoder(**call)[0])
    middle = max(len(found) // 2, 1)
    if len(set(parts.stem.contract.order)) > 1:
        assert_same_answers(found[middle - 1], cut(encoder, parts, middle)(**call)[0])
    for other in calls_of(call):
        assert torch.equal(features(parts, other)[-1], encoder(**other)[0])
    keep = torch.tensor([1, 2])
    state, context = parts.stem(dict(call))
    state = take_rows(parts.steps(1, state, **unwrap(context)), keep)
    given = unwrap(take_rows(context, keep))
    for step in range(2, len(found) + 1):
        state = parts.steps(step, state, **given)
    torch.testing.assert_close(parts.readout(state, **given), found[-1][keep], rtol=1e-3, atol=1e-4)


def test_most_families_are_captured() -> None:
    assert len(FAMILIES) == 128
    assert len(FAMILIES) - len(REFUSED) - len(NO_EXAMPLE) >= 110


@pytest.mark.parametrize("depths", [[2, 2, 2, 2], [3, 3], [1, 1]])
def test_layers_of_one_stage_are_taken_only_if_they_are_named(depths: list[int]) -> None:
    widths = [8 * 2**stage for stage in range(len(depths))]
    config = ResNetConfig(embedding_size=8, hidden_sizes=widths, depths=depths, layer_type="basic")
    encoder = ResNetModel(config).eval()
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ArgumentError, match=r"layers inside of stages.*Pass layers="):
        capture(encoder, pixels)
    if depths[-1] > 1:
        name = f"encoder.stages.{len(depths) - 1}.layers"
        assert capture(encoder, pixels, layers=name).steps.num_steps == depths[-1]
