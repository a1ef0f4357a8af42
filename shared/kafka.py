"""Kafka as Arbiter uses it: the settings that matter, one publisher, one consumer with one owner thread.

Only this module and `shared/cluster.py` import confluent_kafka. The choices and the measurements behind them:
plain `Producer` (the asyncio one holds a steady trickle back), `poll` and then `consume(n, 0)` (waiting for n
messages costs the whole timeout), every call on a consumer from one thread (another one waits for a whole poll),
`murmur2_random` everywhere and the `range` assignor (all else breaks the co-location of a coin's topics).
"""

import asyncio
import contextlib
import functools
import queue
import re
import socket
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

import structlog
from confluent_kafka import (
    OFFSET_BEGINNING,
    OFFSET_END,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
    murmur2,
)

from shared import metrics
from shared.errors import AccessRefused, ArbiterError, BrokerUnavailable, TopicMismatch
from shared.kafka_watch import STATISTICS_MS, Statistics
from shared.settings import KafkaSettings
from shared.topics import dlq

log = structlog.get_logger()

Config = dict[str, Any]
DeliveryError = KafkaError
"""What a delivery callback gets where it is not None; `str()` says why."""

Headers = list[tuple[str, bytes]]


Place = tuple[str, int]
"""Topic and partition."""

PATIENCE_S = 30.0
"""How long we ask again for offsets: a dead broker is noticed after 9 s, then others lead its partitions; where it led
the controllers, too, and on a busy machine, 15 s were not enough."""

TAIL = 1000
"""Records at the end of a partition that a new owner looks through where Kafka cannot say what is how old. One that
holds fewer, its beginning having been deleted, is read from its end: nothing has happened on it for most of an hour."""

MOST_DEAD_BYTES = 900_000
"""Of a value that goes to a dead-letter topic: brokers take 1 MiB for a whole record."""

ROOM_WAIT_S = 0.5
"""How long an owner thread waits for room without polling, before it pauses its assignment."""

TROUBLE_S = 10.0
"""So long after a message that Kafka did not take a publisher is in trouble."""

READ_WAIT_S = 0.05
"""How long an owner thread waits for a message: short, because commands and signals wait for it too."""


class Record(NamedTuple):
    """A record as read. `timestamp_ms` is the publish moment (CreateTime)."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    timestamp_ms: int
    headers: Headers


# ---------------------------------------------------------------- settings of the clients


def _common(settings: KafkaSettings, service: str) -> Config:
    return {
        "bootstrap.servers": settings.servers,
        "client.id": f"{service}-{socket.gethostname()}",
        "socket.keepalive.enable": True,
        "reconnect.backoff.max.ms": 2000,  # the default of 10 s is slow after a broker's restart
        "socket.timeout.ms": 10_000,  # by default a broker that hangs holds everything up for 60 s
        "log_level": 2,  # lost connections reach us through error_cb, once
        "error_cb": _on_client_error,
    }


def measured(config: Config, client: str) -> Config:
    """With librdkafka's statistics as metrics; `client` is their label."""
    return {"statistics.interval.ms": STATISTICS_MS, "stats_cb": Statistics(client), **config}


def statistics_of(config: Config) -> Statistics:
    """What `measured` has put in."""
    found = config["stats_cb"]
    assert isinstance(found, Statistics)
    return found


def tick_producer(settings: KafkaSettings, service: str) -> Config:
    """Fresh before complete: a tick that cannot be sent in 1.5 s is dropped and counted."""
    config = _common(settings, service) | {
        "acks": 1,
        "enable.idempotence": False,
        "retries": 1,
        "linger.ms": 0.5,
        "delivery.timeout.ms": 1500,
        "queue.buffering.max.messages": 20_000,
        "compression.type": "none",
        "partitioner": "murmur2_random",
        "delivery.report.only.error": True,
        **settings.client_options(),
    }
    return measured(config, "ticks")


def event_producer(settings: KafkaSettings, service: str) -> Config:
    """Opportunities, rejections, decisions, dead letters: idempotent, acknowledged by all, never dropped."""
    config = _common(settings, service) | {
        "enable.idempotence": True,
        "acks": "all",
        "linger.ms": 0,
        "delivery.timeout.ms": 120_000,
        "compression.type": "none",
        "partitioner": "murmur2_random",
        **settings.client_options(),
    }
    return measured(config, "events")


def _member(settings: KafkaSettings, group: str) -> Config:
    """A member of a group, with the range assignor. With KIP-848 the broker keeps the time of sessions and heartbeats
    (`group.consumer.*`), and the client refuses settings for it."""
    if settings.group_protocol == "consumer":
        return {"group.id": group, "group.protocol": "consumer", "group.remote.assignor": "range"}
    return {
        "group.id": group,
        "partition.assignment.strategy": "range",
        "session.timeout.ms": 10_000,
        "heartbeat.interval.ms": 1000,
    }


def tick_consumer(settings: KafkaSettings, service: str, group: str) -> Config:
    """Latest ticks of a group. Committed offsets only feed lag metrics: stale prices are never read again."""
    config = _common(settings, service) | {
        **_member(settings, group),
        "auto.offset.reset": "latest",
        "fetch.wait.max.ms": 50,
        "queued.min.messages": 10_000,
        "fetch.queue.backoff.ms": 50,
        "enable.auto.commit": True,
        "auto.commit.interval.ms": 5000,
        **settings.client_options(),
    }
    return measured(config, "consumer")


def event_consumer(settings: KafkaSettings, service: str, group: str) -> Config:
    """At least once: offsets are stored by us, after the work is done, and committed in the background."""
    config = _common(settings, service) | {
        **_member(settings, group),
        "auto.offset.reset": "earliest",
        "enable.auto.commit": True,
        "auto.commit.interval.ms": 1000,
        "enable.auto.offset.store": False,
        "queued.min.messages": 100,
        "queued.max.messages.kbytes": 4096,
        "fetch.queue.backoff.ms": 50,
        "fetch.wait.max.ms": 50,
        **settings.client_options(),
    }
    return measured(config, "consumer")


def share_consumer(settings: KafkaSettings, service: str, group: str) -> Config:
    """A member that only shares partition numbers (`PartitionShare`): it reads nothing and commits when told."""
    return _common(settings, service) | {
        **_member(settings, group),
        "enable.auto.commit": False,
        **settings.client_options(),
    }


def reader(settings: KafkaSettings, service: str) -> Config:
    """A reader without a group: it sees every partition and commits nothing."""
    return _common(settings, service) | {
        "group.id": f"{service}-{uuid.uuid4()}",  # the client wants one; nothing is ever committed under it
        "auto.offset.reset": "latest",
        "enable.auto.commit": False,
        "fetch.wait.max.ms": 50,
        "fetch.queue.backoff.ms": 50,
        **settings.client_options(),
    }


_SAME_ERROR_S = 10.0
_last_logged: dict[str, float] = {}


def _on_client_error(error: KafkaError) -> None:
    """A broker that is away brings hundreds of the same error a second: one line in ten seconds says it."""
    now = time.monotonic()
    if error.fatal() or now - _last_logged.get(error.name(), -_SAME_ERROR_S) >= _SAME_ERROR_S:
        _last_logged[error.name()] = now
        log.warning("kafka", error=error.str(), code=error.name(), fatal=error.fatal())


# ---------------------------------------------------------------- why Kafka does not let us

_REFUSED = (
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
)
_CHECK = {
    KafkaError._AUTHENTICATION: "sasl.username, sasl.mechanism and the password (kafka.options, kafka.option_files)",
    KafkaError._SSL: "that ssl.ca.location (kafka.options) has signed the broker's certificate, that this has not "
    "expired and names the host as kafka.servers does",
}


class Complaints:
    """An `error_cb` that keeps what a client could not do, for the one line that ends a command."""

    def __init__(self) -> None:
        self._last: dict[int, str] = {}

    def __call__(self, error: KafkaError) -> None:
        self._last[error.code()] = _in_words(error)

    def failure(self, settings: KafkaSettings, words: str) -> BrokerUnavailable:
        """The error for a cluster that did not answer: `words`, and why, as far as it is known."""
        for code, check in _CHECK.items():
            if code in self._last:
                return AccessRefused(f"Kafka does not let us in: {self._last[code]}. Check {check}")
        reasons = [said for code, said in self._last.items() if code != KafkaError._ALL_BROKERS_DOWN]
        if self._last and not reasons:  # librdkafka says no more of a connection that is closed before it is of use
            protocol = settings.options.get("security.protocol", "PLAINTEXT")
            reasons.append(
                "it takes connections and closes them: it is starting, or it wants another security.protocol "
                f"(kafka.options) than {protocol}"
            )
        return BrokerUnavailable(no_broker(f"{words} ({reasons[-1]})" if reasons else words))


def _in_words(error: KafkaError) -> str:
    """librdkafka's words without its notes for developers: `(after 5ms in state SSL_HANDSHAKE)`, error numbers."""
    return re.sub(r" \(after \d+ms in state \w+\)|, verify that .*|error:[0-9A-F]+:[\w ]*:\w*:", "", error.str())


_NO_RULE = "no rule allows this to our user (sasl.username): `arb topics acls` shows who may do what"


def is_refusal(error: KafkaError) -> bool:
    """Whether Kafka says that no rule allows what was asked."""
    return error.code() in _REFUSED


def refused(error: KafkaError, topic: str = "") -> AccessRefused:
    """For an operation that no rule allows."""
    words = KafkaError(error.code()).str()  # the broker's own may be a dump of the whole request
    return AccessRefused(f"{topic}{': ' if topic else ''}{words}; {_NO_RULE}")


def no_topics(missing: Sequence[str], hidden: Sequence[str]) -> ArbiterError:
    """For topics that are not in the metadata: they may only be hidden from us."""
    if hidden:
        return AccessRefused(f"Kafka does not show us {', '.join(hidden)}; {_NO_RULE}")
    return TopicMismatch(f"no topic {', '.join(missing)}; create the topics with `arb topics apply`")


# ---------------------------------------------------------------- producing


class Publisher:
    """A producer with a thread that serves its delivery reports.

    Args:
        config: From `tick_producer` or `event_producer`.
        drop_when_full: True for ticks: a full queue drops the message and counts it. False for events: a full
            queue makes the caller wait, and a message that Kafka did not take in time ends the process by
            `BrokerUnavailable` at the next call, because going on would lose it silently.
    """

    def __init__(self, config: Config, *, drop_when_full: bool, full_wait_s: float = 30.0) -> None:
        self._producer = Producer(config)
        self._drop_when_full = drop_when_full
        self._full_wait_s = full_wait_s
        self._lost: str | None = None
        self._refused: AccessRefused | None = None
        self._trouble: tuple[float, str] | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="kafka-publisher", daemon=True)
        self._thread.start()

    def publish(
        self,
        topic: str,
        key: str | bytes | None,
        value: bytes | None,
        headers: Headers | None = None,
        on_delivery: Callable[[KafkaError | None], None] | None = None,
        *,
        then: Callable[[], None] | None = None,
    ) -> bool:
        """Queue one message; False if it was dropped (ticks only).

        `on_delivery` runs in the publisher's thread, with None or the error; it takes over the duty to handle
        a failure. `then`, instead of it, runs there when the message is delivered, and leaves the duty here.

        Raises:
            BrokerUnavailable: Kafka does not take messages, or an earlier one was lost.
            AccessRefused: we may not write to a topic (ticks, too: no later one would fare better).
        """
        if self._refused is not None:
            raise self._refused
        if self._lost is not None:
            raise BrokerUnavailable(f"Kafka did not take a message: {self._lost}")
        callback = self._report
        if on_delivery is not None:
            callback = functools.partial(self._tell, on_delivery)
        elif then is not None:
            callback = functools.partial(self._report, then=then)
        # Headers only where there are some: the argument alone costs as much as the rest of the call.
        extra: dict[str, Any] = {} if headers is None else {"headers": headers}
        deadline = None
        while True:
            try:
                self._producer.produce(topic, value, key, on_delivery=callback, **extra)
                return True
            except BufferError:
                if self._drop_when_full:
                    metrics.TICKS_DROPPED.labels(topic=topic, reason="queue_full").inc()
                    self._trouble = (time.monotonic(), f"{topic}: the queue to Kafka is full")
                    return False
                now = time.monotonic()
                deadline = deadline or now + self._full_wait_s
                if now > deadline:
                    raise BrokerUnavailable(f"Kafka took no message for {self._full_wait_s:g} s") from None
                self._producer.poll(0.01)
            except KafkaException as error:  # too large, say, or a client that takes nothing more
                said = error.args[0]
                raise (
                    refused(said, topic)
                    if is_refusal(said)
                    else BrokerUnavailable(f"Kafka's client did not take a message for {topic}: {said.str()}")
                ) from None

    def _tell(
        self, on_delivery: Callable[[KafkaError | None], None], error: KafkaError | None, message: Message
    ) -> None:
        if error is not None:
            self._note(error, message)
        on_delivery(error)

    def _report(self, error: KafkaError | None, message: Message, then: Callable[[], None] | None = None) -> None:
        if error is None:
            if then is not None:
                then()
            return
        self._note(error, message)
        if not self._drop_when_full:
            self._lost = f"{message.topic()}: {error.str()}"
            log.error("message lost", topic=message.topic(), error=error.str())

    def _note(self, error: KafkaError, message: Message) -> None:
        """Count what was not delivered."""
        topic = message.topic() or "?"
        self._trouble = (time.monotonic(), f"{topic}: {error.str()}")
        if is_refusal(error):
            self._refused = refused(error, topic)
        if self._drop_when_full:
            metrics.TICKS_DROPPED.labels(topic=topic, reason=error.name()).inc()
        else:
            metrics.EVENTS_LOST.labels(topic=topic).inc()

    def _serve(self) -> None:
        while not self._closing.is_set():
            try:
                self._producer.poll(0.1)
            except KafkaException as fatal:  # the client takes nothing more; what was queued is reported as lost
                said = fatal.args[0]
                log.error("kafka", error=said.str(), code=said.name(), fatal=True)
                self._lost = said.str()
                if is_refusal(said):
                    self._refused = refused(said)

    def brokers(self, timeout_s: float) -> int:
        """Ask Kafka how many brokers there are.

        Raises:
            BrokerUnavailable: no answer.
        """
        try:
            return len(self._producer.list_topics(timeout=timeout_s).brokers)
        except KafkaException as error:
            raise BrokerUnavailable(error.args[0].str()) from None

    def trouble(self) -> str | None:
        """What went wrong with messages in the last seconds; None: nothing."""
        if self._lost is not None:
            return f"a message was lost: {self._lost}"
        if self._trouble is None:
            return None
        at, words = self._trouble
        age_s = time.monotonic() - at
        return f"a message was not delivered {age_s:.0f} s ago: {words}" if age_s <= TROUBLE_S else None

    def flush(self, timeout_s: float = 10.0) -> int:
        """Wait for everything queued; returns how many messages are left.

        The publisher's thread hears of each; the client's own `flush` would take its reports over, and a fatal error
        with them.
        """
        deadline = time.monotonic() + timeout_s
        while (left := len(self._producer)) and time.monotonic() < deadline:
            time.sleep(0.002)  # the client has no event for it
        return left

    def confirm(self, timeout_s: float = 30.0) -> None:
        """Wait until all that was published is delivered.

        Raises:
            BrokerUnavailable: some of it is not, or was lost.
        """
        left = self.flush(timeout_s)
        if self._refused is not None:
            raise self._refused
        if left or self._lost is not None:
            raise BrokerUnavailable(f"Kafka did not take a message: {self._lost or f'{left} wait'}")

    def close(self, timeout_s: float = 10.0) -> int:
        """Flush and stop; returns how many messages were given up (also logged)."""
        left = self.flush(timeout_s)
        self._closing.set()
        self._thread.join(1.0)
        if left:
            log.error("messages given up at the end", count=left)
        return left


def dead_letter(
    publisher: Publisher,
    record: Record,
    *,
    group: str,
    stage: str,
    error: Exception,
    on_delivery: Callable[[KafkaError | None], None] | None = None,
) -> None:
    """Put a record that cannot be processed on its dead-letter topic: original key, value and headers, plus why.

    Of a value beside which the reasons would not fit into a record, the beginning; `__dlq.cut` says how much there was.
    """
    why = {
        "__dlq.topic": record.topic,
        "__dlq.partition": str(record.partition),
        "__dlq.offset": str(record.offset),
        "__dlq.timestamp": str(record.timestamp_ms),
        "__dlq.group": group,
        "__dlq.stage": stage,
        "__dlq.error.class": type(error).__name__,
        "__dlq.error.message": str(error)[:500],
    }
    value = record.value
    if value is not None and len(value) > MOST_DEAD_BYTES:
        why["__dlq.cut"] = str(len(value))
        value = value[:MOST_DEAD_BYTES]
    headers = [*record.headers, *((name, text.encode()) for name, text in why.items())]
    metrics.DEAD_LETTERS.labels(topic=record.topic, stage=stage).inc()
    log.warning("dead letter", topic=record.topic, partition=record.partition, offset=record.offset, error=str(error))
    publisher.publish(dlq(record.topic), record.key, value, headers, on_delivery)


# ---------------------------------------------------------------- consuming


def _record(message: Message) -> Record:
    fields = (
        message.topic() or "",
        message.partition() or 0,
        message.offset() or 0,
        message.key(),
        message.value(),
        message.timestamp()[1],
        message.headers() or [],
    )
    return tuple.__new__(Record, fields)  # as `Record(*fields)`, which costs as much as all of the above


def read(consumer: Consumer, limit: int = 500, wait_s: float = READ_WAIT_S) -> list[Record]:
    """What is there now, at most `limit` records, waiting up to `wait_s` for the first.

    Raises:
        TopicMismatch: a subscribed topic does not exist.
        BrokerUnavailable: an error after which this consumer cannot go on.
    """
    try:
        first = consumer.poll(wait_s)
        if first is None:
            return []
        messages = [first, *consumer.consume(limit - 1, 0)] if limit > 1 else [first]
    except KafkaException as fatal:
        _check(fatal.args[0])
        raise BrokerUnavailable(f"Kafka: {fatal.args[0].str()}") from None
    records = []
    for message in messages:
        error = message.error()
        if error is None:
            records.append(_record(message))
        else:
            _check(error)
    return records


def _check(error: KafkaError) -> None:
    code = error.code()
    if code == KafkaError._PARTITION_EOF:
        return
    if code in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION):
        raise TopicMismatch(f"{error.str()}; create the topics with `arb topics apply`")
    if is_refusal(error):
        raise refused(error)
    if error.fatal():
        raise BrokerUnavailable(f"Kafka: {error.str()}")
    log.warning("kafka", error=error.str(), code=error.name())


def partitions_of(consumer: Consumer, topics: Sequence[str], timeout_s: float = 10.0) -> list[TopicPartition]:
    """All partitions of the topics.

    Raises:
        BrokerUnavailable: no broker answers. AccessRefused: a topic is hidden from us.
        TopicMismatch: a topic does not exist.
    """
    try:
        known = consumer.list_topics(timeout=timeout_s).topics
    except KafkaException as error:
        raise BrokerUnavailable(no_broker(error.args[0].str())) from None
    missing = [name for name in topics if name not in known or not known[name].partitions]
    if missing:
        asked = {name: consumer.list_topics(name, timeout=timeout_s).topics[name].error for name in missing}
        raise no_topics(missing, [name for name, error in asked.items() if error and is_refusal(error)])
    return [TopicPartition(name, number) for name in topics for number in sorted(known[name].partitions)]


def positions(
    consumer: Consumer, partitions: Sequence[TopicPartition], since_ms: int, patience_s: float = PATIENCE_S
) -> list[TopicPartition]:
    """The partitions at their first record not older than `since_ms`; where there is none, at their end of now: what is
    published after this call is read.

    Raises:
        BrokerUnavailable: Kafka could not say within `patience_s`.
    """
    deadline = time.monotonic() + patience_s
    ends = _offsets_at(consumer, partitions, OFFSET_END, deadline)  # first: nothing between the two is passed over
    starts = _offsets_at(consumer, partitions, since_ms, deadline)
    found = [end if p.offset < 0 else p for p, end in zip(starts, ends, strict=True)]
    return [TopicPartition(p.topic, p.partition, p.offset if p.offset >= 0 else OFFSET_END) for p in found]


def _offsets_at(
    consumer: Consumer, places: Sequence[TopicPartition], when_ms: int, deadline: float
) -> list[TopicPartition]:
    """Offsets by time of all places; one that cannot be told is no answer.

    Raises:
        AccessRefused: we may not ask.
        BrokerUnavailable: not before `deadline`.
    """

    def ask() -> list[TopicPartition]:
        found = consumer.offsets_for_times([TopicPartition(p.topic, p.partition, when_ms) for p in places], timeout=5.0)
        for failed in (p.error for p in found if p.error is not None):  # one whose leader is being elected
            raise KafkaException(failed)
        return found

    return _patiently(ask, deadline)


def assign(
    consumer: Consumer, topics: Sequence[str], since_ms: int | None, numbers: Collection[int] | None = None
) -> list[TopicPartition]:
    """Read partitions of the topics (None: all) without a group, from `since_ms` on (0: all, None: from now on)."""
    partitions = [p for p in partitions_of(consumer, topics) if numbers is None or p.partition in numbers]
    if since_ms is None:
        partitions = [TopicPartition(p.topic, p.partition, OFFSET_END) for p in partitions]
    elif since_ms <= 0:
        partitions = [TopicPartition(p.topic, p.partition, OFFSET_BEGINNING) for p in partitions]
    else:
        partitions = positions(consumer, partitions, since_ms)
    consumer.assign(partitions)
    return partitions


class Span(NamedTuple):
    """Records of a partition from offset `begin` up to, without, `end`; Kafka has those from `low` up to `high`."""

    topic: str
    partition: int
    begin: int
    end: int
    low: int
    high: int


def spans(
    config: Config, topics: Sequence[str], since_ms: int, until_ms: int | None = None, timeout_s: float = 10.0
) -> list[Span]:
    """Where the records that were published from `since_ms` (0: all) up to `until_ms` (None: now) are, partition by
    partition.

    Raises:
        BrokerUnavailable: Kafka does not answer.
        TopicMismatch: a topic does not exist.
    """
    consumer = Consumer(config)
    try:
        places = partitions_of(consumer, topics, timeout_s)

        deadline = time.monotonic() + PATIENCE_S

        def at(when: int) -> list[int]:
            return [p.offset for p in _offsets_at(consumer, places, when, deadline)]

        # OFFSET_END and OFFSET_BEGINNING are times, too: the newest and the oldest there is
        low, high = at(OFFSET_BEGINNING), at(OFFSET_END)
        begin = low if since_ms <= 0 else at(since_ms)
        end = high if until_ms is None else at(until_ms)
        return [
            Span(p.topic, p.partition, last if first < 0 else first, last if past < 0 else past, oldest, last)
            for p, oldest, last, first, past in zip(places, low, high, begin, end, strict=True)
        ]
    finally:
        consumer.close()


def _patiently(ask: Callable[[], list[TopicPartition]], deadline: float) -> list[TopicPartition]:
    """The answer, asked again while a leader is being elected or a rebalance is under way.

    Raises:
        AccessRefused: we may not ask.
        BrokerUnavailable: none came before `deadline`.
    """
    while True:
        try:
            return ask()
        except KafkaException as error:
            if is_refusal(error.args[0]):
                raise refused(error.args[0]) from None
            if time.monotonic() > deadline:
                raise BrokerUnavailable(no_broker(error.args[0].str())) from None
        time.sleep(0.25)


def read_spans(config: Config, wanted: Sequence[Span], silence_s: float = 30.0) -> Iterator[Record | None]:
    """Every record of the spans, in order within each partition; None where there was nothing for a moment.

    Raises:
        BrokerUnavailable: nothing came for `silence_s`.
        TopicMismatch: Kafka has deleted records of a span meanwhile.
    """
    left = {(span.topic, span.partition): span for span in wanted if span.begin < span.end}
    if not left:
        return
    consumer = Consumer({**config, "auto.offset.reset": "earliest"})  # what is deleted shows as a gap of the offsets
    try:
        consumer.assign([TopicPartition(span.topic, span.partition, span.begin) for span in left.values()])
        heard = time.monotonic()
        while left:
            records = read(consumer)
            now = time.monotonic()
            if records:
                heard = now
            elif now - heard > silence_s:
                raise BrokerUnavailable(f"Kafka sent nothing for {silence_s:g} s; {len(left)} partitions are not read")
            else:
                yield None
            for record in records:
                place = (record.topic, record.partition)
                span = left.get(place)
                if span is None or record.offset < span.begin:
                    continue
                if record.offset > span.begin:
                    lost = f"{record.topic}/{record.partition}: records {span.begin} to {record.offset - 1}"
                    raise TopicMismatch(f"{lost} were deleted before they could be read")
                if record.offset + 1 >= span.end:
                    del left[place]
                    consumer.pause([TopicPartition(*place)])
                else:
                    left[place] = span._replace(begin=record.offset + 1)
                yield record
    finally:
        consumer.close()


def read_range(config: Config, topics: Sequence[str], since_ms: int, timeout_s: float = 10.0) -> list[Record]:
    """Everything on the topics from `since_ms` (0: all) up to their ends at the moment of the call.

    Raises:
        BrokerUnavailable: Kafka does not answer, or not all was read within `timeout_s`.
        TopicMismatch: a topic does not exist, or records were deleted while they were read.
    """
    wanted = spans(config, topics, since_ms)
    deadline = time.monotonic() + timeout_s
    records: list[Record] = []
    for record in read_spans(config, wanted, timeout_s):
        if record is not None:
            records.append(record)
        if time.monotonic() > deadline:
            raise BrokerUnavailable(f"{', '.join(topics)} could not be read back within {timeout_s:g} s")
    return records


def partition_of(key: str, partitions: int) -> int:
    """Partition of a key with the partitioner that all our producers use (Java's murmur2)."""
    return int(murmur2(key.encode(), partitions))


class Reader:
    """Reads topics without a group; all calls from one thread.

    Args:
        since_ms: As for `assign`.
        numbers: Partition numbers to read; None: all.
    """

    def __init__(
        self, config: Config, topics: Sequence[str], since_ms: int | None, numbers: Collection[int] | None = None
    ) -> None:
        self._consumer = Consumer(config)
        assign(self._consumer, topics, since_ms, numbers)

    def read(self, limit: int, wait_s: float) -> list[Record]:
        return read(self._consumer, limit, wait_s)

    def close(self) -> None:
        self._consumer.close()


_TAIL_BASE = -2000
"""librdkafka: an offset of so much less n is n records before the end (RD_KAFKA_OFFSET_TAIL, which Python lacks)."""

LOOK_S = 2.0
"""How long a new owner of ticks asks where to begin."""


class TicksReader:
    """A member of the detector's group: reads back a little of each assignment first; all calls from one thread.

    Works with both group protocols: classic gives everything back and anew at each rebalance, KIP-848 adds and removes.

    Args:
        back_ms: How far before the moment of assignment to begin.
        on_owned: Called (in `read`) with the partition numbers that are ours now, the same on every topic.
    """

    def __init__(
        self,
        config: Config,
        topics: Sequence[str],
        back_ms: int,
        on_owned: Callable[[frozenset[int]], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._back_ms = back_ms
        self._on_owned = on_owned
        self._clock = clock
        self._oldest_ms = 0
        self._error: Exception | None = None
        self._incremental = is_incremental(config)
        self._held = CoAssignment(topics, incremental=self._incremental)
        self._consumer = Consumer(config)
        partitions_of(self._consumer, topics)  # fail now, with a clear line
        self._consumer.subscribe(
            list(topics), on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost_to_others
        )

    def read(self, limit: int, wait_s: float) -> list[Record]:
        """Records as they are there; see `read`.

        Raises:
            TopicMismatch: the assignment does not bring all exchanges of a coin together.
        """
        records = read(self._consumer, limit, wait_s)
        if self._error is not None:
            raise self._error
        self._held.check()
        if self._oldest_ms:
            return [record for record in records if record.timestamp_ms >= self._oldest_ms]
        return records

    def close(self) -> None:
        self._consumer.close()

    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        try:
            owned = self._held.assigned(_places(partitions))
            _take_over(consumer, self._back(consumer, partitions), incremental=self._incremental)
            self._on_owned(owned)
        except Exception as error:  # an exception in this callback would be lost in the client
            self._error = error

    def _back(self, consumer: Consumer, partitions: list[TopicPartition]) -> list[TopicPartition]:
        """A little back. Where Kafka cannot say where that is, a leader being dead, the tails of all of them, and of
        these what is not too old: ticks of now are worth more than a wait."""
        if not partitions:
            return []
        oldest_ms = int(self._clock() * 1000) - self._back_ms
        try:
            found = positions(consumer, partitions, oldest_ms, LOOK_S)
            self._oldest_ms = 0
            return found
        except AccessRefused:
            raise
        except BrokerUnavailable as error:
            log.warning("no offsets by time, starting at the tails", error=str(error))
            self._oldest_ms = oldest_ms
            return [TopicPartition(p.topic, p.partition, _TAIL_BASE - TAIL) for p in partitions]

    def _lost_to_others(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """The group did not hear us: others own this already, and what we get again is new to us."""
        self._gone(consumer, partitions, tell=True)

    def _revoked(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        # What is left is ours; with classic all is gone, and what we get back comes at once.
        self._gone(consumer, partitions, tell=self._incremental)

    def _gone(self, consumer: Consumer, partitions: list[TopicPartition], *, tell: bool) -> None:
        try:
            owned = self._held.revoked(_places(partitions))
            _give_back(consumer, partitions, incremental=self._incremental)
            if tell:
                self._on_owned(owned)
        except Exception as error:
            self._error = error


def is_incremental(config: Config) -> bool:
    """Whether rebalances of this consumer add and remove (KIP-848) instead of dealing everything anew (classic)."""
    return bool(config.get("group.protocol") == "consumer")


def _places(partitions: Sequence[TopicPartition]) -> list[Place]:
    return [(p.topic, p.partition) for p in partitions]


def _take_over(consumer: Consumer, partitions: list[TopicPartition], *, incremental: bool) -> None:
    if incremental:
        consumer.incremental_assign(partitions)
    else:
        consumer.assign(partitions)


def _give_back(consumer: Consumer, partitions: list[TopicPartition], *, incremental: bool) -> None:
    if incremental:
        consumer.incremental_unassign(partitions)
    else:
        consumer.unassign()


UNEQUAL_S = 10.0
"""KIP-848 may hand partitions over in steps, a heartbeat apart: so long may a member hold more on one topic than on
another."""


class CoAssignment:
    """What a member of a group over all tick topics holds, and whether it is the same on every topic.

    Args:
        incremental: Each assignment adds to what is held (KIP-848) instead of replacing it (classic).
    """

    def __init__(
        self, topics: Sequence[str], *, incremental: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._topics = list(topics)
        self._incremental = incremental
        self._clock = clock
        self._held: set[Place] = set()
        self._unequal: TopicMismatch | None = None
        self._unequal_since = 0.0

    def assigned(self, places: Collection[Place]) -> frozenset[int]:
        """Take in an assignment; the partition numbers that are now held on every topic.

        Raises:
            TopicMismatch: they differ, with the classic protocol, which deals all at once.
        """
        self._held = self._held | set(places) if self._incremental else set(places)
        return self._numbers()

    def revoked(self, places: Collection[Place]) -> frozenset[int]:
        """Take in what was taken away; the partition numbers that are still held on every topic."""
        self._held -= set(places)
        return self._numbers() if self._incremental else frozenset()

    def check(self) -> None:
        """Call it now and then.

        Raises:
            TopicMismatch: the numbers have differed between topics for longer than `UNEQUAL_S`.
        """
        if self._unequal is not None and self._clock() - self._unequal_since > UNEQUAL_S:
            raise self._unequal

    def _numbers(self) -> frozenset[int]:
        try:
            numbers = co_partitioned(sorted(self._held), self._topics)
            metrics.CO_PARTITIONED.set(1)
            self._unequal = None
            return numbers
        except TopicMismatch as error:
            metrics.CO_PARTITIONED.set(0)
            if not self._incremental:
                raise
            if self._unequal is None:
                self._unequal_since = self._clock()
            self._unequal = error
            each = [{number for name, number in self._held if name == topic} for topic in self._topics]
            return frozenset(set.intersection(*each))


def co_partitioned(assigned: Sequence[tuple[str, int]], topics: Sequence[str]) -> frozenset[int]:
    """Partition numbers of an assignment, if they are the same on every topic.

    Raises:
        TopicMismatch: they are not: a detector would see a coin on some exchanges only.
    """
    by_topic: dict[str, set[int]] = {topic: set() for topic in topics}
    for topic, partition in assigned:
        by_topic.setdefault(topic, set()).add(partition)
    found = {frozenset(numbers) for numbers in by_topic.values()}
    if len(found) > 1:
        counts = ", ".join(f"{topic}: {sorted(numbers)}" for topic, numbers in by_topic.items())
        raise TopicMismatch(
            f"this detector was given other partitions on one exchange than on another ({counts}); all tick topics "
            "must have the same number of partitions (`arb topics check`) and all detectors the same settings"
        )
    return next(iter(found))


class PartitionShare:
    """A member of a group whose members share the partition numbers of topics as work, and read them by other means.

    A number is done when an offset is committed on every topic with `label` as its metadata: an offset alone would say
    nothing about which work was done. All calls from one thread; `poll` often, or a rebalance waits for us.

    Args:
        config: From `share_consumer`.
        label: What the work is.

    Raises:
        BrokerUnavailable, TopicMismatch: as for any reader.
    """

    def __init__(self, config: Config, topics: Sequence[str], label: str) -> None:
        self._label = label
        self._error: Exception | None = None
        self._incremental = is_incremental(config)
        self._held = CoAssignment(topics, incremental=self._incremental)
        self._owned: frozenset[int] | None = None
        self._consumer = Consumer(config)
        self._places = partitions_of(self._consumer, topics)
        self.numbers = co_partitioned(_places(self._places), topics)
        self._consumer.subscribe(list(topics), on_assign=self._assigned, on_revoke=self._revoked)

    @property
    def owned(self) -> frozenset[int] | None:
        """The numbers that are ours; None before the first assignment and while a rebalance deals them anew."""
        return self._owned

    def poll(self, wait_s: float = 0.0) -> None:
        """Let the group do its work; `owned` may change.

        Raises:
            BrokerUnavailable, TopicMismatch: see `read`, `TicksReader`.
        """
        read(self._consumer, 1, wait_s)
        if self._error is not None:
            raise self._error
        self._held.check()

    def done(self) -> frozenset[int]:
        """The numbers that are done, by whichever member.

        Raises:
            BrokerUnavailable: Kafka does not answer.
        """
        found = _patiently(lambda: self._consumer.committed(self._places, timeout=5.0), time.monotonic() + PATIENCE_S)
        undone = {p.partition for p in found if p.error is not None or p.offset < 0 or p.metadata != self._label}
        return self.numbers - undone

    def commit(self, ends: Sequence[Span]) -> bool:
        """Say that a number is done, by the ends of its spans; False if it is not ours any more."""
        offsets = [TopicPartition(s.topic, s.partition, s.end, metadata=self._label) for s in ends]
        try:
            answers = self._consumer.commit(offsets=offsets, asynchronous=False)
        except KafkaException as error:
            log.warning("not committed", error=error.args[0].str())
            return False
        return all(answer.error is None for answer in answers or ())

    def close(self) -> None:
        self._consumer.close()

    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        try:
            self._owned = self._held.assigned(_places(partitions))
            given = [TopicPartition(p.topic, p.partition, 0) for p in partitions]
            _take_over(consumer, given, incremental=self._incremental)
            consumer.pause(given)
        except Exception as error:  # an exception in this callback would be lost in the client
            self._error = error

    def _revoked(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        try:
            left = self._held.revoked(_places(partitions))
            self._owned = left if self._incremental else None
            _give_back(consumer, partitions, incremental=self._incremental)
        except Exception as error:
            self._error = error


def no_broker(words: str) -> str:
    """The line for a broker that does not answer, with the next step."""
    return f"no Kafka answers: {words}. Start one (`make demo` brings its own) or name one with ARB_KAFKA_SERVERS"


class ConsumerThread:
    """One consumer, owned by one thread; its records reach an event loop as lists.

    The thread never stops polling, so slow work is no reason for Kafka to take partitions away: when more than
    `high_water` records are handed over and not yet released, it pauses the assignment, and resumes at half.

    Args:
        topics: What to read.
        since_ms: None to subscribe as a member of the group in `config`; else read all partitions without a
            group, from that time on (`START_NOW`, 0 for all).
        on_assigned, on_revoked: Called in the owner thread with the `(topic, partition)` pairs that were added or
            removed (with the classic protocol: all, each time); may block, within the session timeout. `on_revoked`
            runs before the offsets stored so far are committed.
        on_lost: Called likewise with what the group took without asking, because it did not hear us: others have it
            already. None: as for `on_revoked`.
    """

    START_NOW = -1

    def __init__(
        self,
        config: Config,
        topics: Sequence[str],
        *,
        since_ms: int | None = None,
        high_water: int = 1000,
        auto_release: bool = True,
        on_assigned: Callable[[list[tuple[str, int]]], None] | None = None,
        on_revoked: Callable[[list[tuple[str, int]]], None] | None = None,
        on_lost: Callable[[list[tuple[str, int]]], None] | None = None,
    ) -> None:
        self._config = config
        self._topics = list(topics)
        self._since_ms = since_ms
        self._high_water = high_water
        self._auto_release = auto_release
        self._on_assigned = on_assigned
        self._on_revoked = on_revoked
        self._on_lost = on_lost or on_revoked
        self._commands: queue.SimpleQueue[Callable[[Consumer], None]] = queue.SimpleQueue()
        self._batches: asyncio.Queue[list[Record] | Exception | None] = asyncio.Queue()
        self._handed_over = 0
        self._released = 0
        self._freed = threading.Event()
        self._paused = False
        self._changed = False
        self._stop = threading.Event()
        self._ready: asyncio.Future[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="kafka-consumer", daemon=True)

    async def __aenter__(self) -> "ConsumerThread":
        self._loop = asyncio.get_running_loop()
        self._ready = self._loop.create_future()
        self._thread.start()
        try:
            await self._ready
        except BaseException:
            await asyncio.to_thread(self._thread.join, 10.0)
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Stop reading, commit what was stored, leave the group."""
        self._stop.set()
        await asyncio.to_thread(self._thread.join, 15.0)

    async def batches(self) -> AsyncIterator[list[Record]]:
        """Records as they come, until `close` or an error of Kafka (raised here)."""
        while True:
            batch = await self._batches.get()
            if batch is None:
                return
            if isinstance(batch, Exception):
                raise batch
            yield batch
            if self._auto_release:
                self.release(len(batch))

    def release(self, count: int) -> None:
        """Say that `count` records are dealt with. Call it from the event loop's thread."""
        self._released += count
        if self._handed_over - self._released <= self._high_water // 2:
            self._freed.set()

    def store(self, topic: str, partition: int, next_offset: int) -> None:
        """Store an offset (the next one to read) for the background commit. Any thread."""
        position = TopicPartition(topic, partition, next_offset)

        def command(consumer: Consumer) -> None:
            # After a rebalance the partition may belong to another member, which will read the records again.
            with contextlib.suppress(KafkaException):
                consumer.store_offsets(offsets=[position])

        self._commands.put(command)

    def drain_commands(self, consumer: Consumer) -> None:
        """Run what other threads asked for; also called before a revocation is committed."""
        while True:
            try:
                self._commands.get_nowait()(consumer)
            except queue.Empty:
                return

    # ------------------------------------------------ the owner thread

    def _run(self) -> None:
        assert self._loop is not None
        consumer: Consumer | None = None
        try:
            consumer = Consumer(self._config)
            self._start(consumer)
            self._loop.call_soon_threadsafe(self._set_ready, None)
            while not self._stop.is_set():
                self.drain_commands(consumer)
                self._wait_for_room()
                self._apply_back_pressure(consumer)
                records = read(consumer)
                if records:
                    self._handed_over += len(records)
                    self._loop.call_soon_threadsafe(self._batches.put_nowait, records)
            self.drain_commands(consumer)
        except Exception as error:
            self._tell(self._set_ready, error)
            self._tell(self._batches.put_nowait, error)
        finally:
            if consumer is not None:
                consumer.close()
            self._tell(self._batches.put_nowait, None)

    def _tell(self, function: Callable[[Any], None], argument: object) -> None:
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to be told
            self._loop.call_soon_threadsafe(function, argument)

    def _set_ready(self, error: Exception | None) -> None:
        assert self._ready is not None
        if self._ready.done():
            return
        if error is None:
            self._ready.set_result(None)
        else:
            self._ready.set_exception(error)

    def _start(self, consumer: Consumer) -> None:
        if self._since_ms is not None:
            assign(consumer, self._topics, None if self._since_ms == self.START_NOW else self._since_ms)
            return
        partitions_of(consumer, self._topics)  # fail now, with a clear line, rather than wait for ever
        consumer.subscribe(self._topics, on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost)

    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        if self._on_assigned is not None:
            self._on_assigned([(p.topic, p.partition) for p in partitions])
        self._changed = True  # with KIP-848 what is new stands beside what was paused, and may have been paused before

    def _revoked(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        if self._on_revoked is not None:
            self._on_revoked([(p.topic, p.partition) for p in partitions])
        self.drain_commands(consumer)
        with contextlib.suppress(KafkaException):  # nothing stored, or the group has moved on
            consumer.commit(asynchronous=False)

    def _lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        if self._on_lost is not None:
            self._on_lost([(p.topic, p.partition) for p in partitions])

    def _wait_for_room(self) -> None:
        """A moment, before the assignment is paused: a pause throws away what has been fetched already."""
        if self._paused or self._handed_over - self._released <= self._high_water:
            return
        self._freed.clear()
        if self._handed_over - self._released > self._high_water // 2:  # nothing was released in between
            self._freed.wait(ROOM_WAIT_S)

    def _apply_back_pressure(self, consumer: Consumer) -> None:
        waiting = self._handed_over - self._released
        paused = waiting > self._high_water or (self._paused and waiting > self._high_water // 2)
        if paused == self._paused and not self._changed:
            return
        (consumer.pause if paused else consumer.resume)(consumer.assignment())
        self._paused, self._changed = paused, False
