"""The shell against a small exchange of the test's own, over real sockets on the loopback interface."""

import asyncio
import json
import time
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

from services.collector import instruments, link
from services.collector.exchanges import EXCHANGES
from services.collector.exchanges.base import Instrument
from services.collector.instruments import Catalog
from services.collector.link import delays
from services.collector.outputs import HealthChanged
from services.collector.service import Collector
from shared import settings
from shared.errors import SettingsError, SubscriptionRefused, UnknownSymbol


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


@pytest.fixture
def make(tmp_path):
    """A collector of a small exchange on `port`; what the exchange lists is on disk already."""

    def collector(
        name: str, port: int, symbols: list[str], published: Published, waits: list[float], **changes: Any
    ) -> Collector:
        loaded = settings.load()
        address = f"http://127.0.0.1:{port}"
        own = {"ws_url": f"ws://127.0.0.1:{port}", "rest_url": address, "symbols": tuple(symbols), "second": None}
        second = changes.pop("second", None)
        if second is not None:
            own["second"] = settings.SecondSource(
                protocol=second[0], ws_url=f"ws://127.0.0.1:{second[1]}", rest_url=address
            )
        shard = changes.pop("shard", (1, 1))
        configured = loaded.exchanges[name].model_copy(update=own)
        for protocol in (name, *([second[0]] if second else [])):
            listed = [
                Instrument(EXCHANGES[protocol].native(symbol), symbol, True, "online", None, None, None, None)
                for symbol in symbols
            ]
            path = instruments.path_of(tmp_path, protocol)
            instruments.write(path, Catalog(protocol, address, 0, tuple(listed)))

        async def sleep(seconds: float) -> None:
            waits.append(seconds)
            published.arrived.set()
            await asyncio.sleep(0)

        return Collector(
            name,
            configured,
            loaded.collector.model_copy(update=changes),
            published,  # type: ignore[arg-type]
            cache=tmp_path,
            shard=shard,
            sleep=sleep,
            draw=lambda low, high: high,
        )

    return collector


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


async def test_a_book_is_published_with_rising_sequence_and_key_and_ends_as_disconnected(make):
    subscribed: list[str] = []

    async def handler(connection: ServerConnection) -> None:
        for _ in range(3):
            subscribed.append(json.loads(await connection.recv())["channel"])
        for number, bid in enumerate((9.0, 9.5, 10.0)):
            await connection.send(coinbase_book(number, bid, kind="snapshot" if number == 0 else "update"))
        await connection.wait_closed()

    published = Published()
    async with exchange(handler) as port, running(make("coinbase", port, ["BTC-USD"], published, [])):
        await published.until(lambda: len(published.kinds("book")) == 3)
    assert subscribed == ["heartbeats", "level2", "market_trades"]
    assert [book["bids"][0][0] for book in published.kinds("book")] == [9.0, 9.5, 10.0]
    assert {(topic, key) for topic, key, _ in published.messages} == {("tick-data-coinbase", "BTC")}
    sequences = [message["sequence"] for _, _, message in published.messages]
    assert sequences == list(range(sequences[0], sequences[0] + len(sequences)))
    states = [message["state"] for message in published.kinds("health")]
    assert states == ["syncing", "live", "disconnected"]
    assert published.kinds("health")[-1]["reason"] == "collector stopped"


async def test_it_does_its_job_with_one_live_book_and_says_where_the_others_are(make, monkeypatch):
    async def handler(connection: ServerConnection) -> None:
        await connection.send(coinbase_book(0, 9.0))
        await connection.wait_closed()

    def timed() -> float:
        return REGISTRY.get_sample_value("arb_frame_to_tick_ms_count", {"exchange": "coinbase"}) or 0

    monkeypatch.setattr(link, "SAMPLE", 1)
    before = timed()
    published = Published()
    async with exchange(handler) as port:
        collector = make("coinbase", port, ["BTC-USD", "ETH-USD"], published, [])
        assert collector.books() == (False, "0 of 2 live; 2 not heard of yet")
        async with running(collector):
            await published.until(lambda: published.kinds("book"))
            assert collector.books() == (True, "1 of 2 live; 1 syncing")
            assert timed() == before + 1
        assert collector.books() == (False, "0 of 2 live; 2 disconnected")


async def test_a_closed_connection_is_made_again_with_growing_waits_that_data_resets(make):
    connections = 0

    async def handler(connection: ServerConnection) -> None:
        nonlocal connections
        connections += 1
        if connections == 3:
            await connection.send(coinbase_book(0, 9.0))
            await asyncio.sleep(0.05)  # the frame must be read before the close is

    published, waits = Published(), []
    async with exchange(handler) as port, running(make("coinbase", port, ["BTC-USD"], published, waits)):
        await published.until(lambda: len(waits) >= 5)
    assert waits[:2] == [0.5, 1.0], "nothing but handshakes: the waits grow"
    assert waits[2] == 0.5, "data came: the link is good, the next wait is short again"
    assert waits[3] == 1.0
    assert "disconnected" in [message["state"] for message in published.kinds("health")]


async def test_a_gap_is_said_and_the_books_are_subscribed_again(make):
    async def handler(connection: ServerConnection) -> None:
        await connection.send(coinbase_book(0, 9.0))
        await connection.send(coinbase_book(5, 10.0, kind="update"))
        await connection.wait_closed()

    published, waits = Published(), []
    async with exchange(handler) as port, running(make("coinbase", port, ["BTC-USD"], published, waits)):
        await published.until(lambda: len(published.kinds("health")) == 3)
    states = [message["state"] for message in published.kinds("health")][:3]
    assert states == ["syncing", "live", "gap"]
    assert all(book["bids"][0][0] == 9.0 for book in published.kinds("book"))


async def test_a_refused_subscription_ends_the_collector_with_the_exchanges_words(make):
    async def handler(connection: ServerConnection) -> None:
        await connection.recv()
        await connection.send('{"type":"error","message":"NOPE-USD is not a valid product"}')
        await connection.wait_closed()

    async with exchange(handler) as port:
        with pytest.raises(SubscriptionRefused, match="NOPE-USD is not a valid product"):
            await make("coinbase", port, ["NOPE-USD"], Published(), []).run(asyncio.Event())


def metric(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, labels)


def okx_book(action: str, previous: int, last: int, bid: str) -> str:
    row = {"asks": [["11", "1", "0", "1"]], "bids": [[bid, "1", "0", "1"]], "ts": "5", "checksum": 0}
    data = {**row, "seqId": last, "prevSeqId": previous}
    return json.dumps({"arg": {"channel": "books", "instId": "BTC-USDT"}, "action": action, "data": [data]})


def binance_diff(first: int, last: int) -> str:
    data = {"e": "depthUpdate", "E": 5, "s": "BTCUSDT", "U": first, "u": last, "b": [["10", "1"]], "a": []}
    return json.dumps({"stream": "btcusdt@depth@100ms", "data": data})


SNAPSHOT = b'{"lastUpdateId":100,"bids":[["9","1"]],"asks":[["11","1"]]}'


async def test_binance_fetches_its_snapshot_again_until_it_fits(make):
    answers = [(503, b"", {}), (200, SNAPSHOT.replace(b"100", b"50"), {}), (200, SNAPSHOT, {})]
    paths: list[str] = []

    def rest(path: str) -> tuple[int, bytes, dict[str, str]]:
        if "depth" not in path:
            return 404, b"", {}
        paths.append(path)
        return answers.pop(0)

    async def handler(connection: ServerConnection) -> None:
        await connection.send(binance_diff(100, 101))
        await connection.wait_closed()

    published, waits = Published(), []
    async with exchange(handler, rest) as port, running(make("binance", port, ["BTC-USDT"], published, waits)):
        await published.until(lambda: published.kinds("book"))
    assert paths == ["/api/v3/depth?symbol=BTCUSDT&limit=1000"] * 3
    assert len(waits) == 2
    assert published.kinds("book")[0]["bids"] == [[10.0, 1.0], [9.0, 1.0]]


async def test_binance_an_unknown_symbol_is_named(make):
    async def handler(connection: ServerConnection) -> None:
        await connection.send(binance_diff(100, 101))
        await connection.wait_closed()

    def rest(path: str) -> tuple[int, bytes, dict[str, str]]:
        return 400, b'{"code":-1121,"msg":"Invalid symbol."}', {}

    async with exchange(handler, rest) as port:
        with pytest.raises(UnknownSymbol, match=r"binance does not list BTC-USDT \(Invalid symbol"):
            await make("binance", port, ["BTC-USDT"], Published(), []).run(asyncio.Event())


async def test_binance_a_rate_limit_by_rest_is_waited_out_as_told_and_costs_no_connection(make):
    labels = {"exchange": "binance", "outcome": "rate_limited"}
    before = REGISTRY.get_sample_value("arb_rest_requests_total", labels) or 0
    connections = 0

    async def handler(connection: ServerConnection) -> None:
        nonlocal connections
        connections += 1
        await connection.send(binance_diff(100, 101))
        await connection.wait_closed()

    def rest(path: str) -> tuple[int, bytes, dict[str, str]]:
        return (429, b"", {"retry-after": "37"}) if "depth" in path else (404, b"", {})

    published, waits = Published(), []
    async with exchange(handler, rest) as port, running(make("binance", port, ["BTC-USDT"], published, waits)):
        await published.until(lambda: 37.0 in waits)
    assert (REGISTRY.get_sample_value("arb_rest_requests_total", labels) or 0) > before
    assert connections == 1


@pytest.mark.parametrize(("status", "headers", "wait_s"), [(429, {"retry-after": "41"}, 41.0), (403, {}, 600.0)])
async def test_a_refused_handshake_is_waited_out_as_told(make, status, headers, wait_s):
    async def handler(connection: ServerConnection) -> None:
        raise AssertionError("never opened")

    def refuse(connection: ServerConnection, request: Request) -> Response:
        return Response(status, HTTPStatus(status).phrase, Headers({"content-length": "0", **headers}), b"")

    published, waits = Published(), []
    async with serve(handler, "127.0.0.1", 0, process_request=refuse) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        async with running(make("bybit", port, ["BTC-USDT"], published, waits)):
            await published.until(lambda: wait_s in waits)


async def test_a_place_that_is_not_served_ends_the_collector(make):
    def refuse(connection: ServerConnection, request: Request) -> Response:
        if "upgrade" in request.headers:
            return Response(451, "Unavailable For Legal Reasons", Headers({"content-length": "0"}), b"")
        return Response(404, "Not Found", Headers({"content-length": "0"}), b"")

    async with serve(lambda connection: connection.wait_closed(), "127.0.0.1", 0, process_request=refuse) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        with pytest.raises(SubscriptionRefused, match="HTTP 451"):
            await make("binance", port, ["BTC-USDT"], Published(), []).run(asyncio.Event())


async def test_an_announced_end_costs_no_book(make):
    """The replacement is there before the old connection goes; readers see no break."""
    opened: list[ServerConnection] = []

    async def handler(connection: ServerConnection) -> None:
        opened.append(connection)
        number = len(opened)
        await connection.send(okx_book("snapshot", -1, 10 * number, f"{9 + number / 10}"))
        if number == 1:
            await connection.send('{"event":"notice","code":"64008","msg":"soon","connId":"a"}')
        await connection.wait_closed()

    published, waits = Published(), []
    async with exchange(handler) as port, running(make("okx", port, ["BTC-USDT"], published, waits)):
        await published.until(lambda: len(published.kinds("book")) >= 2)
        await asyncio.wait_for(opened[0].wait_closed(), 5)
    assert [book["bids"][0][0] for book in published.kinds("book")] == [9.1, 9.2]
    states = [message["state"] for message in published.kinds("health")]
    assert states[:2] == ["syncing", "live"]
    assert "disconnected" not in states[:-1], "only the collector's own end"
    sequences = [message["sequence"] for _, _, message in published.messages]
    assert sequences == sorted(set(sequences))


async def test_an_announced_end_without_a_replacement_is_an_ordinary_loss(make):
    published, waits = Published(), []
    opened, refused = 0, asyncio.Event()

    def once(connection: ServerConnection, request: Request) -> Response | None:
        nonlocal opened
        if "upgrade" not in request.headers:
            return Response(404, "Not Found", Headers({"content-length": "0"}), b"")
        opened += 1
        if opened == 1 or "disconnected" in [message["state"] for message in published.kinds("health")]:
            return None
        refused.set()
        return Response(503, "Service Unavailable", Headers({"content-length": "0"}), b"")

    async def handler(connection: ServerConnection) -> None:
        await connection.send(okx_book("snapshot", -1, 10, "9.1"))
        if opened == 1:
            await connection.send('{"event":"notice","code":"64008","msg":"soon","connId":"a"}')
            await refused.wait()
            return
        await connection.wait_closed()

    async with serve(handler, "127.0.0.1", 0, process_request=once) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        async with running(make("okx", port, ["BTC-USDT"], published, waits)):
            await published.until(lambda: len(published.kinds("book")) >= 2)
    states = [message["state"] for message in published.kinds("health")]
    assert [state for state in states if state != "live"][:3] == ["syncing", "disconnected", "syncing"]


async def test_a_replacement_that_brings_nothing_does_not_take_over(make):
    opened: list[ServerConnection] = []
    published = Published()

    async def handler(connection: ServerConnection) -> None:
        opened.append(connection)
        published.arrived.set()
        if len(opened) == 1:
            await connection.send(okx_book("snapshot", -1, 10, "9.1"))
            await connection.send('{"event":"notice","code":"64008","msg":"soon","connId":"a"}')
            while len(opened) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            for number in range(1, 20):
                await connection.send(okx_book("update", 9 + number, 10 + number, f"{9.1 + number / 100:.2f}"))
                await asyncio.sleep(0.02)
        await connection.wait_closed()

    async with exchange(handler) as port, running(make("okx", port, ["BTC-USDT"], published, [])):
        await published.until(lambda: len(published.kinds("book")) == 20)
    assert [message["state"] for message in published.kinds("health")] == ["syncing", "live", "disconnected"]


async def test_when_the_old_connection_dies_while_there_is_no_replacement_it_is_said_at_once(make):
    published, waits = Published(), []
    opened = 0

    def once(connection: ServerConnection, request: Request) -> Response | None:
        nonlocal opened
        if "upgrade" not in request.headers:
            return Response(404, "Not Found", Headers({"content-length": "0"}), b"")
        opened += 1
        headers = Headers({"content-length": "0", "retry-after": "600"})
        return None if opened == 1 else Response(429, "Too Many Requests", headers, b"")

    async def handler(connection: ServerConnection) -> None:
        await connection.send(okx_book("snapshot", -1, 10, "9.1"))
        await connection.send('{"event":"notice","code":"64008","msg":"soon","connId":"a"}')
        while opened < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    async with serve(handler, "127.0.0.1", 0, process_request=once) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        made = make("okx", port, ["BTC-USDT"], published, waits)
        made._sleep = asyncio.sleep  # truly: ten minutes are asked for
        async with running(made):
            async with asyncio.timeout(5):
                await published.until(
                    lambda: published.kinds("health")[-1:] and published.kinds("health")[-1]["state"] == "disconnected"
                )


async def test_a_second_source_that_does_not_list_a_symbol_ends_nothing(make, tmp_path):
    async def dead(connection: ServerConnection) -> None:
        await connection.close()

    async def second(connection: ServerConnection) -> None:
        row = {"type": "snapshot", "product_id": "BTC-USD", "bids": [["9.5", "1"]], "asks": [["11", "1"]]}
        await connection.send(json.dumps(row))
        await connection.wait_closed()

    published = Published()
    async with exchange(dead) as port, exchange(second) as other:
        made = make("coinbase", port, ["BTC-USD", "ETH-USD"], published, [], second=("coinbase-exchange", other))
        path = instruments.path_of(tmp_path, "coinbase-exchange")
        kept = json.loads(path.read_bytes())
        kept["instruments"] = [row for row in kept["instruments"] if row["symbol"] == "BTC-USD"]
        path.write_text(json.dumps(kept))
        async with running(made) as task:
            await published.until(lambda: published.kinds("book"))
            assert not task.done()
    last = {message["symbol"]: message["state"] for message in published.kinds("health")}
    assert last == {"BTC-USD": "disconnected", "ETH-USD": "disconnected"}


async def test_with_nothing_traded_there_is_no_connection_and_one_word(make, tmp_path):
    async def handler(connection: ServerConnection) -> None:
        raise AssertionError("must not connect")

    published = Published()
    async with exchange(handler) as port:
        made = make("okx", port, ["BTC-USDT"], published, [])
        path = instruments.path_of(tmp_path, "okx")
        path.write_bytes(path.read_bytes().replace(b'"trading":true', b'"trading":false'))
        async with running(made):
            await published.until(lambda: published.kinds("health"))
            await asyncio.sleep(0.3)
    assert [message["state"] for message in published.kinds("health")] == ["halted"]


async def test_a_collector_that_ends_by_an_error_says_that_its_books_are_lost(make):
    async def refuse(connection: ServerConnection) -> None:
        await connection.send('{"type":"error","message":"NOPE"}')
        await connection.wait_closed()

    published = Published()
    async with exchange(refuse) as port:
        with pytest.raises(SubscriptionRefused, match="NOPE"):
            await make("coinbase", port, ["BTC-USD"], published, []).run(asyncio.Event())
    assert published.kinds("health")[-1]["state"] == "disconnected"


async def test_the_messages_of_one_address_are_counted_over_all_its_connections(make):
    heard: list[str] = []
    published, waits = Published(), []

    async def handler(connection: ServerConnection) -> None:
        async for text in connection:
            heard.append(text)
            published.arrived.set()

    symbols = [f"A{number}-USD" for number in range(40)]
    async with exchange(handler) as port, running(make("coinbase", port, symbols, published, waits)):
        await published.until(lambda: len(heard) == 9)
    assert [wait for wait in waits if 0.5 < wait <= 1.0], "eight in a second are allowed, the ninth waits"


async def test_the_second_source_is_used_while_the_first_brings_no_book(make):
    async def dead(connection: ServerConnection) -> None:
        await connection.close()

    async def second(connection: ServerConnection) -> None:
        row = {"type": "snapshot", "product_id": "BTC-USD", "bids": [["9.5", "1"]], "asks": [["11", "1"]]}
        await connection.send(json.dumps(row))
        await connection.wait_closed()

    published, waits = Published(), []
    async with exchange(dead) as port, exchange(second) as other:
        made = make("coinbase", port, ["BTC-USD"], published, waits, second=("coinbase-exchange", other))
        async with running(made):
            await published.until(lambda: published.kinds("book"))
    assert published.kinds("book")[0]["exchange"] == "coinbase", "readers see one exchange"
    assert {topic for topic, _, _ in published.messages} == {"tick-data-coinbase"}
    assert waits[:3] == [0.5, 1.0, 2.0], "three connections without a book first"


async def test_each_process_follows_its_part_of_the_symbols(make):
    asked: list[str] = []
    published = Published()

    async def handler(connection: ServerConnection) -> None:
        asked.extend(arg["instId"] for arg in json.loads(await connection.recv())["args"])
        published.arrived.set()
        await connection.wait_closed()

    symbols = ["BTC-USDT", "ETH-USDT", "SOL-USDT"]
    for number in (1, 2):
        async with exchange(handler) as port, running(make("okx", port, symbols, published, [], shard=(number, 2))):
            await published.until(lambda wanted=4 if number == 1 else 6: len(asked) >= wanted)
    assert asked == ["BTC-USDT", "SOL-USDT"] * 2 + ["ETH-USDT"] * 2


async def test_more_books_than_a_connection_may_carry_make_several_connections(make):
    connections: list[list[str]] = []
    published = Published()

    async def handler(connection: ServerConnection) -> None:
        await connection.recv()
        connections.append(json.loads(await connection.recv())["product_ids"])
        published.arrived.set()
        await connection.wait_closed()

    symbols = [f"A{number}-USD" for number in range(32)]
    async with exchange(handler) as port, running(make("coinbase", port, symbols, published, [])):
        await published.until(lambda: len(connections) == 3)
    assert sorted(len(one) for one in connections) == [2, 15, 15]
    assert sorted(name for one in connections for name in one) == sorted(symbols)


async def test_without_metadata_and_without_a_copy_nothing_is_subscribed(make, tmp_path):
    async def handler(connection: ServerConnection) -> None:
        raise AssertionError("must not connect")

    published, waits = Published(), []
    async with exchange(handler) as port:
        made = make("okx", port, ["BTC-USDT"], published, waits)
        instruments.path_of(tmp_path, "okx").unlink()
        async with running(made):
            await published.until(lambda: len(waits) >= 3)
    reasons = [message["reason"] for message in published.kinds("health")]
    assert reasons[0].startswith("no metadata yet: okx:")
    assert {message["state"] for message in published.kinds("health")} == {"disconnected"}


def okx_listing(state: str) -> bytes:
    row = {"instId": "BTC-USDT", "baseCcy": "BTC", "quoteCcy": "USDT", "tickSz": "0.1", "lotSz": "0.01", "minSz": "0.1"}
    return json.dumps({"code": "0", "msg": "", "data": [{**row, "state": state}]}).encode()


async def test_a_symbol_that_is_suspended_stops_alone_and_comes_back(make):
    state = "live"
    said: list[str] = []

    def rest(path: str) -> tuple[int, bytes, dict[str, str]]:
        return 200, okx_listing(state), {}

    async def handler(connection: ServerConnection) -> None:
        number = 0
        async for text in connection:
            request = json.loads(text) if text != "ping" else {"op": "ping"}
            said.append(request["op"])
            if request["op"] == "subscribe":
                number += 10
                await connection.send(okx_book("snapshot", -1, number, f"{9 + number / 100}"))

    published = Published()
    async with (
        exchange(handler, rest) as port,
        running(make("okx", port, ["BTC-USDT"], published, [], instruments_s=0.05)),
    ):
        await published.until(lambda: published.kinds("book"))
        state = "suspend"
        await published.until(lambda: published.kinds("health")[-1]["state"] == "halted")
        state = "live"
        await published.until(lambda: len(published.kinds("book")) == 2)
    halted = next(message for message in published.kinds("health") if message["state"] == "halted")
    assert halted["reason"] == "not traded: suspend"
    assert [op for op in said if op != "ping"] == ["subscribe", "unsubscribe", "subscribe"]


async def test_a_kraken_on_which_nothing_is_subscribed_proves_itself_by_a_ping(make, monkeypatch):
    """Heartbeats come only while something is subscribed: with everything halted the connection must not be given up."""
    monkeypatch.setattr("services.collector.link.DEAD_S", 2.0)
    connections = pings = 0
    enough = asyncio.Event()

    async def handler(connection: ServerConnection) -> None:
        nonlocal connections, pings
        connections += 1
        if connections == 2:
            enough.set()
        await connection.send('{"channel":"status","type":"update","data":[{"system":"maintenance"}]}')
        async for text in connection:
            if json.loads(text)["method"] == "ping":
                pings += 1
                await connection.send('{"method":"pong","time_in":"2026-01-01T00:00:00Z"}')
                if pings == 2:
                    enough.set()

    async with exchange(handler) as port, running(make("kraken", port, ["BTC-USD"], Published(), [], first_data_s=60)):
        async with asyncio.timeout(20):
            await enough.wait()
    assert (connections, pings) == (1, 2)


async def test_an_unknown_symbol_is_named_before_anything_is_subscribed(make):
    async def handler(connection: ServerConnection) -> None:
        raise AssertionError("must not connect")

    def rest(path: str) -> tuple[int, bytes, dict[str, str]]:
        return 200, okx_listing("live"), {}

    async with exchange(handler, rest) as port:
        with pytest.raises(UnknownSymbol, match=r"okx does not list BTC-USDC \(listed there: BTC-USDT\)"):
            await make("okx", port, ["BTC-USDC"], Published(), []).run(asyncio.Event())


async def test_usd_and_usdc_are_one_book_on_coinbase(make):
    rows = [
        {"product_id": "BTC-USD", "base_currency_id": "BTC", "quote_currency_id": "USD", "alias_to": ["BTC-USDC"]},
        {"product_id": "BTC-USDC", "base_currency_id": "BTC", "quote_currency_id": "USDC", "alias": "BTC-USD"},
    ]

    def rest(path: str) -> tuple[int, bytes, dict[str, str]]:
        return 200, json.dumps({"products": rows}).encode(), {}

    async with exchange(lambda connection: connection.wait_closed(), rest) as port:
        with pytest.raises(SettingsError, match="BTC-USDC is another name of the book of BTC-USD there"):
            await make("coinbase", port, ["BTC-USD", "BTC-USDC"], Published(), []).run(asyncio.Event())


async def test_the_clock_of_the_exchange_is_measured(make):
    def rest(path: str) -> tuple[int, bytes, dict[str, str]]:
        if "time" not in path:
            return 404, b"", {}
        return 200, json.dumps({"code": "0", "data": [{"ts": str(time.time_ns() // 1_000_000 + 5000)}]}).encode(), {}

    async with exchange(lambda connection: connection.wait_closed(), rest) as port:
        async with running(make("okx", port, ["BTC-USDT"], Published(), [])):
            async with asyncio.timeout(10):
                while not 4000 < (metric("arb_clock_offset_ms", exchange="okx") or 0) < 6000:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)  # a metric has no event
    error = metric("arb_clock_error_ms", exchange="okx")
    assert error is not None
    assert 0 < error < 1000


async def test_a_cash_pair_goes_to_fx_rates_only(make):
    async def handler(connection: ServerConnection) -> None:
        await connection.send(coinbase_book(0, 9.0, "USDT-USD"))
        await connection.wait_closed()

    published = Published()
    async with exchange(handler) as port, running(make("coinbase", port, ["USDT-USD"], published, [])):
        await published.until(lambda: [rate for rate in published.kinds("rate") if rate["bid"] == 9.0])
    assert {(topic, key) for topic, key, _ in published.messages} == {("fx-rates", "USDT-USD")}
    live = [rate for rate in published.kinds("rate") if rate["state"] == "live"]
    assert (live[0]["bid"], live[0]["ask"]) == (9.0, 11.0)
    assert published.kinds("rate")[-1]["state"] == "disconnected"


def test_a_live_rate_is_no_live_book_but_where_rates_are_all_there_is(make):
    def heard(symbols: list[str], **states: str) -> tuple[bool, str]:
        collector = make("coinbase", 1, symbols, Published(), [])
        collector._emitter.know(Instrument("", symbol, True, "online", None, None, None, None) for symbol in symbols)
        for symbol, state in states.items():
            collector._emitter.health(HealthChanged(symbol.replace("_", "-"), state, "", 1, 1, 1))
        return collector.books()

    both = ["BTC-USD", "USDT-USD"]
    assert heard(both, USDT_USD="live") == (False, "0 of 2 live; 1 live as rate; 1 not heard of yet")
    assert heard(both, USDT_USD="live", BTC_USD="syncing") == (False, "0 of 2 live; 1 live as rate; 1 syncing")
    assert heard(both, USDT_USD="live", BTC_USD="live") == (True, "1 of 2 live; 1 live as rate")
    assert heard(["USDT-USD"], USDT_USD="live") == (True, "1 of 1 live")


def test_waits_double_up_to_the_limit_and_are_drawn_from_zero_on():
    ranges: list[tuple[float, float]] = []

    def draw(low: float, high: float) -> float:
        ranges.append((low, high))
        return high

    waits = delays(5.0, draw)
    assert [next(waits) for _ in range(6)] == [0.5, 1.0, 2.0, 4.0, 5.0, 5.0]
    assert {low for low, _ in ranges} == {0.0}
