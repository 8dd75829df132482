"""The reference is made of the public faces, and every public name has a docstring of its own."""

from __future__ import annotations

import inspect
import pkgutil
from pathlib import Path
from types import SimpleNamespace

import pytest

import ponder
from docs.extensions.pages import (
    FACE,
    module_of,
    names,
    on_page_markdown,
    rooms_of_reference,
)

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference.md"
NAMES = names(FACE.findall(PAGE.read_text()))
INNER = (
    "cli",
    "deploy",
    "distributions",
    "fitting",
    "integrations",
    "model",
    "saving",
    "trajectory",
    "wrapper",
    "advice",
)
"""Rooms whose public names are those of `ponder`, or of modules below them."""


def test_every_room_is_in_the_reference() -> None:
    rooms = {
        room.name for room in pkgutil.iter_modules(ponder.__path__) if not room.name.startswith("_")
    }
    assert {f"ponder.{room}" for room in rooms.difference(INNER)} <= set(NAMES)


@pytest.mark.parametrize("name", [name for listed in NAMES.values() for name in listed])
def test_a_public_name_is_described(name: str) -> None:
    module, _, last = name.rpartition(".")
    value = getattr(module_of(module), last)
    own = vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__
    assert (own or "").strip(), f"{name} has no docstring"


def test_each_room_is_a_page_of_the_site() -> None:
    rooms = rooms_of_reference()
    text = "".join(text for _, text in rooms.values())
    assert FACE.findall(text) == FACE.findall(PAGE.read_text())
    listed = SimpleNamespace(file=SimpleNamespace(src_uri="reference.md"))
    shown = on_page_markdown(PAGE.read_text(), page=listed)
    assert all(f"]({page})" in shown for page in rooms)
    policies = on_page_markdown(rooms["reference/policies.md"][1])
    assert "::: ponder.policies.Confidence" in policies
