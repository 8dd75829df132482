"""The commands with their options; what a command does is in a module of its own, `ponder.cli.exits`, say.

That module is loaded when the command runs, so that `ponder --help` answers at once, and exports need no PyTorch.
"""

from __future__ import annotations

import re
from importlib import import_module
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from ponder.cli.output import sentences
from ponder.errors import ArgumentError

__all__ = ["app"]


class _Commands(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        with sentences():
            return super().invoke(ctx)


app = typer.Typer(
    cls=_Commands,
    help="Exits for a fine-tuned classifier: the same answers, sooner, with a promise.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

_SHARE: dict[str, Any] = {"min": 1e-6, "max": 1.0 - 1e-6}
Folder = Annotated[
    Path,
    typer.Argument(help="A folder that `ponder exits` or `ponder export` wrote.", metavar="FOLDER"),
]
TextsFile = Annotated[
    Path, typer.Option("--texts", help="CSV, TSV, JSON lines, Parquet, or a text on each line.")
]
Columns = Annotated[
    list[str] | None,
    typer.Option("--column", help="The column with the texts; twice for pairs.", metavar="NAME"),
]
Labels = Annotated[
    str | None,
    typer.Option("--labels", help="The column with labels, if there is one.", metavar="NAME"),
]
NoHeader = Annotated[
    bool, typer.Option("--no-header", help="The first row of the table is a text.")
]
Level = Annotated[
    float, typer.Option("--disagreement", help="How often answers may differ.", **_SHARE)
]
Promised = Annotated[
    float | None,
    typer.Option(
        "--disagreement", help="Another level than the one that FOLDER promises.", **_SHARE
    ),
]
Out = Annotated[Path, typer.Option(help="The folder to write.")]
Seed = Annotated[int, typer.Option(help="Seed of the split of the texts.")]
Confidence = Annotated[float, typer.Option(help="Probability that the promise holds.", **_SHARE)]
Model = Annotated[
    str, typer.Argument(help="A fine-tuned classifier: a folder or a hub name.", metavar="MODEL")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]


def _seconds(given: str) -> float:
    """Return a time as seconds: ``"5ms"``, ``"0.2s"`` or ``"0.2"``."""
    if not re.fullmatch(r"\d*\.?\d+(ms|s)?", given):
        raise typer.BadParameter(f"expected a time, got {given}. Write 5ms, say.")
    return (
        float(given.removesuffix("ms")) / 1e3
        if given.endswith("ms")
        else float(given.removesuffix("s"))
    )


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"ponder {version_of('ponder-torch')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Show the version and stop."
        ),
    ] = False,
) -> None:
    pass


@app.command()
def advise(
    model: Model,
    texts: TextsFile,
    out: Annotated[Path | None, typer.Option(help="The folder for the way that wins.")] = None,
    column: Columns = None,
    labels: Labels = None,
    no_header: NoHeader = False,
    disagreement: Level = 0.01,
    within: Annotated[
        float | None,
        typer.Option(
            help="Take the most faithful way that answers a text in 5ms, say.",
            parser=_seconds,
            metavar="TIME",
        ),
    ] = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="Also teach a model of half the layers, some minutes.")
    ] = False,
    confidence: Confidence = 0.95,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Race what could make MODEL cheaper on these texts and this machine, and say what to take."""
    given = {
        "disagreement": disagreement,
        "confidence": confidence,
        "within": within,
        "deep": deep,
        "seed": seed,
    }
    _module("advise").run(
        model, texts, out, _reading(column, labels, no_header), given, as_json=json
    )


@app.command()
def cascade(
    model: Annotated[
        Path,
        typer.Argument(help="Folder of a classifier, of exits or of an export.", metavar="MODEL"),
    ],
    texts: TextsFile,
    out: Out,
    teach: Annotated[
        Path | None, typer.Option(help="Texts that only teach the student: MODEL's own, say.")
    ] = None,
    column: Columns = None,
    no_header: NoHeader = False,
    disagreement: Level = 0.02,
    confidence: Confidence = 0.95,
    json: Json = False,
) -> None:
    """Put a student in front of MODEL, taught by its answers, with a threshold and a promise."""
    given = _reading(column, None, no_header), {"level": disagreement, "confidence": confidence}
    _module("cascade").run(model, (texts, teach), out, *given, as_json=json)


@app.command()
def certify(
    answers: Annotated[
        Path, typer.Argument(help="A file with a row for each input.", metavar="ANSWERS")
    ],
    out: Annotated[Path, typer.Option(help="The JSON file of the threshold.")],
    answer: Annotated[str, typer.Option(help="Column of the answers.")] = "answer",
    confidence_column: Annotated[
        str, typer.Option(help="Column of their confidences.")
    ] = "confidence",
    reference: Annotated[
        str, typer.Option(help="Column of the answers that are to be kept.")
    ] = "reference",
    disagreement: Level = 0.02,
    confidence: Confidence = 0.95,
    json: Json = False,
) -> None:
    """Certify a threshold on anybody's answers: those above it are taken, the others asked of the reference."""
    columns = {"answer": answer, "confidence": confidence_column, "reference": reference}
    _module("certify").run(answers, columns, out, disagreement, confidence, as_json=json)


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
            help="How often answers may differ from full depth; 0.01 where left out.", **_SHARE
        ),
    ] = None,
    confidence: Confidence = 0.95,
    speed_up: Annotated[
        float | None,
        typer.Option(
            help="Aim at this many times fewer steps instead, and say what it costs.", min=1.01
        ),
    ] = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Give MODEL exits: train them on texts without labels, choose, certify, measure."""
    if speed_up is not None and disagreement is not None:
        expected = "--speed-up or --disagreement, of which one says what the other comes to"
        raise ArgumentError(
            "--speed-up", expected=expected, got="both", remedy="Leave one of them out."
        )
    given = {"speed_up": speed_up, "confidence": confidence, "seed": seed}
    given |= {} if disagreement is None else {"disagreement": disagreement}
    _module("exits").run(
        model, texts, out, _reading(column, labels, no_header), given, as_json=json
    )


@app.command()
def rerank(
    model: Annotated[
        str, typer.Argument(help="A cross encoder: a folder or a hub name.", metavar="MODEL")
    ],
    queries: Annotated[
        Path, typer.Option(help="JSON lines with query, documents, and scores if there are any.")
    ],
    out: Out,
    top_k: Annotated[
        int, typer.Option("--top-k", min=1, help="How many candidates are wanted.")
    ] = 10,
    changed: Annotated[
        float, typer.Option(help="Share of queries with another top k; or the loss.", **_SHARE)
    ] = 0.05,
    risk: Annotated[
        Literal["top_k", "top_1", "ndcg", "ndcg_gap"], typer.Option(help="What is promised.")
    ] = "top_k",
    confidence: Confidence = 0.95,
    json: Json = False,
) -> None:
    """Let candidates of MODEL that cannot be among the best leave early, with a promise; no labels are needed."""
    _module("rerank").run(model, queries, out, top_k, changed, risk, confidence, as_json=json)


@app.command()
def predict(
    folder: Folder,
    texts: TextsFile,
    out: Annotated[Path, typer.Option(help="The CSV file to write.")],
    column: Columns = None,
    no_header: NoHeader = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the answers that are in --out.")
    ] = False,
    json: Json = False,
) -> None:
    """Answer every text, each at its exit; the answers stand beside all columns of the file."""
    _module("predict").run(
        folder, texts, out, _reading(column, None, no_header), resume=resume, as_json=json
    )


@app.command()
def check(
    folder: Annotated[
        Path, typer.Argument(help="A folder of another command, or the file of `ponder certify`.")
    ],
    answers: Annotated[
        Path | None, typer.Argument(help="Fresh answers, for a file of `certify`.")
    ] = None,
    texts: Annotated[
        Path | None, typer.Option("--texts", help="Fresh texts, for a folder.")
    ] = None,
    column: Columns = None,
    labels: Labels = None,
    no_header: NoHeader = False,
    disagreement: Promised = None,
    reference: Annotated[
        Path | None,
        typer.Option(help="The folder whose full depth was promised: that before --int8."),
    ] = None,
    json: Json = False,
) -> None:
    """Does the promise hold on fresh texts? Exit code 0 where it does, 1 where it is broken, 3 for too few to say."""
    if answers is not None:
        raise typer.Exit(_module("certify").check_threshold(folder, answers, as_json=json))
    if texts is None:
        expected = "fresh texts for a folder, or fresh answers behind a file of `certify`"
        raise ArgumentError(
            "--texts", expected=expected, got="neither", remedy="Name a file: --texts new.csv."
        )
    options = {"level": disagreement, "reference": reference, "as_json": json}
    raise typer.Exit(
        _module("check").run(folder, texts, _reading(column, labels, no_header), **options)
    )


@app.command()
def export(
    folder: Annotated[
        Path, typer.Argument(help="A folder that `ponder exits` wrote.", metavar="FOLDER")
    ],
    out: Out,
    to: Annotated[Literal["onnx"], typer.Option(help="The format.")] = "onnx",
    int8: Annotated[
        bool, typer.Option("--int8", help="Quantise; the policy is chosen again on the texts.")
    ] = False,
    texts: Annotated[
        Path | None, typer.Option(help="With --int8: texts that choose and certify.")
    ] = None,
    column: Columns = None,
    no_header: NoHeader = False,
    disagreement: Promised = None,
    confidence: Confidence = 0.95,
    json: Json = False,
) -> None:
    """Write FOLDER as ONNX graphs that exit early, which run without PyTorch."""
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
    host: Annotated[
        str, typer.Option(help="Address to listen on; this machine only by default.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for one that is free.")] = 8000,
    max_batch: Annotated[int, typer.Option(min=1, help="Texts of a batch.")] = 32,
    max_waiting: Annotated[
        int, typer.Option(min=1, help="Texts that may wait; more is answered by 429.")
    ] = 1024,
    max_texts: Annotated[int, typer.Option(min=1, help="Texts of a request.")] = 64,
    max_body: Annotated[int, typer.Option(min=1, help="Bytes of a request.")] = 1 << 16,
    deadline: Annotated[
        float, typer.Option(min=0, help="Seconds a request may take; 0 for no limit.")
    ] = 30.0,
    fixed_policy: Annotated[
        bool, typer.Option("--fixed-policy", help="Refuse thresholds in requests.")
    ] = False,
    audit_share: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Share of the answers checked at full depth, after a certificate.",
        ),
    ] = 0.01,
    audit_file: Annotated[
        Path | None, typer.Option(help="File with the state of the audits.")
    ] = None,
) -> None:
    """Answer texts over HTTP: /predict, /healthz, /metrics and /docs."""
    limits: dict[str, Any] = {
        "max_batch": max_batch,
        "max_waiting": max_waiting,
        "max_texts": max_texts,
    }
    limits |= {"max_body": max_body, "deadline": deadline or None, "fixed_policy": fixed_policy}
    _module("serve").run(folder, host, port, limits, audit_share, audit_file)


def _module(name: str) -> Any:
    return import_module(f"ponder.cli.{name}")


def _reading(column: list[str] | None, labels: str | None, no_header: bool) -> dict[str, Any]:
    """Return the arguments of `read_texts`."""
    return {"columns": column or [], "labels": labels, "header": not no_header}
