"""The demo: fine-tune a classifier, and run `ponder advise` on texts on which it was not trained.

Where Banking77 is at hand these are its 77 intents; else reviews that are generated here (the
graded task `negation`), which praise or blame something under none to three nested negations: most
are easy, as in real traffic.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import graded, tasks
from benchmarks.command_line import hide_bars
from benchmarks.finetuned.fine_tune import fine_tune
from ponder.cli.commands import advise

__all__ = ["demo", "generated"]

SHARES = (0.60, 0.25, 0.10, 0.05)
"""How many reviews have none, one, two and three negations."""
TRAIN = 1600
TRAFFIC = 1500
GENERATED: dict[str, Any] = {"epochs": 3, "lr": 2e-4}
INTENTS: dict[str, Any] = {"epochs": 2, "lr": 3e-4, "bf16": True}
INTENTS_TRAIN = 4000
INTENTS_OTHERS = 2000


def demo(
    out: Path,
    *,
    data: Path | None = None,
    backbone: str = "minilm",
    scale: float = 1.0,
    seed: int = 0,
) -> None:
    """Fine-tune, unless `<out>/plain` has a model, advise, and write `<out>/winner` with its report.

    Args:
        out: Folder of the model, its texts and the winner.
        data: Folder with Banking77; reviews are generated where None.
        backbone: An embedded backbone, a folder, or a hub name.
        scale: Share of the default number of texts.
        seed: Seed of the texts and of training.
    """
    hide_bars()
    if data is None:
        train, texts = (
            generated(part, round(scale * size), seed)
            for part, size in (("train", TRAIN), ("dev", TRAFFIC))
        )
        names = list(graded.get("negation").labels)
        what = "generated reviews"
        options = GENERATED
    else:
        rows = tasks.get("Banking77").load(data, ("train",))["train"].shuffle(seed=seed)
        cut, end = (round(scale * size) for size in (INTENTS_TRAIN, INTENTS_TRAIN + INTENTS_OTHERS))
        sides = (rows.select(range(cut)), rows.select(range(cut, end)))
        train, texts = ((list(side["sentence1"]), list(side["label"])) for side in sides)
        names = list(rows.features["label"].names)
        what = "customers' questions (Banking77)"
        options = INTENTS
    print(
        f"A {backbone} is fine-tuned on {len(train[0])} {what}, "
        "and every way to make it cheaper is raced on "
        f"{len(texts[0])} others, each with a promise."
    )
    if not (out / "plain" / "config.json").exists():
        fine_tune(backbone, *train, names, out / "plain", seed=seed, **options)
    with (out / "texts.csv").open("w", newline="", encoding="utf-8") as file:
        rows = zip(texts[0], (names[label] for label in texts[1]), strict=True)
        csv.writer(file).writerows([("text", "label"), *rows])
    advise.run(
        str(out / "plain"),
        out / "texts.csv",
        out / "winner",
        column=["text"],
        labels="label",
        disagreement=0.02,
        seed=seed,
    )


def generated(split: str, size: int, seed: int) -> tuple[Sequence[str], Sequence[int]]:
    """Return generated reviews and their labels."""
    made = graded.traffic("negation", split, size, SHARES, seed)
    return list(made["sentence1"]), list(made["label"])
