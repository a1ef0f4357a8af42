"""One connection's books: each recipe step by step, with frames and moments passed in."""

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from services.collector.exchanges import EXCHANGES
from services.collector.feed import MAX_ATTEMPTS, Feed
from services.collector.keeper import CALM_NS, MAX_BUFFERED, MOVES_WITHIN_NS, Timing
from services.collector.outputs import BookChanged, Fetch, HealthChanged, Reconnect, Replace, Send, Traded
from shared.errors import LinkLost, RateLimited, SubscriptionRefused, UnknownSymbol

MS = 1_000_000
SECOND = 1000 * MS
TIMING = Timing(first_data_ns=15 * SECOND, refresh_ns=1800 * SECOND, max_silence_ns=2 * SECOND)


def feed_of(exchange: str, names: dict[str, str], depth: int | None = None, timing: Timing = TIMING, **more) -> Feed:
    feed = Feed(EXCHANGES[exchange], names, depth, 10, timing, 0, **more)
    feed.on_connected(0)
    return feed


def states(outputs: list[Any]) -> list[tuple[str, str]]:
    return [(out.symbol, out.state) for out in outputs if isinstance(out, HealthChanged)]


def said(outputs: list[Any]) -> list[dict[str, Any]]:
    return [json.loads(out.frame) for out in outputs if isinstance(out, Send)]


def books(outputs: list[Any]) -> list[BookChanged]:
    return [out for out in outputs if isinstance(out, BookChanged)]


def state_of(feed: Feed, symbol: str) -> str:
    return {name: state for name, state, _ in feed.books()}[symbol]


# ---------------------------------------------------------------- Binance


def diff(first: int, last: int, bid: float = 10.0, size: float = 1.0, symbol: str = "BTCUSDT", at_s: int = 0) -> str:
    data = {
        "e": "depthUpdate",
        "E": at_s * 1000,
        "s": symbol,
        "U": first,
        "u": last,
        "b": [[str(bid), str(size)]],
        "a": [],
    }
    return json.dumps({"stream": "x", "data": data})


def depth(last_id: int, bid: float = 10.0, ask: float = 11.0) -> str:
    return json.dumps({"lastUpdateId": last_id, "bids": [[str(bid), "1"]], "asks": [[str(ask), "1"]]})


@pytest.fixture
def binance() -> Feed:
    return feed_of("binance", {"BTCUSDT": "BTC-USDT", "ETHUSDT": "ETH-USDT"})


def test_binance_a_superseded_diff_after_an_early_snapshot_shows_that_the_stream_flows(binance):
    binance.on_rest("BTCUSDT", depth(100), 1)
    assert ("BTC-USDT", "live") in states(binance.on_frame(diff(98, 99), 2))
    assert binance.counts.duplicates == 0


def test_binance_buffers_and_fetches_once_then_brackets_the_snapshot(binance):
    assert binance.on_frame(diff(100, 102), 1) == [Fetch("BTCUSDT")]
    assert binance.on_frame(diff(103, 105, bid=10.5), 2) == []
    outputs = binance.on_rest("BTCUSDT", depth(103), 3)
    assert states(outputs) == [("BTC-USDT", "live")]
    (book,) = [out for out in outputs if isinstance(out, BookChanged)]
    assert book.bids == [(10.5, 1.0), (10.0, 1.0)], "the diff that brackets 104 was applied, the older one dropped"


def test_binance_a_snapshot_older_than_the_stream_is_fetched_again(binance):
    binance.on_frame(diff(100, 102), 1)
    assert binance.on_rest("BTCUSDT", depth(98), 2) == [Fetch("BTCUSDT")]
    assert state_of(binance, "BTC-USDT") == "syncing"
    assert ("BTC-USDT", "live") in states(binance.on_rest("BTCUSDT", depth(101), 3))


def test_binance_is_not_live_before_the_stream_has_shown_itself(binance):
    """An unknown stream is acknowledged and silent: a REST answer alone proves nothing."""
    assert states(binance.on_rest("BTCUSDT", depth(100), 1)) == []
    assert ("BTC-USDT", "live") in states(binance.on_frame(diff(101, 101), 2))


def test_binance_a_gap_drops_the_book_and_fetches_while_others_stay_live(binance):
    for name in ("BTCUSDT", "ETHUSDT"):
        binance.on_frame(diff(100, 100, symbol=name), 1)
        binance.on_rest(name, depth(100), 2)
    outputs = binance.on_frame(diff(103, 104), 3)
    assert states(outputs) == [("BTC-USDT", "gap")]
    assert Fetch("BTCUSDT") in outputs
    assert state_of(binance, "ETH-USDT") == "live"
    assert binance.counts.gaps == 1
    assert binance.on_frame(diff(105, 106), 4) == [], "nothing is published while in doubt"
    assert ("BTC-USDT", "live") in states(binance.on_rest("BTCUSDT", depth(104), 5))


def test_binance_a_repeated_diff_is_ignored_and_counted(binance):
    binance.on_frame(diff(100, 100), 1)
    binance.on_rest("BTCUSDT", depth(100), 2)
    binance.on_frame(diff(101, 102), 3)
    assert binance.on_frame(diff(101, 102), 4) == []
    assert binance.counts.duplicates == 1
    assert binance.counts.gaps == 0


@pytest.mark.parametrize(("first", "last"), [(101, 103), (102, 103), (90, 95), (1, 1)])
def test_binance_once_joined_each_diff_begins_where_the_last_ended(binance, first, last):
    """Also one that is older than the book: if its numbers were reset, ignoring them would freeze the book."""
    binance.on_frame(diff(100, 100), 1)
    binance.on_rest("BTCUSDT", depth(100), 2)
    binance.on_frame(diff(101, 102), 3)
    assert states(binance.on_frame(diff(first, last), 4)) == [("BTC-USDT", "gap")]


def test_binance_a_crossed_book_is_dropped(binance):
    binance.on_frame(diff(100, 100), 1)
    binance.on_rest("BTCUSDT", depth(100), 2)
    outputs = binance.on_frame(diff(101, 101, bid=12.0), 3)
    assert states(outputs) == [("BTC-USDT", "crossed")]
    assert Fetch("BTCUSDT") in outputs
    assert not books(outputs)


def test_binance_announces_its_shutdown_and_its_books_stay_until_another_connection_takes_over(binance):
    binance.on_frame(diff(100, 100), 1)
    binance.on_rest("BTCUSDT", depth(100), 2)
    (out,) = binance.on_frame('{"stream":"!serverShutdown","data":{"e":"serverShutdown","E":1}}', 3)
    assert isinstance(out, Replace)
    assert "serverShutdown" in out.reason
    assert state_of(binance, "BTC-USDT") == "live"


def ticker(update: int, bid: float, ask: float, size: float = 3.0, symbol: str = "BTCUSDT") -> str:
    data = {"u": update, "s": symbol, "b": str(bid), "B": str(size), "a": str(ask), "A": str(size)}
    return json.dumps({"stream": "x@bookTicker", "data": data})


@pytest.fixture
def live(binance) -> Feed:
    """Bids 10 and 9, ask 11 and 12, at update 100."""
    binance.on_frame(diff(100, 100), 1)
    body = {"lastUpdateId": 100, "bids": [["10", "1"], ["9", "1"]], "asks": [["11", "1"], ["12", "1"]]}
    binance.on_rest("BTCUSDT", json.dumps(body), 2)
    return binance


def test_a_faster_top_is_shown_over_the_book_until_the_book_has_caught_up(live):
    (book,) = books(live.on_frame(ticker(103, 9.0, 12.0), 3))
    assert (book.bids, book.asks) == ([(9.0, 3.0)], [(12.0, 3.0)]), "better levels are gone by then"
    assert live.on_frame(ticker(102, 9.5, 11.5), 4) == [], "an older one is not shown"
    (book,) = books(live.on_frame(ticker(104, 9.5, 11.5), 5))
    assert (book.bids, book.asks) == ([(9.5, 3.0), (9.0, 1.0)], [(11.5, 3.0), (12.0, 1.0)])
    (book,) = books(live.on_frame(diff(101, 105, bid=10.0, size=2.0), 6))
    assert (book.bids[0], book.asks[0]) == ((10.0, 2.0), (11.0, 1.0)), "the book is newer now"


def test_a_top_that_contradicts_the_book_at_the_same_update_is_a_doubt_and_tops_are_not_trusted_again(live):
    live.on_frame(ticker(101, 10.0, 11.0, size=1.0), 3)
    outputs = live.on_frame(diff(101, 101, bid=10.0, size=5.0), 4)
    assert states(outputs) == [("BTC-USDT", "gap")]
    assert live.counts.tops_wrong == 1
    assert Fetch("BTCUSDT") in outputs
    body = {"lastUpdateId": 101, "bids": [["10", "1"]], "asks": [["11", "1"]]}
    live.on_rest("BTCUSDT", json.dumps(body), 5)
    live.on_frame(diff(102, 102, bid=9.0), 6)
    assert state_of(live, "BTC-USDT") == "live"
    assert live.on_frame(ticker(110, 1.0, 2.0), 7) == []


def test_a_crossed_top_drops_the_book(live):
    assert states(live.on_frame(ticker(101, 12.0, 11.0), 3)) == [("BTC-USDT", "crossed")]


def test_binance_a_second_look_corrects_what_no_diff_mentions_without_a_break(live):
    outputs = live.on_frame(diff(101, 101, bid=9.0, at_s=1801), 1801 * SECOND)
    assert Fetch("BTCUSDT") in outputs + live.on_timer(1801 * SECOND + 200 * MS)
    live.on_frame(diff(102, 102, bid=9.5, at_s=1802), 1802 * SECOND)
    body = {"lastUpdateId": 101, "bids": [["10", "1"], ["9", "1"], ["8", "7"]], "asks": [["11", "1"], ["12", "1"]]}
    outputs = live.on_rest("BTCUSDT", json.dumps(body), 1803 * SECOND)
    assert states(outputs) == [("BTC-USDT", "gap")], "the bid at 8 was not known: the book was wrong"
    assert live.counts.corrected == 1


def test_binance_a_second_look_that_agrees_changes_nothing(live):
    outputs = live.on_frame(diff(101, 101, bid=9.0, at_s=1801), 1801 * SECOND)
    assert Fetch("BTCUSDT") in outputs + live.on_timer(1801 * SECOND + 200 * MS)
    live.on_frame(diff(102, 102, bid=9.5, at_s=1802), 1802 * SECOND)
    body = {"lastUpdateId": 101, "bids": [["10", "1"], ["9", "1"]], "asks": [["11", "1"], ["12", "1"]]}
    assert live.on_rest("BTCUSDT", json.dumps(body), 1803 * SECOND) == []
    assert state_of(live, "BTC-USDT") == "live"
    assert ("BTC-USDT", "gap") not in states(live.on_frame(diff(103, 103, at_s=1804), 1804 * SECOND)), (
        "the chain goes on"
    )


def test_binance_a_second_look_that_is_newer_while_the_stream_stays_silent_is_a_doubt(live):
    live.on_frame(diff(101, 101, bid=9.0, at_s=1801), 1801 * SECOND)
    live.on_timer(1801 * SECOND + 200 * MS)
    (book,) = books(live.on_rest("BTCUSDT", depth(150, bid=10.5), 1802 * SECOND))
    assert book.bids == [(10.5, 1.0)]
    live.on_proof(1802 * SECOND + MOVES_WITHIN_NS - 1)
    outputs = live.on_proof(1802 * SECOND + MOVES_WITHIN_NS)
    assert states(outputs) == [("BTC-USDT", "gap")]
    assert [frame["method"] for frame in said(outputs)] == ["UNSUBSCRIBE", "SUBSCRIBE"]


def test_binance_a_silent_stream_is_subscribed_again_alone_and_ever_more_slowly(binance):
    binance.on_frame(diff(100, 100), 1)
    binance.on_rest("BTCUSDT", depth(100), 2)
    asked = []
    for second in range(1, 140):
        outputs = binance.on_proof(second * SECOND)
        asked += [(second, frame["method"], frame["params"]) for frame in said(outputs)]
        assert not any(isinstance(out, Reconnect) for out in outputs), "the other book is well"
        binance.on_frame(diff(100 + second, 100 + second, bid=9.0, at_s=second), second * SECOND)
    assert [(at, method) for at, method, _ in asked] == [
        (15, "UNSUBSCRIBE"), (15, "SUBSCRIBE"), (45, "UNSUBSCRIBE"), (45, "SUBSCRIBE"), (105, "UNSUBSCRIBE"), (105, "SUBSCRIBE"),
    ]  # fmt: skip
    assert {tuple(params) for _, _, params in asked} == {("ethusdt@depth@100ms",)}
    assert state_of(binance, "BTC-USDT") == "live"


def test_a_connection_that_brings_no_book_at_all_is_made_again(binance):
    ended = None
    for second in range(1, 200):
        outputs = binance.on_proof(second * SECOND)
        if any(isinstance(out, Reconnect) for out in outputs):
            ended = second
            break
    assert ended == 105, f"{MAX_ATTEMPTS} subscriptions: after 15, 30 and 60 seconds"


def test_binance_without_a_snapshot_gives_up_in_bounds(binance):
    for number in range(MAX_BUFFERED):
        binance.on_frame(diff(number, number), 1)
    with pytest.raises(LinkLost, match="no usable snapshot of BTC-USDT"):
        binance.on_frame(diff(MAX_BUFFERED, MAX_BUFFERED), 1)


def test_binance_says_live_however_many_diffs_were_buffered(binance):
    for number in range(101, 105):
        binance.on_frame(diff(number, number, bid=9.0 + number / 1000), 1)
    outputs = binance.on_rest("BTCUSDT", depth(100), 2)
    assert states(outputs) == [("BTC-USDT", "live")]
    assert [book.bids[0] for book in books(outputs)] == [(10.0, 1.0)], "one book, the last"


def test_binance_looks_again_before_the_price_comes_to_the_end_of_what_the_snapshot_showed():
    feed = Feed(EXCHANGES["binance"], {"BTCUSDT": "BTC-USDT"}, 3, 10, TIMING, 0)
    feed.on_connected(0)
    feed.on_frame(diff(100, 100, bid=7.0), 1)
    body = {
        "lastUpdateId": 100,
        "bids": [["10", "1"], ["9", "1"], ["8", "1"]],
        "asks": [["11", "1"], ["12", "1"], ["13", "1"]],
    }
    feed.on_rest("BTCUSDT", json.dumps(body), 2)
    feed.on_frame(diff(101, 101, bid=10.0, size=0.0), 3)
    outputs = feed.on_frame(diff(102, 102, bid=9.0, size=0.0), 4)
    assert books(outputs)[0].bids[0] == (8.0, 1.0)
    assert Fetch("BTCUSDT") in [out for tick in range(1, 13) for out in feed.on_proof(tick * 100 * MS)]


def test_a_top_that_goes_on_while_its_book_stands_still_is_a_doubt(live):
    live.on_frame(ticker(103, 9.5, 11.5), 3)
    seen = []
    for tick in range(1, 60):
        seen += states(live.on_proof(tick * 100 * MS))
    assert [state for _, state in seen if state != "live"] == ["gap"]


# ---------------------------------------------------------------- Coinbase


def test_a_whole_book_is_never_cut_because_what_is_cut_does_not_come_again():
    feed = feed_of("coinbase", {"BTC-USD": "BTC-USD"})
    updates = [{"side": "offer", "price_level": "10000", "new_quantity": "1"}]
    updates += [{"side": "bid", "price_level": str(number), "new_quantity": "1"} for number in range(1, 8001)]
    event = {"type": "snapshot", "product_id": "BTC-USD", "updates": updates}
    feed.on_frame(
        json.dumps({"channel": "l2_data", "timestamp": "2026-01-01T00:00:00Z", "sequence_num": 0, "events": [event]}), 1
    )
    (_, _, book) = next(iter(feed.books()))
    assert len(book.bids.keys) == 8000


def level2(number: int, kind: str, product: str = "BTC-USD", bid: float = 10.0, ask: float = 11.0) -> str:
    updates = [
        {"side": "bid", "price_level": str(bid), "new_quantity": "1"},
        {"side": "offer", "price_level": str(ask), "new_quantity": "1"},
    ]
    event = {"type": kind, "product_id": product, "updates": updates}
    stamp = "2026-01-01T00:00:00.5Z"
    return json.dumps({"channel": "l2_data", "timestamp": stamp, "sequence_num": number, "events": [event]})


def test_coinbase_a_jump_of_the_counter_drops_every_book_of_the_connection():
    feed = feed_of("coinbase", {"BTC-USD": "BTC-USD", "ETH-USD": "ETH-USD"})
    feed.on_frame(level2(0, "snapshot"), 1)
    feed.on_frame(level2(1, "snapshot", "ETH-USD"), 2)
    outputs = feed.on_frame(level2(3, "update", bid=10.5), 3)
    assert sorted(states(outputs)) == [("BTC-USD", "gap"), ("ETH-USD", "gap")]
    assert [(frame["type"], frame["product_ids"]) for frame in said(outputs)] == [
        ("unsubscribe", ["BTC-USD", "ETH-USD"]),
        ("subscribe", ["BTC-USD", "ETH-USD"]),
    ], "all in one go: eight messages a second are allowed"
    assert not books(outputs)
    assert ("BTC-USD", "live") in states(feed.on_frame(level2(4, "snapshot"), 4))


def test_coinbase_updates_before_the_snapshot_are_not_a_book():
    feed = feed_of("coinbase", {"BTC-USD": "BTC-USD"})
    assert feed.on_frame(level2(0, "update"), 1) == []
    assert ("BTC-USD", "live") in states(feed.on_frame(level2(1, "snapshot"), 2))


def test_coinbase_an_unsolicited_snapshot_replaces_the_book():
    feed = feed_of("coinbase", {"BTC-USD": "BTC-USD"})
    feed.on_frame(level2(0, "snapshot", bid=9.0), 1)
    outputs = feed.on_frame(level2(1, "snapshot", bid=10.0), 2)
    assert [out.bids for out in outputs if isinstance(out, BookChanged)] == [[(10.0, 1.0)]]


def test_a_refused_subscription_ends_the_feed():
    feed = feed_of("coinbase", {"BTC-USD": "BTC-USD"})
    with pytest.raises(SubscriptionRefused, match="coinbase refused the subscription: too many"):
        feed.on_frame('{"type":"error","message":"too many"}', 1)


# ---------------------------------------------------------------- Kraken


def kraken_frames() -> list[str]:
    file = Path(__file__).parent / "captures" / "kraken-book10-btcusd-crossbook.jsonl"
    return [json.loads(line)["frame"] for line in file.read_text().splitlines()]


def renamed(frame: str, name: str) -> str:
    return frame.replace("BTC/USD", name)


def test_kraken_a_wrong_checksum_resubscribes_that_symbol_only():
    feed = feed_of("kraken", {"BTC/USD": "BTC-USD", "ETH/USD": "ETH-USD"}, 10)
    frames = [frame for frame in kraken_frames() if '"channel":"book","type"' in frame][:3]
    for name in ("BTC/USD", "ETH/USD"):
        feed.on_frame(renamed(frames[0], name), 1)
    data = json.loads(frames[1])
    data["data"][0]["checksum"] += 1
    outputs = feed.on_frame(json.dumps(data), 2)
    assert states(outputs) == [("BTC-USD", "checksum")]
    sent = [json.loads(out.frame) for out in outputs if isinstance(out, Send)]
    assert [frame["method"] for frame in sent] == ["unsubscribe", "subscribe"]
    assert all(frame["params"]["symbol"] == ["BTC/USD"] and frame["params"]["depth"] == 10 for frame in sent)
    assert state_of(feed, "ETH-USD") == "live"
    assert feed.on_frame(frames[2], 3) == [], "nothing is published before the next snapshot"
    assert states(feed.on_frame(frames[0], 4)) == [("BTC-USD", "gap")], "a snapshot older than that update is late"
    fresh = json.loads(frames[0], parse_float=Decimal)
    text = frames[0].replace(fresh["data"][0]["timestamp"], "2026-08-01T03:00:00.000000Z")
    assert ("BTC-USD", "live") in states(feed.on_frame(text, 5))


def test_kraken_publishes_nothing_while_the_exchange_is_not_online():
    feed = feed_of("kraken", {"BTC/USD": "BTC-USD"}, 10)
    feed.on_frame(kraken_frames()[2], 1)
    outputs = feed.on_frame('{"channel":"status","type":"update","data":[{"system":"maintenance"}]}', 2)
    assert states(outputs) == [("BTC-USD", "halted")]
    assert feed.on_frame(kraken_frames()[2], 3) == [], "a snapshot meanwhile is not a market"
    outputs = feed.on_frame('{"channel":"status","type":"update","data":[{"system":"online"}]}', 4)
    assert states(outputs) == [("BTC-USD", "syncing")]
    assert [frame["method"] for frame in said(outputs)] == ["unsubscribe", "subscribe"]
    assert ("BTC-USD", "live") in states(feed.on_frame(kraken_frames()[2], 5))


def test_kraken_a_rate_limit_is_not_a_refusal():
    feed = feed_of("kraken", {"BTC/USD": "BTC-USD"}, 10)
    with pytest.raises(RateLimited, match="Exceeded msg rate"):
        feed.on_frame('{"Error":"Exceeded msg rate"}', 1)
    with pytest.raises(RateLimited, match="Rate limit exceeded"):
        feed.on_frame('{"error":"EAPI:Rate limit exceeded","method":"subscribe","success":false}', 1)


def test_a_book_that_is_doubted_again_and_again_is_subscribed_ever_more_slowly():
    feed = feed_of("kraken", {"BTC/USD": "BTC-USD"}, 10)
    snapshot = kraken_frames()[2]
    wrong = json.loads(snapshot)
    wrong["data"][0]["checksum"] += 1
    asked, now = [], 0
    for _ in range(6):
        now += 1
        outputs = feed.on_frame(json.dumps(wrong), now)
        waited = 0
        while not said(outputs):
            waited += 100 * MS
            outputs = feed.on_proof(now + waited)
        now += waited
        asked.append(waited / SECOND)
    assert asked[0] == 0, "the first time at once"
    assert asked[1:] == [1.0, 2.0, 4.0, 8.0, 16.0]
    feed.on_frame(snapshot, now + 1)
    assert said(feed.on_frame(json.dumps(wrong), now + 2 + CALM_NS)), "calm for a minute: at once again"


def test_a_refused_book_that_came_before_stops_alone():
    names = {"BTC/USD": "BTC-USD", "ETH/USD": "ETH-USD"}
    feed = feed_of("kraken", names, 10, proven=frozenset(names))
    refusal = {
        "error": "Currency pair not supported BTC/USD",
        "method": "subscribe",
        "success": False,
        "symbol": "BTC/USD",
    }
    outputs = feed.on_frame(json.dumps(refusal), 1)
    assert states(outputs) == [("BTC-USD", "halted")]
    assert ("ETH-USD", "live") in states(feed.on_frame(renamed(kraken_frames()[2], "ETH/USD"), 2))


def test_kraken_a_halt_of_the_exchange_is_not_lifted_by_metadata_nor_the_other_way_round():
    feed = feed_of("kraken", {"BTC/USD": "BTC-USD"}, 10)
    feed.on_frame(kraken_frames()[2], 1)
    status = '{"channel":"status","type":"update","data":[{"system":"%s"}]}'
    assert states(feed.on_frame(status % "cancel_only", 2)) == [("BTC-USD", "halted")]
    assert feed.on_halted({}, 3) == [], "the metadata names nothing: the exchange is still not trading"
    outputs = feed.on_halted({"BTC/USD": "not traded: reduce_only"}, 4)
    assert [frame["method"] for frame in said(outputs)] == ["unsubscribe", "unsubscribe"]
    assert states(feed.on_frame(status % "online", 5)) == [], "this one is not traded by itself"
    outputs = feed.on_halted({}, 6)
    assert states(outputs) == [("BTC-USD", "syncing")]
    assert [frame["method"] for frame in said(outputs)] == ["subscribe", "subscribe"]


def test_kraken_an_unexpected_end_of_a_subscription_is_mended():
    feed = feed_of("kraken", {"BTC/USD": "BTC-USD"}, 10)
    feed.on_frame(kraken_frames()[2], 1)
    ack = {"method": "unsubscribe", "result": {"channel": "book", "depth": 10, "symbol": "BTC/USD"}, "success": True}
    assert states(feed.on_frame(json.dumps(ack), 2)) == [("BTC-USD", "syncing")]
    asked = [out for second in range(1, 17) for out in said(feed.on_proof(second * SECOND))]
    assert [frame["method"] for frame in asked] == ["unsubscribe", "subscribe"]


def test_a_refusal_of_a_book_that_has_come_is_no_wrong_setting():
    feed = feed_of("kraken", {"BTC/USD": "BTC-USD"}, 10)
    feed.on_frame(kraken_frames()[2], 1)
    late = {"method": "subscribe", "success": False, "error": "Service unavailable", "symbol": "BTC/USD"}
    assert states(feed.on_frame(json.dumps(late), 2)) == [("BTC-USD", "halted")]
    second = feed_of("coinbase-exchange", {"BTC-USD": "BTC-USD"})
    second.on_frame(l2(10, "snapshot"), 1)
    with pytest.raises(LinkLost, match="ErrSlowConsume"):
        second.on_frame('{"type":"error","message":"ErrSlowConsume"}', 2)


def test_kraken_an_unknown_pair_is_named_by_its_canonical_symbol():
    feed = feed_of("kraken", {"XXX/YYY": "XXX-YYY"}, 10)
    with pytest.raises(UnknownSymbol, match="kraken does not list XXX-YYY"):
        feed.on_frame(
            '{"error":"Currency pair not supported XXX/YYY","method":"subscribe","success":false,"symbol":"XXX/YYY"}', 1
        )


def test_kraken_a_trade_is_published_once_and_old_ones_not_at_all():
    feed = feed_of("kraken", {"BTC/USD": "BTC-USD"}, 10)

    def trade(number: int, kind: str = "update") -> str:
        row = {
            "symbol": "BTC/USD",
            "side": "sell",
            "price": 1.5,
            "qty": 2.0,
            "trade_id": number,
            "timestamp": "2026-01-01T00:00:00.5Z",
        }
        return json.dumps({"channel": "trade", "type": kind, "data": [row]})

    assert feed.on_frame(trade(1, "snapshot"), 1) == []
    (out,) = feed.on_frame(trade(2), 2)
    assert isinstance(out, Traded)
    assert (out.trade.trade_id, out.trade.taker_side, out.trade.price) == ("2", "sell", 1.5)
    assert feed.on_frame(trade(2), 3) == []
    assert feed.counts.duplicates == 1


# ---------------------------------------------------------------- Coinbase Exchange


def l2(bid: float, kind: str = "l2update") -> str:
    if kind == "snapshot":
        return json.dumps({"type": kind, "product_id": "BTC-USD", "bids": [[str(bid), "1"]], "asks": [["11", "1"]]})
    changes = [["buy", str(bid), "1"]]
    return json.dumps({"type": kind, "product_id": "BTC-USD", "changes": changes, "time": "2026-01-01T00:00:00.5Z"})


def match(number: int, kind: str = "match") -> str:
    row = {"type": kind, "trade_id": number, "side": "sell", "size": "1", "price": "2", "product_id": "BTC-USD"}
    return json.dumps({**row, "time": "2026-01-01T00:00:00.5Z"})


def beat(last: int) -> str:
    row = {"type": "heartbeat", "sequence": 90, "last_trade_id": last, "product_id": "BTC-USD"}
    return json.dumps({**row, "time": "2026-01-01T00:00:00.5Z"})


@pytest.fixture
def second() -> Feed:
    feed = feed_of("coinbase-exchange", {"BTC-USD": "BTC-USD"})
    feed.on_frame(match(7, "last_match"), 1)
    feed.on_frame(l2(10, "snapshot"), 2)
    return feed


def test_coinbase_exchange_a_missing_trade_puts_the_book_in_doubt(second):
    assert [type(out) for out in second.on_frame(match(8), 3)] == [Traded]
    outputs = second.on_frame(match(10), 4)
    assert states(outputs) == [("BTC-USD", "gap")]
    assert [(frame["type"], frame["channels"]) for frame in said(outputs)] == [
        ("unsubscribe", ["level2_batch"]),
        ("subscribe", ["level2_batch"]),
    ]
    assert any(isinstance(out, Traded) for out in outputs), "the trade itself is true"


def test_coinbase_exchange_heartbeats_that_name_a_trade_we_do_not_have_put_the_book_in_doubt(second):
    assert states(second.on_frame(beat(8), 3)) == [], "it may be on its way"
    assert states(second.on_frame(beat(8), 4)) == [("BTC-USD", "gap")]


def test_coinbase_exchange_heartbeats_that_name_the_trade_we_have_are_calm(second):
    for moment in range(3, 9):
        assert states(second.on_frame(beat(7), moment)) == []


# ---------------------------------------------------------------- Bybit


def orderbook(kind: str, update: int, bid: float = 10.0, size: str = "1", *, seq: int = 0, depth: int = 50) -> str:
    data = {"s": "BTCUSDT", "b": [[str(bid), size]], "a": [["11", "1"]], "u": update, "seq": seq or update}
    topic = f"orderbook.{depth}.BTCUSDT"
    return json.dumps({"topic": topic, "ts": 5, "type": kind, "data": data, "cts": 4})


@pytest.fixture
def bybit() -> Feed:
    feed = feed_of("bybit", {"BTCUSDT": "BTC-USDT"}, 50)
    feed.on_frame(orderbook("snapshot", 7), 1)
    return feed


@pytest.mark.parametrize("update", [7, 6, 9, 1])
def test_bybit_any_delta_but_the_next_means_to_subscribe_again(bybit, update):
    outputs = bybit.on_frame(orderbook("delta", update), 2)
    assert states(outputs) == [("BTC-USDT", "gap")]
    assert [(frame["op"], frame["args"]) for frame in said(outputs)] == [
        ("unsubscribe", ["orderbook.50.BTCUSDT"]),
        ("subscribe", ["orderbook.50.BTCUSDT"]),
    ]


def test_bybit_the_next_delta_is_applied_and_a_snapshot_replaces_the_book_at_any_time(bybit):
    (book,) = books(bybit.on_frame(orderbook("delta", 8, bid=10.5), 2))
    assert (book.bids, book.exchange_ns) == ([(10.5, 1.0), (10.0, 1.0)], 4 * MS)
    (book,) = books(bybit.on_frame(orderbook("snapshot", 1, bid=9.0), 3))
    assert book.bids == [(9.0, 1.0)], "u = 1: the service was restarted"
    assert books(bybit.on_frame(orderbook("delta", 2, bid=9.5), 4))


def test_bybit_the_faster_top_is_placed_by_seq_and_a_repetition_changes_nothing(bybit):
    top = orderbook("snapshot", 900, bid=10.5, size="2", seq=9, depth=1)
    (book,) = books(bybit.on_frame(top, 2))
    assert book.bids == [(10.5, 2.0), (10.0, 1.0)]
    assert bybit.on_frame(top, 3 * SECOND) == [] or not books(bybit.on_frame(top, 3 * SECOND))
    assert bybit.alive_ns == 3 * SECOND, "but it is proof of life"
    (book,) = books(bybit.on_frame(orderbook("delta", 8, bid=10.2, seq=12), 4 * SECOND))
    assert book.bids == [(10.2, 1.0), (10.0, 1.0)]


def test_bybit_a_top_of_one_side_only_is_nothing_to_show(bybit):
    frame = json.loads(orderbook("snapshot", 9, seq=9, depth=1))
    frame["data"]["b"] = []
    assert bybit.on_frame(json.dumps(frame), 2) == []
    assert state_of(bybit, "BTC-USDT") == "live"


def test_bybit_trades_have_no_order_but_each_comes_once(bybit):
    def trade(name: str) -> str:
        row = {"T": 5, "s": "BTCUSDT", "S": "Buy", "v": "0.001", "p": "16578.50", "i": name, "BT": False, "seq": 9}
        return json.dumps({"topic": "publicTrade.BTCUSDT", "type": "snapshot", "ts": 6, "data": [row]})

    (out,) = bybit.on_frame(trade("20f43950-d8dd"), 2)
    assert isinstance(out, Traded)
    assert (out.trade.taker_side, out.trade.exchange_ns) == ("buy", 5 * MS)
    assert bybit.on_frame(trade("20f43950-d8dd"), 3) == []
    assert len(bybit.on_frame(trade("00000000-0000"), 4)) == 1


def test_bybit_refuses_by_topic_and_a_repeated_subscription_is_no_refusal(bybit):
    answer = {"success": False, "ret_msg": "error:already subscribed,topic:orderbook.50.BTCUSDT", "op": "subscribe"}
    assert bybit.on_frame(json.dumps(answer), 2) == []
    answer["ret_msg"] = "error:handler not found,topic:orderbook.50.NOPEUSDT"
    with pytest.raises(UnknownSymbol, match="NOPEUSDT"):
        bybit.on_frame(json.dumps(answer), 3)


# ---------------------------------------------------------------- OKX


def okx_book(action: str, previous: int, last: int, bid: str = "10", size: str = "1", empty: bool = False) -> str:
    row = {"asks": [] if empty else [["11", "1", "0", "1"]], "bids": [] if empty else [[bid, size, "0", "1"]]}
    data = {**row, "ts": "5", "checksum": 0, "seqId": last, "prevSeqId": previous}
    return json.dumps({"arg": {"channel": "books", "instId": "BTC-USDT"}, "action": action, "data": [data]})


@pytest.fixture
def okx() -> Feed:
    feed = feed_of("okx", {"BTC-USDT": "BTC-USDT"}, 400)
    feed.on_frame(okx_book("snapshot", -1, 10), 1)
    return feed


def test_okx_ids_jump_and_each_update_names_the_one_before(okx):
    assert books(okx.on_frame(okx_book("update", 10, 15, "10.5"), 2))
    outputs = okx.on_frame(okx_book("update", 14, 16, "10.6"), 3)
    assert states(outputs) == [("BTC-USDT", "gap")]
    assert [frame["op"] for frame in said(outputs)] == ["unsubscribe", "subscribe"]
    assert all(frame["args"] == [{"channel": "books", "instId": "BTC-USDT"}] for frame in said(outputs))


def test_okx_the_keepalive_changes_nothing_and_the_reset_goes_on_from_the_smaller_id(okx):
    assert okx.on_frame(okx_book("update", 10, 10, empty=True), 2) == []
    assert books(okx.on_frame(okx_book("update", 10, 3, "10.5"), 3)), "a reset after maintenance"
    assert books(okx.on_frame(okx_book("update", 3, 5, "10.6"), 4))
    assert state_of(okx, "BTC-USDT") == "live"


def test_okx_the_time_of_a_keepalive_is_that_of_the_book_and_says_nothing_about_lag():
    feed = feed_of("okx", {"BTC-USDT": "BTC-USDT"}, 400)
    feed.on_frame(okx_book("snapshot", -1, 10), 1)
    feed.on_frame(okx_book("update", 10, 11, "10.5"), 2)
    outputs = feed.on_frame(okx_book("update", 11, 11, empty=True), 60 * SECOND)
    outputs += feed.on_timer(60 * SECOND + 200 * MS)
    assert "stale" not in [state for _, state in states(outputs)]


def test_okx_a_checksum_of_zero_is_not_checked_and_another_one_is(okx):
    frame = json.loads(okx_book("update", 10, 11, "10.5"))
    frame["data"][0]["checksum"] = 12345
    assert states(okx.on_frame(json.dumps(frame), 2)) == [("BTC-USDT", "checksum")]


def test_okx_announces_the_end_and_pong_is_no_json(okx):
    notice = {"event": "notice", "code": "64008", "msg": "The connection will soon be closed for a service upgrade."}
    (out,) = okx.on_frame(json.dumps(notice), 2)
    assert isinstance(out, Replace)
    assert okx.on_frame(b"pong", 3) == []
    assert okx.on_frame("pong", 3) == []


def test_okx_too_many_subscriptions_are_a_limit_and_an_unknown_instrument_a_refusal(okx):
    with pytest.raises(RateLimited, match="60014"):
        okx.on_frame('{"event":"error","code":"60014","msg":"Requests too frequent","connId":"a"}', 2)
    words = "Subscribe failed, wrong URL or channel:books,instId:NOPE-USDT doesn't exist."
    with pytest.raises(UnknownSymbol, match="okx does not list NOPE-USDT"):
        okx.on_frame(json.dumps({"event": "error", "code": "60018", "msg": words}), 2)


def test_okx_one_trade_may_stand_for_several(okx):
    def trade(last: int, fills: int) -> str:
        row = {"instId": "BTC-USDT", "tradeId": str(last), "px": "2", "sz": "1", "side": "buy", "ts": "5"}
        row["count"] = str(fills)
        return json.dumps({"arg": {"channel": "trades", "instId": "BTC-USDT"}, "data": [row]})

    okx.on_frame(trade(100, 1), 2)
    okx.on_frame(trade(103, 3), 3)
    assert okx.counts.trade_gaps == 0
    okx.on_frame(trade(106, 2), 4)
    assert okx.counts.trade_gaps == 1
    assert state_of(okx, "BTC-USDT") == "live", "its books prove themselves"


# ---------------------------------------------------------------- halts, replacement


def test_a_halted_book_stops_alone_and_comes_back_with_a_new_snapshot():
    feed = feed_of("okx", {"BTC-USDT": "BTC-USDT", "ETH-USDT": "ETH-USDT"}, 400)
    feed.on_frame(okx_book("snapshot", -1, 10), 1)
    feed.on_frame(okx_book("snapshot", -1, 10).replace("BTC-", "ETH-"), 1)
    outputs = feed.on_halted({"BTC-USDT": "not traded: suspend"}, 2)
    assert states(outputs) == [("BTC-USDT", "halted")]
    assert [frame["op"] for frame in said(outputs)] == ["unsubscribe"]
    assert feed.on_frame(okx_book("update", 10, 11), 3) == []
    assert feed.on_halted({"BTC-USDT": "not traded: suspend"}, 4) == [], "told once"
    assert feed.unverified() == []
    assert feed.all_live(), "what is halted is not waited for"
    outputs = feed.on_halted({}, 5)
    assert states(outputs) == [("BTC-USDT", "syncing")]
    assert [frame["op"] for frame in said(outputs)] == ["subscribe"]
    assert ("BTC-USDT", "live") in states(feed.on_frame(okx_book("snapshot", -1, 20), 6))


def test_a_book_that_is_halted_from_the_start_is_said_to_be():
    feed = Feed(EXCHANGES["okx"], {"BTC-USDT": "BTC-USDT"}, 400, 10, TIMING, 0, {"BTC-USDT": "not traded: preopen"})
    assert states(feed.on_connected(1)) == [("BTC-USDT", "syncing"), ("BTC-USDT", "halted")]
    assert feed.halted() == {"BTC-USDT"}


def test_a_feed_that_takes_over_says_everything_and_repeats_no_trade(okx):
    def trade(last: int) -> str:
        row = {"instId": "BTC-USDT", "tradeId": str(last), "px": "2", "sz": "1", "side": "buy", "ts": "5", "count": "1"}
        return json.dumps({"arg": {"channel": "trades", "instId": "BTC-USDT"}, "data": [row]})

    okx.on_frame(trade(100), 2)
    new = feed_of("okx", {"BTC-USDT": "BTC-USDT"}, 400)
    assert not new.covers(okx)
    held = [out for number in (100, 101) for out in new.on_frame(trade(number), 3) if isinstance(out, Traded)]
    assert [out.trade.trade_id for out in held if okx.is_new(out)] == ["101"]
    new.on_frame(okx_book("snapshot", -1, 30, "9"), 4)
    assert new.covers(okx)
    outputs = new.announce(5)
    assert states(outputs) == [("BTC-USDT", "live")]
    assert [book.bids for book in books(outputs)] == [[(9.0, 1.0)]]


def test_trades_missed_between_two_connections_are_counted(okx):
    def trade(last: int) -> str:
        row = {"instId": "BTC-USDT", "tradeId": str(last), "px": "2", "sz": "1", "side": "buy", "ts": "5", "count": "1"}
        return json.dumps({"arg": {"channel": "trades", "instId": "BTC-USDT"}, "data": [row]})

    okx.on_frame(trade(100), 2)
    new = feed_of("okx", {"BTC-USDT": "BTC-USDT"}, 400)
    new.adopt(okx)
    assert [type(out) for out in new.on_frame(trade(105), 3)] == [Traded]
    assert new.counts.trade_gaps == 1


# ---------------------------------------------------------------- time


def test_a_live_book_becomes_stale_within_the_limit_and_live_again_on_proof():
    feed = feed_of("coinbase", {"BTC-USD": "BTC-USD"})
    feed.on_frame(level2(0, "snapshot"), 1 * SECOND)
    assert states(feed.on_timer(3 * SECOND)) == [], "two seconds are allowed"
    assert states(feed.on_timer(3 * SECOND + 1)) == [("BTC-USD", "stale")]
    outputs = feed.on_proof(4 * SECOND)
    assert states(outputs) == [("BTC-USD", "live")]


def test_proof_of_life_is_repeated_about_every_second_with_the_heartbeat_that_brings_it():
    feed = feed_of("coinbase", {"BTC-USD": "BTC-USD"})
    feed.on_frame(level2(0, "snapshot"), 0)
    published = []
    for beat in range(1, 31):
        at = beat * SECOND + 7 * MS
        frame = {"channel": "heartbeats", "timestamp": "2026-01-01T00:00:00Z", "sequence_num": beat, "events": []}
        published += [(out.received_ns, out.alive_ns) for out in feed.on_frame(json.dumps(frame), at)]
        for look in range(1, 10):
            published += [(out.received_ns, out.alive_ns) for out in feed.on_timer(at + look * 100 * MS)]
    assert len(published) == 30
    assert all(received == alive for received, alive in published), "a reader with a two-second limit never flaps"


def test_a_lost_connection_makes_every_book_disconnected_and_empties_it():
    feed = feed_of("coinbase", {"BTC-USD": "BTC-USD"})
    feed.on_frame(level2(0, "snapshot"), 1)
    assert states(feed.on_lost(2, "closed")) == [("BTC-USD", "disconnected")]
    assert [book.best() for _, _, book in feed.books()] == [None]


def test_a_symbol_nobody_asked_for_is_ignored():
    feed = feed_of("coinbase", {"BTC-USD": "BTC-USD"})
    assert feed.on_frame(level2(0, "snapshot", "ETH-USD"), 1) == []


def test_a_feed_that_falls_behind_is_stale_whatever_it_brings():
    """Frames come, but they are old: the best difference seen is the measure, not the clocks."""
    feed = feed_of("bybit", {"BTCUSDT": "BTC-USDT"}, 50)

    def frame(update: int, sent_ms: int, kind: str = "delta") -> str:
        data = json.loads(orderbook(kind, update))
        return json.dumps({**data, "cts": sent_ms})

    feed.on_frame(frame(1, 50_000, "snapshot"), 1 * SECOND)  # their clock is 49 s ahead: no matter
    for number in range(2, 30):
        assert states(feed.on_frame(frame(number, 50_000 + number * 100), 1 * SECOND + number * 100 * MS)) in (
            [],
            [("BTC-USDT", "live")],
        )
    late = feed.on_frame(frame(30, 50_000 + 3000), 1 * SECOND + 3000 * MS + 2001 * MS)
    late += feed.on_timer(1 * SECOND + 5100 * MS)
    assert ("BTC-USDT", "stale") in states(late)
    still = feed.on_frame(frame(31, 50_000 + 3100), 1 * SECOND + 5150 * MS)
    assert books(still) == [], "an update that is as old makes it no better"
    assert "behind" in next(out.reason for out in late if isinstance(out, HealthChanged) and out.state == "stale")
    again = feed.on_frame(frame(32, 50_000 + 5200), 1 * SECOND + 5200 * MS) + feed.on_timer(1 * SECOND + 5400 * MS)
    assert ("BTC-USDT", "live") in states(again)
    assert books(again), "with the book as it is by now"


@pytest.mark.parametrize("step_s", [3600, -3600])
def test_when_our_clock_is_set_no_book_is_stale_and_proofs_go_on(step_s):
    feed = feed_of("kraken", {"BTC/USD": "BTC-USD"}, 10)
    start = 10_000 * SECOND
    feed.on_frame(kraken_frames()[2], start)
    feed.on_frame('{"channel":"heartbeat"}', start + SECOND)
    feed.on_clock_set(step_s * SECOND)
    published = []
    for tick in range(1, 51):
        now = start + SECOND + step_s * SECOND + tick * 100 * MS
        published += feed.on_frame('{"channel":"heartbeat"}', now) if tick % 10 == 0 else feed.on_timer(now)
    assert {out.state for out in published if isinstance(out, HealthChanged)} == {"live"}
    assert len(published) == 5
