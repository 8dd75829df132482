"""Client of a server with OpenAI's interface: a function from texts to labels."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from urllib.request import Request, urlopen

from ponder.errors import PonderError

__all__ = ["ChatLabels", "bare_answer"]

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
        self._known = {bare_answer(label): label for label in self.labels}

    def __call__(self, texts: Sequence[str]) -> list[str]:
        """Return a label for each text.

        Raises:
            PonderError: The answer is not one of the labels.
        """
        return [self._ask(text) for text in texts]

    def _ask(self, text: str) -> str:
        """Return the label of a text."""
        answer = self._post(text)
        label = self._known.get(bare_answer(answer))
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


def bare_answer(answer: str) -> str:
    """Return an answer without the quotation marks, full stops and capitals that models add."""
    return answer.strip().strip("\"'`.").casefold()
