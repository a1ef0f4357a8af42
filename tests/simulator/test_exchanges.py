"""Each protocol as a naive client sees it: written from the documentation, not from our collector."""

import json
import zlib

import pytest

from services.simulator.exchanges import SERVERS
from services.simulator.market import BookEvent, Market
from shared import settings

CONFIGURED = settings.load()
SECOND = 1_000_000_000


class World:
    """One simulated exchange with one client."""

    def __init__(self, name: str, path: str = "", seed: int = 5) -> None:
        self.market = Market(CONFIGURED, tuple(SERVERS), seed, 5.0)
        self.name = name
        self.books = {symbol: book for (exchange, symbol), book in self.market.books.items() if exchange == name}
        self.server = SERVERS[name](self.books)
        self.session = self.server.session(path, 0)
        self.frames = list(self.session.on_open(0))

    def say(self, message: object, now_ns: int = 0) -> list[str]:
        answer = self.session.on_client(json.dumps(message), now_ns)
        self.frames += answer
        return answer

    def run(self, seconds: float) -> None:
        for at, event in self.market.step(int(seconds * SECOND)):
            if event.exchange != self.name:
                continue
            if isinstance(event, BookEvent):
                self.server.before_book(event)
                self.frames += self.session.on_book(event, at)
            else:
                self.frames += self.session.on_trade(event, at)


# ---------------------------------------------------------------- Kraken


@pytest.mark.parametrize("depth", [10, 25])
def test_kraken_every_checksum_is_reproduced_by_a_client_that_follows_the_rules(depth):
    world = World("kraken")
    world.say({"method": "subscribe", "params": {"channel": "book", "symbol": ["BTC/USD", "ETH/USD"], "depth": depth}})
    world.run(120)
    held: dict[str, dict[str, dict[float, tuple[str, str]]]] = {}
    checked = reentered = 0
    dropped: set[tuple[str, str, float]] = set()
    for frame in world.frames:
        message = json.loads(frame, parse_float=str, parse_int=str)
        if message.get("channel") != "book":
            continue
        for data in message["data"]:
            if message["type"] == "snapshot":
                held[data["symbol"]] = {"bids": {}, "asks": {}}
            book = held[data["symbol"]]
            for side in ("bids", "asks"):
                for level in data[side]:
                    price = float(level["price"])
                    reentered += (data["symbol"], side, price) in dropped
                    book[side].pop(price, None)
                    if float(level["qty"]) > 0:
                        book[side][price] = (level["price"], level["qty"])
                for price in sorted(book[side], reverse=side == "bids")[depth:]:
                    del book[side][price]
                    dropped.add((data["symbol"], side, price))
            top = [book["asks"][p] for p in sorted(book["asks"])[:10]]
            top += [book["bids"][p] for p in sorted(book["bids"], reverse=True)[:10]]
            text = "".join(part.replace(".", "").lstrip("0") for level in top for part in level)
            assert zlib.crc32(text.encode()) == int(data["checksum"])
            checked += 1
    assert checked > 500
    assert reentered > 0, "levels fell out of the depth and came back"


def test_kraken_status_first_then_an_acknowledgement_per_symbol_then_the_snapshot():
    world = World("kraken")
    assert json.loads(world.frames[0])["data"][0]["system"] == "online"
    frames = world.say(
        {"method": "subscribe", "params": {"channel": "book", "symbol": ["BTC/USD", "ETH/USD"], "depth": 10}}
    )
    kinds = [(json.loads(f).get("method"), json.loads(f).get("type")) for f in frames]
    assert kinds == [("subscribe", None), (None, "snapshot")] * 2


@pytest.mark.parametrize(
    ("params", "error"),
    [
        ({"channel": "book", "symbol": ["XXX/YYY"], "depth": 10}, "Currency pair not supported XXX/YYY"),
        ({"channel": "book", "symbol": ["BTC/USD"], "depth": 11}, "Subscription depth not supported"),
        ({"channel": "news", "symbol": ["BTC/USD"]}, "Channel news not supported"),
    ],
)
def test_kraken_refuses_in_its_own_words(params, error):
    (frame,) = World("kraken").say({"method": "subscribe", "params": params})
    answer = json.loads(frame)
    assert (answer["success"], answer["error"]) == (False, error)


def test_kraken_heartbeats_only_when_nothing_else_was_sent_for_a_second():
    world = World("kraken")
    assert world.session.on_timer(5 * SECOND) == [], "nothing is subscribed"
    world.say({"method": "subscribe", "params": {"channel": "book", "symbol": ["BTC/USD"], "depth": 10}}, 10 * SECOND)
    assert world.session.on_timer(int(10.9 * SECOND)) == []
    assert world.session.on_timer(11 * SECOND) == ['{"channel":"heartbeat"}']
    assert world.session.on_timer(int(11.5 * SECOND)) == []


def test_kraken_an_unsubscribed_book_is_silent_and_a_new_subscription_brings_a_snapshot():
    world = World("kraken")
    params = {"channel": "book", "symbol": ["BTC/USD"], "depth": 10}
    world.say({"method": "subscribe", "params": params})
    world.say({"method": "unsubscribe", "params": params})
    before = len(world.frames)
    world.run(5)
    assert world.frames[before:] == []
    assert '"type":"snapshot"' in world.say({"method": "subscribe", "params": params})[-1]


def test_kraken_answers_a_ping_and_nonsense():
    world = World("kraken")
    assert json.loads(world.say({"method": "ping", "req_id": 7})[0])["method"] == "pong"
    assert "Malformed" in world.session.on_client("{", 0)[0]


# ---------------------------------------------------------------- Binance

STREAMS = "/stream?streams=btcusdt@depth@100ms/btcusdt@trade/ethusdt@depth@100ms"


def test_binance_a_client_that_follows_the_documentation_has_the_true_book():
    world = World("binance", STREAMS)
    world.run(10)
    answer = world.server.rest("/api/v3/depth?symbol=BTCUSDT&limit=1000", 0)
    assert answer is not None
    snapshot = json.loads(answer.body)
    world.run(60)
    bids, asks = ({float(p): float(s) for p, s in snapshot[side]} for side in ("bids", "asks"))
    last, applied = snapshot["lastUpdateId"], 0
    previous = None
    for frame in world.frames:
        message = json.loads(frame)
        data = message["data"]
        if data["e"] != "depthUpdate" or data["s"] != "BTCUSDT":
            continue
        assert previous is None or data["U"] == previous + 1, "a gap in the chain"
        previous = data["u"]
        if data["u"] <= last:
            continue
        assert applied or data["U"] <= last + 1 <= data["u"], "the snapshot is not bracketed"
        for side, changes in ((bids, data["b"]), (asks, data["a"])):
            for price, size in changes:
                side.pop(float(price), None)
                if float(size) > 0:
                    side[float(price)] = float(size)
        applied += 1
    book = world.books["BTC-USDT"]
    assert applied > 100
    assert bids == {book.price(p): book.size(s) for p, s in book.bids.items()}
    assert asks == {book.price(p): book.size(s) for p, s in book.asks.items()}


def test_binance_an_unknown_symbol_is_an_error_by_rest_and_silence_by_stream():
    world = World("binance", "/stream?streams=nopeusdt@depth@100ms")
    answer = world.server.rest("/api/v3/depth?symbol=NOPEUSDT", 0)
    assert answer is not None
    assert (answer.status, json.loads(answer.body)["code"]) == (400, -1121)
    assert json.loads(world.say({"method": "SUBSCRIBE", "params": ["nope@depth"], "id": 3})[0]) == {
        "result": None,
        "id": 3,
    }
    before = len(world.frames)
    world.run(5)
    assert world.frames[before:] == []


def test_binance_streams_come_and_go_and_raw_payloads_are_bare():
    world = World("binance", "/ws/btcusdt@trade")
    world.run(20)
    assert world.frames
    assert all(json.loads(frame)["e"] == "trade" for frame in world.frames)
    world.say({"method": "UNSUBSCRIBE", "params": ["btcusdt@trade"], "id": 1})
    world.say({"method": "SUBSCRIBE", "params": ["btcusdt@bookTicker"], "id": 2})
    assert json.loads(world.say({"method": "LIST_SUBSCRIPTIONS", "id": 3})[0])["result"] == ["btcusdt@bookTicker"]
    before = len(world.frames)
    world.run(25)
    assert {tuple(json.loads(frame)) for frame in world.frames[before:]} == {("u", "s", "b", "B", "a", "A")}


@pytest.mark.parametrize(
    ("path", "status"),
    [("/api/v3/depth?symbol=BTCUSDT&limit=x", 400), ("/api/v3/time", 200), ("/api/v3/exchangeInfo", 200)],
)
def test_binance_rest(path, status):
    answer = World("binance").server.rest(path, 5 * SECOND)
    assert answer is not None
    assert answer.status == status
    assert World("binance").server.rest("/nothing", 0) is None


# ---------------------------------------------------------------- Coinbase


def test_coinbase_counts_every_frame_and_a_naive_client_has_the_true_book():
    world = World("coinbase")
    for channel in ("heartbeats", "level2", "market_trades"):
        world.say(
            {"type": "subscribe", "channel": channel, "product_ids": ["BTC-USD"] if channel != "heartbeats" else []}
        )
    order = [json.loads(frame)["channel"] for frame in world.frames]
    assert order == ["subscriptions", "l2_data", "subscriptions", "market_trades", "subscriptions"], (
        "snapshot before ack"
    )
    world.run(30)
    for second in range(31, 34):
        world.frames += world.session.on_timer(second * SECOND)
    messages = [json.loads(frame) for frame in world.frames]
    assert [message["sequence_num"] for message in messages] == list(range(len(messages)))
    sides: dict[str, dict[float, float]] = {"bid": {}, "offer": {}}
    for message in messages:
        if message["channel"] == "l2_data":
            for update in message["events"][0]["updates"]:
                price, size = float(update["price_level"]), float(update["new_quantity"])
                sides[update["side"]].pop(price, None)
                if size > 0:
                    sides[update["side"]][price] = size
    book = world.books["BTC-USD"]
    assert sides["bid"] == {book.price(p): book.size(s) for p, s in book.bids.items()}
    assert sides["offer"] == {book.price(p): book.size(s) for p, s in book.asks.items()}
    assert [
        message["events"][0]["heartbeat_counter"] for message in messages if message["channel"] == "heartbeats"
    ] == [1, 2, 3]


def test_coinbase_refuses_an_unknown_product_and_closes_who_does_not_subscribe():
    world = World("coinbase")
    assert not world.session.overdue(4 * SECOND)
    assert world.session.overdue(6 * SECOND)
    (frame,) = world.say({"type": "subscribe", "channel": "level2", "product_ids": ["NOPE-USD"]})
    assert json.loads(frame)["type"] == "error"
    assert "NOPE-USD" in json.loads(frame)["message"]
    world.say({"type": "subscribe", "channel": "heartbeats"})
    assert not world.session.overdue(6 * SECOND)
