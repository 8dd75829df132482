"""The race: ways to spend less on a rerank, by what they change and what they cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.environment import environment
from benchmarks.files import write_json
from benchmarks.rerank.data import Queries, load
from ponder.calibration.bounds import BOUNDS
from ponder.calibration.records import Record
from ponder.calibration.risks import Ranking, ranked
from ponder.deploy.ranking import Pool
from ponder.integrations.sentence_transformers import CrossEncoder
from ponder.policies import LastStep, TopK
from ponder.policies.base import all_within

__all__ = ["race"]

MARGINS = tuple(np.linspace(6.0, 0.0, 61).round(2).tolist())
_SHARES = (
    0.1,
    0.15,
    0.2,
    0.25,
    0.3,
    0.4,
    0.5,
    0.6,
    0.7,
    0.8,
    0.9,
)  # of the pool, kept by the first stage
_TIMED = 16  # queries whose seconds are taken
_PROMISES = (
    ("top_k", 10, 0.05),
    ("top_k", 3, 0.05),
    ("top_1", 1, 0.05),
    ("ndcg", 10, 0.01),
    ("ndcg_gap", 10, 0.005),
)

Numbers = dict[str, float]


def race(
    task: str, data: Path, models: Path, out: Path, *, backbone: str, k: int, fit: int, test: int, train: int,
    seed: int, say: Callable[[str], object],
) -> dict[str, Any]:  # fmt: skip
    """Fit exits with and without first-stage scores, and hold them against cut pools and encoders on test queries."""
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
    timed = _timed(rankers, fresh, curves, k, say)
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
    """All pairs through the frozen model once, from which the records under any early heads are read."""

    def __init__(self, ranker: CrossEncoder, pools: Sequence[Pool]) -> None:
        pairs = [(pool.query, document) for pool in pools for document in pool.documents]
        self.seen = ranker.model.record(pairs, keep_features=True)
        self.places = {pair: place for place, pair in enumerate(pairs)}

    @torch.inference_mode()
    def record(self, model: Any, pairs: Sequence[tuple[str, str]], **options: Any) -> Any:
        """Return the trajectory of some pairs under the heads of a model, as its own `record` does."""
        places = torch.tensor([self.places[pair] for pair in pairs])
        seen = self.seen.map(lambda tensor: tensor[places])
        outputs = [
            head(seen.features[:, step]) for step, head in enumerate(model.ponder.head.heads)
        ]
        return replace(seen, outputs=torch.stack(outputs, 1))


def pools_of(queries: Queries) -> list[Pool]:
    """Return the candidates of each query, with the scores of the first stage."""
    return [
        Pool(
            text,
            [queries.documents[n] for n in places],
            own,
            [float(place == gold) for place in places],
        )
        for text, gold, (places, own) in zip(
            queries.texts, queries.gold, queries.nearest(queries.size), strict=True
        )
    ]


def _bare(pool: Pool) -> Pool:
    return Pool(pool.query, pool.documents, (), pool.labels)


Way = dict[float, tuple[NDArray[Any], float, NDArray[Any]]]
"""By setting: exit steps of the rows over a record, the share of the pair-layers, and the scores at the exits."""


def _ways(
    rankers: Mapping[str, CrossEncoder], records: Mapping[str, Record], k: int
) -> dict[str, Way]:
    """Return every way with its settings."""
    staged, bare, short = (records[name] for name in ("TopK, first stage", "TopK", "cut encoder"))
    layers = bare.num_steps
    rows = np.arange(len(bare))
    scores, groups = np.asarray(bare.outputs)[..., 0], np.asarray(bare.policy_context["group"])  # type: ignore[index]
    own = np.asarray(short.outputs)[:, -1, 0]
    size = np.bincount(groups)[0]
    place = ranked(groups, np.asarray(staged.outputs)[:, 0, 0])
    ways: dict[str, Way] = {"cut pool": {}, "cut encoder": {}, "exits without the group": {}}
    for share in (*_SHARES, 1.0):
        kept = place < max(round(share * size), k)
        ways["cut pool"][share] = (
            np.where(kept, layers, 1),
            float(kept.mean()),
            np.where(kept, scores[:, -1], -np.inf),
        )
        work = float(kept.mean()) * short.num_steps / layers
        ways["cut encoder"][share] = np.where(kept, layers, 1), work, np.where(kept, own, -np.inf)
    for bar in np.quantile(
        scores[:, -1], np.linspace(0.02, 0.98, 49)
    ):  # a candidate below a fixed score leaves
        leaves = np.concatenate([scores[:, :-1] < bar, np.ones((len(rows), 1), dtype=bool)], 1)
        steps = leaves.argmax(1) + 1
        alone = steps, float(steps.mean()) / layers, scores[rows, steps - 1]
        ways["exits without the group"][round(float(bar), 4)] = alone
    for name, record in (("TopK", bare), ("TopK, first stage", staged)):
        policy = _policy(rankers[name], k)
        ways[name] = {}
        for margin in MARGINS:
            steps = record.exit_steps(policy.with_threshold(margin))
            work = float((steps - (record.num_steps - layers)).mean()) / layers
            ways[name][margin] = steps, work, np.asarray(record.outputs)[rows, steps - 1, 0]
    return ways


def _policy(ranker: CrossEncoder, k: int) -> TopK:
    """The policy of a ranker, the margin aside; where nothing could be promised, it was fitted all the same."""
    found = [part for part in all_within(ranker.settings.policy) if isinstance(part, TopK)]
    return found[0] if found else TopK(k, 1.0)


def curve(way: Way, records: Mapping[str, Record], k: int) -> list[Numbers]:
    """Return what each setting changes against the full rerank, and its share of the pair-layers."""
    full = records["TopK"]
    points = []
    for setting, (steps, work, scores) in way.items():
        outputs = np.stack([scores, np.asarray(full.outputs)[:, -1, 0]], 1)[
            ..., None
        ]  # at the exit, at full depth
        seen = Record(
            outputs, None, full.row_ids, labels=full.labels, policy_context=full.policy_context
        )
        places = ranked(np.asarray(full.policy_context["group"]), scores, steps)  # type: ignore[index]
        seen.outputs[:, 0, 0] = -places  # the order is that of the exits
        ones = np.ones(len(seen), dtype=int)
        lost = {
            name: Ranking(name, k).of_exits(seen, ones).mean()
            for name in ("top_k", "top_1", "ndcg", "ndcg_gap")
        }
        points.append(
            {"setting": setting, "work": work, **{name: float(loss) for name, loss in lost.items()}}
        )
    return points


def _quality(full: Record, cut_name: str, short: Record) -> Numbers:
    """Return how often the right document is first, and nDCG@10, of the full rerank and of the cut encoder."""
    groups, labels = np.asarray(full.policy_context["group"]), np.asarray(full.labels)  # type: ignore[index]
    found = {}
    for name, record in (("whole", full), (cut_name, short)):
        place = ranked(groups, np.asarray(record.outputs)[:, -1, 0])[labels > 0]
        found[f"{name} top 1"] = float((place == 0).mean())
        found[f"{name} nDCG@10"] = float(np.where(place < 10, 1 / np.log2(place + 2.0), 0.0).mean())
    return found


def _timed(
    rankers: Mapping[str, CrossEncoder], fresh: Sequence[Pool], curves: Mapping[str, list[Numbers]], k: int,
    say: Callable[[str], object],
) -> list[dict[str, Any]]:  # fmt: skip
    """Return processor seconds a query of some settings of each way, and of Sentence Transformers, in turn."""
    calls: dict[tuple[str, float], Callable[[Pool], object]] = {}
    full = rankers["TopK"]

    def cut(ranker: CrossEncoder, share: float) -> Callable[[Pool], object]:
        def call(pool: Pool) -> object:
            best = np.argsort(pool.scores)[::-1][: max(round(share * len(pool.scores)), k)]
            return ranker.rank(pool.query, [pool.documents[n] for n in best], k, policy=LastStep())

        return call

    def top(ranker: CrossEncoder, margin: float) -> Callable[[Pool], object]:
        policy = _policy(ranker, k).with_threshold(margin)

        def call(pool: Pool) -> object:
            scores = pool.scores if ranker.first_stage else ()
            return ranker.rank(pool.query, pool.documents, k, scores=scores, policy=policy)

        return call

    for share in (1.0, 0.8, 0.6, 0.4, 0.25, 0.15):
        calls["cut pool", share] = cut(full, share)
        calls["cut encoder", share] = cut(rankers["cut encoder"], share)
    for name in ("TopK", "TopK, first stage"):
        for margin in (3.0, 2.0, 1.5, 1.0, 0.7, 0.5, 0.3):
            calls[name, margin] = top(rankers[name], margin)
    theirs = _theirs(full)
    if theirs is not None:
        calls["sentence-transformers", 1.0] = lambda pool: theirs.rank(
            pool.query, list(pool.documents)
        )
    some = fresh[:_TIMED]
    spent = {key: list[float]() for key in calls}
    for number, pool in enumerate(some):
        order = list(calls) if number % 2 else list(calls)[::-1]
        for key in order:
            began = time.process_time()
            calls[key](pool)
            spent[key].append(time.process_time() - began)
    say(f"timed {len(some)} queries")
    points: list[dict[str, Any]] = []
    for (name, setting), seconds in spent.items():
        known = next((point for point in curves.get(name, []) if point["setting"] == setting), {})
        points.append(
            {"way": name, "setting": setting, "seconds": float(np.mean(seconds[2:])), **known}
        )
    return points


def _theirs(ranker: CrossEncoder) -> Any:
    """The cross encoder of Sentence Transformers around the same weights."""
    try:
        import sentence_transformers
    except ImportError:
        return None
    folder = ranker.model.encoder.config.name_or_path
    return sentence_transformers.CrossEncoder(folder, device="cpu")


def promises(
    record: Record, ranker: CrossEncoder, k: int, draws: int = 1000, seen: int = 250
) -> list[dict[str, Any]]:
    """Count broken promises over sets of queries that certify, drawn from the test queries, for several risks."""
    found: list[dict[str, Any]] = []
    groups = np.asarray(record.policy_context["group"])  # type: ignore[index]
    queries = int(groups.max()) + 1
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
