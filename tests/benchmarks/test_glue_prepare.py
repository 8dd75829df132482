"""Holding out a part of the training data, and turning sentences into tokens."""

import datasets
import pytest
from glue_files import make

from benchmarks import examples, tasks
from ponder.errors import ArgumentError


@pytest.fixture
def glue(tmp_path):
    return make(tmp_path)


def labelled(labels):
    return datasets.Dataset.from_dict({"idx": list(range(len(labels))), "label": labels})


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.3, 0.5, 0.9, 0.999])
@pytest.mark.parametrize(
    "labels", [[0, 1], [0] * 2, [0] * 70 + [1] * 30, [0, 1, 2] * 5, [0] * 9 + [1], [0.5, 1.5, 2.0, 5.0]]
)
def test_hold_out(labels, fraction):
    train, held = examples.hold_out(labelled(labels), fraction, seed=3)
    assert sorted(train["idx"][:] + held["idx"][:]) == list(range(len(labels)))
    assert train["idx"][:] == sorted(train["idx"])
    assert held["idx"][:] == sorted(held["idx"])
    assert len(held) == min(max(round(fraction * len(labels)), 1), len(labels) - 1)
    if isinstance(labels[0], int):
        for label in set(labels):
            share = labels.count(label) * len(held) / len(labels)
            assert abs(held["label"][:].count(label) - share) <= 1
        if len(train) >= len(set(labels)) and fraction <= 0.5 and len(labels) > 2:
            assert set(train["label"]) == set(labels)


def test_hold_out_is_a_function_of_the_seed():
    rows = labelled([0, 1] * 50)
    first, again, other = (examples.hold_out(rows, 0.2, seed)[1]["idx"][:] for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_hold_out_keeps_the_rare_class_in_training():
    for seed in range(10):
        # Six of eleven: the rare class has the larger remainder, and would be left without a training example.
        assert 1 in examples.hold_out(labelled([0] * 10 + [1]), 0.55, seed)[0]["label"]


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_hold_out_of_no_share(fraction):
    with pytest.raises(ArgumentError, match="fraction"):
        examples.hold_out(labelled([0, 1]), fraction, 0)


@pytest.mark.parametrize("labels", [[], [0]])
def test_hold_out_of_too_few(labels):
    with pytest.raises(ArgumentError, match="at least two examples"):
        examples.hold_out(labelled(labels), 0.5, 0)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "one", "two", "0", "1", "2", "."]))
    return transformers.BertTokenizer(vocab=str(path))


@pytest.mark.parametrize("name", ["CoLA", "STS-B", "RTE"])
def test_tokenize(glue, tokenizer, name):
    rows = tasks.get(name).load(glue)["train"]
    encoded = examples.tokenize(rows, tokenizer, max_length=16)
    kept = {"input_ids", "attention_mask", "token_type_ids", "labels", "idx", "length"}
    assert set(encoded.column_names) == kept
    assert encoded["labels"][:] == rows["label"][:]
    assert encoded["idx"][:] == rows["idx"][:]
    tokens = ["[CLS]", "one", "0", ".", "[SEP]", *(["two", "0", ".", "[SEP]"] if name != "CoLA" else [])]
    assert tokenizer.convert_ids_to_tokens(encoded[0]["input_ids"]) == tokens
    assert encoded["length"][:] == [len(tokens)] * len(rows)
    assert encoded[0]["token_type_ids"] == [0] * 5 + [1] * (len(tokens) - 5)


def test_tokenize_truncates_and_does_not_pad(tokenizer):
    rows = datasets.Dataset.from_dict({"idx": [0, 1], "sentence1": ["one", "one two " * 50], "label": [0, 1]})
    encoded = examples.tokenize(rows, tokenizer, max_length=8)
    assert encoded["length"][:] == [3, 8]
    assert [len(ids) for ids in encoded["input_ids"]] == [3, 8]


def test_tokenize_gives_only_what_the_model_takes(glue, tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "model_input_names", ["input_ids", "attention_mask"])
    encoded = examples.tokenize(tasks.get("RTE").load(glue)["train"], tokenizer, max_length=16)
    assert "token_type_ids" not in encoded.column_names


def test_tokenize_without_room(glue, tokenizer):
    rows = tasks.get("RTE").load(glue)["train"]
    with pytest.raises(ArgumentError, match="more than the 3 special tokens"):
        examples.tokenize(rows, tokenizer, max_length=3)
