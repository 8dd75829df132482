"""Certificates as JSON, with PyTorch or without: the digest by which a change by hand is known, and taking them off."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from ponder.errors import ArgumentError

__all__ = ["certificates_in", "check_digest", "json_digest", "warn_of_part", "without_certificates"]


def json_digest(data: Mapping[str, Any]) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of JSON, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(_canonical(data), sort_keys=True).encode()).hexdigest()[:16]


def check_digest(data: Mapping[str, Any]) -> None:
    """Refuse a certified policy as JSON that is not the one of its digest; without one nothing is known of it.

    Args:
        data: What its `to_dict` gave once, with its name and its digest.

    Raises:
        ArgumentError: It was changed since.
    """
    if data.get("digest") not in (None, json_digest({name: value for name, value in data.items() if name != "digest"})):
        raise ArgumentError(
            "certificate",
            expected="a certified policy as it was written",
            got="one that was changed since: the certificate says nothing of it",
            remedy="Write the policy inside without its certificate, or certify again.",
        )


def certificates_in(data: Any) -> Iterator[Mapping[str, Any]]:
    """The certified policies in what `policy.to_dict()` gave, the outermost first."""
    if isinstance(data, Mapping):
        if data.get("name") == "certified":
            yield data
        data = list(data.values())
    if isinstance(data, list | tuple):
        for value in data:
            yield from certificates_in(value)


def warn_of_part(stacklevel: int) -> None:
    """Warn that a part of a policy is certified, and not the whole."""
    warnings.warn(
        "A part of this policy is certified, and nothing is promised of the whole. Assign the certified policy "
        "itself, or certify the whole: ponder.control_risk(trajectory, lambda t: policies.Confidence(t).after(2), "
        "level=0.05), say.",
        stacklevel=stacklevel + 1,
    )


def without_certificates(data: Any) -> Any:
    """What `policy.to_dict()` gave, or JSON that holds such, for another model than the one that was certified."""
    if isinstance(data, Mapping):
        if data.get("name") == "certified" and "policy" in data:
            return without_certificates(data["policy"])
        return {key: without_certificates(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [without_certificates(value) for value in data]
    return data


def _canonical(data: Any) -> Any:
    """The same JSON with every number a float: some tools write 1.0 as 1."""
    if isinstance(data, Mapping):
        return {key: _canonical(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_canonical(value) for value in data]
    return float(data) if isinstance(data, int) and not isinstance(data, bool) else data
