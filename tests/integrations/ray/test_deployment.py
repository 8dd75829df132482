"""What can be said of a deployment without a cluster: what is refused, and what its replicas tell Ray of themselves."""

from __future__ import annotations

import pickle
from types import SimpleNamespace
from typing import Any

import pytest

from ponder.errors import PonderError
from ponder.integrations.ray import deployment
from ponder.integrations.ray.deployment import Replica
from ponder.serving import create_app
from tests.ponder.checks import refused
from tests.ponder.serving.serving_toys import opened, served, toy


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_replica_that_answers_no_more_is_not_healthy() -> None:
    # Trap: Ray took it for healthy, and sent it requests for ever, each of which it refused at once.
    replica: Any = SimpleNamespace(app=create_app(served(toy())))
    async with opened(replica.app) as client:
        Replica.check_health(replica)
        assert (await client.post("/predict", json={"text": "kill"})).status_code == 503
        with pytest.raises(PonderError, match=r"ended with KeyboardInterrupt\('a thread that ends'\)") as caught:
            Replica.check_health(replica)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value), "or Ray logs that it cannot read it"


@pytest.mark.parametrize("options", [{"num_replicas": 2}, {"num_replicas": "auto"}, {"autoscaling_config": {}}])
def test_a_file_of_audits_is_for_one_replica(options: dict[str, Any]) -> None:
    with refused("audit_file", next(iter(options))):
        deployment("FOLDER", audit_file="audit.json", **options)


@pytest.mark.parametrize("limits", [{}, 256])
def test_limits_of_another_type_are_refused_before_a_replica_starts(limits: Any) -> None:
    for make in (lambda: deployment("FOLDER", limits), lambda: create_app(served(toy()), limits)):
        with refused("limits", "a Limits", "Limits(max_waiting=256)", type_error=True):
            make()


def test_another_word_for_batching_is_refused_before_a_replica_starts() -> None:
    with refused("batching", "'windows'"):
        deployment("FOLDER", batching="windows")  # type: ignore[arg-type]
