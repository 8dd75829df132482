"""Pages that a reader can take in: short, with figures that are there and described, links that are well-formed."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from benchmarks.gallery.drawing import FIGURES, draw

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md")])
GENERATED = ("results", "speed-figures", "puzzles-results", "benchmark-report")  # long tables, behind links
MOST_WORDS = 1200


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose(text: str) -> str:
    """What is read as sentences: no code, no rows of tables."""
    text = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.M | re.S)
    return re.sub(r"^\|.*$", "", text, flags=re.M)


@pytest.mark.parametrize("page", [page for page in PAGES if not page.stem.startswith(GENERATED)], ids=name)
def test_a_page_is_read_in_five_minutes(page: Path) -> None:
    assert len(prose(page.read_text()).split()) <= MOST_WORDS


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_page_has_one_title(page: Path) -> None:
    assert len(re.findall(r"^# \S", prose(page.read_text()), re.M)) == 1


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_figures_are_there_and_described(page: Path) -> None:
    for said, target in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", page.read_text()):
        assert len(said.split()) >= 3, f"{name(page)}: {target} is not described"
        assert (page.parent / target).is_file(), f"{name(page)}: {target} is not there"


@pytest.mark.parametrize("path", sorted((DOCS / "figures").glob("*.svg")), ids=lambda path: path.name)
def test_figures_are_pictures(path: Path) -> None:
    assert ET.parse(path).getroot().tag.endswith("svg")


def test_the_gallery_draws_what_the_pages_show(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="figures need the extra plots")
    drawn = list(draw(tmp_path, list(FIGURES)))
    for path in drawn:
        assert (DOCS / "figures" / path.name).is_file()
        shown, made = (ET.parse(place).getroot() for place in (DOCS / "figures" / path.name, path))
        texts = [
            ["".join(one.itertext()) for one in root.iter() if one.tag.endswith("}text")] for root in (shown, made)
        ]
        assert texts[0] == texts[1], f"{path.name} is not what python -m benchmarks.gallery draws"


def external_links() -> list[tuple[str, str]]:
    """Every link to another site, with its page: the list to look through by hand."""
    found = []
    for page in [*PAGES, ROOT / "CHANGELOG.md", ROOT / "CITATION.cff"]:
        for link in re.findall(r"\bhttps?:[^\s)>\"',\]}]+", page.read_text()):
            found.append((name(page), link.rstrip(".,;`")))
    return sorted(set(found))


@pytest.mark.parametrize(("page", "link"), external_links())
def test_links_to_other_sites_are_well_formed(page: str, link: str) -> None:
    parts = urlsplit(link)
    local = parts.hostname in ("localhost", "127.0.0.1")
    assert local or parts.scheme == "https", f"{page}: {link}"
    assert parts.hostname, f"{page}: {link}"
    assert local or re.fullmatch(r"([a-z0-9-]+\.)+[a-z]{2,}", parts.hostname), f"{page}: {link}"


def test_notebooks_are_listed_and_hold_no_outputs() -> None:
    listed = set(re.findall(r"\(notebooks/([\w-]+\.ipynb)\)", (DOCS / "notebooks.md").read_text()))
    assert listed == {path.name for path in (DOCS / "notebooks").glob("*.ipynb")}
    for path in (DOCS / "notebooks").glob("*.ipynb"):
        for cell in json.loads(path.read_text())["cells"]:
            assert not cell.get("outputs"), f"{path.name}: clear the outputs before you commit"
            assert cell.get("execution_count") is None, path.name
