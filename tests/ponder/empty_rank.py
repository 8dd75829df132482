"""Two processes that train one model, of which the second has an empty batch now and then.

    RANK=0 python empty_rank.py FOLDER

Each rank writes, as JSON, its losses and a checksum of the weights.
"""

import datetime
import json
import os
import sys
from pathlib import Path

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

import ponder
from ponder import objectives

torch.set_num_threads(1)
WIDTH, ROWS = 6, 5


def build(kind):
    torch.manual_seed(0)
    steps = [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(3)]
    if kind == "ponder":
        lambda_head = ponder.LambdaHead(WIDTH, layers=2, history=2)
        return ponder.PonderWrapper(steps, head=nn.Linear(WIDTH, 2), lambda_head=lambda_head, task="classification")
    heads = ponder.PerStep(nn.Linear(WIDTH, 2) for _ in range(3))
    objective = objectives.DeepSupervision("uniform")
    return ponder.PonderWrapper(steps, head=heads, objective=objective, task="classification")


def train(kind, rank):
    model = DistributedDataParallel(build(kind))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for turn in range(4):
        rows = 0 if rank == 1 and turn % 2 else ROWS
        generator = torch.Generator().manual_seed(10 * turn + rank)
        x = torch.randn(rows, WIDTH, generator=generator)
        out = model(x, labels=torch.zeros(rows, dtype=torch.long))
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        losses.append(out.loss.item())
    return {"losses": losses, "weights": [p.double().sum().item() for p in model.parameters()]}


if __name__ == "__main__":
    rank, folder = int(os.environ["RANK"]), Path(sys.argv[1])
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'meeting'}",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=60),  # a rank that waits in vain gives up
    )
    told = {kind: train(kind, rank) for kind in ("ponder", "per step")}
    (folder / f"told-{rank}.json").write_text(json.dumps(told))
    distributed.barrier()  # neither goes while the other still listens
    distributed.destroy_process_group()
    os._exit(0)  # gloo's threads may outlive the interpreter, which then aborts
