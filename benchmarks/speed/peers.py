"""Section 4: other packages for adaptive computation, on the same encoder, the same rows and the same exits.

`earlyon` puts heads on the named layers of a module and leaves by an exception. It takes one row at a time, or a batch
that leaves as a whole where its least confident row may. `ponder-transformer` is a model of its own, whose evaluation
runs the whole batch until every row has halted. Install both with the extra `peers`.
"""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import ponder
from benchmarks.speed.exiting import spread
from benchmarks.speed.figures import Options, figure, not_measured
from benchmarks.speed.forced import Forced
from benchmarks.speed.subjects import minilm
from benchmarks.speed.timing import interleaved, ratio
from ponder._utils.trees import Tree
from ponder.policies import Confidence, ExitPolicy

__all__ = ["Logits", "Scheduled", "earlyon_pair", "measure", "transformer_pair"]

SECTION = "peers"
BATCH, ROWS, LENGTH = 32, 64, 32
THRESHOLD = 0.9
Answers = Callable[[], tuple[Tensor, Tensor]]
"""All rows: their outputs, and their exit steps."""


def measure(options: Options) -> list[dict[str, Any]]:
    """The section's figures."""
    found = []
    for peer, section in (("earlyon", _earlyon), ("ponder-transformer", _transformer)):
        try:
            found += section(options)
        except ModuleNotFoundError as error:
            found.append(not_measured(SECTION, peer, f"{error}; run: pip install 'ponder-torch[peers]'"))
        except Exception as error:  # a peer's failure is a result
            found.append(not_measured(SECTION, peer, f"it fails: {type(error).__name__}: {error}"[:300]))
    return found


class Logits(nn.Module):
    """A plain encoder as `earlyon` wants it: token ids to logits, of the first token.

    Args:
        encoder: The encoder.
        width: Width of its hidden states.
    """

    def __init__(self, encoder: Any, width: int) -> None:
        super().__init__()
        self.encoder, self.classifier = encoder, nn.Linear(width, 2)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits, `(batch, 2)`."""
        logits: Tensor = self.classifier(self.encoder(ids).last_hidden_state[:, 0])
        return logits


class Scheduled(nn.Module):
    """Halting logits that make `ponder-transformer` halt rows where a table says: never before, surely there.

    Args:
        table: Exit steps, 1-based, `(batch,)`.
    """

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table, self.step = table, 0

    def forward(self, features: Tensor) -> Tensor:
        """Logits of the next step, `(batch,)`."""
        self.step += 1
        return torch.where(self.table <= self.step, 200.0, -200.0)


def earlyon_pair(options: Options, ids: Tensor) -> tuple[Any, ponder.PonderWrapper, Confidence]:
    """`earlyon`'s model, and `ponder`'s of the same encoder and the same heads; the threshold is set in both.

    Heads are shifted and scaled, so that at every step two rows of five leave.
    """
    models = importlib.import_module("earlyon.models")
    plain = minilm(options).plain.base_model
    backbone, layers = Logits(plain, plain.config.hidden_size).eval().to(ids.device), plain.config.num_hidden_layers
    names = [f"encoder.encoder.layer.{layer}" for layer in range(layers - 1)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its count of FLOPs knows images only, and says so
        peer = models.custom_ee(
            backbone, names, 2, example_args=(ids[:1],), pool_tokens="cls", input_shape=(1, 3, 8, 8)
        ).eval()
        assert peer.flops_estimate is not None  # counted now, and not in the first call
    heads = ponder.PerStep([*(peer.exit_heads[f"e{layer}"] for layer in range(layers - 1)), backbone.classifier])
    steps = ponder.Steps([_layer(layer) for layer in plain.encoder.layer])
    model = ponder.PonderWrapper(
        steps, head=heads, stem=plain.embeddings, readout=ponder.readouts.first_token, task="classification"
    ).eval()
    _spread_out(peer, model, ids)
    peer.config.confidence_thresholds = [THRESHOLD] * (layers - 1)
    return peer, model, Confidence(THRESHOLD)


def transformer_pair(options: Options, ids: Tensor, table: tuple[int, ...]) -> tuple[Answers, Answers]:
    """`ponder-transformer` and `ponder` on its block, its embeddings and its answers, as calls."""
    package = importlib.import_module("ponder_transformer")
    torch.manual_seed(0)
    width = 64 if options.quick else 512
    peer: Any = package.PonderTransformer(num_tokens=1000, dim=width, max_seq_len=ids.shape[1], causal=False)
    peer = peer.eval().to(ids.device)
    exits = torch.tensor(table, device=ids.device)
    block = peer.block
    scheduled = block.to_halt_logits = Scheduled(exits)

    def step(hidden: Tensor) -> Tensor:
        hidden = block.attn(hidden) + hidden
        after: Tensor = block.ff(hidden) + hidden
        return after

    def stem(tokens: Tensor) -> Tensor:
        embedded: Tensor = peer.token_emb(tokens) + peer.pos_emb.weight[None, : tokens.shape[1]]
        return embedded

    model = ponder.PonderWrapper(
        step, peer.train_max_steps, head=peer.to_logits, stem=stem, readout=_all_tokens, task="token_classification"
    ).eval()

    def theirs() -> tuple[Tensor, Tensor]:
        scheduled.step = 0
        outputs, halted = peer(ids)
        return outputs, halted + 1

    return torch.inference_mode()(theirs), _ours(model, ids, Forced(table), len(ids))


@torch.no_grad()
def _spread_out(peer: Any, model: ponder.PonderWrapper, ids: Tensor) -> None:
    """Make two of five rows that are still there confident at every step, by the last layer of each head."""
    answers, here = model.unroll(ids).outputs, torch.arange(len(ids), device=ids.device)
    for step, head in enumerate(peer.exit_heads.values()):
        apart = answers[here, step, 1] - answers[here, step, 0]
        ordered, staying = apart.sort().values, max(round(0.6 * len(here)), 1)
        border = ordered[staying - 1 : staying + 1].mean()  # between two rows: none lies on the threshold
        scale, last = 0.5 / apart.std().clamp_min(1e-9), head.classifier[-1]
        weight, bias = last.weight[1] - last.weight[0], last.bias[1] - last.bias[0]
        last.weight.copy_(torch.stack([torch.zeros_like(weight), scale * weight]))
        last.bias.copy_(
            torch.stack([torch.zeros_like(bias), scale * (bias - border) + math.log(THRESHOLD / (1 - THRESHOLD))])
        )
        here = here[apart < border]
        if len(here) < 3:
            return


def _earlyon(options: Options) -> list[dict[str, Any]]:
    ids = minilm(options).batch(8 if options.quick else ROWS, 8 if options.quick else LENGTH)["input_ids"]
    peer, model, policy = earlyon_pair(options, ids)
    last = model.num_steps

    def one_by_one() -> tuple[Tensor, Tensor]:
        results = [peer(row) for row in ids.split(1)]
        return torch.cat([result.prediction for result in results]), _taken(results, [1] * len(ids), last)

    def conservative() -> tuple[Tensor, Tensor]:
        parts = ids.split(BATCH)
        results = [peer.forward_inference_batched(part) for part in parts]
        return torch.cat([result.predictions for result in results]), _taken(results, [*map(len, parts)], last)

    found = []
    for batch, theirs in ((1, one_by_one), (BATCH, conservative)):
        found.append(
            _compared(f"earlyon, MiniLM, early-heavy, batch {batch}", theirs, _ours(model, ids, policy, batch), options)
        )
    return found


def _transformer(options: Options) -> list[dict[str, Any]]:
    rows, length = (4, 8) if options.quick else (BATCH, LENGTH)
    ids = torch.randint(0, 1000, (rows, length), generator=torch.Generator().manual_seed(0)).to(options.device)
    table = spread([0.6**step for step in range(12)], rows)
    theirs, ours = transformer_pair(options, ids, table)
    return [_compared(f"ponder-transformer, early-heavy, batch {rows}", theirs, ours, options)]


def _compared(case: str, theirs: Answers, ours: Answers, options: Options) -> dict[str, Any]:
    """Throughput of ours ÷ theirs, and whether the exits are the same."""
    (_, peer_exits), (_, exits) = theirs(), ours()
    rounds = 1 if options.quick else options.pairs
    seconds = interleaved({"theirs": theirs, "ours": ours}, rounds=rounds, least=0.0 if options.quick else 0.5)
    more = {
        "same_exits": float((peer_exits == exits).double().mean()),
        "mean_exit_step": float(exits.double().mean()),
        "mean_exit_step_of_peer": float(peer_exits.double().mean()),
    }
    return figure(SECTION, case, "throughput ÷ the peer's", ratio(seconds, "theirs", "ours"), **more)


def _ours(model: ponder.PonderWrapper, ids: Tensor, policy: ExitPolicy, batch: int) -> Answers:
    """`ponder` on the same rows, in batches."""
    numbers = torch.arange(len(ids), device=ids.device)
    parts = list(zip(ids.split(batch), numbers.split(batch), strict=True))

    @torch.inference_mode()
    def run() -> tuple[Tensor, Tensor]:
        outs = [model(part, policy=policy, row_ids=rows) for part, rows in parts]
        return torch.cat([out.outputs for out in outs]), torch.cat([out.exit_step for out in outs])

    return run


def _taken(results: list[Any], sizes: list[int], last: int) -> Tensor:
    """Exit steps of `earlyon`'s results, which number exits from 0, and call the end of the encoder -1."""
    steps = [last if result.exit_taken < 0 else result.exit_taken + 1 for result in results]
    return torch.tensor(steps).repeat_interleave(torch.tensor(sizes))


def _layer(layer: nn.Module) -> Callable[..., Tensor]:
    def step(hidden: Tensor) -> Tensor:
        after = layer(hidden)
        tensor: Tensor = after[0] if isinstance(after, tuple) else after
        return tensor

    return step


def _all_tokens(hidden: Tree) -> Tensor:
    tokens: Tensor = hidden
    return tokens
