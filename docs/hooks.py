"""MkDocs hook: lays a view of the packages as they are installed, for the API reference to read.

`integrations/` is imported as `ponder.integrations`, a mapping that a static reader of the sources cannot know.
"""

from __future__ import annotations

import shutil
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
_VIEW = _ROOT / ".cache" / "docs" / "ponder"


def on_startup(command: str, dirty: bool) -> None:
    """Lay the view before the plugins start: they take only folders that are there."""
    shutil.rmtree(_VIEW.parent, ignore_errors=True)
    _VIEW.mkdir(parents=True)
    for source in (_ROOT / "ponder").iterdir():
        if source.name != "__pycache__":
            (_VIEW / source.name).symlink_to(source)
    (_VIEW / "integrations").symlink_to(_ROOT / "integrations")
