"""Pages that a reader can take in: short, with figures that are there and described, links that are well-formed."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from benchmarks.gallery.drawing import FIGURES, draw
from tests.docs.external_links import external_links, main, unanswered

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


@pytest.mark.parametrize("link", external_links())
def test_links_to_other_sites_are_well_formed(link: str) -> None:
    parts = urlsplit(link)
    assert parts.scheme == "https", link
    assert re.fullmatch(r"([a-z0-9-]+\.)+[a-z]{2,}", parts.hostname or ""), link


def test_every_link_to_another_site_stands_in_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    links = external_links()
    for page in [*PAGES, ROOT / "CHANGELOG.md", ROOT / "CITATION.cff"]:
        for target in re.findall(r"\]\((https:[^)\s]+)\)", page.read_text()):
            assert name(page) in links[target], f"{name(page)}: {target}"
    assert main([]) == 0
    assert capsys.readouterr().out.splitlines() == [" ".join([link, *pages]) for link, pages in links.items()]


def test_links_that_do_not_answer_are_told() -> None:
    def ask(link: str) -> int:
        if link == "https://gone.example":
            raise OSError("Name or service not known")
        return 404 if link.endswith("/nothing") else 200

    asked = ["https://here.example", "https://gone.example", "https://here.example/nothing"]
    assert unanswered(asked, ask) == {
        "https://gone.example": "Name or service not known",
        "https://here.example/nothing": "HTTP status 404",
    }
