"""A policy together with the certificate under which it was chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ponder._utils.certificates import check_digest, json_digest
from ponder._utils.renaming import renamed_attribute
from ponder._utils.rounding import rounded_down, rounded_up
from ponder.errors import ArgumentError, PonderError
from ponder.policies.base import ExitPolicy, ModelSpec, PolicyWrapper, all_within, registry

__all__ = ["Certified", "certificates", "digest_of", "is_certified", "without_certificate"]


def certificates(policy: ExitPolicy) -> list[Certified]:
    """The certificates within a policy, the outermost first."""
    return [part for part in all_within(policy) if isinstance(part, Certified)]


def digest_of(policy: ExitPolicy) -> str | None:
    """By what a policy is known again; None where it cannot be written down, as one of a class without a name."""
    try:
        return json_digest(policy.to_dict())
    except PonderError:
        return None


def is_certified(policy: ExitPolicy) -> bool:
    """Whether there is a certificate within a policy."""
    return bool([part for part in all_within(policy) if isinstance(part, Certified)])


def without_certificate(policy: ExitPolicy) -> ExitPolicy:
    """The policy inside a certificate; any other as it is."""
    return policy.policy if isinstance(policy, Certified) else policy


@registry.register("certified")
@dataclass(frozen=True, repr=False)
class Certified(PolicyWrapper):
    """Does what the policy inside does; made by `ponder.control_risk`, saved with the model it was made for.

    Args:
        policy: The policy.
        statement: What is promised, in words.
        risk: Name of the risk.
        level: What it is kept under.
        confidence: Probability, over the draw of the calibration data, that the promise holds; None where the promise
            is about the mean over such draws (conformal risk control).
        bound: Name of the bound, or ``"conformal"``.
        rows: Number n of calibration rows.
        threshold_name: Name of the threshold that was chosen.
        threshold_value: Its value; None where none was certified and the policy is full depth.
        p_value: The p-value of the chosen threshold; None where there is none.
        path: The values that were tested, in order, with the empirical risk and the p-value of each.
        num_steps: N of the run that certified it, the only number of steps that it serves; None in files of before.
        policy_digest: Tells whether the policy inside is still as it was when it was certified; None where it cannot be
            written down, and in files of before.
        weights: SHA-256 of the weights of that run, the only ones that it is about; None where the trajectory did not
            tell them (`model.record` does, `model.unroll` does not), and in files of before.

    Example:
        >>> policy = ponder.control_risk(trajectory, policies.Confidence, level=0.05).policy
        >>> policy.risk, policy.level, policy.confidence, policy.threshold_name, policy.rows
        ('disagreement', 0.05, 0.95, 'threshold', 300)
    """

    statement: str
    risk: str
    level: float
    confidence: float | None
    bound: str
    rows: int
    threshold_name: str
    threshold_value: float | None
    p_value: float | None
    path: tuple[tuple[float, float, float], ...]
    num_steps: int | None = None
    weights: str | None = None
    policy_digest: str | None = None
    knob_name = renamed_attribute("knob_name", "threshold_name")
    knob_value = renamed_attribute("knob_value", "threshold_value")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.is_changed():
            raise ArgumentError(
                "policy",
                expected="the policy that was certified",
                got=f"{self.policy!r}, another one: the certificate says nothing of it",
                remedy="Certify it as well, or use it without a certificate.",
            )

    def is_changed(self) -> bool:
        """Whether the policy inside is known to be another than was certified: a scorer that learned on, say."""
        return self.policy_digest not in (None, digest_of(self.policy))

    def __repr__(self) -> str:
        promise = f"{self.risk} ≤ {rounded_up(self.level)}"
        if self.threshold_value is None:
            promise = f"nothing certified for {promise}"
        promise += " in the mean" if self.confidence is None else f" with confidence {rounded_down(self.confidence)}"
        p_value = "" if self.p_value is None else f", p = {self.p_value:.2g}"
        return f"Certified({self.policy!r}, {promise}, {self.bound}, {self.rows} rows{p_value})"

    def rescaled(self, tuned_for: int, num_steps: int) -> Any:
        """The policy for another number of steps, of which nothing is certified; itself where it is the same number."""
        return self if tuned_for == num_steps else self.policy.rescaled(tuned_for, num_steps)

    def check(self, spec: ModelSpec) -> None:
        """Refuse another number of steps than that of the run that certified the policy, too."""
        super().check(spec)
        if self.num_steps not in (None, spec.num_steps):
            raise ArgumentError(
                "policy",
                expected=f"one that is certified for {spec.num_steps} steps",
                got=f"a certificate for {self.num_steps}: it says nothing of others",
                remedy="Run the policy inside, policy.policy, without a promise, or certify it on such a run. One for "
                f"another length of a loop goes with the call, model(…, policy=policy, num_steps={self.num_steps}), or "
                "into a model that is built with so many steps and loads the weights.",
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, with a digest of them all: a certificate is about one policy, and no other."""
        data = super().to_dict()
        return {**data, "digest": json_digest(data)}

    @classmethod
    def decode(cls, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Fields as `to_dict` gave them, also those of version 0.1, in which a threshold was called a knob.

        Raises:
            ArgumentError: Something was changed since the certificate was written, its policy, say.
        """
        fields = dict(fields)
        check_digest({"name": cls.registry.name_of(cls), **fields})
        fields.pop("digest", None)
        old = {"knob_name": "threshold_name", "knob_value": "threshold_value"}
        return super().decode({old.get(name, name): value for name, value in fields.items()})
