"""Encoders that are not what their configuration says: a class of their owner's, a hook, parts that were exchanged."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AlbertModel,
    BertConfig,
    BertModel,
    MPNetModel,
    RobertaConfig,
    RobertaModel,
    Trainer,
    TrainingArguments,
)

from ponder import Steps, policies
from ponder.errors import ArgumentError
from ponder.integrations.transformers import (
    CapturedAdapter,
    EncoderAdapter,
    LayerStep,
    PonderForSequenceClassification,
    PonderModel,
    PonderTrainer,
    adapter_for,
    adapters,
)
from ponder.integrations.transformers.bert import BertAdapter
from ponder.integrations.transformers.encoders import is_exact
from tests.integrations.transformers.encoders import CONFIGS, FAMILIES, WIDTH, make_batch, make_encoder
from tests.ponder.checks import refused

TINY = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1, "num_hidden_layers": 2, "vocab_size": 8}
KINDS = {"bert": BertModel, "albert": AlbertModel, "mpnet": MPNetModel}
SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": WIDTH,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
}


def ending_with(kind: type[Any], make: Callable[[], nn.Module]) -> type[Any]:
    """A subclass whose forward ends with a module more."""

    class Ending(kind):  # type: ignore[misc]
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.final = make()

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            out = super().forward(*args, **kwargs)
            out["last_hidden_state"] = self.final(out["last_hidden_state"])
            return out

    return Ending


def stirred_norm() -> nn.LayerNorm:
    norm = nn.LayerNorm(WIDTH)
    nn.init.normal_(norm.weight)
    return norm


class Gated(nn.Module):
    """What is added is nothing yet: a gate of zero."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(WIDTH))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return states + self.gate


def made(name: str, end: Callable[[], nn.Module]) -> Any:
    torch.manual_seed(0)
    encoder = ending_with(KINDS[name], end)(CONFIGS[name]())
    for weight in encoder.parameters():
        if weight.dim() > 1:
            nn.init.normal_(weight, std=0.3)
    return encoder.eval()


def hooked(_: str) -> Any:
    encoder: Any = make_encoder("bert")
    encoder.encoder.register_forward_hook(lambda m, a, out: type(out)(last_hidden_state=2 * out.last_hidden_state))
    return encoder


def doubled(self: Any, *args: Any, **kwargs: Any) -> Any:
    out = type(self).forward(self, *args, **kwargs)
    return type(out)(last_hidden_state=2 * out.last_hidden_state)


def patched(name: str) -> Any:
    encoder: Any = make_encoder(name)
    encoder.forward = MethodType(doubled, encoder)
    return encoder


def patched_inside(name: str) -> Any:
    encoder: Any = make_encoder(name)
    encoder.encoder.forward = partial(doubled, encoder.encoder)
    return encoder


def of_another_family(_: str) -> Any:
    encoder = roberta()
    encoder.encoder.forward = MethodType(doubled, encoder.encoder)
    return encoder


def exchanged(_: str) -> Any:
    encoder: Any = make_encoder("bert")
    new = ending_with(type(encoder.encoder), stirred_norm)(encoder.config)
    new.layer, encoder.encoder = encoder.encoder.layer, new
    return encoder.eval()


@pytest.mark.parametrize(
    ("make", "name"),
    [
        *((lambda name: made(name, stirred_norm), name) for name in KINDS),
        (lambda name: made(name, Gated), "bert"),
        (hooked, "bert"),
        (patched, "bert"),
        (patched_inside, "bert"),
        (of_another_family, "roberta"),
        (exchanged, "bert"),
    ],
    ids=[*KINDS, "gate of zero", "hook", "forward", "forward inside", "forward of another family", "exchanged encoder"],
)
@torch.no_grad()
def test_code_around_the_layers_is_not_skipped(make: Callable[[str], Any], name: str) -> None:
    """Trap: the adapter of a family was chosen by the name of the family, and ran the layers alone, in silence."""
    encoder = make(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what cannot be saved
        model = PonderModel.from_encoder(encoder, "vanilla", readout="tokens").eval()
    assert isinstance(model._adapter, CapturedAdapter)
    for final in (module for module in encoder.modules() if isinstance(module, Gated)):
        nn.init.normal_(final.gate)  # as training would
    batch = make_batch(encoder)
    plain = encoder(**batch).last_hidden_state
    assert torch.equal(model(**batch, policy=policies.LastStep()).last_hidden_state, plain)


@pytest.mark.parametrize("training", [False, True])
def test_a_closure_around_the_layers_is_refused(training: bool) -> None:
    """Trap: it was skipped, in silence."""
    encoder: Any = make_encoder("bert").train(training)
    plain = encoder.encoder.forward
    encoder.encoder.forward = lambda *args, **kwargs: plain(*args, **kwargs)
    with pytest.raises(ArgumentError, match=r"module\.encoder\.forward = types\.MethodType"):
        PonderModel.from_encoder(encoder, "vanilla", readout="tokens")


@pytest.mark.parametrize("name", CONFIGS)
def test_the_adapter_of_a_family_is_exact_for_its_own_encoders(name: str) -> None:
    for encoder in (make_encoder(name), make_encoder(name).to(torch.bfloat16), make_encoder(name).train()):
        training = encoder.training
        assert is_exact(encoder)
        assert type(adapter_for(encoder)) is adapters._factories[encoder.config.model_type]
        assert encoder.training == training


def test_an_adapter_that_is_not_exact_is_told_of_where_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    PonderForSequenceClassification.from_encoder(make_encoder("bert"), "vanilla").save_pretrained(tmp_path)
    PonderForSequenceClassification.from_pretrained(tmp_path)
    plain = BertModel.forward

    def later(self: Any, *args: Any, **kwargs: Any) -> Any:  # as another version of Transformers might
        out = plain(self, *args, **kwargs)
        out["last_hidden_state"] = 2 * out["last_hidden_state"]
        return out

    later.__signature__ = inspect.signature(plain)  # type: ignore[attr-defined]
    monkeypatch.setattr(BertModel, "forward", later)
    with pytest.warns(UserWarning, match="BertAdapter gives something else than the BertModel itself"):
        PonderForSequenceClassification.from_pretrained(tmp_path)


class Halving(EncoderAdapter):
    """Another's adapter, with what it wants otherwise than the encoder: a readout less, and half of the pooler."""

    def embed(self, input_ids: torch.Tensor, token_type_ids: torch.Tensor | None) -> torch.Tensor:
        return self.encoder.embeddings(input_ids, token_type_ids)

    def steps(self) -> Steps:
        return Steps([LayerStep(layer) for layer in self.encoder.encoder.layer])

    def has_readout(self, name: str) -> bool:
        return name != "tokens"

    def readout(self, name: str) -> Any:
        if not self.has_readout(name):
            raise KeyError(name)
        return super().readout(name)

    def pool(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden[:, 0] / 2


@torch.no_grad()
def test_adapters_of_others_answer_for_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trap: they were tried against the encoder, as our own are, and left for a capture in silence."""
    monkeypatch.setattr(adapters, "_factories", {**adapters._factories, "roberta": Halving})
    encoder = roberta()
    model = PonderForSequenceClassification.from_encoder(encoder, "vanilla", readout="pooler").eval()
    assert type(model._adapter) is Halving
    batch = make_batch(encoder)
    features = model.unroll(**batch, keep_features=True).features
    torch.testing.assert_close(features[:, -1], encoder(**batch).last_hidden_state[:, 0] / 2)


def roberta(kind: type[Any] = RobertaModel) -> Any:
    torch.manual_seed(0)
    return kind(RobertaConfig(**SIZES)).eval()


def subclass() -> Any:
    return roberta(ending_with(RobertaModel, nn.Tanh))


def activation() -> Any:
    encoder = roberta()
    for layer in encoder.encoder.layer:
        layer.intermediate.intermediate_act_fn = nn.ReLU()
    return encoder


def shorter() -> Any:
    encoder = roberta()
    encoder.encoder.layer = encoder.encoder.layer[:2]
    return encoder


def with_adapters() -> Any:
    peft = pytest.importorskip("peft")
    return peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["query"], r=2), roberta())


changed = pytest.mark.parametrize("make", [subclass, activation, shorter, with_adapters])


@changed
def test_what_would_be_read_as_another_model_is_not_saved(make: Callable[[], Any], tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="save_pretrained will refuse it"):
        model = PonderForSequenceClassification.from_encoder(make(), "vanilla", readout="mean")
    with pytest.raises(
        ArgumentError, match=r"encoder: expected a model that its configuration makes again.*RobertaModel"
    ):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_shorter_encoder_whose_configuration_says_so_is_saved(tmp_path: Path) -> None:
    encoder = shorter()
    encoder.config.num_hidden_layers = 2
    model = PonderForSequenceClassification.from_encoder(encoder, "vanilla", readout="mean").eval()
    model.save_pretrained(tmp_path)
    again = PonderForSequenceClassification.from_pretrained(tmp_path)
    batch = make_batch(encoder)
    assert torch.equal(again(**batch).logits, model(**batch).logits)


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_that_are_given_are_those_that_are_looked_at(name: str, tmp_path: Path) -> None:
    """As `Trainer` gives those of a model that is spread over processes, whose own are in pieces."""
    model = PonderForSequenceClassification.from_encoder(make_encoder(name), "vanilla")
    state = model.state_dict()
    model.save_pretrained(tmp_path, state_dict=dict(state))
    lacking = next(name for name in state if name.startswith("encoder."))
    with refused("encoder", lacking.removeprefix("encoder.")):
        model.save_pretrained(tmp_path, state_dict={name: state[name] for name in state if name != lacking})


@pytest.fixture
def one_process() -> Iterator[None]:
    """A group of this process alone."""
    if not torch.distributed.is_available():
        pytest.skip("this PyTorch has no distributed training")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_an_encoder_whose_weights_are_sharded_is_saved(tmp_path: Path) -> None:
    """Trap: what shards a module makes its class another, of the same name, by which it was refused."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.fsdp import fully_shard

    model = PonderForSequenceClassification.from_encoder(make_encoder("bert"), "vanilla").eval()
    batch = make_batch(model.encoder)
    plain = model(**batch).logits
    mesh = torch.distributed.init_device_mesh("cpu", (1,))
    for module in (*model.encoder.encoder.layer, model):
        fully_shard(module, mesh=mesh)
    model.check_readable()
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    model.save_pretrained(tmp_path, state_dict=state)
    assert torch.equal(PonderForSequenceClassification.from_pretrained(tmp_path)(**batch).logits, plain)


def test_a_training_does_not_end_at_its_first_checkpoint(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="save_pretrained will refuse it"):
        model = PonderForSequenceClassification.from_encoder(activation(), "vanilla", readout="mean")
    rows = [{"input_ids": [4, 5, 6], "labels": n % 2} for n in range(4)]
    more: dict[str, Any] = {"output_dir": str(tmp_path), "report_to": "none", "use_cpu": True, "disable_tqdm": True}
    trainer = PonderTrainer(model, TrainingArguments(**more, save_strategy="epoch"), train_dataset=rows)
    with pytest.raises(ArgumentError, match="makes again"):
        trainer.train()
    assert trainer.state.global_step == 0
    arguments = TrainingArguments(**more, save_strategy="no", max_steps=1, logging_strategy="no")
    assert PonderTrainer(model, arguments, train_dataset=rows).train().global_step == 1


@pytest.mark.parametrize("kind", [Trainer, PonderTrainer])
def test_checkpoints_of_an_encoder_as_it_was_made_are_written(kind: type[Any], tmp_path: Path) -> None:
    model = PonderForSequenceClassification.from_encoder(make_encoder("bert"), "vanilla")
    rows = [{"input_ids": [4, 5, 6], "labels": n % 2} for n in range(4)]
    arguments = TrainingArguments(
        str(tmp_path),
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        max_steps=1,
        save_steps=1,
        save_only_model=True,
    )
    kind(model=model, args=arguments, train_dataset=rows).train()
    assert PonderForSequenceClassification.from_pretrained(tmp_path / "checkpoint-1").ponder.num_steps == 5


def test_encoders_of_few_positions_are_read_by_their_familys_adapter() -> None:
    encoder = BertModel(BertConfig(**TINY, max_position_embeddings=8))
    assert type(adapter_for(encoder)) is BertAdapter


def test_encoders_that_answer_at_random_are_read_by_their_familys_adapter() -> None:
    """The twin of a compiled layer calls the layer itself, with its dropout on."""
    encoder = BertModel(BertConfig(**TINY, hidden_dropout_prob=0.5)).train()
    encoder.encoder.layer[0] = torch.compile(encoder.encoder.layer[0], backend="eager")
    assert type(adapter_for(encoder)) is BertAdapter


def test_quantised_encoders_run_and_are_not_saved(tmp_path: Path) -> None:
    dynamic = pytest.importorskip(
        "torch.ao.quantization", reason="this PyTorch has no quantisation of its own any more"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated for torchao
        encoder = dynamic.quantize_dynamic(BertModel(BertConfig(**TINY)).eval(), {nn.Linear}, dtype=torch.qint8)
    with pytest.warns(UserWarning, match="save_pretrained will refuse it"):
        model = PonderForSequenceClassification.from_encoder(encoder, recipe="vanilla")
    with refused("encoder", "weights or modules"):
        model.save_pretrained(tmp_path / "model")
