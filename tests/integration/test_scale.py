"""More instances give the same answers: recorded ticks shared by a group, and live groups by both protocols."""

import asyncio
import contextlib
import datetime
import os
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import orjson
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from services.cli.broker import start_broker
from services.detector import recorded
from services.detector.recorded import Range
from shared import cluster, kafka, topics
from shared import settings as configuration
from shared.errors import BrokerUnavailable, TopicMismatch, UsageError
from shared.settings import KafkaSettings
from shared.topics import Topic

pytestmark = pytest.mark.integration

SECOND_NS = 1_000_000_000
PARTITIONS = 16


def iso(at_ns: int) -> str:
    """Exact to the microsecond."""
    assert at_ns % 1000 == 0
    epoch = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    return (epoch + datetime.timedelta(microseconds=at_ns // 1000)).isoformat()


@pytest.fixture(scope="module")
def broker() -> Iterator[KafkaSettings]:
    """One of this file's own: a time range takes whatever else was received in it."""
    forced = os.environ.get("ARB_TEST_BROKER")
    with start_broker(forced, quick=True) as running:
        if running.kind == "mock":
            pytest.skip(f"no real Kafka can run here: {'; '.join(running.refused)}")
        yield running.kafka


class Published:
    """The replay under test: what was recorded is on the topics of a broker, and in a file."""

    def __init__(self, broker: KafkaSettings, folder: Path, recording) -> None:
        self.folder = folder
        self.broker = broker
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("ARB_")}
        self.environment["ARB_KAFKA_SERVERS"] = broker.servers
        self.file = folder / "ticks.jsonl"
        self.file.write_bytes(b"".join(value + b"\n" for _, _, value, _ in recording.ticks))
        self.within = Range(recording.since_ns, recording.until_ns // 1000 * 1000 + 1000)
        self.range = ["--since", iso(self.within.since_ns), "--until", iso(self.within.until_ns)]
        producer = Producer({"bootstrap.servers": broker.servers, "partitioner": "murmur2_random", "linger.ms": 20})
        for topic, key, value, received_ns in recording.ticks:
            producer.produce(topic, value, key, timestamp=received_ns // 1_000_000 + 1)
            producer.poll(0)
        assert producer.flush(30) == 0

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{uuid.uuid4().hex[:6]}.log").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "services.cli", "detect", *self.range, *arguments],
                env=self.environment | environment,
                stdout=subprocess.PIPE,
                stderr=log,
            )

    def output(self, *arguments: str) -> bytes:
        process = self.start(*arguments)
        found, _ = process.communicate(timeout=60)
        assert process.returncode == 0, self.logs()
        return found

    def logs(self) -> str:
        return "\n".join(path.read_text(errors="replace")[-3000:] for path in self.folder.glob("*.log"))

    @contextlib.contextmanager
    def members(self, group: str, **environment: str) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
        """Starts members of a group; none of them outlives the block."""
        running: list[subprocess.Popen[bytes]] = []

        def start() -> subprocess.Popen[bytes]:
            running.append(self.start("--publish", "--group", group, **environment))
            return running[-1]

        try:
            yield start
        finally:
            for process in running:
                process.kill()
                process.wait()
                assert process.stdout is not None
                process.stdout.close()

    def wait(self, members: Sequence[subprocess.Popen[bytes]], timeout_s: float = 60) -> None:
        end = time.monotonic() + timeout_s
        for member in members:
            assert member.wait(max(0.1, end - time.monotonic())) == 0, self.logs()


class Events:
    """What is published on the event topics from now on."""

    def __init__(self, broker: KafkaSettings) -> None:
        names = [topics.OPPORTUNITIES, topics.REJECTIONS, topics.OUTCOMES]
        self._config = kafka.reader(broker, "test")
        self._names = names
        self._begins = self._ends()

    def _ends(self) -> dict[tuple[str, int], int]:
        return {(s.topic, s.partition): s.high for s in kafka.spans(self._config, self._names, 0, 1)}

    def take(self) -> list[bytes]:
        """All since the last call."""
        ends = self._ends()
        wanted = [kafka.Span(*at, self._begins[at], end, 0, end) for at, end in ends.items()]
        self._begins = ends
        return [record.value or b"" for record in kafka.read_spans(self._config, wanted) if record is not None]


def ids(values: Sequence[bytes]) -> set[str]:
    found = {message.get("opportunity_id") or message["rejection_id"] for message in map(orjson.loads, values)}
    return {identity for identity in found if identity}


@pytest.fixture(scope="module")
def published(broker, generated, tmp_path_factory) -> Published:
    seconds = 12
    since_ns = (time.time_ns() // SECOND_NS - seconds - 4) * SECOND_NS
    return Published(broker, tmp_path_factory.mktemp("replay"), generated(seed=7, seconds=seconds, since_ns=since_ns))


@pytest.fixture(scope="module")
def expected(published) -> list[bytes]:
    return published.output("--from-file", str(published.file)).splitlines()


def test_a_time_range_of_the_topics_prints_what_the_file_prints(published, expected):
    assert len(ids(expected)) > 10
    assert Counter(orjson.loads(one)["kind"] for one in expected)["opportunity"] > 10
    first, second = published.output(), published.output()
    assert first == second == b"".join(one + b"\n" for one in expected)


def test_one_two_three_and_five_processes_publish_the_same(published, expected):
    events = Events(published.broker)
    for count, protocol in ((1, "classic"), (2, "consumer"), (3, "classic"), (5, "consumer")):
        with published.members(f"scale-{uuid.uuid4()}", ARB_KAFKA_GROUP_PROTOCOL=protocol) as start:
            published.wait([start() for _ in range(count)])
        found = events.take()
        assert ids(found) == ids(expected), f"{count} processes"
        assert set(found) == set(expected), f"{count} processes"
        assert count > 1 or len(found) == len(expected), "alone nothing is published twice"


def test_members_that_come_late_or_are_killed_change_nothing(published, expected):
    events, group = Events(published.broker), f"scale-{uuid.uuid4()}"
    least = '{"session.timeout.ms": 6000}'  # the broker takes no less: so long until a killed member is missed
    with published.members(group, ARB_KAFKA_OPTIONS=least) as start:
        first, second = start(), start()
        until(lambda: done(published.broker, group) > 0, 30)
        first.kill()  # in the middle of its work: nothing is flushed, committed or left
        assert done(published.broker, group) < PARTITIONS
        third = start()
        until(lambda: done(published.broker, group) > 4, 30)
        second.kill()
        fourth = start()
        published.wait([third, fourth])
        assert done(published.broker, group) == PARTITIONS
        assert set(events.take()) == set(expected)
        published.wait([start()], 20)
        assert events.take() == [], "a late one finds nothing to do"


def test_a_member_that_is_told_to_stop_leaves_the_rest_to_others(published, expected):
    events, group = Events(published.broker), f"scale-{uuid.uuid4()}"
    with published.members(group) as start:
        member = start()
        until(lambda: done(published.broker, group) > 0, 30)
        member.terminate()
        assert member.wait(20) == 1
        assert "stopped before the whole range was done" in published.logs()
        published.wait([start()])
    assert set(events.take()) == set(expected)


def test_a_range_that_may_grow_or_has_been_deleted_is_refused(published):
    settings = configuration.load().model_copy(update={"kafka": published.broker})
    with pytest.raises(UsageError, match="--until must be at least 2 s ago"):
        recorded.find(settings, Range(0, time.time_ns()))
    name, partition = topics.ticks("okx"), kafka.partition_of("BTC", PARTITIONS)
    (end,) = (
        s.high for s in kafka.spans(kafka.reader(published.broker, "t"), [name], 0, 1) if s.partition == partition
    )
    admin = cluster.admin(published.broker)  # kept: with the client its futures would die
    deleted = admin.delete_records([TopicPartition(name, partition, end - 1)])
    assert [future.result(10).low_watermark for future in deleted.values()] == [end - 1]
    with pytest.raises(UsageError, match=rf"{name}/{partition}: its oldest record is of .*begin there with --since"):
        recorded.find(settings, published.within)


def until(condition: Callable[[], bool], timeout_s: float) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.05)  # of another process: there is no event to wait for


def done(broker: KafkaSettings, group: str) -> int:
    """Partition numbers that a group has committed on all tick topics."""
    places = [TopicPartition(name, number) for name in topics.tick_topics() for number in range(PARTITIONS)]
    consumer = Consumer({"bootstrap.servers": broker.servers, "group.id": group})
    found = Counter(place.partition for place in consumer.committed(places, timeout=10) if place.offset >= 0)
    consumer.close()
    return sum(1 for count in found.values() if count == len(topics.EXCHANGES))


# ---------------------------------------------------------------- live groups


class Live:
    """A member of a live group, driven by the test."""

    def __init__(
        self,
        broker: KafkaSettings,
        group: str,
        names: Sequence[str] = tuple(topics.tick_topics()),
        back_ms: int = 1000,
    ) -> None:
        self.owned: frozenset[int] = frozenset()
        self.records: list[kafka.Record] = []
        config = kafka.tick_consumer(broker, "test", group)
        self._reader = kafka.TicksReader(config, names, back_ms, self._own)

    def _own(self, owned: frozenset[int]) -> None:
        self.owned = owned

    def read(self) -> None:
        self.records += self._reader.read(500, 0.02)

    def close(self) -> None:
        self._reader.close()


def drive(members: Sequence[Live], condition: Callable[[], bool], timeout_s: float = 40) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, [sorted(member.owned) for member in members]
        for member in members:
            member.read()


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_where_kafka_cannot_tell_times_the_tails_are_read_without_what_is_old(broker, protocol, monkeypatch):
    """A leader that has just died: a book that does not change would be missing for the new owner."""

    def nobody(*_: object) -> list[TopicPartition]:
        raise BrokerUnavailable("no leader")

    names, numbers, now_ms = [f"tail-{uuid.uuid4()}" for _ in range(2)], range(4), int(time.time() * 1000)
    cluster.apply_topics(broker, [Topic(name, len(numbers), 3_600_000, 1, "k", "test", "test") for name in names])
    producer = Producer({"bootstrap.servers": broker.servers})
    old, young = uuid.uuid4().bytes, uuid.uuid4().bytes
    for name in names:
        for number in numbers:
            for value, timestamp_ms in ((old, now_ms - 120_000), (young, now_ms)):
                producer.produce(name, value, partition=number, timestamp=timestamp_ms)
    assert producer.flush(20) == 0
    monkeypatch.setattr("shared.kafka.groups.positions", nobody)
    member = Live(broker.model_copy(update={"group_protocol": protocol}), f"tail-{uuid.uuid4()}", names, back_ms=60_000)

    def places(value: bytes) -> set[tuple[str, int]]:
        return {(record.topic, record.partition) for record in member.records if record.value == value}

    try:
        drive([member], lambda: len(places(young)) == len(names) * len(numbers))
        assert not places(old)
    finally:
        member.close()


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_two_live_members_share_the_coins_and_one_takes_over_all(broker, protocol):
    settings = broker.model_copy(update={"group_protocol": protocol})
    group, everything = f"live-{uuid.uuid4()}", frozenset(range(PARTITIONS))
    coins = [f"T{number}" for number in range(12)]
    first = Live(settings, group)
    members = [first]
    producer = Producer({"bootstrap.servers": broker.servers, "partitioner": "murmur2_random"})

    def tell(mark: bytes) -> None:
        for coin in coins:
            for name in topics.tick_topics():
                producer.produce(name, mark, coin)
        assert producer.flush(20) == 0

    def seen(member: Live, mark: bytes) -> set[tuple[str, str]]:
        return {(record.topic, (record.key or b"").decode()) for record in member.records if record.value == mark}

    try:
        drive(members, lambda: first.owned == everything)
        second = Live(settings, group)
        members.append(second)
        drive(members, lambda: bool(second.owned) and first.owned | second.owned == everything)
        drive(members, lambda: not first.owned & second.owned)
        assert sorted(map(len, (first.owned, second.owned))) == [8, 8], "the range assignor"
        mark = uuid.uuid4().bytes
        tell(mark)
        whole = {(name, coin) for name in topics.tick_topics() for coin in coins}
        drive(members, lambda: seen(first, mark) | seen(second, mark) == whole)
        for member in members:
            wanted = {coin for coin in coins if kafka.partition_of(coin, PARTITIONS) in member.owned}
            assert seen(member, mark) == {(name, coin) for name in topics.tick_topics() for coin in wanted}
        members.remove(first)
        first.close()
        drive(members, lambda: second.owned == everything)
        mark = uuid.uuid4().bytes
        tell(mark)
        drive(members, lambda: seen(second, mark) == whole)
    finally:
        for member in members:
            member.close()


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_topics_with_other_numbers_of_partitions_are_refused(broker, protocol, monkeypatch):
    monkeypatch.setattr(kafka, "UNEQUAL_S", 0.5)
    names = [f"uneven-{uuid.uuid4()}" for _ in range(2)]
    cluster.apply_topics(broker, [Topic(names[0], 2, 3_600_000, 1, "k", "t", "t")])
    cluster.apply_topics(broker, [Topic(names[1], 3, 3_600_000, 1, "k", "t", "t")])
    member = Live(broker.model_copy(update={"group_protocol": protocol}), f"uneven-{uuid.uuid4()}", names)
    try:
        with pytest.raises(TopicMismatch, match="other partitions on one exchange"):
            drive([member], lambda: False, 20)
    finally:
        member.close()


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
async def test_partitions_that_went_away_paused_come_back_running(broker, protocol):
    """Back-pressure pauses what is held; what another member had meanwhile must not stay paused for ever."""
    settings = broker.model_copy(update={"group_protocol": protocol})
    name, group = f"pressure-{uuid.uuid4()}", f"pressure-{uuid.uuid4()}"
    cluster.apply_topics(broker, [Topic(name, 4, 3_600_000, 1, "k", "t", "t")])
    producer = Producer({"bootstrap.servers": broker.servers})

    for number in range(4000):  # more than one read brings: some are fetched and not handed out when the pause comes
        producer.produce(name, str(number), partition=number % 4)
    assert producer.flush(20) == 0
    seen: set[int] = set()
    config = kafka.event_consumer(settings, "test", group)
    async with asyncio.timeout(60), kafka.ConsumerThread(config, [name], high_water=20, auto_release=False) as first:
        stream = first.batches()

        async def take(wanted: Callable[[], bool]) -> None:
            while not wanted():
                batch = await anext(stream)
                seen.update(int(record.value or b"") for record in batch)
                first.release(len(batch))

        held = await anext(stream)  # not released: all is paused
        other = Live(settings, group, [name])
        while len(other.owned) != 2:
            other.read()
            await asyncio.sleep(0)
        seen.update(int(record.value or b"") for record in held)
        first.release(len(held))
        kept = {number for number in range(4000) if number % 4 not in other.owned}
        await take(lambda: kept <= seen)  # resumed without the two that are away
        other.close()
        await take(lambda: seen == set(range(4000)))
        await stream.aclose()
