"""Folders that commands read: exports, cascades, and folders of exits, whose modules are loaded late."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from ponder._utils.rows import content_ids
from ponder._utils.seeds import uniform
from ponder.cascade import Cascade
from ponder.cascade.stages import stage_of
from ponder.cli.output import card_of
from ponder.cli.texts import Texts
from ponder.deploy.runtime import OnnxModel
from ponder.deploy.server_batching import Text
from ponder.errors import ArgumentError, CheckpointError
from ponder.policies.base import ExitPolicy
from ponder.policies.combine import Certified

__all__ = ["Folder", "heads_saw", "open_folder"]

_CHARACTERS = (
    16  # that are kept of a text for each token that a model takes: several times what a token has
)
_LONGEST = 1 << 16  # tokens, where a model has no limit


@dataclass(eq=False)
class Folder:
    """A folder with a model that answers texts: `ponder.deploy.server_batching.Served`."""

    model: Any  # with exits, of Transformers; an export; or a cascade
    num_steps: int
    policy: ExitPolicy  # that it was saved with
    labels: Sequence[str]  # names of the classes
    columns: Sequence[
        str
    ]  # names of the one or two columns of texts that it was fitted to; none if not known
    max_characters: int  # to which a service cuts texts before they are tokenised
    taught_below: (
        float  # texts whose numbers are not above it may have taught the student of a cascade
    )

    @property
    def promise(self) -> Certified | None:
        """The certificate of its policy, if it has one that lets rows exit."""
        policy = self.policy
        return (
            policy if isinstance(policy, Certified) and policy.threshold_value is not None else None
        )

    def answer(self, texts: Sequence[Text], policy: ExitPolicy | None = None) -> Any:
        """Answer texts, each at its exit; the folder's own policy decides where None."""
        own = None if policy == self.policy else policy  # which an export runs by graphs
        return self.model.predict(list(texts), policy=own)

    def fresh(self, found: Texts, fewest: int) -> Texts:
        """Return the distinct texts that taught neither early heads nor a student; an export does not know.

        Raises:
            ArgumentError: There are fewer than `fewest`.
        """
        _, first = np.unique(content_ids(found.texts), return_index=True)
        once = found.take(sorted(first))
        last = self.model.stages[-1].model if isinstance(self.model, Cascade) else self.model
        seen = heads_saw(last, once.texts) | (
            uniform(0, content_ids(once.texts)) <= self.taught_below
        )
        fresh = once.take(np.flatnonzero(~seen))
        if len(fresh) < fewest:
            expected = f"at least {fewest} distinct texts that the exits did not learn from"
            remedy = "Name a file with more texts like those to come."
            raise ArgumentError("--texts", expected=expected, got=str(len(fresh)), remedy=remedy)
        return fresh


def heads_saw(model: Any, texts: Sequence[Text]) -> Any:
    """Return which texts the early heads of a model may have learned from, `(rows,)` bool; none of other models."""
    if not getattr(getattr(model, "config", None), "exits", None):
        return np.zeros(len(texts), dtype=bool)
    return import_module("ponder.integrations.transformers.exits").may_have_taught(
        model, list(texts)
    )


def open_folder(folder: Path) -> Folder:
    """Read a folder that `ponder exits`, `cascade`, `advise` or `export` wrote.

    Raises:
        ArgumentError: It has a model without exits.
        CheckpointError: It is damaged, or answers something else than a class a text.
    """
    stage, card, sound = stage_of(folder), card_of(folder), True
    model = stage.model
    if isinstance(model, OnnxModel):
        steps, longest = model.num_steps, model.manifest.max_length or 0
        sound = longest > 0 and model.task.one_class
    elif isinstance(model, Cascade):
        steps, longest = len(model.stages) - 1 + model.stages[-1].num_steps, 512
    elif hasattr(model, "ponder"):
        positions = import_module("ponder.integrations.transformers.texts").max_positions(
            model.encoder
        )
        steps, longest = (
            model.ponder.num_steps,
            min(positions, model.tokenizer.model_max_length, _LONGEST),
        )
        sound = model.ponder.task.one_class
    else:
        expected, got = "a folder of `ponder exits` or `export`", f"{folder}, a model without exits"
        remedy = "Write one: ponder exits MODEL --texts FILE --out FOLDER."
        raise ArgumentError("FOLDER", expected=expected, got=got, remedy=remedy)
    if not sound:
        raise CheckpointError(
            f"{folder}: expected a classifier of texts, with its tokenizer beside it."
        )
    facts = (
        tuple(card.get("columns", ())),
        int(_CHARACTERS * longest),
        card.get("taught_below", -1.0),
    )
    return Folder(model, steps, model.policy, stage.classes or (), *facts)
