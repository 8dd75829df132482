"""One table of example arguments for every registered plug-in; the contract suites run over all of it.

A plug-in that is registered without a row here fails `test_every_…_has_an_example`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from ponder import objectives, policies, priors
from ponder.policies import Bernoulli, Confidence, Entropy, Margin, Patience, Quantile


@dataclass(frozen=True)
class Example:
    """Arguments of a plug-in, and the task it is tried on."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    task: str = "classification"

    def __str__(self) -> str:
        given = ",".join(f"{key}={value}" for key, value in self.arguments.items())
        return f"{self.name}({given})" + ("" if self.task == "classification" else f"-{self.task}")


CERTIFICATE = {
    "statement": "error on fresh data is at most 0.05 with confidence 0.95",
    "risk": "error",
    "level": 0.05,
    "confidence": 0.95,
    "bound": "betting",
    "rows": 900,
    "threshold_name": "threshold",
    "threshold_value": 0.7,
    "p_value": 0.04,
}

POLICIES = [
    Example("after", {"policy": Quantile(0.3), "step": 3}),
    Example("after", {"policy": Patience(1), "step": 3}),
    Example("all", {"policies": (Quantile(0.4), Confidence(0.6))}),
    Example("any", {"policies": (Patience(2), Entropy(0.3), Bernoulli(1))}),
    Example("before", {"policy": Bernoulli(7), "step": 4}),
    Example("bernoulli", {"seed": 0}),
    Example("bernoulli", {"seed": -(2**70) - 1}),
    Example("certified", {"policy": Confidence(0.7), "path": ((0.9, 0.0, 0.01), (0.7, 0.01, 0.04)), **CERTIFICATE}),
    Example("confidence", {"threshold": 0.8}),
    Example("converged", {"patience": 2}),
    Example("converged", {"tolerance": 0.5, "patience": 1}, task="regression"),
    Example("converged", {"tolerance": 0.4, "patience": 1}, task="multilabel"),
    Example("energy", {"threshold": 0.8}),
    Example("entropy", {"threshold": 0.5}),
    Example("entropy", {"threshold": 0.5, "normalize": True}),
    Example("fixed-step", {"step": 2}),
    Example("last-step"),
    Example("margin", {"threshold": 0.6}),
    Example("patience", {"patience": 2}),
    Example("patience", {"patience": 1, "tolerance": 0.5}, task="regression"),
    Example("patience", {"patience": 1}, task="multilabel"),
    Example("quantile", {"q": 0.5}),
    Example("quantile", {"q": 0.0}),
    Example("quantile", {"q": 1.0}),
    Example("quantile", {"q": 0.7}, task="regression"),
    Example("tempered", {"policy": Entropy(0.4), "temperatures": (2.5,)}),
    Example("tempered", {"policy": Quantile(0.4) | Margin(0.7), "temperatures": (0.5,)}),
    Example("voting", {"votes": 2}),
    Example("voting", {"votes": 3}),
]

# Fitted to one number of steps, or to the features of one model: each has contracts of its own.
FITTED_POLICIES = {"expected", "gate", "learned"}

OBJECTIVES = [
    *(
        Example("ponder", {"beta": 0.5, "kl": kl, "likelihood": likelihood})
        for kl in ("posterior_prior", "prior_posterior")
        for likelihood in ("expected_log", "log_expected")
    ),
    Example("ponder", {"beta": 0.1}, task="regression"),
    Example("alignment", {"weight": 0.7}),
    Example("alignment", {}, task="regression"),
    Example("alternating", {"even": objectives.FinalStep(), "odd": objectives.DeepSupervision("uniform")}),
    Example("alternating", {"even": objectives.SimulatedExits(), "odd": objectives.FinalStep()}),
    Example("deep-supervision"),
    Example("deep-supervision", {"weights": "uniform"}, task="multilabel"),
    Example("final-step"),
    Example("random-depth", {"minimum": 1, "maximum": 3, "warm_up": 2}),
    Example("distillation", {"temperature": 2.0, "weight": 0.7}),
    Example("distillation", {"temperature": 3.0}, task="multilabel"),
    Example("distillation", {}, task="regression"),
    Example("distillation", {"temperature": 2.0, "teacher": "frozen"}),
    Example("distillation", {"weight": 0.5, "teacher": "frozen"}, task="multilabel"),
    Example("distillation", {"teacher": "frozen"}, task="regression"),
    Example("distillation", {"teacher": "frozen", "step": 1, "temperature": 2.0}),
    Example("distillation", {"teacher": "frozen", "step": 1}, task="regression"),
    Example("mutual-distillation", {"temperature": 2.0}),
    Example("mutual-distillation", {}, task="regression"),
    Example("mutual-distillation", {"temperature": 0.5}, task="multilabel"),
    Example("one-step", {"step": 1}),
    *(
        Example("signal-calibration", {"margin": 0.3, "signal": signal})
        for signal in ("confidence", "energy", "margin", "negative_entropy")
    ),
    *(
        Example("simulated-exits", {"thresholds": 4, "sharpness": 5.0, "signal": signal})
        for signal in ("confidence", "energy", "margin", "negative_entropy", "halting")
    ),
    Example("simulated-exits", {"signal": "halting"}, task="regression"),
    Example(
        "weighted",
        {"objectives": (objectives.Ponder(0.2), objectives.FinalStep()), "weights": (0.5, 2.0)},
    ),
]

PRIORS = [
    Example("at-depth", {"depth": 0.3}),
    Example("at-depth", {"depth": 0.7, "family": "poisson"}),
    Example("geometric", {"rate": 0.1}),
    Example("geometric", {"rate": 0.9}),
    Example("uniform"),
    Example("poisson", {"mean": 3.5}),
    Example("normal", {"mean": 2.5, "std": 1.5}),
    Example("categorical", {"probabilities": (0.1, 0.2, 0.3, 0.1, 0.3)}),
    Example("empirical", {"probabilities": (0.05, 0.5, 0.25, 0.15, 0.05)}),
    Example("learned", {"num_steps": 5}),
    Example("learned", {"num_steps": 5, "initial": priors.Geometric(0.3)}),
]

RECIPES = [
    Example("vanilla"),
    Example("pondernet", {"beta": 0.1}),
    Example("leebert", {"weight": 0.5}),
    Example("palbert-deep"),
    Example("palbert-deep", {"per_step_heads": True}),
    Example("palbert-distill"),
    Example("palbert-prior", {"depth": 0.3}),
    Example("palbert-joint"),
    Example("palbert-joint", {"per_step_heads": False, "start": False}),
    Example("ponder"),
    Example("ponder", {"joint": True}),
    Example("ponder", {"alignment": 0.1}),
    Example("ponder", {"heads": "norms"}),
    Example("ponder", {"joint": True, "heads": "norms", "early_gradient": "equilibrium", "alternating": True}),
    Example("ponder", {"alternating": True}),
    Example("cosee", {"thresholds": 3}),
    Example("ponder", {"labels": 0.5, "temperature": 2.0}),
    Example("static", {"k": 2}),
    Example("static", {"k": 2, "taught": True, "temperature": 2.0}),
    Example("palbert"),
    Example("palbert", {"q_exit": False}),
    Example("palbert", {"own_lambda_lr": False, "deep_lambda": False, "hidden_concat": False}),
    Example("pabee"),
    Example("deebert", {"threshold": 0.4}),
    Example("fastbert"),
]


def in_turn(examples: list[Example], names: Sequence[str], each: int) -> list[Any]:
    """Every example with `each` of the names, in turn, so that every name meets many: parameters (name, example)."""
    pairs = ((names[(n * each + k) % len(names)], case) for n, case in enumerate(examples) for k in range(each))
    return [pytest.param(name, case, id=f"{case}-{name}") for name, case in pairs]


def make_policy(example: Example) -> Any:
    return policies.get(example.name, **example.arguments)


def make_objective(example: Example) -> Any:
    return objectives.get(example.name, **example.arguments)


def make_prior(example: Example) -> Any:
    return priors.get(example.name, **example.arguments)
