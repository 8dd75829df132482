"""One run, alone or under `torchrun`, with the loss of every step; dropout is off, for the masks are drawn by process.

python data_parallel_run.py BACKBONE GLUE_DIR FOLDER
"""

import json
import os
import sys
from pathlib import Path

import torch

from benchmarks.glue import curves, run, training
from benchmarks.glue.config import RunConfig

torch.set_num_threads(1)
real_build, real_arguments = training.build, training._arguments


def build(*arguments):
    model = real_build(*arguments)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "dropout_prob", None), float):
            module.dropout_prob = 0.0
    return model


def arguments(*given):
    made = real_arguments(*given)
    made.logging_strategy, made.logging_steps = "steps", 1
    return made


losses = []


class Recorder(training._Trainer):
    def log(self, logs, *arguments, **keywords):
        if "loss" in logs:
            losses.append(logs["loss"])
        super().log(logs, *arguments, **keywords)


training.build, training._arguments, training._Trainer = build, arguments, Recorder
run.measure_speed_ups = lambda *arguments, **options: {}
curves._TRIED = 21  # half of the time of a tiny run
written = []
real_save = run.Result.save
run.Result.save = lambda self, path: (written.append(path.name), real_save(self, path))

if __name__ == "__main__":
    backbone, glue_dir, folder = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    # 48 of 53 examples train: three steps of 16, all full.
    config = RunConfig("RTE", "palbert", backbone, epochs=2, batch_size=16, lr=1e-3, max_train=53)
    result = run.run(config, glue_dir, folder / "out", folder / "work", progress=False)
    rank = os.environ.get("RANK", "0")
    told = {"losses": losses, "written": written, "splits": result["splits"]}
    (folder / f"told-{rank}.json").write_text(json.dumps(told))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
