"""All exports of these tests are quick ones."""

import pytest

from tests.quick_exports import make_exports_quick


@pytest.fixture(scope="session", autouse=True)
def _quick() -> None:
    make_exports_quick()
