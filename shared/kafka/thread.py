"""One consumer with one owner thread, for an event loop."""

import asyncio
import contextlib
import queue
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from confluent_kafka import Consumer, KafkaException, TopicPartition

from shared import process
from shared.kafka.clients import Config
from shared.kafka.reading import Record, begins, partitions_of, read

ROOM_WAIT_S = 0.5
"""How long an owner thread waits for room without polling, before it pauses its assignment."""


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
            self._stop.set()
            await process.in_thread(self._thread.join, 10.0)
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Stop reading, commit what was stored, leave the group."""
        self._stop.set()
        await process.in_thread(self._thread.join, 15.0)

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
            consumer = self._started()
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

    def _started(self) -> Consumer:
        if self._since_ms is not None:
            since_ms = None if self._since_ms == self.START_NOW else self._since_ms
            partitions = begins(self._config, self._topics, since_ms)
            consumer = Consumer(self._config)
            consumer.assign(partitions)
            return consumer
        consumer = Consumer(self._config)
        try:
            partitions_of(consumer, self._topics)  # fail now, with a clear line, rather than wait for ever
            consumer.subscribe(self._topics, on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost)
        except BaseException:
            consumer.close()
            raise
        return consumer

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
