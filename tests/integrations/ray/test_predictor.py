"""`Predictor` by itself: a table of texts in, the answers beside it out. It needs no Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ponder.errors import ArgumentError
from ponder.integrations.ray import Predictor
from tests.exits_folder import NAMES, make_folder
from tests.word_tokenizer import WORDS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("model"))


def table(texts: list[str]) -> dict[str, Any]:
    return {"text": np.array(texts, dtype=object), "row": np.arange(len(texts))}


def test_answers_stand_beside_the_texts(folder: Path) -> None:
    predictor = Predictor(folder)
    texts = [" ".join(WORDS[n : n + 5]) for n in range(20)]
    whole = predictor(table(texts))
    assert whole["text"].tolist() == texts
    assert whole["row"].tolist() == list(range(20))
    assert set(whole["label"].tolist()) <= set(NAMES.values())
    assert whole["exit_step"].dtype.kind == "i"
    assert whole.keys() == {"text", "row", "label", "score", "exit_step", "truncated"}
    parts = [predictor(table(texts[start : start + 6])) for start in range(0, 20, 6)]
    assert np.concatenate([part["label"] for part in parts]).tolist() == whole["label"].tolist()
    assert np.concatenate([part["exit_step"] for part in parts]).tolist() == whole["exit_step"].tolist()
    empty = predictor(table([]))
    assert empty.keys() == whole.keys()  # or tables of one data set would have other columns than others
    assert {name: (len(column), column.dtype.kind) for name, column in empty.items()} == {
        name: (0, column.dtype.kind) for name, column in whole.items()
    }


def test_pairs_and_columns_that_are_not_there(folder: Path) -> None:
    both = Predictor(folder, "text", "text")({"text": np.array(["w1 w2"], dtype=object)})
    assert both["label"].tolist()[0] in NAMES.values()
    with pytest.raises(ArgumentError, match="column: expected one of text, row; got 'sentence'"):
        Predictor(folder, "sentence")(table(["w1"]))
    with pytest.raises(ArgumentError, match="text: expected texts; got None"):
        Predictor(folder)({"text": np.array(["w1", None], dtype=object)})


def test_columns_of_the_table_stay(folder: Path) -> None:
    given = {**table(["w1 w2"]), "label": np.array(["gold"], dtype=object), "score": np.array([1.0])}
    with pytest.raises(ArgumentError, match=r"batch: expected no columns .* got label, score"):
        Predictor(folder)(given)
