"""`open`: a folder that a command wrote, as an object that answers texts and states its promise.

A folder holds a model (with exits, an export, a cascade, a ranker), the card of the command that
wrote it (`ponder.json`), and digests of the texts that made it (`used.json`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ponder._utils.seals import digest_of_path, is_sealed
from ponder.calibration.stopper import Stopper
from ponder.cascade import Cascade
from ponder.cascade.stages import CascadeStage, stage_of
from ponder.deploy.ranking import RERANK, Ranker
from ponder.deploy.runtime import OnnxModel
from ponder.deploy.server_batching import Some, Text
from ponder.errors import ArgumentError, CheckpointError
from ponder.policies.base import ExitPolicy
from ponder.policies.combine import Certified
from ponder.policies.files import POLICY
from ponder.statistics.answers import CertifiedAnswers
from ponder.statistics.certificate import Certificate
from ponder.statistics.used import Used

__all__ = [
    "CARD",
    "FullDepth",
    "Opened",
    "OpenedRanker",
    "card_of",
    "open",
    "open_folder",
    "remember",
]

CARD = "ponder.json"
"""The file of a folder with the command that wrote it, and the results of that command."""
_CHARACTERS = 16
"""Characters of a text that are kept for each token that a model takes: several times as many."""
_LONGEST = 1 << 16
"""Tokens of a model without a limit."""
_OF_CASCADES = 512
"""Tokens of a cascade."""


@dataclass(eq=False)
class Opened:
    """A folder with a model that answers texts: `ponder.deploy.server_batching.Served`.

    Args:
        folder: The folder.
        model: A model of Transformers with exits, an export, or a cascade.
        card: The results of the command that wrote the folder; empty if no command did.
        used: The texts from which it was made.
        num_steps: N.
        policy: The policy with which it was saved.
        labels: Names of the classes.
        columns: Names of the columns of texts to which it was fitted; empty if they are not known.
        max_characters: The number of characters to which a service cuts texts.
    """

    folder: Path
    model: Any
    card: Mapping[str, Any]
    used: Used
    num_steps: int
    policy: ExitPolicy
    labels: Sequence[str]
    columns: Sequence[str]
    max_characters: int

    @property
    def promise(self) -> Certificate | None:
        """The certificate of its policy, if it lets rows exit, with the confidence that was said.

        A way that won a race was certified with a higher one, since several were: of the winner,
        which was chosen, the lower one of all together holds.
        """
        policy = self.policy
        if not isinstance(policy, Certified) or not policy.certificate.met:
            return None
        promise = policy.certificate
        said = self.card.get("confidence")
        if promise.confidence is None or not isinstance(said, float):
            return promise
        return replace(promise, confidence=min(said, promise.confidence))

    @property
    def statement(self) -> str:
        """The promise in one sentence."""
        if self.promise is None:
            return "Nothing is promised."
        return str(self.card.get("statement") or self.promise.sentence)

    @property
    def needs_reference(self) -> bool:
        """Whether the promise is about the answers of another model than this one at full depth."""
        return self.promise is not None and self.promise.risk == "disagreement_with_reference"

    def answer(self, texts: Sequence[Text], policy: ExitPolicy | None = None) -> Any:
        """Answer texts, each at its exit, under a policy, by default the folder's."""
        if policy == self.policy:  # an export runs its own policy in graphs
            policy = None
        return self.model.predict(list(texts), policy=policy)

    def predict(self, texts: Sequence[Text], policy: ExitPolicy | None = None) -> Any:
        """Answer texts, each at its exit: `labels`, `probabilities`, `outputs`, `exit_step`."""
        return self.answer(texts, policy)

    def reference(self) -> Any:
        """Read the model that the promise is about.

        Raises:
            ArgumentError: It was not remembered, does not exist, or has changed.
        """
        remembered = self.card.get("reference")
        if not isinstance(remembered, Mapping):
            raise _no_reference("none", "Name it: --reference MODEL.")
        paths = [Path(remembered["path"]), self.folder / str(remembered.get("relative"))]
        path = next((path for path in paths if path.is_dir()), None)
        if path is None:
            got = f"{remembered['path']}, which does not exist"
            raise _no_reference(got, "Name its present path: --reference MODEL.")
        if remembered.get("digest") not in (None, digest_of_path(path)):
            raise _no_reference(f"{path}, whose files have changed since", "Write the folder anew.")
        return stage_of(path)


@dataclass(frozen=True, eq=False)
class OpenedRanker:
    """A folder that orders the candidates of queries."""

    folder: Path
    ranker: Ranker
    card: Mapping[str, Any]
    used: Used

    @property
    def statement(self) -> str:
        """The promise in one sentence."""
        statement = self.card.get("statement") or self.ranker.settings.fitted.get("statement")
        return str(statement or "Nothing is promised.")

    def predict(self, queries: Sequence[Any], top_k: int | None = None) -> Any:
        """Order the candidates of queries, `{"query": …, "documents": […]}`, the best first."""
        return self.ranker.rank_all(queries, top_k)


@dataclass(frozen=True, eq=False)
class FullDepth:
    """The model that a promise is about, at full depth: a service asks it for audits, and to defer.

    Args:
        stage: The model.
        labels: Names of the classes of the folder that is served.
    """

    stage: CascadeStage
    labels: Sequence[str]

    def answer(self, texts: Sequence[Text], policy: ExitPolicy | None = None) -> Some:
        """Answer texts at full depth; the policy is not read."""
        names = tuple(self.stage.classes or self.labels)
        shares = np.exp(self.stage.full(list(texts), names))
        labels = [names[place] for place in shares.argmax(axis=1).tolist()]
        steps = np.full(len(labels), self.stage.num_steps)
        return Some(labels, shares.max(axis=1), steps)


def open(folder: str | Path) -> Any:  # the name is `ponder.open`
    """Open the result of a command, to answer texts with it and to read its promise.

    Args:
        folder: A folder that `ponder advise`, `exits`, `cascade`, `rerank` or `export` wrote, or
            the file of `ponder certify`.

    Returns:
        An object with `.statement` and `.predict`: an `Opened`, an `OpenedRanker`; or for a file
        `CertifiedAnswers`, whose `.takes(confidences)` returns which answers are taken, or a
        `ponder.calibration.Stopper`, whose `.should_stop(answers)` returns when answers suffice.

    Raises:
        ArgumentError: The model has no exits.
        CheckpointError: The folder is damaged, or its model is not a classifier.
    """
    path = Path(folder)
    if path.is_file():
        if is_sealed(path, POLICY):
            return Stopper.load(path)
        return CertifiedAnswers.load(path)
    if (path / RERANK).is_file():
        return OpenedRanker(path, Ranker.load(path), card_of(path), Used.read(path))
    return open_folder(path)


def open_folder(folder: str | Path) -> Opened:
    """Open a folder with a classifier of texts; see `open`."""
    path = Path(folder)
    stage = stage_of(path)
    card = card_of(path)
    model: Any = stage.model
    steps, longest = _size_of(path, model)
    return Opened(
        folder=path,
        model=model,
        card=card,
        used=Used.read(path),
        num_steps=steps,
        policy=model.policy,
        labels=stage.classes or (),
        columns=tuple(card.get("columns", ())),
        max_characters=_CHARACTERS * longest,
    )


def card_of(folder: Path) -> dict[str, Any]:
    """Return the results of the command that wrote a folder; empty for other folders."""
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(card, dict):
        return {}
    return card


def remember(model: str | Path, folder: str | Path) -> dict[str, Any]:
    """Return the path of the model that a promise is about, and a digest of its files."""
    path = Path(model)
    if not path.is_dir():
        return {"path": str(model), "digest": None, "hub": True}
    return {
        "path": str(path.resolve()),
        "relative": os.path.relpath(path.resolve(), Path(folder).resolve()),
        "digest": digest_of_path(path),
        "hub": False,
    }


def _size_of(folder: Path, model: Any) -> tuple[int, int]:
    """Return the numbers of steps and of tokens of a classifier with exits; refuse others."""
    if isinstance(model, Cascade):
        return len(model.stages) - 1 + model.stages[-1].num_steps, _OF_CASCADES
    if isinstance(model, OnnxModel):
        size = model.num_steps, model.manifest.max_length or 0
        task = model.task
    elif hasattr(model, "ponder"):
        positions = getattr(model.encoder.config.get_text_config(), "max_position_embeddings", None)
        longest = min(positions or _LONGEST, model.tokenizer.model_max_length, _LONGEST)
        size = model.ponder.num_steps, int(longest)
        task = model.ponder.task
    else:
        expected = "a folder that a command wrote"
        remedy = "Write one: ponder exits MODEL --texts FILE --out FOLDER."
        got = f"{folder}, a model without exits"
        raise ArgumentError("FOLDER", expected=expected, got=got, remedy=remedy)
    if not (size[1] > 0 and task.one_class):
        raise CheckpointError(
            f"{folder}: expected a classifier of texts, with its tokenizer in the folder."
        )
    return size


def _no_reference(got: str, remedy: str) -> ArgumentError:
    expected = "the model that the promise is about"
    return ArgumentError("--reference", expected=expected, got=got, remedy=remedy)
