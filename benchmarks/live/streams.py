"""Texts with the reference's answers, and the orders in which they come: without drift, and with drifts.

The reference is the gold labels, or a fine-tuned model, which answers all texts once.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModel, AutoTokenizer

from benchmarks.backbones import resolve
from ponder.integrations.transformers.reading import read_stage

__all__ = [
    "ADVERSARIES",
    "ADVERSARY",
    "SETTINGS",
    "TURNCOAT",
    "Corpus",
    "order_of",
    "read",
    "with_model",
]

ADVERSARY = "an adversary"
TURNCOAT = "an adversary made for B-PAC"
ADVERSARIES = (ADVERSARY, TURNCOAT)

SETTINGS: Mapping[str, Sequence[str]] = {
    "no drift": ("banking77", "clinc150"),
    "new classes after half": ("banking77", "clinc150"),
    "sorted by class": ("banking77", "clinc150"),
    "out of scope rising": ("clinc150",),
    "phrases then sentences": ("sst-2",),
    "tweets then videos then forums": ("wnut17",),
    ADVERSARY: ("banking77", "clinc150"),
    TURNCOAT: ("banking77", "clinc150"),
}
"""The settings, and the tasks in which each is possible. Adversaries act as the stream goes (`adversary.py`)."""
_OUT = "oos"


@dataclass(frozen=True, eq=False)
class Corpus:
    """Texts of a task.

    Args:
        texts: The texts.
        labels: Their gold labels, `(texts,)`, by which some orders sort.
        embeddings: Their embeddings by MiniLM, `(texts, 384)`, of length 1.
        answers: The reference's answers, `(texts,)`.
    """

    texts: Sequence[str]
    labels: NDArray[Any]
    embeddings: NDArray[np.float32]
    answers: NDArray[Any]

    @property
    def agreement(self) -> float:
        """The share of the texts on which the reference gives the gold label."""
        return float((self.answers == self.labels).mean())


def read(task: str, text_dir: Path, glue_dir: Path, cache: Path) -> Corpus:
    """Read a task with gold labels as its reference, and embed its texts once.

    The cache is a file for each task.
    """
    file = cache / f"{task}.npz"
    if not file.exists():
        texts, labels = _READERS[task](text_dir, glue_dir)
        cache.mkdir(parents=True, exist_ok=True)
        rows = np.array(texts, dtype=object)
        np.savez(file, texts=rows, labels=np.array(labels), emb=_embedded(texts))
    found = np.load(file, allow_pickle=True)
    return Corpus(found["texts"].tolist(), found["labels"], found["emb"], found["labels"])


def with_model(corpus: Corpus, task: str, folder: Path, cache: Path) -> Corpus:
    """Return a corpus whose reference is a fine-tuned model; its answers are a file of the cache.

    Args:
        corpus: The texts.
        task: The task.
        folder: The model, whose classes are numbered as `benchmarks.text` numbers them.
        cache: The folder of the cache.
    """
    file = cache / f"{task}-{folder.name}.npz"
    if not file.exists():
        names = np.unique(corpus.labels[corpus.labels != _OUT]).tolist()
        if _OUT in corpus.labels:
            names.append(_OUT)
        outputs = read_stage(folder).predict(corpus.texts, batch_size=64).outputs
        np.savez(file, answers=np.array(names)[outputs.argmax(1).numpy()])
    return replace(corpus, answers=np.load(file)["answers"])


def order_of(corpus: Corpus, setting: str, rows: int, seed: int) -> NDArray[np.intp]:
    """Return the texts of a stream, in their order."""
    draw = np.random.default_rng(seed)
    inside = draw.permutation(np.flatnonzero(corpus.labels != _OUT))
    if setting == "no drift":
        return np.asarray(inside[:rows])
    if setting == "sorted by class":
        names = draw.permutation(np.unique(corpus.labels[inside]))
        place = {name: number for number, name in enumerate(names)}
        chosen = inside[:rows]
        by_class = np.argsort([place[corpus.labels[row]] for row in chosen], kind="stable")
        return np.asarray(chosen[by_class])
    if setting == "new classes after half":
        names = draw.permutation(np.unique(corpus.labels[inside]))
        known = np.isin(corpus.labels[inside], names[: len(names) // 2])
        first = inside[known][: rows // 2]
        later = np.setdiff1d(inside, first)
        return np.concatenate([first, draw.permutation(later)[: rows - len(first)]])
    if setting == "out of scope rising":
        outside = draw.permutation(np.flatnonzero(corpus.labels == _OUT))
        chances = np.linspace(0.0, 2.0 * len(outside) / rows, rows)
        out = np.flatnonzero(draw.random(rows) < chances)[: len(outside)]
        order = inside[:rows].copy()
        order[out] = outside[: len(out)]
        return order
    if setting == "tweets then videos then forums":
        return np.concatenate(
            [draw.permutation(side) for side in np.split(np.arange(len(corpus.texts)), _WNUT_ENDS)]
        )
    short = np.array([len(text.split()) <= 6 for text in corpus.texts])
    sides = (np.flatnonzero(short), np.flatnonzero(~short))
    return np.concatenate([draw.permutation(side)[: rows // 2] for side in sides])


def _banking77(text_dir: Path, glue_dir: Path) -> tuple[list[str], list[str]]:
    rows = list[dict[str, str]]()
    for name in ("train", "test"):
        with (text_dir / "banking77" / f"{name}.csv").open(encoding="utf-8") as file:
            rows += list(csv.DictReader(file))
    return [row["text"] for row in rows], [row["category"] for row in rows]


def _clinc150(text_dir: Path, glue_dir: Path) -> tuple[list[str], list[str]]:
    data = json.loads((text_dir / "clinc150" / "data_full.json").read_text())
    sides = ("train", "val", "test", "oos_train", "oos_val", "oos_test")
    rows = [row for side in sides for row in data[side]]
    return [row[0] for row in rows], [row[1] for row in rows]


def _sst2(text_dir: Path, glue_dir: Path) -> tuple[list[str], list[str]]:
    lines = (glue_dir / "SST-2" / "train.tsv").read_text(encoding="utf-8").splitlines()[1:]
    known = dict(line.strip().split("\t") for line in lines)
    known = {text.strip(): label for text, label in known.items()}
    draw = np.random.default_rng(0)
    short = [text for text in known if len(text.split()) <= 6]
    long = [text for text in known if len(text.split()) >= 14]
    chosen = [texts[n] for texts in (short, long) for n in draw.permutation(len(texts))[:9000]]
    return chosen, [known[text] for text in chosen]


def _wnut17(text_dir: Path, glue_dir: Path) -> tuple[list[str], list[str]]:
    texts = list[str]()
    labels = list[str]()
    for name in ("train", "dev", "test"):
        blocks = (text_dir / "wnut17" / f"{name}.conll").read_text("utf-8")
        for block in re.split(r"\n\s*\n", blocks.strip()):
            tokens = [line.split("\t") for line in block.strip().splitlines()]
            texts.append(" ".join(token[0] for token in tokens))
            labels.append("entity" if any(token[-1] != "O" for token in tokens) else "none")
    return texts, labels


_WNUT_ENDS = (3394, 4403)
"""Where the tweets end, and the videos."""
_READERS = {"banking77": _banking77, "clinc150": _clinc150, "sst-2": _sst2, "wnut17": _wnut17}


def _embedded(texts: Sequence[str]) -> NDArray[np.float32]:
    folder = resolve("minilm")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    made = np.zeros((len(texts), model.config.hidden_size), dtype=np.float32)
    for start in range(0, len(texts), 128):
        rows = order[start : start + 128]
        options: dict[str, Any] = {"padding": True, "truncation": True, "max_length": 64}
        batch = tokenizer([texts[row] for row in rows], return_tensors="pt", **options)
        with torch.inference_mode():
            hidden = model(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(2)
        mean = (hidden * mask).sum(axis=1) / mask.sum(axis=1)
        made[rows] = torch.nn.functional.normalize(mean, dim=1).numpy()
    return made
