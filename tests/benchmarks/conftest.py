"""A backbone that trains in a second, and a RTE folder that is large enough to train on."""

import pytest
import torch
from glue_files import make, write
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from benchmarks.glue import curves

TRIED = curves._TRIED
WORDS = ["one", "two", ".", *(str(number) for number in range(10)), "not", "the", "a", "is", "true", "that", "it"]


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session", autouse=True)
def _few_thresholds():
    """Runs try a twentieth of the thresholds, on which a tiny one spends half of its time; see `all_thresholds`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curves, "_TRIED", 101)
        yield


@pytest.fixture
def all_thresholds(monkeypatch):
    """Curves are made of as many thresholds as those of the results that are shown."""
    monkeypatch.setattr(curves, "_TRIED", TRIED)


@pytest.fixture(scope="session")
def backbone(tmp_path_factory):
    """A folder with a four-layer BERT of width 16 and its tokenizer."""
    folder = tmp_path_factory.mktemp("backbone") / "tiny"
    torch.manual_seed(0)
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=128,
    )
    BertModel(config).save_pretrained(folder)
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def shallow(backbone, tmp_path_factory):
    """The same with two layers, for many trainings, and for exports, where each is a graph of its own."""
    folder = tmp_path_factory.mktemp("shallow") / "tiny"
    BertModel.from_pretrained(backbone, num_hidden_layers=2).save_pretrained(folder)
    PreTrainedTokenizerFast.from_pretrained(backbone).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def glue_dir(tmp_path_factory):
    """GLUE's layout; RTE, STS-B and MNLI with enough rows to train on."""
    folder = make(tmp_path_factory.mktemp("glue"))
    pairs = [f"{n}\tone {n % 7} is {'true' if n % 3 else 'not true'} .\tit is {n % 5} .\t" for n in range(60)]
    rte = [pair + ("entailment" if n % 3 else "not_entailment") for n, pair in enumerate(pairs)]
    for split, rows in (("train", rte), ("dev", rte[:20])):
        write(folder, "RTE", split, ["index\tsentence1\tsentence2\tlabel", *rows])
    head = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore"
    sts = [f"{n}\tg\tf\t2012\t0\tn\tn\tone {n % 7}\ttwo {n % 5}\t{(n % 11) / 2:.3f}" for n in range(60)]
    for split, rows in (("train", sts), ("dev", sts[:20])):
        write(folder, "STS-B", split, [head, *rows])
    return folder
