"""No network, no progress bars, no load reports: what these tests need is made on the spot, tiny and random."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any, NoReturn

import huggingface_hub.constants
import pytest
from transformers.utils import logging

from tests.quick_captures import quick_captures


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> NoReturn:
        raise AssertionError("a test opened a connection")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    yield
    logging.set_verbosity(verbosity)
    if bars:
        logging.enable_progress_bar()


@pytest.fixture(scope="module", name="quick_captures")
def _quick_captures() -> Iterator[None]:
    """Files that ask for it capture each encoder once, however often they make it."""
    with quick_captures():
        yield
