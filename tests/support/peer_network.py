"""Cuts the connections between one agent on this machine and the others; all of them keep the API server."""

from __future__ import annotations

import os
import subprocess
from types import TracebackType

BOTH, BY_IT, BY_OTHERS = "both", "by it", "by others"
"""Whose connections are cut: those that the agent and the others open to each other, that the agent opens, that the others open to it."""


class PeerNetwork:
    """The agent is known by its address, and by the group that its process runs in. Needs root and nftables.

    with PeerNetwork("127.0.0.9", 54321, api_port) as network:
        network.cut("refused")     # or "silent"
        network.heal()
    """

    def __init__(self, address: str, group: int, api_port: int) -> None:
        self.address, self.group, self.api_port = address, group, api_port
        self._table = f"rdzv_test_{os.getpid()}_{group}"

    def __enter__(self) -> PeerNetwork:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.heal()

    def cut(self, how: str, ways: str = BOTH) -> None:
        """Refused at once, or swallowed. Both ways: connections that stand, and those to come; one way: those to come only."""
        verdict = {"refused": "reject with tcp reset", "silent": "drop"}[how]
        # What stands carries both ways, whoever opened it.
        opens = "" if ways == BOTH else "tcp flags & (syn | ack) == syn "
        others = f"ip daddr 127.0.0.0/8 ip daddr != {self.address}"
        by_it = f"meta skgid {self.group} {others} tcp dport != {self.api_port} {opens}{verdict}"
        by_others = f"meta skgid != {self.group} meta l4proto tcp ip daddr {self.address} {opens}{verdict}"
        rules = {BOTH: (by_it, by_others), BY_IT: (by_it,), BY_OTHERS: (by_others,)}[ways]
        self.heal()
        chain = "type filter hook output priority 0;"
        _nft("\n".join((f"table inet {self._table} {{", "chain out {", chain, *rules, "}", "}")))

    def heal(self) -> None:
        """As before."""
        _nft(f"add table inet {self._table}\ndelete table inet {self._table}")


def _nft(commands: str) -> None:
    subprocess.run(["nft", "-f", "-"], input=commands, text=True, check=True, capture_output=True)
