"""The command `serve` with its options; what it does is in `ponder.cli.serving`."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import typer

from ponder.cli.running import run

__all__ = ["serve"]

_NEEDED = ("fastapi", "prometheus_client", "uvicorn")


def serve(
    folder: Annotated[
        Path, typer.Argument(help="Folder of `ponder exits`, save_pretrained or an export.", metavar="FOLDER")
    ],
    host: Annotated[str, typer.Option(help="Address to listen on; this machine only by default.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for one that is free.")] = 8000,
    batching: Annotated[
        Literal["stream", "window"], typer.Option(help="Rows share steps, or whole batches.")
    ] = "stream",
    max_batch: Annotated[int, typer.Option(min=1, help="Texts of a batch.")] = 32,
    max_waiting: Annotated[int, typer.Option(min=1, help="Texts that may wait; more is answered by 429.")] = 1024,
    max_texts: Annotated[int, typer.Option(min=1, help="Texts of a request.")] = 64,
    max_body: Annotated[int, typer.Option(min=1, help="Bytes of a request.")] = 1 << 20,
    deadline: Annotated[float, typer.Option(help="Seconds a request may take; 0 for no limit.")] = 30.0,
    threads: Annotated[int, typer.Option(min=0, help="Threads of one operation; 0 for PyTorch's choice.")] = 0,
    audit_share: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of the answers checked at full depth, after a certificate.")
    ] = 0.01,
    audit_file: Annotated[Path | None, typer.Option(help="File with the state of the audits.")] = None,
) -> None:
    """Answer texts over HTTP: /predict, /healthz and /metrics."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        typer.echo(
            f"ponder: serve needs {', '.join(missing)}: not installed. Run:\n  pip install 'ponder-torch[serve]'",
            err=True,
        )
        raise typer.Exit(1)
    bounds = {"max_batch": max_batch, "max_waiting": max_waiting, "max_texts": max_texts, "max_body": max_body}
    run(
        "ponder.cli.serving",
        "serve",
        folder,
        {"host": host, "port": port, "batching": batching, "threads": threads},
        {**bounds, "deadline": deadline or None},
        {"share": audit_share, "path": audit_file},
    )
