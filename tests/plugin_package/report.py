"""Run in a process that can see the installed plug-ins: prints as JSON what happened, for the tests to look at.

python report.py use FOLDER     everything, and a model with a plug-in policy is saved in FOLDER
python report.py load FOLDER    that model is loaded, where nothing of the package has been imported
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import ponder
from ponder import objectives, policies, priors, recipes

PACKAGE = "ponder_plugin_sample"


def imported() -> list[str]:
    return sorted(name for name in sys.modules if name.startswith((PACKAGE, "ponder.testing")))


def failure(call: Callable[[], Any]) -> list[str]:
    """Type and message of what `call` raises."""
    try:
        call()
    except Exception as error:
        return [type(error).__name__, str(error)]
    return []


def model() -> ponder.PonderWrapper:
    torch.manual_seed(0)
    step = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
    made = ponder.PonderWrapper(step, 6, head=nn.Linear(8, 3), lambda_head=ponder.LambdaHead(8)).eval()
    for weight in made.parameters():
        nn.init.normal_(weight, std=0.8)  # or all rows would leave at one step
    return made


def exits(of: ponder.PonderWrapper) -> list[int]:
    steps: list[int] = of(torch.randn(8, 8, generator=torch.Generator().manual_seed(1))).exit_step.tolist()
    return steps


def listing() -> dict[str, Any]:
    """What is known before anything of the package is imported."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        names = {kind.__name__.split(".")[1]: kind.names() for kind in (policies, priors, objectives, recipes)}
    return {"names": names, "warnings": [str(warning.message) for warning in seen], "imported": imported()}


def refusals() -> dict[str, list[str]]:
    return {
        "broken": failure(lambda: policies.get("broken-on-import")),
        "bad name": failure(lambda: policies.get("Bad Name")),
        "built-in with the plug-in's argument": failure(lambda: policies.get("quantile", level=0.5)),
        "unknown": failure(lambda: policies.get("steady")),
    }


def use(folder: str) -> dict[str, Any]:
    report: dict[str, Any] = {"after import ponder": imported(), "listing": listing(), "refusals": refusals()}
    report["built-in"] = repr(policies.get("quantile", q=0.5))

    from ponder_plugin_sample import good

    report["written without get"] = good.SteadyHazard().to_dict()
    report["of the taken name"] = failure(good.MyQuantile().to_dict)
    policy, recipe = policies.get("steady-hazard", level=0.45), recipes.get("steady", level=0.3)
    report["got"] = [repr(policy), repr(priors.get("linear")), repr(objectives.get("worst-step"))]
    report["recipe"] = [repr(recipe.policy), recipes.Recipe.from_dict(recipe.to_dict()) == recipe]

    from ponder.testing import check_backbone, check_objective, check_policy, check_prior

    check_policy(policy)
    check_prior(priors.get("linear"))
    check_objective(objectives.get("worst-step"))
    report["check of the taken name"] = failure(lambda: check_policy(good.MyQuantile()))

    made = model()
    made.policy, made.prior = policy, priors.get("linear")
    made.objective = objectives.Ponder(0.5) + 0.1 * objectives.get("worst-step")
    check_backbone(made, torch.randn(6, 8))
    ponder.save(made, folder)
    report["exits"] = exits(made)
    return report


def load(folder: str) -> dict[str, Any]:
    before = imported()
    made = ponder.load(model(), folder)
    return {"imported": before, "settings": made.settings(), "exits": exits(made)}


if __name__ == "__main__":
    print(json.dumps({"use": use, "load": load}[sys.argv[1]](sys.argv[2])))
