"""An elastic job as users write them: a small model, and a checkpoint from which every rank starts. Each step is a line in /shared."""

import json
import os
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

FEATURES, BATCH = 16, 64
CHECKPOINT_EVERY = 5
SHARED = Path("/shared")
CHECKPOINT = SHARED / "checkpoint.pt"

dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()
began = torch.tensor([time.time()], dtype=torch.float64)
dist.broadcast(began, 0)  # what tells this world from others, alike on all ranks

torch.manual_seed(0)
teacher = torch.randn(FEATURES, 1)
model = DistributedDataParallel(nn.Linear(FEATURES, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.5)
done = 0
if CHECKPOINT.exists():
    saved = torch.load(CHECKPOINT)
    model.module.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    done = saved["step"]
resumed = done
torch.manual_seed(1000 * done + rank)  # other data on every rank

with (SHARED / f"{os.environ['RDZV_POD_NAME']}.jsonl").open("a", buffering=1) as log:
    while True:
        points = torch.randn(BATCH, FEATURES)
        answers = points @ teacher + 0.1 * torch.randn(BATCH, 1)
        loss = nn.functional.mse_loss(model(points), answers)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        done += 1
        mean = loss.detach()
        dist.all_reduce(mean)
        step = {"step": done, "resumed": resumed, "loss": float(mean / size), "world": float(began), "size": size}
        log.write(json.dumps({**step, "rank": rank, "pod": os.environ["RDZV_POD_NAME"], "at": time.time()}) + "\n")
        if rank == 0 and done % CHECKPOINT_EVERY == 0:
            state = {"step": done, "model": model.module.state_dict(), "optimizer": optimizer.state_dict()}
            partial = CHECKPOINT.with_suffix(".partial")
            torch.save(state, partial)
            partial.replace(CHECKPOINT)  # never half a checkpoint, whenever this pod ends
        time.sleep(0.1)
