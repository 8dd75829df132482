"""The demo: a classifier of generated reviews gets exits by `ponder exits`, and answers the same texts sooner.

The reviews praise or blame something under none to three nested negations (the graded task `negation`). As in real
traffic most are easy: three in five have no negation, and one in twenty has three.
"""

from __future__ import annotations

import csv
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks import graded
from benchmarks.command_line import check_writable
from benchmarks.finetuned.training import accuracy, fine_tune
from benchmarks.terminal import hide_bars
from ponder.cli import exits
from ponder.cli.measuring import batches_of
from ponder.cli.running import WIDTH
from ponder.cli.telling import check_out
from ponder.integrations.transformers import FinetunedClassifier
from ponder.integrations.transformers.tokenizing import load_tokenizer, max_positions, tokenize

__all__ = ["demo"]

TASK = "negation"
SHARES = (0.60, 0.25, 0.10, 0.05)
"""How many reviews have none, one, two and three negations."""
TRAIN, TRAFFIC, FRESH = 2400, 4000, 1000
EPOCHS, LEARNING_RATE = 4, 2e-4


def demo(out: Path, *, backbone: str = "minilm", scale: float = 1.0, seed: int = 0) -> dict[str, Any]:
    """Fine-tune, give exits, measure; print a summary of 80 columns and write `<out>/report.html`.

    Args:
        out: Folder of the texts, the plain model, the model with exits, and the report.
        backbone: An embedded backbone, a folder, or a hub name.
        scale: Share of the default number of texts.
        seed: Seed of the texts and of training.

    Returns:
        The card of `ponder exits`, and what was measured on fresh texts besides.
    """
    check_writable(out)
    check_out(out / "exits", str(out / "plain"), "exits.json")  # before anything is fine-tuned
    hide_bars()
    console, shown, begun = Console(width=WIDTH, highlight=False), sys.stderr.isatty(), time.perf_counter()
    sizes = [max(16, round(scale * size)) for size in (TRAIN, TRAFFIC, FRESH)]
    splits = {
        split: graded.traffic(TASK, split, size, SHARES, seed) for split, size in zip(graded.SPLITS, sizes, strict=True)
    }
    names = list(graded.get(TASK).labels)
    console.print(f"1. Fine-tune {backbone} on {sizes[0]} generated reviews, as you did with your own model.")
    train, traffic, fresh = (splits[split] for split in graded.SPLITS)
    plain = fine_tune(
        backbone,
        train["sentence1"],
        train["label"],
        names,
        out / "plain",
        epochs=EPOCHS,
        lr=LEARNING_RATE,
        seed=seed,
        progress=shown,
    )
    score = accuracy(plain, out / "plain", fresh["sentence1"], fresh["label"])
    console.print(f"   Accuracy on {sizes[2]} fresh reviews: {100 * score:.1f}%.\n")
    texts = out / "traffic.csv"
    with texts.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["text"], *([text] for text in traffic["sentence1"])])
    console.print(f"2. ponder exits {out / 'plain'} --texts {texts} --out {out / 'exits'}\n", markup=False)
    options = {"disagreement": 0.01, "confidence": 0.95, "speed_up": None, "seed": seed}
    card = exits.run(str(out / "plain"), texts, out / "exits", [], None, options, deep=False, as_json=False)
    shutil.copyfile(out / "exits" / "report.html", out / "report.html")
    told = _on_fresh(out / "exits", fresh["sentence1"], fresh["difficulty"])
    before, after = told["seconds_plain"], told["seconds_exits"]
    console.print(
        f"\n3. {sizes[2]} fresh reviews, which nothing was chosen on: {before:.2f} s → {after:.2f} s "
        f"(×{before / after:.2f}), {100 * told['disagreement']:.2f}% other answers.\n"
        "   Mean exit step by negations: "
        + ", ".join(f"{level}: {mean:.2f}" for level, mean in told["mean_exit_step_by_difficulty"].items())
        + f" of {card['num_steps']}."
    )
    console.print(f"   Took {time.perf_counter() - begun:.0f} s. Now open {out / 'report.html'}", markup=False)
    return {**card, "accuracy": score, "fresh": told}


def _on_fresh(folder: Path, texts: list[str], difficulty: list[int]) -> dict[str, Any]:
    """Seconds of the plain model and to the exits on texts, in turn, and how often answers differ."""
    model, tokenizer = FinetunedClassifier.from_pretrained(folder), load_tokenizer(str(folder))
    rows = tokenize(tokenizer, [(text,) for text in texts], max_positions(model)).rows
    batches = batches_of(model, rows)
    with torch.inference_mode():
        calls: tuple[Callable[[Any], Any], ...] = (lambda b: model.classifier(**b), lambda b: model(**b))
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(3):
            for call, taken in zip(calls, times, strict=True):
                start = time.perf_counter()
                for batch in batches:
                    call(batch)
                taken.append(time.perf_counter() - start)
        differ = torch.cat([model(**b).outputs.argmax(-1) != model.classifier(**b).logits.argmax(-1) for b in batches])
        steps = model.predict(rows).exit_step
    levels = torch.tensor(difficulty)
    return {
        "seconds_plain": min(times[0]),
        "seconds_exits": min(times[1]),
        "disagreement": differ.double().mean().item(),
        "mean_exit_step_by_difficulty": {
            level: steps[levels == level].double().mean().item() for level in sorted(set(difficulty))
        },
    }
