"""Commands that make a promise: `advise`, `cascade`, `certify`, `exits` and `rerank`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import typer

from ponder.cli.options import (
    SHARE,
    Columns,
    Confidence,
    Json,
    Labels,
    Level,
    Model,
    NoHeader,
    Out,
    Seed,
    TextsFile,
    command_module,
    reading_options,
)
from ponder.cli.root import app
from ponder.errors import ArgumentError
from ponder.statistics.certificate import CONFIDENCE, LEVEL

__all__ = ["advise", "cascade", "certify", "exits", "rerank"]


def _seconds(given: str) -> float:
    """Return a time as seconds: ``"5ms"``, ``"0.2s"`` or ``"0.2"``."""
    if not re.fullmatch(r"\d*\.?\d+(ms|s)?", given):
        raise typer.BadParameter(f"expected a time, got {given}. Write 5ms, say.")
    if given.endswith("ms"):
        return float(given.removesuffix("ms")) / 1e3
    return float(given.removesuffix("s"))


@app.command()
def advise(
    model: Model,
    texts: TextsFile,
    out: Annotated[
        Path | None,
        typer.Option(help="The folder for the winner; without it nothing is written."),
    ] = None,
    column: Columns = None,
    labels: Labels = None,
    no_header: NoHeader = False,
    disagreement: Level = LEVEL,
    within: Annotated[
        float | None,
        typer.Option(
            help="Take the most faithful way that answers 95% of single texts in this time, "
            "for example 5ms.",
            parser=_seconds,
            metavar="TIME",
        ),
    ] = None,
    confidence: Confidence = CONFIDENCE,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Compare ways to make MODEL cheaper on your texts and this machine, and recommend one.

    Example: `ponder advise my-model --texts traffic.csv --out advised`
    """
    reading = reading_options(column, labels, no_header)
    options = {
        "disagreement": disagreement,
        "confidence": confidence,
        "within": within,
        "seed": seed,
    }
    command_module("advise").run(model, texts, out, reading, options, as_json=json)


@app.command()
def cascade(
    model: Annotated[
        Path,
        typer.Argument(
            help="The folder of a classifier, of exits or of an export.", metavar="MODEL"
        ),
    ],
    texts: TextsFile,
    out: Out,
    teach: Annotated[
        Path | None,
        typer.Option(
            help="A file of texts that only train the student, for example MODEL's training texts."
        ),
    ] = None,
    column: Columns = None,
    no_header: NoHeader = False,
    disagreement: Level = LEVEL,
    confidence: Confidence = CONFIDENCE,
    json: Json = False,
) -> None:
    """Train a cheap student on MODEL's answers, and let it answer the texts of which it is certain.

    Its threshold is certified.

    Example: `ponder cascade my-model --texts traffic.csv --out cascade`
    """
    reading = reading_options(column, None, no_header)
    options = {"level": disagreement, "confidence": confidence}
    command_module("cascade").run(model, texts, teach, out, reading, options, as_json=json)


@app.command()
def certify(
    answers: Annotated[
        Path,
        typer.Argument(
            help="A file with an answer, its confidence and a reference in each row.",
            metavar="ANSWERS",
        ),
    ],
    out: Annotated[Path, typer.Option(help="The JSON file to write, for `ponder check`.")],
    answer: Annotated[str, typer.Option(help="The column of the answers.")] = "answer",
    confidence_column: Annotated[
        str, typer.Option(help="The column of their confidences, probabilities in [0, 1].")
    ] = "confidence",
    reference: Annotated[
        str,
        typer.Option(help="The column of the reference's answers; rows without one are left out."),
    ] = "reference",
    disagreement: Level = LEVEL,
    confidence: Confidence = CONFIDENCE,
    finite: Annotated[
        bool,
        typer.Option(
            "--finite",
            help="Promise about the rows of ANSWERS alone, of which some were drawn at random "
            "and have a reference.",
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Certify a threshold on the confidences of any model: answers above it may be taken.

    The others are for a reference to answer.

    Example: `ponder certify answers.csv --answer label --reference llm --out threshold.json`
    """
    columns = {"answer": answer, "confidence": confidence_column, "reference": reference}
    command_module("certify").run(
        answers, columns, out, disagreement, confidence, finite=finite, as_json=json
    )


@app.command()
def exits(
    model: Model,
    texts: TextsFile,
    out: Out,
    column: Columns = None,
    labels: Labels = None,
    no_header: NoHeader = False,
    disagreement: Annotated[
        float | None,
        typer.Option(
            help=f"The share of answers that may differ; {LEVEL} by default.",
            show_default=False,
            **SHARE,
        ),
    ] = None,
    confidence: Confidence = CONFIDENCE,
    speed_up: Annotated[
        float | None,
        typer.Option(
            help="Choose exits for this speed-up in steps; the share that differs is promised.",
            min=1.01,
        ),
    ] = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Train early exits for MODEL on texts without labels, and certify when to exit.

    Example: `ponder exits my-model --texts traffic.csv --out exits`
    """
    if speed_up is not None and disagreement is not None:
        raise ArgumentError(
            "--speed-up",
            expected="--speed-up or --disagreement, since one decides on the other",
            got="both",
            remedy="Leave one of them out.",
        )
    if disagreement is None:
        disagreement = LEVEL
    reading = reading_options(column, labels, no_header)
    options = {
        "speed_up": speed_up,
        "confidence": confidence,
        "seed": seed,
        "disagreement": disagreement,
    }
    command_module("exits").run(model, texts, out, reading, options, as_json=json)


@app.command()
def rerank(
    model: Annotated[
        str, typer.Argument(help="A cross encoder: its folder or its hub name.", metavar="MODEL")
    ],
    queries: Annotated[
        Path,
        typer.Option(
            help="JSON lines with query, documents, and scores of a first stage if there are any."
        ),
    ],
    out: Out,
    top_k: Annotated[
        int, typer.Option("--top-k", min=1, help="The number of candidates to find.")
    ] = 10,
    changed: Annotated[
        float,
        typer.Option(help="The share of queries with another top k, or the mean loss.", **SHARE),
    ] = LEVEL,
    risk: Annotated[
        Literal["top_k", "top_1", "ndcg", "ndcg_gap"],
        typer.Option(help="What is promised: the same top k, the same best, or nDCG."),
    ] = "top_k",
    confidence: Confidence = CONFIDENCE,
    json: Json = False,
) -> None:
    """Stop ranking candidates early that cannot be among the best, with a promise.

    No labels are needed.

    Example: `ponder rerank my-reranker --queries log.jsonl --top-k 3 --out ranker`
    """
    command_module("rerank").run(
        model, queries, out, top_k, changed, risk, confidence, as_json=json
    )
