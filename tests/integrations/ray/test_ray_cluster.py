"""The service on Ray Serve and `Predictor` in Ray Data, on a local cluster that is started for them."""

from __future__ import annotations

import os
import socket
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import ponder
from ponder.integrations.ray import Predictor, deployment
from ponder.serving import Limits
from tests.exits_folder import NAMES, make_folder
from tests.word_tokenizer import WORDS

ray: Any = pytest.importorskip("ray", reason="the tests of Ray need the extra ray, which CI does not install")
pytest.importorskip("ray.serve", reason="the tests of Ray Serve need the extra ray, which CI does not install")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]  # Ray's own warnings are not ours

TEXTS = [" ".join(WORDS[n : n + 5]) for n in range(24)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    root = str(Path(ponder.__file__).parents[1])
    here = {"env_vars": {"PYTHONPATH": root, "OMP_NUM_THREADS": "1", "RAY_SERVE_LOG_TO_STDERR": "0"}}
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env=here)
        yield
        ray.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("model"))


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def test_bulk_answers_are_those_of_one_process(cluster: None, folder: Path) -> None:
    expected = Predictor(folder)({"text": TEXTS})
    rows = ray.data.from_items([{"row": n, "text": text} for n, text in enumerate(TEXTS)])
    answered = rows.map_batches(
        Predictor, fn_constructor_args=(str(folder),), compute=ray.data.ActorPoolStrategy(size=1), batch_size=10
    ).take_all()
    found = {row["row"]: (row["label"], row["exit_step"]) for row in answered}
    assert found == {
        n: (label, step)
        for n, (label, step) in enumerate(zip(expected["label"].tolist(), expected["exit_step"].tolist(), strict=True))
    }
    assert {label for label, _ in found.values()} <= set(NAMES.values())


def test_the_service_answers_on_ray_serve(cluster: None, folder: Path) -> None:
    from ray import serve

    expected = Predictor(folder)({"text": TEXTS})
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        app = deployment(folder, Limits(max_texts=24), ray_actor_options={"num_cpus": 0.5})
        serve.run(app, name="ponder", route_prefix="/")
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
            told = client.post("/predict", json={"texts": TEXTS})
            assert told.status_code == 200, told.text
            assert [a["label"] for a in told.json()["answers"]] == expected["label"].tolist()
            assert [a["exit_step"] for a in told.json()["answers"]] == expected["exit_step"].tolist()
            assert client.post("/predict", json={"texts": ["w1"] * 25}).status_code == 422
            assert client.get("/healthz").json()["status"] == "ok"
            assert 'ponder_requests_total{outcome="answered"} 1.0' in client.get("/metrics").text
    finally:
        serve.shutdown()
