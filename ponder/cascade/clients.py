"""Clients of other models: a server with OpenAI's interface, and two pipelines of Transformers."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol, TypedDict
from urllib.request import Request, urlopen

import numpy as np

from ponder._utils.arrays import Floats
from ponder.cascade.stages import Input
from ponder.errors import PonderError

__all__ = ["ChatLabels", "DecisionStage", "PipelineStage"]

_PROMPT = "Classify the text. Answer with one of these labels and nothing else:\n{labels}"


class ChatLabels:
    """A function from texts to labels that calls a server with `POST /chat/completions`.

    Args:
        model: Name of the model.
        labels: The labels from which it chooses.
        base_url: Address of the server, up to `/v1`.
        key: The API key; by default the environment variable `OPENAI_API_KEY`.
        timeout: Limit of the seconds of an answer.
    """

    def __init__(
        self,
        model: str,
        labels: Sequence[str],
        base_url: str = "https://api.openai.com/v1",
        key: str | None = None,
        timeout: float = 60.0,
    ) -> None:
        self.model = model
        self.labels = tuple(labels)
        self.timeout = timeout
        self._address = f"{base_url.rstrip('/')}/chat/completions"
        if key is None:
            key = os.environ.get("OPENAI_API_KEY", "")
        self._key = key
        self._known = {label.casefold(): label for label in self.labels}

    def __call__(self, texts: Sequence[str]) -> list[str]:
        """Return a label for each text.

        Raises:
            PonderError: The answer is not one of the labels.
        """
        return [self._ask(text) for text in texts]

    def _ask(self, text: str) -> str:
        """Return the label of a text."""
        answer = self._post(text)
        # Models add quotation marks, full stops and capitals.
        label = self._known.get(answer.strip().strip("\"'`.").casefold())
        if label is None:
            raise PonderError(
                f"the model answered {answer[:80]!r}, which is not one of the labels."
            )
        return label

    def _post(self, text: str) -> str:
        """Return the model's answer to a text, as it is."""
        prompt = _PROMPT.format(labels="\n".join(self.labels))
        messages = [{"role": "system", "content": prompt}, {"role": "user", "content": str(text)}]
        body = {"model": self.model, "messages": messages, "temperature": 0}
        headers = {"content-type": "application/json", "authorization": f"Bearer {self._key}"}
        request = Request(self._address, json.dumps(body).encode(), headers)
        with urlopen(request, timeout=self.timeout) as reply:
            answer: str = json.load(reply)["choices"][0]["message"]["content"]
        return answer


class _Score(TypedDict):
    """The score of a class."""

    label: str
    score: float


class _Config(Protocol):
    """The configuration of a classifier."""

    id2label: Mapping[int, str]


class _Model(Protocol):
    """A classifier of Transformers."""

    config: _Config


class _Pipeline(Protocol):
    """A text classification pipeline of Transformers."""

    model: _Model

    def __call__(self, texts: list[Input], **options: object) -> list[list[_Score]]:
        """Return label and score of each class, for each text."""


class PipelineStage:
    """A text classification `pipeline` of Transformers, as a stage of a cascade or a reference.

    Args:
        pipeline: The pipeline, of a model that gives each text one label.
    """

    def __init__(self, pipeline: _Pipeline) -> None:
        self._pipeline = pipeline
        names = pipeline.model.config.id2label
        self.classes_ = tuple(str(names[place]) for place in sorted(names))

    def predict_proba(self, texts: Sequence[Input]) -> Floats:
        """Return probabilities, `(texts, classes)`."""
        # `top_k=None` asks for all classes, which the pipeline sorts by their scores.
        scores = self._pipeline(list(texts), top_k=None, function_to_apply="softmax")
        places = {name: place for place, name in enumerate(self.classes_)}
        probabilities = np.zeros((len(texts), len(places)))
        for row, of_classes in enumerate(scores):
            for each in of_classes:
                probabilities[row, places[each["label"]]] = each["score"]
        return probabilities


class _Question(TypedDict, total=False):
    """A question of a decision pipeline."""

    type: Literal["noul", "choice", "score"]
    instructions: str
    criteria: Sequence[str] | Mapping[str, str]


class _Request(TypedDict):
    """A text, and the questions about it by name."""

    state: Input
    questions: dict[str, _Question]


class _Decision(TypedDict, total=False):
    """The answer to a question: the probability of yes, or that of each criterion."""

    noul: float
    probabilities: Mapping[str, float]


class DecisionStage:
    """A stage or a reference that asks a decision `pipeline` of Transformers one question.

    The pipeline is `pipeline("decision", …)`, of an `AutoModelForDecision` or of any chat model.

    Args:
        pipeline: The pipeline.
        question: The question about each text, as the pipeline takes it: of type ``"noul"`` (yes or
            no), whose classes are ``"true"`` and ``"false"``; ``"choice"``, whose classes are its
            `criteria`; or ``"score"``, whose classes are the numbers of its `criteria` from 0.

    Example:
        >>> from ponder.cascade.clients import DecisionStage
        >>> def answer(request):
        ...     return {"question": {"noul": 0.9 if "refund" in request["state"] else 0.2}}
        >>> def decide(requests):  # stands for pipeline("decision", model="my-decision-model")
        ...     return [answer(request) for request in requests]
        >>> question = {"type": "noul", "instructions": "Is a refund requested?"}
        >>> stage = DecisionStage(decide, question)
        >>> stage.classes_, stage.predict_proba(["a refund, please"]).round(1).tolist()
        (('true', 'false'), [[0.9, 0.1]])
    """

    def __init__(
        self,
        pipeline: Callable[[list[_Request]], list[dict[str, _Decision]]],
        question: _Question,
    ) -> None:
        self._pipeline = pipeline
        self._question = question
        self.classes_ = _options_of(question)

    def predict_proba(self, texts: Sequence[Input]) -> Floats:
        """Return probabilities, `(texts, classes)`."""
        questions = {"question": self._question}
        requests: list[_Request] = [{"state": text, "questions": questions} for text in texts]
        answers = [reply["question"] for reply in self._pipeline(requests)]
        if self._question["type"] == "noul":
            yes = np.array([answer["noul"] for answer in answers], dtype=float)
            return np.stack([yes, 1.0 - yes], axis=1)
        rows = [[answer["probabilities"][name] for name in self.classes_] for answer in answers]
        return np.array(rows, dtype=float).reshape(len(rows), len(self.classes_))


def _options_of(question: _Question) -> tuple[str, ...]:
    """Return the names of the answers to a question, as a decision pipeline has them."""
    if question["type"] == "noul":
        return ("true", "false")
    criteria = question["criteria"]
    if question["type"] == "score":
        return tuple(str(level) for level in range(len(criteria)))
    return tuple(criteria)
