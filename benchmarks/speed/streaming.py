"""Section 3: streams with one shared step and with a stack of layers, at the same exits.

Where the step is shared, rows at different depths stand in one batch; a stack has a queue a layer.
"""

from __future__ import annotations

import random
from typing import Any

import torch
from transformers import AlbertConfig, AlbertModel, PreTrainedModel

from benchmarks.speed.exiting import Forced, spread
from benchmarks.speed.subjects import Options, figure, interleaved, minilm_encoder, ratio
from ponder import StreamEngine
from ponder.integrations.transformers import PonderForSequenceClassification

__all__ = ["SECTION", "measure"]

SECTION = "streaming"
MIXES = {"uniform": (1.0,) * 6, "early-heavy": (32.0, 16.0, 8.0, 4.0, 2.0, 1.0)}
ROWS = 512
LONGEST = 32
BATCHES = (8, 32)


def measure(options: Options) -> list[dict[str, Any]]:
    """Return the section's figures."""
    stacked = minilm_encoder(options)
    models = {"stacked": _wrapped(stacked), "shared": _wrapped(_shared(stacked.config))}
    draw = random.Random(0)
    lengths = [draw.randint(4, LONGEST) for _ in range(32 if options.quick else ROWS)]
    rows = [
        (torch.arange(5, 5 + length), {"attention_mask": torch.ones(length).long()})
        for length in lengths
    ]
    found = []
    for batch in BATCHES:
        for name, weights in MIXES.items():
            policy = Forced(spread(weights, len(rows)))

            def stream(model: Any, policy: Forced = policy, batch: int = batch) -> None:
                with StreamEngine(model.ponder, max_batch=batch, policy=policy) as engine:
                    list(engine.run(rows))

            calls = {kind: lambda model=model: stream(model) for kind, model in models.items()}
            seconds = interleaved(calls, rounds=1 if options.quick else options.pairs)
            case = f"MiniLM's sizes, {name}, batch {batch}"
            found.append(
                figure(
                    SECTION,
                    case,
                    "throughput, shared ÷ stacked",
                    ratio(seconds, "stacked", "shared"),
                )
            )
    return found


def _wrapped(encoder: PreTrainedModel) -> Any:
    wrapped: Any = PonderForSequenceClassification.from_encoder(encoder, "palbert", num_labels=2)
    return wrapped.eval()


def _shared(config: Any) -> PreTrainedModel:
    """An encoder of the same sizes with one layer, whose weights are random."""
    names = (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "vocab_size",
    )
    sizes = {name: getattr(config, name) for name in names}
    return AlbertModel(
        AlbertConfig(embedding_size=config.hidden_size, hidden_act=config.hidden_act, **sizes)
    )
