"""Section 10: exits and int8 in onnxruntime, each alone and both together, beside PyTorch, on MiniLM.

Every call answers the same rows, and all that exit do so at the same steps: the Lambda head gives one hazard to every
row at every step, and a seeded draw makes exits of it. What int8 does to the answers is not measured here; `KINDS` are
those of `ponder.export.onnx`.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

import ponder
from benchmarks.speed.figures import Options, figure, not_measured
from benchmarks.speed.subjects import minilm
from benchmarks.speed.timing import Seconds, interleaved, ratio
from ponder import policies
from ponder.cost import WallClock
from ponder.export import OnnxModel
from ponder.integrations.transformers import PonderForSequenceClassification

__all__ = ["SECTION", "measure"]

SECTION = "exporting"
SHAPES = {1: (8, 16), 8: (32, 32), 32: (64, 32)}
"""Rows in all, and tokens of each, by the rows of a batch."""
HAZARD = 0.25
KINDS: dict[str, bool | Literal["all"]] = {"fp32": False, "int8": True, "int8 of all": "all"}
BF16 = "PyTorch, exits, bf16"
OF_PRODUCT, OVER_FP32, OVER_BF16 = 0.9, 4.0, 1.5


def measure(options: Options) -> list[dict[str, Any]]:
    """The section's figures."""
    if not all(find_spec(name) for name in ("onnx", "onnxruntime", "onnxscript")):
        return [not_measured(SECTION, "MiniLM", "needs the extra onnx: pip install 'ponder-torch[onnx]'")]
    model, threads = _model(options), torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        exports = {
            name: OnnxModel(ponder.export.onnx(model, Path(folder) / str(place), int8), threads=threads)
            for place, (name, int8) in enumerate(KINDS.items())
        }
        return [told for batch in SHAPES for told in _figures(model, exports, batch, options)]


def _model(options: Options) -> PonderForSequenceClassification:
    """MiniLM with a Lambda head that always gives the same hazard."""
    encoder = minilm(options).wrapped.encoder
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
    model: PonderForSequenceClassification, exports: Mapping[str, OnnxModel], batch: int, options: Options
) -> list[dict[str, Any]]:
    rows, length = SHAPES[batch]
    ids = torch.randint(5, 1000, (rows, length), generator=torch.Generator().manual_seed(0))
    exits, full = model.policy, policies.LastStep()
    arrays = {"input_ids": ids.numpy()}
    calls: dict[str, Callable[[], object]] = {
        "PyTorch": _torch(model, ids, batch, full),
        "PyTorch, exits": _torch(model, ids, batch, exits),
        BF16: _torch(model, ids, batch, exits, torch.bfloat16),
    }
    for name, exported in exports.items():
        calls[name] = _onnx(exported, arrays, batch, full)
        calls[f"{name}, exits"] = _onnx(exported, arrays, batch, exits)
    seconds = interleaved(calls, rounds=1 if options.quick else max(5, options.pairs), least=0.0)
    steps = float(exports["fp32"].predict(arrays, batch_size=batch, policy=exits).exit_step.mean())
    case, more = f"MiniLM, {batch} × {length}", {"mean_exit_step": steps, "rows": rows}
    told = []
    for name in list(calls)[1:]:
        goal = OVER_FP32 if name.startswith("int8") and name.endswith("exits") else None
        value = ratio(seconds, "PyTorch", name)
        told.append(figure(SECTION, case, f"speed-up of {name} over PyTorch fp32", value, at_least=goal, **more))
    for name in list(exports)[1:]:
        both = f"{name}, exits"
        over = ratio(seconds, BF16, both)
        told.append(figure(SECTION, case, f"speed-up of {both} over {BF16}", over, at_least=OVER_BF16, **more))
        share = _of_product(seconds, name)
        told.append(figure(SECTION, case, f"exits × {name} ÷ their product", share, at_least=OF_PRODUCT, **more))
    return told


def _of_product(seconds: Seconds, name: str) -> WallClock:
    """(fp32 ÷ both) ÷ ((fp32 ÷ exits) (fp32 ÷ int8)), all in onnxruntime: exits · int8 ÷ (fp32 · both)."""
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
    mask, numbers = torch.ones_like(ids), torch.arange(len(ids))
    cuts = range(0, len(ids), batch)

    def run() -> list[Tensor]:
        with torch.inference_mode(), torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            return [
                model(ids[c : c + batch], mask[c : c + batch], policy=policy, row_ids=numbers[c : c + batch]).logits
                for c in cuts
            ]

    return run


def _onnx(model: OnnxModel, arrays: Mapping[str, Any], batch: int, policy: policies.ExitPolicy) -> Callable[[], object]:
    return lambda: model.predict(arrays, batch_size=batch, policy=policy)
