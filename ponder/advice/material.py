"""The material of a race: the texts in three parts, and the answers of the model to them.

One part teaches early heads and a student; the other two choose and certify. The model runs once
over all texts, and every way is chosen and certified on these recorded answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from ponder._utils.rows import Ints, Text, class_numbers
from ponder.advice.promises import Recorded
from ponder.cascade.stages import classes_of
from ponder.integrations.transformers import PonderForSequenceClassification
from ponder.integrations.transformers.exits import Progress, teach_heads
from ponder.integrations.transformers.reading import read_fine_tuned
from ponder.integrations.transformers.texts import max_positions, tokenize
from ponder.trajectory import Trajectory

__all__ = ["Material", "Progress"]


@dataclass(frozen=True, eq=False)
class Material:
    """The texts of a race, and the model with its answers to them.

    Args:
        model: The classifier, with early heads that were taught.
        classes: Names of its classes.
        distinct: Number of different texts.
        truncated: Number of texts that are longer than the model takes.
        teaching: Texts that teach, each once.
        taught: The full-depth run over them.
        taught_texts: The same, repeats included.
        others: Texts that choose and certify.
        recorded: The answers to these.
        certifying: Texts that certify.
        lengths: Numbers of tokens of all texts, `(texts,)`.
        certifying_lengths: Those of the certifying texts, `(certifying,)`.
        answers: Answers of the model to the certifying texts, numbers of classes, `(certifying,)`.
        labels: Right classes of the certifying texts, `(certifying,)`; None without labels.
    """

    model: PonderForSequenceClassification
    classes: Sequence[str]
    distinct: int
    truncated: int
    teaching: list[Text]
    taught: Trajectory
    taught_texts: list[Text]
    others: list[Text]
    recorded: Recorded
    certifying: list[Text]
    lengths: Ints
    certifying_lengths: Ints
    answers: Ints
    labels: Ints | None

    @classmethod
    def prepare(
        cls,
        source: str,
        texts: Sequence[Text],
        labels: Sequence[object] | None,
        *,
        seed: int,
        progress: Progress,
    ) -> Self:
        """Read the model, teach its early heads, and record its answers.

        Args:
            source: Folder or hub name of the classifier.
            texts: All texts.
            labels: Their right classes, or None.
            seed: Seed of the split.
            progress: Called while heads are taught.
        """
        model = read_fine_tuned(source)
        classes = classes_of(model) or ()
        encoded = tokenize(model.tokenizer, texts, max_positions(model.encoder))
        right: Ints | None = None
        if labels is not None:
            right = np.array(class_numbers(labels, classes))
        sides = teach_heads(model, encoded.rows, seed=seed, progress=progress)
        teaching, *choose_and_certify = sides.places
        others = np.concatenate(choose_and_certify)
        runs = (sides.choosing, sides.certifying)
        recorded = Recorded(
            ids=np.concatenate([np.asarray(run.row_ids) for run in runs]),
            exits=np.concatenate([np.asarray(run.outputs) for run in runs]),
            seed=seed,
            weights=sides.certifying.weights,
        )
        certifying_rows = recorded.sides.certifying
        certifying = others[certifying_rows]  # positions among all texts
        lengths = np.array([len(row["input_ids"]) for row in encoded.rows])
        if right is not None:
            right = right[certifying]
        return cls(
            model=model,
            classes=classes,
            distinct=sides.distinct,
            truncated=encoded.truncated,
            teaching=[texts[n] for n in teaching],
            taught=sides.taught,
            taught_texts=[texts[n] for n in sides.taught_rows],
            others=[texts[n] for n in others],
            recorded=recorded,
            certifying=[texts[n] for n in certifying],
            lengths=lengths,
            certifying_lengths=lengths[certifying],
            answers=recorded.exits[certifying_rows, -1].argmax(axis=-1),
            labels=right,
        )
