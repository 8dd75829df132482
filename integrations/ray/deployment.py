"""`deployment`: the service of `ponder serve` on Ray Serve, where one machine is not enough."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import Any, get_args

import torch
from fastapi import FastAPI

from ponder._utils.validation import check_choice, check_int, check_real
from ponder.errors import ArgumentError, PonderError
from ponder.integrations.transformers.serving import Batching, open_folder
from ponder.serving import AuditPlan, Limits, ServedModel, create_app

__all__ = ["deployment"]


def deployment(
    folder: str | PathLike[str],
    limits: Limits | None = None,
    *,
    batching: Batching = "stream",
    audit_share: float = 0.01,
    audit_file: str | PathLike[str] | None = None,
    threads: int = 1,
    **options: Any,
) -> Any:
    """An application for `ray.serve.run`: `/predict`, `/healthz` and `/metrics` of each replica.

    Every replica reads the folder, batches the requests that reach it, and audits its own traffic. Once the thread that
    answers has ended with an error, Ray's health checks fail, and Ray replaces the replica.

    Args:
        folder: The folder of the model, as for `ponder.integrations.transformers.serving.open_folder`; every node must
            see it.
        limits: Limits of each replica. Ray Serve queues before the replicas too, up to its own `max_ongoing_requests`,
            which is `limits.max_waiting` where it is not given.
        batching: How texts share steps, as for `open_folder`.
        audit_share: The share of answers that is audited, where the folder's policy is certified; 0 for none.
        audit_file: File with the state of the audits, for one replica only: one keeps it, and others are refused.
        threads: Threads of one operation, of a replica.
        options: Arguments of `ray.serve.deployment`: `num_replicas`, `ray_actor_options`, `autoscaling_config`, …

    Raises:
        PonderError: Ray Serve is not installed.
        ArgumentError: A number out of range, another word for `batching`, or a file of audits for several replicas.
        ArgumentTypeError: `limits` are none.

    Example:
        >>> application = deployment("FOLDER", num_replicas=4)  # then: ray.serve.run(application, route_prefix="/")
        >>> type(application).__name__
        'Application'
    """
    check_int("threads", threads)
    check_real("audit_share", audit_share, 0.0, 1.0)
    check_choice("batching", batching, get_args(Batching))
    bounds = Limits.checked(limits)
    if audit_file is not None:
        _check_single(options)
    try:
        from ray import serve
    except ImportError as error:
        raise PonderError("deployment needs Ray Serve: pip install 'ponder-torch[ray]'.") from error
    place = fspath(folder)
    path = None if audit_file is None else Path(audit_file)

    def plan(model: ServedModel) -> AuditPlan | None:
        return AuditPlan.of_certificate(model.policy, audit_share, path) if audit_share else None

    def build() -> FastAPI:
        torch.set_num_threads(threads)
        return create_app(lambda: open_folder(place, batching=batching), bounds, plan)

    given = {"name": "ponder", "max_ongoing_requests": bounds.max_waiting, **options}
    made: Any = serve.deployment(serve.ingress(build)(Replica), **given)
    return made.bind()


class Replica:
    """What Ray asks of a replica besides its requests."""

    app: FastAPI  # of Ray, which makes the replica a subclass of this and of its own

    def check_health(self) -> None:
        """Raise where no request will be answered any more; Ray then stops the replica, and starts another."""
        failure = self.app.state.service.failure
        if failure is not None:
            raise PonderError(f"the thread that answers has ended with {failure!r}.")  # Ray pickles and logs it


def _check_single(options: Mapping[str, Any]) -> None:
    """Refuse a file of audits where there may be several replicas, of which all but one would not start."""
    for name in ("num_replicas", "autoscaling_config"):
        if options.get(name) not in (None, 1):
            raise ArgumentError(
                "audit_file",
                expected="None where there may be several replicas, since one alone keeps a file",
                got=f"a file, and {name}={options[name]!r}",
                remedy=f"Leave one of the two out: audit_file or {name}.",
            )
