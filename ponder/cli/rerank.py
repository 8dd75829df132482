"""The command `rerank`: exits for a cross encoder; and `predict`, `serve` and `export` of the folders that it wrote."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

from ponder._utils.files import replace_text
from ponder.cli.output import probe_folder, progress, show
from ponder.cli.texts import count, read_rows
from ponder.deploy import export
from ponder.deploy.ranking import RERANK, Ranker, pools_of
from ponder.policies.base import LastStep, all_within
from ponder.policies.topk import TopK

__all__ = ["export_ranker", "is_ranker", "rank_file", "run"]

_TIMED = 40  # queries, at most


def run(
    model: str,
    queries: Path,
    out: Path,
    top_k: int,
    changed: float,
    risk: str,
    confidence: float,
    *,
    as_json: bool,
) -> None:
    """Fit exits to a cross encoder on queries without labels, time them, and write the folder."""
    probe_folder(out, "rerank", model)
    pools = pools_of(read_rows(queries, "--queries"))
    made = import_module("ponder.integrations.transformers.rerank").CrossEncoder(model)
    with progress() as advance:
        report = made.fit_exits(
            pools, top_k=top_k, changed=changed, risk=risk, confidence=confidence, progress=advance
        )

    def rank(**options: Any) -> None:
        for pool in pools[-_TIMED:]:
            made.rank_all([pool], **options)

    clock = import_module("ponder.calibration.cost").wall_clock(
        lambda: rank(policy=LastStep()), rank, pairs=3
    )
    made.save(out)
    fitted = made.settings.fitted
    seconds = {"speed_up_in_seconds": [clock.low, clock.median, clock.high]}
    card = {"command": "rerank", "top_k": top_k, **fitted, **seconds}
    candidates = sum(len(pool.documents) for pool in pools) / len(pools)
    used = f"learn {fitted['learned_on']}, certify {fitted['certified_on']}"
    rows = [
        ("queries", f"{len(pools)}, {candidates:.0f} candidates each: {used}"),
        (
            "first stage",
            "its scores are the first step" if made.first_stage else "none: no scores in the file",
        ),
        ("pair-layers", f"×{fitted['pair_layers']:.2f} fewer than the full rerank"),
        ("seconds", f"×{clock.median:.2f} ({clock.low:.2f}–{clock.high:.2f}), this machine"),
    ]
    show(card, [f"{report.statement}."], rows, as_json=as_json, out=out)


def is_ranker(folder: Path) -> bool:
    """Return whether a folder ranks."""
    return (folder / RERANK).is_file()


def rank_file(folder: Path, queries: Path, out: Path, *, as_json: bool) -> None:
    """Write the order of each query's candidates as JSON lines."""
    pools = pools_of(read_rows(queries))
    answers = zip(pools, Ranker.load(folder).rank_all(pools), strict=True)
    lines = [
        json.dumps({"query": pool.query, "ranking": ranking}) + "\n" for pool, ranking in answers
    ]
    replace_text(out, "".join(lines))
    card = {"queries": len(pools), "out": str(out)}
    show(card, [f"{count(len(pools), 'ranking')} in {out}."], [], as_json=as_json)


def export_ranker(folder: Path, out: Path, queries: Path | None, *, as_json: bool) -> None:
    """Write a folder of `ponder rerank` as ONNX; with queries in int8, its margin certified again on them."""
    source = Ranker.load(folder)
    pools = [] if queries is None else pools_of(read_rows(queries))
    ranges = [(pool.query, document) for pool in pools[::10] for document in pool.documents[:8]][
        :256
    ]
    export.onnx(source.model, out, int8=queries is not None, calibration=ranges or None)
    made, fitted = Ranker(export.OnnxModel(out), source.settings), source.settings.fitted
    exits = [part for part in all_within(made.settings.policy) if isinstance(part, TopK)]
    if pools and exits:
        made.certify(pools, exits[0], changed=fitted["level"], risk=fitted["risk"])
    made.settings.write(out)
    said = made.settings.fitted.get("statement", "")
    card = {"command": "export", "statement": said, "int8": queries is not None}
    show(card, [f"{said}."], [], as_json=as_json, out=out)
