"""As for the tests of Transformers: no network, no progress bars, no load reports."""

from tests.integrations.transformers.conftest import _offline, _quiet

__all__ = ["_offline", "_quiet"]
