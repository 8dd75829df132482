"""`Predictor`: answers beside the texts of a table, for `ray.data.Dataset.map_batches`."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any

import numpy as np
import torch

from ponder._utils.validation import check_int
from ponder.errors import ArgumentError
from ponder.inference.streaming import StreamOutput
from ponder.integrations.transformers.serving import Batching, open_folder
from ponder.serving import Limits, Text
from ponder.serving.answers import answer_of

__all__ = ["Predictor"]


class Predictor:
    """A class for `map_batches`: each of its workers reads the model once, and answers whole tables of texts.

    It adds the columns `label` and `score` (`labels` or `value` for other tasks), `exit_step` and `truncated`, also to
    a table without rows.

    Args:
        folder: The folder of the model, as for `ponder.integrations.transformers.serving.open_folder`; every worker
            must see it.
        column: The column with the texts.
        second: That with the second texts of pairs, or None.
        batching: How texts share steps, as for `open_folder`.
        max_batch: Texts of a batch.
        threads: Threads of one operation, of a worker; as many workers as cores share a machine best with 1 each.

    Raises:
        CheckpointError: The folder cannot be served.

    Example:
        >>> model.save_pretrained("saved")
        >>> _ = tokenizer.save_pretrained("saved")
        >>> table = Predictor("saved")({"text": ["a short text", "a text"]})  # or dataset.map_batches(Predictor, …)
        >>> sorted(table)
        ['exit_step', 'label', 'score', 'text', 'truncated']
    """

    def __init__(
        self,
        folder: str | PathLike[str],
        column: str = "text",
        second: str | None = None,
        *,
        batching: Batching = "stream",
        max_batch: int = 32,
        threads: int = 1,
    ) -> None:
        check_int("threads", threads)
        torch.set_num_threads(threads)
        self._columns = (column,) if second is None else (column, second)
        self._model = open_folder(folder, batching=batching)
        self._batcher = self._model.start(Limits(max_batch=max_batch))

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """A table, as arrays by column, with the answers beside it.

        Raises:
            ArgumentError: It has no such column, not only texts in it, or columns that the answers are to have.
        """
        texts = self._texts(batch)
        tokens = self._model.tokenize(texts) if texts else None
        futures = [] if tokens is None else [self._batcher.submit(example) for example in tokens.examples]
        cut = [] if tokens is None else tokens.truncated
        answers = [
            answer_of(self._model.task, self._model.labels, future.result(), truncated=truncated)
            for future, truncated in zip(futures, cut, strict=True)
        ]
        shown = answers or [self._blank()]
        names = [name for name in shown[0] if name not in {"scores", "overdue"}]
        if taken := sorted(set(batch).intersection(names)):
            raise ArgumentError(
                "batch",
                expected=f"no columns of the names of answers ({', '.join(names)})",
                got=", ".join(taken),
                remedy="Rename them first: dataset.rename_columns({'label': 'gold'}), say.",
            )
        columns = {name: _column([answer[name] for answer in shown])[: len(texts)] for name in names}
        return {**batch, **columns}

    def _blank(self) -> dict[str, Any]:
        """An answer to no text, which tells the columns of a table without rows."""
        output = torch.zeros(max(len(self._model.labels), 1))
        return answer_of(self._model.task, self._model.labels, StreamOutput(output, 1), truncated=False)

    def _texts(self, batch: Mapping[str, Any]) -> list[Text]:
        sides = []
        for name in self._columns:
            if name not in batch:
                raise ArgumentError(
                    "column", expected=f"one of {', '.join(batch)}", got=repr(name), remedy="Name a column of texts."
                )
            sides.append([_text(name, value) for value in batch[name]])
        return sides[0] if len(sides) == 1 else list(zip(*sides, strict=True))  # type: ignore[return-value]


def _text(column: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ArgumentError(column, expected="texts", got=repr(value), remedy="Drop rows without one first.")
    return str(value)


def _column(values: list[Any]) -> Any:
    if any(isinstance(value, list) for value in values):
        made = np.empty(len(values), dtype=object)
        made[:] = values
        return made
    return np.asarray(values)
