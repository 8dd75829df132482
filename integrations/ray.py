"""Ray: a service on several machines (Ray Serve), and answers for large tables (Ray Data)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from ponder._utils.checks import library
from ponder.integrations.transformers import PonderForSequenceClassification
from ponder.integrations.transformers.texts import TextOrPair

if TYPE_CHECKING:
    from ray.serve import Application

__all__ = ["Predictor", "deployment"]

Column: TypeAlias = NDArray[Any] | Sequence[Any]
"""The values of a column of a table."""
Answer: TypeAlias = dict[str, str | float | int]
"""The label, its probability and the exit step of a text."""
_ANSWERS = ("label", "probability", "exit_step")


class _Request(Protocol):
    """An HTTP request, as Ray Serve passes it on."""

    async def json(self) -> Mapping[str, TextOrPair]:
        """Return its body."""


class Predictor:
    """A class for `ray.data.Dataset.map_batches`: each worker loads the model once.

    It adds the columns `label`, `probability` and `exit_step`.

    Args:
        folder: The folder of a classifier of texts, with its tokenizer; every worker must see it.
        column: The column with the texts.
        second: The column with the second texts of pairs; None for single texts.
        batch_size: Texts of a batch.
        threads: Threads of one operation. With as many workers as cores, 1 is best.

    Example:
        >>> model.tokenizer = tokenizer
        >>> model.save_pretrained("saved")
        >>> table = Predictor("saved")({"text": ["a short text", "a text"]})
        >>> sorted(table)
        ['exit_step', 'label', 'probability', 'text']
    """

    def __init__(
        self,
        folder: str | PathLike[str],
        column: str = "text",
        second: str | None = None,
        *,
        batch_size: int = 32,
        threads: int = 1,
    ) -> None:
        torch.set_num_threads(threads)
        self.columns: tuple[str, ...] = (column,)
        if second is not None:
            self.columns = (column, second)
        self.model = PonderForSequenceClassification.from_pretrained(fspath(folder))
        self.batch_size = batch_size

    def __call__(self, batch: Mapping[str, Column]) -> dict[str, Column]:
        """Return a table, as arrays by column, with the columns of the answers."""
        sides = [list(batch[name]) for name in self.columns]
        texts = sides[0]
        if len(sides) == 2:
            texts = [list(pair) for pair in zip(*sides, strict=True)]
        answers = self.model.predict(texts, batch_size=self.batch_size)
        labels = np.array(answers.labels, dtype=np.str_)
        probability = answers.probabilities.double().numpy()
        return {
            **batch,
            "label": labels,
            "probability": probability,
            "exit_step": answers.exit_step.numpy(),
        }


def deployment(
    folder: str | PathLike[str],
    *,
    max_batch: int = 32,
    max_wait: float = 0.005,
    threads: int = 1,
    **options: Any,
) -> Application:
    """Return an application for `ray.serve.run`.

    Its replicas answer ``{"text": …}`` with the label, its probability and the exit step. Requests
    that reach a replica within `max_wait` seconds share a batch.

    Args:
        folder: The folder, as for `Predictor`; every node must see it.
        max_batch: Requests of a batch at most.
        max_wait: Seconds that the first request of a batch waits for others.
        threads: Threads of one operation, of a replica.
        options: Arguments of `ray.serve.deployment`: `num_replicas`, `ray_actor_options`,
            `autoscaling_config`, …

    Raises:
        PonderError: Ray Serve is not installed.
    """
    serve = library("ray.serve", "deployment")
    place = fspath(folder)

    class Replica:
        def __init__(self) -> None:
            self.predictor = Predictor(place, batch_size=max_batch, threads=threads)

        @serve.batch(  # type: ignore[untyped-decorator]
            max_batch_size=max_batch, batch_wait_timeout_s=max_wait
        )
        async def answer(self, texts: list[TextOrPair]) -> list[Answer]:
            table = self.predictor({"text": texts})
            return [
                {name: table[name][row].item() for name in _ANSWERS} for row in range(len(texts))
            ]

        async def __call__(self, request: _Request) -> Answer:
            body = await request.json()
            answer: Answer = await self.answer(body["text"])
            return answer

    return serve.deployment(name="ponder", **options)(Replica).bind()
