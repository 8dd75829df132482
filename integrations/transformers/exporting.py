"""What an export writes of a model of tokens: an example of them, the tokenizer, and the names of classes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from ponder.engine.model import EarlyExitModel
from ponder.errors import ArgumentError
from ponder.export.source import ExportSource, check_any_length, tokenizer_in
from ponder.integrations.transformers.tokenizing import max_positions, zero_types

__all__ = ["token_source"]

_LENGTHS = (11, 11, 9, 7, 3)  # five rows, a number that no other dimension has; shorter where the model takes less


def token_source(
    model: EarlyExitModel,
    reads: PreTrainedModel,
    main_input: str,
    folders: Iterable[Path],
    labels: Sequence[str],
    columns: Sequence[str] = (),
) -> ExportSource:
    """The source of a model of tokens.

    Args:
        model: The wrapper that is written.
        reads: The model of Transformers inside it, by whose configuration the example is made.
        main_input: What it reads first.
        folders: Where its tokenizer may be; the first that has one is taken.
        labels: Names of the classes.
        columns: Names of the columns of texts that the exits were fitted to.

    Raises:
        ArgumentError: It reads something else than tokens, or takes some lengths alone.
    """
    if main_input != "input_ids":
        raise ArgumentError(
            "model",
            expected="a model that reads tokens",
            got=f"one that reads {main_input}",
            remedy="Export its wrapper, model.ponder, with an example: ponder.export.onnx(model.ponder, …).",
        )
    config = reads.config
    check_any_length(model, config.model_type)
    pad = int(config.pad_token_id or 0)
    longest = min(_LENGTHS[0], max_positions(reads))
    lengths = torch.tensor([max(1, length * longest // _LENGTHS[0]) for length in _LENGTHS], device=reads.device)
    mask = (torch.arange(longest, device=reads.device) < lengths[:, None]).long()
    ids = torch.full_like(mask, (pad + 1) % config.vocab_size).masked_fill(mask == 0, pad)
    return ExportSource(
        model=model,
        inputs=ids,
        context={"attention_mask": mask, **zero_types(reads, ids, mask)},
        name="input_ids",
        defaults={"attention_mask": 1.0, "token_type_ids": 0.0},
        tokenizer=next(filter(None, map(tokenizer_in, folders)), None),
        max_length=max_positions(reads),
        labels=tuple(labels),
        columns=tuple(columns),
    )
