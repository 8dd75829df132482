"""Models on encoders without an adapter of their own: built, trained, saved, reloaded, copied and moved as any."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    BartConfig,
    BartModel,
    BigBirdConfig,
    BigBirdForSequenceClassification,
    BigBirdModel,
    LongformerConfig,
    LongformerForSequenceClassification,
    T5EncoderModel,
)

from ponder import StreamEngine
from ponder._utils.trees import unwrap
from ponder.errors import ArgumentError
from ponder.integrations.transformers import (
    CapturedAdapter,
    FinetunedClassifier,
    PonderForAudioClassification,
    PonderForSequenceClassification,
    PonderModel,
    adapter_for,
)
from ponder.integrations.transformers.examples import example_for
from ponder.integrations.transformers.families import FAMILIES, Family, tiny_encoder
from ponder.integrations.transformers.tokenizing import max_positions
from ponder.parts.padding import Along
from ponder.policies import Bernoulli, Confidence, FixedStep, LastStep
from tests.exits_folder import tiny_classifier
from tests.integrations.transformers.encoders import make_encoder
from tests.ponder.capturable import ByTurns
from tests.ponder.checks import refused

build = PonderForSequenceClassification.from_encoder
BY_NAME = {family.name: family for family in FAMILIES}
SOME = [
    "roberta",
    "distilbert",
    "modernbert",
    "deberta-v2 (with a convolution)",
    "xlm",
    "t5",
    "bart",
    "gpt2",
    "squeezebert",
]
some = pytest.mark.parametrize("name", SOME)
pytestmark = pytest.mark.usefixtures("quick_captures")


def make(name: str, **options: Any) -> Any:
    torch.manual_seed(3)
    model = build(tiny_encoder(BY_NAME[name]), **options)
    with torch.no_grad():
        for weight in model.ponder.head.parameters():
            weight.normal_()
    return model.eval()


def batch_for(encoder: Any) -> dict[str, Tensor]:
    example = example_for(encoder)
    return {name: example[name] for name in ("input_ids", "attention_mask") if name in example}


@pytest.mark.parametrize("name", ["bros", "layoutlm", "lilt"])
def test_encoders_that_read_what_is_not_handed_on_are_refused(name: str) -> None:
    """Trap: boxes of words were dropped by Trainer in silence, and without them BROS could not be called at all."""
    with refused("encoder", "which reads bbox", "ponder.capture(encoder, example)"):
        build(tiny_encoder(BY_NAME[name]))


@some
@torch.no_grad()
def test_save_and_reload(name: str, tmp_path: Path) -> None:
    model = make(name, recipe="palbert", num_labels=3)
    batch = batch_for(model.encoder)
    model.save_pretrained(tmp_path)
    kinds = (PonderForSequenceClassification, AutoModelForSequenceClassification)
    for kind in kinds if name == "roberta" else kinds[:1]:
        again = kind.from_pretrained(tmp_path)
        a, b = model.state_dict(), again.state_dict()
        assert list(a) == list(b)
        assert all(torch.equal(a[key], b[key]) for key in a)
        assert (again.ponder.padding is None) == (model.ponder.padding is None)
        for policy in (None, LastStep(), FixedStep(2)):
            before, after = model(**batch, policy=policy), again(**batch, policy=policy)
            torch.testing.assert_close(after.logits, before.logits, atol=1e-5, rtol=1e-5)
            assert torch.equal(after.exit_step, before.exit_step)


@pytest.mark.parametrize("name", [name for name in SOME if name not in ("t5", "bart")])
@torch.no_grad()
def test_an_encoder_from_a_folder(name: str, tmp_path: Path) -> None:
    encoder = tiny_encoder(BY_NAME[name])
    encoder.save_pretrained(tmp_path)
    model = build(tmp_path, "vanilla").eval()
    batch = batch_for(encoder)
    torch.testing.assert_close(model(**batch).logits, model.ponder.head(_features(model, batch)), atol=1e-6, rtol=1e-6)


def _features(model: Any, batch: dict[str, Tensor]) -> Tensor:
    return model.unroll(**batch, keep_features=True).features[:, -1]


@some
@torch.no_grad()
def test_weights_are_registered_once_under_the_encoders_names(name: str) -> None:
    model = make(name)
    own = {f"encoder.{key}" for key in model.encoder.state_dict()}
    others = set(model.state_dict()) - own
    assert own <= set(model.state_dict())
    assert all(key.startswith(("ponder.head.", "ponder.lambda_head.")) for key in others)


@some
@torch.no_grad()
def test_copies_pickles_and_other_precisions(name: str) -> None:
    model = make(name, recipe="vanilla")
    batch = batch_for(model.encoder)
    expected = model(**batch).logits
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(**batch).logits, expected)
        for weight in twin.parameters():
            weight.zero_()
        assert torch.equal(model(**batch).logits, expected)
    half = copy.deepcopy(model).to(torch.bfloat16)
    takes = {"use_cache": False} if name == "gpt2" else {}
    plain = half.encoder(**batch, **takes).last_hidden_state
    read = half._adapter.readout("tokens")
    adapter = half._adapter
    state, context = adapter.stem(**_named(adapter, batch))
    steps = adapter.steps()
    for step in range(1, steps.num_steps + 1):
        state = steps(step, state, **unwrap(context))
    assert torch.equal(read(state, **unwrap(context)), plain)


def _named(adapter: CapturedAdapter, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    first, *others = batch
    return {"inputs": batch[first]} | {name: batch[name] for name in others}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["roberta", "modernbert", "distilbert", "bart", "gpt2", "llama"])
@torch.no_grad()
def test_both_kinds_of_attention(name: str, attention: str) -> None:
    encoder = tiny_encoder(BY_NAME[name], attention)
    assert encoder.config._attn_implementation == attention
    model = build(encoder, "vanilla", readout="mean").eval()
    batch = batch_for(encoder)
    takes = {"use_cache": False} if name in ("gpt2", "llama") else {}
    states = encoder(**batch, **takes).last_hidden_state
    weights = batch["attention_mask"].unsqueeze(-1).float()
    expected = (states * weights).sum(1) / weights.sum(1)
    torch.testing.assert_close(_features(model, batch), expected, atol=1e-6, rtol=1e-6)


def test_the_mean_reads_the_final_norm() -> None:
    """Trap: the mean of the last layer's output, where the encoder has a norm after it."""
    encoder = tiny_encoder(BY_NAME["modernbert"])
    with torch.no_grad():
        encoder.final_norm.weight.mul_(3.0)
        model = build(encoder, "vanilla", readout="mean").eval()
        batch = {"input_ids": batch_for(encoder)["input_ids"]}
        torch.testing.assert_close(_features(model, batch), encoder(**batch).last_hidden_state.mean(1))


def test_dropout_and_gradients_are_the_encoders_own() -> None:
    encoder = tiny_encoder(BY_NAME["roberta"]).train()
    model = build(encoder, "vanilla", readout="mean", head_dropout=0.0).train()
    batch, labels = batch_for(encoder), torch.tensor([0, 1, 1])
    torch.manual_seed(7)
    model(**batch, labels=labels).loss.backward()
    ours = {name: weight.grad.clone() for name, weight in encoder.named_parameters() if weight.grad is not None}
    encoder.zero_grad()
    torch.manual_seed(7)
    states, weights = encoder(**batch).last_hidden_state, batch["attention_mask"].unsqueeze(-1).float()
    logits = model.ponder.head((states * weights).sum(1) / weights.sum(1))
    torch.nn.functional.cross_entropy(logits, labels).backward()
    theirs = {name: weight.grad for name, weight in encoder.named_parameters() if weight.grad is not None}
    assert ours.keys() == theirs.keys()
    for key, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[key], atol=1e-6, rtol=1e-4)


def test_gradient_checkpointing() -> None:
    model = make("roberta", recipe="palbert").train()
    batch, labels = batch_for(model.encoder), torch.tensor([0, 1, 1])
    gradients = []
    for checkpointed in (False, True):
        if checkpointed:
            model.activation_checkpointing_enable()
        torch.manual_seed(1)
        model.zero_grad()
        model(**batch, labels=labels).loss.backward()
        gradients.append([weight.grad for weight in model.parameters() if weight.grad is not None])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@torch.no_grad()
def test_the_encoder_of_an_encoder_decoder_in_a_folder(tmp_path: Path) -> None:
    config = BartConfig(
        vocab_size=64, d_model=16, encoder_layers=3, decoder_layers=1, encoder_ffn_dim=24, decoder_ffn_dim=24
    )
    config.encoder_attention_heads = config.decoder_attention_heads = 2
    whole = BartModel(config).eval()
    whole.save_pretrained(tmp_path)
    model = build(tmp_path, "vanilla").eval()
    assert model.ponder.num_steps == 3
    ids = torch.randint(3, 60, (2, 6))
    torch.testing.assert_close(_features(model, {"input_ids": ids}), whole.encoder(ids).last_hidden_state.mean(1))


def test_an_encoder_decoder_gives_its_encoder() -> None:
    whole = T5EncoderModel(tiny_encoder(BY_NAME["t5"]).config)
    model = build(whole)
    assert model.encoder is whole.encoder


def test_dinov3_is_no_model_with_heads() -> None:
    assert isinstance(adapter_for(tiny_encoder(BY_NAME["dinov3_vit"])), CapturedAdapter)


def test_images_are_refused_by_a_model_of_texts() -> None:
    with pytest.raises(ArgumentError, match="pixel_values"):
        build(tiny_encoder(BY_NAME["vit"]))


def test_the_main_input_may_be_named_as_in_a_call_of_the_encoder() -> None:
    adapter = make("roberta")._adapter
    example = example_for(adapter.encoder)
    named, _ = adapter.stem(**example)
    given, _ = adapter.stem(example.pop("input_ids"), **example)
    assert torch.equal(named, given)


def test_token_types_are_left_out_where_the_encoder_has_none() -> None:
    model = make("distilbert", recipe="vanilla")
    batch = batch_for(model.encoder)
    with torch.no_grad():
        given = model(**batch, token_type_ids=torch.ones_like(batch["input_ids"])).logits
        assert torch.equal(given, model(**batch).logits)


def garbage(call: Callable[[], object]) -> list[str]:
    """The kinds of what a call leaves for the garbage collector."""
    call()
    gc.freeze()  # what is there by now is not looked through each time
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        call()
        gc.collect()
        return [type(left).__name__ for left in gc.garbage]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


@pytest.mark.parametrize("name", ["bert", "roberta", "modernbert", "t5", "deberta-v2 (with a convolution)"])
def test_a_call_leaves_nothing_for_the_garbage_collector(name: str) -> None:
    """Trap: a function in a function that calls itself keeps all tensors of its call, until Python looks for cycles;
    stems of large batches then took seven times as long, in memory that was never there yet."""
    model = make(name, num_labels=3, readout="mean")
    batch, labels = batch_for(model.encoder), torch.tensor([0, 1, 2])
    with torch.inference_mode():
        for call in (lambda: model(**batch), lambda: model(**batch, policy=LastStep()), lambda: model.unroll(**batch)):
            assert garbage(call) == []
    model.train()
    assert garbage(lambda: model(**batch, labels=labels).loss.backward()) == []


def test_another_attention_shows_a_stream_no_padding() -> None:
    """A boolean mask became a float one of the same name, and was filled with False: 0.0, which is "attend"."""
    torch.manual_seed(0)
    model = make("distilbert", recipe="pabee", readout="mean")
    with torch.no_grad():
        for weight in model.encoder.parameters():
            if weight.dim() > 1:
                weight.normal_(std=0.3)
    model.set_attn_implementation("sdpa")
    texts = [torch.randint(5, 40, (length,)) for length in (7, 5, 4, 3, 6, 2) * 4]
    for attention in ("sdpa", "eager"):
        model.set_attn_implementation(attention)
        with torch.no_grad():
            sure = [model.ponder.unroll(text[None]).outputs[0, 0].softmax(-1).amax().item() for text in texts]
            policy = Confidence(sorted(sure)[12])
            alone = torch.cat([model(text[None], policy=policy).logits for text in texts])
        with StreamEngine(model.ponder, max_batch=4, policy=policy) as engine:
            streamed = torch.stack([future.result().output for future in [engine.submit(text) for text in texts]])
        torch.testing.assert_close(streamed, alone, rtol=0, atol=1e-5)


def test_arguments_that_the_example_lacked_get_narrower_too() -> None:
    torch.manual_seed(0)
    model = make("gpt2", recipe="pondernet", readout="mean")
    mask = (torch.arange(7) < torch.tensor([7, 5, 4, 3])[:, None]).long()
    batch = {"input_ids": torch.randint(5, 40, (4, 7)), "attention_mask": mask, "token_type_ids": mask}
    with torch.no_grad():
        record = model.unroll(**batch)
        for seed in range(4):
            found, expected = model(**batch, policy=Bernoulli(seed)), record.replay(Bernoulli(seed))
            assert found.exit_step.tolist() == expected.exit_step.tolist()
            torch.testing.assert_close(found.logits, expected.outputs, atol=1e-5, rtol=1e-4)


DROPPING = {
    "wav2vec2": PonderForAudioClassification,
    "sew": PonderForAudioClassification,
    "whisper": PonderForAudioClassification,
    "bart": PonderForSequenceClassification,
    "flaubert": PonderForSequenceClassification,
}


@pytest.mark.parametrize("name", DROPPING)
def test_layers_that_training_would_drop_are_there(name: str) -> None:
    """Every layer is a step at which rows may leave."""
    torch.manual_seed(0)
    encoder = tiny_encoder(BY_NAME[name])
    drops = [module for module in encoder.modules() if getattr(module, "layerdrop", None) is not None]
    for module in drops:
        module.layerdrop = 0.9
    if getattr(encoder.config, "layerdrop", None) is not None:
        encoder.config.layerdrop = 0.9
    configured = getattr(encoder.config, "layerdrop", None)
    model = DROPPING[name].from_encoder(encoder, "pabee", num_labels=3).train()
    example = example_for(model.encoder)
    if name in ("wav2vec2", "sew"):  # long enough for the masks of its training
        example = {"input_values": torch.randn(3, 12_000)}
    for _ in range(3):
        out = model(**example, labels=torch.tensor([0, 1, 2]))
        assert out.step_logits.shape[1] == model.ponder.num_steps
    assert all(module.layerdrop == 0.9 for module in drops), "the encoder is as it was"
    assert getattr(model.encoder.config, "layerdrop", None) == configured


@pytest.mark.parametrize("name", ["roberta", "electra", "distilbert"])
@torch.no_grad()
def test_a_first_call_as_long_as_the_encoder_takes_teaches_where_lengths_are(name: str) -> None:
    model = make(name).to(torch.bfloat16)
    longest = max_positions(model.encoder)
    for length in (longest, longest // 2):
        ids = torch.randint(5, 30, (4, length), generator=torch.Generator().manual_seed(1))
        mask = (torch.arange(length) < torch.tensor([[length], [length // 3], [length // 2], [3]])).long()
        model.ponder.policy = ByTurns()
        out = model(input_ids=ids, attention_mask=mask)
        steps = model.ponder.unroll(ids, attention_mask=mask).outputs
        expected = torch.stack([steps[row, step - 1] for row, step in enumerate(out.exit_step.tolist())])
        assert out.exit_step.tolist() == [1 + row % model.ponder.num_steps for row in range(4)]
        torch.testing.assert_close(out.logits.float(), expected.float(), atol=0.1, rtol=0.05)


SHIFTED = ("data2vec-text", "esm", "ibert", "lilt", "luke", "markuplm", "roberta", "roberta-prelayernorm", "xmod")


@pytest.mark.parametrize("name", [*SHIFTED, "mpnet", "bert", "opt"])
@torch.no_grad()
def test_an_encoder_takes_as_many_tokens_as_it_has_positions_for(name: str) -> None:
    # Trap: the families in which positions begin behind the padding's number were a list, in which most were missing.
    encoder = tiny_encoder(BY_NAME.get(name) or Family(name))
    longest = max_positions(encoder)
    assert encoder.config.max_position_embeddings - longest == (2 if name in SHIFTED or name == "mpnet" else 0)
    encoder(input_ids=torch.full((1, longest), 5))
    with pytest.raises((IndexError, RuntimeError)):
        encoder(input_ids=torch.full((1, longest + 1), 5))


def test_an_encoder_with_several_ends_of_texts_is_given_an_example() -> None:
    encoder = tiny_encoder(BY_NAME["llama"])
    encoder.config.eos_token_id = [5, 7]
    assert not {5, 7} & set(example_for(encoder)["input_ids"].unique().tolist())


@pytest.mark.parametrize("name", ["roberta", "distilbert"])
def test_the_example_of_an_export_has_what_the_encoder_reads_with_its_lengths(name: str) -> None:
    model = make(name)
    source, padding = model.export_source(), model.ponder.padding
    types = {"token_type_ids"} if name == "roberta" else set()
    assert source.context.keys() == {"attention_mask"} | types
    assert padding is not None
    assert all(padding.of_context(kind) == Along(fill=0) for kind in source.context)


def test_a_family_whose_lengths_are_not_known_is_not_exported() -> None:
    # Trap: it was, in silence, for texts of exactly as many tokens as the example has.
    with refused("model", "'fnet'", "could take but one"):
        make("fnet").export_source()
    plain = FinetunedClassifier.from_finetuned(tiny_classifier().eval())
    plain.ponder.padding = None
    with refused("model", "'bert'", "could take but one"):
        plain.export_source()


@torch.no_grad()
def test_positions_for_all_rows_get_narrower() -> None:
    model = FinetunedClassifier.from_finetuned(tiny_classifier().eval())
    ids = torch.randint(5, 20, (4, 9), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(9) < torch.tensor([[9], [4], [6], [5]])).long()
    called = {"attention_mask": mask, "position_ids": torch.arange(9)[None]}
    out, steps = model.ponder(ids, policy=ByTurns(), **called), model.ponder.unroll(ids, **called).outputs
    expected = torch.stack([steps[row, step - 1] for row, step in enumerate(out.exit_step.tolist())])
    torch.testing.assert_close(out.outputs, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["bert", "mpnet", "albert-inner-2"])
@torch.no_grad()
def test_a_mask_of_pairs_of_positions_is_read_whole(name: str) -> None:
    encoder = make_encoder(name).eval()
    model = PonderModel.from_encoder(encoder, "vanilla", readout="tokens").eval()
    ids = torch.randint(5, 20, (3, 7), generator=torch.Generator().manual_seed(1))
    causal = torch.ones(7, 7, dtype=torch.bool).tril().expand(3, 1, 7, 7)
    found, expected = (one(ids, attention_mask=causal).last_hidden_state for one in (model, encoder))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["sew", "sew-d", "moonshine", "whisper", "wav2vec2"])
@torch.no_grad()
def test_the_mean_of_audio_spares_padding(name: str) -> None:
    """Some encoders give more tokens than their layers have, and some say nothing of how long theirs are."""
    encoder = tiny_encoder(BY_NAME[name]).eval()
    model = PonderModel.from_encoder(encoder, "vanilla", readout="mean").eval()
    given = next(iter(example_for(encoder).values()))
    length = given.shape[-1]
    mask = (torch.arange(length) < torch.tensor([[length], [length], [length // 2]])).long()
    features = model.ponder.unroll(given, attention_mask=mask, keep_features=True).features[:, -1]
    tokens = encoder(given, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(features[:2], tokens[:2].mean(1), atol=1e-4, rtol=1e-3)
    assert not torch.allclose(features[2], tokens[2].mean(0), atol=1e-4)


@pytest.mark.parametrize("left", [False, True], ids=["in one row alone", "not in rows padded on the left"])
@torch.no_grad()
def test_rows_with_global_attention_may_leave_first(left: bool) -> None:
    """Layers of a Longformer are told by a flag whether any row has it."""
    torch.manual_seed(0)
    config = LongformerConfig(
        vocab_size=64,
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=40,
        attention_window=4,
    )
    plain = LongformerForSequenceClassification(config).eval()
    model = FinetunedClassifier.from_finetuned(plain)
    ids = torch.randint(5, 64, (4, 9), generator=torch.Generator().manual_seed(1))
    given = {"attention_mask": (torch.arange(9) < torch.tensor([[9], [5], [3], [1]])).long().flip(1)}
    if not left:
        given = {"attention_mask": torch.ones_like(ids), "global_attention_mask": torch.zeros_like(ids)}
        given["global_attention_mask"][0, 0] = 1
    assert torch.equal(model.ponder(ids, policy=LastStep(), **given).outputs, plain(ids, **given).logits)
    out, steps = model.ponder(ids, policy=ByTurns(), **given), model.ponder.unroll(ids, **given).outputs
    assert out.exit_step.tolist() == [1, 2, 3, 4]
    torch.testing.assert_close(out.outputs, steps[range(4), range(4)], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_as_many_positional_convolutions_as_layers_are_no_layers() -> None:
    """They weigh more than the layers, where these are small."""
    family = Family("data2vec-audio", config={**BY_NAME["data2vec-audio"].config, "num_conv_pos_embeddings": 4})
    encoder = tiny_encoder(family)
    assert [call.path for call in adapter_for(encoder).learned().calls] == [f"encoder.layers.{n}" for n in range(4)]
    model = PonderModel.from_encoder(encoder, "vanilla", readout="mean").eval()
    waves = example_for(encoder)["input_values"]
    found = model(input_values=waves, attention_mask=torch.ones_like(waves).long()).pooler_output
    assert torch.equal(found, encoder(waves).last_hidden_state.mean(1))


def test_attention_that_exchanges_layers_is_refused() -> None:
    config = BigBirdConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=24, block_size=4
    )
    for make_it in (lambda: build(BigBirdModel(config)), lambda: FinetunedClassifier.from_finetuned(_big_bird(config))):
        with pytest.raises(ArgumentError, match="attention_type='original_full'"):
            make_it()


def _big_bird(config: BigBirdConfig) -> Any:
    config.num_labels = 3
    return BigBirdForSequenceClassification(config).eval()
