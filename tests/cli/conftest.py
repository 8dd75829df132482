"""A tiny fine-tuned BERT, texts for it, and the folders that the commands make of it, once a session."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.integrations.conftest import _offline, _quiet  # noqa: F401
from tests.integrations.encoders import make_plain, make_tokenizer, some_texts

NAMES = ("no", "maybe", "yes")


@dataclass(frozen=True)
class Folders:
    """What the commands read and write."""

    model: Path
    texts: Path
    fresh: Path
    exits: Path
    export: Path


@pytest.fixture(scope="session")
def run() -> Callable[..., Any]:
    """Run a command, and show what went wrong where the exit code is another than that expected."""
    from ponder.cli.app import app

    def call(*arguments: object, code: int = 0) -> Any:
        result = CliRunner().invoke(app, [str(each) for each in arguments])
        if result.exit_code != code:
            raise AssertionError(f"{result.exit_code}: {result.output}") from result.exception
        return result

    return call


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory, run: Callable[..., Any]) -> Folders:
    place = tmp_path_factory.mktemp("cli")
    made = Folders(
        *(place / name for name in ("model", "texts.csv", "fresh.csv", "exits", "export"))
    )
    names = {
        "id2label": dict(enumerate(NAMES)),
        "label2id": {name: place for place, name in enumerate(NAMES)},
    }
    make_plain("sequence", "bert", **names).save_pretrained(made.model)
    make_tokenizer().save_pretrained(made.model)
    texts = some_texts(700)
    made.texts.write_text(
        "id,text\n" + "".join(f"{n},{text}\n" for n, text in enumerate(texts[:400]))
    )
    rows = (f"{n},{NAMES[n % 3]},{text}\n" for n, text in enumerate(texts[400:]))
    made.fresh.write_text("id,label,text\n" + "".join(rows))
    run("exits", made.model, "--texts", made.texts, "--out", made.exits, "--speed-up", 1.4)
    run("export", made.exits, "--out", made.export)
    return made
