"""Files of texts: which kinds are read, which columns are meant, and what labels mean."""

from __future__ import annotations

from pathlib import Path

import pytest

from ponder.cli.texts import Texts, read_texts
from ponder.errors import ArgumentError
from ponder.statistics.certificate import count

LONG = "a text of words"


@pytest.mark.parametrize(
    ("name", "content", "columns", "texts"),
    [
        ("a.csv", f"text\n{LONG}\n\n", ("text",), [LONG, ""]),
        ("a.csv", f"id,Content\r\n7,{LONG}\r\n", ("Content",), [LONG]),
        ("a.csv", 'id,sentence\n7,"one, ""two""\nthree"\n', ("sentence",), ['one, "two"\nthree']),
        ("a.csv", f"text\n{LONG}\u2028{LONG}\n", ("text",), [f"{LONG}\u2028{LONG}"]),
        ("a.csv", f"\ufefftext,n\n{LONG},1\n", ("text",), [LONG]),
        ("a.tsv", 'id\ttext\n1\tsay "so\n2\t"so\n', ("text",), ['say "so', '"so']),
        ("a.tsv", 'id\ttext\n1\t"two\nlines"\n', ("text",), ["two\nlines"]),
        (
            "a.jsonl",
            '{"text": "one", "n": 1}\n\n{"n": 2, "text": "two"}\n',
            ("text",),
            ["one", "two"],
        ),
        ("a.jsonl", '"one"\n"two"\n', ("text",), ["one", "two"]),
        ("a.txt", "one\r\ntwo, three\n", ("text",), ["one", "two, three"]),
    ],
)
def test_kinds_of_files(
    tmp_path: Path, name: str, content: str, columns: tuple[str, ...], texts: list[str]
) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode())
    found = read_texts(path)
    assert (found.columns, found.texts) == (columns, texts)


def test_a_parquet_file_is_read(tmp_path: Path) -> None:
    import pandas

    pandas.DataFrame({"text": ["one", "two"], "label": [0, 1]}).to_parquet(tmp_path / "a.parquet")
    found = read_texts(tmp_path / "a.parquet", labels="label")
    assert (found.texts, found.numbered(["no", "yes"])) == (["one", "two"], [0, 1])


def test_columns_are_named_known_or_found(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"question,answer,label\n{LONG},{LONG}!,x\n")
    with pytest.raises(ArgumentError, match="--column"):
        read_texts(path)
    pair = [(LONG, f"{LONG}!")]
    assert read_texts(path, ["question", "answer"]).texts == pair
    assert read_texts(path, known=("question", "answer")).texts == pair
    assert read_texts(path, ["answer"]).texts == [f"{LONG}!"]
    with pytest.raises(ArgumentError, match="2 columns, as the exits"):
        read_texts(path, ["answer"], known=("question", "answer"))
    path.write_text(f"{LONG}\n{LONG}\n")
    assert read_texts(path, header=False).texts == [LONG, LONG]


@pytest.mark.parametrize(
    ("labels", "names", "numbers"),
    [
        (["yes", "no"], ["no", "yes"], [1, 0]),
        (["1", "0"], ["no", "yes"], [1, 0]),
        (["1", "2"], ["2", "1"], [1, 0]),
    ],
)
def test_labels_are_names_before_they_are_numbers(
    labels: list[str], names: list[str], numbers: list[int]
) -> None:
    rows = [{"text": "a", "label": label} for label in labels]
    assert Texts(("text",), rows, "label").numbered(names) == numbers
    assert Texts(("text",), rows).numbered(names) is None


def test_empty_texts_are_left_out_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"a": "", "b": " "}, {"a": "x", "b": ""}]
    assert Texts(("a", "b"), rows).without_empty().texts == [("x", "")]
    assert capsys.readouterr().err == "1 empty text left out.\n"
    assert (count(1, "text"), count(0, "text")) == ("1 text", "0 texts")
