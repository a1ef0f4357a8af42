"""OKX as a naive client sees it: written from the documentation, not from our collector."""

import json
from itertools import pairwise

import pytest

from services.simulator.market import TradeEvent

SECOND = 1_000_000_000
BOOKS = {"channel": "books", "instId": "BTC-USDT"}
TRADES = {"channel": "trades", "instId": "BTC-USDT"}


def subscribe(*args, op="subscribe", **more):
    return {**more, "op": op, "args": list(args)}


def channel(frames, name, symbol="BTC-USDT"):
    """Data frames of a channel."""
    messages = [json.loads(frame) for frame in frames if frame != "pong"]
    return [m for m in messages if "data" in m and m["arg"] == {"channel": name, "instId": symbol}]


def replay(messages):
    """The book of a client that follows the rules for `seqId` and `prevSeqId`."""
    held, last = {}, None
    for message in messages:
        (data,) = message["data"]
        if message["action"] == "snapshot":
            assert data["prevSeqId"] == -1
            held = {"bids": {}, "asks": {}}
        else:
            assert data["prevSeqId"] == last, "a gap in the chain"
        last = data["seqId"]
        for side in ("bids", "asks"):
            for price, size, *_ in data[side]:
                held[side].pop(float(price), None)
                if size != "0":
                    held[side][float(price)] = float(size)
    return held


def test_a_client_that_follows_the_documentation_has_the_true_book(make_world):
    world = make_world("okx")
    world.say(subscribe(BOOKS, {"channel": "books", "instId": "ETH-USDT"}))
    world.run(30)
    messages = channel(world.frames, "books")
    assert len(messages) > 100
    assert replay(messages) == world.book("BTC-USDT", 400)
    assert replay(channel(world.frames, "books", "ETH-USDT")) == world.book("ETH-USDT", 400)


def test_the_book_is_that_of_400_levels(make_world, monkeypatch):
    monkeypatch.setattr("services.simulator.market.LEVELS", 420)
    world = make_world("okx")
    world.say(subscribe(BOOKS))
    world.run(3)
    assert len(world.book("BTC-USDT")["bids"]) == 420
    assert replay(channel(world.frames, "books")) == world.book("BTC-USDT", 400)


def test_frames_have_the_documented_shape(make_world):
    world = make_world("okx")
    others = [{"channel": name, "instId": "BTC-USDT"} for name in ("books5", "bbo-tbt")]
    world.say(subscribe(BOOKS, TRADES, *others))
    world.run(20)
    books = channel(world.frames, "books")
    assert {tuple(frame) for frame in books} == {("arg", "action", "data")}
    assert [frame["action"] for frame in books] == ["snapshot"] + ["update"] * (len(books) - 1)
    fields = {tuple(data) for frame in books for data in frame["data"]}
    assert fields == {("asks", "bids", "ts", "checksum", "seqId", "prevSeqId")}
    assert {frame["data"][0]["checksum"] for frame in books} == {0}
    levels = [level for frame in books for side in ("asks", "bids") for level in frame["data"][0][side]]
    assert {len(level) for level in levels} == {4}
    assert {level[2] for level in levels} == {"0"}
    assert all((level[1] == "0") == (level[3] == "0") for level in levels)
    assert {tuple(f["data"][0]) for f in channel(world.frames, "bbo-tbt")} == {("asks", "bids", "ts", "seqId")}
    assert {tuple(f["data"][0]) for f in channel(world.frames, "books5")} == {("asks", "bids", "instId", "ts", "seqId")}
    trade = channel(world.frames, "trades")[0]["data"][0]
    assert tuple(trade) == ("instId", "tradeId", "px", "sz", "side", "ts", "count", "source", "seqId")
    assert all(isinstance(value, str) for name, value in trade.items() if name != "seqId")


@pytest.mark.parametrize(("name", "levels"), [("books5", 5), ("bbo-tbt", 1)])
def test_the_small_channels_send_all_their_levels_each_time(make_world, name, levels):
    world = make_world("okx")
    world.say(subscribe({"channel": name, "instId": "BTC-USDT"}))
    world.run(10)
    frames = channel(world.frames, name)
    assert len(frames) > 5
    assert all("action" not in frame and len(frame["data"][0]["bids"]) == levels for frame in frames)
    (last,) = frames[-1]["data"]
    shown = {side: {float(row[0]): float(row[1]) for row in last[side]} for side in ("bids", "asks")}
    assert shown == world.book("BTC-USDT", levels)


def test_all_channels_and_clients_share_one_counter_that_jumps(make_world):
    world = make_world("okx")
    world.say(subscribe(BOOKS, TRADES, {"channel": "bbo-tbt", "instId": "BTC-USDT"}))
    world.run(15)
    late = world.server.session("", 15 * SECOND)
    (_, snapshot) = late.on_client(json.dumps(subscribe(BOOKS)), 15 * SECOND)
    numbers = {name: [f["data"][0]["seqId"] for f in channel(world.frames, name)] for name in ("books", "bbo-tbt")}
    assert json.loads(snapshot)["data"][0]["seqId"] == numbers["books"][-1]
    assert set(numbers["bbo-tbt"]) <= set(numbers["books"]), "a change at the top has the number of its book update"
    assert any(later - earlier > 1 for earlier, later in pairwise(numbers["books"]))
    traded = [frame["data"][0]["seqId"] for frame in channel(world.frames, "trades")]
    assert traded
    assert not set(traded) & set(numbers["books"])
    arrived = [json.loads(frame)["data"][0]["seqId"] for frame in world.frames if '"data"' in frame]
    assert arrived == sorted(arrived)
    updates = channel(world.run(16), "books")
    assert replay([json.loads(snapshot), *updates]) == world.book("BTC-USDT", 400)


def test_a_trade_has_the_same_number_for_every_client(make_world):
    world = make_world("okx")
    other = world.server.session("", 0)
    world.say(subscribe(TRADES))
    other.on_client(json.dumps(subscribe(TRADES)), 0)
    for trade_id in (7, 8):
        trade = TradeEvent("okx", "BTC-USDT", 650_001, 200_000, "buy", trade_id)
        assert world.session.on_trade(trade, 0) == other.on_trade(trade, 0) != []


def test_a_quiet_book_sends_an_empty_update_after_a_minute_and_the_chain_goes_on(make_world):
    world = make_world("okx")
    world.say(subscribe(BOOKS))
    assert world.session.on_timer(59 * SECOND) == []
    frames = world.session.on_timer(60 * SECOND)
    (data,) = json.loads(frames[0])["data"]
    assert (data["asks"], data["bids"]) == ([], [])
    assert data["prevSeqId"] == data["seqId"]
    assert json.loads(frames[0])["action"] == "update"
    world.frames += frames
    assert world.session.on_timer(61 * SECOND) == []
    world.run(5)
    assert replay(channel(world.frames, "books")) == world.book("BTC-USDT", 400)


def test_a_sequence_reset_continues_the_chain_with_a_lower_number(make_world):
    world = make_world("okx")
    world.say(subscribe(BOOKS))
    world.run(5)
    world.server.reset_sequence("BTC-USDT")
    world.run(10)
    world.server.reset_sequence("BTC-USDT")
    world.run(15)
    numbers = [frame["data"][0]["seqId"] for frame in channel(world.frames, "books")]
    assert sum(later < earlier for earlier, later in pairwise(numbers)) == 2
    assert replay(channel(world.frames, "books")) == world.book("BTC-USDT", 400)


def test_trades_cover_every_id_and_some_frames_cover_two(make_world):
    world = make_world("okx")
    world.say(subscribe(TRADES))
    world.run(60)
    trades = [frame["data"][0] for frame in channel(world.frames, "trades")]
    assert {trade["count"] for trade in trades} == {"1", "2"}
    for earlier, later in pairwise(trades):
        assert int(later["tradeId"]) - int(later["count"]) == int(earlier["tradeId"])


@pytest.mark.parametrize("taker", ["buy", "sell"])
def test_the_side_of_a_trade_is_the_takers(make_world, taker):
    world = make_world("okx")
    world.say(subscribe(TRADES))
    (frame,) = world.session.on_trade(TradeEvent("okx", "BTC-USDT", 650_001, 200_000, taker, 7), SECOND)
    (trade,) = json.loads(frame)["data"]
    assert (trade["side"], trade["px"], trade["sz"], trade["ts"]) == (taker, "65000.1", "0.002", "1000")


def test_every_argument_has_an_acknowledgement_of_its_own_before_its_data(make_world):
    world = make_world("okx")
    frames = [json.loads(frame) for frame in world.say(subscribe(BOOKS, TRADES, id="1512"))]
    connection = frames[0]["connId"]
    assert len(connection) == 8
    assert frames[0] == {"id": "1512", "event": "subscribe", "arg": BOOKS, "connId": connection}
    assert frames[1]["action"] == "snapshot"
    assert frames[2] == {"id": "1512", "event": "subscribe", "arg": TRADES, "connId": connection}
    (done,) = world.say(subscribe(TRADES, op="unsubscribe"))
    assert json.loads(done) == {"event": "unsubscribe", "arg": TRADES, "connId": connection}
    world.run(10)
    assert channel(world.frames, "trades") == []
    assert world.server.session("", 0).on_client(json.dumps(subscribe(TRADES)), 0)[0].count(connection) == 0


def test_an_unsubscribed_book_is_silent_and_a_new_subscription_brings_a_snapshot(make_world):
    world = make_world("okx")
    world.say(subscribe(BOOKS))
    world.run(5)
    world.say(subscribe(BOOKS, op="unsubscribe"), 5 * SECOND)
    assert world.run(10) == []
    world.say(subscribe(BOOKS), 10 * SECOND)
    world.run(15)
    assert replay(channel(world.frames, "books")) == world.book("BTC-USDT", 400)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("hello", "60012"),
        ('{"op":"subscribe","argss":[{"channel":"books","instId":"BTC-USDT"}]}', "60012"),
        ('{"op":"subscribe","args":["books"]}', "60012"),
        ('{"op":"nope","args":[{"channel":"books","instId":"BTC-USDT"}]}', "60012"),
        ('{"op":"subscribe","args":[{"channel":"candle1m","instId":"BTC-USDT"}]}', "60018"),
        ('{"op":"subscribe","args":[{"channel":"books","instId":"NOPE-USDT"}]}', "60018"),
        ('{"op":"subscribe","args":[{"channel":"books"}]}', "60018"),
    ],
)
def test_it_refuses_with_its_codes(make_world, text, code):
    (frame,) = make_world("okx").session.on_client(text, 0)
    answer = json.loads(frame)
    assert set(answer) == {"event", "code", "msg", "connId"}
    assert (answer["event"], answer["code"]) == ("error", code)


def test_the_words_of_a_wrong_channel_are_the_observed_ones_and_fail_the_whole_request(make_world):
    world = make_world("okx")
    (frame,) = world.say(subscribe(BOOKS, {"channel": "candle1m", "instId": "BTC-USDT"}))
    assert json.loads(frame)["msg"] == (
        "Subscribe failed, wrong URL or channel:candle1m,instId:BTC-USDT doesn't exist. Please use the correct URL, "
        "channel and parameters referring to API document."
    )
    assert world.run(5) == []


def test_it_answers_a_text_ping_with_a_text_pong(make_world):
    assert make_world("okx").session.on_client("ping", 0) == ["pong"]


def test_480_requests_an_hour_and_no_more(make_world):
    world = make_world("okx")
    for number in range(240):
        for op in ("subscribe", "unsubscribe"):
            assert json.loads(world.say(subscribe(TRADES, op=op), number * SECOND)[0])["event"] == op
    (frame,) = world.say(subscribe(TRADES), 300 * SECOND)
    assert json.loads(frame)["code"] == "60014"
    assert world.session.on_client("ping", 300 * SECOND) == ["pong"], "pings do not count"
    assert json.loads(world.say(subscribe(TRADES), 3600 * SECOND)[0])["event"] == "subscribe"
    other = world.server.session("", 300 * SECOND)
    assert '"subscribe"' in other.on_client(json.dumps(subscribe(TRADES)), 300 * SECOND)[0], "per connection"


def test_it_closes_without_a_subscription_or_without_data_for_thirty_seconds(make_world):
    session = make_world("okx").session
    session.on_client("ping", 20 * SECOND)
    assert not session.overdue(30 * SECOND)
    assert session.overdue(31 * SECOND), "a ping is no subscription"
    session.on_client(json.dumps(subscribe(TRADES)), 29 * SECOND)
    assert not session.overdue(59 * SECOND)
    assert session.overdue(60 * SECOND), "nothing was sent"
    session.on_client("ping", 58 * SECOND)
    assert not session.overdue(80 * SECOND)
    session.on_client(json.dumps(subscribe(TRADES, op="unsubscribe")), 80 * SECOND)
    assert not session.overdue(110 * SECOND)
    assert session.overdue(111 * SECOND)


def test_it_announces_its_end_with_a_notice(make_world):
    (frame,) = make_world("okx").session.announce_end(0)
    answer = json.loads(frame)
    assert answer.pop("connId")
    assert answer == {
        "event": "notice",
        "code": "64008",
        "msg": "The connection will soon be closed for a service upgrade. Please reconnect.",
    }


def test_rest_time(make_world):
    answer = make_world("okx").get("/api/v5/public/time", 1_597_026_383_085 * 1_000_000)
    assert answer == {"code": "0", "msg": "", "data": [{"ts": "1597026383085"}]}


def test_rest_instruments_have_the_fields_of_the_captured_ones(make_world):
    world = make_world("okx")
    world.server.halted.add("ETH-USDT")
    answer = world.get("/api/v5/public/instruments?instType=SPOT")
    assert answer["code"] == "0"
    rows = {row["instId"]: row for row in answer["data"]}
    assert set(rows) == {"BTC-USDT", "ETH-USDT", "SOL-USDT"}
    expected = {"instType": "SPOT", "baseCcy": "BTC", "quoteCcy": "USDT", "state": "live", "tickSz": "0.1"}
    assert rows["BTC-USDT"].items() >= (expected | {"lotSz": "0.00000001", "minSz": "0.00001"}).items()
    captured = "alias baseCcy category ctMult ctType ctVal ctValCcy expTime instId instType lever listTime lotSz minSz"
    assert set(rows["BTC-USDT"]) >= {*captured.split(), "quoteCcy", "settleCcy", "state", "stk", "tickSz", "uly"}
    assert all(isinstance(value, str) for value in rows["BTC-USDT"].values())
    assert rows["ETH-USDT"]["state"] == "suspend"
    assert world.get("/api/v5/public/instruments?instType=SPOT&instId=ETH-USDT")["data"] == [rows["ETH-USDT"]]


def test_rest_book_has_the_number_of_the_stream_and_one_level_unless_asked(make_world):
    world = make_world("okx")
    world.say(subscribe(BOOKS))
    world.run(10)
    (data,) = world.get("/api/v5/market/books?instId=BTC-USDT&sz=400", 10 * SECOND)["data"]
    assert set(data) == {"asks", "bids", "ts", "seqId"}
    assert data["seqId"] == channel(world.frames, "books")[-1]["data"][0]["seqId"]
    shown = {side: {float(row[0]): float(row[1]) for row in data[side]} for side in ("bids", "asks")}
    assert shown == world.book("BTC-USDT", 400)
    assert len(world.get("/api/v5/market/books?instId=BTC-USDT")["data"][0]["asks"]) == 1


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/api/v5/public/instruments", 400, "50014"),
        ("/api/v5/public/instruments?instType=SWAP", 400, "51000"),
        ("/api/v5/public/instruments?instType=SPOT&instId=NOPE-USDT", 200, "51001"),
        ("/api/v5/market/books", 400, "50014"),
        ("/api/v5/market/books?instId=NOPE-USDT", 200, "51001"),
        ("/api/v5/market/books?instId=BTC-USDT&sz=401", 400, "51000"),
    ],
)
def test_rest_errors_have_a_code_that_is_not_0(make_world, path, status, code):
    answer = make_world("okx").get(path, status=status)
    assert (answer["code"], answer["data"]) == (code, [])
