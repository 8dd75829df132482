"""The links of README and documentation to other sites: `python -m tests.docs.external_links` lists them.

With `--check`, where there is a network, each is asked for, and those that do not answer are told (exit code 1).
"""

from __future__ import annotations

import re
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path

__all__ = ["external_links", "unanswered"]

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff", "pyproject.toml")
SECONDS = 20.0


def external_links() -> dict[str, list[str]]:
    """Every link to another site with the pages on which it stands; none of this machine."""
    found: dict[str, list[str]] = {}
    for page in [*(ROOT / name for name in PAGES), *sorted((ROOT / "docs").rglob("*.md"))]:
        for link in re.findall(r"\bhttps?:[^\s)>\"',\]}]+", page.read_text()):
            link = link.rstrip(".,;`")
            if not re.match(r"https?://(localhost|127\.0\.0\.1)\b", link):
                places = found.setdefault(link, [])
                places += [] if (name := str(page.relative_to(ROOT))) in places else [name]
    return dict(sorted(found.items()))


def unanswered(links: Iterable[str], ask: Callable[[str], int] | None = None) -> dict[str, str]:
    """The links that do not answer, with the reason; `ask` gives the status of one."""
    faults = {}
    for link in links:
        try:
            status = (ask or _ask)(link)
        except OSError as error:  # of the network, and of statuses from 400 on
            faults[link] = str(error)
        else:
            if status >= 400:
                faults[link] = f"HTTP status {status}"
    return faults


def _ask(link: str) -> int:
    request = urllib.request.Request(link, headers={"User-Agent": "Mozilla/5.0 (checks links)"})
    with urllib.request.urlopen(request, timeout=SECONDS) as answer:
        return int(answer.status)


def main(arguments: list[str]) -> int:
    """List the links, or check them."""
    links = external_links()
    if arguments not in ([], ["--check"]):
        print("usage: python -m tests.docs.external_links [--check]", file=sys.stderr)
        return 2
    if not arguments:
        for link, pages in links.items():
            print(link, *pages)
        return 0
    faults = unanswered(links)
    for link, why in faults.items():
        print(f"{link} ({', '.join(links[link])}): {why}")
    print(f"{len(links) - len(faults)} of {len(links)} links answer")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
