"""A policy learned from data: a module scores the features, and a row leaves where the score is high."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from ponder._utils.modes import evaluating
from ponder._utils.numerics import at_least_float32
from ponder._utils.registry import Registry
from ponder._utils.trees import Tree
from ponder._utils.validation import check_real, check_type
from ponder.errors import ArgumentError
from ponder.policies.base import StepView, ThresholdPolicy, registry
from ponder.policies.threshold import Threshold

__all__ = ["Learned", "LinearScorer", "scorers"]

scorers: Registry[nn.Module] = Registry("scorer", "ponder.scorers")


@scorers.register("linear")
class LinearScorer(nn.Linear):
    """A linear layer that gives one logit from `width` features.

    A scorer that is to be saved with its policy has a registered name and `settings()`, the arguments of its class.

    Example:
        >>> scorer = policies.LinearScorer(width=8)
        >>> scorer(inputs).shape
        torch.Size([300, 1])
        >>> "linear" in policies.scorers.names()
        True
    """

    def __init__(self, width: int) -> None:
        super().__init__(width, 1)

    def settings(self) -> dict[str, Any]:
        """Arguments that build a scorer of the same shape."""
        return {"width": self.in_features}


@registry.register("learned")
@dataclass(frozen=True, eq=False)
class Learned(ThresholdPolicy):
    """Stop once a module of the user's is sure enough: sigmoid(scorer(features)) > threshold.

    Train the module on a trajectory that kept its features, for example to tell whether the answer of a step is right;
    then choose the threshold with `ponder.calibrate`. To save it with a model, register its class
    (``policies.scorers.register("my-scorer")``) and give it a method `settings()`; its weights are stored as numbers.

    Args:
        scorer: Features `(batch, …)` → logits `(batch,)` or `(batch, 1)`. Not trained here; it decides in evaluation
            mode, and keeps its own.
        threshold: The probability above which a row leaves, in [0, 1].

    Example:
        >>> policy = policies.Learned(policies.LinearScorer(8), threshold=0.5)
        >>> model.eval()(inputs, policy=policy).exit_step.shape
        torch.Size([300])
    """

    scorer: nn.Module
    threshold: float
    needs = frozenset({"features"})
    tunable = Threshold("threshold", "above")

    def __post_init__(self) -> None:
        check_real("threshold", self.threshold, 0.0, 1.0)
        check_type("scorer", self.scorer, nn.Module)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Learned) or self.threshold != other.threshold:
            return NotImplemented if not isinstance(other, Learned) else False
        if self.scorer is other.scorer:
            return True
        own, theirs = self.scorer.state_dict(), other.scorer.state_dict()
        alike = type(self.scorer) is type(other.scorer) and own.keys() == theirs.keys()
        return alike and all(torch.equal(own[key].cpu(), theirs[key].cpu()) for key in own)

    def __hash__(self) -> int:
        return hash((type(self.scorer), self.threshold))

    def statistic(self, step: StepView, state: Tree) -> tuple[Tensor, Tree]:
        features, scorer = step.features, self.scorer
        weights = [*scorer.parameters(), *scorer.buffers()]
        floating = [tensor.dtype for tensor in weights if tensor.is_floating_point()]
        dtype = reduce(torch.promote_types, floating, features.dtype)  # the finer of the two judges
        if any(kind != dtype for kind in floating) or any(tensor.device != features.device for tensor in weights):
            scorer = copy.deepcopy(scorer).to(features.device, dtype)  # other threads may be using the one that is held
        with evaluating(scorer), torch.no_grad():  # it may be trained between runs
            logits = scorer(features.to(dtype))
        if not isinstance(logits, Tensor) or logits.numel() != features.shape[0]:
            raise ArgumentError(
                "scorer",
                expected=f"one logit for each of {features.shape[0]} rows",
                got=f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__,
                remedy="Return (batch,) or (batch, 1).",
            )
        return at_least_float32(logits.detach().reshape(-1)).sigmoid(), state

    def to_dict(self) -> dict[str, Any]:
        name = scorers.name_of(type(self.scorer))
        weights = {key: [str(value.dtype)[6:], value.tolist()] for key, value in self.scorer.state_dict().items()}
        if not callable(getattr(self.scorer, "settings", None)):
            raise ArgumentError(
                "scorer",
                expected="a scorer with a method settings(), which gives the arguments of its class",
                got=type(self.scorer).__name__,
                remedy="Write it: def settings(self): return {'width': self.width}, say.",
            )
        scorer = {"name": name, "settings": self.scorer.settings(), "weights": weights}  # type: ignore[operator]
        return {"name": registry.name_of(type(self)), "scorer": scorer, "threshold": self.threshold}

    @classmethod
    def decode(cls, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Fields as `to_dict` gave them, with the module built again."""
        data = fields["scorer"]
        scorer = scorers.get(data["name"], **data["settings"])
        weights = {
            key: torch.tensor(value, dtype=getattr(torch, kind)) for key, (kind, value) in data["weights"].items()
        }
        try:
            scorer.load_state_dict(weights)
        except RuntimeError as error:
            raise ArgumentError(
                "scorer", expected="weights of the shape of its settings", got="others", remedy=f"({error})"
            ) from error
        return {**fields, "scorer": scorer}
