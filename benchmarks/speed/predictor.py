"""Section 3: `predict` on the dev sets of GLUE, beside the loops that released code runs, with the same exits.

One loop takes one example at a time, padded to 128, and stops at its exit. The other takes batches of 32 in the order
of the data, padded to their longest, and goes on until the slowest row has exited. Both are given their inputs as
tensors that were padded beforehand, and answer each row once; `predict` is given lists of token ids.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import datasets
import torch
from torch import Tensor
from transformers import AutoTokenizer

from benchmarks import backbones, tasks
from benchmarks.examples import tokenize
from benchmarks.speed.exiting import recorded, spread
from benchmarks.speed.figures import Options, figure, not_measured
from benchmarks.speed.forced import Forced
from benchmarks.speed.subjects import minilm
from benchmarks.speed.timing import interleaved, ratio
from ponder._utils.trees import unwrap
from ponder.integrations.transformers import PonderForSequenceClassification

__all__ = ["SECTION", "measure"]

SECTION = "predictor"
GOALS = {"CoLA": 5.0, "MRPC": 2.5}
RELEASED = "palbert"  # whose released code takes one example at a time
RECIPES = (RELEASED, "pondernet")
PADDED, BATCH, ROWS = 128, 32, 200

Rows = Sequence[dict[str, list[int]]]


def measure(options: Options) -> list[dict[str, Any]]:
    """The section's figures."""
    if options.glue_dir is None:
        return [not_measured(SECTION, "GLUE", "needs --glue-dir, a folder in GLUE's layout")]
    model = minilm(options).wrapped
    return [told for task in GOALS for recipe in RECIPES for told in _beside(model, task, recipe, options)]


def _beside(model: PonderForSequenceClassification, task: str, recipe: str, options: Options) -> list[dict[str, Any]]:
    """`predict` beside the loops, with the exits that a recipe recorded on a task."""
    rows = _rows(task, options)
    table = spread(recorded(f"{task.lower()}-minilm-{recipe}-s0-*.json", 6), len(rows))
    calls: dict[str, Callable[[], object]] = {
        "predict": lambda: model.predict(rows, policy=Forced(table)),
        "waiting": waiting(model, rows, table),
    }
    if recipe == RELEASED:
        calls["one by one"] = one_by_one(model, rows, table)
    seconds = interleaved(calls, rounds=1 if options.quick else options.pairs, least=0.0)
    case, more = f"{task}, exits of {recipe}", {"rows": len(rows)}
    names = {"waiting": f"throughput ÷ batches of {BATCH} that wait for the slowest row"}
    names["one by one"] = f"throughput ÷ one at a time, padded to {PADDED}"
    goals = {"one by one": GOALS[task]}
    return [
        figure(SECTION, case, names[loop], ratio(seconds, loop, "predict"), at_least=goals.get(loop), **more)
        for loop in calls
        if loop != "predict"
    ]


def one_by_one(
    model: PonderForSequenceClassification, rows: Rows, table: Sequence[int], padded: int = PADDED
) -> Callable[[], list[Tensor]]:
    """Each example alone, padded to one length, up to its exit."""
    inputs = [_padded([row], padded, model.device) for row in rows]
    return torch.inference_mode()(
        lambda: [bare(model, batch, steps) for batch, steps in zip(inputs, table, strict=True)]
    )


def waiting(
    model: PonderForSequenceClassification, rows: Rows, table: Sequence[int], batch: int = BATCH
) -> Callable[[], list[Tensor]]:
    """Batches in the order of the data, each up to the last exit of its rows."""
    starts = range(0, len(rows), batch)
    inputs = [_padded(part, None, model.device) for part in (rows[start : start + batch] for start in starts)]
    slowest = [max(table[start : start + batch]) for start in starts]
    return torch.inference_mode()(
        lambda: [bare(model, part, steps) for part, steps in zip(inputs, slowest, strict=True)]
    )


def bare(model: PonderForSequenceClassification, batch: dict[str, Tensor], steps: int) -> Tensor:
    """The answers after so many steps: no loop, no policy, one head."""
    parts: Any = model.ponder
    hidden, context = parts.stem(**batch)
    for step in range(1, steps + 1):
        hidden = parts.steps(step, hidden, **context)
    answers: Tensor = parts.head(parts.readout(hidden, parts.readout.reads(unwrap(context))))
    return answers


def _rows(task: str, options: Options) -> list[dict[str, list[int]]]:
    """Rows of the dev set, evenly spread, in its order."""
    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(backbones.resolve("minilm"))
    dev = tokenize(tasks.get(task).load(options.glue_dir)["dev"], tokenizer, PADDED)
    names = tokenizer.model_input_names
    wanted = min(40 if options.quick else ROWS, len(dev))
    vocabulary = 1000 if options.quick else None
    return [_example(dev[len(dev) * position // wanted], names, vocabulary) for position in range(wanted)]


def _example(row: dict[str, Any], names: Sequence[str], vocabulary: int | None) -> dict[str, list[int]]:
    """The model's inputs; token ids of a small vocabulary where the model is a small one."""
    kept: dict[str, list[int]] = {name: row[name] for name in names if name in row}
    if vocabulary is not None:
        kept["input_ids"] = [token % vocabulary for token in kept["input_ids"]]
    return kept


def _padded(rows: Rows, length: int | None, device: torch.device) -> dict[str, Tensor]:
    longest = max(len(row["input_ids"]) for row in rows) if length is None else length
    return {
        name: torch.tensor([row[name] + [0] * (longest - len(row[name])) for row in rows], device=device)
        for name in rows[0]
    }
