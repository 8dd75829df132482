"""Runs sweeps of tiny runs that are killed again and again; a program of its own, since it forks.

    python killed_sweeps.py BACKBONE GLUE_DIR FOLDER KILLS LOCAL_KILLS

It prints, as JSON, the results of an undisturbed sweep, those of every sweep that was killed, and how often it was:
sweeps in one process, until there were KILLS deaths, and one in a pool of processes, after LOCAL_KILLS deaths. A child
dies either of SIGKILL at one of its file operations, before it, or of SIGALRM at any instruction.
"""

import json
import os
import random
import signal
import sys
import threading
import time
from multiprocessing.context import ForkContext
from pathlib import Path

from benchmarks.glue import curves, run
from benchmarks.glue.sweeping import executors
from benchmarks.glue.sweeping.suite import RecipeSpec, Suite
from benchmarks.glue.sweeping.sweep import sweep

RECIPES = (RecipeSpec("deebert"), RecipeSpec("fastbert"))
FIXED = {"epochs": 3, "stop_after": 1, "batch_size": 16}
SUITE = Suite("killed", "", ("RTE",), RECIPES, FIXED, {"lr": [1e-3, 3e-3]}, 1)
FILE_EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.scandir"}

run.measure_speed_ups = lambda *arguments, **options: {}  # a matter of the clock, which no two sweeps agree on
curves._TRIED = 21  # half of the time of a tiny run


class ForkedWorkers(ForkContext):
    """Workers are forked, where by `spawn` each would import everything; a line ends with the sweep all the same."""

    def Pipe(self, duplex=True):
        theirs, ours = super().Pipe(duplex)
        os.register_at_fork(after_in_child=ours.close)
        return theirs, ours


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def do(backbone, glue_dir, folder, local=False, outlives_a_run=True):
    if local:
        executors.multiprocessing.get_context = lambda method: ForkedWorkers()
    with executors.local(threads=1) if local else executors.inline() as submitted:

        def submit(job):
            future = submitted(job)
            if not outlives_a_run:
                future.add_done_callback(die)
            return future

        places = {"glue_dir": Path(glue_dir), "out": folder / "out", "work": folder / "work"}
        summary = sweep(SUITE.cells(backbone), submit, workers=2 if local else 1, **places)
    assert not summary.failures, [(o.error, o.details) for o in summary.failures]
    assert summary.done == 4


def watch_files(folder, fatal=None):
    """Count what is done to files in `folder`, and die of the `fatal`-th."""
    count = [0]

    def hook(event, arguments):
        if event in FILE_EVENTS and arguments and str(arguments[0]).startswith(str(folder)):
            count[0] += 1
            if count[0] == fatal:
                die()

    sys.addaudithook(hook)
    return count


def child(work):
    """Fork, do `work`, and give back how the child ended."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1]


def die_at(work, before):
    """Kill this process once there is a checkpoint that was not there before."""
    while set(work.rglob("checkpoint-*")) <= before:
        time.sleep(0.01)
    die()


def results(folder):
    """Everything that training and selection decide; and whatever else lies around, by name."""
    kept = ("splits", "policy", "config", "num_steps")
    found = {}
    for path in sorted((folder / "out").rglob("*")):
        if path.suffix == ".json" and "chosen" not in path.parts:
            data = json.loads(path.read_text())
            stages = [{k: v for k, v in stage.items() if k != "seconds"} for stage in data["training"]]
            found[str(path.relative_to(folder))] = {**{name: data[name] for name in kept}, "training": stages}
        elif path.suffix == ".json":
            found[str(path.relative_to(folder))] = json.loads(path.read_text())
        elif path.is_file():
            found[str(path.relative_to(folder))] = "left behind"
    found["work"] = sorted(str(path.relative_to(folder)) for path in (folder / "work").rglob("*") if path.is_file())
    return found


def main(backbone, glue_dir, folder, kills, local_kills):
    rng = random.Random(0)
    whole = folder / "whole"

    def undisturbed():
        count = watch_files(whole)
        do(backbone, glue_dir, whole)
        (folder / "events").write_text(str(count[0]))

    started = time.monotonic()
    assert child(undisturbed) == 0
    seconds, events = time.monotonic() - started, int((folder / "events").read_text())
    most = max(kills, 20)  # a death for each twentieth of a sweep, though there may be fewer

    def by_file_or_clock(place, attempt):
        """Killed so early that progress between two deaths is a fraction of the sweep."""
        if attempt % 2:
            signal.setitimer(signal.ITIMER_REAL, rng.uniform(0.01, 4 * seconds / most))
        else:
            watch_files(place, rng.randint(1, max(4 * events // most, 2)))

    def at_work(place, attempt):
        """Killed as soon as its workers have trained something more; at the latest when one of them has done a run."""
        before = set((place / "work").rglob("checkpoint-*"))
        threading.Thread(target=die_at, args=(place / "work", before), daemon=True).start()

    def killed(place, disturb, most, local=False):
        """A sweep that dies until it has died so often, or is done; its results, and the deaths."""
        for deaths in range(most + 1):

            def disturbed(deaths=deaths):
                if deaths < most:
                    disturb(place, deaths)
                do(backbone, glue_dir, place, local=local, outlives_a_run=not (local and deaths < most))

            rng.random()  # the child draws from a copy, which has to differ from one attempt to the next
            status = child(disturbed)
            if status == 0:
                return {"results": results(place), "deaths": deaths}
            assert os.WIFSIGNALED(status), "it ended by itself, with an error"
        raise AssertionError("nothing disturbed it, and it died")

    inline = []
    while (died := sum(sweep["deaths"] for sweep in inline)) < kills:
        inline.append(killed(folder / f"killed-{len(inline)}", by_file_or_clock, kills - died))
    local = [killed(folder / "local", at_work, local_kills, local=True)]
    print(json.dumps({"whole": results(whole), "inline": inline, "local": local, "events": events}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
