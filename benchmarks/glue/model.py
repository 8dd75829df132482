"""The model of a run before training, and what it reads."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoTokenizer, DataCollatorWithPadding, PreTrainedTokenizerBase, set_seed

from benchmarks import backbones
from benchmarks.glue.config import RunConfig
from ponder import recipes
from ponder.errors import CheckpointError
from ponder.integrations.transformers import PonderForSequenceClassification
from ponder.policies import ExitPolicy

__all__ = ["Collator", "build", "load_tokenizer", "start_at"]


class Collator:
    """Pads a batch to its own longest example, and names its rows."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._pad = DataCollatorWithPadding(tokenizer)

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Tensors for `PonderForSequenceClassification.forward`."""
        batch = self._pad([{k: v for k, v in e.items() if k not in ("idx", "length")} for e in examples])
        return {**batch, "row_ids": torch.tensor([e["idx"] for e in examples])}


def load_tokenizer(backbone: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a backbone."""
    source = backbones.resolve(backbone)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(source), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"backbone: no tokenizer at {str(source)!r} ({error}). Pass one of {', '.join(backbones.names())}, a "
            "folder with a tokenizer and a safetensors encoder, or (with a network) a hub name."
        ) from error
    return tokenizer


def build(config: RunConfig, num_labels: int) -> PonderForSequenceClassification:
    """The untrained model of a run."""
    set_seed(config.seed)
    return PonderForSequenceClassification.from_encoder(
        backbones.resolve(config.backbone),
        recipes.get(config.recipe, **config.recipe_options),
        num_labels,
        readout=config.readout,
        policy=None if config.policy is None else ExitPolicy.from_dict(config.policy),
    )


@torch.no_grad()
def start_at(model: PonderForSequenceClassification, value: float) -> None:
    """Let every head of a new regression model answer about `value` (the mean of the training labels).

    A head that starts at 0 far from the labels sends one large common gradient through every step that is trained; it
    is answered by shifting the features of the encoder, which then never learns to tell examples apart.
    """
    for module in model.ponder.head.modules():
        if isinstance(module, torch.nn.Linear):
            module.bias.fill_(value)
