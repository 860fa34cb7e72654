"""Trains a small network on made-up data with DistributedDataParallel: plain PyTorch, started by plain `torchrun train.py`.

Nothing here knows of Kubernetes or of an operator: torchrun finds its rendezvous in the environment. Works with any number of processes.
"""

# ruff: noqa: E402 - the clock starts before torch is imported, since the import is part of what a user waits for
import time

started = time.time()

import argparse
import json
import os
import socket

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

FEATURES, CLASSES, BATCH = 64, 10, 64


def batch(teacher: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Random points, and the class that a fixed linear teacher gives them."""
    points = torch.randn(BATCH, FEATURES, generator=generator)
    return points, (points @ teacher).argmax(dim=1)


def mean_over_world(loss: torch.Tensor) -> float:
    """The loss averaged over all processes."""
    total = loss.detach().clone()
    dist.all_reduce(total)
    return float(total / dist.get_world_size())


def main() -> None:
    """Trains, prints the loss on rank 0, and ends with one line of JSON on every rank."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--report-every", type=int, default=50)
    options = parser.parse_args()

    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    # The same teacher and the same first weights everywhere; other data on every rank, the same in every run.
    torch.manual_seed(0)
    teacher = torch.randn(FEATURES, CLASSES)
    model = DistributedDataParallel(nn.Sequential(nn.Linear(FEATURES, 128), nn.ReLU(), nn.Linear(128, CLASSES)))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    generator = torch.Generator().manual_seed(1 + rank)

    first_loss = last_loss = first_step = 0.0
    for step in range(1, options.steps + 1):
        points, classes = batch(teacher, generator)
        loss = nn.functional.cross_entropy(model(points), classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step == 1:
            first_step = time.time()
        if step in (1, options.steps) or step % options.report_every == 0:
            last_loss = mean_over_world(loss)
            first_loss = first_loss or last_loss
            if rank == 0:
                print(f"step {step:4d}  loss {last_loss:.4f}  world size {world}", flush=True)

    result = {
        "rank": rank,
        "world_size": world,
        "pod": os.environ.get("RDZV_POD_NAME") or socket.gethostname(),
        "node": os.environ.get("RDZV_NODE_NAME", ""),
        "first_loss": first_loss,
        "last_loss": last_loss,
        "started": started,
        "first_step": first_step,
        "ended": time.time(),
    }
    # In one write: with several processes in a pod, their lines would mix.
    print(json.dumps({"result": result}) + "\n", end="", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
