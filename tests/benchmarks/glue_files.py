"""Tiny files in the layout of GLUE, which the tests of its data share."""

from benchmarks import tasks

MNLI_HEAD = (
    "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse"
    "\tsentence2_parse\tsentence1\tsentence2"
)
MNLI_ROW = "{0}\t7\t7c\tfiction\t( a )\t( b )\t(ROOT a)\t(ROOT b)\tOne {0}.\tTwo {0}."
STSB_HEAD = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2"
STSB_ROW = "{0}\tnews\tfile\t2012\t00{0}\tnone\tnone\tOne {0}.\tTwo {0}."

# task: (header and row of a labelled file, header and row of a test file, labels as a file writes them);
# the row numbered 0, 1, … is filled in, and so is the label.
LAYOUTS = {
    "CoLA": (None, "src\t{1}\t\tOne {0}.", "index\tsentence", "{0}\tOne {0}.", ["0", "1"]),
    "SST-2": ("sentence\tlabel", "One {0}. \t{1}", "index\tsentence", "{0}\tOne {0}.", ["0", "1"]),
    "MRPC": (
        "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String",
        "{1}\t11\t12\tOne {0}.\tTwo {0}.",
        "index\t#1 ID\t#2 ID\t#1 String\t#2 String",
        "{0}\t11\t12\tOne {0}.\tTwo {0}.",
        ["0", "1"],
    ),
    "STS-B": (STSB_HEAD + "\tscore", STSB_ROW + "\t{1}", STSB_HEAD, STSB_ROW, ["0", "3.800", "5.000"]),
    "QQP": (
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
        "90{0}\t1\t2\tOne {0}.\tTwo {0}.\t{1}",
        "id\tquestion1\tquestion2",
        "{0}\tOne {0}.\tTwo {0}.",
        ["0", "1"],
    ),
    "MNLI": (
        MNLI_HEAD + "\tlabel1\tgold_label",
        MNLI_ROW + "\tneutral\t{1}",
        MNLI_HEAD,
        MNLI_ROW,
        ["entailment", "neutral", "contradiction"],
    ),
    "QNLI": (
        "index\tquestion\tsentence\tlabel",
        "{0}\tOne {0}.\tTwo {0}.\t{1}",
        "index\tquestion\tsentence",
        "{0}\tOne {0}.\tTwo {0}.",
        ["entailment", "not_entailment"],
    ),
    "RTE": (
        "index\tsentence1\tsentence2\tlabel",
        "{0}\tOne {0}.\tTwo {0}.\t{1}",
        "index\tsentence1\tsentence2",
        "{0}\tOne {0}.\tTwo {0}.",
        ["entailment", "not_entailment"],
    ),
    "WNLI": (
        "index\tsentence1\tsentence2\tlabel",
        "{0}\tOne {0}.\tTwo {0}.\t{1}",
        "index\tsentence1\tsentence2",
        "{0}\tOne {0}.\tTwo {0}.",
        ["0", "1"],
    ),
}
SPLITS = {"MNLI": ["train", "dev_matched", "dev_mismatched", "test_matched", "test_mismatched"]}


def splits(name):
    return SPLITS.get(name, ["train", "dev", "test"])


def lines_of(name, split):
    head, row, test_head, test_row, labels = LAYOUTS[name]
    if split.startswith("test"):
        return [test_head, *(test_row.format(number) for number in range(3))]
    rows = [row.format(number, label) for number, label in enumerate(labels)]
    return rows if head is None else [head, *rows]


def write(folder, name, split, lines, end="\n"):
    path = folder / name / f"{split}.tsv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((end.join(lines) + end).encode())
    return path


def make(folder):
    """All nine tasks and the diagnostic set, a few rows each."""
    for name in LAYOUTS:
        for split in splits(name):
            write(folder, name, split, lines_of(name, split))
    write(folder, "diagnostic", "diagnostic", lines_of("RTE", "test"))
    return folder


def rte_train(folder, content):
    """What loading gives when the training file of RTE has this content."""
    (folder / "RTE" / "train.tsv").write_bytes(content)
    return tasks.get("RTE").load(folder)["train"]
