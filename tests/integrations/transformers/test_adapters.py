"""Adapters: the layers of a plain encoder, read as stem, steps and pooler, compute what the plain encoder does."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import ponder
from ponder._utils.trees import Shared, unwrap
from ponder.integrations.transformers import PonderForSequenceClassification, adapter_for, adapters
from ponder.integrations.transformers.adapter import LayerStep
from ponder.policies import Bernoulli, FixedStep, LastStep, Quantile
from tests.integrations.transformers.encoders import (
    CASES,
    CONFIGS,
    FAMILIES,
    layers_of,
    make_batch,
    make_encoder,
    make_model,
    rows_computed,
    segments,
)

INPUTS = ("padded", "unpadded", "all-ones-mask", "bool-mask", "segments")
cases = pytest.mark.parametrize(("name", "attention"), CASES)
with_inputs = pytest.mark.parametrize(
    ("name", "attention", "kind"),
    [  # all of them on one of each family; shapes of ALBERT read them alike, and take turns
        (name, attention, kind)
        for place, (name, attention) in enumerate(CASES)
        for turn, kind in enumerate(INPUTS)
        if name in FAMILIES or turn in (place % 5, (place + 2) % 5)
    ],
)


@cache
def shared_encoder(name: str, attention: str) -> Any:
    """One encoder for the tests that only call it."""
    return make_encoder(name, attention)


@cache
def shared_adapter(name: str, attention: str) -> Any:
    return adapter_for(shared_encoder(name, attention))


@cache
def shared_model(name: str, attention: str) -> Any:
    return PonderForSequenceClassification.from_encoder(shared_encoder(name, attention), "vanilla").eval()


def batch_of(encoder: Any, kind: str) -> dict[str, torch.Tensor]:
    batch = make_batch(encoder, padded=kind not in ("unpadded", "all-ones-mask"))
    if kind == "all-ones-mask":
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    if kind == "bool-mask":
        batch["attention_mask"] = batch["attention_mask"].bool()
    if kind == "segments":
        batch["token_type_ids"] = segments(batch)
    return batch


def plainly(encoder: Any, batch: dict[str, torch.Tensor]) -> Any:
    """The plain encoder, with its hidden states; MPNet has no token types."""
    taken = {k: v for k, v in batch.items() if k != "token_type_ids" or encoder.config.model_type != "mpnet"}
    with torch.no_grad():
        return encoder(**taken, output_hidden_states=True)


def states_of_steps(encoder: Any, plain: Any) -> list[torch.Tensor]:
    """h_0 … h_N: ALBERT records every inner layer, and a step is a whole group."""
    inner = encoder.config.inner_group_num if encoder.config.model_type == "albert" else 1
    return list(plain.hidden_states[::inner])


def test_the_table_holds_every_registered_family() -> None:
    assert {CONFIGS[name]().model_type for name in CONFIGS} == set(adapters.names())
    assert {CONFIGS[name]().model_type for name in FAMILIES} == set(adapters.names())


@with_inputs
@torch.no_grad()
def test_full_depth_is_the_plain_encoder_bit_for_bit(name: str, attention: str, kind: str) -> None:
    encoder = shared_encoder(name, attention)
    assert encoder.config._attn_implementation == attention
    batch = batch_of(encoder, kind)
    plain = plainly(encoder, batch)
    model = shared_model(name, attention)
    out = model(**batch, policy=LastStep())
    assert torch.equal(out.logits, model.ponder.head(plain.pooler_output))
    assert out.exit_step.tolist() == [encoder.config.num_hidden_layers] * len(batch["input_ids"])
    features = model.unroll(**batch, keep_features=True).features
    assert torch.equal(features[:, -1], plain.pooler_output)
    assert torch.equal(plainly(encoder, batch).pooler_output, plain.pooler_output), "the encoder itself changed"


@with_inputs
@torch.no_grad()
def test_every_step_is_a_hidden_state_of_the_plain_encoder(name: str, attention: str, kind: str) -> None:
    encoder = shared_encoder(name, attention)
    batch = batch_of(encoder, kind)
    states = states_of_steps(encoder, plainly(encoder, batch))
    adapter = shared_adapter(name, attention)
    steps = adapter.steps()
    assert steps.num_steps == encoder.config.num_hidden_layers == len(states) - 1
    hidden, context = adapter.stem(**batch)
    assert torch.equal(hidden, states[0]), "h_0"
    for step in range(1, steps.num_steps + 1):
        hidden = steps(step, hidden, **unwrap(context))
        assert torch.equal(hidden, states[step]), f"h_{step}"
        assert not torch.equal(states[step], states[step - 1])


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_features_of_every_step_go_through_the_pooler_or_the_masked_mean(name: str) -> None:
    encoder = make_encoder(name)
    batch = make_batch(encoder)
    states = states_of_steps(encoder, plainly(encoder, batch))
    pooled, mean = (
        PonderForSequenceClassification.from_encoder(encoder, "vanilla", readout=readout)
        .eval()
        .unroll(**batch, keep_features=True)
        .features
        for readout in ("pooler", "mean")
    )
    assert torch.equal(pooled, torch.stack([adapter_for(encoder).pool(h) for h in states[1:]], dim=1))
    lengths = batch["attention_mask"].sum(1)
    for row, length in enumerate(lengths.tolist()):
        expected = torch.stack([h[row, :length].mean(0) for h in states[1:]])
        torch.testing.assert_close(mean[row], expected, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_the_mean_of_an_unmasked_batch_takes_every_token() -> None:
    encoder = make_encoder("bert")
    batch = make_batch(encoder, padded=False)
    model = PonderForSequenceClassification.from_encoder(encoder, "vanilla", readout="mean").eval()
    features = model.unroll(**batch, keep_features=True).features
    torch.testing.assert_close(features[:, -1], plainly(encoder, batch).last_hidden_state.mean(1))


@pytest.mark.parametrize(
    ("name", "schedule"),
    [
        ("albert", [0] * 6),
        ("albert-2-groups", [0, 0, 0, 1, 1, 1]),
        ("albert-2-uneven-groups", [0, 0, 0, 1, 1]),
        ("albert-3-uneven-groups-inner-2", [0, 0, 0, 1, 1, 2, 2]),
        ("bert", [0, 1, 2, 3, 4]),
    ],
)
def test_which_layers_run_at_which_step(name: str, schedule: list[int]) -> None:
    """Trap: groups counted as layers // groups, which leaves the last steps of an uneven split without a group."""
    assert list(adapter_for(make_encoder(name)).steps().schedule) == schedule


@pytest.mark.parametrize("name", CONFIGS)
def test_token_types_matter_where_the_family_has_them(name: str) -> None:
    encoder = make_encoder(name)
    adapter, batch = adapter_for(encoder), make_batch(encoder)
    with torch.no_grad():
        without, _ = adapter.stem(**batch)
        given, _ = adapter.stem(**batch, token_type_ids=segments(batch))
        zeros, _ = adapter.stem(**batch, token_type_ids=torch.zeros_like(batch["input_ids"]))
    assert torch.equal(without, given) == (name == "mpnet")
    assert torch.equal(without, zeros)


class TestMPNetPositionBias:
    """Trap: a bias per batch that is recomputed at every layer, or carried along as if it had a row per example."""

    @pytest.fixture
    def counted(self, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[tuple[int, ...]]]:
        model = make_model("mpnet")
        compute, shapes = model.encoder.encoder.compute_position_bias, []

        def count(hidden: torch.Tensor) -> torch.Tensor:
            shapes.append(tuple(hidden.shape))
            return compute(hidden)

        monkeypatch.setattr(model.encoder.encoder, "compute_position_bias", count)
        return model, shapes

    @torch.no_grad()
    def test_it_is_computed_once_a_call(self, counted: tuple[Any, list[tuple[int, ...]]]) -> None:
        model, shapes = counted
        batch = make_batch(model.encoder)
        for call in (
            lambda: model(**batch, policy=LastStep()),
            lambda: model(**batch, policy=Quantile(0.5)),
            lambda: model.unroll(**batch),
            lambda: model.train()(**batch),
        ):
            shapes.clear()
            call()
            assert len(shapes) == 1, "once, for all steps"
            assert shapes[0][0] == 1, "and for all rows"

    @torch.no_grad()
    def test_it_is_shared_and_cropped_to_the_longest_row_that_runs(self) -> None:
        model = make_model("mpnet")
        batch = make_batch(model.encoder)
        _, context = adapter_for(model.encoder).stem(**batch)
        assert isinstance(context["position_bias"], Shared)
        whole = context["position_bias"].value
        heads, length = model.encoder.config.num_attention_heads, batch["input_ids"].shape[1]
        assert whole.shape == (1, heads, length, length)
        seen: list[tuple[int, torch.Tensor]] = []
        for layer in layers_of(model.encoder):
            layer.register_forward_pre_hook(
                lambda _, inputs, named: seen.append((inputs[0].shape[0], named["position_bias"])), with_kwargs=True
            )
        out = model(**batch, policy=Quantile(0.5))
        assert len(set(out.exit_step.tolist())) > 1, "the batch must thin out for this test to mean something"
        assert len(seen) == out.exit_step.max()
        lengths = batch["attention_mask"].sum(1)
        for step, (rows, bias) in enumerate(seen, start=1):
            running = out.exit_step >= step
            longest = int(lengths[running].max())
            assert rows == running.sum()
            assert torch.equal(bias, whole[..., :longest, :longest])

    @torch.no_grad()
    def test_it_changes_the_answers(self) -> None:
        model = make_model("mpnet")
        batch = make_batch(model.encoder)
        before = model(**batch, policy=LastStep()).logits
        model.encoder.encoder.relative_attention_bias.weight.mul_(3.0)
        assert not torch.allclose(before, model(**batch, policy=LastStep()).logits)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_weights_are_registered_once_under_the_encoders_own_names(name: str) -> None:
    encoder = make_encoder(name)
    own = {f"encoder.{key}" for key in encoder.state_dict()}
    model = PonderForSequenceClassification.from_encoder(encoder)
    assert model.encoder is encoder, "used, not copied"
    keys = list(model.state_dict())
    assert own <= set(keys)
    assert {key for key in keys if key not in own} == {
        key for key in keys if key.startswith(("ponder.head.", "ponder.lambda_head."))
    }
    addresses = [tensor.data_ptr() for tensor in model.state_dict().values()]
    assert len(set(addresses)) == len(addresses)
    names = [name.replace("ponder.classifier.", "ponder.") for name, _ in model.named_parameters()]
    assert sorted(names) == sorted(keys), "each once; see heads.py for the one name that files do not know"


@pytest.mark.parametrize("name", FAMILIES)
def test_the_wrapper_owns_the_encoder(name: str, tmp_path: Path) -> None:
    # It wrote 851 of 16,851 parameters, and ran the encoder's dropout in evaluation mode, both without a word.
    model, other = (PonderForSequenceClassification.from_encoder(make_encoder(name, seed=seed)) for seed in (0, 1))
    own = sum(parameter.numel() for parameter in model.parameters())
    assert sum(parameter.numel() for parameter in model.ponder.parameters()) == own
    ponder.save(model.ponder, tmp_path)
    ponder.load(other.ponder, tmp_path)
    for key, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[key])
    model.train()
    model.ponder.eval()
    assert not any(part.training for part in model.encoder.modules())


@torch.no_grad()
def test_layers_may_answer_with_a_tuple_or_a_tensor() -> None:
    class Layer(torch.nn.Module):
        def __init__(self, as_tuple: bool) -> None:
            super().__init__()
            self.as_tuple = as_tuple

        def forward(self, hidden: torch.Tensor, mask: torch.Tensor, gain: float) -> Any:
            hidden = hidden * gain + mask
            return (hidden, "attention") if self.as_tuple else hidden

    hidden, mask, tokens = torch.randn(2, 3), torch.randn(2, 3), torch.ones(2, 3)
    for as_tuple in (False, True):
        after = LayerStep(Layer(as_tuple))(hidden, mask, token_mask=tokens, gain=2.0)
        assert torch.equal(after, hidden * 2.0 + mask)


@cases
@torch.no_grad()
def test_each_layer_computes_the_rows_that_still_run(name: str, attention: str) -> None:
    model = make_model(name, attention)
    batch = make_batch(model.encoder)
    with rows_computed(layers_of(model.encoder)) as calls:
        out = model(**batch, policy=Bernoulli(0))
    assert len(set(out.exit_step.tolist())) > 1
    assert sum(calls) == out.exit_step.sum()
    assert calls == [int((out.exit_step >= step).sum()) for step in range(1, len(calls) + 1)]
    if model.encoder.config.model_type == "albert":
        inner = [layer for group in layers_of(model.encoder) for layer in group.albert_layers]
        with rows_computed(inner) as calls:
            model(**batch, policy=Bernoulli(0))
        assert sum(calls) == model.encoder.config.inner_group_num * out.exit_step.sum()


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_the_pooler_runs_only_where_something_reads_it(name: str) -> None:
    model = make_model(name, recipe="vanilla")
    batch = make_batch(model.encoder)
    with rows_computed([model.encoder.pooler]) as pooled, rows_computed([model.ponder.head]) as answered:
        model(**batch, policy=FixedStep(3))
    assert pooled == answered == [len(batch["input_ids"])]


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_an_error_in_a_layer_leaves_nothing_behind(name: str) -> None:
    model = make_model(name)
    batch = make_batch(model.encoder)
    before, state = model(**batch), copy.deepcopy(model.state_dict())
    hook = layers_of(model.encoder)[-1].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(**batch, policy=LastStep())
    hook.remove()
    after = model(**batch)
    assert torch.equal(before.logits, after.logits)
    assert torch.equal(before.exit_step, after.exit_step)
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    assert not model.training
