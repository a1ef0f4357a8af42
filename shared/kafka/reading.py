"""Records, and readers without a group: all of a topic, a part of its time, or from now on."""

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple, TypeVar, overload

import structlog
from confluent_kafka import (
    OFFSET_BEGINNING,
    OFFSET_END,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
    murmur2,
)

from shared.errors import AccessRefused, BrokerUnavailable, TopicMismatch
from shared.kafka.clients import Config
from shared.kafka.refusals import is_refusal, no_broker, no_topics, refused

log = structlog.get_logger()

T = TypeVar("T")

Headers = list[tuple[str, bytes]]

PATIENCE_S = 30.0
"""How long we ask again for offsets: a dead broker is noticed after 9 s, then others lead its partitions; where it led
the controllers, too, and on a busy machine, 15 s were not enough."""

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


class Batch(Sequence[Record]):
    """Records as they were read. Each is made of its message when it is asked for: of most only the value is looked at.

    Attributes:
        values: Of all of them.
    """

    __slots__ = ("_messages", "values")

    def __init__(self, messages: list[Message], values: list[bytes | None] | None = None) -> None:
        self._messages = messages
        self.values = [message.value() for message in messages] if values is None else values

    def __len__(self) -> int:
        return len(self._messages)

    @overload
    def __getitem__(self, at: int) -> Record: ...
    @overload
    def __getitem__(self, at: slice) -> "Batch": ...
    def __getitem__(self, at: int | slice) -> "Record | Batch":
        return _record(self._messages[at]) if isinstance(at, int) else Batch(self._messages[at], self.values[at])

    def newest_ms(self) -> int:
        """When the last one was published; there must be one."""
        return int(self._messages[-1].timestamp()[1])

    def since(self, oldest_ms: int) -> "Batch":
        """Those that are not older."""
        return Batch([message for message in self._messages if message.timestamp()[1] >= oldest_ms])


def read(consumer: Consumer, limit: int = 500, wait_s: float = READ_WAIT_S) -> list[Record]:
    """What is there now, at most `limit` records, waiting up to `wait_s` for the first; raises as `read_batch`."""
    return list(read_batch(consumer, limit, wait_s))


def read_batch(consumer: Consumer, limit: int, wait_s: float) -> Batch:
    """As `read`, the records made when they are asked for.

    Raises:
        TopicMismatch: a subscribed topic does not exist.
        BrokerUnavailable: an error after which this consumer cannot go on.
    """
    try:
        first = consumer.poll(wait_s)
        if first is None:
            return Batch([])
        messages = [first, *consumer.consume(limit - 1, 0)] if limit > 1 else [first]
    except KafkaException as fatal:
        _check(fatal.args[0])
        raise BrokerUnavailable(f"Kafka: {fatal.args[0].str()}") from None
    errors = [error for message in messages if (error := message.error()) is not None]
    for error in errors:
        _check(error)
    return Batch([message for message in messages if message.error() is None] if errors else messages)


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
        AccessRefused: we may not ask.
        BrokerUnavailable: Kafka could not say within `patience_s`.
    """
    return patiently(lambda deadline: _starts(consumer, partitions, since_ms, deadline), patience_s)


def _starts(
    consumer: Consumer, partitions: Sequence[TopicPartition], since_ms: int, deadline: float
) -> list[TopicPartition]:
    ends = _offsets_at(consumer, partitions, OFFSET_END, deadline)  # first: nothing between the two is passed over
    starts = _offsets_at(consumer, partitions, since_ms, deadline)
    found = [end if p.offset < 0 else p for p, end in zip(starts, ends, strict=True)]
    return [TopicPartition(p.topic, p.partition, p.offset if p.offset >= 0 else OFFSET_END) for p in found]


def _offsets_at(
    consumer: Consumer, places: Sequence[TopicPartition], when_ms: int, deadline: float
) -> list[TopicPartition]:
    """Offsets by time of all places; one that cannot be told is no answer.

    Raises:
        KafkaException: a leader is being elected, say.
    """
    asked = [TopicPartition(p.topic, p.partition, when_ms) for p in places]
    found = consumer.offsets_for_times(asked, timeout=_within(5.0, deadline))
    for failed in (p.error for p in found if p.error is not None):
        raise KafkaException(failed)
    return found


def _within(most_s: float, deadline: float) -> float:
    """Seconds that a question may take."""
    return max(0.1, min(most_s, deadline - time.monotonic()))


def patiently(ask: Callable[[float], T], patience_s: float = PATIENCE_S) -> T:
    """The answer, asked again while a leader is being elected or a rebalance is under way.

    Args:
        ask: Given the moment (monotonic) up to which it may take.

    Raises:
        AccessRefused: we may not ask.
        BrokerUnavailable: none came within `patience_s`.
    """
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return ask(deadline)
        except AccessRefused:
            raise
        except BrokerUnavailable:
            if time.monotonic() > deadline:
                raise
        except KafkaException as error:
            if is_refusal(error.args[0]):
                raise refused(error.args[0]) from None
            if time.monotonic() > deadline:
                raise BrokerUnavailable(no_broker(error.args[0].str())) from None
        time.sleep(0.25)


def _anew(config: Config, ask: Callable[[Consumer, float], T]) -> Callable[[float], T]:
    """Ask by a client of its own each time: one that has asked a cluster that was away may go on saying that it knows
    no such partition (librdkafka 2.16, seen for half a minute)."""

    def once(deadline: float) -> T:
        consumer = Consumer(config)
        try:
            return ask(consumer, deadline)
        finally:
            consumer.close()

    return once


def begins(
    config: Config, topics: Sequence[str], since_ms: int | None, numbers: Collection[int] | None = None
) -> list[TopicPartition]:
    """Partitions of the topics (None: all) as a reader without a group is assigned them, from `since_ms` on (0: all,
    None: from now on).

    Raises:
        BrokerUnavailable, TopicMismatch: as for any reader.
    """

    def ask(consumer: Consumer, deadline: float) -> list[TopicPartition]:
        places = partitions_of(consumer, topics, _within(10.0, deadline))
        partitions = [p for p in places if numbers is None or p.partition in numbers]
        if since_ms is not None and since_ms > 0:
            return _starts(consumer, partitions, since_ms, deadline)
        at = OFFSET_END if since_ms is None else OFFSET_BEGINNING
        return [TopicPartition(p.topic, p.partition, at) for p in partitions]

    return patiently(_anew(config, ask))


class Span(NamedTuple):
    """Records of a partition from offset `begin` up to, without, `end`; Kafka has those from `low` up to `high`."""

    topic: str
    partition: int
    begin: int
    end: int
    low: int
    high: int


def spans(
    config: Config,
    topics: Sequence[str],
    since_ms: int,
    until_ms: int | None = None,
    patience_s: float = PATIENCE_S,
) -> list[Span]:
    """Where the records that were published from `since_ms` (0: all) up to `until_ms` (None: now) are, partition by
    partition.

    Raises:
        BrokerUnavailable: Kafka does not answer. AccessRefused: it does not let us.
        TopicMismatch: a topic does not exist.
    """

    def ask(consumer: Consumer, deadline: float) -> list[Span]:
        places = partitions_of(consumer, topics, _within(10.0, deadline))

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

    return patiently(_anew(config, ask), patience_s)


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
        if time.monotonic() > deadline:
            raise BrokerUnavailable(f"{', '.join(topics)} could not be read back within {timeout_s:g} s")
        if record is not None:
            records.append(record)
    return records


def partition_of(key: str, partitions: int) -> int:
    """Partition of a key with the partitioner that all our producers use (Java's murmur2)."""
    return int(murmur2(key.encode(), partitions))


class Reader:
    """Reads topics without a group; all calls from one thread.

    Args:
        since_ms: As for `begins`.
        numbers: Partition numbers to read; None: all.
    """

    def __init__(
        self, config: Config, topics: Sequence[str], since_ms: int | None, numbers: Collection[int] | None = None
    ) -> None:
        partitions = begins(config, topics, since_ms, numbers)
        self._consumer = Consumer(config)
        self._consumer.assign(partitions)

    def read(self, limit: int, wait_s: float) -> Batch:
        return read_batch(self._consumer, limit, wait_s)

    def close(self) -> None:
        self._consumer.close()
