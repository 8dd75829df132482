"""Commands that use a model: `predict`, `check`, `label`, `export` and `serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ponder.cli.options import (
    SHARE,
    Columns,
    Confidence,
    Folder,
    Json,
    Labels,
    NoHeader,
    Out,
    Promised,
    TextsFile,
    command_module,
    reading_options,
)
from ponder.cli.root import app
from ponder.errors import ArgumentError
from ponder.statistics.certificate import CONFIDENCE, LEVEL

__all__ = ["check", "export", "label", "predict", "serve"]


@app.command()
def predict(
    folder: Folder,
    texts: TextsFile,
    out: Annotated[
        Path,
        typer.Option(
            help="The file to write: .csv, .jsonl or .parquet; "
            "- writes JSON lines to the standard output."
        ),
    ],
    column: Columns = None,
    no_header: NoHeader = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue after the answers that are in --out already.")
    ] = False,
    json: Json = False,
) -> None:
    """Answer every text at its exit, and write the answers beside the columns of the file.

    Exit code 1 if a text has no answer.

    Example: `ponder predict exits --texts new.csv --out answers.csv`
    """
    reading = reading_options(column, None, no_header)
    raise typer.Exit(
        command_module("predict").run(folder, texts, out, reading, resume=resume, as_json=json)
    )


@app.command()
def check(
    folder: Annotated[
        Path,
        typer.Argument(
            help="A folder of another command, or the file that `ponder certify` wrote."
        ),
    ],
    answers: Annotated[
        Path | None, typer.Argument(help="Fresh answers, to check a file of `ponder certify`.")
    ] = None,
    texts: Annotated[
        Path | None,
        typer.Option("--texts", help="Fresh texts, to check a folder; fresh queries for a ranker."),
    ] = None,
    column: Columns = None,
    labels: Labels = None,
    no_header: NoHeader = False,
    disagreement: Promised = None,
    reference: Annotated[
        str | None,
        typer.Option(
            help="The model whose answers were promised: a folder or a hub name. "
            "Needed only if the model has moved."
        ),
    ] = None,
    diagnose: Annotated[
        bool, typer.Option("--diagnose", help="Compare also with exits at fixed steps.")
    ] = False,
    json: Json = False,
) -> None:
    """Check the promise of FOLDER on fresh texts.

    Exit code 0: kept, 1: broken, 3: not refuted, 2: a wrong call.

    Example: `ponder check exits --texts fresh.csv`
    """
    if answers is not None:
        raise typer.Exit(command_module("certify").check_threshold(folder, answers, as_json=json))
    if texts is None:
        raise ArgumentError(
            "--texts",
            expected="fresh texts for a folder, or fresh answers behind a file of `certify`",
            got="neither",
            remedy="Name a file: --texts new.csv.",
        )
    reading = reading_options(column, labels, no_header)
    options = {
        "level": disagreement,
        "reference": reference,
        "diagnosed": diagnose,
        "as_json": json,
    }
    raise typer.Exit(command_module("check").run(folder, texts, reading, **options))


@app.command()
def label(
    texts: Annotated[Path, typer.Argument(help="The file with the texts.", metavar="TEXTS")],
    reference: Annotated[
        str, typer.Option("--with", help="module:function, or openai:MODEL.", metavar="REFERENCE")
    ],
    out: Annotated[Path, typer.Option(help="The file to write: .csv, .jsonl or .parquet.")],
    database: Annotated[
        Path, typer.Option("--db", help="The SQLite file that keeps the answers of the reference.")
    ],
    column: Columns = None,
    no_header: NoHeader = False,
    level: Annotated[
        float,
        typer.Option(
            "--level", "--disagreement", help="The share of answers that may differ.", **SHARE
        ),
    ] = LEVEL,
    confidence: Confidence = CONFIDENCE,
    labels: Annotated[
        Path | None, typer.Option(help="With openai: a file with a label on each line.")
    ] = None,
    base_url: Annotated[
        str, typer.Option(help="With openai: the address of the server.")
    ] = "https://api.openai.com/v1",
    price: Annotated[float | None, typer.Option(min=0, help="The price of a call.")] = None,
    limit_calls: Annotated[
        int | None,
        typer.Option(min=0, help="The limit of calls of this run; run it again to continue."),
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="The number of concurrent calls.")] = 1,
    per_minute: Annotated[
        float | None, typer.Option(min=1e-3, help="The limit of calls a minute.")
    ] = None,
    json: Json = False,
) -> None:
    """Label texts by a reference, for example an LLM, and a cheap model that learns from it.

    The share of wrong labels is promised.

    Example: `ponder label texts.csv --with my_module:ask --out labelled.csv --db labels.db`
    """
    code = command_module("label").run(
        texts,
        reference,
        out,
        database,
        reading_options(column, None, no_header),
        base_url=base_url,
        labels=labels,
        level=level,
        confidence=confidence,
        price=price,
        limit_calls=limit_calls,
        calls={"concurrency": concurrency, "per_minute": per_minute},
        as_json=json,
    )
    raise typer.Exit(code)


@app.command()
def export(
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
    options = {
        "int8": int8,
        "disagreement": disagreement,
        "confidence": confidence,
        "as_json": json,
    }
    command_module("export").run(
        folder, out, texts, reading_options(column, None, no_header), **options
    )


@app.command()
def serve(
    folder: Folder,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="The port to listen on; 0 takes a free one.")
    ] = 8000,
    max_batch: Annotated[
        int, typer.Option(min=1, help="The largest number of texts in a batch.")
    ] = 32,
    max_waiting: Annotated[
        int,
        typer.Option(min=1, help="The number of texts that may wait; more are refused with 429."),
    ] = 1024,
    max_texts: Annotated[
        int, typer.Option(min=1, help="The largest number of texts in a request.")
    ] = 64,
    max_body: Annotated[
        int, typer.Option(min=1, help="The largest size of a request, in bytes.")
    ] = 1 << 16,
    deadline: Annotated[
        float, typer.Option(min=0, help="The seconds that a request may take; 0 sets no limit.")
    ] = 30.0,
    fixed_policy: Annotated[
        bool, typer.Option("--fixed-policy", help="Refuse thresholds in requests.")
    ] = False,
    audit_share: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=1.0,
            help="The share of early answers, under a promise, that are checked at full depth.",
        ),
    ] = 0.05,
    audit_file: Annotated[
        Path | None,
        typer.Option(help="The file in which audits are kept over restarts."),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(help="The folder whose full depth was promised, that before --int8 say."),
    ] = None,
) -> None:
    """Answer texts over HTTP: /predict (or /rank), /health, /metrics and /docs.

    Example: `ponder serve exits --port 8000`
    """
    limits = {
        "max_batch": max_batch,
        "max_waiting": max_waiting,
        "max_texts": max_texts,
        "max_body": max_body,
        "deadline": deadline or None,
        "fixed_policy": fixed_policy,
    }
    command_module("serve").run(folder, host, port, limits, audit_share, audit_file, reference)
