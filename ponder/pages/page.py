"""A page of headings, paragraphs, tables and figures, as Markdown and as one HTML file that asks for nothing outside.

Text and cells hold a little Markdown: `**bold**`, `*italic*`, `` `code` ``, `[link](address)`, and `<u>underlined</u>`.
The HTML (`page.html.jinja`) is well-formed XML too, which is what lets the tests parse it strictly.
"""

from __future__ import annotations

import base64
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from ponder._utils.files import write_text
from ponder._utils.markdown import markdown_table

__all__ = ["Block", "Drawing", "Embedded", "Figure", "Heading", "Page", "Table", "Text", "templates"]

_CODE = re.compile(r"`([^`]+)`")  # in which nothing else is a mark
_PUT_ASIDE = re.compile("\0(\\d+)\0")
_LINK = re.compile(r"\[([^\]]+)\]\(([^)\s]+)\)")
_INLINE = (  # no mark reaches over the end of another
    (re.compile(r"&lt;u&gt;([^<]+?)&lt;/u&gt;"), r"<u>\1</u>"),
    (re.compile(r"\*\*((?:[^*<]|<(\w+)>[^<]*</\2>)+)\*\*"), r"<strong>\1</strong>"),
    (re.compile(r"\*((?:[^*<]|<(\w+)>[^<]*</\2>)+)\*"), r"<em>\1</em>"),
)
_MARKS = re.compile(r"\*|</?u>")
_NUMBER = re.compile(r"[×x÷≤≥+\-−±]?\s*[\d.]+(\s*(±|–|of|/)\s*[\d.]+)?\s*(%|×|x|s|ms)?(\s*\([^)]*\))?|–|")
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class Block(ABC):
    """A part of the page."""

    kind: ClassVar[str]

    @abstractmethod
    def markdown(self, figures: str | None) -> str:
        """Markdown; `figures` is the address of the folder of figures, None where none were written."""


@dataclass(frozen=True)
class Heading(Block):
    """A heading; level 2 is a section."""

    kind = "heading"
    text: str
    level: int = 2

    def markdown(self, figures: str | None) -> str:
        """The heading as Markdown, `## Heading`."""
        return f"{'#' * self.level} {self.text}"


@dataclass(frozen=True)
class Text(Block):
    """A paragraph, or a list where every line that begins with `* ` is an item."""

    kind = "text"
    text: str

    @property
    def items(self) -> list[str]:
        """The items of a list; none where it is a paragraph."""
        return self.text[2:].split("\n* ") if self.text.startswith("* ") else []

    def markdown(self, figures: str | None) -> str:
        """The text as it is."""
        return self.text


@dataclass(frozen=True)
class Table(Block):
    """A table of text."""

    kind = "table"
    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def align(self, column: int) -> str:
        """The attribute that sets a column of numbers to the right."""
        numbers = all(_NUMBER.fullmatch(_MARKS.sub("", row[column])) for row in self.rows)
        return Markup(' class="number"') if numbers and self.rows else Markup("")

    def markdown(self, figures: str | None) -> str:
        """Pipes and dashes; a pipe in a cell is escaped."""
        return "\n".join(markdown_table(self.head, self.rows))


@dataclass(frozen=True)
class Figure(Block):
    """A figure that is a file of its own beside the Markdown, and an image in the HTML.

    Args:
        name: File name, without an ending.
        caption: What it shows.
        svg: The drawing.
    """

    kind = "figure"
    name: str
    caption: str
    svg: str

    @property
    def base64(self) -> str:
        """The drawing as an address; an image, so that the names inside of several drawings do not meet."""
        return base64.b64encode(self.svg.encode()).decode()

    def markdown(self, figures: str | None) -> str:
        """A link to `<figures>/<name>.svg`, and the caption; the caption alone where no figures were written."""
        shown = "" if figures is None else f"![{self.caption}]({figures}/{self.name}.svg)\n\n"
        return f"{shown}*{self.caption}*"


@dataclass(frozen=True)
class Drawing(Block):
    """An SVG in the colours of the page, which stands in the HTML alone."""

    kind = "drawing"
    title: str
    svg: Markup

    def markdown(self, figures: str | None) -> str:
        """The title of the drawing, in italics."""
        return f"*{self.title}*"


@dataclass(frozen=True)
class Embedded(Block):
    """A part with a script of its own, which stands in the HTML alone.

    Args:
        title: What it is, in the Markdown.
        html: Its elements.
        script: Run when the page has been read; it must be XML too, so neither `<` nor `&` may stand in it.
    """

    kind = "embedded"
    title: str
    html: Markup
    script: str

    def markdown(self, figures: str | None) -> str:
        """The title of the part, in italics."""
        return f"*{self.title}*"


def templates(folder: Path) -> Environment:
    """The templates in a folder; what they are given is escaped, and a name that is not given is an error."""
    return Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )


@dataclass(frozen=True)
class Page:
    """A page that is written as Markdown and as HTML.

    Args:
        title: Its heading.
        blocks: Its parts.
        marked: Whether text and cells hold Markdown, or are shown as they are.
    """

    title: str
    blocks: tuple[Block, ...]
    marked: bool = True

    def markdown(self, figures: str | None = None) -> str:
        """The page for the documentation; `figures` is the folder of figures, as the page links to it.

        Example:
            >>> print(Page("Scores", (Table(["recipe", "RTE"], [["palbert", "**67.1**"]]),)).markdown())
            # Scores
            <BLANKLINE>
            | recipe | RTE |
            | --- | --- |
            | palbert | **67.1** |
            <BLANKLINE>
        """
        return "\n\n".join([f"# {self.title}", *(block.markdown(figures) for block in self.blocks)]) + "\n"

    def html(self) -> str:
        """One file that asks for nothing from outside; what XML cannot hold becomes a replacement mark."""
        inline = _inline if self.marked else escape
        text = _TEMPLATES.get_template("page.html.jinja").render(page=self, inline=inline)
        return _NOT_XML.sub("\ufffd", text)

    def write(self, out: Path | None, html: Path | None = None, figures: Path | None = None) -> list[Path]:
        """Write what is asked for: a Markdown file, an HTML file, a folder of SVG files; gives back the files."""
        files: dict[Path, str] = {}
        if figures is not None:
            files |= {figures / f"{block.name}.svg": block.svg for block in self.blocks if isinstance(block, Figure)}
        if out is not None:
            link = None if figures is None else Path(os.path.relpath(figures, out.parent)).as_posix()
            files[out] = self.markdown(link)
        if html is not None:
            files[html] = self.html()
        for path, text in files.items():
            write_text(path, text)
        return list(files)


_TEMPLATES = templates(Path(__file__).parent)


def _inline(text: str) -> Markup:
    aside: list[str] = []

    def put_aside(html: str) -> str:
        aside.append(html)
        return f"\0{len(aside) - 1}\0"

    result = str(escape(" ".join(text.replace("\0", "\ufffd").split())))
    result = _CODE.sub(lambda match: put_aside(f"<code>{match[1]}</code>"), result)
    result = _LINK.sub(lambda match: put_aside(f'<a href="{match[2]}">{_marked(match[1])}</a>'), result)
    result = _marked(result)
    while _PUT_ASIDE.search(result):  # a link may hold code
        result = _PUT_ASIDE.sub(lambda match: aside[int(match[1])], result)
    return Markup(result)


def _marked(text: str) -> str:
    for pattern, replacement in _INLINE:
        text = pattern.sub(replacement, text)
    return text
