"""Section 10: exits, int8 and both in onnxruntime, compared with PyTorch, on MiniLM and MPNet-base.

Every call answers the same rows, and all that exit do so at the same steps: the Lambda head gives
one hazard to every row at every step, and a seeded draw makes exits of it. What int8 does to the
answers is not measured here, so MPNet-base has random weights; `KINDS` are those of
`ponder.export.onnx`, the ranges of activations fixed by other rows.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import ponder
from benchmarks.speed.subjects import (
    Options,
    Seconds,
    figure,
    interleaved,
    minilm_encoder,
    mpnet_encoder,
    ratio,
)
from ponder import policies
from ponder.calibration.cost import WallClock
from ponder.deploy.runtime import OnnxModel
from ponder.integrations.transformers import PonderForSequenceClassification

__all__ = ["SECTION", "measure"]

SECTION = "exporting"
SHAPES = {1: (8, 16), 8: (32, 32), 32: (64, 32)}
"""Rows in all, and tokens of each, by the rows of a batch."""
HAZARD = 0.25
KINDS: dict[str, Literal[True, "all"]] = {"int8": True, "int8 of all": "all"}
BF16 = "PyTorch, exits, bf16"
OF_PRODUCT = 0.9
OVER_BF16 = 1.5
OVER_FP32 = {"MiniLM": 4.0, "MPNet-base": 8.0}


def measure(options: Options) -> list[dict[str, Any]]:
    """Return the section's figures."""
    encoders = {"MiniLM": minilm_encoder, "MPNet-base": mpnet_encoder}
    return [
        each
        for name, encoder in encoders.items()
        for each in _of_model(name, _model(encoder(options)), options)
    ]


def _of_model(
    name: str, model: PonderForSequenceClassification, options: Options
) -> list[dict[str, Any]]:
    threads = torch.get_num_threads()
    others = [{"input_ids": row} for row in _rows(64, 32, seed=1).numpy()]
    with tempfile.TemporaryDirectory() as folder:
        fp32, *places = (Path(folder) / str(place) for place in range(1 + len(KINDS)))
        ponder.export.onnx(model, fp32)
        exports = {"fp32": OnnxModel(fp32, threads=threads)}
        for place, (kind, int8) in zip(places, KINDS.items(), strict=True):
            written = ponder.export.quantized(fp32, place, int8, calibration=others)
            exports[kind] = OnnxModel(written, threads=threads)
        return [each for batch in SHAPES for each in _figures(name, model, exports, batch, options)]


def _rows(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(5, 1000, (rows, length), generator=torch.Generator().manual_seed(seed))


def _model(encoder: PreTrainedModel) -> PonderForSequenceClassification:
    """An encoder with a Lambda head that always gives the same hazard."""
    model: PonderForSequenceClassification = PonderForSequenceClassification.from_encoder(
        encoder, "pondernet", 2, policy=policies.Bernoulli(0)
    )
    hazards: Any = model.ponder.lambda_head
    last = [part for part in hazards.modules() if isinstance(part, nn.Linear)][-1]
    nn.init.zeros_(last.weight)
    nn.init.constant_(last.bias, math.log(HAZARD / (1.0 - HAZARD)))
    model.eval()  # type: ignore[no-untyped-call]
    return model


def _figures(
    name: str,
    model: PonderForSequenceClassification,
    exports: Mapping[str, OnnxModel],
    batch: int,
    options: Options,
) -> list[dict[str, Any]]:
    """Time PyTorch and exports, with and without exits, and return the figures of one batch size."""
    rows, length = SHAPES[batch]
    ids = _rows(rows, length)
    exits = model.policy
    full = policies.LastStep()
    arrays = [{"input_ids": row} for row in ids.numpy()]
    calls: dict[str, Callable[[], object]] = {
        "PyTorch": _torch(model, ids, batch, full),
        "PyTorch, exits": _torch(model, ids, batch, exits),
        BF16: _torch(model, ids, batch, exits, torch.bfloat16),
    }
    for kind, exported in exports.items():
        calls[kind] = _onnx(exported, arrays, batch, full)
        calls[f"{kind}, exits"] = _onnx(exported, arrays, batch, exits)
    seconds = interleaved(calls, rounds=1 if options.quick else max(5, options.pairs))
    steps = float(exports["fp32"].predict(arrays, batch_size=batch, policy=exits).exit_step.mean())
    case = f"{name}, {batch} × {length}"
    facts = {"mean_exit_step": steps, "rows": rows}

    def made(what: str, value: WallClock, goal: float | None) -> dict[str, Any]:
        return figure(SECTION, case, what, value, at_least=goal, **facts)

    found = []
    for call in list(calls)[1:]:
        goal = OVER_FP32[name] if call.startswith("int8") and call.endswith("exits") else None
        value = ratio(seconds, "PyTorch", call)
        found.append(made(f"speed-up of {call} over PyTorch fp32", value, goal))
    for kind in list(exports)[1:]:
        both = f"{kind}, exits"
        value = ratio(seconds, BF16, both)
        found.append(made(f"speed-up of {both} over {BF16}", value, OVER_BF16))
        value = _of_product(seconds, kind)
        found.append(made(f"exits × {kind} ÷ their product", value, OF_PRODUCT))
    return found


def _of_product(seconds: Seconds, name: str) -> WallClock:
    """Speed-up of both over the product of the single speed-ups: exits · int8 ÷ (fp32 · both)."""
    products = {
        "over": [a * b for a, b in zip(seconds["fp32, exits"], seconds[name], strict=True)],
        "under": [a * b for a, b in zip(seconds["fp32"], seconds[f"{name}, exits"], strict=True)],
    }
    return ratio(products, "over", "under")


def _torch(
    model: PonderForSequenceClassification,
    ids: Tensor,
    batch: int,
    policy: policies.ExitPolicy,
    dtype: torch.dtype | None = None,
) -> Callable[[], object]:
    mask = torch.ones_like(ids)
    numbers = torch.arange(len(ids))
    cuts = range(0, len(ids), batch)

    def run() -> list[Tensor]:
        with torch.inference_mode(), torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            return [
                model(
                    ids[c : c + batch],
                    mask[c : c + batch],
                    policy=policy,
                    row_ids=numbers[c : c + batch],
                ).logits
                for c in cuts
            ]

    return run


def _onnx(
    model: OnnxModel, arrays: list[Any], batch: int, policy: policies.ExitPolicy
) -> Callable[[], object]:
    return lambda: model.predict(arrays, batch_size=batch, policy=policy)
