"""Write result tables into the pages, and add what only the site shows: staleness and the reference.

A page holds each table between two markers::

    <!-- table: pays -->
    | … |
    <!-- end of table -->

The tables stand in the Markdown files, so that a reader on a code host sees them;
``python -m docs.extensions.pages`` draws them anew from `benchmarks/results`, and a test holds them current. MkDocs
calls `on_page_markdown`, which adds how many commits have changed the measured code since, and puts the public
names of a module in the place of ``<!-- names: module -->``. Each section of `reference.md` is a page of the site:
`on_files` makes it, and `on_config` puts it into the navigation.
"""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from functools import reduce
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.append(
        str(ROOT)
    )  # MkDocs runs this file by its path; `docs` and `benchmarks` are here

from mkdocs.structure.files import File  # noqa: E402

from docs.extensions.tables import ROOMS, TABLES  # noqa: E402

BLOCK = re.compile(r"<!-- table: (\w+) -->\n.*?<!-- end of table -->", re.DOTALL)
FACE = re.compile(r"<!-- names: ([\w.]+) -->")
REFERENCE = ROOT / "docs" / "reference.md"
_COMMIT = re.compile(r"commits? (?:from )?`([0-9a-f]{8})`")


def pages() -> list[Path]:
    """Return the Markdown files that may hold tables."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def with_tables(text: str) -> str:
    """Return a page with every table drawn anew."""
    return BLOCK.sub(lambda marker: _block(marker[1], TABLES[marker[1]]()), text)


def without_tables(text: str) -> str:
    """Return a page without its tables: the prose, whose numbers are checked by themselves."""
    return BLOCK.sub("", text)


def write_pages() -> list[Path]:
    """Draw all tables, and return the pages that changed."""
    changed = []
    for page in pages():
        text = page.read_text("utf-8")
        drawn = with_tables(text)
        if drawn != text:
            page.write_text(drawn, "utf-8")
            changed.append(page)
    return changed


def commits_since(commit: str, rooms: Sequence[str], root: Path = ROOT) -> int | None:
    """Return how many commits after `commit` changed one of the `rooms`; None without a history."""
    command = ["git", "rev-list", "--count", f"{commit}..HEAD", "--", *rooms]
    found = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    return int(found.stdout) if found.returncode == 0 else None


def staleness(block: str, rooms: Sequence[str], root: Path = ROOT) -> str:
    """Return a sentence on the code that changed after the oldest measurement of a table; empty if none did."""
    measured_at = _COMMIT.search(block)
    if measured_at is None or not rooms:
        return ""
    since = commits_since(measured_at[1], rooms, root)
    if not since:
        return ""
    return f"*Since then {since} commits have changed {', '.join(rooms)}.*\n"


def module_of(face: str) -> Any:
    """Return a module by the name that users give it: `ponder.export` is an attribute of `ponder`."""
    try:
        return import_module(face)
    except ModuleNotFoundError:
        return reduce(getattr, face.split(".")[1:], import_module("ponder"))


def names(faces: Iterable[str]) -> dict[str, list[str]]:
    """Return the public classes and functions of each face; a name counts where it appears first."""
    seen: set[int] = set()
    listed: dict[str, list[str]] = {}
    for face in faces:
        module = module_of(face)
        listed[face] = []
        for name in module.__all__:
            value = getattr(module, name)
            documented = inspect.isclass(value) or inspect.isfunction(value)
            if documented and id(value) not in seen:
                seen.add(id(value))
                listed[face].append(f"{module.__name__}.{name}")
    return listed


def rooms_of_reference() -> dict[str, tuple[str, str]]:
    """Return the sections of the reference, by the page of the site that each becomes: title and text."""
    _, *sections = re.split(r"^## ", REFERENCE.read_text("utf-8"), flags=re.MULTILINE)
    parts = [section.split("\n", 1) for section in sections]
    return {
        f"reference/{title.lower().replace(' ', '-')}.md": (title, text.strip())
        for title, text in parts
    }


def on_config(config: Any) -> Any:
    """Put the pages of the reference into the navigation, below that which lists them."""
    rooms = [{title: page} for page, (title, _) in rooms_of_reference().items()]
    for entry in config.nav:
        if isinstance(entry, dict) and "Reference" in entry:
            entry["Reference"] = ["reference.md", *rooms]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add a page for each section of the reference."""
    for page, (title, text) in rooms_of_reference().items():
        files.append(File.generated(config, page, content=f"# {title}\n\n{text}\n"))
    return files


def on_page_markdown(markdown: str, page: Any = None, **_: Any) -> str:
    """Add staleness below tables, and names in the places of their markers; MkDocs calls this for every page."""
    if page is not None and page.file.src_uri == "reference.md":
        rooms = rooms_of_reference().items()
        links = "\n".join(f"* [{title}]({target})" for target, (title, _) in rooms)
        return f"{markdown.split('## ', 1)[0]}\n{links}\n"
    listed = names(FACE.findall(REFERENCE.read_text("utf-8")))
    markdown = FACE.sub(
        lambda marker: "\n".join(f"::: {name}\n" for name in listed[marker[1]]), markdown
    )
    return BLOCK.sub(lambda marker: f"{marker[0]}\n\n{_stale(marker)}", markdown)


def _stale(marker: re.Match[str]) -> str:
    return staleness(marker[0], ROOMS.get(marker[1], ()))


def _block(name: str, drawn: str) -> str:
    return f"<!-- table: {name} -->\n{drawn}\n<!-- end of table -->"


if __name__ == "__main__":
    for page in write_pages():
        print(page.relative_to(ROOT))
