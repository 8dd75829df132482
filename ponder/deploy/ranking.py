"""`Ranker`: candidates of queries are scored step by step, and those that cannot be among the best leave early.

It runs an export by NumPy and onnxruntime alone; `ponder.integrations.sentence_transformers.CrossEncoder` runs a model
of Transformers by it. Candidates are computed in batches of similar length, and decided on with all of their query.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from ponder._utils.files import replace_text
from ponder._utils.rows import content_ids
from ponder.calibration.control import RiskControl, control_risk
from ponder.calibration.records import Record
from ponder.calibration.risks import ranked
from ponder.deploy.runtime import OnnxModel, take
from ponder.errors import ArgumentError, CheckpointError
from ponder.policies.base import ExitPolicy, LastStep, PolicyBatch, StepView
from ponder.policies.combine import Certified
from ponder.policies.topk import TopK
from ponder.tasks import task_named

__all__ = ["RERANK", "OnnxScorer", "Pool", "Ranker", "RankerSettings", "Running", "Scorer", "pools_of"]

RERANK = "rerank.json"
"""The file of a folder that ranks."""
Array = NDArray[Any]
_FORMAT, _AT_ONCE, _SPARE = "ponder-rerank-1", 512, 0.85  # candidates in memory together; share of a budget to plan for
_TASK = task_named("regression")
_MARGINS = tuple(np.linspace(8.0, 0.0, 161).round(3).tolist())


@dataclass(frozen=True)
class Pool:
    """A query with its candidates.

    Args:
        query: The query.
        documents: The candidates.
        scores: First-stage scores of the candidates, a higher one being better; none where empty.
        labels: Relevance of each, where it is known.
    """

    query: str
    documents: Sequence[str]
    scores: Sequence[float] = ()
    labels: Sequence[float] = ()


@dataclass(frozen=True)
class RankerSettings:
    """All that a ranker knows besides its model; it is saved as `rerank.json`.

    Args:
        top_k: The number of candidates that the policy is about; None before `fit_exits`.
        policy: The exit policy over all steps, of which the first stage is the first where it is used.
        blend: By step, the offset and the weight of the first-stage score in the score of that step; none where empty.
        sigmoid: Whether scores are given as probabilities, as Sentence Transformers gives those of one label.
        fitted: What `fit_exits` found, in plain JSON.
    """

    top_k: int | None = None
    policy: ExitPolicy = field(default_factory=LastStep)
    blend: tuple[tuple[float, float], ...] = ()
    sigmoid: bool = True
    fitted: Mapping[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write the file into a folder."""
        data = {name: getattr(self, name) for name in ("top_k", "blend", "sigmoid", "fitted")}
        text = json.dumps({"format": _FORMAT, **data, "policy": self.policy.to_dict()}, indent=1)
        replace_text(folder / RERANK, text + "\n")

    @classmethod
    def read(cls, folder: Path, weights: str | None) -> Self:
        """Read the file of a folder whose model has these weights; a promise about others is dropped."""
        try:
            data = json.loads((folder / RERANK).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{folder}: expected a folder that CrossEncoder.save wrote ({error}).") from error
        if data.pop("format", None) != _FORMAT:
            raise CheckpointError(f"{folder / RERANK}: expected {_FORMAT}.")
        policy = ExitPolicy.from_dict(data.pop("policy"))
        if isinstance(policy, Certified) and policy.weights != weights:
            warnings.warn("The weights changed after they were certified; the promise is dropped.", stacklevel=3)
            policy = policy.policy
        return cls(**{**data, "policy": policy, "blend": tuple(map(tuple, data["blend"]))})


class Running(Protocol):
    """Candidates of similar length between two steps."""

    def advance(self, step: int) -> None:
        """Run one step."""

    def output(self) -> Any:
        """Return the scores of the step, `(rows, 1)`."""

    def keep(self, index: Array) -> None:
        """Go on with some of the rows."""


class Scorer(Protocol):
    """A model that scores pairs of query and document."""

    num_steps: int

    @property
    def weights(self) -> str | None:
        """Digest of the weights that scores come from."""

    def start(self, pairs: Sequence[tuple[str, str]], batch_size: int) -> Sequence[tuple[list[int], Running]]:
        """Return batches of pairs of similar length before their first step, with the places of the pairs."""


class Ranker:
    """Orders the candidates of queries.

    Args:
        scorer: The model.
        settings: The policy, and all else besides the model.

    Attributes:
        batch_size: Candidates of a batch.
    """

    batch_size = 32

    def __init__(self, scorer: Scorer, settings: RankerSettings | None = None) -> None:
        self.scorer, self.settings = scorer, RankerSettings() if settings is None else settings
        self._pace = 0.0  # seconds of one candidate at one step; 0 until some were timed

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read an export of a folder that ranks; it needs no PyTorch."""
        scorer = OnnxScorer(OnnxModel(folder))
        return cls(scorer, RankerSettings.read(Path(folder), scorer.weights))

    @property
    def first_stage(self) -> bool:
        """Whether first-stage scores are the first step."""
        return bool(self.settings.blend)

    @property
    def num_steps(self) -> int:
        """The number of steps, the first stage included."""
        return self.scorer.num_steps + self.first_stage

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        top_k: int | None = None,
        return_documents: bool = False,
        *,
        scores: Sequence[float] = (),
        within: float | None = None,
        policy: ExitPolicy | None = None,
    ) -> list[dict[str, Any]]:
        """Order the candidates of a query, the best first, as `CrossEncoder.rank` of Sentence Transformers does.

        Args:
            query: The query.
            documents: The candidates.
            top_k: How many are wanted; all where None, or as many as exits were fitted for. More than these are ranked
                at full depth.
            return_documents: Whether answers hold the document as `"text"`.
            scores: First-stage scores of the candidates, where exits were fitted with such.
            within: Seconds that the answer may take. Candidates that could not be finished in time leave, the lowest
                first, and the best order so far is the answer.
            policy: An exit policy instead of the ranker's own.

        Returns:
            A dict each with `"corpus_id"`, the place of the document, `"score"`, that of its exit, and `"exit_step"`.
        """
        (found,) = self.rank_all([Pool(query, documents, scores)], top_k, within=within, policy=policy)
        return [{**one, "text": documents[one["corpus_id"]]} for one in found] if return_documents else found

    def rank_all(
        self,
        pools: Sequence[Any],
        top_k: int | None = None,
        *,
        within: float | None = None,
        policy: ExitPolicy | None = None,
    ) -> list[list[dict[str, Any]]]:
        """Order the candidates of many queries; those of several share batches. Arguments as for `rank`."""
        end = None if within is None else time.perf_counter() + within
        own, found = self.settings.top_k, list[list[dict[str, Any]]]()
        top_k = own if top_k is None else top_k
        if policy is None:
            policy = self.settings.policy if own is None or (top_k or own) <= own else LastStep()
        for part in _chunks(pools_of(pools, self.first_stage)):
            groups, scores, steps = self._run(part, policy, end)
            places, shown = ranked(groups, scores, steps), self._shown(scores)
            for number in range(len(part)):
                rows = np.flatnonzero(groups == number)
                best = np.argsort(places[rows])[:top_k]
                values = zip(best.tolist(), shown[rows[best]].tolist(), steps[rows[best]].tolist(), strict=True)
                found.append([dict(zip(("corpus_id", "score", "exit_step"), one, strict=True)) for one in values])
        return found

    def predict(self, sentences: Any) -> Any:
        """Score pairs of query and document at full depth, `(pairs,)`, as `CrossEncoder.predict` does."""
        one = len(sentences) == 2 and isinstance(sentences[0], str)
        pools = [Pool(query, [document]) for query, document in ([sentences] if one else sentences)]
        found = [self._run(part, LastStep())[1] for part in _chunks(pools)]
        scores = self._shown(np.concatenate([*found, np.zeros(0)])).astype(np.float32)
        return scores[0] if one else scores

    def record(self, pools: Sequence[Any]) -> Record:
        """Run all candidates of queries through all steps; the first stage is the first, where it is used."""
        outputs, pairs, labels = list[Array](), list[tuple[str, str]](), list[float]()
        given = pools_of(pools, self.first_stage)
        for part in _chunks(given):
            own, first = _pairs_of(part), _first_of(part)
            batches, columns = self._start(own), [self._blended(1, 0.0, first)] if self.first_stage else []
            for step in range(1, self.scorer.num_steps + 1):
                batches.advance(step)
                columns.append(self._blended(step + self.first_stage, batches.output(), first))
            outputs.append(np.stack(columns, 1)[..., None])
            pairs += own
            labels += [label for pool in part for label in pool.labels]
        return Record(
            np.concatenate(outputs).astype(np.float32),
            None,
            content_ids(pairs),
            labels=np.asarray(labels) if len(labels) == len(pairs) else None,
            task="regression",
            policy_context={"group": np.repeat(np.arange(len(given)), [len(pool.documents) for pool in given])},
            weights=self.scorer.weights,
            content_ids=True,
        )

    def certify(
        self,
        pools: Sequence[Any],
        *,
        top_k: int,
        changed: float,
        confidence: float = 0.95,
        risk: str = "top_k",
        ordered: bool = False,
        spread: Sequence[float] = (),
    ) -> RiskControl:
        """Choose the margin of `TopK` on queries that chose nothing else, and take it; arguments as for `fit_exits`."""
        costs = np.arange(1.0, self.num_steps + 1) - self.first_stage
        found = control_risk(
            self.record(pools),
            TopK(top_k, 1.0, tuple(spread), ordered),
            risk=risk,  # type: ignore[arg-type]
            level=changed,
            confidence=confidence,
            bound="betting" if risk.startswith("ndcg") else "exact_binomial",
            grid=_MARGINS,
            costs=np.maximum(costs, 0.01),  # the first stage is paid already
        )
        self.settings = replace(self.settings, top_k=top_k, policy=found.policy)
        return found

    def _run(self, pools: Sequence[Pool], policy: ExitPolicy, end: float | None = None) -> tuple[Array, Array, Array]:
        """Return the query's number, the score at the exit, and the exit step of each candidate, `(rows,)`."""
        pairs, first, last = _pairs_of(pools), _first_of(pools), self.num_steps
        groups = np.repeat(np.arange(len(pools)), [len(pool.documents) for pool in pools])
        scores, steps, rows = np.full(len(pairs), -np.inf), np.zeros(len(pairs), dtype=np.int64), np.arange(len(pairs))
        state, together = policy.init(PolicyBatch(rows, last, _TASK)), policy.exit_of_all(last)
        batches: _Batches | None = None
        if end is not None and not self._pace and len(rows):
            self._run([Pool(pairs[0][0], [document for _, document in pairs[:8]])], LastStep())  # which times it
        for step in range(1, last + 1):
            if step == 1 and self.first_stage:
                own = self._blended(1, 0.0, first)
            else:
                began = time.perf_counter()
                if batches is None:
                    rows, state = _kept(rows, state, self._affordable(end, last - step + 1, -scores[rows]))
                    batches = self._start([pairs[row] for row in rows])
                batches.advance(step - self.first_stage)
                if end is None and together is not None and step < together:
                    continue
                own = self._blended(step, batches.output(), first[rows])
                self._note(time.perf_counter() - began, len(rows))
            scores[rows], steps[rows] = own, step
            if step in (last, together) or not len(rows):
                break
            index, context = np.full(len(rows), step), {"group": groups[rows]}
            view = StepView(index, last, {"output": own[:, None]}, _TASK, None, context)
            exits, state = policy.decide(view, state)
            stays = np.flatnonzero(~np.broadcast_to(exits, rows.shape))
            if batches is not None:  # before the first batch, see above
                stays = stays[self._affordable(end, last - step, -own[stays])]
            if len(stays) < len(rows):
                rows, state = _kept(rows, state, stays)
                if batches is not None:
                    batches.keep(stays)
            if not len(rows):
                break
        return groups, scores, steps

    def _start(self, pairs: Sequence[tuple[str, str]]) -> _Batches:
        return _Batches(self.scorer.start(pairs, self.batch_size) if len(pairs) else [], len(pairs))

    def _blended(self, step: int, scores: Any, first: Array) -> Array:
        """Return the scores of a step with the share that the first stage has in them."""
        if not self.settings.blend:
            return np.asarray(scores)
        offset, weight = self.settings.blend[step - 1]
        return np.asarray(scores + offset + weight * first)

    def _shown(self, scores: Array) -> Array:
        with np.errstate(over="ignore"):
            return np.asarray(1.0 / (1.0 + np.exp(-scores))) if self.settings.sigmoid else scores

    def _note(self, seconds: float, rows: int) -> None:
        """Take in what a step took: quickly where it was slow, and of full batches, where the parts of a step are."""
        if rows >= self.batch_size or not self._pace:
            now = seconds / max(rows, 1)
            self._pace = max(now, 0.8 * self._pace + 0.2 * now)

    def _affordable(self, end: float | None, steps: int, order: Array) -> Array:
        """Return the rows that can be run so many steps before the end, those first in the order."""
        if end is None:
            return np.arange(len(order))
        most = max(int(_SPARE * (end - time.perf_counter()) / (self._pace * steps)), 0)
        return np.sort(np.argsort(order, kind="stable")[:most])


class OnnxScorer:
    """An export, as a `Scorer`.

    Args:
        model: The export.
    """

    def __init__(self, model: OnnxModel) -> None:
        self.model, self.num_steps, self.weights = model, model.num_steps, model.manifest.weights

    def start(self, pairs: Sequence[tuple[str, str]], batch_size: int) -> Sequence[tuple[list[int], Running]]:
        """See `Scorer`."""
        return self.model.start(list(pairs), batch_size)


class _Batches:
    """Batches of candidates as one: they are computed apart, and decided on together."""

    def __init__(self, parts: Sequence[tuple[Sequence[int], Running]], size: int) -> None:
        self._parts, self._size = [(np.asarray(places), part) for places, part in parts], size

    def advance(self, step: int) -> None:
        for _, part in self._parts:
            part.advance(step)

    def output(self) -> Array:
        found = np.zeros(self._size)
        for places, part in self._parts:
            found[places] = np.asarray(part.output())[:, 0]
        return found

    def keep(self, index: Array) -> None:
        place = np.full(self._size, -1)
        place[index] = np.arange(len(index))
        parts, self._parts, self._size = self._parts, [], len(index)
        for places, part in parts:
            own = np.flatnonzero(place[places] >= 0)
            if len(own) and len(own) < len(places):
                part.keep(own)
            if len(own):
                self._parts.append((place[places[own]], part))


def pools_of(given: Sequence[Any], first_stage: bool = False) -> list[Pool]:
    """Return queries with candidates, as `Pool`s or dicts with `query`, `documents`, and perhaps `scores` and `labels`.

    Raises:
        ArgumentError: One that is no such thing, or whose scores are not one for each document.
    """
    pools = []
    for number, one in enumerate(given):
        try:
            pool = one if isinstance(one, Pool) else Pool(**one)
            right = isinstance(pool.query, str) and all(isinstance(document, str) for document in pool.documents)
            right &= len(pool.scores) in ((len(pool.documents),) if first_stage else (0, len(pool.documents)))
            right &= not isinstance(pool.documents, str) and len(pool.labels) in (0, len(pool.documents))
        except TypeError:
            right = False
        if not right:
            raise ArgumentError(
                "queries",
                expected="a query, a list of documents, and a first-stage score for each"
                + ("" if first_stage else " or for none"),
                got=f"{str(one)[:80]} as number {number}",
                remedy='Pass {"query": "…", "documents": ["…"], "scores": [0.5]}; exits that were fitted with scores '
                "need them.",
            )
        pools.append(pool)
    return pools


def _pairs_of(pools: Sequence[Pool]) -> list[tuple[str, str]]:
    return [(pool.query, document) for pool in pools for document in pool.documents]


def _first_of(pools: Sequence[Pool]) -> Array:
    """The first-stage scores, `(rows,)`: the lowest of its pool for one that is no number; 0 without any."""
    parts = [np.zeros(0)]
    for pool in pools:
        scores = np.asarray(pool.scores or np.zeros(len(pool.documents)), dtype=np.float64)
        known = scores[np.isfinite(scores)]
        parts.append(np.where(np.isfinite(scores), scores, known.min() if len(known) else 0.0))
    return np.concatenate(parts)


def _chunks(pools: Sequence[Pool]) -> list[list[Pool]]:
    """Whole queries together, until there are enough candidates."""
    chunks, size = list[list[Pool]](), _AT_ONCE
    for pool in pools:
        if size >= _AT_ONCE:
            chunks.append([])
            size = 0
        chunks[-1].append(pool)
        size += len(pool.documents)
    return chunks


def _kept(rows: Array, state: Any, index: Array) -> tuple[Array, Any]:
    return rows[index], take(state, index)
