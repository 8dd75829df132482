"""Tiny random encoders of every family and shape that the adapters promise, batches for them, and a counter."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import AlbertConfig, AutoModel, BertConfig, MPNetConfig, PreTrainedModel, PreTrainedTokenizerFast

from ponder.integrations.transformers import PonderForSequenceClassification

VOCABULARY, WIDTH, LENGTH, ROWS = 40, 16, 7, 6
SEED = 2  # of weights at which the rows of `make_batch` exit at different steps, in every encoder
FIRST_TOKEN = 3  # smaller ids are special; padding is one of them
PROBLEMS = {
    "classification": ("single_label_classification", 3),
    "regression": ("regression", 1),
    "multilabel": ("multi_label_classification", 3),
}

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
}


def _albert(layers: int, groups: int, inner: int, embedding: int) -> AlbertConfig:
    return AlbertConfig(
        **_COMMON,
        num_hidden_layers=layers,
        num_hidden_groups=groups,
        inner_group_num=inner,
        embedding_size=embedding,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
    )


CONFIGS = {
    "albert": lambda: _albert(6, groups=1, inner=1, embedding=8),
    "albert-wide-embedding": lambda: _albert(5, groups=1, inner=1, embedding=20),
    "albert-2-groups": lambda: _albert(6, groups=2, inner=1, embedding=8),
    "albert-2-uneven-groups": lambda: _albert(5, groups=2, inner=1, embedding=8),
    "albert-inner-2": lambda: _albert(5, groups=1, inner=2, embedding=8),
    "albert-3-uneven-groups-inner-2": lambda: _albert(7, groups=3, inner=2, embedding=8),
    "bert": lambda: BertConfig(**_COMMON, num_hidden_layers=5),
    "mpnet": lambda: MPNetConfig(**_COMMON, num_hidden_layers=5),
}
SHALLOW = {
    "bert-of-3": lambda: BertConfig(**_COMMON, num_hidden_layers=3),
    "mpnet-of-3": lambda: MPNetConfig(**_COMMON, num_hidden_layers=3),
}
FAMILIES = ("albert-3-uneven-groups-inner-2", "bert", "mpnet")
# One of every build of heads, stages and policies; other recipes differ in numbers, and are tested with toys.
RECIPES = ("vanilla", "pondernet", "palbert", "pabee", "deebert", "fastbert", "ponder")
IN_TURN = [(FAMILIES[place % len(FAMILIES)], recipe) for place, recipe in enumerate(RECIPES)]
"""Every recipe, and every family two or three times; all pairs are in the tests of gradients."""
CASES = [(name, "eager") for name in CONFIGS] + [(name, "sdpa") for name in CONFIGS if name != "mpnet"]


def make_encoder(name: str, attention: str | None = None, seed: int = SEED) -> PreTrainedModel:
    """The encoder called `name` in evaluation mode, with weights large enough for the states to move.

    Args:
        name: A key of `CONFIGS` or `SHALLOW`.
        attention: The attention implementation; Transformers' choice where None.
        seed: Of the weights.
    """
    torch.manual_seed(seed)
    chosen = {} if attention is None else {"attn_implementation": attention}
    encoder: PreTrainedModel = AutoModel.from_config((CONFIGS | SHALLOW)[name](), **chosen)
    _stir(encoder, 0.25)
    return encoder.eval()


def make_model(name: str, attention: str | None = None, seed: int = SEED, **arguments: Any) -> Any:
    """A wrapped `make_encoder`, whose heads make the rows exit at different steps.

    Of those that were made before, a copy: it takes a fifth of the time, and leaves the random numbers where they were.
    """
    key = repr((name, attention, seed, sorted(arguments.items())))
    if key not in _MADE:
        _MADE[key] = _make_model(name, attention, seed, **arguments), torch.get_rng_state()
    model, state = _MADE[key]
    torch.set_rng_state(state)
    return copy.deepcopy(model)


_MADE: dict[str, tuple[Any, Tensor]] = {}


def _make_model(name: str, attention: str | None, seed: int, **arguments: Any) -> Any:
    model = PonderForSequenceClassification.from_encoder(make_encoder(name, attention, seed), **arguments)
    _stir(model.ponder, 0.5)
    if model.ponder.lambda_head is not None:
        nn.init.constant_(model.ponder.lambda_head.layers[-1].bias, -1.0)
    return model.eval()


def model_for(name: str, task: str, **arguments: Any) -> Any:
    """A wrapped encoder with a Lambda head for one of the tasks of `PROBLEMS`."""
    problem, labels = PROBLEMS[task]
    return make_model(name, num_labels=labels, problem_type=problem, **arguments)


def make_batch(encoder: PreTrainedModel, *, rows: int = ROWS, padded: bool = True, seed: int = 0) -> dict[str, Tensor]:
    """Token ids, and where `padded` an attention mask, with rows of different lengths (one of a single token)."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(FIRST_TOKEN, VOCABULARY, (rows, LENGTH), generator=generator)
    if not padded:
        return {"input_ids": ids}
    lengths = torch.tensor([LENGTH, 3, 1, 5, 4, 2])[torch.arange(rows) % 6]
    mask = (torch.arange(LENGTH) < lengths[:, None]).long()
    ids[mask == 0] = encoder.config.pad_token_id
    return {"input_ids": ids, "attention_mask": mask}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that knows the letters a … i, and takes pairs; padding is token 1."""
    words = {"[UNK]": 3, "[PAD]": 1, **{letter: 5 + n for n, letter in enumerate("abcdefghi")}}
    tokens = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokens, unk_token="[UNK]", pad_token="[PAD]")


def pad(batch: dict[str, Tensor], encoder: PreTrainedModel, extra: int) -> dict[str, Tensor]:
    """`batch` with `extra` more columns of padding."""
    fill = {"input_ids": encoder.config.pad_token_id, "attention_mask": 0, "token_type_ids": 0}
    return {name: nn.functional.pad(value, (0, extra), value=fill[name]) for name, value in batch.items()}


def rows_of(batch: dict[str, Tensor], index: Tensor) -> dict[str, Tensor]:
    return {name: value[index] for name, value in batch.items()}


def segments(batch: dict[str, Tensor]) -> Tensor:
    """Token types: the first two tokens are of segment 0, the others of segment 1."""
    return (torch.arange(batch["input_ids"].shape[1]) >= 2).long().expand_as(batch["input_ids"])


def layers_of(encoder: Any) -> list[nn.Module]:
    """The modules that are one step each."""
    if encoder.config.model_type == "albert":
        return list(encoder.encoder.albert_layer_groups)
    return list(encoder.encoder.layer)


@contextlib.contextmanager
def rows_computed(modules: Sequence[nn.Module]) -> Iterator[list[int]]:
    """The number of rows of every call of `modules`, in order, counted apart from the library by hooks."""
    calls: list[int] = []
    hooks = [m.register_forward_pre_hook(lambda _, inputs: calls.append(inputs[0].shape[0])) for m in modules]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def _stir(module: nn.Module, std: float) -> None:
    """Draw weights (not those of LayerNorm) with a standard deviation at which nothing saturates or stands still."""
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.Linear):
                part.weight.normal_(std=std)
                part.bias.normal_(std=0.1)
            elif isinstance(part, nn.Embedding):
                part.weight.normal_(std=1.0)
