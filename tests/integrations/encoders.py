"""Tiny random encoders and fine-tuned models of four families, batches for them, and a tokenizer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    AlbertConfig,
    ASTConfig,
    AutoModel,
    BertConfig,
    DistilBertConfig,
    MPNetConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ViTConfig,
)

from ponder.integrations.transformers import (
    PonderForAudioClassification,
    PonderForImageClassification,
    PonderForQuestionAnswering,
    PonderForSequenceClassification,
    PonderForTokenClassification,
    PonderModel,
)

VOCABULARY = 40
WIDTH = 16
LENGTH = 7
ROWS = 6
CLASSES = 3
_SIZES: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "num_hidden_layers": 4,
}
_TEXT: dict[str, Any] = {**_SIZES, "vocab_size": VOCABULARY, "max_position_embeddings": 32}

CONFIGS = {
    "albert": lambda: AlbertConfig(**_TEXT, embedding_size=8),
    "albert-2-uneven-groups": lambda: AlbertConfig(
        **{**_TEXT, "num_hidden_layers": 5},
        embedding_size=8,
        num_hidden_groups=2,
        inner_group_num=2,
    ),
    "bert": lambda: BertConfig(**_TEXT),
    "mpnet": lambda: MPNetConfig(**_TEXT),
    "distilbert": lambda: DistilBertConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=32,
        n_layers=4,
        n_heads=2,
        dim=WIDTH,
        hidden_dim=24,
    ),
    "vit": lambda: ViTConfig(**_SIZES, image_size=16, patch_size=8),
    "ast": lambda: ASTConfig(**_SIZES, max_length=24, num_mel_bins=16, patch_size=8),
}
TEXTS = ("albert", "bert", "mpnet", "distilbert")
"""A shared step, and three stacks: with token types, with a position bias, and with neither."""
HEADS: dict[str, Any] = {
    "sequence": PonderForSequenceClassification,
    "token": PonderForTokenClassification,
    "span": PonderForQuestionAnswering,
    "image": PonderForImageClassification,
    "audio": PonderForAudioClassification,
    "features": PonderModel,
}
CASES = [
    *((head, family) for head in ("sequence", "token", "span", "features") for family in TEXTS),
    ("image", "vit"),
    ("audio", "ast"),
]
"""Every head with every encoder that it takes."""


def stir(module: nn.Module, std: float = 0.25) -> None:
    """Draw weights at which nothing saturates or stands still."""
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.Linear):
                part.weight.normal_(std=std)
                if part.bias is not None:
                    part.bias.normal_(std=0.1)
            elif isinstance(part, nn.Embedding):
                part.weight.normal_(std=1.0)


def make_encoder(family: str, seed: int = 2, **options: Any) -> PreTrainedModel:
    """The bare encoder of a family in evaluation mode."""
    torch.manual_seed(seed)
    encoder: PreTrainedModel = AutoModel.from_config(CONFIGS[family](), **options)
    stir(encoder)
    return encoder.eval()


def make_model(
    head: str = "sequence",
    family: str = "bert",
    recipe: Any = "pabee",
    seed: int = 2,
    **options: Any,
) -> Any:
    """A model with exits, in evaluation mode, whose rows exit at different steps."""
    labels = {} if head in ("span", "features") else {"num_labels": CLASSES}
    made = HEADS[head].from_encoder(make_encoder(family, seed), recipe, **{**labels, **options})
    stir(made.ponder._modules[made.heads_name], 0.5)
    lambda_head = made.ponder.lambda_head
    if lambda_head is not None:
        nn.init.constant_(lambda_head.layers[-1].bias, -1.0)
    return made.eval()


def make_plain(
    head: str = "sequence", family: str = "bert", labels: int = CLASSES, **options: Any
) -> PreTrainedModel:
    """A fine-tuned model of Transformers itself, with its own head, in evaluation mode."""
    torch.manual_seed(3)
    config = CONFIGS[family]()
    config.num_labels = 2 if head == "span" else labels
    for name, value in options.items():
        setattr(config, name, value)
    plain: PreTrainedModel = HEADS[head].auto_class.from_config(config)
    stir(plain)
    return plain.eval()


def make_batch(
    head: str = "sequence", *, rows: int = ROWS, labels: bool = False
) -> dict[str, Tensor]:
    """A batch of rows of different lengths, one of a single token; images and spectrograms have no lengths."""
    generator = torch.Generator().manual_seed(0)
    given = {"labels": torch.randint(CLASSES, (rows,), generator=generator)}
    if head == "image":
        batch = {"pixel_values": torch.randn(rows, 3, 16, 16, generator=generator)}
    elif head == "audio":
        batch = {"input_values": torch.randn(rows, 24, 16, generator=generator)}
    else:
        ids = torch.randint(3, VOCABULARY, (rows, LENGTH), generator=generator)
        lengths = torch.tensor([LENGTH, 3, 1, 5, 4, 2])[torch.arange(rows) % 6]
        mask = (torch.arange(LENGTH) < lengths[:, None]).long()
        batch = {"input_ids": ids, "attention_mask": mask}
        if head == "token":
            given = {"labels": (ids % CLASSES).masked_fill(mask == 0, -100)}
        if head == "span":
            given = {
                "start_positions": torch.zeros(rows, dtype=torch.long),
                "end_positions": lengths - 1,
            }
        if head == "features":
            given = {"labels": torch.randn(rows, WIDTH, generator=generator)}
    return {**batch, **given} if labels else batch


def answer(out: Any) -> Tensor:
    """The answer in an output of any model of this package, or of Transformers."""
    if out.get("start_logits") is not None:
        return torch.stack((out.start_logits, out.end_logits), -1)
    return next(
        out[name]
        for name in ("logits", "pooler_output", "last_hidden_state")
        if out.get(name) is not None
    )


@cache
def make_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that knows the letters a … i, and takes pairs; padding is token 1."""
    words = {"[UNK]": 3, "[PAD]": 1, **{letter: 5 + n for n, letter in enumerate("abcdefghi")}}
    tokens = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokens, unk_token="[UNK]", pad_token="[PAD]")


def some_texts(count: int, seed: int = 0) -> list[str]:
    """Distinct texts of one to eight letters."""
    generator = torch.Generator().manual_seed(seed)
    texts: dict[str, None] = {}
    while len(texts) < count:
        length = int(torch.randint(1, 9, (), generator=generator))
        texts[
            " ".join("abcdefghi"[int(n)] for n in torch.randint(9, (length,), generator=generator))
        ] = None
    return list(texts)


@contextlib.contextmanager
def rows_computed(modules: Sequence[nn.Module]) -> Iterator[list[int]]:
    """The number of rows of every call of `modules`, in order, counted by hooks."""
    calls: list[int] = []
    hooks = [
        m.register_forward_pre_hook(lambda _, inputs: calls.append(inputs[0].shape[0]))
        for m in modules
    ]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()
