"""The command `serve`: a folder behind HTTP, until the process is stopped."""

from __future__ import annotations

import logging
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

from ponder._utils.rounding import rounded_up
from ponder.calibration.statement import in_words
from ponder.cascade.stages import stage_of
from ponder.cli.output import say
from ponder.deploy.auditing import ServedLedger
from ponder.deploy.folders import FullDepth, Opened, OpenedRanker, open
from ponder.deploy.server import Limits, create_app, create_rank_app, ledger_of
from ponder.errors import ArgumentError, PonderError

__all__ = ["app_of", "run"]

_GRACE = 10  # seconds beyond the deadline, when the service is stopped


def run(
    folder: Path,
    host: str,
    port: int,
    given: Mapping[str, Any],
    audit_share: float,
    audit_file: Path | None,
    reference: Path | None = None,
) -> None:
    """Serve a folder until SIGINT or SIGTERM; accepted requests are still answered."""
    _check_free(host, port)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    limits = Limits(**given)
    grace = None if limits.deadline is None else int(limits.deadline) + _GRACE
    app = app_of(folder, limits, audit_share, audit_file, reference)
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
    """Return the application of a folder, and report its model and its audits."""
    opened = open(folder)
    say(opened.statement)
    if isinstance(opened, OpenedRanker):
        return create_rank_app(opened.ranker, limits)
    say(f"policy: {in_words(opened.policy)}")
    ledger = ledger_of(opened.policy, audit_share, audit_file)
    deep = None
    if ledger is not None:
        try:
            deep = _deep(opened, reference)
        except (PonderError, ImportError) as error:
            say(f"audit: none, since the model that the promise is about cannot be asked: {error}")
            return create_app(opened, limits)
    say(_audit(ledger))
    return create_app(opened, limits, ledger, deep)


def _deep(opened: Opened, reference: Path | None) -> FullDepth | None:
    """Return the model of audits: the named or remembered one; None for the folder's."""
    if reference is not None:
        return FullDepth(stage_of(reference), opened.labels)
    return FullDepth(opened.reference(), opened.labels) if opened.needs_reference else None


def _audit(ledger: ServedLedger | None) -> str:
    if ledger is None:
        return (
            "audit: none (it needs a share above 0, and a policy that is certified to answer as "
            "full depth does)"
        )
    place = "not kept over a restart (--audit-file keeps it)"
    if ledger.path is not None:
        place = f"kept in {ledger.path}"
    level = rounded_up(100 * ledger.level, 3)
    said = (
        f"audit: {ledger.share:g} of the early answers, of all answers at most {level}% may differ"
    )
    return f"{said}; {place}. {ledger.statement}"


def _check_free(host: str, port: int) -> None:
    """Refuse an address on which nothing can listen, before the model is read."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        expected = f"a port that is free on {host}, an address of this machine"
        got = f"{port} ({error.strerror})"
        remedy = "Pass another, or --port 0 for any that is free."
        raise ArgumentError("--port", expected=expected, got=got, remedy=remedy) from error
