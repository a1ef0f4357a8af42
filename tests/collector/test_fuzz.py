"""Random and mutated frames through every adapter, in short, and proof that the fuzzing itself finds what is planted.

The long run is `make fuzz`; the engine is tools/fuzz.py, a script that no package holds.
"""

import importlib.util
import random
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from msgspec import structs

from services.collector.exchanges import EXCHANGES
from services.collector.exchanges.base import Delta, Exchange, Refused, TradeSeen
from services.collector.feed import Feed
from services.collector.keeper import Timing
from services.collector.outputs import BookChanged, Send, Traded
from shared.errors import UndecodableRecord

TOOL = Path(__file__).parents[2] / "tools" / "fuzz.py"
NAMES = sorted(EXCHANGES)


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("arbiter_fuzz", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


fuzz = load()


@pytest.fixture(scope="module")
def corpora() -> dict[str, Any]:
    """Shorter than the tool's: reading them is half of a short run."""
    return {name: fuzz.corpus_of(EXCHANGES[name], 600) for name in NAMES}


def run(exchange: Exchange, corpora: dict[str, Any], frames: int, seed: int = 11) -> Any:
    with fuzz.quiet():
        return fuzz.Fuzz(exchange, seed, corpora[exchange.name]).run(frames)


def rules(report: Any) -> list[str]:
    return [failure.rule for failure in report.failures]


# ---------------------------------------------------------------- the adapters


@pytest.mark.parametrize("name", NAMES)
def test_only_documented_errors_well_formed_messages_and_bounded_memory(corpora, name):
    report = run(EXCHANGES[name], corpora, 8_000)
    assert report.failures == []
    assert report.frames == 8_000
    assert report.accepted + sum(report.errors.values()) == report.frames
    # It is no test if nothing was damaged, or if the damage left no book alive.
    assert report.damaged > 1_000
    assert report.errors["BadFrame"] > 200
    assert report.live_share > 0.05
    assert {"book", "trade", "health", "rate"} <= set(report.published)


def test_the_same_seed_is_the_same_run_and_another_seed_is_another(corpora):
    def outcome(seed: int) -> tuple[Any, ...]:
        report = run(EXCHANGES["kraken"], corpora, 1_000, seed)
        return report.accepted, report.errors, report.published, report.connections

    assert outcome(3) == outcome(3) != outcome(4)


# ---------------------------------------------------------------- planted bugs


def planted(name: str, **parts: Any) -> Exchange:
    return replace(EXCHANGES[name], **parts)


def every(exchange: Exchange, count: int, event: Any) -> Any:
    """A parser that now and then makes this event of a good frame."""
    seen = 0

    def parse(frame: bytes | str) -> list[Any]:
        nonlocal seen
        events = exchange.parse(frame)
        seen += 1
        return [event] if seen % count == 0 else events

    return parse


def test_an_error_outside_of_the_parser_is_found_with_the_least_conversation_that_shows_it(corpora):
    def follows(last_id: int, delta: Delta) -> Any:
        if len(delta.bids) == 3:
            raise KeyError("planted")
        return EXCHANGES["okx"].follows(last_id, delta)

    report = run(planted("okx", follows=follows), corpora, 1_500)
    (failure,) = [one for one in report.failures if one.rule == "KeyError out of on_frame, test_fuzz.py in follows"]
    assert failure.count > 1
    assert len(failure.least) == 2, "a snapshot, and an update of three bids"
    assert "snapshot" in failure.least[0]


def test_an_error_that_a_parser_must_not_raise_is_found(corpora):
    def parse(frame: bytes | str) -> list[Any]:
        if frame[-1:] in (b"]", "]"):
            raise RuntimeError("planted")
        return EXCHANGES["bybit"].parse(frame)

    assert "RuntimeError out of on_frame, test_fuzz.py in parse" in rules(
        run(planted("bybit", parse=parse), corpora, 1_000)
    )


@pytest.mark.parametrize(
    ("trade", "rule"),
    [
        (TradeSeen("BTCUSDT", "1", float("nan"), 1.0, "buy", 1), "cannot be decoded: trade.price"),
        (TradeSeen("BTCUSDT", "1", 1.0, float("inf"), "buy", 1), "cannot be decoded: trade.size"),
        (TradeSeen("BTCUSDT", "1", 1.0, 0.0, "buy", 1), "zero or less"),
        (TradeSeen("BTCUSDT", "1", 1.0, 1.0, "Buy", 1), "cannot be decoded: trade.taker_side"),
        (TradeSeen("BTCUSDT", "1", 1.0, 1.0, "buy", -1), "cannot be decoded: trade.exchange_ns"),
        (TradeSeen("BTCUSDT", "1", 1.0, 1.0, "buy", 1 << 70), "out of the emitter"),
        (TradeSeen("BTCUSDT", "\ud800", 1.0, 1.0, "buy", 1), "out of the emitter"),
        (TradeSeen("BTCUSDT", 1, 1.0, 1.0, "buy", 1), "cannot be decoded: trade.trade_id"),
    ],
    ids=["nan", "infinity", "zero", "side", "negative-time", "large-time", "surrogate", "id-no-text"],
)
def test_a_trade_that_no_reader_could_read_is_found(corpora, trade, rule):
    parse = every(EXCHANGES["bybit"], 50, trade)
    assert any(rule in found for found in rules(run(planted("bybit", parse=parse), corpora, 400)))


def test_words_that_no_message_can_carry_are_cut(corpora):
    for words in ("\ud800", "x" * 2_000_000):
        parse = every(EXCHANGES["bybit"], 50, Refused(None, words))
        assert not rules(run(planted("bybit", parse=parse), corpora, 400))


def test_a_slow_frame_is_found(corpora, monkeypatch):
    monkeypatch.setattr(fuzz, "SLOW_S", 0.02)
    seen = 0

    def parse(frame: bytes | str) -> list[Any]:
        nonlocal seen
        seen += 1
        if seen == 50:
            sum(range(5_000_000))
        return EXCHANGES["bybit"].parse(frame)

    assert "a frame takes too long" in rules(run(planted("bybit", parse=parse), corpora, 100))


@pytest.mark.parametrize("leak", [lambda: bytes(20_000), lambda: [{} for _ in range(50)]], ids=["large", "many"])
def test_growing_memory_is_found(corpora, leak):
    kept = []

    def parse(frame: bytes | str) -> list[Any]:
        kept.append(leak())
        return EXCHANGES["kraken"].parse(frame)

    assert "memory grows" in rules(run(planted("kraken", parse=parse), corpora, 1_500))


def test_a_feed_that_holds_ever_more_is_found(corpora, monkeypatch):
    monkeypatch.setattr(fuzz, "MOST_HELD", 20)  # the books of the corpus are deeper
    assert "a feed holds too much" in rules(run(EXCHANGES["binance"], corpora, 1_500))


def test_everything_that_a_feed_holds_is_looked_at():
    exchange = EXCHANGES["coinbase"]
    feed = Feed(exchange, {"BTC-USD": "BTC-USD"}, None, 10, Timing(), 0)
    assert fuzz.largest(feed) < 50
    levels = [(float(number), 1.0) for number in range(1, 2_001)]
    updates = [{"side": "bid", "price_level": str(price), "new_quantity": "1"} for price, _ in levels]
    updates.append({"side": "offer", "price_level": "9999", "new_quantity": "1"})
    event = {"type": "snapshot", "product_id": "BTC-USD", "updates": updates}
    head = {"channel": "l2_data", "timestamp": "2026-01-01T00:00:00Z", "sequence_num": 0}
    feed.on_frame(fuzz.json.dumps({**head, "events": [event]}), 1)
    assert fuzz.largest(feed) == 2_000


def test_a_late_error_is_no_documented_one(corpora):
    """What `on_frame` may raise, a timer may not."""

    class Late(Feed):
        def on_timer(self, now_ns: int) -> list[Any]:
            raise fuzz.LinkLost("planted")

    feed = Late(EXCHANGES["kraken"], {"BTC/USD": "BTC-USD"}, 10, 10, Timing(), 0)
    one = fuzz.Fuzz(EXCHANGES["kraken"], 1, corpora["kraken"])
    one._feed = feed
    assert one._give(("on_timer", (fuzz.START_NS,))) is False
    assert [name.split(",")[0] for name in one._failures] == ["LinkLost out of on_timer"]


# ---------------------------------------------------------------- the rules

GOOD = BookChanged("BTC-USD", [(2.0, 1.0), (1.0, 1.0)], [(3.0, 1.0), (4.0, 1.0)], 7, None)


@pytest.mark.parametrize(
    ("book", "words"),
    [
        (structs.replace(GOOD, bids=[(3.0, 1.0)]), "crossed"),
        (structs.replace(GOOD, bids=[(1.0, 1.0), (2.0, 1.0)]), "bids: not sorted"),
        (structs.replace(GOOD, asks=[(4.0, 1.0), (4.0, 2.0)]), "asks: not sorted"),
        (structs.replace(GOOD, asks=[]), "asks: none"),
        (structs.replace(GOOD, bids=[(2.0, 1.0)] * 3), "bids: none or more"),
        (structs.replace(GOOD, bids=[(float("nan"), 1.0)]), "positive and finite"),
        (structs.replace(GOOD, asks=[(float("inf"), 1.0)]), "positive and finite"),
        (structs.replace(GOOD, bids=[(2.0, 0.0)]), "positive and finite"),
        (structs.replace(GOOD, bids=[(2.0, True)]), "no float"),
        (structs.replace(GOOD, bids=[(2, 1.0)]), "no float"),
        (structs.replace(GOOD, received_ns=6), "time of receipt"),
        (Send("\ud800"), "no UTF-8"),
        (Traded(TradeSeen("BTC-USD", "1", -1.0, 1.0, None, None), "BTC-USD", 7), "zero or less"),
    ],
)
def test_an_output_that_is_not_well_formed_is_refused(book, words):
    fuzz.check([GOOD], 2, 7)
    with pytest.raises(fuzz.Broken, match=words):
        fuzz.check([book], 2, 7)


def test_what_is_published_is_decoded_again():
    publisher = fuzz.Decoding()
    with pytest.raises(UndecodableRecord):
        publisher.publish("topic", "key", b'{"kind":"book"}')


# ---------------------------------------------------------------- the damage


def test_damage_changes_frames_and_keeps_the_digits_of_what_it_does_not_touch(corpora):
    draw = random.Random(1)
    mutator = fuzz.Mutator(draw, corpora["kraken"])
    frame = b'{"channel":"book","type":"update","data":[{"symbol":"BTC/USD","bids":[{"price":45283.50,"qty":0.10000000}],"asks":[]}]}'
    damaged = [mutator.damaged(frame) for _ in range(2_000)]
    assert sum(one != frame for one in damaged) > 1_900
    assert len(set(damaged)) > 1_500
    assert sum(b"0.10000000" in one for one in damaged) > 1_000
    trees = [mutator._tree(frame) for _ in range(200)]
    assert sum(b"45283.50" in one for one in trees) > 80, "a tree is written with the digits that were read"


def test_a_mended_checksum_lets_damage_reach_the_book():
    exchange = EXCHANGES["kraken"]
    feed = Feed(exchange, {"BTC/USD": "BTC-USD"}, 10, 10, Timing(), 0)
    feed.on_connected(0)
    frame = b'{"channel":"book","type":"snapshot","data":[{"symbol":"BTC/USD","bids":[{"price":7,"qty":1e-3}],"asks":[{"price":8.0,"qty":2.0}],"checksum":77}]}'
    update = frame.replace(b"snapshot", b"update").replace(b"1e-3", b"5.5")
    for one in (frame, update):
        outputs = feed.on_frame(fuzz.mended(exchange, feed, one), 1)
        assert any(isinstance(out, BookChanged) for out in outputs)
    assert feed.counts.checksum_failed == 0
