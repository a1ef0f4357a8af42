"""The decider's shell: records in order per coin, bounded in flight; offsets only past delivered decisions."""

import asyncio
import functools
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import structlog

from services.decider import judge
from services.decider.decide import Decider, Newest
from services.decider.judge import Case
from services.decider.offsets import OffsetTracker
from shared import kafka, metrics, process, topics
from shared.errors import BrokerUnavailable, UndecodableRecord
from shared.kafka import ConsumerThread, Place, Publisher, Record
from shared.messages import Decision, Opportunity, Role, decode, read_decided

log = structlog.get_logger()

GROUP = "decider"
TAIL_MS = 120_000
"""How far back published decisions are read on assignment, so that none is paid for twice."""

TAIL_S = 60.0
"""How long reading them back may take: a drained backlog is some hundred thousand."""

DRAIN_S = 5.0
STOP_S = 5.0
"""For what is in flight at the end: with what follows (flush, leaving the group) within the ten seconds of SIGTERM."""

SURE_S = 3.0
"""After a time in which this process did not run, by when the group has told it what it lost: heartbeats go out every
second."""

TURN_S = 0.5
MOST_REMEMBERED = 100_000
MOST_BYTES = 200_000
AT_ONCE = 20
"""Records taken before other work has its turn."""


class _Taken(NamedTuple):
    """A record that waits for its decision: where it is from, by which assignment, and what to call when it is dealt
    with."""

    place: Place
    tracker: OffsetTracker
    done: Callable[[], None]


@dataclass(slots=True, eq=False)
class _Leaving:
    """A decision on its way out: it leaves when its record is delivered, behind those of its coin before it.

    Of a backlog hundreds wait here, as bytes and names: with all that was known of each it took half as long again.
    Only what may have to be looked at again (`executes`) or asked about (`then`) keeps its case.
    """

    base: str
    opportunity_id: str
    outcome: str
    mode: str
    reason: str
    cost_usd: str
    value: bytes
    done: Callable[[], None]
    taken_ns: int
    then: Callable[[], None] | None
    executes: Case | None
    recorded: bool = False


class Service:
    """Takes batches of opportunities, publishes decisions, and completes offsets when they are delivered."""

    def __init__(
        self,
        decider: Decider,
        newest: Newest,
        publisher: Publisher,
        steady: Callable[[], int] = process.steady_ns,
    ) -> None:
        self._steady = steady
        self._turned_ns = steady()
        self._sure_ns = 0
        self._decider = decider
        self._newest = newest
        self._publisher = publisher
        self._trackers: dict[tuple[str, int], OffsetTracker] = {}
        self._decided: OrderedDict[str, None] = OrderedDict()
        self._asked: OrderedDict[str, None] = OrderedDict()  # a backlog drives the others out, not what was paid for
        self._tails: dict[str, asyncio.Task[None]] = {}
        self._shadows: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._undelivered: dict[str, list[_Taken]] = {}
        self._leaving: dict[str, deque[_Leaving]] = {}
        self._owned: set[Place] = set()
        self._delivered: deque[Callable[[], None]] = deque()
        self._to_store: dict[Place, int] = {}
        self._woken = False
        self._wake_lock = threading.Lock()
        self._reading_tail = False
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
            turning = asyncio.create_task(self._watch_time())
            try:
                ends: list[asyncio.Future[Any]] = [reading, stopped, self._failed]
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (reading, stopped, turning):
                    task.cancel()
                results = await asyncio.gather(reading, stopped, turning, return_exceptions=True)
            self._stopping = True
            for task in self._shadows:
                task.cancel()
            await asyncio.gather(*self._shadows, return_exceptions=True)
            if not self._failed.done():
                await self._drain(None, STOP_S)
                await process.in_thread(self._publisher.flush, 2.0)
                await asyncio.sleep(0)  # let the last delivery reports complete their offsets
                self._store()
            else:
                for task in list(self._tails.values()):
                    task.cancel()
        if self._failed.done():
            self._failed.result()
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def _watch_time(self) -> None:
        while True:
            self._unsure_s()
            await asyncio.sleep(TURN_S)

    async def _read(self, consumer: ConsumerThread) -> None:
        async for batch in consumer.batches():
            for number, record in enumerate(batch):
                self._take(record)
                if number % AT_ONCE == AT_ONCE - 1:
                    await asyncio.sleep(0)  # a backlog must not make a panel late that is under way

    # ------------------------------------------------ records

    def _take(self, record: Record) -> None:
        place = (record.topic, record.partition)
        if place not in self._owned:
            assert self._consumer is not None
            self._consumer.release(1)  # given back since it was fetched: its new owner reads it
            return
        tracker = self._trackers.get(place)
        if tracker is None:
            tracker = self._trackers[place] = OffsetTracker()
        tracker.add(record.offset)
        done = self._completer(record, tracker)
        try:
            if len(record.value or b"") > MOST_BYTES:
                raise UndecodableRecord(f"{len(record.value or b'')} bytes; an opportunity has {MOST_BYTES} at most")
            message = decode(record.value)
            if not isinstance(message, Opportunity):
                raise UndecodableRecord(f"a {message.kind} does not belong on this topic")
        except UndecodableRecord as error:
            self._put_aside(record, "decode", error, done)
            return
        now_ns = self._decider.now_ns()
        metrics.OPPORTUNITY_AGE_MS.observe(max(0.0, (now_ns - message.detected_ns) / 1e6))
        self._newest.take(message, now_ns)  # at once, not behind the queue: the last check needs it while models think
        waiting = self._undelivered.get(message.opportunity_id)
        if waiting is not None:
            # Read again after a rebalance: it is dealt with when its decision is delivered.
            waiting.append(_Taken(place, tracker, done))
            return
        if message.phase == "closed" or self._is_known(message.opportunity_id) or self._too_old_to_know(message):
            done()
            return
        self._undelivered[message.opportunity_id] = [_Taken(place, tracker, done)]
        done = functools.partial(self._dealt_with, message.opportunity_id)
        try:
            case = self._decider.quick(message, record.value)
        except Exception as error:  # numbers that nobody thought of: one record must not stop the others
            self._remember(message.opportunity_id)
            self._put_aside(record, "decide", error, done)
            return
        self._remember(message.opportunity_id, asked=case is None)
        before = self._tails.get(message.base)
        # A backlog of what has expired goes through here, without a task each.
        if case is not None and before is None and self._unsure_s() <= 0:
            self._publish(case, record, done, now_ns)  # ours: it was a moment ago, and nothing else ran since
            return
        task = asyncio.create_task(self._decide(message, record, case, before, done, now_ns))
        self._tails[message.base] = task
        task.add_done_callback(lambda ended: self._ended(message.base, ended))

    def _too_old_to_know(self, message: Opportunity) -> bool:
        """Whether an update may be of an opportunity that was decided before what was read back on assignment.

        Nothing is lost by it: the message that opened it was read before, or will be.
        """
        return message.phase == "updated" and message.opened_ns < self._decider.now_ns() - TAIL_MS * 1_000_000

    def _dealt_with(self, opportunity_id: str) -> None:
        for taken in self._undelivered.pop(opportunity_id, []):
            taken.done()

    def _is_ours(self, opportunity_id: str) -> bool:
        """Whether some record of it is of a partition that was not taken from us since."""
        return any(self._trackers.get(t.place) is t.tracker for t in self._undelivered.get(opportunity_id, ()))

    def _unsure_s(self) -> float:
        """For how many seconds (0 or less: none) it is not sure that what we hold is ours. Call it all the time.

        A process that did not run for some seconds learns only then what its group gave to others meanwhile; they have
        decided it, and a second decision out of older facts might contradict theirs.
        """
        now_ns = self._steady()
        away_ns, self._turned_ns = now_ns - self._turned_ns, now_ns
        if away_ns > process.AWAY_NS:
            log.warning("this process did not run", seconds=round(away_ns / 1e9, 1))
            self._sure_ns = now_ns + int(SURE_S * 1e9)
        return (self._sure_ns - now_ns) / 1e9

    async def _decide(
        self,
        opportunity: Opportunity,
        record: Record,
        case: Case | None,
        before: asyncio.Task[None] | None,
        done: Callable[[], None],
        taken_ns: int,
    ) -> None:
        """Models may think about several opportunities of a coin at once; decisions leave in the coin's order."""
        if case is None:
            case = await self._decider.consider(opportunity, record.value)
        if before is not None:
            await asyncio.wait((before,))  # it may have failed: `_ended` says so
        while (unsure_s := self._unsure_s()) > 0:  # noqa: ASYNC110  # its end is a moment, and may be put off again
            await asyncio.sleep(unsure_s)
        if self._is_ours(opportunity.opportunity_id):
            self._publish(case, record, done, taken_ns)
        else:
            self._leave_to_others(opportunity.base, opportunity.opportunity_id, done)

    def _leave_to_others(self, base: str, opportunity_id: str, done: Callable[[], None]) -> None:
        log.info("left to the new owner", base=base, opportunity_id=opportunity_id)
        if opportunity_id in self._undelivered:  # else another has decided it meanwhile: that is not to be forgotten
            for known in (self._decided, self._asked):
                known.pop(opportunity_id, None)
        done()

    def _ended(self, base: str, task: asyncio.Task[None]) -> None:
        if self._tails.get(base) is task:
            del self._tails[base]
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    def _put_aside(self, record: Record, stage: str, error: Exception, done: Callable[[], None]) -> None:
        kafka.dead_letter(
            self._publisher, record, group=GROUP, stage=stage, error=error, on_delivery=self._delivery(done)
        )

    def _publish(self, case: Case, record: Record, done: Callable[[], None], taken_ns: int) -> None:
        try:
            decision, value, audit = self._concluded(case)
        except Exception as error:
            self._put_aside(record, "decide", error, done)
            return
        roles = self._decider.shadowed(case)
        leaving = _Leaving(
            base=decision.base,
            opportunity_id=decision.opportunity_id,
            outcome=decision.outcome,
            mode=decision.mode,
            reason=decision.reason,
            cost_usd="" if decision.mode == "rules_only" else str(decision.panel.cost_usd),
            value=value,
            done=done,
            taken_ns=taken_ns,
            then=functools.partial(self._ask_candidates, case, decision, roles) if roles else None,
            executes=case if decision.outcome == "execute" else None,
        )
        self._leaving.setdefault(decision.base, deque()).append(leaving)
        self._record(leaving, decision.decision_id, audit)

    def _concluded(self, case: Case) -> tuple[Decision, bytes, bytes]:
        """The decision, as it is published, and its record."""
        decision = self._decider.conclude(case)
        value = decision.encode()
        return decision, value, judge.audited(case, value)

    def _record(self, leaving: _Leaving, decision_id: str, audit: bytes) -> None:
        # The record first: killed in between, the next one decides anew. Of one that is out it could not be made later.
        recorded = self._delivery(functools.partial(self._recorded, leaving))
        self._publisher.publish(topics.AUDIT, decision_id, audit, None, on_delivery=recorded)

    def _recorded(self, leaving: _Leaving) -> None:
        leaving.recorded = True
        self._let_leave(leaving.base)

    def _let_leave(self, base: str) -> None:
        """Publish what has its record, in the coin's order. A slow broker may have kept it waiting for long: what was
        sure when it was decided is asked again."""
        queue = self._leaving.get(base)
        while queue and queue[0].recorded:
            if (unsure_s := self._unsure_s()) > 0:
                assert self._loop is not None
                self._loop.call_later(unsure_s, self._in_turn, functools.partial(self._let_leave, base))
                return
            if self._is_ours(queue[0].opportunity_id) and self._is_void(queue[0]):
                return  # until the other record is there
            self._leave(queue.popleft())
        if queue is not None and not queue:
            del self._leaving[base]

    def _is_void(self, leaving: _Leaving) -> bool:
        """Whether it is to execute what would not pass the last check any more: then it is made and recorded anew."""
        case = leaving.executes
        if case is None or not self._decider.gone(case):
            return False
        decision, leaving.value, audit = self._concluded(case)
        leaving.outcome, leaving.reason = decision.outcome, decision.reason
        leaving.executes, leaving.recorded = None, False
        self._record(leaving, decision.decision_id, audit)
        return True

    def _leave(self, leaving: _Leaving) -> None:
        if not self._is_ours(leaving.opportunity_id):
            self._leave_to_others(leaving.base, leaving.opportunity_id, leaving.done)
            return
        delivered = self._delivery(leaving.done)
        self._publisher.publish(topics.DECISIONS, leaving.base, leaving.value, None, on_delivery=delivered)
        metrics.DECISION_MS.observe(max(0.0, (self._decider.now_ns() - leaving.taken_ns) / 1e6))
        metrics.series(metrics.DECISIONS, leaving.outcome, leaving.mode).inc()
        if leaving.mode != "rules_only":  # those are told by their topic and metrics: a backlog may bring thousands
            log.info(
                "decision",
                base=leaving.base,
                outcome=leaving.outcome,
                mode=leaving.mode,
                reason=leaving.reason,
                cost_usd=leaving.cost_usd,
            )
        if leaving.then is not None:
            leaving.then()

    def _ask_candidates(self, case: Case, decision: Decision, roles: Sequence[Role]) -> None:
        for role in () if self._stopping else roles:
            task = asyncio.create_task(self._shadow(case, decision, role))
            self._shadows.add(task)
            task.add_done_callback(self._shadow_ended)

    async def _shadow(self, case: Case, decision: Decision, role: Role) -> None:
        found = await self._decider.shadow(case, decision, role)
        self._publisher.publish(topics.AUDIT, decision.decision_id, found.encode(), None)

    def _shadow_ended(self, task: asyncio.Task[None]) -> None:
        self._shadows.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a candidate's answer was lost", error=type(error).__name__)

    def _is_known(self, opportunity_id: str) -> bool:
        return opportunity_id in self._decided or opportunity_id in self._asked

    def _remember(self, opportunity_id: str, *, asked: bool = False) -> None:
        known = self._asked if asked else self._decided
        known[opportunity_id] = None
        if len(known) > MOST_REMEMBERED:
            known.popitem(last=False)

    def _heard(self, opportunity_id: str, *, asked: bool) -> None:
        """It was decided. If it is still on its way out here, of a partition that was taken from us, it stays."""
        self._remember(opportunity_id, asked=asked)
        if opportunity_id in self._undelivered and not self._is_ours(opportunity_id):
            self._dealt_with(opportunity_id)

    # ------------------------------------------------ how it is

    def show(self) -> None:
        """Set the gauges."""
        metrics.DECIDER_IN_FLIGHT.set(sum(tracker.in_flight() for tracker in self._trackers.values()))

    def tail_read(self) -> tuple[bool, str]:
        """Whether what was decided lately is known of every partition that is ours, and in words. Any thread."""
        if self._reading_tail:
            return False, "reading back what was decided lately"
        return (
            True,
            f"{len(self._owned)} partitions, {len(self._decided) + len(self._asked)} opportunities known to be decided",
        )

    def deciding(self) -> tuple[bool, str]:
        """Whether decisions go out, and in words. Any thread."""
        if self._failed is None:
            return False, "not started yet"
        if self._failed.done() or self._stopping:
            return False, "stopping"
        return True, f"{sum(tracker.in_flight() for tracker in list(self._trackers.values()))} in flight"

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
            if next_offset is None:
                return
            if not self._to_store:
                assert self._loop is not None
                self._loop.call_soon(self._store)  # behind all that is done in this turn: only the last one counts
            self._to_store[place] = next_offset

        return done

    def _store(self) -> None:
        assert self._consumer is not None
        for place, next_offset in self._to_store.items():
            self._consumer.store(*place, next_offset)
        self._to_store.clear()

    def _delivery(self, then: Callable[[], None]) -> Callable[[kafka.DeliveryError | None], None]:
        """For the publisher's thread: once delivered, `then` in the loop; what was not delivered stops the service."""

        def report(error: kafka.DeliveryError | None) -> None:
            assert self._loop is not None
            if error is not None:
                words = f"Kafka did not take a decision: {error.str()}"
                failure = kafka.refused(error) if kafka.is_refusal(error) else BrokerUnavailable(words)
                self._loop.call_soon_threadsafe(self._fail, failure)
                return
            # One call for all that come until it runs: each would wake the loop by a socket. Several threads report.
            with self._wake_lock:
                self._delivered.append(then)
                woken, self._woken = self._woken, True
            if not woken:
                self._loop.call_soon_threadsafe(self._complete)

        return report

    def _complete(self) -> None:
        """What waits for what was delivered; runs in the loop, beside threads that may add more."""
        with self._wake_lock:
            self._woken = False
        while self._delivered:
            try:
                self._delivered.popleft()()
            except Exception as error:  # a publisher that takes nothing more: nobody else would hear of it
                self._fail(error)

    def _in_turn(self, then: Callable[[], None]) -> None:
        self._delivered.append(then)
        self._complete()

    def _fail(self, error: BaseException) -> None:
        if self._failed is not None and not self._failed.done():
            self._failed.set_exception(error)

    # ------------------------------------------------ rebalances (owner thread)

    def on_assigned(self, partitions: Sequence[tuple[str, int]], read_tail: Callable[[], Sequence[Record]]) -> None:
        """Learn what was decided lately, before the first record of the new partitions is taken."""
        if not partitions:
            return
        # Of whichever panel: nobody pays twice for one opportunity. What is no decision is not ours to put aside.
        self._reading_tail = True
        known = [found for record in read_tail() if (found := read_decided(record.value)) is not None]
        self._reading_tail = False
        log.info("assigned", partitions=sorted(number for _, number in partitions), decided_lately=len(known))
        assert self._loop is not None
        for one in known:
            heard = functools.partial(self._heard, one.opportunity_id, asked=one.mode != "rules_only")
            self._loop.call_soon_threadsafe(heard)
        self._loop.call_soon_threadsafe(self._owned.update, list(partitions))

    def on_revoked(self, partitions: Sequence[tuple[str, int]]) -> None:
        """Wait a bounded time for what is in flight, so that a clean hand-over repeats nothing."""
        assert self._loop is not None
        finished = threading.Event()

        async def hand_over() -> None:
            self._owned.difference_update(partitions)
            if not self._stopping:  # else it was waited for already
                await self._drain(set(partitions), DRAIN_S)
            self._publisher.flush(0)
            self._store()  # now: what is stored later is not committed any more
            for place in partitions:
                self._trackers.pop(place, None)
            finished.set()

        asyncio.run_coroutine_threadsafe(hand_over(), self._loop)
        finished.wait(DRAIN_S + 1.0)

    def on_lost(self, partitions: Sequence[tuple[str, int]]) -> None:
        """The group took them because it did not hear us: what is in flight there is left to their new owners."""
        assert self._loop is not None

        def forget() -> None:
            self._owned.difference_update(partitions)
            for place in partitions:
                self._trackers.pop(place, None)
                self._to_store.pop(place, None)

        self._loop.call_soon_threadsafe(forget)

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
