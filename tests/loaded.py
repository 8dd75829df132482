"""Files and lines of ours that a job has loaded when it is done: ``python -m tests.loaded [JOB …]``.

Each job runs in a process of its own. Files are counted after the work, so that a late import does
not hide one.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import ponder

ROOT = Path(ponder.__file__).parent
TEXTS = [f"{word} number {n}" for n in range(40) for word in ("my card", "a loan")]


def live_cheap(folder: Path) -> None:
    def ask(texts: Sequence[str]) -> list[str]:
        return ["card" if "card" in text else "loan" for text in texts]

    def cheap(texts: Sequence[str]) -> Any:
        return np.array([[0.9, 0.1] if "card" in text else [0.1, 0.9] for text in texts])

    named = {"cheap": cheap, "classes": ["card", "loan"]}
    ponder.Live(ask, level=0.05, path=folder / "labels.db", **named).answer(TEXTS)


def live_answer(folder: Path) -> None:
    def ask(texts: Sequence[str]) -> list[str]:
        return ["card" if "card" in text else "loan" for text in texts]

    ponder.Live(ask, level=0.05, path=folder / "labels.db").answer(TEXTS)


def certify_answers(folder: Path) -> None:
    from ponder.statistics.answers import certify_answers

    certify_answers(*np.loadtxt(folder / "answers.csv", delimiter=",").T)


def control_risk(folder: Path) -> None:
    outputs = np.random.default_rng(0).normal(size=(500, 4, 3))
    record = ponder.calibration.Record(outputs, None, np.arange(500), task="classification")
    ponder.control_risk(record, ponder.policies.Confidence, risk="disagreement", level=0.1)


def wrapper(folder: Path) -> None:
    from torch import nn, randn, zeros

    steps = [nn.Linear(8, 8) for _ in range(4)]
    parts = {"objective": ponder.objectives.FinalStep(), "policy": ponder.policies.Confidence(0.6)}
    model = ponder.PonderWrapper(steps, head=nn.Linear(8, 2), task="classification", **parts)
    model(randn(6, 8), labels=zeros(6).long()).loss.backward()
    model.eval()(randn(6, 8))


def loop(folder: Path) -> None:
    from torch import nn, randn

    block = ponder.loops.Block(8, heads=2)
    policy = ponder.policies.Confidence(0.5)
    ponder.loops.Loop(block, nn.Linear(8, 3), policy=policy).eval()(randn(2, 5, 8), max_steps=4)


def fit(folder: Path) -> None:
    from torch import nn, randn, zeros

    steps = [nn.Linear(8, 8) for _ in range(4)]
    rows = randn(6, 8)
    model = ponder.PonderWrapper.from_recipe(steps, "palbert", num_outputs=2, example=rows)
    ponder.fit(model, [{"inputs": rows, "labels": zeros(6).long()}], epochs=1)


def predict(folder: Path) -> None:
    from ponder.integrations.transformers import PonderForSequenceClassification as Classifier

    Classifier.from_finetuned(folder / "model").predict(["a b c", "d e"])


def advise(folder: Path) -> None:
    texts = (folder / "texts.txt").read_text().splitlines()
    ponder.advise(folder / "model", texts, disagreement=0.2)


JOBS = {
    "Live.answer": (live_answer, 4_000),
    "Live, cheap=": (live_cheap, 4_000),
    "certify_answers": (certify_answers, 2_500),
    "control_risk": (control_risk, 4_000),
    "PonderWrapper": (wrapper, 8_000),
    "Loop": (loop, None),
    "fit": (fit, 10_000),
    "predict": (predict, None),
    "advise": (advise, 18_000),
}
"""The jobs, each with the most lines of ours that it is to load; None without an aim."""


def write_inputs(folder: Path) -> None:
    """Write a fine-tuned model, texts for it, and a table of answers."""
    from tests.integrations.encoders import make_plain, make_tokenizer, some_texts

    make_plain().save_pretrained(folder / "model")
    make_tokenizer().save_pretrained(folder / "model")
    (folder / "texts.txt").write_text("\n".join(some_texts(400)))
    answers = np.arange(500) % 3
    np.savetxt(folder / "answers.csv", np.stack([answers, answers / 2, answers], 1), delimiter=",")


def measure(name: str, folder: Path) -> None:
    job, aim = JOBS[name]
    job(folder)
    places = {str(getattr(module, "__file__", None)) for module in sys.modules.values()}
    ours = [Path(place) for place in places if place.startswith(f"{ROOT}/")]
    lines = sum(len(file.read_text(encoding="utf-8").splitlines()) for file in ours)
    print(f"{name:16}{len(ours):6}{lines:8,}{aim or '–':>8}", flush=True)


if __name__ == "__main__" and sys.argv[1:2] == ["--job"]:
    measure(sys.argv[2], Path(sys.argv[3]))
elif __name__ == "__main__":
    os.environ["TQDM_DISABLE"] = "1"
    print(f"{'job':16}{'files':>6}{'lines':>8}{'aim':>8}", flush=True)
    with tempfile.TemporaryDirectory() as place:
        write_inputs(Path(place))
        for name in sys.argv[1:] or JOBS:
            subprocess.run([sys.executable, "-m", "tests.loaded", "--job", name, place], check=True)
