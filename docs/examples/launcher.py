"""A launcher with a rendezvous backend of its own: `python launcher.py`, instead of torchrun.

`rdzv.register` holds for the process that calls it, so it has to be the one that makes the rendezvous: the agent's. Under torchrun that
is torchrun itself, which has met its peers before it starts train.py as another process: register there, and nobody asks.
Then use an entry point (docs/backends-howto.md).
"""

import os
import socket

from torch.distributed import TCPStore
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
)
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

import rdzv


class AloneHandler(RendezvousHandler):
    """The smallest rendezvous there is: one node meets itself."""

    def __init__(self, params: RendezvousParameters) -> None:
        self.params = params
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]

    def get_backend(self) -> str:
        return "alone"

    def get_run_id(self) -> str:
        return self.params.run_id

    def next_rendezvous(self) -> RendezvousInfo:
        store = TCPStore("127.0.0.1", 0, is_master=True)
        return RendezvousInfo(store, 0, 1, RendezvousStoreInfo("127.0.0.1", self.port))

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        pass

    def num_nodes_waiting(self) -> int:
        return 0

    def shutdown(self) -> bool:
        return True


def train() -> int:
    """What each worker runs."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    total = torch.ones(1)
    dist.all_reduce(total)
    dist.destroy_process_group()
    return int(total)


def main() -> None:
    rdzv.register("alone", AloneHandler)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        rdzv_backend="alone",
        run_id=os.environ.get("RUN_ID", "demo"),
        start_method="spawn",
    )
    print(elastic_launch(config, train)())


if __name__ == "__main__":
    main()
