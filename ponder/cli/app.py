"""The commands of `ponder`, with their options.

Each command calls `run` of a module, for example of `ponder.cli.exits`. The module is imported when
the command runs, so that `ponder --help` is fast, and exports need no PyTorch.
"""

from __future__ import annotations

import os
import re
from importlib import import_module
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from ponder.calibration.statement import CONFIDENCE, LEVEL, percent
from ponder.cli.output import sentences
from ponder.errors import ArgumentError

__all__ = ["app"]


class _Commands(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        with sentences():
            return super().invoke(ctx)


app = typer.Typer(
    cls=_Commands,
    help="The same answers sooner, with a promise: exits, cascades, int8 and reranking for "
    f"fine-tuned models. By default at most {percent(LEVEL)} of the answers differ, with 95% "
    "confidence.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    add_completion=False,
)

_SHARE: dict[str, Any] = {"min": 1e-6, "max": 1.0 - 1e-6}
Folder = Annotated[
    Path,
    typer.Argument(help="A folder that another command wrote.", metavar="FOLDER"),
]
TextsFile = Annotated[
    Path,
    typer.Option(
        "--texts",
        help="A file of texts: CSV, TSV, JSON lines, Parquet, or a text on each line; "
        "- reads the standard input.",
    ),
]
Columns = Annotated[
    list[str] | None,
    typer.Option(
        "--column",
        help="The column with the texts; give it twice for pairs of texts.",
        metavar="NAME",
    ),
]
Labels = Annotated[
    str | None,
    typer.Option(
        "--labels",
        help="The column with the right classes, for accuracies; it is not used for training.",
        metavar="NAME",
    ),
]
NoHeader = Annotated[
    bool,
    typer.Option(
        "--no-header", help="Read the first row of the table as a text, not as names of columns."
    ),
]
Level = Annotated[
    float, typer.Option("--disagreement", help="The share of answers that may differ.", **_SHARE)
]
Promised = Annotated[
    float | None,
    typer.Option(
        "--disagreement", help="Use another level than the one that FOLDER promises.", **_SHARE
    ),
]
Out = Annotated[
    Path, typer.Option(help="The folder to write; a new one, or one of the same command.")
]
Seed = Annotated[int, typer.Option(help="The seed by which texts are split.")]
Confidence = Annotated[
    float, typer.Option(help="The probability that the promise holds.", **_SHARE)
]
Model = Annotated[
    str,
    typer.Argument(help="A fine-tuned classifier: its folder or its hub name.", metavar="MODEL"),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


def _seconds(given: str) -> float:
    """Return a time as seconds: ``"5ms"``, ``"0.2s"`` or ``"0.2"``."""
    if not re.fullmatch(r"\d*\.?\d+(ms|s)?", given):
        raise typer.BadParameter(f"expected a time, got {given}. Write 5ms, say.")
    if given.endswith("ms"):
        return float(given.removesuffix("ms")) / 1e3
    return float(given.removesuffix("s"))


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"ponder {version_of('ponder-torch')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and stop."
        ),
    ] = False,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="The number of threads of a command: ponder --threads 1 serve FOLDER. By default "
            "OMP_NUM_THREADS, or all cores. Commands compute on the CPU.",
        ),
    ] = None,
) -> None:
    if threads is not None:
        # No library that reads it is loaded before the command's own module is.
        os.environ["OMP_NUM_THREADS"] = str(threads)


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
    deep: Annotated[
        bool,
        typer.Option("--deep", help="Also teach a model of half the layers, which takes minutes."),
    ] = False,
    confidence: Confidence = CONFIDENCE,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Compare ways to make MODEL cheaper on your texts and this machine, and recommend one.

    Example: `ponder advise my-model --texts traffic.csv --out advised`
    """
    reading = _reading(column, labels, no_header)
    options = {
        "disagreement": disagreement,
        "confidence": confidence,
        "within": within,
        "deep": deep,
        "seed": seed,
    }
    _module("advise").run(model, texts, out, reading, options, as_json=json)


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
    reading = _reading(column, None, no_header)
    options = {"level": disagreement, "confidence": confidence}
    _module("cascade").run(model, texts, teach, out, reading, options, as_json=json)


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
    _module("certify").run(
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
            **_SHARE,
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
    reading = _reading(column, labels, no_header)
    options = {
        "speed_up": speed_up,
        "confidence": confidence,
        "seed": seed,
        "disagreement": disagreement,
    }
    _module("exits").run(model, texts, out, reading, options, as_json=json)


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
        typer.Option(help="The share of queries with another top k, or the mean loss.", **_SHARE),
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
    _module("rerank").run(model, queries, out, top_k, changed, risk, confidence, as_json=json)


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
    reading = _reading(column, None, no_header)
    raise typer.Exit(
        _module("predict").run(folder, texts, out, reading, resume=resume, as_json=json)
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
        raise typer.Exit(_module("certify").check_threshold(folder, answers, as_json=json))
    if texts is None:
        raise ArgumentError(
            "--texts",
            expected="fresh texts for a folder, or fresh answers behind a file of `certify`",
            got="neither",
            remedy="Name a file: --texts new.csv.",
        )
    reading = _reading(column, labels, no_header)
    options = {
        "level": disagreement,
        "reference": reference,
        "diagnosed": diagnose,
        "as_json": json,
    }
    raise typer.Exit(_module("check").run(folder, texts, reading, **options))


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
            "--level", "--disagreement", help="The share of answers that may differ.", **_SHARE
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
    module = _module("label")
    code = module.run(
        texts,
        reference,
        out,
        database,
        _reading(column, None, no_header),
        (base_url, labels),
        (level, confidence),
        module.spending_of(price, limit_calls, concurrency, per_minute),
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
    _module("export").run(folder, out, texts, _reading(column, None, no_header), **options)


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
    """Answer texts over HTTP: /predict (or /rank and /rerank), /health, /metrics and /docs.

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
    _module("serve").run(folder, host, port, limits, audit_share, audit_file, reference)


def _module(name: str) -> Any:
    return import_module(f"ponder.cli.{name}")


def _reading(column: list[str] | None, labels: str | None, no_header: bool) -> dict[str, Any]:
    """Return the arguments of `read_texts`."""
    return {"columns": column or [], "labels": labels, "header": not no_header}
