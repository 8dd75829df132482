"""Faults of GLUE's files: each is an error that says where, what was expected, what came and what to do."""

import logging

import pytest
from glue_files import LAYOUTS, lines_of, make, rte_train, splits, write

from benchmarks import tasks
from benchmarks.examples import MissingDataError
from benchmarks.glue.tasks import DIAGNOSTIC
from ponder.errors import DataError


@pytest.fixture
def glue(tmp_path):
    return make(tmp_path)


def broken(glue, name, split, lines):
    """The error that loading gives when one file holds these lines."""
    path = write(glue, name, split, lines)
    with pytest.raises(DataError) as caught:
        tasks.get(name).load(glue)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name != "QQP"])
@pytest.mark.parametrize("change", ["missing", "extra", "blank"])
def test_a_line_of_another_width(glue, name, change):
    split = splits(name)[1]
    lines = lines_of(name, split)
    number = len(lines) - 1
    bad = {"missing": lines[-2].rpartition("\t")[0], "extra": lines[-2] + "\tmore", "blank": ""}[change]
    message = broken(glue, name, split, [*lines[:-2], bad, lines[-1]])
    width = lines[-1].count("\t") + 1
    assert f"line {number}: expected {width} columns" in message
    assert f"got {1 if change == 'blank' else width + (1 if change == 'extra' else -1)}" in message
    assert "Correct or remove" in message


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("label", ["2.5x", "", "-1", "7", "nan", "maybe"])
def test_an_impossible_label(glue, name, label):
    split = splits(name)[0]
    lines = [*lines_of(name, split), LAYOUTS[name][1].format(9, label)]
    message = broken(glue, name, split, lines)
    assert f"line {len(lines)}: expected a" in message
    assert f"got {label!r}" in message
    assert ("score from 0 to 5" if name == "STS-B" else LAYOUTS[name][4][0]) in message


@pytest.mark.parametrize("score", ["5.001", "-0.001", "inf", "1e9", "1,5"])
def test_a_score_out_of_range(glue, score):
    message = broken(glue, "STS-B", "dev", [*lines_of("STS-B", "dev"), LAYOUTS["STS-B"][1].format(9, score)])
    assert f"got {score!r}" in message


@pytest.mark.parametrize("index", ["x", "", "-1", "1.0", "9" * 30, "²"])
def test_an_impossible_index(glue, index):
    message = broken(glue, "RTE", "test", ["index\tsentence1\tsentence2", f"{index}\ta\tb"])
    assert "line 2: expected an index, a whole number" in message


def test_an_index_twice(glue):
    message = broken(glue, "RTE", "test", ["index\tsentence1\tsentence2", "4\ta\tb", "4\tc\td"])
    assert "line 3: expected an index of its own; got 4 again" in message


def test_a_header_without_a_column(glue):
    message = broken(glue, "QNLI", "train", ["index\tquestion\tlabel", "0\ta\tentailment"])
    assert "line 1" in message
    assert "'sentence'" in message
    assert "index | question | label" in message


@pytest.mark.parametrize("content", [b"", b"\n", b"\xef\xbb\xbf", b"index\tsentence1\tsentence2\tlabel\n"])
def test_an_empty_file(glue, content):
    with pytest.raises(DataError, match=r"train\.tsv.*got (none|an empty file)"):
        rte_train(glue, content)


def test_an_empty_file_without_a_header(glue):
    assert "got none" in broken(glue, "CoLA", "dev", [])


def test_a_column_without_text(glue):
    message = broken(glue, "SST-2", "train", ["sentence\tlabel", "\t1", " \t0"])
    assert "expected texts in sentence; all are empty" in message


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
def test_another_encoding(glue, start):
    with pytest.raises(DataError, match=r"train\.tsv, line 3: expected UTF-8 text; got the byte 0xe9"):
        rte_train(glue, start + b"index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n1\tcaf\xe9\tb\t0\n")


def test_a_long_line_is_shortened_in_the_message(glue):
    assert len(broken(glue, "RTE", "train", ["index\tsentence1\tsentence2\tlabel", "x" * 10_000])) < 600


def test_malformed_lines_of_qqp_are_left_out_and_logged(glue, caplog):
    allowed = tasks.get("QQP").malformed_lines
    lines = lines_of("QQP", "train")
    bad = ["90\t1\t2\tA question that", "goes on\tAnother\t1"] * (allowed // 2)
    path = write(glue, "QQP", "train", [lines[0], *bad, *lines[1:]])
    with caplog.at_level(logging.WARNING):
        rows = tasks.get("QQP").load(glue)["train"]
    assert rows["sentence1"][:] == ["One 0.", "One 1."]
    assert len(caplog.records) == allowed
    assert f"{path}, line 2: expected 6 columns; got 4" in caplog.text
    message = broken(glue, "QQP", "train", [lines[0], *bad, "one more", *lines[1:]])
    assert f"line {allowed + 2}: expected 6 columns" in message


def test_no_line_of_a_test_split_is_left_out(glue):
    assert "line 3: expected 3 columns" in broken(glue, "QQP", "test", ["id\tquestion1\tquestion2", "0\ta\tb", "1\ta"])


def test_a_missing_folder_and_a_missing_file_are_named(tmp_path):
    with pytest.raises(DataError) as caught:
        tasks.get("RTE").load(tmp_path)
    assert str(tmp_path / "RTE" / "train.tsv") in str(caught.value)
    assert "no such folder" in str(caught.value)
    assert "GLUE_DIR" in str(caught.value)
    assert "hub" in str(caught.value)
    write(tmp_path, "RTE", "train", lines_of("RTE", "train"))
    with pytest.raises(DataError, match=r"dev\.tsv.*no such file"):
        tasks.get("RTE").load(tmp_path)
    assert list(tasks.get("RTE").load(tmp_path, ["train"])) == ["train"]  # the others need not be there
    with pytest.raises(MissingDataError, match=r"diagnostic\.tsv"):
        DIAGNOSTIC.load(tmp_path)
