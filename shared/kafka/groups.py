"""Members of a group that hold the same partitions of several topics: detectors, and replays that share work."""

import time
from collections.abc import Callable, Collection, Sequence

import structlog
from confluent_kafka import Consumer, KafkaException, TopicPartition

from shared import metrics
from shared.errors import AccessRefused, BrokerUnavailable, TopicMismatch
from shared.kafka.clients import Config, is_incremental
from shared.kafka.reading import Batch, Span, partitions_of, patiently, positions, read, read_batch

log = structlog.get_logger()

Place = tuple[str, int]
"""Topic and partition."""

TAIL = 1000
"""Records at the end of a partition that a new owner looks through where Kafka cannot say what is how old. One that
holds fewer, its beginning having been deleted, is read from its end: little has happened on it for an hour. They come
when there is a leader again, seconds after the owner has settled, and are judged like any ticks that are late."""

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

    def read(self, limit: int, wait_s: float) -> Batch:
        """Records as they are there; see `read`.

        Raises:
            TopicMismatch: the assignment does not bring all exchanges of a coin together.
        """
        records = read_batch(self._consumer, limit, wait_s)
        if self._error is not None:
            raise self._error
        self._held.check()
        return records.since(self._oldest_ms) if self._oldest_ms else records

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
            if not self._incremental:  # else others may still be at their tails
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
        found = patiently(lambda _: self._consumer.committed(self._places, timeout=5.0))
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
