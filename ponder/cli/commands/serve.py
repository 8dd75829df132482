"""The command `serve`: a folder behind HTTP, or a place in front of a gateway, until a stop."""

from __future__ import annotations

import logging
import socket
from pathlib import Path
from typing import Annotated

import typer
import uvicorn
from fastapi import FastAPI

from ponder._utils.rounding import rounded_up
from ponder.cascade.stages import stage_of
from ponder.cli.options import SHARE, Confidence
from ponder.cli.output import say
from ponder.cli.texts import read_labels
from ponder.deploy.auditing import ServedLedger
from ponder.deploy.folders import FullDepth, Opened, OpenedRanker, open
from ponder.deploy.front import Front, create_front_app
from ponder.deploy.server import Limits, create_app, ledger_of
from ponder.deploy.server_ranking import create_rank_app
from ponder.errors import ArgumentError, PonderError
from ponder.statistics.certificate import CONFIDENCE, LEVEL

__all__ = ["app_of", "run"]

_GRACE = 10  # seconds after the deadline until a stopping service drops its requests


def run(
    folder: Annotated[
        Path | None, typer.Argument(help="A folder of another command.", metavar="FOLDER")
    ] = None,
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
    in_front_of: Annotated[
        str | None,
        typer.Option(
            help="In place of a folder: the address of a server with OpenAI's interface, up to "
            "/v1, whose classification calls become cheaper. The options below are for it."
        ),
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="A file with a label on each line, the answers of a call.")
    ] = None,
    level: Annotated[
        float, typer.Option(help="The share of answers that may differ.", **SHARE)
    ] = LEVEL,
    confidence: Confidence = CONFIDENCE,
    database: Annotated[
        Path | None, typer.Option("--db", help="The SQLite file that keeps answers and the bound.")
    ] = None,
    budget: Annotated[
        int | None,
        typer.Option(min=0, help="The limit of calls, those before a restart included."),
    ] = None,
    price: Annotated[float, typer.Option(min=0, help="The price of a call.")] = 1.0,
) -> None:
    """Answer texts over HTTP: /predict (or /rank), /health, /metrics and /docs.

    Examples: `ponder serve exits --port 8000`,
    `ponder serve --in-front-of http://gateway/v1 --labels labels.txt --db live.db`
    """
    _check_free(host, port)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    limits = Limits(
        max_batch=max_batch,
        max_waiting=max_waiting,
        max_texts=max_texts,
        max_body=max_body,
        deadline=deadline or None,
        fixed_policy=fixed_policy,
    )
    grace: int | None = None
    if limits.deadline is not None:
        grace = int(limits.deadline) + _GRACE
    if in_front_of is not None and folder is None:
        front = Front(
            in_front_of,
            read_labels(labels),
            level,
            confidence,
            database,
            budget=budget,
            price=price,
        )
        say(f"in front of {in_front_of}: {front.live.statement}")
        app = create_front_app(front)
    elif folder is not None and in_front_of is None:
        app = app_of(folder, limits, audit_share, audit_file, reference)
    else:
        raise ArgumentError(
            "FOLDER",
            expected="a folder, or --in-front-of",
            got="neither" if folder is None else "both",
            remedy="Name one of them.",
        )
    uvicorn.run(
        app,
        host=host,
        port=port,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=grace,
    )


def app_of(
    folder: Path,
    limits: Limits,
    audit_share: float,
    audit_file: Path | None,
    reference: Path | None = None,
) -> FastAPI:
    """Return the application of a folder, and print its promise, its policy and its audits."""
    opened = open(folder)
    say(opened.statement)
    if isinstance(opened, OpenedRanker):
        return create_rank_app(opened.ranker, limits)
    say(f"policy: {opened.policy.words()}")
    ledger = ledger_of(opened.promise, audit_share, audit_file)
    full_depth = None
    if ledger is not None:
        try:
            full_depth = _full_depth(opened, reference)
        except (PonderError, ImportError) as error:
            say(f"audit: none, since the model that the promise is about cannot be asked: {error}")
            return create_app(opened, limits)
    say(_audit_sentence(ledger))
    return create_app(opened, limits, ledger, full_depth)


def _full_depth(opened: Opened, reference: Path | None) -> FullDepth | None:
    """Return the model that answers audits; None if it is the folder's own full depth.

    It is the model that the caller named, or else the one that the folder names.
    """
    if reference is not None:
        return FullDepth(stage_of(reference), opened.labels)
    if opened.needs_reference:
        return FullDepth(opened.reference(), opened.labels)
    return None


def _audit_sentence(ledger: ServedLedger | None) -> str:
    if ledger is None:
        return (
            "audit: none (it needs a share above 0, and a policy that is certified to answer as "
            "full depth does)"
        )
    place = "not kept over a restart (--audit-file keeps it)"
    if ledger.path is not None:
        place = f"kept in {ledger.path}"
    level = rounded_up(100 * ledger.level, 3)
    return (
        f"audit: {ledger.share:g} of the early answers, of all answers at most {level}% may "
        f"differ; {place}. {ledger.statement}"
    )


def _check_free(host: str, port: int) -> None:
    """Refuse an address on which nothing can listen, before the model is read."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        raise ArgumentError(
            "--port",
            expected=f"a port that is free on {host}, an address of this machine",
            got=f"{port} ({error.strerror})",
            remedy="Pass another, or --port 0 for any that is free.",
        ) from error
