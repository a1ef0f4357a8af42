"""The loop with readers and a publisher of the test's own."""

import threading

import orjson
import pytest
from prometheus_client import REGISTRY

from services.detector.__main__ import bridge_numbers
from services.detector.engine import Engine
from services.detector.service import Detector
from shared import kafka, topics
from shared.errors import BrokerUnavailable, TopicMismatch
from shared.kafka import Record
from shared.messages import Opportunity, decode

MS = 1_000_000
T0 = 1_795_000_000_000


class Handing(Detector):
    """Hands over after each call, as `run` does after each turn of its loop."""

    def take(self, records, *, shared=False):
        try:
            super().take(records, shared=shared)
        finally:
            self.hand_over()

    def tick(self):
        try:
            super().tick()
        finally:
            self.hand_over()


class Out:
    def __init__(self) -> None:
        self.published: list[tuple[str, str, bytes]] = []
        self.slow = False
        self.untaken = []

    def publish(self, topic, key, value, *, then=None):
        self.published.append((topic, key, value))
        if then is not None:
            self.untaken.append(then) if self.slow else then()
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
    detector = Handing(Engine(configured), out, lambda: left_open, lambda rec, error: dead.append((rec, error)), clock)
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


class Reads:
    """One turn of the loop: what a read brings, then the stop."""

    def __init__(self, records, stop) -> None:
        self.records, self.stop = records, stop

    def read(self, limit, wait_s):
        self.stop.set()
        return self.records


def test_a_turn_hands_over_what_all_of_it_brought_also_if_a_record_ends_it(configured, tick):
    handed, clock, stop = [], Clock(T0), threading.Event()

    class Noting(Detector):
        def hand_over(self):
            handed.append(len(out.published))
            super().hand_over()

    def refused(rec, error):
        raise BrokerUnavailable("Kafka took no dead letter")

    out = Out()
    detector = Noting(Engine(configured), out, list, refused, clock)
    own = [record(tick("coinbase", "BTC-USD", 99.9, 100.0, T0), T0)]  # one crosses by less than its fees
    shared = [record(tick("kraken", "BTC-USD", 100.01, 100.1, T0), T0)]
    detector.run(Reads(own, stop), [Reads(shared, stop)], stop)
    assert handed == [0], "once, for both reads and the timer"
    assert [topic for topic, _, _ in out.published] == ["arbitrage-rejections"]
    stop.clear()
    gone = [record(tick("kraken", "BTC-USD", 100.03, 100.1, T0 + 1), T0), record(b"no json", T0)]
    crossing = [record(tick("okx", "BTC-USDT", 90.0, 91.0, T0 + 1), T0), *gone]
    with pytest.raises(BrokerUnavailable):
        detector.run(Reads(crossing, stop), [], stop)
    assert len(out.published) > 1, "what came before the record that ended it"


def test_a_new_owner_reads_back_in_silence_then_judges_once(parts, tick):
    detector, out, clock, _, _ = parts
    detector.on_owned(frozenset(range(16)))
    old = [tick("coinbase", "BTC-USD", 99.9, 100.0, T0 - 900), tick("kraken", "BTC-USD", 101.0, 101.1, T0 - 800)]
    detector.take([record(message, T0 - 800) for message in old])
    assert out.published == []
    clock.at_ms = T0 + 100
    detector.take([record(tick("binance", "ETH-USDT", 10.0, 10.1, T0 + 100), T0 + 100)])
    (opened,) = [decode(value) for _, _, value in out.published]
    assert isinstance(opened, Opportunity), "it has been there for longer than the wanted persistence"
    assert opened.opened_ns == (T0 - 800) * MS, "dated by the message that made it, as its last owner would have"


def test_what_every_detector_reads_does_not_end_the_reading_back(parts, tick):
    """Rates and bridge coins' books are up to date at once; the group's own ticks may still be ten seconds old."""
    detector, out, clock, _, _ = parts
    detector.on_owned(frozenset(range(16)))
    detector.take([record(tick("kraken", "BTC-USD", 101.0, 101.1, T0 + 50), T0 + 50)], shared=True)
    detector.take([record(tick("coinbase", "BTC-USD", 99.9, 100.0, T0 - 900), T0 - 800)])
    assert out.published == []
    clock.at_ms = T0 + 100
    detector.take([record(tick("binance", "ETH-USDT", 10.0, 10.1, T0 + 100), T0 + 100)])
    assert [decode(value).kind for _, _, value in out.published] == ["rejection"]


def test_bridge_coins_are_read_by_all_only_where_something_is_quoted_in_them(configured):
    assert bridge_numbers(configured) == set()
    okx = configured.exchanges["okx"].model_copy(update={"symbols": ("ETH-BTC", "ETH-USDT")})
    bridged = configured.model_copy(update={"exchanges": {**configured.exchanges, "okx": okx}})
    assert bridge_numbers(bridged) == {kafka.partition_of("BTC", 16)}
    off = bridged.model_copy(update={"detector": configured.detector.model_copy(update={"routes": False})})
    assert bridge_numbers(off) == set()


def test_a_new_owner_computes_the_edges_after_a_delay_that_the_last_one_left(parts, configured, tick):
    """Opened at T0-390 by another owner, which published 50 and 100 ms and died; the next is assigned at T0."""
    detector, out, clock, _, left_open = parts
    first, first_clock = Out(), Clock(T0 - 500)
    owner = Handing(Engine(configured), first, list, lambda *_: None, first_clock)
    books = [tick("coinbase", "BTC-USD", 99.9, 100.0, T0 - 500), tick("kraken", "BTC-USD", 101.0, 101.1, T0 - 490)]
    owner.take([record(message, T0 - 490) for message in books])
    for first_clock.at_ms in (T0 - 390, T0 - 330, T0 - 280):
        owner.tick()
    published = [decode(value) for topic, _, value in first.published if topic == topics.OUTCOMES]
    assert [edge.delay_ms for edge in published] == [50, 100]
    left_open += [Record(topic, 2, 0, b"BTC", value, T0 - 300, []) for topic, _, value in first.published]
    clock.at_ms = T0
    detector.on_owned(frozenset(range(16)))
    lower = tick("kraken", "BTC-USD", 100.05, 100.1, T0 - 100)  # 290 ms after the opening
    backwards = [lower, *books[::-1]]  # topics are read one after another: no order between exchanges
    detector.take([record(message, T0 - 100) for message in backwards])
    clock.at_ms = T0 + 100
    detector.take([record(tick("binance", "ETH-USDT", 10.0, 10.1, T0 + 100), T0 + 100)])
    for clock.at_ms in (T0 + 200, T0 + 700, T0 + 4700):
        detector.tick()
    edges = [decode(value) for topic, _, value in out.published if topic == topics.OUTCOMES]
    assert [(edge.delay_ms, edge.executable, edge.missed) for edge in edges] == [
        (250, True, False),
        (500, False, False),
        (1000, False, False),
        (5000, False, True),  # both books have been silent for too long
    ]
    assert edges[0].net_bps == published[0].net_bps
    assert edges[1].net_bps < 0
    assert {edge.opportunity_id for edge in edges} == {published[0].opportunity_id}


def test_no_edge_after_a_delay_is_published_before_kafka_has_the_opening(parts, tick):
    """They are on another topic: of a detector that dies they could be there alone."""
    detector, out, clock, _, _ = parts
    out.slow = True
    books = [tick("coinbase", "BTC-USD", 99.9, 100.0, T0), tick("kraken", "BTC-USD", 101.0, 101.1, T0)]
    detector.take([record(message, T0) for message in books])
    for clock.at_ms in (T0 + 110, T0 + 170, T0 + 220):
        detector.tick()
    assert [topic for topic, _, _ in out.published].count(topics.OPPORTUNITIES) == 1
    assert topics.OUTCOMES not in [topic for topic, _, _ in out.published]
    (taken,) = out.untaken
    taken()
    detector.tick()
    for clock.at_ms in (T0 + 280, T0 + 380):
        detector.tick()
    edges = [decode(value) for topic, _, value in out.published if topic == topics.OUTCOMES]
    assert [edge.delay_ms for edge in edges] == [50, 100, 250]


@pytest.mark.parametrize("known", ["behind", "in the same turn"])
def test_taken_up_anew_it_computes_no_edge_again_that_waits_for_its_opening(parts, tick, known):
    detector, out, clock, _, left_open = parts
    out.slow = True
    detector.on_owned(frozenset(range(16)))
    clock.at_ms = T0 + 1100
    books = [tick("coinbase", "BTC-USD", 99.9, 100.0, T0 + 1100), tick("kraken", "BTC-USD", 101.0, 101.1, T0 + 1100)]
    detector.tick()
    detector.take([record(message, T0 + 1100) for message in books])
    for clock.at_ms in (T0 + 1210, T0 + 1270, T0 + 1320):
        detector.tick()
    (opened,) = [value for topic, _, value in out.published if topic == topics.OPPORTUNITIES]
    left_open.append(Record(topics.OPPORTUNITIES, 2, 0, b"BTC", opened, T0 + 1210, []))
    detector.on_owned(frozenset())
    detector.on_owned(frozenset(range(16)))
    detector.take([record(message, T0 + 1100) for message in books])
    if known == "in the same turn":
        for taken in out.untaken:
            taken()
    for clock.at_ms in (T0 + 2500, T0 + 2600):
        detector.tick()
    if known == "behind":
        for taken in out.untaken:
            taken()
    detector.tick()
    delays = [decode(value).delay_ms for topic, _, value in out.published if topic == topics.OUTCOMES]
    assert {50, 100} <= set(delays)
    assert len(delays) == len(set(delays))


def test_a_new_owner_adopts_what_is_open_and_ends_what_is_not_confirmed(parts, configured, tick):
    detector, out, clock, _, left_open = parts
    first, first_clock = Out(), Clock(T0 - 500)
    owner = Handing(Engine(configured), first, list, lambda *_: None, first_clock)
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


def test_after_a_time_without_running_it_takes_up_anew_what_is_open(configured, tick):
    """Another may have owned the coin meanwhile: nothing is ended out of books that are old."""
    out, clock, steady, left_open = Out(), Clock(T0), Clock(0), []
    detector = Handing(Engine(configured), out, lambda: left_open, lambda *_: None, clock, steady=steady)
    detector.on_owned(frozenset(range(16)))
    clock.at_ms = steady.at_ms = T0 + 1100
    books = [tick("coinbase", "BTC-USD", 99.9, 100.0, T0 + 1100), tick("kraken", "BTC-USD", 101.0, 101.1, T0 + 1100)]
    detector.tick()
    detector.take([record(message, T0 + 1100) for message in books])
    clock.at_ms = steady.at_ms = T0 + 1400
    detector.tick()
    (opened,) = [decode(value) for topic, _, value in out.published if topic == topics.OPPORTUNITIES]
    out.published.clear()

    later = T0 + 31_400
    clock.at_ms = steady.at_ms = later
    detector.tick()
    assert out.published == [], "a hung owner ended it"
    left_open.append(Record(topics.OPPORTUNITIES, 2, 0, b"BTC", opened.encode(), later - 100, []))
    books = [tick("coinbase", "BTC-USD", 99.9, 100.0, later), tick("kraken", "BTC-USD", 101.0, 101.1, later)]
    detector.take([record(message, later - 1) for message in books])
    clock.at_ms = steady.at_ms = later + 1100
    detector.tick()
    phases = [decode(value) for topic, _, value in out.published if topic == topics.OPPORTUNITIES]
    assert {message.opportunity_id for message in phases} <= {opened.opportunity_id}
    assert "opened" not in {message.phase for message in phases}


def test_a_slow_reading_back_is_no_time_without_running(configured, tick):
    """Else it would be taken up anew, read back as slowly, and so on: nothing would ever be judged."""
    out, clock, steady, read = Out(), Clock(T0), Clock(0), []

    def read_open():
        read.append(1)
        steady.at_ms += 6000
        return []

    detector = Handing(Engine(configured), out, read_open, lambda *_: None, clock, steady=steady)
    steady.at_ms += 7000  # the assignment took its time, too
    detector.on_owned(frozenset(range(16)))
    for _ in range(4):
        clock.at_ms += 1100
        steady.at_ms += 1100
        detector.tick()
    assert len(read) == 1


def test_what_the_group_took_without_asking_is_new_when_it_comes_again(parts, tick):
    detector, _, clock, _, left_open = parts
    read = []
    detector._read_open = lambda: read.append(1) or left_open
    detector.on_owned(frozenset(range(16)))
    clock.at_ms = T0 + 1100
    detector.tick()
    detector.on_owned(frozenset())
    detector.on_owned(frozenset(range(16)))
    clock.at_ms = T0 + 2300
    detector.tick()
    assert len(read) == 2, "what others opened meanwhile was not read back"


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


def test_it_has_caught_up_when_it_judges_by_new_ticks(configured, tick, monkeypatch):
    clock, steady = Clock(T0), Clock(0)
    detector = Handing(Engine(configured), Out(), list, lambda rec, error: None, clock, steady=steady)
    monkeypatch.setattr("services.detector.service.time.time", lambda: clock.at_ms / 1000)
    assert detector.caught_up() == (True, "has read all ticks")
    detector.on_owned(frozenset(range(16)))
    assert detector.caught_up() == (False, "reading back what came before the assignment")
    clock.at_ms = T0 + 20_000
    detector.take([record(tick("kraken", "BTC-USD", 101.0, 101.1, T0 + 10_000), T0 + 10_000)])
    assert detector.caught_up() == (False, "reads ticks that are 10 s old")
    detector.take([], shared=True)
    assert not detector.caught_up()[0], "what every detector reads says nothing of its own ticks"
    detector.take([record(tick("kraken", "BTC-USD", 101.0, 101.1, T0 + 19_990), T0 + 19_990)])
    assert detector.caught_up() == (True, "reads ticks that are 10 ms old")
    detector.take([record(tick("kraken", "BTC-USD", 101.0, 101.1, T0 + 10_000), T0 + 10_000)])
    for at_ms in (0, 999):
        steady.at_ms = at_ms
        detector.take([])
        assert detector.caught_up() == (False, "reads ticks that are 10 s old"), "the next ones are on their way"
    detector.take([record(tick("kraken", "BTC-USD", 101.0, 101.1, T0 + 10_001), T0 + 10_001)])
    steady.at_ms = 5000
    detector.take([])
    assert not detector.caught_up()[0], "the second begins with the first empty read"
    steady.at_ms = 6000
    detector.take([])
    assert detector.caught_up() == (True, "has read all ticks")


def test_gauges_say_what_is_held_and_forget_what_is_gone(configured, tick):
    def value(name, **labels):
        return REGISTRY.get_sample_value(name, labels)

    clock, beats = Clock(T0), []
    engine = Engine(configured)
    detector = Handing(engine, Out(), list, lambda *_: None, clock, persistence_ms=10, beat=lambda: beats.append(1))
    before = value("arb_frame_to_opportunity_ms_count"), value("arb_frame_to_opportunity_ms_sum")
    messages = [tick("coinbase", "ADA-USD", 99.9, 100.0, T0), tick("kraken", "ADA-USD", 101.0, 101.1, T0)]
    detector.take([record(message, T0) for message in messages])
    clock.at_ms = T0 + 200
    detector.tick()
    assert beats == [1]
    assert value("arb_books", exchange="kraken", state="live") == 1
    assert value("arb_gaps_open", kind="opportunity") == 1
    assert value("arb_gaps_open", kind="rejection") == 0
    took = value("arb_frame_to_opportunity_ms_count"), value("arb_frame_to_opportunity_ms_sum")
    assert (took[0] - before[0], round(took[1] - before[1], 3)) == (1, 190)
    detector.on_owned(frozenset())
    clock.at_ms = T0 + 5000
    detector.tick()
    assert value("arb_books", exchange="kraken", state="live") == 0
    assert value("arb_gaps_open", kind="opportunity") == 0
