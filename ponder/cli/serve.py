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
from ponder.cli.output import say
from ponder.deploy.auditing import ServedLedger
from ponder.deploy.folders import Opened, OpenedRanker, open, open_folder
from ponder.deploy.server import Limits, create_app, create_rank_app, ledger_of
from ponder.errors import ArgumentError

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
    """Serve a folder until SIGINT or SIGTERM, with the given `Limits`; what was accepted is answered."""
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
    """Return the application of a folder, and say what answers and what is audited."""
    opened = open(folder)
    say(opened.statement)
    if isinstance(opened, OpenedRanker):
        return create_rank_app(opened.ranker, limits)
    deep = None if reference is None else open_folder(reference)
    ledger = _ledger(opened, deep, audit_share, audit_file)
    say(f"policy: {in_words(opened.policy)}")
    say(_audit(ledger))
    return create_app(opened, limits, ledger, deep if ledger is not None else None)


def _ledger(
    opened: Opened, reference: Opened | None, share: float, path: Path | None
) -> ServedLedger | None:
    """Return the ledger, if there is a promise and a model that can be asked about it."""
    if opened.needs_reference and reference is None:
        return None
    return ledger_of(opened.policy, share, path)


def _audit(ledger: ServedLedger | None) -> str:
    if ledger is None:
        return (
            "audit: none (it needs a share above 0, a policy that is certified to answer as full depth does, and "
            "--reference if that is the full depth of another folder)"
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
        expected, got = (
            f"a port that is free on {host}, an address of this machine",
            f"{port} ({error.strerror})",
        )
        remedy = "Pass another, or --port 0 for any that is free."
        raise ArgumentError("--port", expected=expected, got=got, remedy=remedy) from error
