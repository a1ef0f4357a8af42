"""Each protocol as a naive client sees it: written from the documentation, not from our collector."""

import json
import zlib

import pytest

from services.simulator.exchanges import SERVERS
from services.simulator.market import SimBook

SECOND = 1_000_000_000


# ---------------------------------------------------------------- Kraken


@pytest.mark.parametrize("depth", [10, 25])
def test_kraken_every_checksum_is_reproduced_by_a_client_that_follows_the_rules(make_world, depth):
    world = make_world("kraken")
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


def test_kraken_status_first_then_an_acknowledgement_per_symbol_then_the_snapshot(make_world):
    world = make_world("kraken")
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
def test_kraken_refuses_in_its_own_words(make_world, params, error):
    (frame,) = make_world("kraken").say({"method": "subscribe", "params": params})
    answer = json.loads(frame)
    assert (answer["success"], answer["error"]) == (False, error)


def test_kraken_heartbeats_only_when_nothing_else_was_sent_for_a_second(make_world):
    world = make_world("kraken")
    assert world.session.on_timer(5 * SECOND) == [], "nothing is subscribed"
    world.say({"method": "subscribe", "params": {"channel": "book", "symbol": ["BTC/USD"], "depth": 10}}, 10 * SECOND)
    assert world.session.on_timer(int(10.9 * SECOND)) == []
    assert world.session.on_timer(11 * SECOND) == ['{"channel":"heartbeat"}']
    assert world.session.on_timer(int(11.5 * SECOND)) == []


def test_kraken_an_unsubscribed_book_is_silent_and_a_new_subscription_brings_a_snapshot(make_world):
    world = make_world("kraken")
    params = {"channel": "book", "symbol": ["BTC/USD"], "depth": 10}
    world.say({"method": "subscribe", "params": params})
    world.say({"method": "unsubscribe", "params": params})
    before = len(world.frames)
    world.run(5)
    assert world.frames[before:] == []
    assert '"type":"snapshot"' in world.say({"method": "subscribe", "params": params})[-1]


def test_kraken_answers_a_ping_and_nonsense(make_world):
    world = make_world("kraken")
    assert json.loads(world.say({"method": "ping", "req_id": 7})[0])["method"] == "pong"
    assert "Malformed" in world.session.on_client("{", 0)[0]


# ---------------------------------------------------------------- Binance

STREAMS = "/stream?streams=btcusdt@depth@100ms/btcusdt@trade/ethusdt@depth@100ms"


def test_binance_a_client_that_follows_the_documentation_has_the_true_book(make_world):
    world = make_world("binance", STREAMS)
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


def test_binance_an_unknown_symbol_is_an_error_by_rest_and_silence_by_stream(make_world):
    world = make_world("binance", "/stream?streams=nopeusdt@depth@100ms")
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


def test_binance_streams_come_and_go_and_raw_payloads_are_bare(make_world):
    world = make_world("binance", "/ws/btcusdt@trade")
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
def test_binance_rest(make_world, path, status):
    answer = make_world("binance").server.rest(path, 5 * SECOND)
    assert answer is not None
    assert answer.status == status
    assert make_world("binance").server.rest("/nothing", 0) is None


# ---------------------------------------------------------------- Coinbase


def test_coinbase_counts_every_frame_and_a_naive_client_has_the_true_book(make_world):
    world = make_world("coinbase")
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


def test_coinbase_refuses_an_unknown_product_and_closes_who_does_not_subscribe(make_world):
    world = make_world("coinbase")
    assert not world.session.overdue(4 * SECOND)
    assert world.session.overdue(6 * SECOND)
    (frame,) = world.say({"type": "subscribe", "channel": "level2", "product_ids": ["NOPE-USD"]})
    assert json.loads(frame)["type"] == "error"
    assert "NOPE-USD" in json.loads(frame)["message"]
    world.say({"type": "subscribe", "channel": "heartbeats"})
    assert not world.session.overdue(6 * SECOND)


# ---------------------------------------------------------------- metadata and time

EXPECTED_INFO = {
    "symbol": "BTCUSDT",
    "status": "TRADING",
    "baseAsset": "BTC",
    "quoteAsset": "USDT",
    "isSpotTradingAllowed": True,
}


def test_every_server_begins_without_halted_symbols(make_world):
    for name in SERVERS:
        assert make_world(name).server.halted == set()
        assert make_world(name).server.rest("/nothing", 0) is None


def test_binance_exchange_info_has_the_fields_of_the_real_one(make_world):
    world = make_world("binance")
    info = world.get("/api/v3/exchangeInfo", 5 * SECOND)
    assert {"timezone", "serverTime", "rateLimits", "exchangeFilters", "symbols"} == set(info)
    assert info["serverTime"] == 5000
    row = next(row for row in info["symbols"] if row["symbol"] == "BTCUSDT")
    assert row.items() >= EXPECTED_INFO.items()
    filters = {item["filterType"]: item for item in row["filters"]}
    assert filters["PRICE_FILTER"]["tickSize"] == "0.10000000"
    assert filters["LOT_SIZE"].items() >= {"minQty": "0.00001000", "stepSize": "0.00001000"}.items()
    assert filters["NOTIONAL"]["minNotional"] == "5.00000000"


def test_binance_exchange_info_of_some_symbols_and_of_a_halted_one(make_world):
    world = make_world("binance")
    world.server.halted.add("ETH-USDT")
    (one,) = world.get("/api/v3/exchangeInfo?symbol=ETHUSDT")["symbols"]
    assert one["status"] == "HALT"
    two = world.get("/api/v3/exchangeInfo?symbols=%5B%22BTCUSDT%22,%22ETHUSDT%22%5D")["symbols"]
    assert [(row["symbol"], row["status"]) for row in two] == [("BTCUSDT", "TRADING"), ("ETHUSDT", "HALT")]
    assert world.get("/api/v3/exchangeInfo?symbol=NOPE", status=400)["code"] == -1121
    assert world.get("/api/v3/exchangeInfo?symbols=BTCUSDT", status=400)["code"] == -1100


@pytest.mark.parametrize(
    ("path", "frame"),
    [
        ("/stream?streams=btcusdt@trade", {"stream": "!serverShutdown", "data": {"e": "serverShutdown", "E": 7000}}),
        ("/ws/btcusdt@trade", {"e": "serverShutdown", "E": 7000}),
    ],
)
def test_binance_announces_its_end_in_the_form_of_the_connection(make_world, path, frame):
    assert [json.loads(text) for text in make_world("binance", path).session.announce_end(7 * SECOND)] == [frame]


@pytest.mark.parametrize("name", ["coinbase", "coinbase-exchange", "kraken", "bybit"])
def test_the_others_close_without_a_word(make_world, name):
    assert make_world(name).session.announce_end(0) == []


def test_kraken_asset_pairs_have_the_names_of_version_1(make_world):
    pairs = make_world("kraken").get("/0/public/AssetPairs")["result"]
    row = pairs["XXBTZUSD"]
    names = {"altname": "XBTUSD", "wsname": "XBT/USD", "base": "XXBT", "quote": "ZUSD"}
    numbers = {"pair_decimals": 1, "lot_decimals": 8, "tick_size": "0.1", "ordermin": "0.00005", "costmin": "0.5"}
    assert row.items() >= {**names, **numbers, "status": "online"}.items()
    assert pairs["XETHZUSD"]["base"] == "XETH"
    assert pairs["SOLUSD"].items() >= {"altname": "SOLUSD", "base": "SOL", "quote": "ZUSD"}.items()
    assert pairs["USDTZUSD"]["altname"] == "USDTUSD"


def test_kraken_dogecoin_is_xdg_and_has_no_long_key():
    book = SimBook("kraken", "DOGE-USD", 5, 8, 1, 1.0, 3000.0, {17_000: 1}, {17_001: 1})
    answer = SERVERS["kraken"]({"DOGE-USD": book}).rest("/0/public/AssetPairs", 0)
    assert answer is not None
    row = json.loads(answer.body)["result"]["XDGUSD"]
    assert (row["wsname"], row["base"], row["ordermin"]) == ("XDG/USD", "XXDG", "0.5")


def test_kraken_asset_pairs_by_name_and_halted(make_world):
    world = make_world("kraken")
    world.server.halted.add("BTC-USD")
    pairs = world.get("/0/public/AssetPairs?pair=XBTUSD,XETHZUSD")["result"]
    assert {key: row["status"] for key, row in pairs.items()} == {"XXBTZUSD": "cancel_only", "XETHZUSD": "online"}
    assert world.get("/0/public/AssetPairs?pair=NOPE")["error"] == ["EQuery:Unknown asset pair"]
    snapshot = json.loads(world.say({"method": "subscribe", "params": {"channel": "instrument"}})[1])
    statuses = {pair["symbol"]: pair["status"] for pair in snapshot["data"]["pairs"]}
    assert (statuses["BTC/USD"], statuses["ETH/USD"]) == ("cancel_only", "online")


def test_kraken_time(make_world):
    result = make_world("kraken").get("/0/public/Time", 1_616_336_594 * SECOND)["result"]
    assert result == {"unixtime": 1616336594, "rfc1123": "Sun, 21 Mar 21 14:23:14 +0000"}


def test_coinbase_products_show_usdc_as_another_name_of_the_usd_book(make_world):
    world = make_world("coinbase")
    world.server.halted.add("BTC-USD")
    answer = world.get("/api/v3/brokerage/market/products?product_type=SPOT")
    products = {row["product_id"]: row for row in answer["products"]}
    assert answer["num_products"] == len(products)
    assert (products["BTC-USD"]["alias"], products["BTC-USD"]["alias_to"]) == ("", ["BTC-USDC"])
    alias = products["BTC-USDC"]
    assert (alias["alias"], alias["alias_to"], alias["quote_currency_id"]) == ("BTC-USD", [], "USDC")
    assert "USDT-USDC" not in products, "cash has no alias"
    assert products["USDT-USD"]["alias_to"] == []
    assert products["BTC-USD"].items() >= {"quote_increment": "0.1", "base_increment": "0.00000001"}.items()
    shown = {name: (row["is_disabled"], row["trading_disabled"]) for name, row in products.items()}
    assert shown["BTC-USD"] == shown["BTC-USDC"] == (True, True)
    assert shown["ETH-USD"] == (False, False)


def test_coinbase_time(make_world):
    assert make_world("coinbase").get("/api/v3/brokerage/time", 1_786_613_159_749_000_001) == {
        "iso": "2026-08-13T09:25:59.749000001Z",
        "epochSeconds": "1786613159",
        "epochMillis": "1786613159749",
    }
