"""torch's RendezvousHandler on records in the Kubernetes API or in etcd. Imports torch: only backends' creators import this.

The contract is torch's (`torch/distributed/elastic/rendezvous/api.py`) as its agent uses it; what is decided, and why, is
in docs/adr/0010-kubernetes-protocol.md.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import sys
import threading
import time
import weakref
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import __version__ as torch_version
from torch.distributed import PrefixStore, TCPStore
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    RendezvousTimeoutError,
)

from rdzv.agent.agent import Agent
from rdzv.agent.identity import identify, pod_of_token
from rdzv.agent.interface import AgentError, AgentSettings
from rdzv.agent.liveness import Liveness, silence_of
from rdzv.agent.place import Place
from rdzv.agent.store_port import StorePort
from rdzv.env import LAUNCH_TIMEOUT
from rdzv.kube import config as kube_config
from rdzv.kube.api import ApiError
from rdzv.kube.client import Client
from rdzv.kube.retry import pauses
from rdzv.protocol.coordinator_state import Policy
from rdzv.protocol.events import CLOSED_ERROR, GRACEFUL, TIMEOUT, Timing
from rdzv.protocol.records import ROUND_KIND, Endpoint
from rdzv.redaction import without_password
from rdzv.spec import API_VERSION

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch.distributed import Store

    from rdzv.protocol.events import Accept

__all__ = ["AgentRendezvousHandler", "create_handler"]

log = logging.getLogger("rdzv.agent")

KUBERNETES = "kubernetes"
JOIN_TIMEOUT = 600.0
LAST_CALL_TIMEOUT = 30.0
"""Seconds; torch's own defaults (`dynamic_rendezvous.py`)."""
STORE_TIMEOUT = timedelta(seconds=300)
_CONNECT_SECONDS = 20.0
"""torch's client and its server each look up the name of the other's address: two DNS timeouts must fit."""
_LIBUV_TAKES_FD = torch_version >= (2, 8)
"""Whether torch's server by libuv takes a socket that listens already; before, only the other one does (pytorch#150215)."""
_BLAME_SECONDS = 5.0
"""Without an answer for this long, a store counts as unreachable."""
_LOOK_AGAIN_SECONDS = 2.0
"""Until an agent that could not reach a store tries one again."""
_REASON_LENGTH = 300
_HOST_PORT = re.compile(r"[-a-zA-Z0-9_.]{1,253}:[0-9]{1,5}")
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")


class AgentRendezvousHandler(RendezvousHandler):  # type: ignore[misc]  # torch is not analysed, its classes are Any
    """A rendezvous whose state is a few objects in one place, written and read by one agent per node.

    Args:
        params: as torchrun makes them. Configuration keys: `join_timeout`, `last_call_timeout`, `timeout` (seconds),
            `store` (tcp, or `place.store`), `slot` (this node's index) and `member` (its name).
        place: where the objects are.

    Raises:
        ValueError: a parameter is not usable; the text says what it should be.
    """

    def __init__(self, params: RendezvousParameters, place: Place) -> None:
        stores = ("tcp", place.store)
        self._place, self._store_kind = place, str(params.get("store") or "tcp")
        if self._store_kind not in stores:
            raise ValueError(f"store={self._store_kind}: write one of {', '.join(stores)}")
        place.client.agents = params.max_nodes
        first, longest = pauses(params.max_nodes, Timing.retry, Timing.retry_max)
        timing = Timing(join_timeout=_join_timeout(params), retry=first, retry_max=longest)
        policy = Policy(
            params.min_nodes, params.max_nodes, last_call=_seconds(params, "last_call_timeout", LAST_CALL_TIMEOUT)
        )
        identity = identify(params, place, os.environ)
        self._port = StorePort(identity.address)
        self._store: Store | None = None
        self._shut_down = False
        settings = AgentSettings(place.namespace, identity, timing, policy, self._port.rebind)
        # The agent's threads know nothing of this handler: one that is dropped without `shutdown` ends them.
        self._agent = Agent(place.client, settings, partial(Liveness, silence=silence_of(os.environ)))
        weakref.finalize(self, _dropped, self._agent, self._port).atexit = False

    def get_backend(self) -> str:
        """The name of the backend."""
        return self._place.backend

    @property
    def use_agent_store(self) -> bool:
        """Whether workers use the store of the round, which rank 0's agent serves."""
        return self._store_kind == "tcp"

    def next_rendezvous(self) -> RendezvousInfo:
        """Join, wait for the round, and connect to its store.

        Raises:
            RendezvousClosedError: it was closed, or this pod has no place in it any more.
            RendezvousTimeoutError: too few joined in time; the text says who is missing.
            RendezvousConnectionError: the API server could not be reached, or refused; the text says what to allow.
            SystemExit: 0, for a spare that is not needed any more because the others have finished.
        """
        unreached = ""
        try:
            accept = self._agent.join(self._port.rebind())
            while True:
                try:
                    store = self._make_store(accept)
                    break
                except _StoreUnreachableError as error:
                    unreached = str(error) or unreached
                    accept = self._rejoin(accept.round, error.store)
        except AgentError as error:
            self._port.close()
            raise _torch_error(error, unreached) from error
        self._replace_store(store)
        log.info("round %d of Rendezvous %s: rank %d of %d", accept.round, self._place.name, accept.rank, accept.size)
        leader = RendezvousStoreInfo(accept.leader.address, accept.leader.port)
        return RendezvousInfo(PrefixStore(f"/rdzv/{accept.round}", store), accept.rank, accept.size, leader)

    def is_closed(self) -> bool:
        """Whether it was closed, as far as this agent has seen."""
        return self._agent.is_closed()

    def set_closed(self) -> None:
        """Close it for everybody. As with torch's own handlers, that works after `shutdown` too.

        Raises:
            RendezvousConnectionError: that could not be written.
        """
        try:
            self._agent.close("Closed")
        except (ApiError, kube_config.ConfigError, AgentError) as error:
            raise RendezvousConnectionError(str(error)) from error

    def num_nodes_waiting(self) -> int:
        """1 when the world is to be formed anew: somebody is gone, or waits to be let in. No I/O; never raises."""
        return self._agent.num_nodes_waiting()

    def get_run_id(self) -> str:
        """The run: UID of the Rendezvous, or torchrun's `--rdzv-id`."""
        return self._agent.run_id()

    def shutdown(self) -> bool:
        """Leave. An exception in flight means that this node failed: that is said, and nothing is closed for the others."""
        error = sys.exc_info()[1]
        success = error is None or (isinstance(error, SystemExit) and not error.code)
        if self._shut_down:
            return True
        self._shut_down = True
        try:
            return self._agent.finish(success)
        except (
            Exception
        ):  # Older torch does not guard this call, and the reason of a failure would be lost (pytorch#194871).
            log.exception("the rendezvous could not be left in order")
            return False
        finally:
            self._port.close()
            self._replace_store(None)

    # The store of a round.

    def _replace_store(self, store: Store | None) -> None:
        """Others may have been using the one before until now."""
        before, self._store = self._store, store
        if self._store_kind != "tcp" and before is not None:
            before.close()

    def _make_store(self, accept: Accept) -> Store:
        """The store of this round. Raises _StoreUnreachableError."""
        leader = accept.leader
        if self._store_kind != "tcp":
            self._port.close()  # It is for the workers' own store, as torch does without a shared one.
            return self._kept_store(accept)
        fd = self._port.take() if accept.rank == 0 else None
        if fd is None:
            self._port.close()
            return self._connect(accept)
        try:
            return _tcp_store(
                leader.address, leader.port, is_master=True, master_listen_fd=fd, use_libuv=_LIBUV_TAKES_FD
            )
        except RuntimeError as error:  # torch's server is its own first client: the address is not this machine's.
            raise self._unreachable(accept, str(error)) from error

    def _connect(self, accept: Accept) -> Store:
        """torch's client, made in a thread: it does not look whether the round is still wanted while it tries."""
        made: list[Store] = []
        failed: list[Exception] = []
        address, port, began = accept.leader.address, accept.leader.port, time.monotonic()

        def make() -> None:
            try:
                made.append(_tcp_store(address, port, is_master=False))
            except Exception as error:  # noqa: BLE001 - whatever it is, somebody waits for the outcome
                failed.append(error)
            finally:
                self._agent.wake()

        threading.Thread(target=make, name="rdzv-connect", daemon=True).start()
        self._agent.wait(lambda: bool(made or failed))
        if made:
            return made[0]
        if failed:
            raise self._unreachable(accept, str(failed[0]))
        if time.monotonic() < began + _BLAME_SECONDS:
            raise _StoreUnreachableError
        # Who asked first, because it could not connect, is perhaps not the only one.
        raise self._unreachable(accept, f"no answer in {time.monotonic() - began:.0f} s")

    def _rejoin(self, number: int, store: Endpoint | None) -> Accept:
        """Ask for another round, and look meanwhile whether the store of those who go on without this agent can be reached."""
        over = threading.Event()
        if store is not None:
            threading.Thread(target=self._look_again, args=(over,), name="rdzv-reach", daemon=True).start()
        try:
            return self._agent.rejoin(number, store)
        finally:
            over.set()

    def _look_again(self, over: threading.Event) -> None:
        while not over.wait(_LOOK_AGAIN_SECONDS):
            store = self._agent.store_elsewhere()
            if store is None:
                continue
            try:
                # Alone it proves little, as behind a proxy that takes any connection; but torch's client tries for long, and logs it.
                socket.create_connection((store.address, store.port), _LOOK_AGAIN_SECONDS).close()
                _tcp_store(store.address, store.port, is_master=False)
            except (OSError, RuntimeError):
                continue
            self._agent.store_reached(store)

    def _unreachable(self, accept: Accept, error: str) -> _StoreUnreachableError:
        leader, why = accept.leader, error.partition("\n")[0][:_REASON_LENGTH]
        text = (
            f"the store of round {accept.round} at {leader.address} port {leader.port} could not be reached from "
            f"{self._port.address}: {why}"
        )
        log.warning("%s", text)
        return _StoreUnreachableError(text, Endpoint(leader.address, leader.port))

    def _kept_store(self, accept: Accept) -> Store:
        from rdzv.store.store import KubernetesStore

        place = self._place
        prefix = re.sub("[^a-z0-9-]", "-", f"{place.name[:36]}-{accept.uid[:8]}-").lstrip("-")
        owner = {"apiVersion": API_VERSION, "kind": ROUND_KIND, "metadata": {"name": place.name, "uid": accept.uid}}
        store = KubernetesStore(
            f"{prefix}{accept.round}",
            place.namespace,
            client=place.client,
            owner=owner,
            kept_in=place.name if place.store_by_name else None,
            timeout=STORE_TIMEOUT,
        )
        if accept.rank == 0 and not place.store_by_name:
            # Of earlier rounds only: this agent may be the last to learn of its own, and others be in a later one.
            store.delete_others({f"{prefix}{number}" for number in range(accept.round)})
        return store


class _StoreUnreachableError(Exception):
    """The leader of the round cannot be reached; without a text: the round was over before that was known.

    `store` is where it was tried for long enough to blame somebody.
    """

    def __init__(self, text: str = "", store: Endpoint | None = None) -> None:
        super().__init__(text)
        self.store = store


def _dropped(agent: Agent, port: StorePort) -> None:
    port.close()
    agent.abandon()


def create_handler(params: RendezvousParameters) -> RendezvousHandler:
    """torch's creator for backend `kubernetes`.

    Raises:
        ValueError: a parameter is not usable; the text says what it should be.
        ConfigError: no API server is configured (not in a pod, no kubeconfig).
    """
    namespace, name = _endpoint(params.endpoint, os.environ)
    api = kube_config.load()
    place = Place(
        backend=KUBERNETES,
        client=Client(api),
        namespace=namespace,
        name=name,
        server=(api.host, api.port),
        pod=pod_of_token(api, os.environ),
        store=KUBERNETES,
        store_by_name=True,
    )
    return AgentRendezvousHandler(params, place)


def _tcp_store(address: str, port: int, **options: Any) -> Store:
    store = TCPStore(
        address, port, None, timeout=timedelta(seconds=_CONNECT_SECONDS), wait_for_workers=False, **options
    )
    store.set_timeout(STORE_TIMEOUT)
    return store


def _torch_error(error: AgentError, unreached: str) -> BaseException:
    if error.kind == GRACEFUL:
        # torch <= 2.15 dies with an AttributeError on its own RendezvousGracefulExitError (pytorch#194710).
        log.info("%s", error)
        return SystemExit(0)
    kinds = {CLOSED_ERROR: RendezvousClosedError, TIMEOUT: RendezvousTimeoutError}
    text = f"{error}; {unreached}" if unreached and error.kind == TIMEOUT else str(error)
    exception: BaseException = kinds.get(error.kind, RendezvousConnectionError)(text)
    return exception


def _endpoint(text: str, environ: Mapping[str, str]) -> tuple[str, str]:
    """Namespace and name of the Rendezvous. There is no server, so a port that others append means nothing, nor does HOST:PORT."""
    parts = re.sub(r":[0-9]{1,5}$", "", text or "").split("/")
    told = (environ.get("RDZV_NAMESPACE", ""), environ.get("RDZV_NAME", ""))
    if len(parts) == 1 and _HOST_PORT.fullmatch(text or "") and all(map(_NAME.fullmatch, told)):
        log.warning("backend %s has no server, so endpoint %s counts for nothing: this pod is of Rendezvous %s/%s",
                    KUBERNETES, text[:_REASON_LENGTH], *told)  # fmt: skip
        return told
    if len(parts) != 2 or not all(_NAME.fullmatch(part) for part in parts):
        raise ValueError(
            f"endpoint {without_password(text or '')[:_REASON_LENGTH]!r} of backend {KUBERNETES}, which has no server: write "
            "NAMESPACE/NAME, where NAME is the Rendezvous"
        )
    return parts[0], parts[1]


def _seconds(params: RendezvousParameters, key: str, default: float) -> float:
    value = params.get(key)
    try:
        seconds = default if value is None else float(value)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise ValueError(f"{key}={value}: write a number of seconds")
    return seconds


def _join_timeout(params: RendezvousParameters) -> float:
    """`join_timeout` as in torch's own handlers; else `timeout`, unless that is what torchrun passes by itself."""
    timeout = _seconds(params, "timeout", LAUNCH_TIMEOUT)
    return _seconds(params, "join_timeout", JOIN_TIMEOUT if timeout == LAUNCH_TIMEOUT else timeout)
