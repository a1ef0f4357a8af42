"""The decider's shell: records in order per coin, bounded in flight; offsets only past delivered decisions."""

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import structlog

from services.decider.decide import Decider, Newest
from services.decider.judge import Case
from services.decider.offsets import OffsetTracker
from shared import kafka, metrics, topics
from shared.errors import BrokerUnavailable, UndecodableRecord
from shared.kafka import ConsumerThread, Publisher, Record
from shared.messages import Decision, Opportunity, Role, decode

log = structlog.get_logger()

GROUP = "decider"
TAIL_MS = 120_000
"""How far back published decisions are read on assignment, so that none is paid for twice."""

DRAIN_S = 5.0
STOP_S = 8.0
MOST_REMEMBERED = 100_000


class Service:
    """Takes batches of opportunities, publishes decisions, and completes offsets when they are delivered."""

    def __init__(self, decider: Decider, newest: Newest, publisher: Publisher) -> None:
        self._decider = decider
        self._newest = newest
        self._publisher = publisher
        self._trackers: dict[tuple[str, int], OffsetTracker] = {}
        self._decided: OrderedDict[str, None] = OrderedDict()
        self._tails: dict[str, asyncio.Task[None]] = {}
        self._shadows: set[asyncio.Task[None]] = set()
        self._failed: asyncio.Future[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._consumer: ConsumerThread | None = None

    async def run(self, consumer: ConsumerThread, stop: asyncio.Event) -> None:
        """Until `stop`; then what is in flight is finished, within bounds.

        Raises:
            BrokerUnavailable: Kafka cannot be read, or did not take a decision.
        """
        self._loop = asyncio.get_running_loop()
        self._failed = self._loop.create_future()
        self._consumer = consumer
        async with consumer:
            reading = asyncio.create_task(self._read(consumer))
            stopped = asyncio.create_task(stop.wait())
            try:
                ends: list[asyncio.Future[Any]] = [reading, stopped, self._failed]
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (reading, stopped):
                    task.cancel()
                results = await asyncio.gather(reading, stopped, return_exceptions=True)
            for task in self._shadows:
                task.cancel()
            await asyncio.gather(*self._shadows, return_exceptions=True)
            if not self._failed.done():
                await self._drain(None, STOP_S)
                await asyncio.to_thread(self._publisher.flush, 2.0)
                await asyncio.sleep(0)  # let the last delivery reports complete their offsets
        if self._failed.done():
            self._failed.result()
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def _read(self, consumer: ConsumerThread) -> None:
        async for batch in consumer.batches():
            for record in batch:
                self._take(record)

    # ------------------------------------------------ records

    def _take(self, record: Record) -> None:
        tracker = self._trackers.setdefault((record.topic, record.partition), OffsetTracker())
        tracker.add(record.offset)
        done = self._completer(record, tracker)
        try:
            message = decode(record.value)
            if not isinstance(message, Opportunity):
                raise UndecodableRecord(f"a {message.kind} does not belong on this topic")
        except UndecodableRecord as error:
            kafka.dead_letter(
                self._publisher, record, group=GROUP, stage="decode", error=error, on_delivery=self._delivery(done)
            )
            return
        self._newest.take(message)  # at once, not behind the queue: the last check needs it while models think
        if message.phase == "closed" or message.opportunity_id in self._decided:
            done()
            return
        self._remember(message.opportunity_id)
        case = self._decider.quick(message)
        before = self._tails.get(message.base)
        if case is not None and before is None:  # a backlog of what has expired goes through here, without a task each
            self._publish(case, done)
            return
        task = asyncio.create_task(self._decide(message, case, before, done))
        self._tails[message.base] = task
        task.add_done_callback(lambda ended: self._ended(message.base, ended))

    async def _decide(
        self, opportunity: Opportunity, case: Case | None, before: asyncio.Task[None] | None, done: Callable[[], None]
    ) -> None:
        """Models may think about several opportunities of a coin at once; decisions leave in the coin's order."""
        if case is None:
            case = await self._decider.consider(opportunity)
        if before is not None:
            await asyncio.wait((before,))  # it may have failed: `_ended` says so
        self._publish(case, done)

    def _ended(self, base: str, task: asyncio.Task[None]) -> None:
        if self._tails.get(base) is task:
            del self._tails[base]
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    def _publish(self, case: Case, done: Callable[[], None]) -> None:
        decision = self._decider.conclude(case)
        metrics.DECISIONS.labels(outcome=decision.outcome, mode=decision.mode).inc()
        say = log.debug if decision.mode == "rules_only" else log.info
        say(
            "decision",
            base=decision.base,
            outcome=decision.outcome,
            mode=decision.mode,
            reason=decision.reason,
            cost_usd=str(decision.panel.cost_usd),
        )
        self._publisher.publish(topics.AUDIT, decision.decision_id, self._decider.audit(case, decision).encode(), None)
        self._publisher.publish(
            topics.DECISIONS, decision.base, decision.encode(), None, on_delivery=self._delivery(done)
        )
        for role in self._decider.shadowed(case):
            task = asyncio.create_task(self._shadow(case, decision, role))
            self._shadows.add(task)
            task.add_done_callback(self._shadows.discard)

    async def _shadow(self, case: Case, decision: Decision, role: Role) -> None:
        found = await self._decider.shadow(case, decision, role)
        self._publisher.publish(topics.AUDIT, decision.decision_id, found.encode(), None)

    def _remember(self, opportunity_id: str) -> None:
        self._decided[opportunity_id] = None
        if len(self._decided) > MOST_REMEMBERED:
            self._decided.popitem(last=False)

    # ------------------------------------------------ offsets

    def _completer(self, record: Record, tracker: OffsetTracker) -> Callable[[], None]:
        """Call it in the event loop when the record is dealt with. After a revocation it does nothing."""
        place = (record.topic, record.partition)

        def done() -> None:
            assert self._consumer is not None
            self._consumer.release(1)
            if self._trackers.get(place) is not tracker:
                return  # the partition was given back: its new owner reads the record again
            next_offset = tracker.complete(record.offset)
            if next_offset is not None:
                self._consumer.store(*place, next_offset)

        return done

    def _delivery(self, done: Callable[[], None]) -> Callable[[kafka.DeliveryError | None], None]:
        """For the publisher's thread: complete on delivery; what was not delivered stops the service."""

        def report(error: kafka.DeliveryError | None) -> None:
            assert self._loop is not None
            if error is None:
                self._loop.call_soon_threadsafe(done)
            else:
                words = f"Kafka did not take a decision: {error.str()}"
                self._loop.call_soon_threadsafe(self._fail, BrokerUnavailable(words))

        return report

    def _fail(self, error: BaseException) -> None:
        if self._failed is not None and not self._failed.done():
            self._failed.set_exception(error)

    # ------------------------------------------------ rebalances (owner thread)

    def on_assigned(self, partitions: Sequence[tuple[str, int]], read_tail: Callable[[], Sequence[Record]]) -> None:
        """Learn what was decided lately, before the first record of the new partitions is taken."""
        if not partitions:
            return
        known = []
        for record in read_tail():
            try:
                message = decode(record.value)
            except UndecodableRecord:
                continue  # not ours: readers of decisions put it aside
            if isinstance(message, Decision):  # of whichever panel: nobody pays twice for one opportunity
                known.append(message.opportunity_id)
        log.info("assigned", partitions=sorted(number for _, number in partitions), decided_lately=len(known))
        assert self._loop is not None
        for opportunity_id in known:
            self._loop.call_soon_threadsafe(self._remember, opportunity_id)

    def on_revoked(self, partitions: Sequence[tuple[str, int]]) -> None:
        """Wait a bounded time for what is in flight, so that a clean hand-over repeats nothing."""
        assert self._loop is not None
        finished = threading.Event()

        async def hand_over() -> None:
            await self._drain(set(partitions), DRAIN_S)
            self._publisher.flush(0)
            for place in partitions:
                self._trackers.pop(place, None)
            finished.set()

        asyncio.run_coroutine_threadsafe(hand_over(), self._loop)
        finished.wait(DRAIN_S + 1.0)

    async def _drain(self, places: set[tuple[str, int]] | None, budget_s: float) -> None:
        """Until nothing of these partitions (None: of any) is in flight, or time is over."""
        deadline = asyncio.get_running_loop().time() + budget_s
        while asyncio.get_running_loop().time() < deadline:
            if not any(
                tracker.in_flight() for place, tracker in self._trackers.items() if places is None or place in places
            ):
                return
            await asyncio.sleep(0.02)  # several tasks and threads end here; a poll is simpler than their sum
        log.warning("not all in flight was finished", budget_s=budget_s)
