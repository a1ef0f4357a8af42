"""Frames to events: what is read, what is ignored, what is refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.collector.book import Book
from services.collector.exchanges import EXCHANGES, exchange_named, kraken
from services.collector.exchanges.base import (
    Counter,
    Delta,
    Refused,
    Snapshot,
    TradeSeen,
    iso_ns,
    parse_frame,
    parse_rest,
)
from shared.errors import BadFrame, UnknownExchange


def test_krakens_worked_checksum():
    """The example of Kraken's own guide."""
    asks = (
        "45285.2/0.00100000 45286.4/1.54571953 45286.6/1.54571109 45289.6/1.54560911 45290.2/0.15890660 "
        "45291.8/1.54553491 45294.7/0.04454749 45296.1/0.35380000 45297.5/0.09945542 45299.5/0.18772827"
    )
    bids = (
        "45283.5/0.10000000 45283.4/1.54582015 45282.1/0.10000000 45281.0/0.10000000 45280.3/1.54592586 "
        "45279.0/0.07990000 45277.6/0.03310103 45277.5/0.30000000 45277.3/1.54602737 45276.6/0.15445238"
    )
    sides = []
    for text in (bids, asks):
        pairs = [level.split("/") for level in text.split()]
        levels = [(float(price), float(size)) for price, size in pairs]
        sides.append((levels, [kraken.token(price.encode()) + kraken.token(size.encode()) for price, size in pairs]))
    book = Book(10)
    book.replace(sides[0][0], sides[1][0], sides[0][1], sides[1][1])
    assert kraken.checksum(book) == 3310070434


@pytest.mark.parametrize(
    ("text", "token"), [("63000.0", "630000"), ("0.00000000", ""), ("5.1E-7", "51"), ("63000", "63000"), ("0.05", "5")]
)
def test_kraken_tokens_keep_the_digits_of_the_wire(text, token):
    assert kraken.token(text.encode()) == token.encode()


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("2026-08-12T19:27:48.098821666Z", 1786562868_098821666),
        ("2026-08-12T19:27:48.098821Z", 1786562868_098821000),
        ("2026-08-12T19:27:48Z", 1786562868_000000000),
        ("1970-01-01T00:00:00Z", 0),
    ],
)
def test_iso_times_keep_every_digit(text, ns):
    assert iso_ns(text) == ns


def test_binance_diff_trade_and_shutdown():
    binance = EXCHANGES["binance"]
    diff = '{"stream":"nknusdt@depth@100ms","data":{"e":"depthUpdate","E":1633998512068,"s":"NKNUSDT","U":5,"u":7,"b":[["0.35130000","6195.00000000"]],"a":[]}}'
    assert parse_frame(binance, diff) == [Delta("NKNUSDT", [(0.3513, 6195.0)], [], 1633998512068000000, 5, 7, order=7)]
    trade = '{"e":"trade","E":1,"s":"BNBBTC","t":12345,"p":"0.001","q":"100","T":1672515782136,"m":true,"M":true}'
    assert parse_frame(binance, trade) == [
        TradeSeen("BNBBTC", "12345", 0.001, 100.0, "sell", 1672515782136000000, number=12345)
    ]
    for ignored in (
        '{"result":null,"id":1}',
        '{"stream":"x@kline_1m","data":{"e":"kline","s":"X"}}',
    ):
        assert parse_frame(binance, ignored) == []
    (closing,) = parse_frame(binance, '{"e":"serverShutdown","E":1}')
    assert closing.words == "serverShutdown"


def test_coinbase_counts_every_frame_and_does_not_guess_the_taker_side():
    frame = {
        "channel": "market_trades",
        "timestamp": "2026-08-12T19:27:48.098821666Z",
        "sequence_num": 3,
        "events": [
            {
                "type": "update",
                "trades": [
                    {
                        "product_id": "BTC-USD",
                        "trade_id": "2",
                        "price": "2.0",
                        "size": "1",
                        "time": "2026-08-12T19:27:47.5Z",
                        "side": "BUY",
                    },
                    {
                        "product_id": "BTC-USD",
                        "trade_id": "1",
                        "price": "1.0",
                        "size": "1",
                        "time": "2026-08-12T19:27:47.4Z",
                        "side": "BUY",
                    },
                ],
            }
        ],
    }
    events = parse_frame(EXCHANGES["coinbase"], json.dumps(frame))
    assert events[0] == Counter(3)
    assert [(event.trade_id, event.taker_side) for event in events[1:]] == [("1", None), ("2", None)]


def test_coinbase_exchange_side_is_the_makers():
    frame = '{"type":"match","trade_id":280232,"side":"sell","size":"985","price":"0.00001305","product_id":"SKL-BTC","time":"2021-04-17T16:43:37.089723Z"}'
    (trade,) = parse_frame(EXCHANGES["coinbase-exchange"], frame)
    assert trade.taker_side == "buy"


def test_refusals_keep_the_exchanges_words():
    refused = '{"error":"Currency pair not supported XXX/YYY","method":"subscribe","success":false,"symbol":"XXX/YYY"}'
    assert parse_frame(EXCHANGES["kraken"], refused) == [Refused("XXX/YYY", "Currency pair not supported XXX/YYY")]
    assert parse_frame(EXCHANGES["coinbase"], '{"type":"error","message":"no"}') == [Refused(None, "no")]
    assert EXCHANGES["binance"].refusal(400, b'{"code":-1121,"msg":"Invalid symbol."}') == "Invalid symbol."
    assert EXCHANGES["binance"].refusal(400, b'{"code":-1100,"msg":"Illegal"}') is None
    assert EXCHANGES["binance"].refusal(500, b"oops") is None


def test_subscriptions_are_what_the_documentation_shows():
    first, second = (json.loads(frame) for frame in EXCHANGES["kraken"].subscribe(["BTC/USD"], 25, True))
    assert first["params"] == {"channel": "book", "symbol": ["BTC/USD"], "depth": 25}
    assert second["params"] == {"channel": "trade", "symbol": ["BTC/USD"], "snapshot": False}
    channels = [json.loads(frame)["channel"] for frame in EXCHANGES["coinbase"].subscribe(["BTC-USD"], 0, True)]
    assert channels == ["heartbeats", "level2", "market_trades"]
    assert EXCHANGES["binance"].url("wss://h/", ["BTCUSDT"]) == "wss://h/stream"
    (frame,) = EXCHANGES["binance"].subscribe(["BTCUSDT"], 1000, True)
    assert json.loads(frame)["params"] == ["btcusdt@depth@100ms", "btcusdt@trade", "btcusdt@bookTicker"]
    (frame,) = EXCHANGES["binance"].subscribe(["BTCUSDT"], 1000, False)
    assert json.loads(frame)["params"] == ["btcusdt@depth@100ms", "btcusdt@trade"]
    frames = [json.loads(frame) for frame in EXCHANGES["bybit"].subscribe([f"A{n}USDT" for n in range(8)], 50, True)]
    assert [len(frame["args"]) for frame in frames] == [10, 10, 4], "ten topics a frame are allowed on spot"
    (frame,) = EXCHANGES["okx"].subscribe(["BTC-USDT", "ETH-USDT"], 400, True)
    assert [(arg["channel"], arg["instId"]) for arg in json.loads(frame)["args"]] == [
        ("books", "BTC-USDT"), ("books", "ETH-USDT"), ("trades", "BTC-USDT"), ("trades", "ETH-USDT"),
    ]  # fmt: skip


def test_native_names_and_back():
    assert EXCHANGES["binance"].native("BTC-USDT") == "BTCUSDT"
    assert EXCHANGES["binance"].canonical("NKNUSDT") == "NKNUSDT", "never cut: only metadata could tell where"
    assert EXCHANGES["kraken"].native("BTC-USD") == "BTC/USD"
    assert EXCHANGES["kraken"].canonical("BTC/USD") == "BTC-USD"


def test_an_unknown_exchange_is_named_with_those_that_exist():
    with pytest.raises(
        UnknownExchange,
        match="unknown exchange 'mtgox'; known: binance, coinbase, coinbase-exchange, kraken, bybit, okx",
    ):
        exchange_named("mtgox")


JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "channel",
                    "type",
                    "data",
                    "e",
                    "s",
                    "U",
                    "u",
                    "b",
                    "a",
                    "E",
                    "bids",
                    "asks",
                    "symbol",
                    "checksum",
                    "events",
                    "sequence_num",
                    "method",
                    "success",
                    "result",
                    "changes",
                    "product_id",
                    "time",
                    "timestamp",
                    "updates",
                    "stream",
                ]
            ),
            inner,
            max_size=6,
        )
    ),
    max_leaves=12,
)
CHANNELS = ("book", "trade", "status", "l2_data", "market_trades", "heartbeats")
TYPES = ("update", "snapshot", "l2update", "match", "error")


@given(st.sampled_from(sorted(EXCHANGES)), JSON, st.sampled_from(CHANNELS), st.sampled_from(TYPES))
def test_any_json_gives_events_or_a_bad_frame(name, document, channel, kind):
    exchange = EXCHANGES[name]
    if isinstance(document, dict):
        document = {**document, "channel": channel, "type": kind, "e": "depthUpdate"}
    try:
        events = parse_frame(exchange, json.dumps(document))
    except BadFrame as error:
        assert str(error).startswith(f"{name}: ")
    else:
        assert isinstance(events, list)


@given(st.sampled_from(sorted(EXCHANGES)), st.binary(max_size=60))
def test_any_bytes_give_events_or_a_bad_frame(name, frame):
    try:
        parse_frame(EXCHANGES[name], frame)
    except BadFrame:
        pass


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'{"lastUpdateId":"x","bids":[],"asks":[]}', b"<html>"])
def test_a_rest_body_that_is_no_snapshot_is_a_bad_frame(body):
    with pytest.raises(BadFrame):
        parse_rest(EXCHANGES["binance"], "BTCUSDT", body)


def test_a_rest_body_is_a_snapshot_with_its_id():
    body = b'{"lastUpdateId":160,"bids":[["0.0024","10"]],"asks":[["0.0026","100"]]}'
    assert parse_rest(EXCHANGES["binance"], "X", body) == Snapshot(
        "X", [(0.0024, 10.0)], [(0.0026, 100.0)], None, 160, order=160
    )
