"""Section 11: what a captured encoder costs: its stem, its full depth, tokens whose states are kept, and the import.

The encoder is of BERT-base's size and has no adapter of its own. Its stem is one forward of a twin whose layers are
stubs; what that takes beyond the plain encoder without layers is the cost of capturing. Kept states are those of a
token task that halts each token on its own (Universal Transformers, Dehghani et al. 2018): a layer that is known only
as something to be called computes all tokens all the same. The import of the integration is that of a fresh process in
which a model of Transformers can be loaded already. Seconds are those of the processor, for one process.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import time
from typing import Any

import torch
from torch import Tensor, nn
from transformers import RobertaConfig, RobertaModel

from benchmarks.speed.figures import Options, figure
from benchmarks.speed.timing import interleaved, ratio
from ponder import readouts
from ponder.cost import WallClock
from ponder.integrations.transformers import PonderModel
from ponder.policies import LastStep

__all__ = ["SECTION", "measure"]

SECTION = "capturing"
STEM, FULL, IMPORT = 0.5, 1.03, 0.2
BATCHES, LENGTH, BUDGET = (1, 32), 32, 6.0


@torch.inference_mode()
def measure(options: Options) -> list[dict[str, Any]]:
    """The section's figures."""
    torch.manual_seed(0)
    small: dict[str, Any] = (
        {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64} if options.quick else {}
    )
    encoder = RobertaModel(RobertaConfig(vocab_size=1000, **small), add_pooling_layer=False).eval().to(options.device)
    front = copy.deepcopy(encoder)
    front.encoder.layer = nn.ModuleList()
    model: Any = PonderModel.from_encoder(encoder, "vanilla", readout="mean")
    model.eval()
    found: list[dict[str, Any]] = []
    for rows in BATCHES:
        ids = torch.randint(5, 1000, (rows, LENGTH), generator=torch.Generator().manual_seed(0)).to(options.device)
        mask = torch.ones_like(ids)
        case = f"RoBERTa of BERT-base's size, batch {rows}, length {LENGTH}"
        found.append(_stem(model, front, ids, mask, case, options))
        found.append(_full_depth(model, encoder, ids, mask, case, options))
        found.append(_kept(encoder, ids, mask, case, options))
    return [*found, _import(options)]


def _stem(model: Any, front: Any, ids: Tensor, mask: Tensor, case: str, options: Options) -> dict[str, Any]:
    calls = {
        "stem": lambda: model.ponder.stem(ids, attention_mask=mask),
        "front": lambda: front(ids, attention_mask=mask),
    }
    seconds = interleaved(calls, **_rounds(options))
    more = [1e3 * (stem - plain) for stem, plain in zip(seconds["stem"], seconds["front"], strict=True)]
    value = WallClock.of(more)
    return figure(SECTION, case, "CPU ms of the stem beyond the plain encoder without layers", value, at_most=STEM)


def _full_depth(model: Any, encoder: Any, ids: Tensor, mask: Tensor, case: str, options: Options) -> dict[str, Any]:
    calls = {
        "wrapped": lambda: model(ids, attention_mask=mask, policy=LastStep()).pooler_output,
        "plain": lambda: readouts.mean(encoder(ids, attention_mask=mask).last_hidden_state, attention_mask=mask),
    }
    value = ratio(interleaved(calls, **_rounds(options)), "wrapped", "plain")
    return figure(SECTION, case, "CPU time at full depth ÷ plain", value, at_most=FULL)


def _kept(encoder: Any, ids: Tensor, mask: Tensor, case: str, options: Options) -> dict[str, Any]:
    """Half of the tokens have halted before the first layer, and keep their states."""
    states = encoder.embeddings(ids)
    halted = (torch.arange(LENGTH, device=ids.device) % 2 == 0)[None, :, None]

    def run(keep: bool) -> Tensor:
        hidden: Tensor = states
        for layer in encoder.encoder.layer:
            after = layer(hidden)
            hidden = torch.where(halted, hidden, after) if keep else after
        return hidden

    calls = {"kept": lambda: run(True), "all": lambda: run(False)}
    value = ratio(interleaved(calls, **_rounds(options)), "kept", "all")
    return figure(SECTION, case, "CPU time where half of the tokens have halted ÷ where none has", value)


_PROGRAM = """
import time, torch, transformers
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel
start = time.process_time()
import ponder.integrations.transformers
print(time.process_time() - start)
"""


def _import(options: Options) -> dict[str, Any]:
    """The first of several writes the byte code, as the first after an installation does, and does not count."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    seconds = []
    for _ in range(1 if options.quick else 1 + max(options.pairs, 5)):
        ran = subprocess.run(
            [sys.executable, "-c", _PROGRAM], env=environment, capture_output=True, text=True, check=True
        )
        seconds.append(float(ran.stdout.split()[-1]))
    value = WallClock.of(seconds[1:] or seconds)
    name = "CPU s of importing ponder.integrations.transformers beyond a model class of Transformers"
    return figure(SECTION, "fresh process", name, value, at_most=IMPORT)


def _rounds(options: Options) -> dict[str, Any]:
    if options.quick:
        return {"rounds": 1, "least": 0.0, "clock": time.process_time}
    return {"rounds": options.pairs, "budget": BUDGET, "clock": time.process_time}
