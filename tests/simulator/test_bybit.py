"""Bybit as a naive client sees it: written from the documentation, not from our collector."""

import json
from itertools import pairwise

import pytest

from services.simulator.market import TradeEvent

SECOND = 1_000_000_000


def topics(*names):
    return {"req_id": "1", "op": "subscribe", "args": list(names)}


def replay(frames, topic):
    """The book of a client that follows the rules: what it holds, and its number after each frame."""
    held = {"b": {}, "a": {}}
    numbers = []
    for message in map(json.loads, frames):
        if message.get("topic") != topic:
            continue
        data = message["data"]
        if message["type"] == "snapshot":
            held = {"b": {}, "a": {}}
        else:
            assert data["u"] == numbers[-1] + 1, "a gap in the chain"
        numbers.append(data["u"])
        for side in ("b", "a"):
            for price, size in data[side]:
                held[side].pop(float(price), None)
                if size != "0":
                    held[side][float(price)] = float(size)
    return {"bids": held["b"], "asks": held["a"]}, numbers


@pytest.mark.parametrize("depth", [50, 200, 1000])
def test_a_client_that_follows_the_documentation_has_the_true_book(make_world, depth):
    world = make_world("bybit")
    world.say(topics(f"orderbook.{depth}.BTCUSDT", "orderbook.50.ETHUSDT"))
    world.run(30)
    held, numbers = replay(world.frames, f"orderbook.{depth}.BTCUSDT")
    assert len(numbers) > 100
    assert held == world.book("BTC-USDT", depth)


def test_levels_that_leave_the_window_are_removed_and_those_that_come_in_are_sent(make_world, monkeypatch):
    monkeypatch.setattr("services.simulator.market.LEVELS", 60)
    world = make_world("bybit")
    world.say(topics("orderbook.50.BTCUSDT"))
    removed = set()
    came_back = 0
    for step in range(1, 201):
        for message in map(json.loads, world.run(step / 10)):
            for side in ("b", "a"):
                for price, size in message["data"][side]:
                    still_there = float(price) in world.book("BTC-USDT")["bids" if side == "b" else "asks"]
                    came_back += size != "0" and price in removed
                    removed |= {price} if size == "0" and still_there else set()
        held, _ = replay(world.frames, "orderbook.50.BTCUSDT")
        assert held == world.book("BTC-USDT", 50)
    assert came_back > 0, "levels left the window while they were in the book, and came back"


def test_frames_have_the_shape_of_the_captured_ones(make_world):
    world = make_world("bybit")
    world.say(topics("orderbook.50.BTCUSDT", "orderbook.1.BTCUSDT", "publicTrade.BTCUSDT"))
    world.run(5)
    book = [json.loads(frame) for frame in world.frames if '"orderbook.' in frame]
    trades = [json.loads(frame) for frame in world.frames if '"publicTrade.' in frame]
    assert {tuple(frame) for frame in book} == {("topic", "ts", "type", "data", "cts")}
    assert {tuple(frame["data"]) for frame in book} == {("s", "b", "a", "u", "seq")}
    assert trades
    for frame in trades:
        assert tuple(frame) == ("topic", "ts", "type", "data")
        assert frame["type"] == "snapshot"
        (trade,) = frame["data"]
        assert set(trade) == {"i", "T", "p", "v", "S", "s", "BT", "seq"}
        assert trade["S"] in ("Buy", "Sell")
        assert isinstance(trade["i"], str)
    texts = [text for frame in book for side in ("b", "a") for level in frame["data"][side] for text in level]
    assert not any(text.endswith(("0", ".")) for text in texts if "." in text)
    assert len({frame["data"][0]["i"] for frame in trades}) == len(trades)


@pytest.mark.parametrize(("taker", "side"), [("buy", "Buy"), ("sell", "Sell")])
def test_the_side_of_a_trade_is_the_takers(make_world, taker, side):
    world = make_world("bybit")
    world.say(topics("publicTrade.BTCUSDT"))
    (frame,) = world.session.on_trade(TradeEvent("bybit", "BTC-USDT", 650_001, 200_000, taker, 7), SECOND)
    (trade,) = json.loads(frame)["data"]
    assert (trade["S"], trade["p"], trade["v"], trade["T"]) == (side, "65000.1", "0.002", 1000)


def test_depths_have_counters_of_their_own_and_all_topics_of_a_symbol_one_clock(make_world):
    world = make_world("bybit")
    world.say(topics("orderbook.50.BTCUSDT", "orderbook.200.BTCUSDT", "orderbook.1.BTCUSDT", "publicTrade.BTCUSDT"))
    world.run(20)
    messages = [json.loads(frame) for frame in world.frames if '"topic"' in frame]
    ends = {message["topic"]: message["data"]["u"] for message in messages if message["topic"][0] == "o"}
    assert len(set(ends.values())) == 3
    rows = [(m["data"] if isinstance(m["data"], dict) else m["data"][0], m["topic"]) for m in messages]
    sequences = [row["seq"] for row, _ in rows]
    assert sequences == sorted(sequences)
    assert any(later - earlier > 1 for earlier, later in pairwise(sequences)), "it jumps"
    traded = {row["seq"] for row, topic in rows if topic.startswith("publicTrade")}
    assert traded
    assert not traded & {row["seq"] for row, topic in rows if topic.startswith("orderbook")}


def test_two_clients_see_the_same_numbers(make_world):
    world = make_world("bybit")
    other = world.server.session("", 0)
    world.say(topics("publicTrade.BTCUSDT", "orderbook.50.BTCUSDT"))
    answer = other.on_client(json.dumps(topics("publicTrade.BTCUSDT", "orderbook.50.BTCUSDT")), 0)
    on_book, on_trade = world.session.on_book, world.session.on_trade
    seen = []

    def both(first, second):
        def call(event, now_ns):
            seen.extend(second(event, now_ns))
            return first(event, now_ns)

        return call

    world.session.on_book, world.session.on_trade = both(on_book, other.on_book), both(on_trade, other.on_trade)
    assert world.run(10) == seen
    assert seen
    assert ["topic" in json.loads(frame) for frame in answer] == [False, True], "one sees the acknowledgement first"
    assert ["topic" in json.loads(frame) for frame in world.frames[:2]] == [True, False], "one the snapshot"


def test_the_best_levels_come_as_snapshots_only_and_again_after_three_seconds_with_the_same_number(make_world):
    world = make_world("bybit")
    world.say(topics("orderbook.1.BTCUSDT"))
    frames = [json.loads(frame) for frame in world.run(10)]
    assert {frame["type"] for frame in frames} == {"snapshot"}
    assert all(len(frame["data"]["b"]) == len(frame["data"]["a"]) == 1 for frame in frames)
    held, numbers = replay(world.frames, "orderbook.1.BTCUSDT")
    assert held == world.book("BTC-USDT", 1)
    assert all(later == earlier + 1 for earlier, later in pairwise(numbers))
    world.session.on_trade(TradeEvent("bybit", "BTC-USDT", 650_001, 200_000, "buy", 7), 10 * SECOND)
    last_ns = frames[-1]["ts"] * 1_000_000
    assert world.session.on_timer(last_ns + 2 * SECOND) == []
    (again,) = map(json.loads, world.session.on_timer(last_ns + 4 * SECOND))
    assert again["data"] == frames[-1]["data"]
    assert (again["ts"], again["cts"]) == (frames[-1]["ts"] + 4000, frames[-1]["cts"])
    assert world.session.on_timer(last_ns + 5 * SECOND) == []
    assert len(world.session.on_timer(last_ns + 7 * SECOND)) == 1


def test_a_quiet_deeper_book_is_not_sent_again(make_world):
    world = make_world("bybit")
    world.say(topics("orderbook.50.BTCUSDT"))
    assert world.session.on_timer(60 * SECOND) == []


def test_acknowledgements_and_the_pong_have_the_captured_shape(make_world):
    world = make_world("bybit")
    acknowledgement = json.loads(world.say({"req_id": 1, "op": "subscribe", "args": ["publicTrade.BTCUSDT"]})[0])
    assert acknowledgement.pop("conn_id").startswith("d9avsh3fo0jvsls9d82g-")
    assert acknowledgement == {"success": True, "ret_msg": "subscribe", "req_id": "1", "op": "subscribe"}
    pong = json.loads(world.say({"op": "ping"})[0])
    assert tuple(pong) == ("success", "ret_msg", "conn_id", "op")
    assert (pong["success"], pong["ret_msg"], pong["op"]) == (True, "pong", "ping")
    (done,) = world.say({"op": "unsubscribe", "args": ["publicTrade.BTCUSDT"]})
    assert json.loads(done)["ret_msg"] == "unsubscribe"
    assert world.run(20) == []


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (topics("orderbook.50.NOPEUSDT"), "error:handler not found,topic:orderbook.50.NOPEUSDT"),
        (topics("orderbook.50.btcusdt"), "error:handler not found,topic:orderbook.50.btcusdt"),
        (topics("orderbook.30.BTCUSDT"), "error:handler not found,topic:orderbook.30.BTCUSDT"),
        (topics("tickers.BTCUSDT"), "error:handler not found,topic:tickers.BTCUSDT"),
        (topics("order"), "error:handler not found,topic:order"),
        (topics(*["publicTrade.BTCUSDT"] * 11), "args size >10"),
        ({"op": "nope"}, "error:invalid op"),
    ],
)
def test_it_refuses_in_its_own_words(make_world, request_, words):
    world = make_world("bybit")
    (frame,) = world.say(request_)
    answer = json.loads(frame)
    assert (answer["success"], answer["ret_msg"], answer["op"]) == (False, words, request_["op"])


def test_one_bad_topic_refuses_the_whole_frame_and_ten_arguments_are_allowed(make_world):
    world = make_world("bybit")
    world.say(topics("orderbook.50.BTCUSDT", "orderbook.50.NOPEUSDT"))
    assert world.run(5) == []
    names = [f"orderbook.{depth}.{name}" for depth in (1, 50, 200) for name in ("BTCUSDT", "ETHUSDT", "SOLUSDT")]
    assert len(world.say(topics(*names, "publicTrade.BTCUSDT"), 5 * SECOND)) == 10


def test_a_second_subscription_is_refused_until_the_topic_is_unsubscribed(make_world):
    world = make_world("bybit")
    world.say(topics("orderbook.50.BTCUSDT", "publicTrade.BTCUSDT"))
    for topic in ("orderbook.50.BTCUSDT", "publicTrade.BTCUSDT"):
        (refusal,) = world.say(topics(topic))
        assert json.loads(refusal)["ret_msg"] == f"error:already subscribed,topic:{topic}"
    world.run(5)
    world.say({"op": "unsubscribe", "args": ["orderbook.50.BTCUSDT"]})
    world.run(10)
    world.say(topics("orderbook.50.BTCUSDT"), 10 * SECOND)
    world.run(20)
    held, numbers = replay(world.frames, "orderbook.50.BTCUSDT")
    assert held == world.book("BTC-USDT", 50)
    assert any(later > earlier + 1 for earlier, later in pairwise(numbers)), "the stream went on without us"


def test_nonsense_is_answered_and_the_connection_stays(make_world):
    session = make_world("bybit").session
    for text in ("hello", "[]", '{"args":[]}'):
        (frame,) = session.on_client(text, 0)
        assert json.loads(frame)["success"] is False


def test_it_closes_who_subscribes_nothing_for_a_minute_or_says_nothing_for_ten(make_world):
    session = make_world("bybit").session
    assert not session.overdue(60 * SECOND)
    assert session.overdue(61 * SECOND)
    session.on_client(json.dumps(topics("publicTrade.BTCUSDT")), 50 * SECOND)
    assert not session.overdue(600 * SECOND)
    assert session.overdue(651 * SECOND)
    session.on_client('{"op":"ping"}', 640 * SECOND)
    assert not session.overdue(651 * SECOND)


def test_rest_time(make_world):
    answer = make_world("bybit").get("/v5/market/time", 1_688_639_403_423_213_947)
    result = {"timeSecond": "1688639403", "timeNano": "1688639403423213947"}
    assert answer == {"retCode": 0, "retMsg": "OK", "result": result, "retExtInfo": {}, "time": 1688639403423}


def test_rest_instruments_have_the_fields_of_the_real_ones(make_world):
    world = make_world("bybit")
    world.server.halted.add("ETH-USDT")
    result = world.get("/v5/market/instruments-info?category=spot&limit=1000")["result"]
    assert result["category"] == "spot"
    rows = {row["symbol"]: row for row in result["list"]}
    assert set(rows) == {"BTCUSDT", "ETHUSDT", "SOLUSDT"}
    named = {"baseCoin": "BTC", "quoteCoin": "USDT", "status": "Trading"}
    assert rows["BTCUSDT"].items() >= named.items()
    lots = {"basePrecision": "0.000001", "minOrderQty": "0.00001", "minOrderAmt": "5"}
    assert rows["BTCUSDT"]["lotSizeFilter"].items() >= lots.items()
    assert rows["BTCUSDT"]["priceFilter"] == {"tickSize": "0.1"}
    assert rows["ETHUSDT"]["status"] == "Closed"
    (one,) = world.get("/v5/market/instruments-info?category=spot&symbol=ETHUSDT")["result"]["list"]
    assert one == rows["ETHUSDT"]


def test_rest_book_has_the_number_of_the_deepest_stream(make_world):
    world = make_world("bybit")
    world.say(topics("orderbook.1000.BTCUSDT"))
    world.run(10)
    result = world.get("/v5/market/orderbook?category=spot&symbol=BTCUSDT&limit=1000", 10 * SECOND)["result"]
    held, numbers = replay(world.frames, "orderbook.1000.BTCUSDT")
    assert set(result) == {"s", "a", "b", "ts", "u", "seq", "cts"}
    assert result["u"] == numbers[-1]
    assert {float(p): float(s) for p, s in result["b"]} == held["bids"]
    assert {float(p): float(s) for p, s in result["a"]} == held["asks"]
    assert len(world.get("/v5/market/orderbook?category=spot&symbol=BTCUSDT")["result"]["b"]) == 1


@pytest.mark.parametrize(
    "path",
    [
        "/v5/market/orderbook?category=spot&symbol=NOPEUSDT",
        "/v5/market/orderbook?category=spot",
        "/v5/market/orderbook?category=spot&symbol=BTCUSDT&limit=x",
        "/v5/market/orderbook?symbol=BTCUSDT",
        "/v5/market/instruments-info",
        "/v5/market/instruments-info?category=spot&symbol=NOPEUSDT",
    ],
)
def test_rest_errors_come_with_http_200(make_world, path):
    answer = make_world("bybit").get(path)
    assert (answer["retCode"], answer["result"]) == (10001, {})
