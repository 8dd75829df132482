"""A page of headings, paragraphs, tables and figures, as Markdown and as one self-contained HTML file.

Text and cells hold a little Markdown: `**bold**`, `*italic*`, `` `code` ``, `[link](address)`, and `<u>underlined</u>`.
"""

from __future__ import annotations

import base64
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.report_html import escape, html_page

__all__ = ["Block", "Figure", "Heading", "Table", "Text", "to_html", "to_markdown"]

_INLINE = (
    (re.compile(r"`([^`]+)`"), r"<code>\1</code>"),
    (re.compile(r"\*\*([^*]+)\*\*"), r"<strong>\1</strong>"),
    (re.compile(r"\*([^*]+)\*"), r"<em>\1</em>"),
    (re.compile(r"\[([^\]]+)\]\(([^)\s]+)\)"), r'<a href="\2">\1</a>'),
    (re.compile(r"&lt;u&gt;(.+?)&lt;/u&gt;"), r"<u>\1</u>"),
)
_NUMBER = re.compile(r"[*<>u/×±+\-−–\s\d.%]*")  # a number, perhaps marked, with a factor, or missing


@dataclass(frozen=True)
class Block(ABC):
    """A part of the page."""

    @abstractmethod
    def markdown(self, figures: str | None) -> str:
        """Markdown; `figures` is the address of the folder of figures, None where none were written."""

    @abstractmethod
    def html(self) -> str:
        """HTML that asks for nothing from outside."""


@dataclass(frozen=True)
class Heading(Block):
    """A heading; level 2 is a section."""

    text: str
    level: int = 2

    def markdown(self, figures: str | None) -> str:
        """`## Heading`."""
        return f"{'#' * self.level} {self.text}"

    def html(self) -> str:
        """`<h2>`."""
        return f"<h{self.level}>{_inline(self.text)}</h{self.level}>"


@dataclass(frozen=True)
class Text(Block):
    """A paragraph, or a list where every line that begins with `* ` is an item."""

    text: str

    def markdown(self, figures: str | None) -> str:
        """As it is."""
        return self.text

    def html(self) -> str:
        """`<p>` or `<ul>`."""
        if not self.text.startswith("* "):
            return f"<p>{_inline(' '.join(self.text.split()))}</p>"
        items = (" ".join(item.split()) for item in self.text[2:].split("\n* "))
        return "<ul>" + "".join(f"<li>{_inline(item)}</li>" for item in items) + "</ul>"


@dataclass(frozen=True)
class Table(Block):
    """A table of text."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self, figures: str | None) -> str:
        """Pipes and dashes; a pipe in a cell is escaped."""
        lines = [self.head, ["---"] * len(self.head), *self.rows]
        return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)

    def html(self) -> str:
        """`<table>`, with numbers to the right."""
        columns = zip(*self.rows, strict=True) if self.rows else [()] * len(self.head)
        kind = [' class="number"' if all(map(_NUMBER.fullmatch, column)) else "" for column in columns]
        head = "".join(f'<th scope="col"{k}>{_inline(cell)}</th>' for k, cell in zip(kind, self.head, strict=True))
        rows = (
            "<tr>" + "".join(f"<td{k}>{_inline(cell)}</td>" for k, cell in zip(kind, row, strict=True)) + "</tr>"
            for row in self.rows
        )
        table = f"<table><thead><tr>{head}</tr></thead><tbody>\n" + "\n".join(rows) + "\n</tbody></table>"
        return f'<div class="card wide">{table}</div>'


@dataclass(frozen=True)
class Figure(Block):
    """A figure.

    Args:
        name: File name, without an ending.
        caption: What it shows.
        svg: The drawing.
    """

    name: str
    caption: str
    svg: str

    def markdown(self, figures: str | None) -> str:
        """A link to `<figures>/<name>.svg`, and the caption."""
        if figures is None:
            return f"*{self.caption}* (Drawn with `--figures`.)"
        return f"![{self.caption}]({figures}/{self.name}.svg)\n\n*{self.caption}*"

    def html(self) -> str:
        """The drawing inline, as an image, so that the names inside of several drawings do not meet."""
        data = base64.b64encode(self.svg.encode()).decode()
        return (
            f'<figure class="card"><img alt="{escape(self.caption)}" style="max-width: 100%; background: #fff" '
            f'src="data:image/svg+xml;base64,{data}"/><figcaption class="soft">{_inline(self.caption)}</figcaption>'
            "</figure>"
        )


def to_markdown(title: str, blocks: Sequence[Block], figures: str | None = None) -> str:
    """The page for the documentation.

    Args:
        title: Its heading.
        blocks: Its parts.
        figures: Address of the folder of figures, relative to the page; None where none were written.

    Example:
        >>> print(to_markdown("Scores", [Table(["recipe", "RTE"], [["palbert", "**67.1**"]])]))
        # Scores
        <BLANKLINE>
        | recipe | RTE |
        | --- | --- |
        | palbert | **67.1** |
        <BLANKLINE>
    """
    return "\n\n".join([f"# {title}", *(block.markdown(figures) for block in blocks)]) + "\n"


def to_html(title: str, blocks: Sequence[Block]) -> str:
    """The page as one HTML file, figures inside."""
    return html_page(title, [f"<h1>{escape(title)}</h1>", *(block.html() for block in blocks)])


def _inline(text: str) -> str:
    result = escape(text)
    for pattern, replacement in _INLINE:
        result = pattern.sub(replacement, result)
    return result
