"""What the benchmark's pods train: an all-reduce every 0.1 s. Each one is a line in /shared, with the time of the machine's one clock.

So is each start of a worker, written before the import of torch: one that is ended in the middle of it counts.
"""

import json
import os
import time

pod = os.uname().nodename
with open(f"/shared/{pod}.starts", "a") as starts:
    starts.write(f"{time.time()}\n")

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402

dist.init_process_group("gloo")
began = torch.tensor([time.time()], dtype=torch.float64)
dist.broadcast(began, 0)  # what tells this world from others, alike on all ranks
world = {"pod": pod, "world": float(began), "rank": dist.get_rank(), "size": dist.get_world_size()}
with open(f"/shared/{pod}.jsonl", "a", buffering=1) as log:
    while True:
        dist.all_reduce(torch.ones(1))
        log.write(json.dumps({**world, "at": time.time()}) + "\n")
        time.sleep(0.1)
