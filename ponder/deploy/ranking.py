"""`Ranker`: candidates of queries are scored step by step, and those that cannot be among the best leave early.

It runs an export by NumPy and onnxruntime alone;
`ponder.integrations.sentence_transformers.CrossEncoder` runs a model of Transformers by it.
Candidates are computed in batches of similar length, and decided on with all of their query.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ponder._utils.arrays import sigmoid
from ponder._utils.files import read_json, reading, write_json
from ponder._utils.readers import RANKERS, read_folder
from ponder._utils.rows import content_ids
from ponder._utils.seals import changed_parts, sealed
from ponder.calibration.control import RiskControl, control_risk
from ponder.calibration.records import Record, as_array
from ponder.calibration.statement import CONFIDENCE
from ponder.deploy.manifest import changed_in
from ponder.deploy.runtime import OnnxModel
from ponder.errors import ArgumentError
from ponder.policies.base import ExitPolicy, LastStep, PolicyBatch, PolicyWrapper, StepView
from ponder.policies.combine import promise_about
from ponder.policies.topk import TopK
from ponder.running.loop import exits_of
from ponder.running.source import Source
from ponder.tasks import task_named

__all__ = ["RERANK", "Pool", "Ranker", "RankerSettings", "pools_of", "rows_of"]

RERANK = "rerank.json"
"""The file of a folder that ranks."""
Array = NDArray[Any]
_FORMAT = "ponder-rerank-1"
_BATCH = 32
_AT_ONCE = 512
_SPARE = 0.85  # candidates of a batch, and in memory; the share of a budget to plan for
_TASK = task_named("regression")
_MARGINS = tuple(np.linspace(8.0, 0.0, 161).round(3).tolist())


@dataclass(frozen=True)
class Pool:
    """A query with its candidates."""

    query: str
    documents: Sequence[str]
    scores: Sequence[float] = ()  # of the first stage, a higher one being better; none where empty
    labels: Sequence[float] = ()  # relevance, where it is known


@dataclass(frozen=True)
class RankerSettings:
    """All that a ranker knows besides its model; it is saved as `rerank.json`."""

    top_k: int | None = (
        None  # number of candidates that the policy is about; None before `fit_exits`
    )
    policy: ExitPolicy = field(
        default_factory=LastStep
    )  # over all steps, the first stage among them where it is used
    blend: tuple[
        tuple[float, float], ...
    ] = ()  # by step: offset, and weight of the first stage; empty without one
    sigmoid: bool = True  # whether scores are given as probabilities, as Sentence Transformers gives those of one label
    fitted: Mapping[str, Any] = field(default_factory=dict)  # what `fit_exits` found, in plain JSON

    def write(self, folder: Path) -> None:
        """Write the file into a folder."""
        data = {**vars(self), "policy": self.policy.to_dict()}
        write_json(folder / RERANK, _FORMAT, sealed(data, {}))

    @classmethod
    def read(
        cls,
        folder: Path,
        weights: Callable[[], str | None],
        changed: Callable[[], Sequence[str]],
    ) -> Self:
        """Read the file of a folder; arguments as for `promise_about`, those of the model beside it."""
        data = read_json(folder / RERANK, _FORMAT, "ranker")
        own = changed_parts(data, lambda name: folder / name)
        data.pop("digests", None)
        with reading(folder / RERANK, "ranker"):
            kept = ExitPolicy.from_dict(data["policy"])
            policy = promise_about(weights, kept, lambda: [*changed(), *own])
            return cls(**{**data, "policy": policy, "blend": tuple(map(tuple, data["blend"]))})


class Ranker:
    """Orders the candidates of queries.

    Args:
        model: An `OnnxModel`; another one where `start` is overridden.
        settings: The policy, and all else besides the model.
    """

    def __init__(self, model: Any, settings: RankerSettings) -> None:
        self.model = model
        self.settings = settings
        self._inside = getattr(
            model, "ponder", model
        )  # a model of Transformers holds the one with steps
        self.layers: int = self._inside.num_steps
        self.pace = (
            0.0  # seconds of a character at a step, the highest of late; 0 until some were timed
        )

    @classmethod
    def load(cls, folder: str | Path) -> Ranker:
        """Read a folder that ranks: an export, which needs no PyTorch, or what `CrossEncoder.save` wrote."""
        ranker: Ranker = read_folder(RANKERS, Path(folder))
        return ranker

    @classmethod
    def of_export(cls, folder: Path) -> Ranker:
        """Read an export that ranks."""
        model = OnnxModel(folder)
        changed = partial(changed_in, folder)
        return cls(model, RankerSettings.read(folder, model.weights_digest, changed))

    def start(self, pairs: Sequence[tuple[str, str]], batch_size: int) -> Source:
        """Return pairs before their first step, whose outputs are scores, `(rows, 1)`."""
        source: Source = self.model.start(pairs, batch_size)
        return source

    @property
    def first_stage(self) -> bool:
        """Whether first-stage scores are the first step."""
        return bool(self.settings.blend)

    @property
    def num_steps(self) -> int:
        """The number of steps, the first stage included."""
        return self.layers + self.first_stage

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
            top_k: How many are wanted; all where None, or as many as exits were fitted for. More
                than these are ranked at full depth.
            return_documents: Whether answers hold the document as `"text"`.
            scores: First-stage scores of the candidates, where exits were fitted with such.
            within: Seconds that the answer may take. Candidates that could not be finished in time
                leave, the lowest first, and the best order so far is the answer.
            policy: An exit policy instead of the ranker's own.

        Returns:
            A dict each with `"corpus_id"`, the place of the document, `"score"`, that of its exit,
            and `"exit_step"`.
        """
        (found,) = self.rank_all(
            [Pool(query, documents, scores)], top_k, within=within, policy=policy
        )
        if return_documents:
            return [{**one, "text": documents[one["corpus_id"]]} for one in found]
        return found

    def rank_all(
        self,
        pools: Sequence[Any],
        top_k: int | None = None,
        *,
        within: float | None = None,
        policy: ExitPolicy | None = None,
    ) -> list[list[dict[str, Any]]]:
        """Order the candidates of many queries; those of several share batches.

        Arguments as for `rank`.
        """
        end = None if within is None else time.perf_counter() + within
        own = self.settings.top_k
        found = list[list[dict[str, Any]]]()
        top_k = own if top_k is None else top_k
        if policy is None:
            policy = self.settings.policy if own is None or (top_k or own) <= own else LastStep()
        for scores, steps in self._run(pools_of(pools, self.first_stage), policy, end):
            best = np.lexsort((-scores, -steps))[:top_k]
            values = zip(
                best.tolist(), self._shown(scores[best]).tolist(), steps[best].tolist(), strict=True
            )
            found.append(
                [{"corpus_id": n, "score": score, "exit_step": step} for n, score, step in values]
            )
        return found

    def predict(self, sentences: Any) -> Any:
        """Score pairs of query and document at full depth, `(pairs,)`, as `CrossEncoder.predict` does."""
        one = len(sentences) == 2 and isinstance(sentences[0], str)
        found = self.model.predict([sentences] if one else sentences, policy=LastStep())
        scores = self._shown(as_array(found.outputs)[:, 0]).astype(np.float32)
        return scores[0] if one else scores

    def record(self, pools: Sequence[Any]) -> Record:
        """Run all candidates of queries through all steps; the first stage is the first, where it is used."""
        given = pools_of(pools, self.first_stage)
        (pairs, groups, first), labels = (
            rows_of(given),
            [label for pool in given for label in pool.labels],
        )
        layers = [
            as_array(self.model.record(rows_of(part)[0]).outputs)[..., 0] for part in _chunks(given)
        ]
        columns = [*[np.zeros(len(pairs))] * self.first_stage, *np.concatenate(layers).T]
        outputs = np.stack(
            [self._blended(step, scores, first) for step, scores in enumerate(columns, 1)], 1
        )
        return Record(
            outputs[..., None].astype(np.float32),
            None,
            content_ids(pairs),
            labels=np.asarray(labels) if len(labels) == len(pairs) else None,
            task="regression",
            policy_context={"group": groups},
            weights=self._inside.weights_digest(),
            content_ids=True,
        )

    def certify(
        self,
        pools: Sequence[Any],
        policy: TopK,
        *,
        changed: float,
        confidence: float = CONFIDENCE,
        risk: str = "top_k",
    ) -> RiskControl:
        """Choose the margin of a policy on queries that chose nothing else, and take it; arguments as `fit_exits`."""
        layers = np.arange(1.0, self.num_steps + 1) - self.first_stage
        found = control_risk(
            self.record(pools),
            policy,
            risk=risk,  # type: ignore[arg-type]
            level=changed,
            confidence=confidence,
            bound="betting" if risk.startswith("ndcg") else "exact_binomial",
            grid=_MARGINS,
            costs=np.maximum(layers, 0.01),  # the first stage is paid already
        )
        fitted = {
            **self.settings.fitted,
            "statement": found.statement,
            "met": found.met,
            "observed": found.observed,
        }
        fitted |= {"risk": risk, "level": changed, "certified_on": len(pools)}
        fitted["pair_layers"] = float(self.layers / (layers @ np.asarray(found.exit_shares)))
        self.settings = replace(self.settings, top_k=policy.k, policy=found.policy, fitted=fitted)
        return found

    def _run(
        self, pools: Sequence[Pool], policy: ExitPolicy, end: float | None = None
    ) -> list[tuple[Array, Array]]:
        """Return the scores of each query's candidates at their exits, and the exit steps, `(candidates,)` each.

        Candidates that could not be finished before the end leave too; where that is before any
        step, their step is 0.
        """
        found = list[tuple[Array, Array]]()
        for part in _chunks(pools):
            candidates = _Candidates(self, part)
            rows = np.arange(len(candidates.pairs))
            decides = policy
            scores = np.full(len(rows), -np.inf)
            steps = np.zeros(len(rows), dtype=np.int64)
            if end is not None and candidates.pairs:
                decides = _Deadline(policy, end, lambda: self.pace)
                if not self.pace:
                    some = [Pool(query, [document]) for query, document in candidates.pairs[:8]]
                    self._run(some, LastStep())  # which measures it
                if not self.first_stage:
                    room = decides.room(0, self.num_steps)
                    rows = np.flatnonzero(np.cumsum(candidates.sizes) <= room)
                    candidates.keep(rows)
            if len(rows):
                for exited in exits_of(
                    candidates, decides, PolicyBatch(rows, self.num_steps, _TASK)
                ):
                    left = rows if exited.rows is None else rows[exited.rows]
                    scores[left], steps[left] = exited.outputs[:, 0], exited.step
            ends = np.cumsum([len(pool.documents) for pool in part])[:-1]
            found += zip(np.split(scores, ends), np.split(steps, ends), strict=True)
        return found

    def _blended(self, step: int, scores: Any, first: Array) -> Array:
        """Return the scores of a step with the share that the first stage has in them."""
        offset, weight = self.settings.blend[step - 1] if self.first_stage else (0.0, 0.0)
        return np.asarray(scores + offset + weight * first)

    def _shown(self, scores: Array) -> Array:
        return sigmoid(scores) if self.settings.sigmoid else scores


@dataclass(frozen=True)
class _Deadline(PolicyWrapper):
    """The policy inside, and besides it the lowest scores exit for which no time is left.

    A candidate stays if all that are scored higher, and it, can be taken to the last step before
    the end.

    Args:
        policy: The policy inside.
        end: The end, by `time.perf_counter`.
        pace: Returns the seconds that a character takes at a step.
    """

    end: float
    pace: Callable[[], float]

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """The policy inside reads these; scores and sizes are read besides."""
        return self.policy.needs | {"output", "context"}

    def decide(self, step: StepView, state: Any) -> tuple[Array, Any]:
        """Return which candidates exit."""
        exits, state = self.policy.decide(step, state)
        exits = np.broadcast_to(exits, step.index.shape)
        order = np.argsort(np.where(exits, np.inf, -step.output[:, 0]), kind="stable")
        room = self.room(int(step.index[0]), step.num_steps)
        late = np.ones(len(order), dtype=bool)
        late[order[np.cumsum(step.context["characters"][order]) <= room]] = False
        return exits | late, state

    def room(self, step: int, num_steps: int) -> float:
        """Return how many characters can be taken from a step to the last before the end."""
        last = self.policy.exit_of_all(num_steps) or num_steps
        if step >= last:
            return math.inf
        return _SPARE * (self.end - time.perf_counter()) / (self.pace() * (last - step))


class _Candidates:
    """The candidates of some queries, a `ponder.running.Source`: computed in batches, and decided on together."""

    mask = None

    def __init__(self, ranker: Ranker, pools: Sequence[Pool]) -> None:
        self._ranker = ranker
        self.pairs, self._groups, self._first = rows_of(pools)
        self._rows = np.arange(len(self.pairs))  # that remain
        self.sizes = np.array([8 + len(query) + len(document) for query, document in self.pairs])
        """The characters of each candidate."""
        self._source: Source | None = None  # there is none before the first layer
        self._step = 0
        self._began = 0.0
        self._output: Array | None = None

    @property
    def policy_context(self) -> dict[str, Array]:
        return {"group": self._groups[self._rows], "characters": self.sizes[self._rows]}

    def advance(self, step: int) -> None:
        """Take all that remain through a step, the first stage being none."""
        layer = step - self._ranker.first_stage
        if layer == 1:
            self._source = self._ranker.start([self.pairs[row] for row in self._rows], _BATCH)
        self._step = step
        self._began = time.perf_counter()
        self._output = None
        if self._source is not None:
            self._source.advance(layer)

    def output(self) -> Array:
        """Return the scores of all that remain, `(rows, 1)`, and note how long the step took."""
        if self._output is None:
            ranker = self._ranker
            rows = self._rows
            scores = np.zeros(len(rows))
            if self._source is not None:
                scores = as_array(self._source.output())[:, 0]
                pace = (time.perf_counter() - self._began) / self.sizes[rows].sum()
                ranker.pace = max(pace, 0.8 * ranker.pace + 0.2 * pace)
            self._output = ranker._blended(self._step, scores, self._first[rows])[:, None]
        return self._output

    def output_of(self, index: Array) -> Array:
        return self.output()[index]

    def features(self) -> Array:
        raise ArgumentError(
            "policy", expected="one that reads scores", got="features", remedy="Use TopK."
        )

    def hazard_logit(self) -> Array:
        return self.features()

    def keep(self, index: Array) -> None:
        self._rows = self._rows[index]
        if self._source is not None:
            self._source.keep(index)


def pools_of(given: Sequence[Any], first_stage: bool = False) -> list[Pool]:
    """Return queries with candidates, as `Pool`s or dicts with `query`, `documents`, and perhaps `scores` and `labels`.

    Raises:
        ArgumentError: One that is no such thing, or whose scores are not one for each document.
    """
    pools = []
    for number, one in enumerate(given, 1):
        try:
            pool = one if isinstance(one, Pool) else Pool(**one)
            size = len(pool.documents)
            texts = (pool.query, *pool.documents)
            right = not isinstance(pool.documents, str) and all(
                isinstance(text, str) for text in texts
            )
            right &= len(pool.labels) in (0, size) and len(pool.scores) in (
                size * first_stage,
                size,
            )
        except TypeError:
            right = False
        if not right:
            each = "for each" if first_stage else "for each or for none"
            expected = f"a query, a list of documents, and a first-stage score {each}"
            got = f"{one!s:.80} as number {number}"
            remedy = 'Pass {"query": "…", "documents": ["…"], "scores": [0.5]}.'
            raise ArgumentError("queries", expected=expected, got=got, remedy=remedy)
        pools.append(pool)
    return pools


def rows_of(pools: Sequence[Pool]) -> tuple[list[tuple[str, str]], Array, Array]:
    """Return all candidates: the pairs, and the number of the query and the first-stage score of each, `(rows,)`.

    The score is the lowest of its pool for one that is no number, and 0 without any.
    """
    pairs = [(pool.query, document) for pool in pools for document in pool.documents]
    groups = np.repeat(np.arange(len(pools)), [len(pool.documents) for pool in pools])
    first = [np.zeros(0)]
    for pool in pools:
        scores = np.asarray(pool.scores or np.zeros(len(pool.documents)), dtype=np.float64)
        known = scores[np.isfinite(scores)]
        first.append(np.where(np.isfinite(scores), scores, known.min() if len(known) else 0.0))
    return pairs, groups, np.concatenate(first)


def _chunks(pools: Sequence[Pool]) -> list[list[Pool]]:
    """Whole queries together, until there are enough candidates."""
    number = np.cumsum([len(pool.documents) for pool in pools]) // _AT_ONCE
    parts = np.split(np.arange(len(pools)), np.flatnonzero(np.diff(number)) + 1)
    return [[pools[place] for place in part.tolist()] for part in parts if len(part)]
