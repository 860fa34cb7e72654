"""The webhook as a process, and whoever reaches its port: it never crashes, answers nothing with 5xx, and keeps its size."""

from __future__ import annotations

import asyncio
import io
import json
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest
from faults.tally import LONG, Tally
from support.accounts import account
from support.cluster_fixtures import LocalCluster
from support.hostile_reviews import hostile, review
from support.operator_process import eventually
from support.webhook_process import WebhookProcess, serving

REVIEWS = 100_000 if LONG else 2_000
CLIENTS = 8
#: Bytes by which the process may have grown: freed memory stays with it in pieces.
GROWTH = 48 << 20
#: Bytes that it may have at the most, as the chart limits it.
LIMIT = 256 << 20
pytestmark = pytest.mark.timeout(3600)


@pytest.fixture(scope="module")
def webhook(control_plane: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebhookProcess]:
    scratch = tmp_path_factory.mktemp("webhook")
    own = account(control_plane, scratch, "default", "webhook")
    with serving(own.cluster.kubeconfig, scratch) as process:
        eventually(lambda: process.answers() and asyncio.run(is_served(process)))
        yield process


async def is_served(webhook: WebhookProcess) -> bool:
    """Whether a pod is injected: kopf knows pods a moment after it answers probes."""
    async with client(webhook) as session:
        status, text = await post(session, webhook, json.dumps(review()).encode())
    return status == 200 and "patch" in json.loads(text)["response"]


def client(webhook: WebhookProcess) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=webhook.context, limit=0))


async def post(session: aiohttp.ClientSession, webhook: WebhookProcess, data: Any) -> tuple[int, str]:
    async with session.post(f"https://127.0.0.1:{webhook.port}/inject", data=data) as reply:
        return reply.status, await reply.text()


def test_whatever_it_is_sent_it_answers_and_stays_as_it_was(webhook: WebhookProcess, tally: Tally) -> None:
    async def send(number: int, statuses: Counter[int], reviews: int) -> None:
        chance = random.Random(number)
        async with client(webhook) as session:
            for _ in range(reviews):
                status, text = await post(session, webhook, io.BytesIO(hostile(chance)))
                statuses[status] += 1
                if status == 200:
                    verdict = json.loads(text)["response"]
                    assert verdict["allowed"], text

    async def scenario(reviews: int) -> Counter[int]:
        statuses: Counter[int] = Counter()
        await asyncio.gather(*(send(number, statuses, reviews // CLIENTS) for number in range(CLIENTS)))
        return statuses

    with tally.injected("Hostile input", "AdmissionReviews: answered, none with 5xx", REVIEWS):
        asyncio.run(scenario(400))
        before = webhook.rss()
        statuses = asyncio.run(scenario(REVIEWS))
        print(dict(statuses), f"{before >> 20} MiB before, {webhook.rss() >> 20} MiB after")
        assert statuses.total() == REVIEWS // CLIENTS * CLIENTS
        # A review that was made fifty times as long twice may be too long.
        assert set(statuses) - {413} == {200, 400}, webhook.log.read_text().partition("Traceback")[2][:3000]
        assert webhook.rss() - before < GROWTH
        assert "Traceback" not in webhook.log.read_text()
        assert asyncio.run(is_served(webhook))


def test_large_slow_and_many_bodies_neither_fill_its_memory_nor_keep_others_waiting(webhook: WebhookProcess) -> None:
    large = b'{"request":[' + b"[]," * 1_300_000 + b"[]]}"
    asked = json.dumps(review()).encode()

    async def slowly() -> Any:
        yield asked[:100]
        await asyncio.sleep(30)

    async def scenario() -> None:
        async with client(webhook) as session:
            slow = [asyncio.create_task(post(session, webhook, slowly())) for _ in range(40)]
            many = [asyncio.create_task(post(session, webhook, io.BytesIO(large))) for _ in range(24)]
            peak = 0
            while not all(task.done() for task in many):
                peak = max(peak, webhook.rss())
                await asyncio.sleep(0.05)
            assert {task.result()[0] for task in many} <= {400, 429}
            assert {(await task)[0] for task in slow} <= {408, 429}
            assert (await post(session, webhook, io.BytesIO(b"x" * (5 << 20))))[0] == 413
            assert (await post(session, webhook, asked))[0] == 200
            print(f"at most {peak >> 20} MiB")
            assert peak < LIMIT

    asyncio.run(asyncio.wait_for(scenario(), 120))
    assert webhook.process.poll() is None
