"""The race: ways to save work of a rerank, with what they change and what they cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.environment import environment
from benchmarks.files import write_json
from benchmarks.rerank.data import Queries, load
from ponder.calibration.records import Record
from ponder.calibration.risks import Ranking, ranked
from ponder.deploy.ranking import Pool
from ponder.integrations.sentence_transformers import CrossEncoder
from ponder.policies import LastStep, TopK
from ponder.policies.base import all_within
from ponder.statistics.bounds import BOUNDS

__all__ = ["race"]

MARGINS = tuple(np.linspace(6.0, 0.0, 61).round(2).tolist())
_SHARES = (0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Shares of the pool that the first stage keeps."""
_TIMED = 16  # queries
_PROMISES = (
    ("top_k", 10, 0.05),
    ("top_k", 3, 0.05),
    ("top_1", 1, 0.05),
    ("ndcg", 10, 0.01),
    ("ndcg_gap", 10, 0.005),
)

Numbers = dict[str, float]


def race(
    task: str,
    data: Path,
    models: Path,
    out: Path,
    *,
    backbone: str,
    k: int,
    fit: int,
    test: int,
    train: int,
    seed: int,
    say: Callable[[str], object],
) -> dict[str, Any]:
    """Fit exits with and without a first stage, and compare them with cut pools and encoders."""
    torch.set_num_threads(1)
    folder = models / f"{task.lower()}-{backbone}-s{seed}"
    learn = pools_of(load(task, data, seed, train=True).cut(train, train + fit))
    fresh = pools_of(load(task, data, seed, train=False).cut(0, test))
    rankers = dict[str, CrossEncoder]()
    records = dict[str, Record]()
    fitted = dict[str, Any]()
    once = Once(CrossEncoder(folder / "whole"), [*learn, *fresh])
    for name, given in (("TopK, first stage", learn), ("TopK", [_bare(pool) for pool in learn])):
        rankers[name] = ranker = CrossEncoder(folder / "whole")
        ranker.model.record = partial(once.record, ranker.model)
        ranker.fit_exits(given, top_k=k, changed=0.05)
        fitted[name] = dict(ranker.settings.fitted)
        records[name] = ranker.record(
            fresh if ranker.first_stage else [_bare(pool) for pool in fresh]
        )
        say(f"{name}: {fitted[name]['statement']}")
    rankers["TopK, first stage"].save(folder / "ranker")
    short = max(folder.glob("cut*"))
    rankers["cut encoder"] = CrossEncoder(short)
    records["cut encoder"] = rankers["cut encoder"].record([_bare(pool) for pool in fresh])
    curves = {name: curve(way, records, k) for name, way in _ways(rankers, records, k).items()}
    timed = _timed(rankers, fresh, curves, k)
    say(f"timed {min(_TIMED, len(fresh))} queries")
    staged = records["TopK, first stage"]
    result = {
        "task": task,
        "backbone": backbone,
        "settings": {
            "k": k,
            "fit": fit,
            "test": test,
            "train": train,
            "seed": seed,
            "layers": staged.num_steps - 1,
        },
        "candidates": len(fresh[0].documents),
        "quality": _quality(records["TopK"], short.name, records["cut encoder"]),
        "fitted": fitted,
        "curves": curves,
        "seconds": timed,
        "promises": promises(staged, rankers["TopK, first stage"], k),
        "environment": environment(torch.device("cpu")),
    }
    write_json(out / f"{folder.name}-k{k}.json", result)
    return result


class Once:
    """The states of all pairs, recorded once; records under any early heads are computed from them."""

    def __init__(self, ranker: CrossEncoder, pools: Sequence[Pool]) -> None:
        pairs = [(pool.query, document) for pool in pools for document in pool.documents]
        self.seen = ranker.model.record(pairs, keep_features=True)
        self.places = {pair: place for place, pair in enumerate(pairs)}

    @torch.inference_mode()
    def record(self, model: Any, pairs: Sequence[tuple[str, str]], **options: Any) -> Any:
        """Return the trajectory of some pairs under the heads of a model, as its `record` does."""
        places = torch.tensor([self.places[pair] for pair in pairs])
        seen = self.seen.map(lambda tensor: tensor[places])
        outputs = [
            head(seen.features[:, step]) for step, head in enumerate(model.ponder.head.heads)
        ]
        return replace(seen, outputs=torch.stack(outputs, 1))


def pools_of(queries: Queries) -> list[Pool]:
    """Return the candidates of each query, with the scores of the first stage."""
    pools = []
    nearest = queries.nearest(queries.size)
    for text, gold, (places, scores) in zip(queries.texts, queries.gold, nearest, strict=True):
        documents = [queries.documents[place] for place in places]
        labels = [float(place == gold) for place in places]
        pools.append(Pool(text, documents, scores, labels))
    return pools


def _bare(pool: Pool) -> Pool:
    return Pool(pool.query, pool.documents, (), pool.labels)


@dataclass(frozen=True, eq=False)
class Setting:
    """One setting of a way, on the candidates of a record.

    Args:
        steps: Exit step of each candidate, `(rows,)`.
        work: Share of the pair-layers.
        scores: Score of each candidate at its exit, `(rows,)`.
    """

    steps: NDArray[Any]
    work: float
    scores: NDArray[Any]


Way = dict[float, Setting]
"""The settings of a way, by the value of its threshold."""


def groups_of(record: Record) -> NDArray[Any]:
    """Return the number of the query of each candidate, `(rows,)`."""
    assert record.policy_context is not None
    return np.asarray(record.policy_context["group"])


def _ways(
    rankers: Mapping[str, CrossEncoder], records: Mapping[str, Record], k: int
) -> dict[str, Way]:
    """Return every way with its settings."""
    whole = records["TopK"]
    ways = _cuts(whole, records["TopK, first stage"], records["cut encoder"], k)
    ways["exits without the group"] = _fixed_scores(whole)
    for name in ("TopK", "TopK, first stage"):
        policy = _policy(rankers[name], k)
        ways[name] = _margins(records[name], policy, layers=whole.num_steps)
    return ways


def _cuts(whole: Record, staged: Record, short: Record, k: int) -> dict[str, Way]:
    """Return the whole and the cut encoder on the best share of the first stage."""
    layers = whole.num_steps
    groups = groups_of(whole)
    size = np.bincount(groups)[0]
    place = ranked(groups, np.asarray(staged.outputs)[:, 0, 0])
    scores = np.asarray(whole.outputs)[:, -1, 0]
    short_scores = np.asarray(short.outputs)[:, -1, 0]
    ways: dict[str, Way] = {"cut pool": {}, "cut encoder": {}}
    for share in (*_SHARES, 1.0):
        kept = place < max(round(share * size), k)
        steps = np.where(kept, layers, 1)
        work = float(kept.mean())
        ways["cut pool"][share] = Setting(steps, work, np.where(kept, scores, -np.inf))
        work = work * short.num_steps / layers
        ways["cut encoder"][share] = Setting(steps, work, np.where(kept, short_scores, -np.inf))
    return ways


def _fixed_scores(whole: Record) -> Way:
    """Return exits of candidates below a fixed score, whatever the others of their query have."""
    scores = np.asarray(whole.outputs)[..., 0]
    rows = np.arange(len(whole))
    way: Way = {}
    for limit in np.quantile(scores[:, -1], np.linspace(0.02, 0.98, 49)):
        below = scores < limit
        below[:, -1] = True
        steps = below.argmax(1) + 1
        work = float(steps.mean()) / whole.num_steps
        way[round(float(limit), 4)] = Setting(steps, work, scores[rows, steps - 1])
    return way


def _margins(record: Record, policy: TopK, layers: int) -> Way:
    """Return the exits of a policy under all margins; the first stage is a step without a layer."""
    rows = np.arange(len(record))
    first_stage = record.num_steps - layers
    way: Way = {}
    for margin in MARGINS:
        steps = record.exit_steps(policy.with_threshold(margin))
        work = float((steps - first_stage).mean()) / layers
        way[margin] = Setting(steps, work, np.asarray(record.outputs)[rows, steps - 1, 0])
    return way


def _policy(ranker: CrossEncoder, k: int) -> TopK:
    """Return the policy of a ranker, or one of margin 1 if nothing could be promised."""
    found = [part for part in all_within(ranker.settings.policy) if isinstance(part, TopK)]
    return found[0] if found else TopK(k, 1.0)


def curve(way: Way, records: Mapping[str, Record], k: int) -> list[Numbers]:
    """Return what each setting changes against the full rerank, and its share of the pair-layers."""
    full = records["TopK"]
    groups = groups_of(full)
    full_scores = np.asarray(full.outputs)[:, -1, 0]
    points = []
    for value, setting in way.items():
        # The order at the exits is that of `ranked`, by step and score: its places are the scores.
        exits = -ranked(groups, setting.scores, setting.steps)
        outputs = np.stack([exits, full_scores], 1)[..., None]
        seen = Record(
            outputs, None, full.row_ids, labels=full.labels, policy_context=full.policy_context
        )
        ones = np.ones(len(seen), dtype=int)
        point = {"setting": value, "work": setting.work}
        for name in ("top_k", "top_1", "ndcg", "ndcg_gap"):
            point[name] = float(Ranking(name, k).of_exits(seen, ones).mean())
        points.append(point)
    return points


def _quality(full: Record, cut_name: str, short: Record) -> Numbers:
    """Return how often the right document is first, and nDCG@10, of whole and cut encoder."""
    groups = groups_of(full)
    labels = np.asarray(full.labels)
    found = {}
    for name, record in (("whole", full), (cut_name, short)):
        place = ranked(groups, np.asarray(record.outputs)[:, -1, 0])[labels > 0]
        found[f"{name} top 1"] = float((place == 0).mean())
        found[f"{name} nDCG@10"] = float(np.where(place < 10, 1 / np.log2(place + 2.0), 0.0).mean())
    return found


def _timed(
    rankers: Mapping[str, CrossEncoder],
    fresh: Sequence[Pool],
    curves: Mapping[str, list[Numbers]],
    k: int,
) -> list[dict[str, Any]]:
    """Return processor seconds a query of some settings of each way, timed in turn."""
    calls = _calls(rankers, k)
    spent = {key: list[float]() for key in calls}
    for number, pool in enumerate(fresh[:_TIMED]):
        # The order alternates, so that no way always follows the same one.
        order = list(calls) if number % 2 else list(calls)[::-1]
        for key in order:
            start = time.process_time()
            calls[key](pool)
            spent[key].append(time.process_time() - start)
    points: list[dict[str, Any]] = []
    for (name, value), seconds in spent.items():
        known = [point for point in curves.get(name, []) if point["setting"] == value]
        point = {"way": name, "setting": value, "seconds": float(np.mean(seconds[2:]))}
        points.append({**point, **(known[0] if known else {})})
    return points


Call = Callable[[Pool], object]


def _calls(rankers: Mapping[str, CrossEncoder], k: int) -> dict[tuple[str, float], Call]:
    """Return the calls that are timed, by way and setting."""
    calls: dict[tuple[str, float], Call] = {}
    for share in (1.0, 0.8, 0.6, 0.4, 0.25, 0.15):
        calls["cut pool", share] = _call_of_best(rankers["TopK"], share, k)
        calls["cut encoder", share] = _call_of_best(rankers["cut encoder"], share, k)
    for name in ("TopK", "TopK, first stage"):
        for margin in (3.0, 2.0, 1.5, 1.0, 0.7, 0.5, 0.3):
            calls[name, margin] = _call_of_exits(rankers[name], margin, k)
    theirs = _theirs(rankers["TopK"])
    if theirs is not None:
        calls["sentence-transformers", 1.0] = lambda pool: theirs.rank(
            pool.query, list(pool.documents)
        )
    return calls


def _call_of_best(ranker: CrossEncoder, share: float, k: int) -> Call:
    """Return a function that ranks the best share of a pool at full depth."""

    def call(pool: Pool) -> object:
        count = max(round(share * len(pool.scores)), k)
        documents = [pool.documents[place] for place in np.argsort(pool.scores)[::-1][:count]]
        return ranker.rank(pool.query, documents, k, policy=LastStep())

    return call


def _call_of_exits(ranker: CrossEncoder, margin: float, k: int) -> Call:
    """Return a function that ranks a pool with exits."""
    policy = _policy(ranker, k).with_threshold(margin)

    def call(pool: Pool) -> object:
        scores = pool.scores if ranker.first_stage else ()
        return ranker.rank(pool.query, pool.documents, k, scores=scores, policy=policy)

    return call


def _theirs(ranker: CrossEncoder) -> Any:
    """Return the cross-encoder of Sentence Transformers with the same weights, if installed."""
    try:
        import sentence_transformers
    except ImportError:
        return None
    folder = ranker.model.encoder.config.name_or_path
    return sentence_transformers.CrossEncoder(folder, device="cpu")


def promises(
    record: Record, ranker: CrossEncoder, k: int, draws: int = 1000, seen: int = 250
) -> list[dict[str, Any]]:
    """Count the broken promises of several risks, certified on draws of the test queries."""
    found: list[dict[str, Any]] = []
    queries = int(groups_of(record).max()) + 1
    layers = record.num_steps - 1
    for risk, own, level in _PROMISES:
        policy = TopK(own, 1.0, _policy(ranker, k).spread, ordered=risk != "top_k")
        steps = [record.exit_steps(policy.with_threshold(margin)) for margin in MARGINS]
        losses = np.stack([Ranking(risk, own).of_exits(record, each) for each in steps])
        work = [float((each - 1).mean()) / layers for each in steps]
        bound = BOUNDS["betting" if risk.startswith("ndcg") else "exact_binomial"]
        rng = np.random.default_rng(0)
        broken = 0
        spent = list[float]()
        for _ in range(draws):
            drawn = np.maximum(losses[:, rng.integers(0, queries, seen)], bound.low)
            passed = bound.p_values(drawn.T, level) <= 0.05
            count = int(np.append(passed, False).argmin())
            spent.append(work[count - 1] if count else 1.0)
            broken += bool(count) and float(losses[count - 1].mean()) > level
        noted = {"risk": risk, "k": own, "level": level, "draws": draws, "queries": seen}
        found.append({**noted, "broken": broken / draws, "work": float(np.mean(spent))})
    return found
