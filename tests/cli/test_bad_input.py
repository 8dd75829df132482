"""Bad input: one sentence that names the option and the cure, exit code 2, at once, and nothing written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Folders
from tests.integrations.encoders import make_plain, make_tokenizer, some_texts

FILES: dict[str, bytes] = {
    "empty.csv": b"",
    "header.csv": b"text\n",
    "binary.txt": b"\x00\x01\x02 a\n",
    "binary.csv": b"\x89PNG\xff\xfe",
    "latin.csv": "text\ncaf\xe9 au lait\n".encode("latin-1"),
    "quote.csv": b'text\n"an open quote\n',
    "semicolons.csv": b"id;text\n1;a b\n",
    "ragged.csv": b"id,text\n1,a b c,d\n",
    "twice.csv": b"text,text\na,b\n",
    "five.csv": b"text\na\nb\nc\nd\ne\n",
    "two.csv": b"one,other\na b c d,e f g h\n",
    "broken.jsonl": b'{"text": "a"}\n{"text": \n',
    "numbers.jsonl": b'{"text": 1}\n',
}
CASES = [
    ("empty.csv", "--texts: expected at least one text"),
    ("header.csv", "--texts: expected at least one text"),
    ("binary.txt", "bytes that are not text"),
    ("binary.csv", "--texts: expected text in UTF-8"),
    ("latin.csv", "--texts: expected text in UTF-8"),
    ("quote.csv", "--texts: expected a CSV file"),
    ("semicolons.csv", "no comma in 'id;text'"),
    ("ragged.csv", "another number of columns in row 2"),
    ("twice.csv", "two columns of one name"),
    ("five.csv", "--texts: expected at least 50 distinct texts"),
    ("two.csv", "--column: expected the name of the column"),
    ("broken.jsonl", "--texts: expected a JSONL file"),
    ("numbers.jsonl", "--texts: expected text in every row"),
    ("no-such.csv", "--texts: expected a file that can be read; got No such file"),
]


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where a model is read."""

    def read(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was read")

    from ponder.integrations.transformers import PonderForSequenceClassification

    monkeypatch.setattr(PonderForSequenceClassification, "from_finetuned", read)


def said(run: Callable[..., Any], *arguments: object) -> str:
    error: str = run(*arguments, code=2).stderr
    assert error.split()[:1] == ["ponder:"], error  # a long path begins a line of its own
    return " ".join(error.split())


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize(("file", "sentence"), CASES)
def test_wrong_files_are_refused_with_a_sentence(
    run: Callable[..., Any], folders: Folders, tmp_path: Path, file: str, sentence: str
) -> None:
    if file in FILES:
        (tmp_path / file).write_bytes(FILES[file])
    out = tmp_path / "out"
    assert sentence in said(run, "exits", folders.model, "--texts", tmp_path / file, "--out", out)
    assert not out.exists()


@pytest.mark.usefixtures("unread")
def test_places_are_probed_before_any_work(
    run: Callable[..., Any], folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("a file")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "notes.txt").write_text("mine")
    for out in (
        tmp_path / "file",
        tmp_path / "file" / "below",
        foreign,
        folders.model,
        folders.export,
    ):
        assert "--out: expected" in said(
            run, "exits", folders.model, "--texts", folders.texts, "--out", out
        )
    arguments = ("predict", folders.exits, "--texts", folders.texts, "--out")
    for out in (
        folders.texts,
        folders.exits / "answers.csv",
        tmp_path / "file" / "below.csv",
        foreign,
    ):
        assert "--out: expected" in said(run, *arguments, out)
    assert [path.name for path in foreign.iterdir()] == ["notes.txt"]
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10})())
    assert "0 MB free" in said(
        run, "exits", folders.model, "--texts", folders.texts, "--out", tmp_path / "new"
    )


def test_wrong_folders_are_refused_with_a_sentence(
    run: Callable[..., Any], folders: Folders, tmp_path: Path
) -> None:
    texts = ("--texts", folders.texts)
    out = ("--out", tmp_path / "out")
    assert "FOLDER: expected" in said(run, "predict", folders.model, *texts, *out)
    assert "a model without exits" in said(run, "check", folders.model, *texts)
    assert "FOLDER: expected a folder that is in PyTorch; got an export" in said(
        run, "export", folders.export, *out
    )
    assert "MODEL: expected" in said(run, "exits", folders.exits, *texts, *out)
    assert "MODEL: expected the folder" in said(run, "exits", tmp_path / "none", *texts, *out)
    (tmp_path / "export.json").write_text('{"format": "other"}')
    assert "no export of this version" in said(
        run, "predict", tmp_path, *texts, "--out", tmp_path.parent / "a.csv"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("labels", [1, 2])
def test_models_without_classes(
    run: Callable[..., Any], folders: Folders, tmp_path: Path, labels: int
) -> None:
    model = tmp_path / "model"
    kind = {"problem_type": "multi_label_classification"} if labels > 1 else {}
    make_plain("sequence", "bert", labels, **kind).save_pretrained(model)
    make_tokenizer().save_pretrained(model)
    told = said(run, "exits", model, "--texts", folders.texts, "--out", tmp_path / "out")
    assert "MODEL: expected a classifier of two classes or more" in told
    assert ("regression" if labels == 1 else "multilabel") in told


def test_wrong_options_are_refused_with_a_sentence(
    run: Callable[..., Any], folders: Folders, tmp_path: Path
) -> None:
    texts = ("--texts", folders.fresh)
    out = ("--out", tmp_path / "out")
    exits = ("exits", folders.model, *texts, *out)
    assert "--speed-up: expected" in said(run, *exits, "--speed-up", 2, "--disagreement", 0.1)
    assert "--speed-up: expected a number in" in said(run, *exits, "--speed-up", 9)
    assert "--labels: expected names of the model's 3 classes" in said(
        run, *exits, "--labels", "id"
    )
    assert "--labels: expected one of id, label, text; got none" in said(
        run, *exits, "--labels", "none"
    )
    assert "--column: expected one of" in said(run, *exits, "--column", "none")
    pair = ("--column", "text", "--column", "label")
    assert "--column: expected 1 column, as" in said(
        run, "predict", folders.exits, *texts, *out, *pair
    )
    assert "--texts: expected a file of texts with --int8" in said(
        run, "export", folders.exits, *out, "--int8"
    )
    assert "--disagreement" in run(*exits, "--disagreement", 2, code=2).stderr
    state = tmp_path / "audit.json"
    state.write_text("{}")
    audit = ("--audit-file", state, "--port", 0)
    assert "no ledger of a service" in said(run, "serve", folders.exits, *audit)


def test_a_taken_header_is_shown(run: Callable[..., Any], folders: Folders, tmp_path: Path) -> None:
    plain = tmp_path / "plain.csv"
    plain.write_text("".join(f"{text}\n" for text in some_texts(20)))
    arguments = ("predict", folders.export, "--texts", plain, "--out")
    told = run(*arguments, tmp_path / "one.csv")
    assert f"Taken as the header of plain.csv: {some_texts(1)[0]!r}" in told.stderr
    assert "19 answers" in told.stdout
    told = run(*arguments, tmp_path / "other.csv", "--no-header")
    assert "20 answers" in told.stdout
    assert not told.stderr
