"""A folder of `ponder exits`: a fine-tuned classifier of Transformers with exits beside its head."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from ponder.cli.folders import CHARACTERS, Folder
from ponder.cli.output import BATCH, card_of
from ponder.deploy.server_batching import Text
from ponder.errors import CheckpointError
from ponder.integrations.transformers import PonderForSequenceClassification
from ponder.integrations.transformers.exits import may_have_taught
from ponder.integrations.transformers.texts import encodings_of, max_positions, row_ids

__all__ = ["ExitsFolder", "heads_saw", "names_of", "open_exits", "quiet"]


class ExitsFolder(Folder):
    """A folder of exits; arguments as for `Folder`."""

    def record(self, texts: Sequence[Text], labels: Any = None) -> Any:
        """See `Folder`."""
        rows = encodings_of(self.model, list(texts))
        if labels is not None:
            rows = [{**row, "labels": label} for row, label in zip(rows, labels, strict=True)]
        with torch.no_grad():
            return self.model.record(rows, row_ids=row_ids(rows), batch_size=BATCH)

    def taught(self, texts: Sequence[Text]) -> Any:
        """See `Folder`."""
        return heads_saw(self.model, texts)


def open_exits(folder: Path) -> ExitsFolder:
    """Read a folder that `ponder exits` wrote, or `save_pretrained` of a classifier of texts with exits.

    Raises:
        CheckpointError: It holds another model, or no tokenizer.
    """
    quiet()
    model = PonderForSequenceClassification.from_pretrained(str(folder)).eval()
    if model.tokenizer is None or not model.ponder.task.one_class:
        raise CheckpointError(f"{folder}: expected a classifier of texts, with its tokenizer beside it.")
    longest = int(min(max_positions(model.encoder), model.tokenizer.model_max_length, 1 << 16))
    columns = card_of(folder).get("columns", ())
    return ExitsFolder(model, model.ponder.num_steps, model.policy, names_of(model), columns, CHARACTERS * longest)


def heads_saw(model: Any, texts: Sequence[Text]) -> Any:
    """Return which texts early heads may have learned from, `(rows,)` bool."""
    return may_have_taught(model, encodings_of(model, list(texts)))


def names_of(model: Any) -> list[str]:
    """Return the names of a model's classes, in their order."""
    return [str(model.config.id2label[place]) for place in sorted(model.config.id2label)]


def quiet() -> None:
    """Silence Transformers' own bars and notes, which would stand between ours."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
