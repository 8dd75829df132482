"""Folders that commands read: exports, which need no PyTorch, and folders of exits, whose module is loaded late."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from ponder._utils.rows import content_ids
from ponder._utils.seeds import uniform
from ponder.cascade import Cascade
from ponder.cli.output import BATCH, card_of
from ponder.cli.texts import Texts
from ponder.deploy.manifest import FILE
from ponder.deploy.runtime import OnnxModel
from ponder.deploy.server_batching import Text
from ponder.errors import ArgumentError, CheckpointError
from ponder.policies.base import ExitPolicy

__all__ = ["CASCADE", "CHARACTERS", "Folder", "heads_saw", "open_folder"]

CASCADE = "cascade.json"
CHARACTERS = 16
"""Characters that are kept of a text for each token that a model takes: several times what a token has."""


@dataclass(eq=False)
class Folder:
    """A folder with a model that answers texts, by itself an export: `ponder.deploy.server_batching.Served`.

    Args:
        model: The model.
        num_steps: N.
        policy: The policy that it was saved with.
        labels: Names of the classes.
        columns: Names of the one or two columns of texts that it was fitted to; none where they are not known.
        max_characters: Number of characters to which a service cuts texts before they are tokenised.
    """

    model: Any
    num_steps: int
    policy: ExitPolicy
    labels: Sequence[str]
    columns: Sequence[str]
    max_characters: int

    def answer(self, texts: Sequence[Text], policy: ExitPolicy | None = None) -> Any:
        """Answer texts, each at its exit; the folder's own policy decides where None."""
        own = None if policy == self.policy else policy  # which an export runs by graphs
        return self.model.predict(list(texts), policy=own, batch_size=BATCH)

    def record(self, texts: Sequence[Text], labels: Any = None) -> Any:
        """Run texts through all steps."""
        return self.model.record(list(texts), labels=labels, batch_size=BATCH)

    def taught(self, texts: Sequence[Text]) -> Any:
        """Return which texts early heads may have learned from, `(rows,)` bool; an export does not know."""
        return np.zeros(len(texts), dtype=bool)

    def fresh(self, found: Texts, fewest: int) -> Texts:
        """Return the distinct texts that taught early heads nothing.

        Raises:
            ArgumentError: There are fewer than `fewest`.
        """
        _, first = np.unique(content_ids(found.texts), return_index=True)
        once = found.take(sorted(first))
        fresh = once.take(np.flatnonzero(~np.asarray(self.taught(once.texts))))
        if len(fresh) < fewest:
            raise ArgumentError(
                "--texts",
                expected=f"at least {fewest} distinct texts that the exits did not learn from",
                got=str(len(fresh)),
                remedy="Name a file with more texts like those to come.",
            )
        return fresh


@dataclass(eq=False)
class _CascadeFolder(Folder):
    """A cascade; texts whose numbers are not above `taught_below` may have taught its student."""

    taught_below: float = -1.0

    def taught(self, texts: Sequence[Text]) -> Any:
        """See `Folder`."""
        return (uniform(0, content_ids(texts)) <= self.taught_below) | heads_saw(self.model.stages[-1].model, texts)


def heads_saw(model: Any, texts: Sequence[Text]) -> Any:
    """Return which texts the early heads of a model may have learned from, `(rows,)` bool; none of other models."""
    if not getattr(getattr(model, "config", None), "exits", None):
        return np.zeros(len(texts), dtype=bool)
    return import_module("ponder.cli.exits_folder").heads_saw(model, texts)


def open_folder(folder: Path, *, exits: bool = False) -> Folder:
    """Read a folder that `ponder exits` or `ponder export` wrote.

    Args:
        folder: The folder.
        exits: Whether it must be one of exits.

    Raises:
        ArgumentError: It is another folder.
        CheckpointError: It is damaged, or answers something else than a class a text.
    """
    if (folder / FILE).is_file() and not exits:
        model = OnnxModel(folder)
        made = model.manifest
        if made.max_length is None or not model.task.one_class:
            raise CheckpointError(f"{folder}: expected an export of a classifier of texts, with its tokenizer.")
        longest = CHARACTERS * made.max_length
        return Folder(model, made.num_steps, model.policy, made.labels, made.columns, longest)
    if (folder / CASCADE).is_file() and not exits:
        cascade = Cascade.load(folder)
        card = card_of(folder)
        read = (
            cascade.policy,
            cascade.classes,
            card.get("columns", ()),
            CHARACTERS * 512,
            card.get("taught_below", -1.0),
        )
        return _CascadeFolder(cascade, cascade.num_columns, *read)
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError):
        kind = None
    if kind != "ponder":
        raise ArgumentError(
            "FOLDER",
            expected="a folder that `ponder exits` wrote" if exits else "a folder of `ponder exits` or `ponder export`",
            got=f"{folder}, a model without exits" if kind else str(folder),
            remedy="Write one: ponder exits MODEL --texts FILE --out FOLDER.",
        )
    opened: Folder = import_module("ponder.cli.exits_folder").open_exits(folder)
    return opened
