"""A measurement: fine-tune on some training texts, fit exits on others, and look at both on the texts with labels.

Nothing is chosen on the reported texts, which are only answered: those that fit the exits, without their labels, are
training texts on which the model was not fine-tuned; or, where a kept model is given, which may have learned from all
of them, a part of the split that is reported otherwise.
"""

from __future__ import annotations

import csv
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import tasks
from benchmarks.checksum import digest
from benchmarks.command_line import check_free, check_writable
from benchmarks.environment import environment
from benchmarks.finetuned.training import fine_tune, fine_tune_head
from benchmarks.terminal import hide_bars
from ponder._utils.columns import EXPORT_REPORT
from ponder._utils.files import digest_of, read_json, write_json
from ponder._utils.validation import check_int, check_real, check_share
from ponder.cli import exits, export
from ponder.errors import ArgumentError
from ponder.export import Answers, OnnxModel
from ponder.integrations.transformers import FinetunedClassifier
from ponder.integrations.transformers.tokenizing import load_tokenizer, max_positions, tokenize
from ponder.policies import LastStep

__all__ = ["run"]


def run(
    name: str,
    backbone: str,
    settings: Mapping[str, Any],
    folders: Mapping[str, Path | None],
    work: Path,
    out: Path,
    *,
    deep: bool,
    int8: bool,
    kept: Path | None = None,
) -> dict[str, Any]:
    """Measure one task, and write `<out>/<task>-<backbone>-<recipe>-s<seed>.json`.

    Args:
        name: A task of single texts with classes.
        backbone: The backbone, as for `benchmarks.backbones.resolve`.
        settings: `train`, `texts`, `epochs`, `lr`, `bf16`, `disagreement`, `seed`.
        folders: The folders of data, by the option that names each.
        work: Folder of models; a plain one that is there is used again.
        out: Folder of results.
        deep: Let the encoder learn too.
        int8: Export to int8 as well.
        kept: A model that `benchmarks.glue` kept, whose encoder is taken as it is.

    Raises:
        ArgumentError: A task of pairs or numbers.
        DataError: Its data cannot be read.
    """
    check_real("--lr", settings["lr"], 0.0, 1.0, open_low=True)
    check_share("--disagreement", settings["disagreement"])
    task, seed = tasks.get(name), int(settings["seed"])
    if task.kind != "classification":
        raise ArgumentError("task", expected="classes", got=f"{task.name}, {task.kind}", remedy="Choose SST-2, say.")
    check_writable(out)
    check_writable(work, "--work")
    splits = task.load(folders[task.folder_option], ("train", task.dev_splits[0]))
    source = splits["train"].shuffle(seed=seed)
    if "sentence2" in source.column_names:
        raise ArgumentError("task", expected="single texts", got=f"{task.name}, of pairs", remedy="Choose SST-2, say.")
    hide_bars()
    train = source.select(range(min(settings["train"], len(source))))
    rest = source.select(range(len(train), min(len(train) + settings["texts"], len(source))))
    test = splits[task.dev_splits[0]]
    if kept is not None:
        check_int("--texts", settings["texts"], 50, len(test) - 1)
        test = test.shuffle(seed=seed)
        rest, test = test.select(range(settings["texts"])), test.select(range(settings["texts"], len(test)))
    names = list(source.features["label"].names)
    stem = f"{task.name.lower()}-{Path(backbone).name}{'' if kept is None else '-kept'}"
    made_by = {
        "backbone": backbone,
        **{name: settings[name] for name in ("train", "epochs", "lr", "bf16")},
        "kept": None if kept is None else {path.name: digest_of(path) for path in sorted(kept.glob("*.safetensors"))},
        "data": digest({"texts": list(train["sentence1"]), "labels": list(train["label"])}),
    }
    plain = work / f"{stem}-s{seed}-{digest(made_by)[:10]}" / "plain"  # of these settings, and of no others
    path = out / f"{stem}-{'exits-deep' if deep else 'exits'}-s{seed}.json"
    check_free(path, {"settings": dict(settings), "backbone": backbone, "kept": None if kept is None else kept.name})
    if not int8 and path.is_file() and "int8" in read_json(path):
        raise ArgumentError(
            "--int8",
            expected=f"the option, beside a result in {path.name} that has its numbers",
            got="none, so that they would be gone",
            remedy="Pass --int8, or another --out.",
        )
    if not plain.is_dir():
        part = plain.with_name("plain.part")  # a run that is killed leaves no half of a model
        shutil.rmtree(part, ignore_errors=True)
        if kept is not None:
            fine_tune_head(kept, train["sentence1"], train["label"], names, part, seed=seed)
        else:
            fine_tune(
                backbone,
                train["sentence1"],
                train["label"],
                names,
                part,
                epochs=settings["epochs"],
                lr=settings["lr"],
                seed=seed,
                progress=sys.stderr.isatty(),
                bf16=settings["bf16"],
            )
        part.rename(plain)
    texts = plain.parent / "texts.csv"
    with texts.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["text"], *([text.replace("\n", " ")] for text in rest["sentence1"])])
    recipe = "exits-deep" if deep else "exits"
    folder = plain.parent / recipe
    options = {"disagreement": settings["disagreement"], "confidence": 0.95, "speed_up": None, "seed": seed}
    card = exits.run(str(plain), texts, folder, [], None, options, deep=deep, as_json=False)
    told, full = _on_test(plain, folder, test["sentence1"], test["label"])
    result: dict[str, Any] = {
        "task": task.name,
        "backbone": backbone,
        "settings": dict(settings),
        "recipe": recipe,
        "plain_fine_tuned_on": len(train),
        "kept": None if kept is None else kept.name,
        "exits": {key: value for key, value in card.items() if key != "exit_shares"},
        "test": told,
        "environment": environment(torch.device("cpu")),
    }
    if int8:
        write_json(path, result)  # which stands where int8 fails
        target = plain.parent / f"{recipe}-int8"
        export.run(
            folder, target, texts, [], int8=True, disagreement=settings["disagreement"], confidence=0.95, as_json=False
        )
        exported = OnnxModel(target, threads=torch.get_num_threads())
        found = exported.predict(test["sentence1"])
        result["int8"] = {**read_json(target / EXPORT_REPORT), "test": _measured(found, full, test["label"])}
    write_json(path, result)
    return result


def _on_test(plain: Path, folder: Path, texts: list[str], labels: list[int]) -> tuple[dict[str, Any], NDArray[Any]]:
    """What the exits come to on the reported split, and the plain model's answers there."""
    model, tokenizer = FinetunedClassifier.from_pretrained(folder), load_tokenizer(str(folder))
    own = FinetunedClassifier.from_finetuned(plain)
    rows = tokenize(tokenizer, [(text,) for text in texts], max_positions(model)).rows
    full = own.predict(rows, policy=LastStep()).outputs.argmax(-1).numpy()
    found = model.predict(rows)
    return _measured(Answers(found.outputs.numpy(), found.exit_step.numpy()), full, labels), full


def _measured(found: Answers, full: NDArray[Any], labels: list[int]) -> dict[str, Any]:
    """Accuracy of the plain model and to the exits, how often their answers differ, and the mean exit step."""
    answers, truth = found.outputs.argmax(-1), np.array(labels)
    return {
        "rows": len(truth),
        "plain_accuracy": float((full == truth).mean()),
        "exit_accuracy": float((answers == truth).mean()),
        "disagreement": float((answers != full).mean()),
        "mean_exit_step": float(found.exit_step.mean()),
    }
