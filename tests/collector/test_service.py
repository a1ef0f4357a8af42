"""The shell against a small exchange of the test's own, over real sockets on the loopback interface."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

import orjson
import pytest
from prometheus_client import REGISTRY
from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers
from websockets.http11 import Request, Response

from services.collector.exchanges import EXCHANGES
from services.collector.service import Collector, delays
from shared import settings
from shared.errors import SubscriptionRefused, UnknownSymbol


class Published:
    """Takes what would go to Kafka."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, str, dict[str, Any]]] = []
        self.arrived = asyncio.Event()

    def publish(self, topic: str, key: str, value: bytes) -> bool:
        self.messages.append((topic, key, orjson.loads(value)))
        self.arrived.set()
        return True

    async def until(self, found: Callable[[], object]) -> None:
        async with asyncio.timeout(10):
            while not found():
                self.arrived.clear()
                await self.arrived.wait()

    def kinds(self, kind: str) -> list[dict[str, Any]]:
        return [message for _, _, message in self.messages if message["kind"] == kind]


Handler = Callable[[ServerConnection], Any]


@asynccontextmanager
async def exchange(
    handler: Handler, rest: Callable[[str], tuple[int, bytes, dict[str, str]]] | None = None
) -> AsyncIterator[int]:
    def answer(connection: ServerConnection, request: Request) -> Response | None:
        if "upgrade" in request.headers or rest is None:
            return None
        status, body, extra = rest(request.path)
        headers = Headers({"content-length": str(len(body)), **extra})
        return Response(status, HTTPStatus(status).phrase, headers, body)

    async with serve(handler, "127.0.0.1", 0, process_request=answer) as server:
        yield next(iter(server.sockets)).getsockname()[1]


def collector(
    name: str, port: int, symbols: list[str], published: Published, waits: list[float], path: str = ""
) -> Collector:
    loaded = settings.load()
    configured = loaded.exchanges[name].model_copy(
        update={
            "ws_url": f"ws://127.0.0.1:{port}{path}",
            "rest_url": f"http://127.0.0.1:{port}",
            "symbols": tuple(symbols),
        }
    )

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        published.arrived.set()
        await asyncio.sleep(0)

    return Collector(
        EXCHANGES[name],
        configured,
        loaded.collector,
        published,
        sleep=sleep,
        draw=lambda low, high: high,  # type: ignore[arg-type]
    )


@asynccontextmanager
async def running(collector: Collector) -> AsyncIterator[asyncio.Task[None]]:
    stop = asyncio.Event()
    task = asyncio.create_task(collector.run(stop))
    try:
        yield task
    finally:
        stop.set()
        async with asyncio.timeout(10):
            await asyncio.gather(task, return_exceptions=True)


def coinbase_book(number: int, bid: float, product: str = "BTC-USD", kind: str = "snapshot") -> str:
    updates = [
        {"side": "bid", "price_level": str(bid), "new_quantity": "1"},
        {"side": "offer", "price_level": "11", "new_quantity": "2"},
    ]
    event = {"type": kind, "product_id": product, "updates": updates}
    return json.dumps(
        {"channel": "l2_data", "timestamp": "2026-01-01T00:00:00Z", "sequence_num": number, "events": [event]}
    )


async def test_a_book_is_published_with_rising_sequence_and_key_and_ends_as_disconnected():
    subscribed: list[str] = []

    async def handler(connection: ServerConnection) -> None:
        for _ in range(3):
            subscribed.append(json.loads(await connection.recv())["channel"])
        for number, bid in enumerate((9.0, 9.5, 10.0)):
            await connection.send(coinbase_book(number, bid, kind="snapshot" if number == 0 else "update"))
        await connection.wait_closed()

    published = Published()
    async with exchange(handler) as port, running(collector("coinbase", port, ["BTC-USD"], published, [])):
        await published.until(lambda: len(published.kinds("book")) == 3)
    assert subscribed == ["heartbeats", "level2", "market_trades"]
    assert [book["bids"][0][0] for book in published.kinds("book")] == [9.0, 9.5, 10.0]
    assert {(topic, key) for topic, key, _ in published.messages} == {("tick-data-coinbase", "BTC")}
    sequences = [message["sequence"] for _, _, message in published.messages]
    assert sequences == list(range(sequences[0], sequences[0] + len(sequences)))
    states = [message["state"] for message in published.kinds("health")]
    assert states == ["syncing", "live", "disconnected"]
    assert published.kinds("health")[-1]["reason"] == "collector stopped"


async def test_a_closed_connection_is_made_again_with_growing_waits_that_data_resets():
    connections = 0

    async def handler(connection: ServerConnection) -> None:
        nonlocal connections
        connections += 1
        if connections == 3:
            await connection.send(coinbase_book(0, 9.0))
            await asyncio.sleep(0.05)  # the frame must be read before the close is

    published, waits = Published(), []
    async with exchange(handler) as port, running(collector("coinbase", port, ["BTC-USD"], published, waits)):
        await published.until(lambda: len(waits) >= 5)
    assert waits[:2] == [0.5, 1.0], "nothing but handshakes: the waits grow"
    assert waits[2] == 0.5, "data came: the link is good, the next wait is short again"
    assert waits[3] == 1.0
    assert "disconnected" in [message["state"] for message in published.kinds("health")]


async def test_a_gap_costs_the_connection_and_is_said_first():
    async def handler(connection: ServerConnection) -> None:
        await connection.send(coinbase_book(0, 9.0))
        await connection.send(coinbase_book(5, 10.0, kind="update"))
        await connection.wait_closed()

    published, waits = Published(), []
    async with exchange(handler) as port, running(collector("coinbase", port, ["BTC-USD"], published, waits)):
        await published.until(lambda: waits)
    states = [message["state"] for message in published.kinds("health")][:4]
    assert states == ["syncing", "live", "gap", "disconnected"]
    assert all(book["bids"][0][0] == 9.0 for book in published.kinds("book"))


async def test_a_refused_subscription_ends_the_collector_with_the_exchanges_words():
    async def handler(connection: ServerConnection) -> None:
        await connection.recv()
        await connection.send('{"type":"error","message":"NOPE-USD is not a valid product"}')
        await connection.wait_closed()

    async with exchange(handler) as port:
        with pytest.raises(SubscriptionRefused, match="NOPE-USD is not a valid product"):
            await collector("coinbase", port, ["NOPE-USD"], Published(), []).run(asyncio.Event())


def binance_diff(first: int, last: int) -> str:
    data = {"e": "depthUpdate", "E": 5, "s": "BTCUSDT", "U": first, "u": last, "b": [["10", "1"]], "a": []}
    return json.dumps({"stream": "btcusdt@depth@100ms", "data": data})


SNAPSHOT = b'{"lastUpdateId":100,"bids":[["9","1"]],"asks":[["11","1"]]}'


async def test_binance_fetches_its_snapshot_again_until_it_fits():
    answers = [(503, b"", {}), (200, SNAPSHOT.replace(b"100", b"50"), {}), (200, SNAPSHOT, {})]
    paths: list[str] = []

    def rest(path: str) -> tuple[int, bytes, dict[str, str]]:
        paths.append(path)
        return answers.pop(0)

    async def handler(connection: ServerConnection) -> None:
        await connection.send(binance_diff(100, 101))
        await connection.wait_closed()

    published, waits = Published(), []
    async with exchange(handler, rest) as port, running(collector("binance", port, ["BTC-USDT"], published, waits)):
        await published.until(lambda: published.kinds("book"))
    assert paths == ["/api/v3/depth?symbol=BTCUSDT&limit=1000"] * 3
    assert len(waits) == 2
    assert published.kinds("book")[0]["bids"] == [[10.0, 1.0], [9.0, 1.0]]


async def test_binance_an_unknown_symbol_is_named():
    async def handler(connection: ServerConnection) -> None:
        await connection.send(binance_diff(100, 101))
        await connection.wait_closed()

    def rest(path: str) -> tuple[int, bytes, dict[str, str]]:
        return 400, b'{"code":-1121,"msg":"Invalid symbol."}', {}

    async with exchange(handler, rest) as port:
        with pytest.raises(UnknownSymbol, match=r"binance does not list BTC-USDT \(Invalid symbol"):
            await collector("binance", port, ["BTC-USDT"], Published(), []).run(asyncio.Event())


async def test_binance_a_rate_limit_is_waited_out_as_told():
    labels = {"exchange": "binance", "reason": "rate_limited"}
    before = REGISTRY.get_sample_value("arb_reconnects_total", labels) or 0

    async def handler(connection: ServerConnection) -> None:
        await connection.send(binance_diff(100, 101))
        await connection.wait_closed()

    def rest(path: str) -> tuple[int, bytes, dict[str, str]]:
        return 429, b"", {"retry-after": "37"}

    published, waits = Published(), []
    async with exchange(handler, rest) as port, running(collector("binance", port, ["BTC-USDT"], published, waits)):
        await published.until(lambda: waits)
    assert waits[0] == 37.0
    assert (REGISTRY.get_sample_value("arb_reconnects_total", labels) or 0) > before


async def test_a_cash_pair_goes_to_fx_rates_only():
    async def handler(connection: ServerConnection) -> None:
        await connection.send(coinbase_book(0, 9.0, "USDT-USD"))
        await connection.wait_closed()

    published = Published()
    async with exchange(handler) as port, running(collector("coinbase", port, ["USDT-USD"], published, [])):
        await published.until(lambda: [rate for rate in published.kinds("rate") if rate["bid"] == 9.0])
    assert {(topic, key) for topic, key, _ in published.messages} == {("fx-rates", "USDT-USD")}
    live = [rate for rate in published.kinds("rate") if rate["state"] == "live"]
    assert (live[0]["bid"], live[0]["ask"]) == (9.0, 11.0)
    assert published.kinds("rate")[-1]["state"] == "disconnected"


def test_waits_double_up_to_the_limit_and_are_drawn_from_zero_on():
    ranges: list[tuple[float, float]] = []

    def draw(low: float, high: float) -> float:
        ranges.append((low, high))
        return high

    waits = delays(5.0, draw)
    assert [next(waits) for _ in range(6)] == [0.5, 1.0, 2.0, 4.0, 5.0, 5.0]
    assert {low for low, _ in ranges} == {0.0}
