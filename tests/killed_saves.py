"""Savers that are killed again and again; a program of its own, since it forks.

    python killed_saves.py SAVER FOLDER KILLS SEED

SAVER is ``wrapper`` (`ponder.save`) or ``transformers`` (`save_pretrained`). Save number n has n in its policy and in
every weight. A child dies either of SIGKILL at one of its file operations, before it, or of SIGALRM at any instruction.
After every death the folder is loaded: what is there must be one whole save, the one before or the new one. Then savers
whose disk is full, and four at once, with a loader beside them. It prints, as JSON, how often each was seen.
"""

import json
import os
import random
import resource
import signal
import sys
from pathlib import Path

import torch
from torch import nn

import ponder
from ponder import policies
from ponder.errors import ArgumentError

torch.set_num_threads(1)
EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.scandir", "os.chmod", "shutil.rmtree"}
STEPS = 1000


class Wrapper:
    """`ponder.save` and `ponder.load`."""

    unnumbered = frozenset[str]()

    def __init__(self):
        self.model = ponder.PonderWrapper(
            nn.Linear(64, 64), num_steps=STEPS, head=nn.Linear(64, 2), policy=policies.FixedStep(1)
        )

    def save(self, folder):
        ponder.save(self.model, folder)

    def load(self, folder):
        return ponder.load(self.model, folder)

    @staticmethod
    def set_policy(model, number):
        model.policy = policies.FixedStep(number)


class Transformers(Wrapper):
    """`save_pretrained` and `from_pretrained`; the number is in the configuration, as the policy is."""

    unnumbered = frozenset({"README.md", "ponder_classes.py"})

    def __init__(self):
        from transformers import BertConfig, BertModel, logging

        from ponder.integrations.transformers import PonderForSequenceClassification

        logging.disable_progress_bar()
        logging.set_verbosity_error()
        sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1, "vocab_size": 8}
        encoder = BertModel(BertConfig(**sizes, num_hidden_layers=1, max_position_embeddings=8))
        self.model = PonderForSequenceClassification.from_encoder(encoder, "palbert")

    def save(self, folder):
        self.model.save_pretrained(folder)

    def load(self, folder):
        return type(self.model).from_pretrained(folder)

    @staticmethod
    def set_policy(model, number):
        model.policy = policies.Quantile(number / STEPS)


def save(saver, folder, number):
    with torch.no_grad():
        for parameter in saver.model.parameters():
            parameter.fill_(number)
    saver.set_policy(saver.model, number)
    saver.save(folder)


def number_in(saver, folder):
    """The number of the save in a folder; a save of two halves has two numbers."""
    model = saver.load(folder)
    policy = model.policy
    told = policy.step if isinstance(policy, policies.FixedStep) else round(policy.q * STEPS)
    found = {int(value) for parameter in model.parameters() for value in parameter.unique()}
    assert found == {told}, f"mixed: policy {told}, weights {found}"
    return told


def child(work):
    """Fork, do `work`, and give back how the child ended."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            os._exit(1)
        os._exit(0)
    return pid


def ended(pid):
    return os.waitpid(pid, 0)[1]


def watch(folder, fatal=None):
    """Count what is done to files in `folder`, and die of the `fatal`-th."""
    count = [0]

    def hook(event, arguments):
        if event in EVENTS and any(str(a).startswith(str(folder)) for a in arguments[:2]):
            count[0] += 1
            if count[0] == fatal:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return count


def operations(saver, folder, number):
    """How many file operations a save has."""
    read, write = os.pipe()

    def work():
        count = watch(folder)
        save(saver, folder, number)
        os.write(write, str(count[0]).encode())

    assert ended(child(work)) == 0
    return int(os.read(read, 20))


def kill(saver, folder, number, draw, most):
    """A save that is killed, unless it is quicker; gives whether it was."""
    if draw.random() < 0.7:
        fatal = draw.randrange(1, most + 1)

        def work():
            watch(folder, fatal)
            save(saver, folder, number)
    else:
        after = draw.uniform(0.0005, 0.02)

        def work():
            signal.setitimer(signal.ITIMER_REAL, after)
            save(saver, folder, number)

    return os.WIFSIGNALED(ended(child(work)))


def kills(saver, folder, wanted, draw):
    """Old or new after every death, and no litter after a save that lives."""
    save(saver, folder, 1)
    present, seen = 1, {"killed": 0, "old": 0, "new": 0}
    most = operations(saver, folder, 1)
    number = 1
    while seen["killed"] < wanted:
        number = number % (STEPS - 1) + 1
        killed = kill(saver, folder, number, draw, most)
        found = number_in(saver, folder)
        assert found in ((present, number) if killed else (number,)), (present, number, found)
        if killed:
            seen["killed"] += 1
            seen["new" if found == number else "old"] += 1
        present = found
    save(saver, folder, 1)
    left = {path.name for path in folder.iterdir()}
    assert saver.unnumbered <= left, left
    assert len(left - saver.unnumbered) == 2, left  # the description and the weights
    return seen


def full_disks(saver, folder, draw, times=6):
    """Savers that may write only so many bytes a file: an error, and the save before."""
    save(saver, folder, 5)
    largest = max(path.stat().st_size for path in folder.iterdir())
    for _ in range(times):
        limit = draw.randrange(largest)

        def work(limit=limit):
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            try:
                save(saver, folder, 6)
            except ArgumentError:
                return
            raise AssertionError("no error")

        assert ended(child(work)) == 0
        assert number_in(saver, folder) == 5
        assert len(list(folder.iterdir())) == 2 + len(saver.unnumbered)
    return times


def crowd(saver, folder, rounds=5):
    """Four savers at once, and loads beside them: always one whole save."""
    save(saver, folder, 1)

    def work(own):
        for turn in range(rounds):
            save(saver, folder, own * 100 + turn)

    running = [child(lambda own=own: work(own)) for own in range(1, 5)]
    loads = 0
    while running:
        number_in(saver, folder)
        loads += 1
        for pid in list(running):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                assert status == 0
                running.remove(pid)
    assert number_in(saver, folder) % 100 == rounds - 1
    assert len(list(folder.iterdir())) == 2 + len(saver.unnumbered), sorted(path.name for path in folder.iterdir())
    return loads


if __name__ == "__main__":
    name, place, wanted, seed = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    made = {"wrapper": Wrapper, "transformers": Transformers}[name]()
    random_numbers = random.Random(seed)
    told = {"deaths": kills(made, place, wanted, random_numbers)}
    told["full disks"] = full_disks(made, place, random_numbers)
    told["loads beside four savers"] = crowd(made, place)
    print(json.dumps(told))
