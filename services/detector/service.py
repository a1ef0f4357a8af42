"""The detector's shell: one thread that owns both consumers, feeds the engine and publishes what comes out."""

import functools
import itertools
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import structlog

from services.detector.engine import TIMER_NS, Engine, Event
from shared import kafka, metrics, process, topics
from shared.errors import UndecodableRecord
from shared.kafka import Batch, Record
from shared.messages import (
    TICK_KINDS,
    AnyMessage,
    BookTick,
    DelayedEdge,
    Opportunity,
    Rejection,
    Tick,
    decode,
    read_tick,
)

log = structlog.get_logger()

GROUP = "detector"
EVENT_TOPICS = {"opportunity": topics.OPPORTUNITIES, "rejection": topics.REJECTIONS, "outcome": topics.OUTCOMES}
"""Where each kind of event goes."""

BACK_MS = 10_000
"""How much of the ticks a new owner reads in silence."""

ADOPT_MS = 40_000
"""How far back a new owner looks for opportunities that are open: an owner that was killed is noticed after the
session timeout of 10 s, with its coordinator killed at the same time after another; then offsets are asked for."""

SETTLE_NS = 1_000_000_000
"""A new owner judges when it has caught up, at the latest after this."""

AHEAD_NS = 1_000_000_000
"""A collector's clock may be ahead of ours by this much."""

SAY_S = 10.0

SHOW_NS = 2_000_000_000
"""How often the gauges of what is held are set."""

BEHIND_MS = 5000.0
"""A detector that reads ticks older than this does not do its job."""

EMPTY_NS = 1_000_000_000
"""So long nothing must come before all is read: one empty read may only mean that the next fetch is under way."""

UNREADABLE = (UndecodableRecord, ValueError, ArithmeticError)
"""What a record that is not one of ours raises: a field is missing or wrong."""

BATCH = 500
WAIT_S = 0.01


class Reader(Protocol):
    """What the loop needs of a consumer."""

    def read(self, limit: int, wait_s: float) -> Sequence[Record]: ...


class Out(Protocol):
    """What the loop needs of a publisher."""

    def publish(
        self, topic: str, key: str | bytes | None, value: bytes | None, *, then: Callable[[], None] | None = None
    ) -> bool: ...


class Detector:
    """The loop around an engine.

    Args:
        read_open: Reads back `arbitrage-opportunities` and `opportunity-outcomes` (records, in order within
            each partition).
        dead_letter: Puts a record aside, with the error.
        persistence_ms: Setting of the engine, taken off the time that an opportunity took.
        beat: Called whenever the loop has turned.
    """

    def __init__(
        self,
        engine: Engine,
        out: Out,
        read_open: Callable[[], Sequence[Record]],
        dead_letter: Callable[[Record, Exception], None],
        clock: Callable[[], int] = time.time_ns,
        *,
        steady: Callable[[], int] = process.steady_ns,
        persistence_ms: int = 0,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        self._engine = engine
        self._out = out
        self._read_open = read_open
        self._dead_letter = dead_letter
        self._clock = clock
        self._persistence_ms = persistence_ms
        self._beat = beat
        self._age_ms = 0.0
        self._read_ms: float | None = None  # the same, until the timer has counted it
        self._empty_ns: int | None = None  # since when reads have been empty
        self._show_ns = 0
        self._shown: set[tuple[str, str]] = set()
        self._steady = steady
        self._turned_ns = steady()
        self._now_ns = clock()
        self._timer_ns = self._now_ns + TIMER_NS
        self._owned: frozenset[int] = frozenset()
        self._new: frozenset[int] = frozenset()
        self._assigned_ns: int | None = None
        self._back: list[Record] = []
        self._said: dict[str, float] = {}
        self._counts: dict[type[Tick], int] = dict.fromkeys(TICK_KINDS, 0)
        self._ready: list[tuple[Event, Callable[[], None] | None]] = []  # to be handed to Kafka's client in one go
        self._untaken: dict[str, list[DelayedEdge]] = {}  # openings that Kafka does not have yet; what waits for each
        self._taken: deque[str] = deque()  # openings that it has, from the publisher's thread

    def on_owned(self, owned: frozenset[int]) -> None:
        """The group gave us these partitions: forget others, read back in silence what is new."""
        self._turned_ns = self._steady()  # Kafka may have taken its time, but this is what it says now
        self._engine.own(lambda base: kafka.partition_of(base, topics.TICK_PARTITIONS) in owned)
        waiting = self._new if self._assigned_ns is not None else frozenset()  # KIP-848 may add in steps
        self._new = (waiting | (owned - self._owned)) & owned
        self._owned = owned
        if self._new:
            self._assigned_ns = self._clock()
        log.info("assigned", partitions=sorted(owned), new=sorted(self._new))

    def run(self, ticks: Reader, others: Sequence[Reader], stop: threading.Event) -> None:
        """Until `stop`.

        Args:
            ticks: What the group gives us.
            others: What every detector reads: rates, and books of bridge coins.

        Raises:
            BrokerUnavailable, TopicMismatch: see the readers.
        """
        while not stop.is_set():
            records = ticks.read(BATCH, WAIT_S)
            self._turn()  # before what was read is judged by books that may be old
            try:
                for reader in others:
                    self.take(reader.read(BATCH, 0), shared=True)
                self.take(records)
                self.tick()
            finally:  # also what came before a record that ends this process
                self.hand_over()

    def take(self, records: Sequence[Record], *, shared: bool = False) -> None:
        """Take in a batch. What it causes waits for `hand_over`. `shared`: from a reader of what all detectors read."""
        if not records:
            if not shared:
                self._nothing()
            return
        newest_ms = records.newest_ms() if isinstance(records, Batch) else records[-1].timestamp_ms
        age_ms = self._read_ms = max(0.0, time.time() * 1000 - newest_ms)
        if not shared:
            self._age_ms, self._empty_ns = age_ms, None
        if self._assigned_ns is None:
            self._take_all(records)
            return
        self._back += records
        old = any(record.timestamp_ms * 1_000_000 < self._assigned_ns for record in records)
        if not old and not shared:
            self._settle()

    def _nothing(self) -> None:
        """An empty read."""
        if not self._age_ms:
            return
        now_ns = self._steady()
        if self._empty_ns is None:
            self._empty_ns = now_ns
        elif now_ns - self._empty_ns >= EMPTY_NS:
            self._age_ms = 0.0

    def tick(self) -> None:
        """Move time on, every 50 ms. What it causes waits for `hand_over`."""
        self._turn()
        self._release()
        now_ns = self._clock()
        if now_ns >= self._timer_ns:
            self._move_on(now_ns)

    def _move_on(self, now_ns: int) -> None:
        self._beat()
        metrics.LOOP_LAG_MS.observe((now_ns - self._timer_ns) / 1e6)
        self._timer_ns = now_ns + TIMER_NS
        self._now_ns = max(self._now_ns, now_ns)
        for kind, count in self._counts.items():  # plain numbers on the hot path
            if count:
                metrics.series(metrics.TICKS_READ, TICK_KINDS[kind]).inc(count)
                self._counts[kind] = 0
        if self._read_ms is not None:
            metrics.TICK_AGE_MS.observe(self._read_ms)
            self._read_ms = None
        if self._assigned_ns is None:
            self._publish(self._engine.on_timer(self._now_ns))
        elif now_ns - self._assigned_ns > SETTLE_NS:
            self._settle()
        if now_ns >= self._show_ns:
            self._show_ns = now_ns + SHOW_NS
            self._show()

    def release(self) -> None:
        """Publish the edges whose openings Kafka has taken meanwhile."""
        self._release()
        self.hand_over()

    def _release(self) -> None:
        while self._taken:
            self._ready += ((edge, None) for edge in self._untaken.pop(self._taken.popleft(), ()))

    def caught_up(self) -> tuple[bool, str]:
        """Whether it judges, and by the newest ticks; in words. Any thread."""
        if self._assigned_ns is not None:
            return False, "reading back what came before the assignment"
        if self._age_ms > BEHIND_MS:
            return False, f"reads ticks that are {self._age_ms / 1000:.0f} s old"
        return True, f"reads ticks that are {self._age_ms:.0f} ms old" if self._age_ms else "has read all ticks"

    def _show(self) -> None:
        books = self._engine.books()
        for exchange, state in self._shown - books.keys():
            metrics.BOOKS.labels(exchange=exchange, state=state).set(0)
        for (exchange, state), count in books.items():
            metrics.BOOKS.labels(exchange=exchange, state=state).set(count)
        self._shown |= books.keys()
        for kind, count in self._engine.open_gaps().items():
            metrics.OPEN.labels(kind=kind).set(count)

    def _turn(self) -> None:
        """After a time in which this process did not run its group may have given its partitions away, and a new owner
        gone on with what was open: take all up anew, as a new owner does, instead of ending it out of old books."""
        now_ns = self._steady()
        away_ns, self._turned_ns = now_ns - self._turned_ns, now_ns
        if away_ns > process.AWAY_NS and self._owned:
            log.warning("this process did not run", seconds=round(away_ns / 1e9, 1), next="what is open is read back")
            owned = self._owned
            self.on_owned(frozenset())
            self.on_owned(owned)

    def _take_all(self, records: Sequence[Record]) -> None:
        """In order: stretches of quiet ticks at once, what is between them one by one."""
        values = records.values if isinstance(records, Batch) else [record.value for record in records]
        sure_ns = self._clock() + AHEAD_NS
        at, count = 0, len(values)
        while at < count:
            begin = at
            at, self._now_ns = self._engine.take_quiet(values, at, self._now_ns, sure_ns)
            self._counts[BookTick] += at - begin
            if at < count:
                self._take(records[at])
                at += 1

    def _take(self, record: Record) -> None:
        try:
            tick = read_tick(record.value)
            if tick.received_ns > self._now_ns:
                if self._is_early(tick):
                    return
                self._now_ns = tick.received_ns
            events = self._engine.on_message(tick, self._now_ns)
            self._counts[type(tick)] += 1
        except UNREADABLE as error:
            self._dead_letter(record, error)
            return
        if events:
            self._publish(events)

    def _is_early(self, tick: Tick) -> bool:
        """A tick from the future would make every other book look old: it is dropped, counted and said."""
        ahead_ns = tick.received_ns - self._clock()
        if ahead_ns <= AHEAD_NS:
            return False
        metrics.TICKS_EARLY.labels(exchange=tick.exchange).inc()
        now = time.monotonic()
        if now - self._said.get(tick.exchange, -SAY_S) >= SAY_S:
            self._said[tick.exchange] = now
            log.error(
                "ticks from the future", exchange=tick.exchange, ahead_s=ahead_ns / 1e9, next="set the clocks (NTP)"
            )
        return True

    def _read(self) -> Iterator[AnyMessage]:
        for record in self._read_open():
            try:
                yield decode(record.value)
            except UndecodableRecord:
                continue  # not ours to judge here: the decider reads this topic and puts it aside

    def _is_new(self, base: str) -> bool:
        return kafka.partition_of(base, topics.TICK_PARTITIONS) in self._new

    def _settle(self) -> None:
        """Caught up: what was read back, in recorded order; what the last owner left open; then every pair once."""
        self._assigned_ns = None
        newest: dict[str, Opportunity] = {}
        opened: list[Opportunity] = []
        published: dict[str, set[int]] = defaultdict(set)
        for message in self._read() if self._new else ():
            if isinstance(message, DelayedEdge):
                published[message.opportunity_id].add(message.delay_ms)
            elif isinstance(message, Opportunity) and self._is_new(message.base):
                newest[message.opportunity_id] = message
                if message.phase == "opened":
                    opened.append(message)
        for edge in (*itertools.chain(*self._untaken.values()), *(event for event, _ in self._ready)):
            if isinstance(edge, DelayedEdge):  # computed here, and not there yet
                published[edge.opportunity_id].add(edge.delay_ms)
        for opportunity in opened:
            self._engine.expect(opportunity, published[opportunity.opportunity_id])
        self._take_back()
        self._now_ns = max(self._now_ns, self._clock())
        left_open = [one for one in newest.values() if one.phase != "closed"]
        for one in sorted(left_open, key=lambda one: one.detected_ns):
            self._publish(self._engine.adopt(one, self._now_ns))
        if left_open:
            log.info("adopted", opportunities=len(left_open))
        self._publish(self._engine.evaluate_all(self._now_ns))
        self._turned_ns = self._steady()  # reading back from a busy Kafka may have taken seconds: we did run

    def _take_back(self) -> None:
        """In silence: of all that comes of it only edges after a delay are published."""
        ticks: list[tuple[Tick, Record]] = []
        for record in self._back:
            try:
                ticks.append((read_tick(record.value), record))
            except UndecodableRecord as error:
                self._dead_letter(record, error)
        self._back = []
        for tick, record in sorted(ticks, key=lambda row: (row[0].received_ns, row[0].exchange, row[0].sequence)):
            try:
                if not self._is_early(tick):
                    self._publish(self._engine.on_message(tick, tick.received_ns, silent=True))
                    self._counts[type(tick)] += 1
            except UNREADABLE as error:
                self._dead_letter(record, error)

    def _publish(self, events: Sequence[Event]) -> None:
        """An edge after a delay waits for its opening: on another topic it could come first, and alone if we died."""
        for event in events:
            if isinstance(event, DelayedEdge) and (waiting := self._untaken.get(event.opportunity_id)) is not None:
                waiting.append(event)
                continue
            then = None
            if isinstance(event, Opportunity) and event.phase == "opened":
                self._untaken.setdefault(event.opportunity_id, [])
                then = functools.partial(self._taken.append, event.opportunity_id)
            self._ready.append((event, then))

    def hand_over(self) -> None:
        """Give Kafka's client what a turn has brought, written already: what it gets at once goes in one request."""
        if not self._ready:
            return
        ready, self._ready = self._ready, []
        rows = [(*written(event), then) for event, then in ready]
        for topic, key, value, then in rows:
            self._out.publish(topic, key, value, then=then)
        now_ns = self._clock()
        for event, _ in ready:
            if isinstance(event, Opportunity) and event.phase == "opened":
                took_ms = (now_ns - event.opened_ns) / 1e6 - self._persistence_ms
                metrics.FRAME_TO_OPPORTUNITY_MS.observe(max(0.0, took_ms))


def written(event: Event) -> tuple[str, str, bytes]:
    """Topic, key and value of an event that is published now: it is counted."""
    if isinstance(event, Opportunity):
        metrics.series(metrics.OPPORTUNITIES, event.phase).inc()
    elif isinstance(event, Rejection) and event.phase == "opened":
        metrics.series(metrics.REJECTIONS, event.reasons[0].value).inc()
    elif isinstance(event, DelayedEdge):
        metrics.series(metrics.OUTCOMES, "missed" if event.missed else "computed").inc()
    return EVENT_TOPICS[event.kind], event.base, event.encode()
