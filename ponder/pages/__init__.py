"""Pages of headings, text, tables and figures, as Markdown and as one HTML file (needs jinja2)."""

from ponder.pages.page import Block, Drawing, Embedded, Figure, Heading, Page, Table, Text, templates

__all__ = ["Block", "Drawing", "Embedded", "Figure", "Heading", "Page", "Table", "Text", "templates"]
