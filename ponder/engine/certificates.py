"""Whether the certificates of a model's policy are about the weights that the model has."""

from __future__ import annotations

import warnings
from typing import Protocol

from ponder._utils.certificates import warn_of_part, without_certificates
from ponder.errors import ArgumentError
from ponder.policies import ExitPolicy
from ponder.policies.certified import Certified, certificates, is_certified

__all__ = [
    "certified_now",
    "has_stale_certificate",
    "policy_to_hand_on",
    "warn_of_certified_part",
    "warn_of_foreign_certificate",
    "warn_of_other_weights",
    "warn_of_stale_certificate",
]


class _Certified(Protocol):
    """A model with a policy, as `EarlyExitModel`."""

    certified_for: str | None

    @property
    def policy(self) -> ExitPolicy:
        """The policy."""

    def weights_digest(self) -> str | None:
        """The SHA-256 of the weights."""


def certified_now(policy: ExitPolicy, model: _Certified) -> str | None:
    """The digest of the weights for which the model has certificates, once `policy` is its policy.

    Args:
        policy: The policy that the model is to have.
        model: The model, with its policy of before: what was certified in that is nothing new.

    Raises:
        ArgumentError: A certificate is about other weights than those of the model.
    """
    before = certificates(model.policy)
    added = [each for each in certificates(policy) if each not in before]
    if not added:
        return model.certified_for
    digest = model.weights_digest()
    if digest is not None and any(each.weights not in (None, digest) for each in added):
        raise ArgumentError(
            "policy",
            expected="one that was certified on a run of this model with the weights and buffers that it has now",
            got="a certificate for other weights: it says nothing of these",
            remedy="Record the calibration data again and certify on them; or take policy.policy, the policy inside, "
            "which promises nothing.",
        )
    return digest


def warn_of_certified_part(policy: ExitPolicy) -> None:
    """Warn where a part of a policy is certified, and not the whole."""
    if not isinstance(policy, Certified) and is_certified(policy):
        warn_of_part(stacklevel=4)


def warn_of_foreign_certificate(
    policy: ExitPolicy, model: _Certified, told: frozenset[frozenset[str]]
) -> frozenset[frozenset[str]]:
    """Warn where a policy that a run is given was certified for other weights than the model has.

    Args:
        policy: The policy.
        model: The model, all of whose weights are read where a certificate names others than before.
        told: The weights of which this was asked before.

    Returns:
        These, and those of this policy.
    """
    known = frozenset(each.weights for each in certificates(policy) if each.weights is not None)
    if not known or known in told:
        return told
    if known != {digest := model.weights_digest()} and digest is not None:
        warnings.warn(
            "The policy of this run was certified for other weights than those of the model: it promises nothing here. "
            "Record calibration data on this model and certify it; or pass policy.policy, the policy inside.",
            stacklevel=5,
        )
    return told | {known}


def has_stale_certificate(model: _Certified) -> bool:
    """Whether the policy, or the weights of the model, were others when it was certified, as far as is known."""
    if any(each.is_changed() for each in certificates(model.policy)):
        return True
    known = {each.weights or model.certified_for for each in certificates(model.policy)} - {None}
    return len(known) > 1 or (bool(known) and model.weights_digest() not in (None, *known))


def policy_to_hand_on(model: _Certified) -> ExitPolicy:
    """The policy that goes with the weights, into a file or a service: without a stale certificate, with a warning."""
    if not has_stale_certificate(model):
        return model.policy
    warn_of_stale_certificate()
    return ExitPolicy.from_dict(without_certificates(model.policy.to_dict()))


def warn_of_stale_certificate() -> None:
    """Say that a certificate is not written, since weights were changed."""
    warnings.warn(
        "The weights of this model, or its policy, were changed after its policy was certified: the policy goes on "
        "without the certificate. Record calibration data again, certify, and assign the policy to model.policy.",
        stacklevel=4,
    )


def warn_of_other_weights(model: _Certified) -> None:
    """Warn where what was loaded are not the weights for which the policy that was saved with them was certified."""
    if has_stale_certificate(model):
        warnings.warn(
            "The policy of this model was certified for other weights than were loaded (in another dtype, say): what "
            "is promised need not hold. Certify again, or load the model as it was saved.",
            stacklevel=4,
        )
