"""What the command `serve` does: reads a folder, and runs the application on uvicorn until it is told to stop."""

from __future__ import annotations

import errno
import socket
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import typer
import uvicorn
from transformers.utils import logging

from ponder._utils.rounding import rounded_up
from ponder.cli.running import WIDTH
from ponder.errors import ArgumentError, PonderError
from ponder.integrations.transformers.serving import open_folder
from ponder.serving import AuditPlan, Limits, ServedModel, create_app

__all__ = ["audit_plan", "serve", "server"]

_GRACE = 10  # seconds that answers may take, beyond their deadline, when the service is told to stop


def serve(folder: Path, options: Mapping[str, Any], bounds: Mapping[str, Any], audit: Mapping[str, Any]) -> None:
    """Serve a folder until SIGINT or SIGTERM; what was accepted is answered.

    Args:
        folder: The folder of the model.
        options: `host`, `port`, `batching` and `threads` (0 for PyTorch's choice).
        bounds: Fields of `Limits`, by name.
        audit: `share` and `path`.
    """
    server(folder, options, bounds, audit).run()


def server(
    folder: Path, options: Mapping[str, Any], bounds: Mapping[str, Any], audit: Mapping[str, Any]
) -> uvicorn.Server:
    """The server of `serve`, which says on the standard error what it is going to do."""
    _check_free(options["host"], options["port"])
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if options["threads"]:
        torch.set_num_threads(options["threads"])
    limits = Limits(**bounds)
    model = open_folder(folder, batching=options["batching"])
    plan = audit_plan(model, **audit)
    stage = _kept_stage(plan)
    policy = model.policy if plan is None else plan.policy_at(stage)
    for line in (f"policy: {policy!r}", _told(plan, stage)):
        lines = textwrap.wrap(line, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
        typer.echo("\n".join(lines), err=True)
    config = uvicorn.Config(
        create_app(model, limits, plan),
        host=options["host"],
        port=options["port"],
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=None if limits.deadline is None else int(limits.deadline) + _GRACE,
    )
    return uvicorn.Server(config)


def audit_plan(model: ServedModel, share: float, path: Path | None) -> AuditPlan | None:
    """What is audited: the promise of the folder's certificate, where it has one about full depth."""
    return AuditPlan.of_certificate(model.policy, share, path) if share else None


def _kept_stage(plan: AuditPlan | None) -> int:
    """The stage that a file of audits goes on with; one that is no use is refused before anything is served."""
    if plan is None or plan.file is None:
        return 0
    try:
        with plan.file.held():
            return plan.resumed().stage
    except PonderError as error:
        raise ArgumentError(
            "audit_file",
            expected="the state of these audits, or a place where it can be written",
            got=error.got if isinstance(error, ArgumentError) else str(error).rstrip("."),
            remedy="Pass another --audit-file.",
        ) from error


def _check_free(host: str, port: int) -> None:
    """Refuse an address on which nothing can listen, before the model is read."""
    try:
        socket.getaddrinfo(host or None, port)
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except (socket.gaierror, UnicodeError) as error:  # a name that there is not, or that can be none
        raise _no_host(host, error) from error
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            raise _no_host(host, error) from error
        raise ArgumentError(
            "port",
            expected=f"one that is free on {host}",
            got=f"{port} ({error.strerror or error})",
            remedy="Pass another, or --port 0 for any that is free.",
        ) from error


def _no_host(host: str, error: Exception) -> ArgumentError:
    return ArgumentError(
        "host",
        expected="an address or a name of this machine",
        got=f"{host} ({getattr(error, 'strerror', None) or error})",
        remedy="Pass 127.0.0.1 for this machine alone, or 0.0.0.0 for all that reach it.",
    )


def _told(plan: AuditPlan | None, stage: int) -> str:
    if plan is None:
        return "audit: none (it needs a share above 0, and a policy that is certified to answer as full depth does)"
    if stage >= len(plan.policies):
        return f"audit: none any more: the promise could not be held, and full depth answers (as kept in {plan.path})"
    kept = f"kept in {plan.path}" if plan.path is not None else "not kept over a restart (--audit-file keeps it)"
    level, back = rounded_up(plan.audit.level), f"; stepped back from {plan.policies[0]!r} so far" if stage else ""
    return f"audit: {plan.audit.share:g} of the answers, of which at most {level} may differ; {kept}{back}"
