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
from ponder.deploy.folders import OpenedRanker, open
from ponder.deploy.monitor import Watch
from ponder.deploy.server import Limits, create_app, create_rank_app, watch_of
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
) -> None:
    """Serve a folder until SIGINT or SIGTERM, with the given `Limits`; what was accepted is answered."""
    _check_free(host, port)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    limits = Limits(**given)
    grace = None if limits.deadline is None else int(limits.deadline) + _GRACE
    app = app_of(folder, limits, audit_share, audit_file)
    uvicorn.run(
        app,
        host=host,
        port=port,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=grace,
    )


def app_of(folder: Path, limits: Limits, audit_share: float, audit_file: Path | None) -> FastAPI:
    """Return the application of a folder, and say what answers and what is audited."""
    opened = open(folder)
    say(opened.statement)
    if isinstance(opened, OpenedRanker):
        return create_rank_app(opened.ranker, limits)
    warn = logging.getLogger("ponder.server").warning
    watch = watch_of(
        opened.policy, audit_share, audit_file, lambda end: warn("stepped back: %s", end.statement)
    )
    say(f"policy: {in_words(opened.policy if watch is None else watch.policy)}")
    say(_audit(watch, audit_file))
    return create_app(opened, limits, watch)


def _audit(watch: Watch | None, path: Path | None) -> str:
    if watch is None:
        return "audit: none (it needs a share above 0, and a policy that is certified to answer as full depth does)"
    kept = (
        f"kept in {path}" if path is not None else "not kept over a restart (--audit-file keeps it)"
    )
    back = f"; stepped back {watch.stage} of {len(watch.policies)} times" if watch.stage else ""
    share, level = f"{watch.audit.share:g} of the answers", rounded_up(100 * watch.audit.level, 3)
    return f"audit: {share}, of which at most {level}% may differ; {kept}{back}"


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
