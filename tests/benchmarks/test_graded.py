"""Graded tasks: labels and difficulties read off the sentences again, balance, disjoint splits, no surface cue."""

import collections
import itertools
import os
import random
import subprocess
import sys

import pytest
from datasets import ClassLabel
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import graded
from benchmarks.graded.base import Example, GradedTask
from ponder.errors import ArgumentError, ArgumentTypeError, DataError

SEEDS = st.integers(-(2**63), 2**63)
NAMES = ["agreement", "negation"]


def words_of(sentence):
    return sentence.rstrip(".").replace(",", " ,").lower().split()


def read_negation(sentence):
    """(label, difficulty): undo one negation after the other, from the core outwards."""
    praise = {"delicious", "wonderful", "excellent", "splendid", "superb", "lovely", "brilliant", "perfect"}
    blame = {"disgusting", "dreadful", "terrible", "awful", "horrible", "lousy", "disastrous", "miserable"}
    *clauses, core = " ".join(words_of(sentence)).split(" that ")
    (adjective,) = set(core.split()) & (praise | blame)
    positive, difficulty = adjective in praise, 0
    for clause in [core, *reversed(clauses)]:
        for word in clause.split():
            if word in {"not", "nobody", "never", "false", "doubt", "doubts"}:
                positive, difficulty = not positive, difficulty + 1
    return int(positive), difficulty


def read_agreement(sentence):
    """(label, difficulty): drop the opening, find the subject and the one finite form of "be"."""
    words = words_of(sentence)
    if "," in words:
        words = words[words.index(",") + 1 :]
    (place,) = (i for i, word in enumerate(words) if word in {"is", "are", "was", "were"})
    assert words[0] == "the"
    subject_is_plural, verb_is_plural = words[1].endswith("s"), words[place] in {"are", "were"}
    return int(subject_is_plural == verb_is_plural), words[2:place].count("the")


READERS = {"negation": read_negation, "agreement": read_agreement}


@pytest.fixture(scope="module", params=NAMES)
def loaded(request):
    return request.param, graded.load(request.param, train=1600, dev=160, test=400)


def rows(splits):
    return [row for split in splits.values() for row in split]


def test_known_sentences_have_the_labels_that_a_reader_gives_them():
    assert read_negation("Nobody doubts that the soup here was not awful.") == (1, 3)
    assert read_negation("It is false that everyone knows that the film was superb.") == (0, 1)
    assert read_agreement("Near the boxes, the key behind the doors that the guard wants is old.") == (1, 2)
    assert read_agreement("Today, the keys near the box is old.") == (0, 1)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, data=st.data())
def test_the_sentence_says_label_and_difficulty(name, seed, data):
    task = graded.get(name)
    difficulty = data.draw(st.sampled_from(task.difficulties))
    example = task.generate(random.Random(seed), difficulty)
    assert READERS[name](example.sentence1) == (example.label, difficulty)
    assert example.sentence2 is None
    assert example.sentence1[0].isupper()
    assert example.sentence1.endswith(".")
    assert "  " not in example.sentence1


def test_columns_and_their_types(loaded):
    name, splits = loaded
    assert list(splits) == ["train", "dev", "test"]
    for split, size in zip(splits.values(), (1600, 160, 400), strict=True):
        assert split.column_names == ["idx", "sentence1", "label", "difficulty"]
        assert split["idx"][:] == list(range(size))
        assert split.features["label"] == ClassLabel(names=list(graded.get(name).labels))
        assert {type(v) for column in ("label", "difficulty") for v in split[column]} == {int}


def test_every_split_is_labelled_as_a_reader_would(loaded):
    name, splits = loaded
    for row in rows(splits):
        assert READERS[name](row["sentence1"]) == (row["label"], row["difficulty"])


def test_splits_are_disjoint_and_have_no_duplicates(loaded):
    texts = [row["sentence1"] for row in rows(loaded[1])]
    assert len(texts) == len(set(texts))


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=5, deadline=None)
@given(first=SEEDS, second=SEEDS)
def test_splits_of_different_seeds_and_sizes_are_disjoint(name, first, second):
    one = graded.load(name, seed=first, train=60, dev=20, test=30)
    other = graded.load(name, seed=second, train=100, dev=10, test=60)
    for left, right in itertools.permutations(one, 2):
        assert not set(one[left]["sentence1"]) & set(other[right]["sentence1"])


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=10, deadline=None)
@given(seed=SEEDS, sizes=st.tuples(*[st.integers(1, 70)] * 3))
def test_labels_and_difficulties_are_as_even_as_the_size_allows(name, seed, sizes):
    task = graded.get(name)
    splits = graded.load(name, seed=seed, **dict(zip(("train", "dev", "test"), sizes, strict=True)))
    for split, size in zip(splits.values(), sizes, strict=True):
        assert len(split) == size
        cells = collections.Counter(zip(split["difficulty"], split["label"], strict=True))
        counts = [cells[d, label] for d in task.difficulties for label in range(2)]
        assert max(counts) - min(counts) <= 1
        assert abs(sum(counts[0::2]) - sum(counts[1::2])) <= 1


@pytest.mark.parametrize("name", NAMES)
def test_equal_seeds_give_equal_rows_and_other_seeds_other_rows(name):
    sizes = {"train": 80, "dev": 16, "test": 16}
    one, same, other = (graded.load(name, seed=seed, **sizes) for seed in (3, 3, 4))
    assert rows(one) == rows(same)
    assert not set(one["train"]["sentence1"]) <= set(other["train"]["sentence1"])


def test_rows_do_not_depend_on_the_process_and_its_hash_seed():
    show = "for n in graded.names(): print(*graded.load(n, train=8, dev=8, test=8)['train']['sentence1'], sep='|')"
    fresh = subprocess.run(
        [sys.executable, "-c", f"from benchmarks import graded\n{show}"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    ).stdout.splitlines()
    here = [graded.load(n, train=8, dev=8, test=8)["train"]["sentence1"][:] for n in graded.names()]
    assert [line.split("|") for line in fresh] == here


@pytest.mark.parametrize("name", NAMES)
def test_test_rows_do_not_depend_on_the_size_of_train(name):
    small, large = (graded.load(name, train=train, dev=8, test=40) for train in (8, 400))
    assert rows({"test": small["test"]}) == rows({"test": large["test"]})


def test_rows_are_shuffled(loaded):
    for column in ("difficulty", "label"):
        values = loaded[1]["train"][column][:]
        changes = sum(a != b for a, b in itertools.pairwise(values))
        assert changes > 0.4 * len(values)


def best_guess(keys, labels):
    """Accuracy of the best rule that looks at the key alone, fitted on one half and measured on the other."""
    half = len(keys) // 2
    votes = collections.defaultdict(collections.Counter)
    for key, label in zip(keys[:half], labels[:half], strict=True):
        votes[key][label] += 1
    guesses = [votes[key].most_common(1)[0][0] if votes[key] else 0 for key in keys[half:]]
    return sum(g == label for g, label in zip(guesses, labels[half:], strict=True)) / (len(keys) - half)


CUES = {
    "difficulty": lambda row: row["difficulty"],
    "length in words": lambda row: len(row["sentence1"].split()),
    "length in letters": lambda row: len(row["sentence1"]) // 4,
    "first word": lambda row: row["sentence1"].split()[0],
    "last word": lambda row: row["sentence1"].split()[-1],
    "number of commas": lambda row: row["sentence1"].count(","),
}


@pytest.mark.parametrize("cue", CUES)
def test_no_surface_cue_gives_the_label_away(loaded, cue):
    train = loaded[1]["train"]
    assert best_guess([CUES[cue](row) for row in train], train["label"][:]) < 0.57


def test_no_single_word_gives_the_label_away(loaded):
    seen = collections.defaultdict(list)
    for row in loaded[1]["train"]:
        for word in set(words_of(row["sentence1"])):
            seen[word].append(row["label"])
    for word, labels in seen.items():
        deviation = abs(sum(labels) - len(labels) / 2)
        assert deviation < 4.5 * (len(labels) / 4) ** 0.5 + 1, word


def test_the_noun_next_to_the_verb_does_not_give_the_agreement_away():
    train = graded.load("agreement", train=1600, dev=8, test=8)["train"]
    agrees, plural = collections.defaultdict(list), collections.defaultdict(list)
    for row in train:
        words = words_of(row["sentence1"])
        place = next(i for i, word in enumerate(words) if word in {"is", "are", "was", "were"})
        noun = next(words[i + 1] for i in range(place - 2, -1, -1) if words[i] == "the")
        plural[row["difficulty"]].append(noun.endswith("s"))
        agrees[row["difficulty"]].append((noun.endswith("s") == (words[place] in {"are", "were"})) == row["label"])
    for difficulty, right in agrees.items():
        assert 0.4 < sum(plural[difficulty]) / len(right) < 0.6
        share = sum(right) / len(right)
        assert share == 1 if difficulty == 0 else 0.4 < share < 0.6


def test_names_and_get():
    assert graded.names() == NAMES
    assert graded.get("negation").labels == ("negative", "positive")
    with pytest.raises(ArgumentError, match=r"agreement, negation.*'negations'"):
        graded.get("negations")
    with pytest.raises(ArgumentError, match="agreement, negation"):
        graded.load("")


@pytest.mark.parametrize("size", [0, -1])
@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_sizes_below_one_are_refused(split, size):
    with pytest.raises(ArgumentError, match=f"{split}.*>= 1"):
        graded.load("negation", **{split: size})


@pytest.mark.parametrize("argument", ["seed", "train", "dev", "test"])
@pytest.mark.parametrize("value", [1.5, "8", None, True])
def test_numbers_have_to_be_whole(argument, value):
    with pytest.raises(ArgumentTypeError, match=f"{argument}.*whole number"):
        graded.load("negation", **{argument: value})


def tiny(**changes):
    def generate(rng, difficulty):
        return Example(f"{rng.randrange(8)} {difficulty}", f"{rng.randrange(8)}", rng.randrange(3))

    options = {"name": "tiny", "labels": ("a", "b", "c"), "difficulty": "d", "levels": (1, 2), "generate": generate}
    return GradedTask(**{**options, "pair": True, **changes})


@pytest.fixture
def _own_registry(monkeypatch):
    from benchmarks.graded import base

    base.names()  # reads the folder of the benchmark's own
    monkeypatch.setattr(base, "_TASKS", dict(base._TASKS))


@pytest.mark.usefixtures("_own_registry")
def test_a_task_of_ones_own_with_pairs_and_three_labels():
    graded.register(tiny())
    assert graded.names() == ["agreement", "negation", "tiny"]
    train = graded.load("tiny", train=18, dev=6, test=6)["train"]
    assert train.column_names == ["idx", "sentence1", "sentence2", "label", "difficulty"]
    cells = collections.Counter(zip(train["difficulty"], train["label"], strict=True))
    assert cells == dict.fromkeys(itertools.product((1, 2), range(3)), 3)


@pytest.mark.usefixtures("_own_registry")
def test_an_exhausted_grammar_says_what_it_could_not_make():
    graded.register(tiny())
    with pytest.raises(DataError, match=r"'tiny', split 'train'.*difficulty 1 with label 'a'.*fewer"):
        graded.load("tiny", train=6000, dev=6, test=6)


@pytest.mark.usefixtures("_own_registry")
@pytest.mark.parametrize(
    ("pair", "example", "message"),
    [
        (False, ("a text", None, 0), "expected an Example .*; got tuple. Return Example"),
        (False, None, "expected an Example .*; got NoneType"),
        (False, Example("a text", None, 3), "expected a label from 0 to 2, the index of one of a, b, c; got 3"),
        (False, Example("a text", None, -1), "expected a label from 0 to 2.*; got -1, at difficulty 1"),
        (False, Example("a text", None, "a"), "expected a label from 0 to 2.*; got 'a'"),
        (False, Example(0.0267, None, 0), "expected one text and None, as pair=False says; got 0.0267 and None"),
        (False, Example("a text", "another", 0), "expected one text and None, as pair=False says"),
        (True, Example("a text", None, 0), "expected two texts, as pair=True says; got 'a text' and None"),
        (True, Example("a text", 2, 0), r"expected two texts.* Return Example\(text, another, label\)"),
    ],
)
def test_what_is_no_example_of_the_task_is_refused(pair, example, message):
    graded.register(tiny(pair=pair, generate=lambda rng, difficulty: example))
    with pytest.raises((ArgumentError, ArgumentTypeError), match=f"generate of task 'tiny': {message}"):
        graded.load("tiny", train=6, dev=6, test=6)
    with pytest.raises((ArgumentError, ArgumentTypeError), match=f"generate of task 'tiny': {message}"):
        graded.traffic("tiny", "train", 6, (0.5, 0.5))


@pytest.mark.usefixtures("_own_registry")
def test_a_name_can_be_given_once():
    task = graded.register(tiny())
    assert graded.register(task) is task
    with pytest.raises(ArgumentError, match=r"still free.*'tiny'"):
        graded.register(tiny())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": ("a",)}, "labels.*two or more"),
        ({"labels": ("a", "b", "a")}, "labels.*different"),
        ({"levels": (2, 1)}, "levels.*lowest <= highest"),
        ({"levels": (-1, 1)}, "levels.*0 <= lowest"),
    ],
)
def test_malformed_tasks_are_refused(changes, message):
    with pytest.raises(ArgumentError, match=message):
        tiny(**changes)
