"""The ways to answer: `Way` is a row of the race's table, and its model answers texts.

The model of a way is a `PolicyModel` (a model with exits, or an export, under a policy), a
`PlainModel` (the encoder without exits), a `ponder.Cascade`, or the `BlindMix`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ponder._utils.rows import Text, content_ids
from ponder._utils.seeds import uniform
from ponder.advice.specs import WaySpec
from ponder.calibration.records import Record
from ponder.cascade.stages import classes_of
from ponder.cascade.student import Student
from ponder.deploy.runtime import OnnxModel
from ponder.integrations.transformers import PonderForSequenceClassification
from ponder.integrations.transformers.reading import PlainClassifier
from ponder.policies import ExitPolicy
from ponder.running.loop import Answers
from ponder.running.source import stepped_part

__all__ = [
    "BlindMix",
    "ModelWithExits",
    "PlainModel",
    "PolicyModel",
    "SavableModel",
    "Way",
    "WayModel",
]


class LabelledAnswers(Protocol):
    """Answers with the names of their classes."""

    @property
    def labels(self) -> Sequence[str | None]:
        """Names of the predicted classes; None without an answer."""


class WayModel(Protocol):
    """The model of a way."""

    def predict(self, texts: Sequence[Text], /) -> LabelledAnswers:
        """Answer texts."""


class SavableModel(WayModel, Protocol):
    """The model of a way that can be recommended, which is written to a folder."""

    def save(self, folder: Path, /) -> None:
        """Write the model with its policy."""


@dataclass(frozen=True, eq=False)
class Way:
    """One way to answer, with its costs and its promise.

    Args:
        spec: What it consists of.
        model: The model, which answers texts by `predict`.
        disagreement: Share of the certifying texts whose answer is not that of the model as it is.
        promise: Upper limit of the disagreement that is promised; NaN without a promise.
        accuracy: Share of the certifying texts with the right answer; NaN without labels.
        megabytes: Size of the deployed files.
        seconds: Seconds for a text in batches of 32: median, lowest and highest of the rounds.
        alone: Seconds for a text by itself: median and 95th percentile.
        speed_up: Seconds of the model as it is ÷ these, of the same rounds: median, lowest,
            highest.
    """

    spec: WaySpec
    model: WayModel
    disagreement: float
    promise: float
    accuracy: float
    megabytes: float
    seconds: tuple[float, float, float] = (math.nan,) * 3
    alone: tuple[float, float] = (math.nan,) * 2
    speed_up: tuple[float, float, float] = (math.nan,) * 3

    @property
    def name(self) -> str:
        """Its name."""
        return self.spec.name

    @property
    def needs_torch(self) -> bool:
        """Whether PyTorch must be deployed."""
        return not self.spec.int8


ModelWithExits: TypeAlias = PonderForSequenceClassification | OnnxModel
"""A classifier of texts whose rows exit early: a model in PyTorch, or an export."""


@dataclass(frozen=True, eq=False)
class PolicyModel:
    """A model with exits, or an export, under a policy."""

    model: ModelWithExits
    policy: ExitPolicy

    @property
    def classes(self) -> Sequence[str] | None:
        """Names of the classes."""
        return classes_of(self.model)

    @property
    def num_steps(self) -> int:
        """Number of steps of the model."""
        return int(stepped_part(self.model).num_steps)

    def predict(self, texts: Sequence[Text], policy: ExitPolicy | None = None) -> Answers:
        """Answer texts under the policy, or under another."""
        if policy is None:
            policy = self.policy
        return self.model.predict(texts, policy=policy)

    def record(self, texts: Sequence[Text]) -> Record:
        """Return the full-depth run over texts."""
        return self.model.record(texts)

    def save(self, folder: Path) -> None:
        """Write the model with the policy."""
        self.model.policy = self.policy
        if isinstance(self.model, OnnxModel):
            self.model.save(folder)
        else:
            self.model.save_pretrained(folder)


class PlainModel(PolicyModel):
    """The encoder of a model in PyTorch, as it runs without exits."""

    model: PonderForSequenceClassification

    def predict(self, texts: Sequence[Text], policy: ExitPolicy | None = None) -> Answers:
        """Answer texts at full depth, without the cost of heads and policies."""
        return PlainClassifier.of(self.model).predict(texts)


@dataclass(frozen=True)
class _Labels:
    """Answers of a mix: the names of the classes alone."""

    labels: list[str | None]


@dataclass(frozen=True, eq=False)
class BlindMix:
    """A rival of cascades: the student answers a share of the texts that is drawn blindly.

    Which texts it answers is a function of their contents, and not of any certainty.
    """

    student: Student
    model: PlainModel
    share: float

    def predict(self, texts: Sequence[Text]) -> LabelledAnswers:
        """Answer texts by the student or by the model."""
        drawn = self.drawn(texts)
        for_student = [str(texts[row]) for row in np.flatnonzero(drawn).tolist()]
        for_model = [texts[row] for row in np.flatnonzero(~drawn).tolist()]
        numbers = self.student.predict_proba(for_student).argmax(axis=1)
        labels = np.empty(len(texts), dtype=object)
        labels[drawn] = [self.student.classes[number] for number in numbers]
        labels[~drawn] = self.model.predict(for_model).labels
        return _Labels(labels.tolist())

    def drawn(self, texts: Sequence[Text]) -> NDArray[np.bool_]:
        """Return which texts the student answers, `(texts,)` bool."""
        return np.asarray(uniform(1, content_ids(texts)) < self.share)
