"""A setting: a task, a fine-tuned model, texts that it never saw, and all that its steps answer to them.

The model learns on the first rows of the shuffled training split. All later rows are texts without labels: 40% teach
early heads and the student, 20% choose exits and teach the student, 40% choose and certify. The labelled test split is
only reported.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import tasks
from benchmarks.finetuned.fine_tune import fine_tune
from ponder import split
from ponder.cascade import Embeddings, Student
from ponder.integrations.transformers import PonderForSequenceClassification, fit_exits
from ponder.integrations.transformers.exits import distinct
from ponder.integrations.transformers.reading import read_classifier
from ponder.integrations.transformers.texts import tokenize
from ponder.policies import LastStep

__all__ = ["Setting", "Steps", "longest_first", "softmax"]

TRAINING = {"Banking77": (5000, 5), "CLINC150": (6000, 4), "SST-2": (8000, 2), "MRPC": (1800, 4)}
"""By task, the rows that the model learns on, and the epochs."""
_SEPARATORS = {"minilm": " [SEP] ", "mpnet": " </s></s> "}
_RATES = {"minilm": 2e-4, "mpnet": 5e-5}
_SHARES = (0.4, 0.2, 0.4)  # as `fit_exits`
Floats = NDArray[Any]


class Steps:
    """A model whose answers were recorded, as a stage: its steps by text, or the last of them alone."""

    def __init__(self, texts: Sequence[str], outputs: Floats, policy: Any = None) -> None:
        self._place, self._outputs, self.policy = {text: n for n, text in enumerate(texts)}, outputs, policy
        self.num_steps = outputs.shape[1]

    def record(self, texts: Sequence[str]) -> Steps:
        """Return the steps of some texts."""
        return Steps(texts, self._outputs[[self._place[text] for text in texts]])

    def predict(self, texts: Sequence[str], policy: Any = None) -> Any:
        """Return the outputs at full depth."""
        return _Last(self.record(texts)._outputs[:, -1])

    @property
    def outputs(self) -> Floats:
        """The outputs, `(texts, steps, classes)`."""
        return self._outputs


@dataclass(frozen=True, eq=False)
class _Last:
    outputs: Floats


@dataclass(eq=False)
class Setting:
    """A task with its model, whose early heads are fitted when they are first asked for.

    Args:
        task: The task.
        names: Names of the classes.
        learned: Texts that the model learned on.
        texts: Distinct texts that it never saw, with `ids`.
        ids: Row ids of these.
        test: Texts with labels, for reports.
        labels: Their classes.
        model: The model.
        seed: Seed of everything.
    """

    task: tasks.Task
    names: list[str]
    learned: list[str]
    texts: list[str]
    ids: NDArray[Any]
    test: list[str]
    labels: NDArray[Any]
    model: PonderForSequenceClassification
    seed: int

    @classmethod
    def read(
        cls, name: str, backbone: str, seed: int, folders: Mapping[str, Path | None], work: Path, most: int
    ) -> Setting:
        """Read the task, and read or fine-tune the model `<work>/<task>-<backbone>-s<seed>/plain`."""
        task = tasks.get(name)
        splits = task.load(folders[task.folder_option], ("train", task.dev_splits[0]))
        source, test = splits["train"].shuffle(seed=seed), splits[task.dev_splits[0]]
        texts, names = _texts(source, backbone), list(source.features["label"].names)
        many, epochs = TRAINING.get(task.name, (len(texts) // 2, 3))
        folder = work / f"{task.name.lower()}-{Path(backbone).name}-s{seed}" / "plain"
        if not (folder / "config.json").exists():
            options: Any = {"lr": _RATES.get(backbone, 5e-5), "seed": seed, "bf16": True}
            epochs = max(2, epochs - 1) if backbone == "mpnet" else epochs
            fine_tune(backbone, texts[:many], list(source["label"])[:many], names, folder, epochs=epochs, **options)
        model = read_classifier(folder)
        rest = texts[many : many + most]
        first, ids, _ = distinct(tokenize(model.tokenizer, rest, 512).rows)
        own = [rest[n] for n in first]
        return cls(task, names, texts[:many], own, ids, _texts(test, backbone), np.array(test["label"]), model, seed)

    @cached_property
    def sides(self) -> tuple[NDArray[Any], ...]:
        """The texts that teach, that choose exits, and that choose and certify."""
        return tuple(np.asarray(side) for side in split(self.ids, _SHARES, self.seed))

    def fit(self, level: float) -> float:
        """Fit early heads; return the seconds that it took."""
        start = time.perf_counter()
        fit_exits(self.model, self.texts, disagreement=level, seed=self.seed)
        return time.perf_counter() - start

    def record(self, texts: Sequence[str]) -> Floats:
        """Return the outputs of every step, `(texts, steps, classes)`."""
        self.model.policy = LastStep()
        return np.asarray(self.model.record(list(texts)).outputs, dtype=np.float64)

    def student(self, texts: Sequence[str], answers: Any) -> Student:
        """Teach a student the numbers of the model's answers."""
        fast: Any = self.model.tokenizer
        matrix = self.model.encoder.get_input_embeddings().weight.detach().float().numpy()
        embeddings = Embeddings(fast.backend_tokenizer.to_str(), np.ascontiguousarray(matrix))
        return Student.fit(list(texts), [self.names[n] for n in answers], embeddings=embeddings, seed=self.seed)

    def probabilities(self, student: Student, texts: Sequence[str]) -> Floats:
        """Return a student's probabilities of all classes, `(texts, classes)`."""
        spread = np.zeros((len(texts), len(self.names)))
        spread[:, [self.names.index(name) for name in student.classes]] = student.predict_proba(texts)
        return spread

    def scores(self, answers: Any, full: Any) -> dict[str, float]:
        """Return other answers than those of the model as it is, and accuracies, out of scope apart."""
        answers, outside = np.asarray(answers), self.labels == self.task.outside
        right = answers == self.labels
        found = {"other": float((answers != full).mean()), "accuracy": float(right[~outside].mean())}
        return found | ({"accuracy_outside": float(right[outside].mean())} if outside.any() else {})

    def plain(self, texts: Sequence[str], batch_size: int = 32) -> NDArray[Any]:
        """Answer as anyone would: the fine-tuned encoder as it is, in batches of similar length."""
        tokenizer: Any = self.model.tokenizer
        order, answers = longest_first(texts), np.zeros(len(texts), dtype=int)
        with torch.inference_mode():
            for start in range(0, len(order), batch_size):
                places = order[start : start + batch_size]
                batch = tokenizer([texts[n] for n in places], padding=True, truncation=True, return_tensors="pt")
                known = {name: batch[name] for name in batch if name in self.model.adapter.inputs}
                answers[places] = self.model.encoder(**known).logits.argmax(-1).numpy()
        return answers


def longest_first(texts: Sequence[str]) -> list[int]:
    """Return the places of texts, the longest first."""
    return sorted(range(len(texts)), key=lambda n: -len(texts[n]))


def softmax(outputs: Floats) -> Floats:
    """Return probabilities of logits."""
    powers = np.exp(outputs - outputs.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))


def _texts(rows: Any, backbone: str) -> list[str]:
    """A pair is one text, with the separator that the tokenizer reads."""
    first = list(rows["sentence1"])
    if "sentence2" not in rows.column_names:
        return first
    between = _SEPARATORS.get(backbone, " [SEP] ")
    return [one + between + other for one, other in zip(first, rows["sentence2"], strict=True)]
