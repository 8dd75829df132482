"""Runs the Python that a page shows, and compares the results that it shows.

The blocks of a page share a namespace, in order. What a page shows as a result is asserted: `expression  # -> value`,
or `# -> line` comments behind what prints. As a program, it runs the pages that it is given in an empty folder, and
needs nothing but what their code imports.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import io
import linecache
import re
import sys
import tokenize
import types
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Block", "blocks", "make_stand_ins", "run", "run_page"]

ARROW = re.compile(r"#\s*->\s?(.*)$")


class Block(NamedTuple):
    """A fenced block: its language, the line of the page on which its text starts, and the text."""

    language: str
    line: int
    text: str


def blocks(text: str) -> list[Block]:
    found = re.finditer(r"^( *)```([a-z]*)[^\n]*\n(.*?)^\1```$", text, re.M | re.S)
    return [Block(m[2], text.count("\n", 0, m.start(3)) + 1, m[3]) for m in found]


def run_page(page: Path, name: str, namespace: dict[str, Any]) -> int:
    """Run the Python blocks of a page; how many there were."""
    shown = [block for block in blocks(page.read_text()) if block.language == "python"]
    for block in shown:
        run(block, name, namespace)
    return len(shown)


def run(block: Block, page: str, namespace: dict[str, Any]) -> None:
    source = "\n" * (block.line - 1) + block.text
    filename = f"<{page}:{block.line}>"  # in the linecache, for tracebacks and for dataclasses
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    shown = arrows(source)
    tree = ast.parse(source, filename)
    for statement in tree.body:
        run_statement(statement, shown, filename, page, namespace)
    assert not shown, f"{page}: results that belong to no statement, on lines {sorted(shown)}"


def run_statement(
    statement: ast.stmt, shown: dict[int, str], filename: str, page: str, namespace: dict[str, Any]
) -> None:
    """Run one statement and compare each result that is shown for it; a `with` is entered and its body taken singly."""
    if isinstance(statement, ast.With):
        body = statement.body
        with contextlib.ExitStack() as stack:
            for item in statement.items:
                assert item.optional_vars is None, f"{page}: `with … as` is not supported in shown code"
                stack.enter_context(evaluate(item.context_expr, filename, namespace))
            for inner in body:
                run_statement(inner, shown, filename, page, namespace)
        return
    first, last = statement.lineno, statement.end_lineno or statement.lineno
    expected = [shown.pop(line) for line in sorted(shown) if first <= line <= last]
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        value = None
        if isinstance(statement, ast.Expr):
            value = evaluate(statement.value, filename, namespace)
        else:
            exec(compile(ast.Module([statement], []), filename, "exec"), namespace)
    got = out.getvalue().splitlines() if value is None else [repr(value)]
    if expected:
        assert got == expected, f"{page}:{first}: the page shows {expected}, and the code gives {got}"
    elif value is None:
        assert not got, f"{page}:{first}: prints {got}, which the page does not show"


def evaluate(expression: ast.expr, filename: str, namespace: dict[str, Any]) -> Any:
    return eval(compile(ast.Expression(expression), filename, "eval"), namespace)


def arrows(source: str) -> dict[int, str]:
    """The results that comments show, by line; a comment alone on its line belongs to the line above."""
    found: dict[int, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        match = ARROW.search(token.string) if token.type == tokenize.COMMENT else None
        if match is not None:
            alone = not token.line[: token.start[1]].strip()
            found[token.start[0] - alone] = match[1].strip()
    return found


def make_stand_ins(folder: Path) -> None:
    """Tiny encoders with random weights, under the names that pages show: what a name of the hub would give."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from tokenizers.processors import TemplateProcessing
    from transformers import AlbertConfig, AlbertForSequenceClassification, AlbertModel, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "short", "long", "longer", "text", "one", ".", "good", "bad"]
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    named = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    torch.manual_seed(0)
    config = AlbertConfig(
        vocab_size=len(words),
        embedding_size=8,
        hidden_size=16,
        num_attention_heads=2,
        intermediate_size=16,
        num_labels=2,
    )
    for name, family in (("albert-base-v2", AlbertModel), ("my-classifier", AlbertForSequenceClassification)):
        family(config).save_pretrained(folder / name)
        named.save_pretrained(folder / name)


def main(pages: list[str]) -> None:
    """Run pages, and tell from where; the first lines say which `ponder` it was."""
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]
    from transformers.utils import logging

    import ponder

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    print(Path(ponder.__file__).parent)
    print("benchmarks:", "there" if importlib.util.find_spec("benchmarks") else "not there")
    make_stand_ins(Path())
    shared = sys.modules["__main__"] = types.ModuleType("__main__")  # where pickle looks for the classes of a page
    count = sum(run_page(Path(page), Path(page).name, vars(shared)) for page in pages)
    print(f"{count} blocks ran")


if __name__ == "__main__":
    main(sys.argv[1:])
