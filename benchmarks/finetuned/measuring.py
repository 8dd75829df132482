"""Fine-tune on some training texts, fit exits on others, and evaluate both on the test texts.

Nothing is chosen on the reported texts, which are only answered: those that fit the exits, without
their labels, are training texts on which the model was not fine-tuned.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import tasks
from benchmarks.command_line import bar
from benchmarks.environment import environment
from benchmarks.files import write_json
from benchmarks.finetuned.fine_tune import fine_tune
from ponder.errors import ArgumentError
from ponder.integrations.transformers import ExitReport, PonderForSequenceClassification, fit_exits
from ponder.policies import LastStep

__all__ = ["give_exits", "on_fresh", "run"]

_ROUNDS = 3


def give_exits(
    plain: Path, texts: Sequence[str], out: Path, **options: Any
) -> tuple[PonderForSequenceClassification, ExitReport]:
    """Give the fine-tuned model in `plain` exits by texts without labels, and save it in `out`.

    Args:
        plain: The folder of the plain model.
        texts: Texts like those that it will be asked about.
        out: The folder of the model with exits.
        options: Arguments of `fit_exits`.
    """
    model = PonderForSequenceClassification.from_finetuned(str(plain))
    with bar("answering", len(texts)) as advance:
        done = 0

        def note(phase: str, now: int, total: int) -> None:
            nonlocal done
            if phase != "train":
                advance(now - done if now > done else now)
                done = now if now < total else 0

        report = fit_exits(model, list(texts), progress=note, **options)
    model.save_pretrained(out)
    return model, report


def on_fresh(
    model: PonderForSequenceClassification,
    texts: Sequence[str],
    labels: Sequence[int],
    rounds: int = _ROUNDS,
) -> dict[str, Any]:
    """Return accuracy, disagreement and seconds of the plain model and of the exits on fresh texts.

    Seconds are the least of some rounds, in which both are timed in turn.
    """
    seconds: dict[str, list[float]] = {"plain": [], "exits": []}
    for _ in range(rounds):
        for name, policy in (("plain", LastStep()), ("exits", None)):
            start = time.perf_counter()
            answers = model.predict(list(texts), policy=policy)
            seconds[name].append(time.perf_counter() - start)
            if name == "plain":
                full = answers.outputs.argmax(-1).numpy()
    found = answers.outputs.argmax(-1).numpy()
    truth = np.asarray(labels)
    return {
        "rows": len(truth),
        "plain_accuracy": float((full == truth).mean()),
        "exit_accuracy": float((found == truth).mean()),
        "disagreement": float((found != full).mean()),
        "mean_exit_step": float(answers.exit_step.double().mean()),
        "seconds_plain": min(seconds["plain"]),
        "seconds_exits": min(seconds["exits"]),
        "exit_steps": answers.exit_step.tolist(),
    }


def run(
    name: str,
    backbone: str,
    settings: Mapping[str, Any],
    folders: Mapping[str, Path | None],
    work: Path,
    out: Path,
) -> dict[str, Any]:
    """Measure one task, and write `<out>/<task>-<backbone>-exits-s<seed>.json`.

    Args:
        name: A task of single texts with classes.
        backbone: The backbone, as for `benchmarks.backbones.resolve`.
        settings: `train`, `texts`, `epochs`, `lr`, `bf16`, `disagreement`, `seed`.
        folders: The folders of data, by the option that names each.
        work: Folder of models.
        out: Folder of results.
    """
    task = tasks.get(name)
    seed = int(settings["seed"])
    splits = task.load(folders[task.folder_option], ("train", task.dev_splits[0]))
    source = splits["train"].shuffle(seed=seed)
    test = splits[task.dev_splits[0]]
    if task.kind != "classification" or "sentence2" in source.column_names:
        raise ArgumentError(
            "task", expected="single texts with classes", got=task.name, remedy="Choose SST-2, say."
        )
    train = source.select(range(min(settings["train"], len(source))))
    rest = source.select(range(len(train), min(len(train) + settings["texts"], len(source))))
    stem = f"{task.name.lower()}-{Path(backbone).name}-exits-s{seed}"
    names = list(source.features["label"].names)
    training = {key: settings[key] for key in ("epochs", "lr", "seed", "bf16")}
    fine_tune(
        backbone,
        list(train["sentence1"]),
        list(train["label"]),
        names,
        work / stem / "plain",
        **training,
    )
    options = {"disagreement": settings["disagreement"], "confidence": 0.95, "seed": seed}
    model, report = give_exits(
        work / stem / "plain", list(rest["sentence1"]), work / stem / "exits", **options
    )
    measured = on_fresh(model, list(test["sentence1"]), list(test["label"]))
    del measured["exit_steps"]
    result = {
        "task": task.name,
        "backbone": backbone,
        "settings": dict(settings),
        "recipe": "exits",
        "plain_fine_tuned_on": len(train),
        "exits": {
            **{key: value for key, value in report.to_dict().items() if key != "exit_shares"},
            "speed_up_in_steps": report.speed_up,
            "speed_up_in_seconds": measured["seconds_plain"] / measured["seconds_exits"],
        },
        "test": measured,
        "environment": environment(torch.device("cpu")),
    }
    write_json(out / f"{stem}.json", result)
    return result
