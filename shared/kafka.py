"""Kafka as Arbiter uses it: the settings that matter, one publisher, one consumer with one owner thread.

Only this module and `shared/cluster.py` import confluent_kafka. The choices and the measurements behind them:
plain `Producer` (the asyncio one holds a steady trickle back), `poll` and then `consume(n, 0)` (waiting for n
messages costs the whole timeout), every call on a consumer from one thread (another one waits for a whole poll),
`murmur2_random` everywhere and the `range` assignor (all else breaks the co-location of a coin's topics).
"""

import asyncio
import contextlib
import queue
import socket
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
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
from shared.errors import BrokerUnavailable, TopicMismatch
from shared.settings import KafkaSettings
from shared.topics import dlq

log = structlog.get_logger()

Config = dict[str, Any]
DeliveryError = KafkaError
"""What a delivery callback gets where it is not None; `str()` says why."""

Headers = list[tuple[str, bytes]]

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
        "log_level": 2,  # lost connections reach us through error_cb, once
        "error_cb": _on_client_error,
    }


def tick_producer(settings: KafkaSettings, service: str) -> Config:
    """Fresh before complete: a tick that cannot be sent in 1.5 s is dropped and counted."""
    return _common(settings, service) | {
        "acks": 1,
        "enable.idempotence": False,
        "retries": 1,
        "linger.ms": 0.5,
        "delivery.timeout.ms": 1500,
        "queue.buffering.max.messages": 20_000,
        "compression.type": "none",
        "partitioner": "murmur2_random",
        "delivery.report.only.error": True,
        **settings.options,
    }


def event_producer(settings: KafkaSettings, service: str) -> Config:
    """Opportunities, rejections, decisions, dead letters: idempotent, acknowledged by all, never dropped."""
    return _common(settings, service) | {
        "enable.idempotence": True,
        "acks": "all",
        "linger.ms": 0,
        "delivery.timeout.ms": 120_000,
        "compression.type": "none",
        "partitioner": "murmur2_random",
        **settings.options,
    }


def tick_consumer(settings: KafkaSettings, service: str, group: str) -> Config:
    """Latest ticks of a group. Committed offsets only feed lag metrics: stale prices are never read again."""
    return _common(settings, service) | {
        "group.id": group,
        "auto.offset.reset": "latest",
        "partition.assignment.strategy": "range",
        "session.timeout.ms": 10_000,
        "heartbeat.interval.ms": 1000,
        "fetch.wait.max.ms": 50,
        "queued.min.messages": 10_000,
        "fetch.queue.backoff.ms": 50,
        "enable.auto.commit": True,
        "auto.commit.interval.ms": 5000,
        **settings.options,
    }


def event_consumer(settings: KafkaSettings, service: str, group: str) -> Config:
    """At least once: offsets are stored by us, after the work is done, and committed in the background."""
    return _common(settings, service) | {
        "group.id": group,
        "auto.offset.reset": "earliest",
        "partition.assignment.strategy": "range",
        "session.timeout.ms": 10_000,
        "heartbeat.interval.ms": 1000,
        "enable.auto.commit": True,
        "auto.commit.interval.ms": 1000,
        "enable.auto.offset.store": False,
        "queued.min.messages": 100,
        "queued.max.messages.kbytes": 4096,
        "fetch.queue.backoff.ms": 50,
        "fetch.wait.max.ms": 50,
        **settings.options,
    }


def reader(settings: KafkaSettings, service: str) -> Config:
    """A reader without a group: it sees every partition and commits nothing."""
    return _common(settings, service) | {
        "group.id": f"{service}-{uuid.uuid4()}",  # the client wants one; nothing is ever committed under it
        "auto.offset.reset": "latest",
        "enable.auto.commit": False,
        "fetch.wait.max.ms": 50,
        "fetch.queue.backoff.ms": 50,
        **settings.options,
    }


_SAME_ERROR_S = 10.0
_last_logged: dict[str, float] = {}


def _on_client_error(error: KafkaError) -> None:
    """A broker that is away brings hundreds of the same error a second: one line in ten seconds says it."""
    now = time.monotonic()
    if error.fatal() or now - _last_logged.get(error.name(), -_SAME_ERROR_S) >= _SAME_ERROR_S:
        _last_logged[error.name()] = now
        log.warning("kafka", error=error.str(), code=error.name(), fatal=error.fatal())


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
    ) -> bool:
        """Queue one message; False if it was dropped (ticks only).

        `on_delivery` runs in the publisher's thread, with None or the error; it takes over the duty to handle
        a failure.

        Raises:
            BrokerUnavailable: Kafka does not take messages, or an earlier one was lost.
        """
        if self._lost is not None:
            raise BrokerUnavailable(f"Kafka did not take a message: {self._lost}")
        callback = self._report if on_delivery is None else lambda error, _: on_delivery(error)
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
                    return False
                now = time.monotonic()
                deadline = deadline or now + self._full_wait_s
                if now > deadline:
                    raise BrokerUnavailable(f"Kafka took no message for {self._full_wait_s:g} s") from None
                self._producer.poll(0.01)

    def _report(self, error: KafkaError | None, message: Message) -> None:
        if error is None:
            return
        topic = message.topic() or "?"
        if self._drop_when_full:
            metrics.TICKS_DROPPED.labels(topic=topic, reason=error.name()).inc()
        else:
            metrics.EVENTS_LOST.labels(topic=topic).inc()
            self._lost = f"{topic}: {error.str()}"
            log.error("message lost", topic=topic, error=error.str())

    def _serve(self) -> None:
        while not self._closing.is_set():
            self._producer.poll(0.1)

    def flush(self, timeout_s: float = 10.0) -> int:
        """Wait for everything queued; returns how many messages are left."""
        return self._producer.flush(timeout_s)

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
    """Put a record that cannot be processed on its dead-letter topic: original key, value and headers, plus why."""
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
    headers = [*record.headers, *((name, text.encode()) for name, text in why.items())]
    metrics.DEAD_LETTERS.labels(topic=record.topic, stage=stage).inc()
    log.warning("dead letter", topic=record.topic, partition=record.partition, offset=record.offset, error=str(error))
    publisher.publish(dlq(record.topic), record.key, record.value, headers, on_delivery)


# ---------------------------------------------------------------- consuming


def _record(message: Message) -> Record:
    return Record(
        message.topic() or "",
        message.partition() or 0,
        message.offset() or 0,
        message.key(),
        message.value(),
        message.timestamp()[1],
        message.headers() or [],  # type: ignore[arg-type]  # typed for producing; read ones are (str, bytes)
    )


def read(consumer: Consumer, limit: int = 500, wait_s: float = READ_WAIT_S) -> list[Record]:
    """What is there now, at most `limit` records, waiting up to `wait_s` for the first.

    Raises:
        TopicMismatch: a subscribed topic does not exist.
        BrokerUnavailable: an error after which this consumer cannot go on.
    """
    first = consumer.poll(wait_s)
    if first is None:
        return []
    messages = [first, *consumer.consume(limit - 1, 0)] if limit > 1 else [first]
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
    if error.fatal() or code in (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.GROUP_AUTHORIZATION_FAILED):
        raise BrokerUnavailable(f"Kafka: {error.str()}")
    log.warning("kafka", error=error.str(), code=error.name())


def partitions_of(consumer: Consumer, topics: Sequence[str], timeout_s: float = 10.0) -> list[TopicPartition]:
    """All partitions of the topics.

    Raises:
        BrokerUnavailable: no broker answers.
        TopicMismatch: a topic does not exist.
    """
    try:
        known = consumer.list_topics(timeout=timeout_s).topics
    except KafkaException as error:
        raise BrokerUnavailable(no_broker(error.args[0].str())) from None
    missing = [name for name in topics if name not in known or not known[name].partitions]
    if missing:
        raise TopicMismatch(f"no topic {', '.join(missing)}; create the topics with `arb topics apply`")
    return [TopicPartition(name, number) for name in topics for number in sorted(known[name].partitions)]


def positions(
    consumer: Consumer, partitions: Sequence[TopicPartition], since_ms: int, timeout_s: float = 5.0
) -> list[TopicPartition]:
    """The partitions at their first record not older than `since_ms`; at their end where there is none."""
    asked = [TopicPartition(p.topic, p.partition, since_ms) for p in partitions]
    found = [TopicPartition(p.topic, p.partition, OFFSET_END) for p in partitions]
    for wait_s in (0.2, 0.5, 1.0, None):
        try:
            found = consumer.offsets_for_times(asked, timeout=timeout_s)
            break
        except KafkaException as error:
            if wait_s is None:
                log.warning("no offsets by time, starting at the end", error=str(error.args[0]))
            else:
                time.sleep(wait_s)  # a leader is being elected: a new topic, or a broker that came back
    return [TopicPartition(p.topic, p.partition, p.offset if p.offset >= 0 else OFFSET_END) for p in found]


def assign(consumer: Consumer, topics: Sequence[str], since_ms: int | None) -> list[TopicPartition]:
    """Read all partitions of the topics without a group, from `since_ms` on (0: all, None: from now on)."""
    partitions = partitions_of(consumer, topics)
    if since_ms is None:
        partitions = [TopicPartition(p.topic, p.partition, OFFSET_END) for p in partitions]
    elif since_ms <= 0:
        partitions = [TopicPartition(p.topic, p.partition, OFFSET_BEGINNING) for p in partitions]
    else:
        partitions = positions(consumer, partitions, since_ms)
    consumer.assign(partitions)
    return partitions


def read_range(config: Config, topic: str, since_ms: int, timeout_s: float = 10.0) -> list[Record]:
    """Everything on a topic from `since_ms` up to its end at the moment of the call.

    Raises:
        BrokerUnavailable: Kafka does not answer, or not all was read within `timeout_s`.
        TopicMismatch: the topic does not exist.
    """
    consumer = Consumer(config)
    try:
        deadline = time.monotonic() + timeout_s
        missing: dict[int, int] = {}
        for position in assign(consumer, [topic], since_ms):
            end = consumer.get_watermark_offsets(TopicPartition(topic, position.partition), timeout=timeout_s)[1]
            if 0 <= position.offset < end or (position.offset == OFFSET_BEGINNING and end > 0):
                missing[position.partition] = end
        records: list[Record] = []
        while missing:
            if time.monotonic() > deadline:
                raise BrokerUnavailable(f"{topic} could not be read back within {timeout_s:g} s")
            for record in read(consumer):
                records.append(record)
                if record.offset + 1 >= missing.get(record.partition, 0):
                    missing.pop(record.partition, None)
        return records
    finally:
        consumer.close()


def partition_of(key: str, partitions: int) -> int:
    """Partition of a key with the partitioner that all our producers use (Java's murmur2)."""
    return int(murmur2(key.encode(), partitions))


class Reader:
    """Reads whole topics without a group; all calls from one thread. `since_ms` as for `assign`."""

    def __init__(self, config: Config, topics: Sequence[str], since_ms: int | None) -> None:
        self._consumer = Consumer(config)
        assign(self._consumer, topics, since_ms)

    def read(self, limit: int, wait_s: float) -> list[Record]:
        return read(self._consumer, limit, wait_s)

    def close(self) -> None:
        self._consumer.close()


class TicksReader:
    """A member of the detector's group: reads back a little of each assignment first; all calls from one thread.

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
        self._topics = list(topics)
        self._back_ms = back_ms
        self._on_owned = on_owned
        self._clock = clock
        self._error: Exception | None = None
        self._consumer = Consumer(config)
        partitions_of(self._consumer, topics)  # fail now, with a clear line
        self._consumer.subscribe(self._topics, on_assign=self._assigned)

    def read(self, limit: int, wait_s: float) -> list[Record]:
        """Records as they are there; see `read`.

        Raises:
            TopicMismatch: the assignment does not bring all exchanges of a coin together.
        """
        records = read(self._consumer, limit, wait_s)
        if self._error is not None:
            raise self._error
        return records

    def close(self) -> None:
        self._consumer.close()

    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        try:
            owned = co_partitioned([(p.topic, p.partition) for p in partitions], self._topics)
            consumer.assign(positions(consumer, partitions, int(self._clock() * 1000) - self._back_ms))
            self._on_owned(owned)
        except Exception as error:  # an exception in this callback would be lost in the client
            self._error = error


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
        on_assigned, on_revoked: Called in the owner thread with `(topic, partition)` pairs; may block, within
            the session timeout. `on_revoked` runs before the offsets stored so far are committed.
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
    ) -> None:
        self._config = config
        self._topics = list(topics)
        self._since_ms = since_ms
        self._high_water = high_water
        self._auto_release = auto_release
        self._on_assigned = on_assigned
        self._on_revoked = on_revoked
        self._commands: queue.SimpleQueue[Callable[[Consumer], None]] = queue.SimpleQueue()
        self._batches: asyncio.Queue[list[Record] | Exception | None] = asyncio.Queue()
        self._handed_over = 0
        self._released = 0
        self._paused = False
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
        self._paused = False  # a new assignment starts unpaused; back-pressure is applied again at once

    def _revoked(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        if self._on_revoked is not None:
            self._on_revoked([(p.topic, p.partition) for p in partitions])
        self.drain_commands(consumer)
        with contextlib.suppress(KafkaException):  # nothing stored, or the group has moved on
            consumer.commit(asynchronous=False)

    def _lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        if self._on_revoked is not None:
            self._on_revoked([(p.topic, p.partition) for p in partitions])

    def _apply_back_pressure(self, consumer: Consumer) -> None:
        waiting = self._handed_over - self._released
        if not self._paused and waiting > self._high_water:
            consumer.pause(consumer.assignment())
            self._paused = True
        elif self._paused and waiting <= self._high_water // 2:
            consumer.resume(consumer.assignment())
            self._paused = False
