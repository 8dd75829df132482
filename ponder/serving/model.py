"""`ServedModel`: all that a service needs to know of a model, whatever runs it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ponder._utils.validation import check_type
from ponder.errors import ArgumentError
from ponder.parts.tasks import Task
from ponder.policies import ExitPolicy
from ponder.serving.batcher import Batcher
from ponder.serving.limits import Limits

__all__ = ["ServedModel", "Text", "Tokens", "check_request", "check_texts", "check_tokens"]

Text = str | tuple[str, str]
"""A text, or a pair of texts."""


def check_request(texts: Sequence[Text]) -> None:
    """Refuse what are not texts; one text alone is a sequence of its letters, which would be answered.

    Args:
        texts: The texts of a request.

    Raises:
        ArgumentError: They are no list, none at all, or something else is among them.
    """
    remedy = "Pass a list: ['a text', ('a text', 'and its pair')], say."
    if isinstance(texts, str) or not isinstance(texts, Sequence) or not texts:
        raise ArgumentError("texts", expected="one or more texts, in a list", got=f"{texts!r:.80}", remedy=remedy)
    for text in texts:
        if not _is_text(text):
            raise ArgumentError("texts", expected="texts, or pairs of texts", got=f"{text!r:.80}", remedy=remedy)


def _is_text(text: object) -> bool:
    pair = isinstance(text, tuple | list) and len(text) == 2 and all(isinstance(side, str) for side in text)
    return pair or isinstance(text, str)


def check_texts(texts: Sequence[Text], columns: Sequence[str] = ()) -> None:
    """Refuse single texts beside pairs, which no tokenizer takes at once, and what exits were not fitted to.

    Args:
        texts: The texts of a request.
        columns: Names of the one or two columns that the exits were fitted to, which their promise is about; empty
            where nobody knows.

    Raises:
        ArgumentError: There are both; or single texts where the exits were fitted to pairs, or the other way.
    """
    if len({isinstance(text, str) for text in texts}) > 1:
        raise ArgumentError("texts", expected="single texts, or pairs", got="both", remedy="Send two requests.")
    if columns and texts and isinstance(texts[0], str) != (len(columns) == 1):
        kinds = ("single texts", "pairs") if len(columns) == 1 else ("pairs", "single texts")
        raise ArgumentError(
            "texts",
            expected=f"{kinds[0]}, to which the exits were fitted ({', '.join(columns)})",
            got=kinds[1],
            remedy="Send such, or fit exits to the others: ponder exits MODEL --texts FILE --column NAME.",
        )


def check_tokens(ids: Iterable[Sequence[int]]) -> None:
    """Refuse texts in which the tokenizer found nothing.

    Args:
        ids: The token ids of each text.

    Raises:
        ArgumentError: One has none.
    """
    if not all(len(each) for each in ids):
        raise ArgumentError("texts", expected="texts with a token in them", got="an empty one", remedy="Leave it out.")


@dataclass(frozen=True, eq=False)
class Tokens:
    """What a tokenizer made of texts.

    Args:
        examples: What the batcher takes, one a text.
        truncated: Whether each text was longer than the model takes, and was cut.

    Example:
        >>> texts: list[Text] = ["a text", ("a text", "and its pair")]
        >>> tokens = served.tokenize(texts[:1])
        >>> len(tokens.examples), tokens.truncated
        (1, [False])
    """

    examples: Sequence[Any]
    truncated: Sequence[bool]


@dataclass(frozen=True, eq=False)
class ServedModel:
    """A model that can be served.

    Args:
        num_steps: N.
        policy: The exit policy, with its certificate where it has one.
        task: What outputs mean.
        labels: Names of the classes, each another; empty where outputs are numbers.
        tokenize: Texts to examples. It is called by one thread at a time.
        start: Makes the batcher.
        check: Raises where a policy cannot serve the model.
        folder: Where it was read from, or None.
        digests: SHA-256 of the folder's files when it was read, by name; see `ponder.serving.watching`.

    Example:
        >>> served.num_steps, served.labels
        (4, ('no', 'maybe', 'yes'))
        >>> served.tokenize(["a text"]).truncated
        [False]
    """

    num_steps: int
    policy: ExitPolicy
    task: Task
    labels: tuple[str, ...]
    tokenize: Callable[[Sequence[Text]], Tokens]
    start: Callable[[Limits], Batcher]
    check: Callable[[ExitPolicy], object]
    folder: Path | None = None
    digests: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        check_type("task", self.task, Task, remedy="Name the model's task, or pass ponder.tasks.Classification().")
        if self.task.per_position:
            raise ArgumentError(
                "task",
                expected="one answer a text",
                got=f"{self.task.name!r}, which answers at each position",
                remedy="Call the model itself: model.predict(rows).",
            )
        if len(set(self.labels)) < len(self.labels):  # an answer has a score for each name
            names = list(self.labels)
            raise ArgumentError("labels", expected="a name of its own for each class", got=names, remedy="Rename some.")
