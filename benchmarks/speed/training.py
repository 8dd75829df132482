"""Section 6: training with the recipe palbert beside plain fine-tuning, and beside a loop that pads to 128.

All train MiniLM on the same examples of CoLA (of a graded task, without GLUE's files), in the same batches of 32, with
AdamW. The loop that pads is what released code does: every text is padded to 128 positions, and every step's heads are
called on their own. Peak memory is of a process of its own: what it holds at most, less what it held before there was
a model.
"""

from __future__ import annotations

import copy
import multiprocessing
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import graded, tasks
from benchmarks.examples import load_tokenizer, tokenize
from benchmarks.speed.figures import Options, figure, not_measured
from benchmarks.speed.scale import resident
from benchmarks.speed.subjects import minilm
from benchmarks.speed.timing import interleaved, ratio
from ponder.integrations.transformers import PonderForSequenceClassification

__all__ = ["KINDS", "batches", "measure", "padded_loss", "trainer"]

SECTION = "training"
PLAIN, PADDED = 0.95, 3.0
BATCH, LONGEST, STEPS = 32, 128, 8
RATE = 2e-5
_STATUS = Path("/proc/self/status")

Batch = dict[str, Tensor]


def measure(options: Options) -> list[dict[str, Any]]:
    """The section's figures."""
    task = "a graded task" if options.glue_dir is None else "CoLA"
    case, rounds = f"MiniLM, {task}, batch {BATCH}", 1 if options.quick else options.pairs
    found = []
    for other, goal, steps in (("plain", PLAIN, STEPS), ("padded", PADDED, 2)):
        made = batches(options, 2 if options.quick else steps)
        runs = {kind: trainer(kind, options, made) for kind in ("ponder", other)}
        seconds = interleaved(runs, rounds=rounds, least=0.0)
        name = f"examples per second ÷ {KINDS[other]}"
        limit = goal if other == "plain" or options.glue_dir is not None else None  # the goal is one for CoLA
        value, more = ratio(seconds, other, "ponder"), {"steps": len(made) * (rounds + 1)}
        found.append(figure(SECTION, case, name, value, at_least=limit, **more))
    return found + _memory(case, options)


def batches(options: Options, count: int) -> list[Batch]:
    """So many batches, in the order of the data, each padded to its longest row."""
    datasets.disable_progress_bars()
    tokenizer, rows = load_tokenizer("minilm"), count * BATCH
    if options.glue_dir is None:
        source = graded.load("negation", train=rows, dev=1, test=1)["train"]
    else:
        source = tasks.get("CoLA").load(options.glue_dir)["train"].select(range(rows))
    table = tokenize(source, tokenizer, LONGEST)
    made = []
    for start in range(0, rows, BATCH):
        part = table[start : start + BATCH]
        ids = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in part["input_ids"]], batch_first=True)
        mask = torch.arange(ids.shape[1]) < torch.tensor(part["length"])[:, None]
        batch = {
            "input_ids": ids % 1000 if options.quick else ids,  # the quick model's vocabulary is small
            "attention_mask": mask.long(),
            "labels": torch.tensor(part["labels"]),
        }
        made.append({name: value.to(options.device) for name, value in batch.items()})
    return made


def trainer(kind: str, options: Options, made: Iterable[Batch]) -> Callable[[], None]:
    """What trains on the batches once, when it is called: a model of its own, with its optimiser.

    Args:
        kind: One of `KINDS`.
        options: The options that choose the size of the model.
        made: The batches.
    """
    plain = minilm(options).plain
    if kind == "plain":
        model: Any = plain
    else:
        model = PonderForSequenceClassification.from_encoder(copy.deepcopy(plain.base_model), "palbert")
    model.to(options.device).train()
    made = [_to_longest(batch) for batch in made] if kind == "padded" else list(made)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)

    def run() -> None:
        for batch in made:
            loss = padded_loss(model, batch) if kind == "padded" else model(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return run


def padded_loss(model: PonderForSequenceClassification, batch: Batch) -> Tensor:
    """The loss of the recipe, step by step: Σ p_n CE_n + β KL(p ‖ prior), the last step taking what is left."""
    parts: Any = model.ponder
    hidden = model.encoder(batch["input_ids"], batch["attention_mask"], output_hidden_states=True).hidden_states
    before = parts.readout(hidden[0], {})
    left, losses, log_p = torch.zeros(len(before), device=before.device), [], []
    for step, state in enumerate(hidden[1:], start=1):
        features = parts.readout(state, {})
        losses.append(F.cross_entropy(parts.head(features), batch["labels"], reduction="none"))
        logit = parts.lambda_head(torch.cat([features, before], dim=-1))
        log_p.append(left if step == parts.num_steps else left + F.logsigmoid(logit))
        left, before = left + F.logsigmoid(-logit), features
    posterior = torch.stack(log_p, dim=1)
    prior = parts.prior(parts.num_steps, device=posterior.device).log_pmf
    expected = (posterior.exp() * torch.stack(losses, dim=1)).sum(1)
    loss: Tensor = (expected + parts.objective.beta * (posterior.exp() * (posterior - prior)).sum(1)).mean()
    return loss


def peak_bytes(kind: str, options: Options, steps: int = 3) -> int:
    """Memory of a few steps: on an accelerator what was allocated at most; else at most in this process, less before.

    Only a process that did nothing else before can tell.
    """
    made = batches(options, steps)
    if options.device.type == "cuda":
        trainer(kind, options, made)()
        return torch.cuda.max_memory_allocated(options.device)
    before = resident() or 0
    trainer(kind, options, made)()
    # Not getrusage: its maximum of a new process begins at what the process that started it held.
    peak = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(peak.split()[1]) * 1024 - before


def _memory(case: str, options: Options) -> list[dict[str, Any]]:
    if options.device.type != "cuda" and resident() is None:
        return [not_measured(SECTION, f"{case}, memory", "this system has no /proc")]
    peaks = {kind: _in_a_process(kind, replace(options, pairs=1)) for kind in KINDS}
    return [
        figure(SECTION, case, f"peak memory ÷ {KINDS[kind]}", peaks["ponder"] / peaks[kind], bytes=peaks["ponder"])
        for kind in ("plain", "padded")
    ]


def _in_a_process(kind: str, options: Options) -> int:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_peak, kind, options, torch.get_num_threads()).result()


def _peak(kind: str, options: Options, threads: int) -> int:
    torch.set_num_threads(threads)
    return peak_bytes(kind, options)


def _to_longest(batch: Batch) -> Batch:
    def widened(value: Tensor) -> Tensor:
        return value if value.dim() == 1 else F.pad(value, (0, LONGEST - value.shape[1]))

    return {name: widened(value) for name, value in batch.items()}


KINDS = {"ponder": "ponder", "plain": "plain fine-tuning", "padded": f"a loop that pads to {LONGEST}"}
"""What is trained, by its short name."""
