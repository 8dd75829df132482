"""`Ranker`: candidates of queries are scored step by step; those that have lost exit early.

It runs an export with NumPy and onnxruntime alone; its subclass
`ponder.integrations.sentence_transformers.CrossEncoder` runs a model of Transformers. Candidates
are computed in batches of similar length (`_Candidates`), and all of a query are decided together.
With a deadline, `_Deadline` also lets the candidates exit that cannot be finished in time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
from numpy.typing import NDArray

from ponder._utils.arrays import as_array, sigmoid
from ponder._utils.files import reading
from ponder._utils.plain import from_plain
from ponder._utils.readers import RANKERS, read_folder
from ponder._utils.rows import content_ids
from ponder._utils.seals import read_sealed, write_sealed
from ponder.calibration.control import RiskControl, control_risk
from ponder.calibration.records import Record
from ponder.deploy.manifest import changed_in
from ponder.deploy.runtime import OnnxModel
from ponder.errors import ArgumentError
from ponder.policies.base import ExitPolicy, LastStep, PolicyBatch, PolicyWrapper, StepView
from ponder.policies.combine import Certified, promise_about
from ponder.policies.topk import TopK
from ponder.running.loop import exits_of
from ponder.running.source import Source, stepped_part
from ponder.statistics.certificate import CONFIDENCE
from ponder.tasks import task_named

__all__ = ["RERANK", "Pool", "Ranker", "RankerSettings", "Scored", "pools_of", "rows_of"]

RERANK = "rerank.json"
"""The file of a folder that ranks."""
Array = NDArray[Any]
_FORMAT = "ponder-rerank-1"
_BATCH = 32
"""Candidates of a batch."""
_AT_ONCE = 512
"""Candidates in memory at a time, about."""
_PLANNED = 0.85
"""The share of a time budget to plan for."""
_OVERHEAD = 8
"""Characters that are added to each pair: the time of a step does not vanish with its length."""
_TASK = task_named("regression")
_MARGINS = tuple(np.linspace(8.0, 0.0, 161).round(3).tolist())


@dataclass(frozen=True)
class Pool:
    """A query with its candidates.

    Args:
        query: The query.
        documents: The candidates.
        scores: First-stage scores, of which higher ones are better; empty without a first stage.
        labels: The relevance of each candidate; empty if it is not known.
    """

    query: str
    documents: Sequence[str]
    scores: Sequence[float] = ()
    labels: Sequence[float] = ()

    def problem(self, needs_scores: bool) -> str:
        """Return what is wrong with types or lengths, in words; empty if nothing is."""
        size = len(self.documents)
        if isinstance(self.documents, str):
            return "documents that are one text"
        if not all(isinstance(text, str) for text in (self.query, *self.documents)):
            return "a query or documents that are no texts"
        if needs_scores and size and not len(self.scores):
            return f"no scores for {size} documents"
        for name, values in (("scores", self.scores), ("labels", self.labels)):
            if len(values) not in (0, size):
                return f"{len(values)} {name} for {size} documents"
        return ""


@dataclass(frozen=True, eq=False)
class CandidateRows:
    """The candidates of several queries as rows.

    Args:
        pairs: Query and document of each.
        groups: The number of the query of each, `(rows,)`.
        scores: The first-stage score of each, `(rows,)`. A score that is not finite is the lowest
            of its query; without a first stage all are 0.
    """

    pairs: list[tuple[str, str]]
    groups: Array
    scores: Array


@dataclass(frozen=True, eq=False)
class Scored:
    """The scores of a query's candidates at their exits, and the exit steps, `(candidates,)`."""

    scores: Array
    steps: Array


@dataclass(frozen=True)
class RankerSettings:
    """The settings of a ranker, saved as `rerank.json`.

    Args:
        top_k: The number of candidates for which the policy was fitted; None before `fit_exits`.
        policy: The policy over all steps, of which the first stage, if it is used, is the first.
        blend: By step, an offset and the weight of the first-stage score; empty without it.
        sigmoid: Whether scores are returned as probabilities, as Sentence Transformers does for
            models of one label.
        fitted: Results of `fit_exits`, in plain JSON.
    """

    top_k: int | None = None
    policy: ExitPolicy = field(default_factory=LastStep)
    blend: tuple[tuple[float, float], ...] = ()
    sigmoid: bool = True
    fitted: Mapping[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write the file into a folder."""
        data = {**vars(self), "policy": self.policy.to_dict()}
        write_sealed(folder / RERANK, _FORMAT, data)

    @classmethod
    def read(
        cls,
        folder: Path,
        weights: Callable[[], str | None],
        changed: Callable[[], Sequence[str]],
    ) -> Self:
        """Read the file of a folder, and drop a promise that is about another model.

        Args:
            folder: The folder.
            weights: Returns the digest of the model's weights.
            changed: Returns the parts of the model's files that have changed.
        """
        saved = read_sealed(folder / RERANK, _FORMAT, "ranker")
        with reading(folder / RERANK, "ranker"):
            policy = ExitPolicy.from_dict(saved.settings["policy"])
            policy = promise_about(weights, policy, lambda: [*changed(), *saved.changed()])
            return from_plain(cls, {**saved.settings, "policy": policy})


class Ranker:
    """Order the candidates of queries.

    Args:
        model: An `OnnxModel`; any other model if `start` is overridden.
        settings: The policy, and the other settings.
    """

    def __init__(self, model: Any, settings: RankerSettings) -> None:
        self.model = model
        self.settings = settings
        self._stepped = stepped_part(model)
        self.layers: int = self._stepped.num_steps
        self.pace = 0.0
        """Seconds of a character at a step, the highest of late; 0 until it is measured."""

    @classmethod
    def load(cls, folder: str | Path) -> Ranker:
        """Read a folder that ranks: an export, without PyTorch, or one of `CrossEncoder.save`."""
        return cast(Ranker, read_folder(RANKERS, Path(folder)))

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
    def statement(self) -> str:
        """The promise in one sentence, or why nothing is promised."""
        policy = self.settings.policy
        if isinstance(policy, Certified):
            return policy.certificate.sentence
        fallback = "No promise: exits were not fitted."
        return str(self.settings.fitted.get("statement", fallback))

    @property
    def num_steps(self) -> int:
        """The number of steps, with the first stage."""
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
        """Order the candidates of a query, the best first, as `CrossEncoder.rank` does.

        Args:
            query: The query.
            documents: The candidates.
            top_k: The number of candidates that are wanted. By default the number for which exits
                were fitted, or all. If it is larger, all candidates run to full depth.
            return_documents: Whether answers hold the document as `"text"`.
            scores: First-stage scores of the candidates, if exits were fitted with such.
            within: Seconds that the answer may take. Candidates that cannot be finished in time
                exit, the lowest first, and the best order so far is the answer.
            policy: An exit policy instead of the ranker's.

        Returns:
            A dict for each candidate with `"corpus_id"`, the place of the document, `"score"`, its
            score at its exit, and `"exit_step"`.
        """
        pool = Pool(query, documents, scores)
        [answers] = self.rank_all([pool], top_k, within=within, policy=policy)
        if return_documents:
            return [{**answer, "text": documents[answer["corpus_id"]]} for answer in answers]
        return answers

    def rank_all(
        self,
        pools: Sequence[Any],
        top_k: int | None = None,
        *,
        within: float | None = None,
        policy: ExitPolicy | None = None,
    ) -> list[list[dict[str, Any]]]:
        """Order the candidates of many queries, which share batches; arguments as for `rank`."""
        end: float | None = None
        if within is not None:
            end = time.perf_counter() + within
        fitted_for = self.settings.top_k
        if top_k is None:
            top_k = fitted_for
        if policy is None:
            policy = self.settings.policy
            if fitted_for is not None and top_k is not None and top_k > fitted_for:
                policy = LastStep()
        answers: list[list[dict[str, Any]]] = []
        for query in self._run(pools_of(pools, self.first_stage), policy, end):
            # Candidates that exited late beat those that were dropped before.
            best = np.lexsort((-query.scores, -query.steps))[:top_k]
            scores = self._shown(query.scores[best]).tolist()
            steps = query.steps[best].tolist()
            answers.append(
                [
                    {"corpus_id": place, "score": score, "exit_step": step}
                    for place, score, step in zip(best.tolist(), scores, steps, strict=True)
                ]
            )
        return answers

    def predict(self, sentences: Any) -> Any:
        """Return scores of pairs of query and document at full depth, `(pairs,)`.

        One pair of texts is answered by one score, as in Sentence Transformers.
        """
        if len(sentences) == 2 and isinstance(sentences[0], str):
            return self.predict([sentences])[0]
        answers = self.model.predict(sentences, policy=LastStep())
        return self._shown(as_array(answers.outputs)[:, 0]).astype(np.float32)

    def record(
        self,
        pools: Sequence[Any],
        progress: Callable[[str, int, int], object] | None = None,
    ) -> Record:
        """Run all candidates of queries through all steps, of which a first stage is the first.

        Args:
            pools: The queries.
            progress: Called with a phase, the number of candidates that are done, and of all.
        """
        valid = pools_of(pools, self.first_stage)
        rows = rows_of(valid)
        records: list[Record] = []
        done = 0
        for part in _chunks(valid):
            pairs = rows_of(part).pairs
            records.append(self.model.record(pairs))
            done += len(pairs)
            if progress is not None:
                progress("certify", done, len(rows.pairs))
        layers = np.concatenate([as_array(record.outputs)[..., 0] for record in records])
        steps = list(layers.T)
        if self.first_stage:
            steps.insert(0, np.zeros(len(rows.pairs)))
        blended = [self._blended(step, scores, rows.scores) for step, scores in enumerate(steps, 1)]
        given = [label for pool in valid for label in pool.labels]
        labels: Array | None = None
        if len(given) == len(rows.pairs):  # else some candidates have none
            labels = np.array(given)
        return Record(
            np.stack(blended, axis=1)[..., None].astype(np.float32),
            None,
            content_ids(rows.pairs),
            labels=labels,
            task="regression",
            policy_context={"group": rows.groups},
            weights=self._stepped.weights_digest(),
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
        progress: Callable[[str, int, int], object] | None = None,
    ) -> RiskControl:
        """Certify the margin of a policy on queries that chose nothing, and set the policy.

        Arguments as for `CrossEncoder.fit_exits`.
        """
        layers = np.arange(1.0, self.num_steps + 1) - self.first_stage
        control = control_risk(
            self.record(pools, progress),
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
            "statement": control.statement,
            "met": control.met,
            "observed": control.observed,
            "risk": risk,
            "level": changed,
            "certified_on": len(pools),
            "pair_layers": float(self.layers / (layers @ np.asarray(control.exit_shares))),
        }
        self.settings = replace(self.settings, top_k=policy.k, policy=control.policy, fitted=fitted)
        return control

    def _run(
        self, pools: Sequence[Pool], policy: ExitPolicy, end: float | None = None
    ) -> list[Scored]:
        """Run the candidates of each query to their exits.

        Candidates that cannot be finished before the end exit, too; if that is before any step,
        their step is 0.
        """
        results: list[Scored] = []
        for part in _chunks(pools):
            candidates = _Candidates(self, part)
            rows = np.arange(len(candidates.pairs))
            scores = np.full(len(rows), -np.inf)
            steps = np.zeros(len(rows), dtype=np.int64)
            deciding = policy
            if end is not None and candidates.pairs:
                deciding = self._with_deadline(policy, end, candidates)
                if not self.first_stage:
                    # No scores rank the candidates yet: the first ones that fit are computed.
                    room = deciding.room(0, self.num_steps)
                    rows = np.flatnonzero(np.cumsum(candidates.sizes) <= room)
                    candidates.keep(rows)
            if len(rows):
                batch = PolicyBatch(rows, self.num_steps, _TASK)
                for exited in exits_of(candidates, deciding, batch):
                    exited_rows = rows if exited.rows is None else rows[exited.rows]
                    scores[exited_rows] = exited.outputs[:, 0]
                    steps[exited_rows] = exited.step
            ends = np.cumsum([len(pool.documents) for pool in part])[:-1]
            for of_query in zip(np.split(scores, ends), np.split(steps, ends), strict=True):
                results.append(Scored(*of_query))
        return results

    def _with_deadline(self, policy: ExitPolicy, end: float, candidates: _Candidates) -> _Deadline:
        """Return a policy with a deadline; the first call measures the pace on a few candidates."""
        if not self.pace:
            some = [Pool(query, [document]) for query, document in candidates.pairs[:8]]
            self._run(some, LastStep())
        return _Deadline(policy, end, lambda: self.pace)

    def _blended(self, step: int, scores: Any, first: Array) -> Array:
        """Return the scores of a step with the weighted first-stage scores."""
        if not self.first_stage:
            return np.asarray(scores, dtype=np.float64)
        offset, weight = self.settings.blend[step - 1]
        return np.asarray(scores + offset + weight * first)

    def _shown(self, scores: Array) -> Array:
        if not self.settings.sigmoid:
            return scores
        return sigmoid(scores)


@dataclass(frozen=True)
class _Deadline(PolicyWrapper):
    """The policy inside, and the lowest scores exit for which there is no time.

    A candidate stays if it and all candidates with a higher score can reach the last step before
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
        """The needs of the policy inside, and the scores and sizes of candidates."""
        return self.policy.needs | {"output", "context"}

    def decide(self, step: StepView, state: Any) -> tuple[Array, Any]:
        """Return which candidates exit."""
        exits, state = self.policy.decide(step, state)
        exits = np.broadcast_to(exits, step.index.shape)
        # The highest scores first; candidates that exit anyway take no room.
        sort_keys = np.where(exits, np.inf, -step.output[:, 0])
        order = np.argsort(sort_keys, kind="stable")
        characters = np.cumsum(step.context["characters"][order])
        room = self.room(int(step.index[0]), step.num_steps)
        in_time = order[characters <= room]
        late = np.ones(len(order), dtype=bool)
        late[in_time] = False
        return exits | late, state

    def room(self, step: int, num_steps: int) -> float:
        """Return the number of characters that can reach the last step before the end."""
        last = self.policy.exit_of_all(num_steps) or num_steps
        if step >= last:
            return math.inf
        return _PLANNED * (self.end - time.perf_counter()) / (self.pace() * (last - step))


class _Candidates:
    """The candidates of some queries, decided together: a `ponder.running.Source`."""

    mask = None

    def __init__(self, ranker: Ranker, pools: Sequence[Pool]) -> None:
        self._ranker = ranker
        candidates = rows_of(pools)
        self.pairs = candidates.pairs
        self._groups = candidates.groups
        self._first = candidates.scores
        # The candidates that remain.
        self._rows = np.arange(len(self.pairs))
        self.sizes = np.array([_OVERHEAD + len(query) + len(text) for query, text in self.pairs])
        """The characters of each candidate."""
        self._source: Source | None = None  # before the first layer
        self._step = 0
        self._began = 0.0
        self._output: Array | None = None

    @property
    def policy_context(self) -> dict[str, Array]:
        return {"group": self._groups[self._rows], "characters": self.sizes[self._rows]}

    def advance(self, step: int) -> None:
        """See `Source.advance`; the first stage computes nothing."""
        layer = step - self._ranker.first_stage
        if layer == 1:
            self._source = self._ranker.start([self.pairs[row] for row in self._rows], _BATCH)
        self._step = step
        self._began = time.perf_counter()
        self._output = None
        if self._source is not None:
            self._source.advance(layer)

    def output(self) -> Array:
        """Return the scores of the remaining candidates, `(rows, 1)`, and measure the pace."""
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
    """Return queries with candidates as `Pool`s.

    Args:
        given: `Pool`s, or dicts with `query`, `documents`, and optionally `scores` and `labels`.
        first_stage: Whether first-stage scores are required.

    Raises:
        ArgumentError: A query is of another form, or lacks a score for each document.
    """
    pools: list[Pool] = []
    for number, query in enumerate(given, 1):
        try:
            pool = query
            if not isinstance(query, Pool):
                pool = Pool(**query)
            problem = pool.problem(first_stage)
        except TypeError:
            problem = f"{query!s:.80}"
        if problem:
            each = "for each" if first_stage else "for each or for none"
            remedy = 'Pass {"query": "…", "documents": ["…"], "scores": [0.5]}.'
            if first_stage:
                remedy = "These exits were fitted with first-stage scores: pass scores=[…]."
            raise ArgumentError(
                "queries",
                expected=f"a query, a list of documents, and a first-stage score {each}",
                got=f"{problem} (query number {number})",
                remedy=remedy,
            )
        pools.append(pool)
    return pools


def rows_of(pools: Sequence[Pool]) -> CandidateRows:
    """Return all candidates of some queries."""
    pairs = [(pool.query, document) for pool in pools for document in pool.documents]
    groups = np.repeat(np.arange(len(pools)), [len(pool.documents) for pool in pools])
    first_stage = [np.zeros(0)]
    for pool in pools:
        scores = np.asarray(pool.scores or np.zeros(len(pool.documents)), dtype=np.float64)
        known = scores[np.isfinite(scores)]
        lowest = 0.0
        if len(known):
            lowest = known.min()
        first_stage.append(np.where(np.isfinite(scores), scores, lowest))
    return CandidateRows(pairs, groups, np.concatenate(first_stage))


def _chunks(pools: Sequence[Pool]) -> list[list[Pool]]:
    """Return parts of some queries, each with about as many candidates as may be in memory."""
    number = np.cumsum([len(pool.documents) for pool in pools]) // _AT_ONCE
    parts = np.split(np.arange(len(pools)), np.flatnonzero(np.diff(number)) + 1)
    return [[pools[place] for place in part.tolist()] for part in parts if len(part)]
