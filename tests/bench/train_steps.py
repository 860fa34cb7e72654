"""What the benchmark's pods train: an all-reduce every 0.1 s. Each one is a line in /shared, with the time of the machine's one clock."""

import json
import os
import time

import torch
import torch.distributed as dist

dist.init_process_group("gloo")
began = torch.tensor([time.time()], dtype=torch.float64)
dist.broadcast(began, 0)  # what tells this world from others, alike on all ranks
pod = os.environ["RDZV_POD_NAME"]
world = {"pod": pod, "world": float(began), "rank": dist.get_rank(), "size": dist.get_world_size()}
with open(f"/shared/{pod}.jsonl", "a", buffering=1) as log:
    while True:
        dist.all_reduce(torch.ones(1))
        log.write(json.dumps({**world, "at": time.time()}) + "\n")
        time.sleep(0.1)
