"""The commands on a tiny classifier, and what they say to bad input: one sentence, 80 columns, status 1."""

from __future__ import annotations

import csv
import json
import os
import random
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args
from xml.etree import ElementTree

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, BertConfig
from typer.testing import CliRunner, Result

import ponder
import ponder.cli
from ponder._utils.columns import fitted_columns
from ponder.analysis.verdicts import Outcome
from ponder.cli import measuring
from ponder.cli.app import app
from ponder.cli.texts import Texts, read_texts, read_texts_for
from ponder.cost.speed import WallClock
from ponder.errors import ArgumentError, DataError
from ponder.integrations.transformers import FinetunedClassifier
from ponder.policies import Certified, Confidence
from tests.exits_folder import LONGEST, tiny_classifier
from tests.word_tokenizer import VOCABULARY, WORDS, save_tokenizer

TEXTS = 450


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny fine-tuned classifier, with its tokenizer."""
    folder = tmp_path_factory.mktemp("plain")
    tiny_classifier().save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def sentences(count: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(4, 9))) for _ in range(count)]


def table(path: Path, rows: list[list[str]], header: tuple[str, ...] = ("text",)) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return table(tmp_path_factory.mktemp("texts") / "data.csv", [[text] for text in sentences(TEXTS)])


@pytest.fixture(scope="module")
def fitted(plain: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fitted") / "out"
    done = run("exits", plain, "--texts", texts, "--out", folder, "--disagreement", 0.05)
    assert done.exit_code == 0, done.output
    return folder


def run(*words: Any) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def refused(*words: Any) -> str:
    """What a command says that refuses; its lines joined."""
    done = run(*words)
    assert done.exit_code == 1, done.output
    assert not done.stdout
    lines = done.stderr.splitlines()
    assert lines[-1]
    assert all(len(line) <= 80 or " " not in line.strip() for line in lines)  # a path is not broken
    return " ".join(lines)


def test_version() -> None:
    assert run("--version").stdout == f"ponder {ponder.__version__}\n"


def test_help_loads_no_pytorch(tmp_path: Path) -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from ponder.cli.app import app; "
        "told = CliRunner().invoke(app, ['exits', '--help']); assert 'MODEL' in told.output, told.output; "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    here = {**os.environ, "PYTHONPATH": str(Path(ponder.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=here, check=True)


def test_exits_writes_a_folder_that_both_libraries_read(plain: Path, fitted: Path) -> None:
    batch = {"input_ids": torch.tensor([[2, 8, 9, 3]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    own, kept = (AutoModelForSequenceClassification.from_pretrained(folder).eval() for folder in (plain, fitted))
    assert torch.equal(own(**batch).logits, kept(**batch).logits)
    card = json.loads((fitted / "exits-report.json").read_text())
    assert card["met"] is True
    assert card["fitted"] + card["chosen_on"] + card["certified_on"] == TEXTS
    assert card["speed_up_in_steps"] > 1
    assert card["speed_up_in_flops"] > 1


def test_exits_says_what_it_promises_and_measured_without_a_progress_bar(
    plain: Path, texts: Path, tmp_path: Path
) -> None:
    done = run("exits", plain, "--texts", texts, "--out", tmp_path / "out", "--speed-up", 2)
    assert done.exit_code == 0, done.output
    assert "Answers as the plain model does on all but" in done.stdout
    assert "certify " in done.stdout
    assert done.stderr == ""
    assert "\r" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80 or str(tmp_path) in done.stdout


class _Scripts(HTMLParser):
    """The tags of a page, what stands in its scripts, and every address that it names."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.scripts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "action")]

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == "script":
            self.scripts.append(data)


def test_the_report_is_one_file_with_a_threshold_to_move(fitted: Path) -> None:
    text = (fitted / "report.html").read_text(encoding="utf-8")
    ElementTree.fromstring(text.removeprefix("<!DOCTYPE html>\n"))
    page = _Scripts()
    page.feed(text)
    assert page.addresses == []
    assert {"input", "select", "label", "noscript", "svg"} <= set(page.tags)
    card = json.loads((fitted / "exits-report.json").read_text())
    assert card["statement"] in text
    data = next(json.loads(script) for script in page.scripts if script.startswith("{"))
    curve = next(curve for curve in data["curves"] if curve["policy"] == card["kind"])
    chosen = data["place"]
    assert curve["values"][chosen] == pytest.approx(card["threshold"], rel=1e-5)
    assert curve["differ"][chosen] == pytest.approx(card["disagreement"], abs=1e-5)
    assert curve["mean"][chosen] == pytest.approx(card["mean_exit_step"], abs=1e-3)
    assert card["statement"] in (fitted / "README.md").read_text(encoding="utf-8")


def test_commands_speak_json_to_machines(fitted: Path, texts: Path, tmp_path: Path) -> None:
    path = table(tmp_path / "in.csv", [[text] for text in sentences(9)])
    told = json.loads(run("predict", fitted, "--texts", path, "--out", tmp_path / "o.csv", "--json").stdout)
    assert told["answers"] == 9
    card = json.loads(run("doctor", fitted, "--texts", texts, "--json").stdout)
    assert card["verdict"]
    assert card["outcome"] in get_args(Outcome)
    assert card["metric"] == card["score_is"] == "agreement with full depth"
    assert "accuracy" not in card["verdict"]
    assert 1 <= card["fixed_step"] <= 4
    assert card["rows"] + card["left_out_as_learned_from"] == TEXTS


def test_labels_are_used_where_they_are_given(plain: Path, tmp_path: Path) -> None:
    rows = [[text, ("no", "yes", "1")[place % 3]] for place, text in enumerate(sentences(120))]
    path = table(tmp_path / "in.csv", rows, ("text", "answer"))
    words = ("exits", plain, "--texts", path, "--out", tmp_path / "out", "--disagreement", 0.2)
    done = run(*words, "--labels", "answer", "--json")
    assert done.exit_code == 0, done.output
    card = json.loads(done.stdout)
    assert 0.2 < card["plain_accuracy"] < 0.8
    assert card["exit_accuracy"] is not None
    done = run("doctor", tmp_path / "out", "--texts", path, "--labels", "answer")
    assert "Accuracy by the labels." in done.stdout
    other = table(tmp_path / "other.csv", [["w1", "perhaps"]] * 60, ("text", "answer"))
    told = refused("exits", plain, "--texts", other, "--out", tmp_path / "new", "--labels", "answer")
    assert "labels: expected names of the model's 2 classes" in told
    assert "got 'perhaps'" in told


def test_deep_says_how_far_full_depth_moved(plain: Path, tmp_path: Path) -> None:
    path = table(tmp_path / "in.csv", [[text] for text in sentences(150)])
    done = run("exits", plain, "--texts", path, "--out", tmp_path / "out", "--deep", "--disagreement", 0.3, "--json")
    assert done.exit_code == 0, done.output
    card = json.loads(done.stdout)
    assert card["recipe"] == "exits-deep"
    assert card["moved"] >= 0
    assert "The encoder learned too" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    own, kept = (AutoModelForSequenceClassification.from_pretrained(f).state_dict() for f in (plain, tmp_path / "out"))
    assert any(not torch.equal(own[name], kept[name]) for name in own)


def test_predict_answers_every_row_with_the_plain_models_labels(plain: Path, fitted: Path, tmp_path: Path) -> None:
    rows = [*sentences(40, seed=5), "", 'w1, "w2"']
    done = run(
        "predict", fitted, "--texts", table(tmp_path / "in.csv", [[r] for r in rows]), "--out", tmp_path / "o.csv"
    )
    assert done.exit_code == 0, done.output
    assert "1 empty texts are answered like others" in done.stderr
    with (tmp_path / "o.csv").open(newline="", encoding="utf-8") as file:
        answers = list(csv.DictReader(file))
    assert [answer["text"] for answer in answers] == rows
    assert {answer["label"] for answer in answers} <= {"no", "yes"}
    assert {1, 2, 3, 4} >= {int(answer["exit_step"]) for answer in answers}


def test_predict_leaves_out_a_label_that_is_none(tmp_path: Path) -> None:
    # Trap: NaN is the largest of all logits, so that the first class was written.
    plain = tiny_classifier()
    with torch.no_grad():
        plain.bert.embeddings.word_embeddings.weight[VOCABULARY.index("w9")] = float("nan")
    made = FinetunedClassifier(plain)
    made.policy = Confidence(0.7)
    made.save_pretrained(tmp_path / "folder")
    save_tokenizer(tmp_path / "folder")
    rows = [["w1 w2"], ["w3 w9 w4"], ["w5"]]
    out = tmp_path / "o.csv"
    done = run("predict", tmp_path / "folder", "--texts", table(tmp_path / "in.csv", rows), "--out", out, "--json")
    assert done.exit_code == 0, done.output
    with out.open(newline="", encoding="utf-8") as file:
        answers = list(csv.DictReader(file))
    assert [answer["label"] in ("no", "yes") for answer in answers] == [True, False, True]
    assert (answers[1]["label"], answers[1]["probability"]) == ("", "")
    assert "1 texts have no answer (NaN), and no label: row 2." in " ".join(done.stderr.split())
    card = json.loads(done.stdout)
    assert (card["answers"], card["without_answer"]) == (2, 1)


def test_what_is_timed_is_spread_evenly_over_the_texts() -> None:
    # Trap: the first texts of a file that is sorted by class or difficulty are of one class, or the easy ones.
    assert measuring.spread(list(range(10)), 5) == [0, 2, 4, 6, 8]
    assert measuring.spread(list(range(7)), 3) == [0, 2, 4]
    assert measuring.spread([4, 5], 8) == [4, 5]
    assert measuring.spread([], 8) == []


def test_steps_and_flops_are_of_easy_and_hard_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "_TIMED", 20)
    monkeypatch.setattr(measuring, "wall_clock", lambda *given, **named: WallClock(1.0, 1.0, 1.0))
    made = FinetunedClassifier(tiny_classifier())
    rows = [{"input_ids": [2, *(5 + WORDS.index(word) for word in text.split()), 3]} for text in sentences(40)]
    made.policy = Confidence(float(made.record(rows).outputs[:, 0].softmax(-1).amax(-1).median()))
    steps = made.predict(rows).exit_step
    easy_first = [rows[place] for place in steps.argsort(stable=True).tolist()]
    found = measuring.measure(made, easy_first)
    assert found.speed_up.steps == pytest.approx(4 / steps.double().mean().item(), rel=0.1)
    assert sum(found.exit_shares) == pytest.approx(1.0)
    assert found.speed_up.steps == pytest.approx(4 / sum(n * s for n, s in enumerate(found.exit_shares, start=1)))


@pytest.mark.parametrize(("high", "slower"), [(0.9, True), (1.1, False)])
def test_exits_that_are_slower_are_said_to_be(
    high: float, slower: bool, plain: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "wall_clock", lambda *given, **named: WallClock(0.8, 0.7, high))
    done = run("exits", plain, "--texts", texts, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert ("slower than the plain model" in done.stdout) is slower
    told = run("doctor", tmp_path / "out", "--texts", texts).stdout
    assert "×0.80 where its exits were fitted" in told


def test_doctor_gives_a_verdict(fitted: Path, texts: Path) -> None:
    done = run("doctor", fitted, "--texts", texts)
    assert done.exit_code == 0, done.output
    assert "agreement with full depth" in done.stdout
    assert "best policy" in done.stdout
    assert "fixed step" in done.stdout
    assert "step 1      other answers" in done.stdout, "without labels a score would say the same once more"
    assert not [line for line in done.stdout.splitlines() if line != line.rstrip()]
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_doctor_leaves_out_what_full_depth_does_not_answer(tmp_path: Path) -> None:
    # Trap: NaN was taken for the first class, so that early steps agreed with full depth more often than itself.
    plain = tiny_classifier()
    with torch.no_grad():
        plain.bert.embeddings.word_embeddings.weight[VOCABULARY.index("w9")] = float("nan")
    FinetunedClassifier(plain).save_pretrained(tmp_path / "folder")
    save_tokenizer(tmp_path / "folder")
    told = {f"w1 {text}" for text in sentences(80)}
    rows = [[text] for text in sorted(told)]
    nothing = sum("w9" in text.split() for text in told)
    assert 0 < nothing < 50
    done = run("doctor", tmp_path / "folder", "--texts", table(tmp_path / "in.csv", rows), "--json")
    assert done.exit_code == 0, done.output
    assert f"{nothing} texts have no answer at full depth (NaN)" in " ".join(done.stderr.split())
    card = json.loads(done.stdout)
    assert card["rows"] == len(told)
    assert card["scores"][-1] == 1.0


@pytest.mark.parametrize("kind", ["jsonl", "txt", "tsv"])
def test_other_files(fitted: Path, tmp_path: Path, kind: str) -> None:
    few, path = sentences(6), tmp_path / f"in.{kind}"
    if kind == "jsonl":
        path.write_text("\n".join(json.dumps({"id": n, "sentence": text}) for n, text in enumerate(few)))
    elif kind == "txt":
        path.write_text("\n".join(few) + "\n")
    else:
        path.write_text("id\ttext\n" + "".join(f"{n}\t{text}\n" for n, text in enumerate(few)))
    done = run("predict", fitted, "--texts", path, "--out", tmp_path / "out.csv")
    assert done.exit_code == 0, done.output
    assert "6 answers" in done.stdout


def test_pairs_are_answered_where_pairs_were_certified(plain: Path, fitted: Path, tmp_path: Path) -> None:
    pairs = [[one, two] for one, two in zip(sentences(100), sentences(100, seed=9), strict=True)]
    path, made = table(tmp_path / "in.csv", pairs, ("one", "two")), tmp_path / "made"
    both = ("--texts", path, "--column", "one", "--column", "two")
    assert run("exits", plain, *both, "--out", made, "--disagreement", 0.4, "--json").exit_code == 0
    assert "100 answers" in run("predict", made, *both, "--out", tmp_path / "out.csv").stdout
    single = ("--texts", path, "--column", "one")
    told = refused("predict", made, *single, "--out", tmp_path / "out.csv")
    assert "column: expected 2 to a row, as in the texts that the exits were fitted to (one, two); got 1 (one)" in told
    assert "expected 2 to a row" in refused("doctor", made, *single)
    swapped = ("--texts", path, "--column", "two", "--column", "one")
    told = refused("predict", made, *swapped, "--out", tmp_path / "out.csv")
    assert "fitted to (one, two); got two, one. Pass --column one --column two." in told
    assert "got two, one" in refused("doctor", made, *swapped)
    assert "expected 1 to a row" in refused("predict", fitted, *both, "--out", tmp_path / "out.csv")


@pytest.mark.parametrize("kind", ["csv", "tsv", "txt"])
def test_separators_within_a_line_divide_no_text(tmp_path: Path, kind: str) -> None:
    """Python's splitlines cuts at these, and CSV is written without quotes around them."""
    rows = ["one\u2028line", "two\x85 words", "three\x0c", "four\x1e parts"]
    separator = "\t" if kind == "tsv" else ","
    lines = rows if kind == "txt" else [f"id{separator}text", *(f"{n}{separator}{row}" for n, row in enumerate(rows))]
    (tmp_path / f"in.{kind}").write_bytes("\r\n".join([*lines, ""]).encode())
    assert [row for (row,) in read_texts(tmp_path / f"in.{kind}").rows] == rows
    told = [{"text": row, "label": "x"} for row in rows]
    for text in (json.dumps(told), json.dumps(told, indent=2), "\n".join(map(json.dumps, told)), json.dumps(rows)):
        (tmp_path / "in.json").write_text(text)
        assert [row for (row,) in read_texts(tmp_path / "in.json").rows] == rows
    (tmp_path / "in.json").write_text("[1, 2]")
    with pytest.raises(DataError, match="row 1: expected a JSON object; got int"):
        read_texts(tmp_path / "in.json")
    table(tmp_path / "in.csv", [[row, "a"] for row in ["quoted\nline", *rows]], ("text", "label"))
    assert [row for (row,) in read_texts(tmp_path / "in.csv", labels="label").rows] == ["quoted\nline", *rows]


def test_half_of_a_pair_is_not_read_for_a_text(fitted: Path, tmp_path: Path) -> None:
    """Trap: the usual name was taken, and every answer was about one half of the row."""
    rows = [["what is this about ?", "it is about nothing .", "1"], ["who was it then ?", "it was not me .", "0"]]
    path = table(tmp_path / "in.csv", rows, ("question", "sentence", "label"))
    with pytest.raises(ArgumentError, match=r"one of a pair; got none, and in\.csv has question, sentence"):
        read_texts(path, labels="label")
    assert read_texts(path, ["sentence"]).columns == ("sentence",)
    short = [["it is about nothing .", "John Smith", "3", "0"], ["it was not me .", "Jane Doe", "4", "1"]]
    beside = table(tmp_path / "beside.csv", short, ("sentence", "author", "stars", "label"))
    assert read_texts(beside).columns == ("sentence",)
    (known,) = fitted_columns(fitted)
    assert read_texts_for(fitted, table(tmp_path / "known.csv", rows, ("question", known, "label"))).columns == (known,)
    with pytest.raises(ArgumentError, match=r"labels: expected one of .* by --labels"):
        read_texts(path, ["sentence"], "foo")


def test_quotation_marks_in_a_table_with_tabs_swallow_no_rows(tmp_path: Path) -> None:
    """Trap: a text that begins with a mark ran on to the next mark, over rows and their labels."""
    path = tmp_path / "in.tsv"

    def read(*lines: str, columns: tuple[str, ...] = ("text", "label")) -> list[list[str]]:
        path.write_text("\n".join(["\t".join(columns), *lines, ""]))
        return [list(row) for row in read_texts(path, columns=["text"]).rows]

    plain = ['" a great movie\t1', "fine\t0", 'awful "\t1', "ok\t0"]
    assert read(*plain) == [['" a great movie'], ["fine"], ['awful "'], ["ok"]]
    assert read(*plain, 'one " more\t1', '"two\t1') == [*read(*plain), ['one " more'], ['"two']]  # no CSV at all
    quoted = ['"a ""great"" movie"\t1', '"two\nlines"\t0', "plain\t1"]  # what pandas writes
    assert read(*quoted) == [['a "great" movie'], ["two\nlines"], ["plain"]]
    assert read('"a, b"', '"c', 'd"', columns=("text",)) == [["a, b"], ["c\nd"]]  # one column is as in CSV


def test_predict_writes_over_nothing_that_it_reads(fitted: Path, texts: Path) -> None:
    before = texts.read_bytes()
    for out in (texts, texts.parent / "." / texts.name, fitted / "config.json", texts.parent):
        assert "a file of its own" in refused("predict", fitted, "--texts", texts, "--out", out)
    assert texts.read_bytes() == before


@pytest.mark.parametrize("name", ["label", "probability", "exit_step"])
def test_no_column_stands_twice_in_the_answers(fitted: Path, tmp_path: Path, name: str) -> None:
    path = table(tmp_path / "in.csv", [["w1"]], (name,))
    told = refused("predict", fitted, "--texts", path, "--out", tmp_path / "o.csv")
    assert f"got {name!r}. Rename the column in the file of texts." in told
    assert not (tmp_path / "o.csv").exists()


@pytest.mark.parametrize("words", [("--disagreement", 0.02), ("--confidence", 0.99), ("--column", "text")])
def test_options_about_texts_are_refused_by_an_export_without_texts(fitted: Path, tmp_path: Path, words: Any) -> None:
    told = refused("export", fitted, "--out", tmp_path / "onnx", *words)
    assert f"expected --texts FILE beside {words[0]}" in told
    assert f"Pass --texts FILE, or leave {words[0]} out." in told


def test_an_export_of_a_deep_folder_promises_only_what_it_is_asked_for(
    plain: Path, texts: Path, tmp_path: Path
) -> None:
    """Its certificate is about the plain model, and that of an export about full depth of the folder."""
    model = FinetunedClassifier.from_finetuned(plain)
    model.policy = Certified(
        Confidence(0.7), "", "disagreement_with_reference", 0.3, 0.95, "exact_binomial", 500, "threshold", 0.7, 0.0, ()
    )
    model.save_pretrained(tmp_path / "deep")
    save_tokenizer(tmp_path / "deep")
    told = refused("export", tmp_path / "deep", "--texts", texts, "--out", tmp_path / "onnx")
    assert "disagreement: expected a number for a folder of --deep" in told
    assert not (tmp_path / "onnx").exists()


def test_over_long_texts_are_cut_and_counted(fitted: Path, tmp_path: Path) -> None:
    path = table(tmp_path / "in.csv", [["w1 " * 40], ["w1 " * (LONGEST - 2)], ["w1"]])
    done = run("predict", fitted, "--texts", path, "--out", tmp_path / "out.csv")
    assert done.exit_code == 0, done.output
    assert "1 texts were longer than the model takes, and were cut." in done.stderr


def test_empty_texts_are_left_out_of_fitting_and_repeated_ones_counted_once(plain: Path, tmp_path: Path) -> None:
    path = table(tmp_path / "in.csv", [[text] for text in [*sentences(60), *sentences(60), "  ", ""]])
    done = run("exits", plain, "--texts", path, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "2 empty texts were left out." in done.stderr
    assert "60 repeated (counted once)" in done.stdout
    told = " ".join(done.stdout.split())
    assert "at least 299 are needed" in told
    assert re.search(r"With so many texts, \d+% is the least that could be promised\.", told)


def test_bad_columns(plain: Path, tmp_path: Path) -> None:
    path = table(tmp_path / "in.csv", [["a", "b"]], ("one", "two"))
    assert "expected the name of the column" in refused("exits", plain, "--texts", path, "--out", tmp_path / "o")
    told = refused("exits", plain, "--texts", path, "--out", tmp_path / "o", "--column", "text")
    assert "column: expected one of one, two; got 'text'." in told
    path.write_text("sentence,Text\na,b\n")  # which of the two is meant, nobody knows
    told = refused("exits", plain, "--texts", path, "--out", tmp_path / "o")
    assert "got none, and in.csv has sentence, Text. Pass --column NAME" in told
    for words in (("--column", "Text", "--column", "Text"), ("--column", "Text", "--labels", "Text")):
        assert "got 'Text' twice" in refused("exits", plain, "--texts", path, "--out", tmp_path / "o", *words)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("in.csv", b"text\n", "expected at least one text"),
        ("in.csv", b"", "expected at least one text"),
        ("in.csv", b'text\n""\n', "expected at least one that is not empty"),
        ("in.csv", b"text\na,b\n", "more or fewer columns than the header"),
        ("in.csv", b"text,text,label\na,b,c\n", "the header names 'text' twice"),
        ("in.csv", b'text\n"never closed\n', "is no CSV"),
        ("in.csv", b"text\n\xff\xfe\n", "expected text in UTF-8"),
        ("in.jsonl", b"{\n", "line 1 is no JSON"),
        ("in.jsonl", b"[1]\n", "expected a JSON object; got list"),
        ("in.jsonl", b'{"text": 3}\n', "expected text in text of row 1; got (3,)"),
        ("in.txt", b"one\ntwo\n", "at least 50 distinct inputs"),
    ],
)
def test_bad_files(plain: Path, tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert message in refused("exits", plain, "--texts", path, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_not_there(plain: Path, tmp_path: Path) -> None:
    told = refused("exits", plain, "--texts", tmp_path / "no.csv", "--out", tmp_path / "out")
    assert "cannot be read (No such file or directory)" in told


def test_folders_that_are_no_classifier(texts: Path, plain: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    encoder = tmp_path / "encoder"
    AutoModel.from_config(
        BertConfig(vocab_size=40, hidden_size=8, num_hidden_layers=2, num_attention_heads=2)
    ).save_pretrained(encoder)
    for folder, message in ((tmp_path / "empty", "config.json"), (encoder, "it lacks 2 weights")):
        told = refused("exits", folder, "--texts", texts, "--out", tmp_path / "out")
        assert message in told
    assert "exits.json" in refused("doctor", plain, "--texts", texts)
    assert "exits.json" in refused("predict", plain, "--texts", texts, "--out", tmp_path / "o.csv")
    assert "got no folder" in refused("doctor", tmp_path / "nowhere", "--texts", texts)
    assert "there is no such folder" in refused("exits", "no/such/folder", "--texts", texts, "--out", tmp_path / "o")


def test_a_model_that_capture_refuses(texts: Path, tmp_path: Path) -> None:
    config = BertConfig(vocab_size=40, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "one")
    told = refused("exits", tmp_path / "one", "--texts", texts, "--out", tmp_path / "out")
    assert "module: expected a list of layers" in told


def test_a_folder_without_a_tokenizer(plain: Path, texts: Path, tmp_path: Path) -> None:
    AutoModelForSequenceClassification.from_pretrained(plain).save_pretrained(tmp_path / "bare")
    told = refused("exits", tmp_path / "bare", "--texts", texts, "--out", tmp_path / "out")
    assert "tokenizer: expected the tokenizer's files" in told


def test_nothing_foreign_is_written_over(plain: Path, texts: Path, tmp_path: Path) -> None:
    assert "expected another folder" in refused("exits", plain, "--texts", texts, "--out", plain)
    (tmp_path / "diary.txt").write_text("dear")
    assert "expected a new or empty folder" in refused("exits", plain, "--texts", texts, "--out", tmp_path)


@pytest.mark.parametrize("words", [("--disagreement", "2"), ("--confidence", "0"), ("--speed-up", "0.5")])
def test_numbers_out_of_range(plain: Path, texts: Path, tmp_path: Path, words: tuple[str, str]) -> None:
    told = refused("exits", plain, "--texts", texts, "--out", tmp_path / "out", *words)
    assert f"got {float(words[1]):g}" in told


def test_a_level_and_a_speed_up_are_not_asked_for_together(plain: Path, texts: Path, tmp_path: Path) -> None:
    """The trap: the level was not read, and answers differed fifty times as often."""
    words = ("--disagreement", "0.0001", "--speed-up", "3")
    told = refused("exits", plain, "--texts", texts, "--out", tmp_path / "out", *words)
    assert "--disagreement or --speed-up, and not both" in told


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(ponder.cli, "_NEEDED", ("rich", "no_such_library"))
    with pytest.raises(SystemExit) as stopped:
        ponder.cli.main()
    assert stopped.value.code == 1
    told = capsys.readouterr().err
    assert "needs no_such_library: not installed" in told
    assert "pip install 'ponder-torch[cli]'" in told


STARS = {0: "1", 1: "2", 2: "3"}


@pytest.mark.parametrize(
    ("labels", "names", "told"),
    [
        (("0", "1", "2"), STARS, [0, 1, 2]),
        (("1", "2", "3"), STARS, [0, 1, 2]),
        (("1", "2", "1"), STARS, "say which class they mean"),
        (("0", "3", "1"), STARS, "names of some classes and numbers of others"),
        (("no", "1", "no"), {0: "no", 1: "yes", 2: "or"}, [0, 1, 0]),
        (("no", "maybe", "no"), {0: "no", 1: "yes", 2: "or"}, "got 'maybe'"),
        (("1", "0", "2"), {0: "0", 1: "1", 2: "2"}, [1, 0, 2]),
    ],
)
def test_labels_are_names_or_numbers_and_never_some_of_each(labels: Any, names: Any, told: Any) -> None:
    found = Texts(("text",), (("a",), ("b",), ("c",)), labels)
    if isinstance(told, str):
        with pytest.raises(ArgumentError, match=told):
            found.labelled([{}] * 3, names)
    else:
        assert [row["labels"] for row in found.labelled([{}] * 3, names)] == told


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("in.csv", "text;label\nw1;yes\n", "in the place of ';'"),
        ("in.csv", "text\tlabel\nw1\tyes\n", "in the place of '\\t'"),
        ("in.jsonl", '{"text": "a", "label": "no"}\n{"text": "b"}\n', "row 2 has no 'label'"),
        ("in.jsonl", '{"text": "a", "label": 1}\n{"text": "\\ud83d", "label": 1}\n', "row 2 holds half of a surrogate"),
        ("in.json", "[" * 100_000 + "]" * 100_000, "nested too deeply"),
        ("in.jsonl", "[" * 100_000 + "]" * 100_000, "line 1 is no JSON"),
        ("in.csv", "\n\n", "at least one text"),
    ],
)
def test_files_that_are_no_table_of_texts(tmp_path: Path, name: str, content: str, told: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=re.escape(told)):
        read_texts(tmp_path / name, labels="label")


def test_damaged_parquet(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "in.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match="no Parquet that can be read"):
        read_texts(tmp_path / "in.parquet")


def test_rows_of_a_table_stay_where_they_are(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("\ntext\nw1\n\nw3\n" + "w" * 200_000 + "\n")
    limit = csv.field_size_limit()
    assert [row for (row,) in read_texts(tmp_path / "in.csv").rows] == ["w1", "", "w3", "w" * 200_000]
    assert csv.field_size_limit() == limit  # it is one of the whole process
    (tmp_path / "in.csv").write_text("text,id\nw1,1\n\nw3,3\n")
    assert [row for (row,) in read_texts(tmp_path / "in.csv").rows] == ["w1", "w3"]


@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_ends_of_lines_within_a_cell_are_kept(tmp_path: Path, kind: str) -> None:
    rows = ["w1\r\nw2", "w1\rw2", "w1\nw2"]
    for end in ("\n", "\r\n", "\r"):
        lines = ["text", *(f'"{row}"' for row in rows), ""]
        (tmp_path / f"in.{kind}").write_bytes(end.join(lines).encode())
        assert [row for (row,) in read_texts(tmp_path / f"in.{kind}").rows] == rows
    (tmp_path / "in.txt").write_bytes(b"w1\r\nw2\rw3\n")
    assert [row for (row,) in read_texts(tmp_path / "in.txt").rows] == ["w1", "w2", "w3"]


def test_answers_are_rows_whatever_stands_in_a_text(fitted: Path, tmp_path: Path) -> None:
    rows = ["w1\rw2", "w1\nw2", "w1\r\nw2", 'w1, "w2"']
    (tmp_path / "in.jsonl").write_text("\n".join(json.dumps({"text": row}) for row in rows))
    assert run("predict", fitted, "--texts", tmp_path / "in.jsonl", "--out", tmp_path / "o.csv").exit_code == 0
    with (tmp_path / "o.csv").open(newline="", encoding="utf-8") as file:
        assert [answer["text"] for answer in csv.DictReader(file)] == rows
