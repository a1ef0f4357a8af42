"""The loop with readers and a publisher of the test's own."""

import orjson
import pytest

from services.detector.engine import Engine
from services.detector.service import Detector
from shared import kafka, topics
from shared.errors import TopicMismatch
from shared.kafka import Record
from shared.messages import Opportunity, decode

MS = 1_000_000
T0 = 1_795_000_000_000


class Out:
    def __init__(self) -> None:
        self.published: list[tuple[str, str, bytes]] = []

    def publish(self, topic, key, value):
        self.published.append((topic, key, value))
        return True


class Clock:
    def __init__(self, at_ms: int) -> None:
        self.at_ms = at_ms

    def __call__(self) -> int:
        return self.at_ms * MS


def record(message, at_ms: int) -> Record:
    value = message if isinstance(message, bytes) else orjson.dumps(message)
    return Record("tick-data-kraken", 9, 5, b"BTC", value, at_ms, [])


@pytest.fixture
def parts(configured):
    out, clock, dead, left_open = Out(), Clock(T0), [], []
    detector = Detector(Engine(configured), out, lambda: left_open, lambda rec, error: dead.append((rec, error)), clock)
    return detector, out, clock, dead, left_open


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"no json",
        b"[]",
        b'{"kind":"book"}',
        b'{"kind":"nonsense","received_ns":1}',
        b'{"kind":"book","received_ns":1,"exchange":"kraken","symbol":"BTC-USD","sequence":"x","bids":[],"asks":[]}',
        b'{"kind":"book","received_ns":"now","exchange":"kraken","symbol":"BTC-USD","sequence":1,"bids":[],"asks":[]}',
        b'{"kind":"book","received_ns":1,"exchange":"kraken","symbol":"BTC","sequence":1,"bids":[],"asks":[]}',
        b'{"kind":"book","received_ns":1,"exchange":"kraken","symbol":"BTC-USD","sequence":1,"bids":["a"],"asks":[[1,1]]}',
    ],
)
def test_an_undecodable_record_is_put_aside_and_the_loop_goes_on(parts, tick, value):
    detector, out, clock, dead, _ = parts
    detector.take([record(value, T0)])
    assert len(dead) == 1
    assert dead[0][0].value == value
    detector.take(
        [
            record(tick("coinbase", "BTC-USD", 99.9, 100.0, T0), T0),
            record(tick("kraken", "BTC-USD", 101.0, 101.1, T0), T0),
        ]
    )
    clock.at_ms = T0 + 200
    detector.tick()
    assert topics.OPPORTUNITIES in [topic for topic, _, _ in out.published]
    assert {key for _, key, _ in out.published} == {"BTC"}


def test_a_new_owner_reads_back_in_silence_then_judges_once(parts, tick):
    detector, out, clock, _, _ = parts
    detector.on_owned(frozenset(range(16)))
    old = [tick("coinbase", "BTC-USD", 99.9, 100.0, T0 - 900), tick("kraken", "BTC-USD", 101.0, 101.1, T0 - 800)]
    detector.take([record(message, T0 - 800) for message in old])
    assert out.published == []
    clock.at_ms = T0 + 100
    detector.take([record(tick("binance", "ETH-USDT", 10.0, 10.1, T0 + 100), T0 + 100)])
    assert [decode(value).kind for _, _, value in out.published] == ["rejection"], "persistence begins now"


def test_a_new_owner_adopts_what_is_open_and_ends_what_is_not_confirmed(parts, configured, tick):
    detector, out, clock, _, left_open = parts
    first, first_clock = Out(), Clock(T0 - 500)
    owner = Detector(Engine(configured), first, list, lambda *_: None, first_clock)
    books = [tick("coinbase", "BTC-USD", 99.9, 100.0, T0 - 500), tick("kraken", "BTC-USD", 101.0, 101.1, T0 - 500)]
    owner.take([record(message, T0 - 500) for message in books])
    first_clock.at_ms = T0 - 390
    owner.tick()
    (opened,) = [value for topic, _, value in first.published if topic == topics.OPPORTUNITIES]
    left_open.append(Record(topics.OPPORTUNITIES, 2, 0, b"BTC", opened, T0 - 390, []))
    detector.on_owned(frozenset(range(16)))
    clock.at_ms = T0 + 1100
    detector.tick()
    (closed,) = [decode(value) for topic, _, value in out.published if topic == topics.OPPORTUNITIES]
    assert isinstance(closed, Opportunity)
    assert (closed.phase, closed.close_reason) == ("closed", "handover")
    assert closed.opportunity_id == decode(opened).opportunity_id


def test_a_coin_that_moved_to_another_detector_is_forgotten(parts, tick):
    detector, out, clock, _, _ = parts
    detector.take(
        [
            record(tick("coinbase", "BTC-USD", 99.9, 100.0, T0), T0),
            record(tick("kraken", "BTC-USD", 101.0, 101.1, T0), T0),
        ]
    )
    others = frozenset(range(16)) - {kafka.partition_of("BTC", 16)}
    out.published.clear()
    detector.on_owned(others)
    clock.at_ms = T0 + 1200
    detector.tick()
    assert out.published == []


def test_partitions_follow_the_murmur2_of_every_producer():
    """Values of arbitrage.md V7: Java's default partitioner."""
    assert kafka.partition_of("btcusdt", 16) == 15
    assert kafka.partition_of("BTC-USD", 16) == 9


def test_an_assignment_that_splits_a_coin_is_refused():
    names = topics.tick_topics(["binance", "kraken"])
    both = [(name, number) for name in names for number in (1, 2)]
    assert kafka.co_partitioned(both, names) == frozenset({1, 2})
    assert kafka.co_partitioned([], names) == frozenset()
    with pytest.raises(TopicMismatch, match="other partitions on one exchange"):
        kafka.co_partitioned([*both, (names[0], 3)], names)
