"""Arguments and options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = [
    "SHARE",
    "Columns",
    "Confidence",
    "Folder",
    "Json",
    "Labels",
    "Level",
    "Model",
    "NoHeader",
    "Out",
    "Promised",
    "Seed",
    "TextsFile",
]

SHARE: dict[str, Any] = {"min": 1e-6, "max": 1.0 - 1e-6}
"""Limits of an option that is a share."""
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
    float, typer.Option("--disagreement", help="The share of answers that may differ.", **SHARE)
]
Promised = Annotated[
    float | None,
    typer.Option(
        "--disagreement", help="Use another level than the one that FOLDER promises.", **SHARE
    ),
]
Out = Annotated[
    Path, typer.Option(help="The folder to write; a new one, or one of the same command.")
]
Seed = Annotated[int, typer.Option(help="The seed by which texts are split.")]
Confidence = Annotated[float, typer.Option(help="The probability that the promise holds.", **SHARE)]
Model = Annotated[
    str,
    typer.Argument(help="A fine-tuned classifier: its folder or its hub name.", metavar="MODEL"),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
