"""One connection's books: each recipe step by step, with frames and moments passed in."""

import json
from typing import Any

import pytest

from services.collector.exchanges import EXCHANGES
from services.collector.feed import MAX_BUFFERED, BookChanged, Feed, Fetch, HealthChanged, Reconnect, Send, Traded
from shared.errors import LinkLost, SubscriptionRefused, UnknownSymbol

MS = 1_000_000
SECOND = 1000 * MS


def feed_of(exchange: str, names: dict[str, str], depth: int | None = None, silence_ms: int = 2000) -> Feed:
    feed = Feed(EXCHANGES[exchange], names, depth, 10, silence_ms * MS, 0)
    feed.on_connected(0)
    return feed


def states(outputs: list[Any]) -> list[tuple[str, str]]:
    return [(out.symbol, out.state) for out in outputs if isinstance(out, HealthChanged)]


def state_of(feed: Feed, symbol: str) -> str:
    return {name: state for name, state, _ in feed.books()}[symbol]


# ---------------------------------------------------------------- Binance


def diff(first: int, last: int, bid: float = 10.0, size: float = 1.0, symbol: str = "BTCUSDT") -> str:
    data = {"e": "depthUpdate", "E": 5, "s": symbol, "U": first, "u": last, "b": [[str(bid), str(size)]], "a": []}
    return json.dumps({"stream": "x", "data": data})


def depth(last_id: int, bid: float = 10.0, ask: float = 11.0) -> str:
    return json.dumps({"lastUpdateId": last_id, "bids": [[str(bid), "1"]], "asks": [[str(ask), "1"]]})


@pytest.fixture
def binance() -> Feed:
    return feed_of("binance", {"BTCUSDT": "BTC-USDT", "ETHUSDT": "ETH-USDT"})


def test_binance_asks_for_every_snapshot_on_connecting():
    """An unknown symbol is silent on the stream: only the REST answer says that it does not exist."""
    feed = Feed(EXCHANGES["binance"], {"BTCUSDT": "BTC-USDT", "X": "X-Y"}, 1000, 10, 2000 * MS, 0)
    assert [out for out in feed.on_connected(0) if isinstance(out, Fetch)] == [Fetch("BTCUSDT"), Fetch("X")]


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
    assert binance.on_frame(diff(101, 102, bid=99), 4) == []
    assert binance.counts.duplicates == 1
    assert binance.counts.gaps == 0


def test_binance_a_crossed_book_is_dropped(binance):
    binance.on_frame(diff(100, 100), 1)
    binance.on_rest("BTCUSDT", depth(100), 2)
    outputs = binance.on_frame(diff(101, 101, bid=12.0), 3)
    assert states(outputs) == [("BTC-USDT", "crossed")]
    assert Fetch("BTCUSDT") in outputs
    assert not any(isinstance(out, BookChanged) for out in outputs)


def test_binance_announces_its_shutdown(binance):
    with pytest.raises(LinkLost, match="serverShutdown"):
        binance.on_frame('{"stream":"!serverShutdown","data":{"e":"serverShutdown","E":1}}', 1)


def test_binance_without_a_snapshot_gives_up_in_bounds(binance):
    for number in range(MAX_BUFFERED):
        binance.on_frame(diff(number, number), 1)
    with pytest.raises(LinkLost, match="no usable snapshot of BTC-USDT"):
        binance.on_frame(diff(MAX_BUFFERED, MAX_BUFFERED), 1)


# ---------------------------------------------------------------- Coinbase


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
    assert any(isinstance(out, Reconnect) for out in outputs)
    assert not any(isinstance(out, BookChanged) for out in outputs)


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
    from pathlib import Path

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
    assert ("BTC-USD", "live") in states(feed.on_frame(frames[0], 4))


def test_kraken_publishes_nothing_while_the_exchange_is_not_online():
    feed = feed_of("kraken", {"BTC/USD": "BTC-USD"}, 10)
    feed.on_frame(kraken_frames()[2], 1)
    outputs = feed.on_frame('{"channel":"status","type":"update","data":[{"system":"maintenance"}]}', 2)
    assert states(outputs) == [("BTC-USD", "halted")]


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
