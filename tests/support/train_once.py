"""What test pods train: one all-reduce, then who they are as one line. Deployments restart what ends, so with STAY it goes on."""

import json
import os
import time

import torch
import torch.distributed as dist

dist.init_process_group("gloo")
total = torch.ones(1)
dist.all_reduce(total)
if int(os.environ["LOCAL_RANK"]) == 0:
    world = {
        "rank": dist.get_rank(),
        "world": dist.get_world_size(),
        "sum": int(total),
        "slot": os.environ.get("RDZV_SLOT"),
        "pair": [os.environ.get("RDZV_GROUP"), os.environ.get("RDZV_INDEX")],
        "pod": os.environ["RDZV_POD_NAME"],
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "born": time.time(),
    }
    # One write: torchrun starts workers with -u, where print writes the line and its end apart, and its own log may come between.
    print("WORLD " + json.dumps(world) + "\n", end="", flush=True)
while os.environ.get("STAY"):
    dist.all_reduce(total)  # notices at once when a peer is gone
    time.sleep(0.1)
dist.destroy_process_group()
