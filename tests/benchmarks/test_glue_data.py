"""GLUE's files: every layout, every quirk, and the official ones where they are at hand."""

import os
from functools import cache
from pathlib import Path

import pytest
from glue_files import LAYOUTS, make, rte_train, splits, write

from benchmarks import tasks
from benchmarks.examples import hold_out
from benchmarks.glue.tasks import DIAGNOSTIC

OFFICIAL_ROWS = {
    "CoLA": {"train": 8551, "dev": 1043, "test": 1063},
    "SST-2": {"train": 67349, "dev": 872, "test": 1821},
    "MRPC": {"train": 3668, "dev": 408, "test": 1725},
    "STS-B": {"train": 5749, "dev": 1500, "test": 1379},
    "QQP": {"train": 363846, "dev": 40430, "test": 390965},
    "MNLI": {
        "train": 392702,
        "dev_matched": 9815,
        "dev_mismatched": 9832,
        "test_matched": 9796,
        "test_mismatched": 9847,
    },
    "QNLI": {"train": 104743, "dev": 5463, "test": 5463},
    "RTE": {"train": 2490, "dev": 277, "test": 3000},
    "WNLI": {"train": 635, "dev": 71, "test": 146},
}


@pytest.fixture
def glue(tmp_path):
    return make(tmp_path)


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout(glue, name):
    loaded = tasks.get(name).load(glue)
    assert list(loaded) == splits(name)
    pair = {"sentence2"} if len(tasks.get(name).columns) == 2 else set()
    for split, rows in loaded.items():
        assert set(rows.column_names) == {"idx", "sentence1", "label"} | pair
        assert rows["idx"][:] == list(range(len(rows)))
        assert rows["sentence1"][:] == [f"One {number}." for number in range(len(rows))]
        if pair:
            assert rows["sentence2"][:] == [f"Two {number}." for number in range(len(rows))]
        count = len(LAYOUTS[name][4])
        expected = [0.0, 3.8, 5.0] if name == "STS-B" else list(range(count))
        assert rows["label"][:] == pytest.approx([-1] * 3 if split.startswith("test") else expected)
        assert isinstance(rows["label"][0], float if name == "STS-B" else int)


def test_class_names_travel_with_the_labels(glue):
    label = tasks.get("MNLI").load(glue)["train"].features["label"]
    assert label.names == ["entailment", "neutral", "contradiction"]


def test_test_splits_keep_the_numbers_of_the_file(glue):
    write(glue, "RTE", "test", ["index\tsentence1\tsentence2", "12\ta\tb", "7\tc\td"])
    assert tasks.get("RTE").load(glue)["test"]["idx"][:] == [12, 7]


def test_diagnostic(glue):
    rows = DIAGNOSTIC.load(glue)["test"]
    assert rows.column_names == ["idx", "sentence1", "sentence2", "label"]
    assert rows["label"][:] == [-1, -1, -1]
    assert rows[2] == {"idx": 2, "sentence1": "One 2.", "sentence2": "Two 2.", "label": -1}


@pytest.mark.parametrize(
    "text",
    [
        '"Quoted" and " lone',
        '"',
        "it''s",
        "next\x85line and\u2028separator and\x0bothers\x0c",  # str.splitlines would break the line here
        "back\x08space",
        "a\\tb\\n",
        "naïve 北京 🙂",
    ],
)
def test_text_is_kept_as_it_is(glue, text):
    line = f"0\t{text}|\t|{text}|\tentailment\n".encode()
    rows = rte_train(glue, b"index\tsentence1\tsentence2\tlabel\n" + line * 2)
    assert rows["sentence1"][:] == [f"{text}|"] * 2
    assert rows["sentence2"][:] == [f"|{text}|"] * 2


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
@pytest.mark.parametrize("end", [b"", b"\n", b"\n\n"])
def test_marks_and_line_ends(glue, start, newline, end):
    content = [b"index\tsentence1\tsentence2\tlabel", b"0\t a \tb\tentailment", b"1\tc\td \tnot_entailment "]
    rows = rte_train(glue, start + newline.join(content) + end.replace(b"\n", newline))
    assert rows["sentence1"][:] == ["a", "c"]
    assert rows["sentence2"][:] == ["b", "d"]
    assert rows["label"][:] == [0, 1]


def test_a_byte_order_mark_where_there_is_no_header(glue):
    (glue / "CoLA" / "train.tsv").write_bytes(b"\xef\xbb\xbfgj04\t1\t*\tA.")
    assert tasks.get("CoLA").load(glue)["train"][0] == {"idx": 0, "sentence1": "A.", "label": 1}


def test_columns_are_found_by_name(glue):
    rows = rte_train(glue, b"label\tindex\textra\tsentence2\tsentence1\nentailment\t0\tx\tb\ta\n")
    assert rows[0] == {"idx": 0, "sentence1": "a", "sentence2": "b", "label": 0}


def test_an_empty_sentence_is_data(glue):
    rows = rte_train(glue, b"index\tsentence1\tsentence2\tlabel\n0\t\tb\tentailment\n")
    assert rows["sentence1"][:] == [""]


def test_a_label_in_a_test_file_is_not_read(glue):
    write(glue, "RTE", "test", ["index\tsentence1\tsentence2\tlabel", "0\ta\tb\tentailment"])
    assert tasks.get("RTE").load(glue)["test"]["label"][:] == [-1]


def real_folder():
    given = os.environ.get("GLUE_DIR")
    return Path(given) if given else Path(__file__).parents[2].parent / "shared" / "glue"


@cache
def official(name):
    """A task of the official data; SST-2 takes seconds to read."""
    return tasks.get(name).load(real_folder())


@pytest.mark.parametrize("name", OFFICIAL_ROWS)
def test_the_official_files(name):
    folder = real_folder()
    if not (folder / name).is_dir():
        pytest.skip(f"no folder {folder / name}: set GLUE_DIR to a folder in GLUE's layout")
    task, loaded = tasks.get(name), official(name)
    found = {split: len(rows) for split, rows in loaded.items()}
    # Copies of MRPC's training file are about that lack one of its rows.
    allowed = [OFFICIAL_ROWS[name]] + ([OFFICIAL_ROWS[name] | {"train": 3667}] if name == "MRPC" else [])
    assert found in allowed
    for split, rows in loaded.items():
        assert len(set(rows["idx"][:])) == len(rows)
        labels = set(rows["label"][:])
        if split.startswith("test"):
            assert labels == {-1}
        elif task.label_range is None:
            assert labels == set(range(task.num_labels))
        else:
            assert (min(labels), max(labels)) == task.label_range


def test_the_official_diagnostic_set():
    folder = real_folder()
    if not (folder / "diagnostic").is_dir():
        pytest.skip(f"no folder {folder / 'diagnostic'}: set GLUE_DIR to a folder in GLUE's layout")
    assert len(DIAGNOSTIC.load(folder)["test"]) == 1104


def test_held_out_rows_share_with_train_what_the_page_says():
    folder = real_folder()
    if not (folder / "SST-2").is_dir() or not (folder / "RTE").is_dir():
        pytest.skip(f"no SST-2 or RTE in {folder}: set GLUE_DIR to a folder in GLUE's layout")
    page = " ".join((Path(__file__).parents[2] / "docs" / "benchmark-details.md").read_text().split())
    phrases = official("SST-2")
    train, held_out = hold_out(phrases["train"].shuffle(seed=0).select(range(10_000)), 0.1, 0)
    whole = " \n ".join(train["sentence1"])
    inside = [sum(phrase in whole for phrase in split["sentence1"]) for split in (held_out, phrases["dev"])]
    assert f"of {len(held_out):,} held-out phrases of SST-2" in page
    assert inside == [393, 1]
    assert "393 stand in a longer phrase of what is trained on (of *dev* one of 872 does)" in page
    shared, rows = sharing("RTE", "held_out")
    assert f"and {shared} of {rows} held-out rows of RTE share a sentence with it" in page


def test_rows_of_dev_share_with_train_what_the_page_says():
    folder = real_folder()
    if not all((folder / name).is_dir() for name in ("RTE", "STS-B", "MRPC")):
        pytest.skip(f"no RTE, STS-B or MRPC in {folder}: set GLUE_DIR to a folder in GLUE's layout")
    page = " ".join((Path(__file__).parents[2] / "docs" / "benchmark-details.md").read_text().split())
    rte, sts_b, mrpc = (sharing(name, "dev") for name in ("RTE", "STS-B", "MRPC"))
    assert f"of RTE {rte[0]} of its {rte[1]} rows share a sentence with what is trained on" in page
    assert f"of STS-B {sts_b[0]} of {sts_b[1]:,}, of MRPC {mrpc[0]} of {mrpc[1]}." in page


def sharing(name, split):
    """How many rows of a split share a sentence with what is trained on (seed 0), and how many rows it has."""
    parts = official(name)
    train, held_out = hold_out(parts["train"], 0.1, 0)
    known, rows = {*train["sentence1"], *train["sentence2"]}, held_out if split == "held_out" else parts[split]
    return sum(row["sentence1"] in known or row["sentence2"] in known for row in rows), len(rows)
