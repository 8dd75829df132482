"""One layer that is applied N times, trained on the hidden states of N layers (Sun et al. 2019).

ALBERT's architecture is that of BERT with shared weights, so an `AlbertModel` is what comes out.
Its layer starts as the teacher's third.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from einops import reduce
from torch import Tensor
from transformers import (
    AlbertConfig,
    AlbertModel,
    AutoTokenizer,
    BertModel,
    get_linear_schedule_with_warmup,
)

__all__ = ["shared_from", "teach"]

_CHUNK = 1024
_BATCH = 64
_LENGTH = 48
_SAVE_EVERY = 16
_RATE = 4e-4
_LAST = 2.0
_OTHERS = 0.4
_PARTS = {
    "attention.query": "attention.self.query",
    "attention.key": "attention.self.key",
    "attention.value": "attention.self.value",
    "attention.dense": "attention.output.dense",
    "attention.LayerNorm": "attention.output.LayerNorm",
    "ffn": "intermediate.dense",
    "ffn_output": "output.dense",
    "full_layer_layer_norm": "output.LayerNorm",
}


def shared_from(teacher: BertModel) -> AlbertModel:
    """Return an encoder with the teacher's embeddings and its third layer, applied N times."""
    sizes = {
        name: getattr(teacher.config, name)
        for name in (
            *(
                "vocab_size",
                "hidden_size",
                "num_hidden_layers",
                "num_attention_heads",
                "intermediate_size",
            ),
            *(
                "hidden_act",
                "hidden_dropout_prob",
                "attention_probs_dropout_prob",
                "max_position_embeddings",
            ),
            *("type_vocab_size", "layer_norm_eps", "pad_token_id"),
        )
    }
    made = AlbertModel(AlbertConfig(embedding_size=sizes["hidden_size"], **sizes))
    made.embeddings.load_state_dict(teacher.embeddings.state_dict(), strict=False)
    mapping = made.encoder.embedding_hidden_mapping_in
    torch.nn.init.eye_(mapping.weight)
    torch.nn.init.zeros_(mapping.bias)
    layers: Any = teacher.encoder.layer
    groups: Any = made.encoder.albert_layer_groups
    source = layers[2]
    layer = groups[0].albert_layers[0]
    for own, theirs in _PARTS.items():
        layer.get_submodule(own).load_state_dict(source.get_submodule(theirs).state_dict())
    return made


def teach(
    teacher: str, texts: Sequence[str], updates: int, out: Path, advance: Callable[[], object]
) -> float:
    """Make the encoder, write it with its tokenizer, and return the mean loss of the last updates.

    The state of training is in `<out>/training.pt` every `_SAVE_EVERY` chunks, from where a killed call goes on.

    Args:
        teacher: A folder or hub name of a BERT.
        texts: Texts without labels.
        updates: Batches of 64 texts.
        out: The folder.
        advance: Called after each update.
    """
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    watched = BertModel.from_pretrained(teacher).eval()
    student = shared_from(watched).train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=_RATE, weight_decay=0.01)
    rates = get_linear_schedule_with_warmup(optimizer, min(100, updates // 10), updates)
    draw = random.Random(0)
    losses = list[float]()
    state = out / "training.pt"
    stateful = {"student": student, "optimizer": optimizer, "rates": rates}
    if state.exists():
        saved = torch.load(state, weights_only=True)
        for name, part in stateful.items():
            part.load_state_dict(saved[name])
        losses = saved["losses"]
        draw.setstate(saved["draw"])
        torch.set_rng_state(saved["torch"])
        for _ in losses:
            advance()
    out.mkdir(parents=True, exist_ok=True)
    chunks = 0
    while len(losses) < updates:
        chunk = sorted(
            draw.sample(texts, min(_CHUNK, len(texts))), key=len
        )  # of similar length in a batch
        batches = [chunk[place : place + _BATCH] for place in range(0, len(chunk), _BATCH)]
        for batch in draw.sample(batches, len(batches))[: updates - len(losses)]:
            given = tokenizer(
                batch, padding=True, truncation=True, max_length=_LENGTH, return_tensors="pt"
            )
            with torch.no_grad():
                wanted = watched(**given, output_hidden_states=True).hidden_states
            loss = _distance(
                student(**given, output_hidden_states=True).hidden_states,
                wanted,
                given["attention_mask"],
            )
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
            rates.step()
            losses.append(loss.item())
            advance()
        chunks += 1
        if chunks % _SAVE_EVERY == 0:
            states = {name: part.state_dict() for name, part in stateful.items()}
            numbers = {"draw": draw.getstate(), "torch": torch.get_rng_state()}
            beside = state.with_suffix(".new")
            torch.save({**states, **numbers, "losses": losses}, beside)
            beside.replace(state)
    student.save_pretrained(out)
    tokenizer.save_pretrained(out)
    state.unlink(missing_ok=True)
    last = losses[-max(1, updates // 20) :]
    return sum(last) / len(last)


def _distance(own: Any, wanted: Any, mask: Tensor) -> Tensor:
    """Squared distance of the hidden states over real positions, that of the last weighted most."""
    real = mask.float()
    by_layer = []
    for ours, theirs in zip(own, wanted, strict=True):
        distances = reduce((ours - theirs) ** 2, "batch length width -> batch length", "mean")
        by_layer.append((distances * real).sum() / real.sum())
    loss: Tensor = _LAST * by_layer[-1] + _OTHERS * torch.stack(by_layer[1:-1]).sum()
    return loss
