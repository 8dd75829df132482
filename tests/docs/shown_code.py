"""Run the Python that a page shows, and compare the results that it shows.

The blocks of a page share a namespace, in order. What a page shows as a result is asserted:
`expression  # -> value`, or `# -> line` comments behind what prints.
"""

from __future__ import annotations

import ast
import contextlib
import io
import linecache
import re
import tokenize
from pathlib import Path
from typing import Any, NamedTuple

ARROW = re.compile(r"#\s*->\s?(.*)$")


class Block(NamedTuple):
    """A fenced block: its language, the line of the page on which its text starts, and the text."""

    language: str
    line: int
    text: str


def blocks(text: str) -> list[Block]:
    found = re.finditer(r"^( *)```([a-z]*)[^\n]*\n(.*?)^\1```$", text, re.M | re.S)
    return [Block(m[2], text.count("\n", 0, m.start(3)) + 1, m[3]) for m in found]


def prose(text: str) -> str:
    """Return a page without its fenced blocks."""
    return re.sub(r"^ *```.*?^ *```$", "", text, flags=re.M | re.S)


def run_page(page: Path, namespace: dict[str, Any]) -> None:
    for block in blocks(page.read_text()):
        if block.language == "python":
            run(block, page.name, namespace)


def run(block: Block, page: str, namespace: dict[str, Any]) -> None:
    source = "\n" * (block.line - 1) + block.text
    filename = f"<{page}:{block.line}>"  # in the linecache, for tracebacks and for dataclasses
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    shown = arrows(source)
    for statement in ast.parse(source, filename).body:
        first = statement.lineno
        last = statement.end_lineno or statement.lineno
        expected = [shown.pop(line) for line in sorted(shown) if first <= line <= last]
        got, value = executed(statement, filename, namespace)
        if expected:
            assert got == expected, (
                f"{page}:{first}: the page shows {expected}, and the code gives {got}"
            )
        elif value is None:
            assert not got, f"{page}:{first}: prints {got}, which the page does not show"
    assert not shown, f"{page}: results that belong to no statement, on lines {sorted(shown)}"


def executed(
    statement: ast.stmt, filename: str, namespace: dict[str, Any]
) -> tuple[list[str], Any]:
    """Return what a statement prints, or the value that it has."""
    out = io.StringIO()
    value = None
    with contextlib.redirect_stdout(out):
        if isinstance(statement, ast.Expr):
            value = eval(compile(ast.Expression(statement.value), filename, "eval"), namespace)
        else:
            exec(compile(ast.Module([statement], []), filename, "exec"), namespace)
    return (out.getvalue().splitlines() if value is None else [repr(value)]), value


def arrows(source: str) -> dict[int, str]:
    """Return the results that comments show, by line; a comment alone on its line belongs to the line above."""
    found: dict[int, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        match = ARROW.search(token.string) if token.type == tokenize.COMMENT else None
        if match is not None:
            alone = not token.line[: token.start[1]].strip()
            found[token.start[0] - alone] = match[1].strip()
    return found


def make_stand_ins(folder: Path) -> None:
    """Write tiny models with random weights, under the names that pages show: what a name of the hub would give."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from tokenizers.processors import TemplateProcessing
    from transformers import (
        AlbertConfig,
        AlbertForSequenceClassification,
        AlbertModel,
        PreTrainedTokenizerFast,
    )

    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "a",
        "short",
        "long",
        "longer",
        "text",
        "one",
        ".",
        "good",
        "bad",
    ]
    tokenizer = Tokenizer(
        models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    named = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )
    torch.manual_seed(0)
    sizes = {
        "embedding_size": 8,
        "hidden_size": 16,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "num_hidden_layers": 4,
    }
    config = AlbertConfig(vocab_size=len(words), num_labels=2, initializer_range=0.1, **sizes)
    encoder = AlbertModel(config)
    classifier = AlbertForSequenceClassification(config)
    with torch.no_grad():  # both classes are answered
        both = named(["good text 1", "bad text 1"], return_tensors="pt")
        logits = classifier.eval()(**both).logits
        classifier.classifier.weight *= 10 / (logits[0] - logits[1]).abs().max()
        classifier.classifier.bias -= classifier(**both).logits.mean(0)
        scorer = AlbertForSequenceClassification(
            AlbertConfig(**{**config.to_dict(), "num_labels": 1})
        )
    for name, model in (
        ("albert-base-v2", encoder),
        ("my-classifier", classifier),
        ("my-reranker", scorer),
    ):
        model.save_pretrained(folder / name)
        named.save_pretrained(folder / name)
