"""A setting: a task, a fine-tuned model, and texts on which the model was not trained.

The model is trained on the first rows of the shuffled training split. All later rows are used
without labels: 40% train early heads and the student, 20% choose exits and train the student, 40%
choose and certify. The labelled test split is only reported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import tasks
from benchmarks.finetuned.fine_tune import fine_tune
from benchmarks.finetuned.schedules import schedule
from benchmarks.pairs import texts_of
from ponder import split
from ponder.calibration.records import Record
from ponder.calibration.risks import OtherAnswers
from ponder.cascade import Cascade, Embeddings, Student
from ponder.integrations.transformers import PonderForSequenceClassification, fit_exits
from ponder.integrations.transformers.exits import distinct
from ponder.integrations.transformers.reading import PlainClassifier, read_classifier
from ponder.integrations.transformers.texts import tokenize
from ponder.policies import LastStep

__all__ = ["LabelledTexts", "Setting", "at_exits", "certified", "record_of"]

_SHARES = (0.4, 0.2, 0.4)  # as `fit_exits`
Floats = NDArray[Any]


@dataclass(frozen=True, eq=False)
class LabelledTexts:
    """The shuffled training split of a task, whose first rows train a model, and its test split.

    Args:
        names: Names of the classes.
        train: Texts of the training split, shuffled by seed.
        train_labels: Their classes, `(texts,)`.
        test: Texts of the test split.
        test_labels: Their classes, `(texts,)`.
        outside: The class of texts that are out of scope; None if the task has none.
    """

    names: list[str]
    train: list[str]
    train_labels: NDArray[Any]
    test: list[str]
    test_labels: NDArray[Any]
    outside: int | None

    @classmethod
    def read(
        cls, name: str, seed: int, folders: Mapping[str, Path | None], backbone: str
    ) -> LabelledTexts:
        """Read a task; the two sentences of a pair are joined as the backbone reads them."""
        task = tasks.get(name)
        test_split = task.dev_splits[0]
        splits = task.load(folders[task.folder_option], ("train", test_split))
        train = splits["train"].shuffle(seed=seed)
        test = splits[test_split]
        return cls(
            names=list(train.features["label"].names),
            train=texts_of(train, backbone),
            train_labels=np.array(train["label"]),
            test=texts_of(test, backbone),
            test_labels=np.array(test["label"]),
            outside=task.outside,
        )


@dataclass(eq=False)
class Setting:
    """A task with its model, training texts of the model, other texts and test texts."""

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
        cls,
        name: str,
        backbone: str,
        seed: int,
        folders: Mapping[str, Path | None],
        work: Path,
        most: int,
    ) -> Setting:
        """Read the task; read the model `<work>/<task>-<backbone>-s<seed>/plain`, or train it."""
        task = tasks.get(name)
        data = LabelledTexts.read(name, seed, folders, backbone)
        texts = data.train
        names = data.names
        training = schedule(task.name, backbone, len(texts))
        many = training.rows
        folder = work / f"{task.name.lower()}-{Path(backbone).name}-s{seed}" / "plain"
        if not (folder / "config.json").exists():
            fine_tune(
                backbone,
                texts[:many],
                data.train_labels[:many].tolist(),
                names,
                folder,
                epochs=training.epochs,
                lr=training.lr,
                seed=seed,
                bf16=True,
            )
        model = read_classifier(folder)
        learned = set(texts[:many])
        rest = [text for text in texts[many:] if text not in learned][:most]
        first, ids = distinct(tokenize(model.tokenizer, rest, 512).rows)
        own = [rest[n] for n in first]
        return cls(
            task,
            names,
            texts[:many],
            own,
            ids,
            data.test,
            data.test_labels,
            model,
            seed,
        )

    @cached_property
    def sides(self) -> tuple[NDArray[Any], ...]:
        """Places of the texts that train, that choose exits, and that choose and certify."""
        return tuple(np.asarray(side) for side in split(self.ids, _SHARES, self.seed))

    def fit(self) -> None:
        """Fit early heads."""
        fit_exits(self.model, self.texts, disagreement=0.01, seed=self.seed)

    def record(self, texts: Sequence[str]) -> Floats:
        """Return the outputs of every step, `(texts, steps, classes)`."""
        self.model.policy = LastStep()
        outputs: Floats = np.asarray(self.model.record(list(texts)).outputs, dtype=np.float64)
        return outputs

    def student(self, texts: Sequence[str], answers: Any) -> Student:
        """Train a student on texts with the class numbers that the model answers."""
        embeddings = Embeddings.of(self.model)
        return Student.fit(
            list(texts), [self.names[n] for n in answers], embeddings=embeddings, seed=self.seed
        )

    def logs(self, student: Student, texts: Sequence[str]) -> Floats:
        """Return a student's log-probabilities of all classes, `(texts, 1, classes)`, as one step."""
        spread = np.full((len(texts), 1, len(self.names)), 1e-12)
        spread[:, 0, [self.names.index(name) for name in student.classes]] += student.predict_proba(
            texts
        )
        logs: Floats = np.log(spread)
        return logs

    def scores(self, answers: Any, full: Any) -> dict[str, float]:
        """Return the disagreement with the full model and the accuracy, in scope and out of scope."""
        same = answers == full
        right = answers == self.labels
        made = dict[str, float]()
        for name, rows in (("", self.inside), ("_outside", ~self.inside)):
            if rows.any():
                made |= {
                    f"other{name}": float(1.0 - same[rows].mean()),
                    f"accuracy{name}": float(right[rows].mean()),
                }
        return made

    @cached_property
    def inside(self) -> NDArray[Any]:
        """The test texts that are not out of scope, `(texts,)` bool."""
        return np.array([label != self.task.outside for label in self.labels.tolist()])

    @cached_property
    def plain(self) -> PlainClassifier:
        """The fine-tuned model without exits."""
        return PlainClassifier.of(self.model)


def certified(
    outputs: Floats, level: float, *, cost: float = 30.0, reference: Any = None, seed: int = 0
) -> Any:
    """Choose and certify a cascade on recorded answers of student and model; return its report.

    The promise compares with the `reference`, class numbers `(rows,)`; with the last step if None.
    """
    stages: list[Any] = [lambda texts: None, lambda texts: None]
    cascade = Cascade(stages, (1.0, cost), classes=[str(n) for n in range(outputs.shape[-1])])
    record = replace(record_of(outputs), labels=reference)
    return cascade.certify(
        record, risk="disagreement" if reference is None else OtherAnswers(), level=level, seed=seed
    )


def record_of(outputs: Floats) -> Record:
    """Return recorded answers as a record."""
    return Record(outputs, None, np.arange(len(outputs)), task="classification")


def at_exits(outputs: Floats, policy: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return exit steps and answers under a policy, `(rows,)` each."""
    steps = record_of(outputs).exit_steps(policy)
    return steps, outputs[np.arange(len(steps)), steps - 1].argmax(-1)
