"""Wall-clock seconds of `rank`, Sentence Transformers, exports and int8, and of time limits."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentence_transformers
import torch

from benchmarks.environment import environment
from benchmarks.files import write_json
from benchmarks.rerank.data import load
from benchmarks.rerank.race import pools_of
from ponder import export
from ponder.deploy.ranking import Pool, Ranker
from ponder.integrations.sentence_transformers import CrossEncoder
from ponder.policies import LastStep, TopK
from ponder.policies.base import all_within

__all__ = ["clock"]

_MARGIN = 1.0  # beside the certified one


def prepare(folder: Path, pools: Sequence[Pool]) -> None:
    """Export the ranker that the race fitted, in fp32 and int8."""
    ranker = CrossEncoder.load(folder / "ranker")
    pairs = [(pool.query, document) for pool in pools[:32] for document in pool.documents[:8]]
    for name, options in (("onnx", {}), ("int8", {"int8": True, "calibration": pairs})):
        export.onnx(ranker.model, folder / name, **options)  # type: ignore[arg-type]
        ranker.settings.write(folder / name)


def clock(
    task: str, data: Path, folder: Path, out: Path, *, k: int, queries: int, train: int, seed: int
) -> dict[str, Any]:
    """Time ways in turn on test queries, and count the queries whose budget was kept."""
    torch.set_num_threads(1)
    if not (folder / "int8" / "rerank.json").exists():
        prepare(folder, pools_of(load(task, data, seed, train=True).cut(train, train + 32)))
    pools = pools_of(load(task, data, seed, train=False).cut(0, queries))
    ranker = CrossEncoder.load(folder / "ranker")
    theirs = sentence_transformers.CrossEncoder(str(folder / "whole"))
    policy = next(part for part in all_within(ranker.settings.policy) if isinstance(part, TopK))
    chosen = {
        "full": LastStep(),
        "certified": policy,
        f"margin {_MARGIN:g}": policy.with_threshold(_MARGIN),
    }
    calls: dict[str, Callable[[Pool], Any]] = {}
    calls["sentence-transformers"] = lambda pool: theirs.rank(pool.query, list(pool.documents))
    for name, made in (
        ("PyTorch", ranker),
        ("onnx", _opened(folder / "onnx")),
        ("int8", _opened(folder / "int8")),
    ):
        calls |= {f"{name}, {way}": _ranking(made, each, k) for way, each in chosen.items()}
    seconds, orders = _timed(calls, pools)
    full = orders["PyTorch, full"]
    ways = {
        name: {
            "seconds": float(np.median(own[2:])),
            "changed": float(
                np.mean([set(a[:k]) != set(b[:k]) for a, b in zip(orders[name], full, strict=True)])
            ),
        }
        for name, own in seconds.items()
    }
    whole = ways["PyTorch, full"]["seconds"]
    result = {
        "task": task,
        "settings": {"k": k, "queries": queries, "seed": seed, "margin": policy.margin},
        "ways": ways,
        "budgets": [
            _budget(ranker, pools, share * whole, full, k) for share in (0.2, 0.4, 0.6, 0.8)
        ],
        "environment": environment(torch.device("cpu")),
    }
    write_json(out / f"clock-{folder.name}-k{k}.json", result)
    return result


def _opened(folder: Path) -> Ranker:
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # in int8 the promise is about other weights; here its margin is only timed
        return Ranker.load(folder)


def _ranking(ranker: Ranker, policy: Any, k: int) -> Callable[[Pool], Any]:
    return lambda pool: ranker.rank(
        pool.query, pool.documents, k, scores=pool.scores, policy=policy
    )


def _timed(
    calls: Mapping[str, Callable[[Pool], Any]], pools: Sequence[Pool]
) -> tuple[dict[str, list[float]], dict[str, list[list[int]]]]:
    seconds = {name: list[float]() for name in calls}
    orders = {name: list[list[int]]() for name in calls}
    for number, pool in enumerate(pools):
        for name in list(calls)[:: 1 if number % 2 else -1]:
            began = time.perf_counter()
            found = calls[name](pool)
            seconds[name].append(time.perf_counter() - began)
            orders[name].append([one["corpus_id"] for one in found])
    return seconds, orders


def _budget(
    ranker: Ranker, pools: Sequence[Pool], within: float, full: Sequence[Sequence[int]], k: int
) -> dict[str, float]:
    """Return how many queries kept a budget, and what it changed."""
    kept = 0
    same = 0
    over = 0.0
    for pool, best in zip(pools, full, strict=True):
        began = time.perf_counter()
        found = ranker.rank(pool.query, pool.documents, k, scores=pool.scores, within=within)
        took = time.perf_counter() - began
        kept = kept + (took <= within)
        over = max(over, took / within)
        same += found[0]["corpus_id"] == best[0]
    return {
        "seconds": within,
        "kept": kept / len(pools),
        "longest": over,
        "same_first": same / len(pools),
    }
