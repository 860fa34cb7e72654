"""Admission by webhook, for clusters without MutatingAdmissionPolicy: the same function, asked over HTTPS.

Run as `kopf run operator/webhook.py --all-namespaces --standalone`. It keeps no state, needs no permission and watches nothing; kopf
reads the API server's list of resources once, when it starts. The chart sets the environment variables that it reads; `RDZV_LOG_FORMAT`
is json for lines of JSON (`rdzv.control.logs`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import kopf
from aiohttp import web
from cryptography import x509

from rdzv.control import logs
from rdzv.control.inject import InjectionSettings, inject
from rdzv.control.metrics import ALLOWED, BUSY, ERROR, LATE, MALFORMED, WebhookMetrics, serve
from rdzv.control.review import NotAReview, checked_review
from rdzv.spec import LABEL

logs.as_asked(os.environ)  # kopf has set the log up before it reads this file

#: Bytes. The API server takes requests of up to 3 MiB; kopf's own server stops at 1 MiB.
MAX_BODY = 4 << 20
#: Seconds in which a review has to be read: the API server sends all of it at once.
READ = 2.0
#: Seconds that a review may wait for its turn, before it is told to come again: less than the API server's own 5.
TURN = 4.0
#: Reviews that are read at once, and so bodies in memory. They are answered one after the other.
READERS = 16
#: Seconds between looks at the certificate's files.
RELOAD = 10.0


@kopf.on.startup()
async def configure(settings: kopf.OperatorSettings, memo: kopf.Memo, **_: Any) -> None:
    """Reads the settings; a missing one ends the process here."""
    memo.inject = InjectionSettings(
        delivery=os.environ["RDZV_LIBRARY_DELIVERY"],
        library_image=os.environ["RDZV_LIBRARY_IMAGE"],
        library_pull_policy=os.environ["RDZV_LIBRARY_PULL_POLICY"],
        init_image=os.environ["RDZV_INIT_IMAGE"],
        init_pull_policy=os.environ["RDZV_INIT_PULL_POLICY"],
    )
    host, port = os.environ.get("RDZV_WEBHOOK_LISTEN", ":9443").rsplit(":", 1)
    metrics = WebhookMetrics()
    if listen := os.environ.get("RDZV_METRICS_LISTEN"):
        await asyncio.to_thread(serve, metrics.registry, listen)
    settings.admission.server = Server(host or None, int(port), Path(os.environ["RDZV_WEBHOOK_CERTIFICATES"]), metrics)
    settings.admission.managed = None  # kopf would rewrite the chart's configuration, and empty it on exit (kopf#864)
    settings.scanning.disabled = True  # else it wants to watch all CRDs and namespaces
    settings.posting.enabled = False


@kopf.on.mutate("", "v1", "pods", operations=["CREATE"], labels={LABEL: kopf.PRESENT}, id="inject")
async def add(body: kopf.Body, patch: kopf.Patch, memo: kopf.Memo, **_: Any) -> None:
    """Answers with what `inject` adds; kopf turns the difference into a JSON patch."""
    injected = inject(body, memo.inject)["spec"]
    patch.spec.update({key: value for key, value in injected.items() if value != body["spec"].get(key)})


async def answer(fn: Any, data: bytes, handler: str) -> Any:
    """What kopf answers. It keeps in memory what is not created, so it is given nothing else.

    Raises:
        NotAReview: it is no review of a pod that is created.
    """
    return await fn(checked_review(data), webhook=handler)


def ended(said: Any) -> str:
    """How a review has ended. Injection refuses no pod: kopf says so of one that a mistake of ours was met with."""
    return ALLOWED if said["response"]["allowed"] else ERROR


class Server:
    """kopf's WebhookServer, without its limit on bodies and without its outage when the certificate is renewed (kopf#1217)."""

    def __init__(self, address: str | None, port: int, certificates: Path, metrics: WebhookMetrics) -> None:
        self.address, self.port, self.metrics = address, port, metrics
        self.files = (certificates / "tls.crt", certificates / "tls.key")

    async def __call__(self, fn: Any) -> AsyncIterator[kopf.WebhookClientConfig]:
        """Serves until cancelled: `POST /HANDLER` for reviews, `GET /healthz` for probes."""
        readers, turn = asyncio.Semaphore(READERS), asyncio.Lock()

        async def read(request: web.Request) -> tuple[str, web.Response]:
            try:
                data = await asyncio.wait_for(request.read(), READ)
                async with turn:  # What is parsed takes twenty times the memory.
                    said = await answer(fn, data, request.match_info["id"])
                return ended(said), web.json_response(said)
            except asyncio.TimeoutError:
                return LATE, web.Response(status=408, text=f"not read within {READ:.0f} s")
            except NotAReview as error:
                return MALFORMED, web.Response(status=400, text=str(error))
            finally:
                readers.release()

        async def review(request: web.Request) -> web.Response:
            began, result = time.monotonic(), ERROR
            try:
                await asyncio.wait_for(readers.acquire(), TURN)
                result, response = await read(request)
            except asyncio.TimeoutError:
                result, response = BUSY, web.Response(status=429, text=f"{READERS} reviews are being read")
            except web.HTTPRequestEntityTooLarge:
                result = MALFORMED
                raise
            finally:
                self.metrics.reviewed(result, time.monotonic() - began)
            return response

        async def healthz(_: web.Request) -> web.Response:
            return web.Response()

        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        loaded = self._load(context)
        app = web.Application(client_max_size=MAX_BODY)
        app.add_routes([web.get("/healthz", healthz), web.post("/{id}", review)])
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=5)
        await runner.setup()
        try:
            await web.TCPSite(runner, self.address, self.port, ssl_context=context).start()
            yield kopf.WebhookClientConfig()
            while True:
                await asyncio.sleep(RELOAD)
                loaded = self._reload(context, loaded)
        finally:
            await runner.cleanup()

    def _load(self, context: ssl.SSLContext) -> tuple[bytes, ...]:
        contents = tuple(file.read_bytes() for file in self.files)
        # A pair that does not match would leave the context in use with neither; it fails in this one instead.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(*self.files)
        context.load_cert_chain(*self.files)
        self.metrics.certified(x509.load_pem_x509_certificate(contents[0]).not_valid_after_utc.timestamp())
        return contents

    def _reload(self, context: ssl.SSLContext, loaded: tuple[bytes, ...]) -> tuple[bytes, ...]:
        try:
            if tuple(file.read_bytes() for file in self.files) != loaded:
                loaded = self._load(context)
                logging.info("the certificate was renewed")
        except (OSError, ValueError) as error:  # ssl.SSLError is one of the former
            logging.error("the certificate can't be read, the old one stays in use: %s", error)
        return loaded
