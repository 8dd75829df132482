"""A backbone that trains in a second, and folders of GLUE and of the other texts that are large enough to train on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from tests.benchmarks.glue_files import write

WORDS = [
    "one",
    "two",
    ".",
    *(str(number) for number in range(10)),
    "not",
    "the",
    "a",
    "is",
    "true",
    "that",
    "it",
]


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session", autouse=True)
def _few_thresholds() -> None:
    """Let runs try a twentieth of the thresholds, on which a tiny one spends half of its time."""
    from benchmarks.glue import measuring

    measuring._TRIED = 101


@pytest.fixture
def few_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the learned gates of LoopBench take a tenth of their updates, and puzzles come from short lists."""
    from benchmarks.loops import tasks, training

    monkeypatch.setattr(training, "GATE_UPDATES", 100)
    monkeypatch.setattr(training, "GATE_CHECK", 20)
    monkeypatch.setattr(tasks, "SUDOKUS", {4: 64, 6: 64})


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a four-layer BERT of width 16 and its tokenizer."""
    folder = tmp_path_factory.mktemp("backbone") / "tiny"
    torch.manual_seed(0)
    vocabulary = {
        word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])
    }
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    BertModel(
        BertConfig(vocab_size=len(vocabulary), max_position_embeddings=128, **sizes)
    ).save_pretrained(folder)
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    special = {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
    }
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def glue_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RTE and STS-B in GLUE's layout, with enough rows to train on, and single sentences of SST-2."""
    folder = tmp_path_factory.mktemp("glue")
    pairs = [
        f"{n}\tone {n % 7} is {'true' if n % 3 else 'not true'} .\tit is {n % 5} .\t"
        for n in range(60)
    ]
    rte = [pair + ("entailment" if n % 3 else "not_entailment") for n, pair in enumerate(pairs)]
    head = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore"
    sts = [
        f"{n}\tg\tf\t2012\t0\tn\tn\tone {n % 7}\ttwo {n % 5}\t{(n % 11) / 2:.3f}" for n in range(60)
    ]
    sst = [
        f"it is {'not ' * (n % 2)}true that {n // 25} is {n % 25 // 5} {n % 5} \t{n % 2}"
        for n in range(300)
    ]
    for split, rows in (("train", slice(None)), ("dev", slice(20))):
        write(folder, "RTE", split, ["index\tsentence1\tsentence2\tlabel", *rte[rows]])
        write(folder, "STS-B", split, [head, *sts[rows]])
        write(folder, "SST-2", split, ["sentence\tlabel", *sst[rows]])
    return folder


@pytest.fixture(scope="session")
def text_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Banking77 and CLINC150, a few rows each."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "banking77").mkdir()
    for split in ("train", "test"):
        rows = [f'"the {n}, one",intent {n:02}' for n in range(77)]
        (folder / "banking77" / f"{split}.csv").write_text(
            "\n".join(["text,category", *rows]) + "\n"
        )
    (folder / "clinc150").mkdir()
    inside = [[f"is it {n}", f"intent {n:03}"] for n in range(150)]
    parts = dict.fromkeys(("train", "val", "test"), inside)
    (folder / "clinc150" / "data_full.json").write_text(
        json.dumps({**parts, **{f"oos_{key}": [["the one", "oos"]] * 3 for key in parts}})
    )
    return folder
