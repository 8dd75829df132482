"""Pages that hold results between two marks."""

from __future__ import annotations

import pytest

from benchmarks.tables import write_between_marks
from ponder.errors import PonderError

MARKS = "<!-- results: written by the benchmark -->\nold\n<!-- end of results -->"


def test_what_stands_between_the_marks_is_replaced(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n\n{MARKS}\n\nafter\n")
    for _ in range(2):  # writing again changes nothing
        write_between_marks(page, "| new |")
        text = page.read_text()
        assert text.startswith("before\n\n<!-- results")
        assert text.endswith("-->\n\nafter\n")
        assert "\n\n| new |\n\n" in text
        assert "old" not in text


@pytest.mark.parametrize("text", [None, "no marks", "<!-- end of results -->"])
def test_pages_without_marks(text, tmp_path):
    page = tmp_path / "page.md"
    if text is not None:
        page.write_text(text)
    with pytest.raises(PonderError, match="expected the lines"):
        write_between_marks(page, "new")
    assert text is None or page.read_text() == text
