"""The command `export`: a folder as ONNX graphs, and a new certificate after int8."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import typer

from ponder._utils.rows import Text
from ponder.cascade import Cascade
from ponder.cascade.teaching import stages_statement
from ponder.cli.cascade_report import facts_of, rows_of
from ponder.cli.options import Columns, Confidence, Json, NoHeader, Out, Promised
from ponder.cli.outcome import Outcome, usage_of
from ponder.cli.output import new_folder, probe_folder, progress
from ponder.cli.queries import read_pools
from ponder.cli.show import keep, show
from ponder.cli.texts import read_texts
from ponder.deploy.export import onnx
from ponder.deploy.folders import Opened, card_of, open_folder, remember
from ponder.deploy.int8 import cascade_onnx, certified_int8, ranker_onnx
from ponder.deploy.ranking import RERANK, Pool, Ranker
from ponder.deploy.runtime import OnnxModel
from ponder.errors import ArgumentError
from ponder.statistics.certificate import CONFIDENCE, LEVEL
from ponder.statistics.used import Used

__all__ = ["run"]

_PRODUCTS = {"some": "in int8, but for those that narrow", "all": "in int8"}
_SAME = "Answers and exits are those of the folder, within rounding."


def run(
    folder: Annotated[
        Path,
        typer.Argument(
            help="A folder of exits, a cascade or a ranker that runs in PyTorch.", metavar="FOLDER"
        ),
    ],
    out: Out,
    to: Annotated[Literal["onnx"], typer.Option(help="The format to write.")] = "onnx",
    int8: Annotated[
        bool,
        typer.Option(
            "--int8",
            help="Quantise to 8 bits; the policy is chosen and certified anew on --texts.",
        ),
    ] = False,
    texts: Annotated[
        Path | None,
        typer.Option(help="With --int8: the texts on which the policy is chosen and certified."),
    ] = None,
    column: Columns = None,
    no_header: NoHeader = False,
    disagreement: Promised = None,
    confidence: Confidence = CONFIDENCE,
    json: Json = False,
) -> None:
    """Write FOLDER as ONNX graphs that exit early, which run without PyTorch.

    Example: `ponder export exits --int8 --texts traffic.csv --out small`
    """
    if int8 == (texts is None):
        raise ArgumentError(
            "--texts",
            expected="a file of texts with --int8, which changes answers, so that the policy is "
            "chosen again; without --int8, no file",
            got=str(texts),
            remedy="Pass --int8 --texts FILE, or neither.",
        )
    probe_folder(out, "export", folder)
    if (folder / RERANK).is_file():
        _export_ranker(folder, out, texts, as_json=json)
        return
    opened = open_folder(folder)
    if isinstance(opened.model, OnnxModel):
        expected = "a folder that is in PyTorch"
        remedy = "Export the folder from which it was made."
        raise ArgumentError("FOLDER", expected=expected, got="an export", remedy=remedy)
    rows: list[Text] | None = None
    used = opened.used
    if texts is not None:
        read = read_texts(texts, column, header=not no_header, known=opened.columns).without_empty()
        taught = opened.used.have_taught(read.texts)
        rows = read.take(np.flatnonzero(~taught).tolist()).texts
        used = used | Used.of(read.texts)
    level = LEVEL
    if disagreement is not None:
        level = disagreement
    elif opened.promise is not None:
        level = opened.promise.level
    write = _write_cascade if isinstance(opened.model, Cascade) else _write_model
    with new_folder(out) as new:
        outcome = write(opened, new, rows, level, confidence)
        used.write(new)
        outcome = keep(_outcome(outcome, opened, new, out, int8=int8), new, out)
    show(outcome, as_json=json)


def _export_ranker(folder: Path, out: Path, queries: Path | None, *, as_json: bool) -> None:
    """Write a folder of `ponder rerank` as ONNX; with queries, in int8 and certified again."""
    source = Ranker.load(folder)
    pools: list[Pool] = []
    if queries is not None:
        pools = read_pools(queries)
    used = Used.read(folder) | Used.of([pool.query for pool in pools])
    with new_folder(out) as new:
        statement = ranker_onnx(source, new, pools).statement
        used.write(new)
        facts = {
            "command": "export",
            "statement": statement,
            "int8": queries is not None,
            "reference": card_of(folder).get("reference"),
        }
        usage = usage_of(out, torch=False, ranks=True)
        title = f"{folder.name} as ONNX graphs"
        outcome = keep(Outcome(facts, [statement], title=title, usage=usage), new, out)
    show(outcome, as_json=as_json)


def _outcome(outcome: Outcome, opened: Opened, new: Path, out: Path, *, int8: bool) -> Outcome:
    """Return the outcome of an export with the facts of its folder."""
    size = sum(path.stat().st_size for path in new.rglob("*") if path.is_file()) / 1e6
    statement = opened.statement
    reference = opened.card.get("reference")
    if int8:
        statement = outcome.sentences[0]
        reference = remember(opened.folder, out)
    facts = {
        "command": "export",
        "int8": int8,
        "columns": list(opened.columns),
        "statement": statement,
        "megabytes": size,
        "num_steps": opened.num_steps,
        "reference": reference,
        **outcome.facts,
    }
    table = [("int8", "yes" if int8 else "no"), *outcome.rows, ("size", f"{size:.1f} MB")]
    title = f"{opened.folder.name} as ONNX graphs"
    usage = usage_of(out, torch=False)
    return Outcome(facts, outcome.sentences, table, title=title, usage=usage)


def _write_model(
    opened: Opened, out: Path, texts: list[Text] | None, level: float, confidence: float
) -> Outcome:
    """Write a model with exits."""
    if texts is None:
        onnx(opened.model, out)
        return Outcome({"policy": opened.policy.words()}, [_SAME])
    # Texts that chose for the folder choose for its export, too: the split has the same seed.
    seed = (opened.model.config.exits or {}).get("seed", 0)
    with progress() as advance:
        made = certified_int8(
            opened.model,
            out,
            texts,
            level=level,
            confidence=confidence,
            seed=seed,
            progress=advance,
        )
    found = made.found
    clock = made.clock
    speed = f"×{clock.median:.2f} ({clock.low:.2f}–{clock.high:.2f}) over PyTorch at full depth"
    rows = [
        ("products", _PRODUCTS[made.products]),
        ("texts", f"{made.chosen_on} choose, {made.certified_on} certify"),
        ("policy", found.policy.words()),
        ("other answers", f"{100 * found.observed:.2f}%, at full depth {100 * made.moved:.2f}%"),
        ("steps", f"{found.mean_exit_step:.2f} of {made.model.num_steps}"),
        ("seconds", speed),
    ]
    facts = {
        "met": found.met,
        "level": level if found.met else None,
        "confidence": confidence,
        "other_answers": found.observed,
        "moved": made.moved,
        "mean_exit_step": found.mean_exit_step,
        "speed_up_in_seconds": [clock.low, clock.median, clock.high],
        "policy": found.policy.words(),
    }
    return Outcome(facts, [made.statement], rows)


def _write_cascade(
    opened: Opened, out: Path, texts: list[Text] | None, level: float, confidence: float
) -> Outcome:
    """Write a cascade."""
    report = cascade_onnx(opened.model, out, texts, level=level, confidence=confidence)
    if report is None:
        return Outcome({}, [_SAME])
    statement = stages_statement(report, level, confidence, "the model before int8")
    return Outcome(facts_of(report), [statement], rows_of(report))
