"""The detector's shell: one thread that owns both consumers, feeds the engine and publishes what comes out."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import structlog

from services.detector.engine import TIMER_NS, Engine
from services.detector.lifecycle import Event
from shared import kafka, metrics, topics
from shared.errors import UndecodableRecord
from shared.kafka import Record
from shared.messages import Opportunity, decode, loads

log = structlog.get_logger()

GROUP = "detector"
BACK_MS = 10_000
"""How much of the ticks a new owner reads in silence."""

ADOPT_MS = 15_000
"""How far back a new owner looks for opportunities that are open: an owner that was killed is noticed after the
session timeout of 10 s, so three seconds would find nothing of it."""

SETTLE_NS = 1_000_000_000
"""A new owner judges when it has caught up, at the latest after this."""

BATCH = 500
WAIT_S = 0.01


class Reader(Protocol):
    """What the loop needs of a consumer."""

    def read(self, limit: int, wait_s: float) -> list[Record]: ...


class Out(Protocol):
    """What the loop needs of a publisher."""

    def publish(self, topic: str, key: str | bytes | None, value: bytes | None) -> bool: ...


class Detector:
    """The loop around an engine.

    Args:
        read_open: Reads what is open on `arbitrage-opportunities` (records, oldest first).
        dead_letter: Puts a record aside, with the error.
    """

    def __init__(
        self,
        engine: Engine,
        out: Out,
        read_open: Callable[[], Sequence[Record]],
        dead_letter: Callable[[Record, Exception], None],
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._engine = engine
        self._out = out
        self._read_open = read_open
        self._dead_letter = dead_letter
        self._clock = clock
        self._now_ns = clock()
        self._timer_ns = self._now_ns + TIMER_NS
        self._owned: frozenset[int] = frozenset()
        self._new: frozenset[int] = frozenset()
        self._assigned_ns: int | None = None
        self._kinds = {kind: metrics.TICKS_READ.labels(kind=kind) for kind in ("book", "trade", "health", "rate")}

    def on_owned(self, owned: frozenset[int]) -> None:
        """The group gave us these partitions: forget others, read back in silence what is new."""
        self._engine.drop(lambda base: kafka.partition_of(base, topics.TICK_PARTITIONS) in owned)
        self._new = owned - self._owned
        self._owned = owned
        self._assigned_ns = self._clock()
        log.info("assigned", partitions=sorted(owned), new=sorted(self._new))

    def run(self, ticks: Reader, rates: Reader, stop: threading.Event) -> None:
        """Until `stop`.

        Raises:
            BrokerUnavailable, TopicMismatch: see the readers.
        """
        while not stop.is_set():
            self.take(rates.read(BATCH, 0))
            self.take(ticks.read(BATCH, WAIT_S))
            self.tick()

    def take(self, records: Sequence[Record]) -> None:
        """Take in a batch; opportunities and rejections that it causes are published."""
        if not records:
            return
        old = 0
        for record in records:
            silent = self._assigned_ns is not None
            if silent and record.timestamp_ms * 1_000_000 < (self._assigned_ns or 0):
                old += 1
            self._take(record, silent)
        metrics.TICK_AGE_MS.observe(max(0.0, time.time() * 1000 - records[-1].timestamp_ms))
        if self._assigned_ns is not None and old == 0 and records[-1].topic != topics.FX_RATES:
            self._settle()

    def tick(self) -> None:
        """Move time on, every 50 ms."""
        now_ns = self._clock()
        if now_ns < self._timer_ns:
            return
        self._timer_ns = now_ns + TIMER_NS
        self._now_ns = max(self._now_ns, now_ns)
        if self._assigned_ns is None:
            self._publish(self._engine.on_timer(self._now_ns))
        elif now_ns - self._assigned_ns > SETTLE_NS:
            self._settle()

    def _take(self, record: Record, silent: bool) -> None:
        try:
            message = loads(record.value)
            received_ns = message["received_ns"]
            if received_ns > self._now_ns:
                self._now_ns = received_ns
            events = self._engine.on_message(message, self._now_ns, silent=silent)
            self._kinds[message["kind"]].inc()
        except (UndecodableRecord, KeyError, TypeError, ValueError, IndexError) as error:
            self._dead_letter(record, error)
            return
        if events:
            self._publish(events)

    def _settle(self) -> None:
        """Caught up: adopt what the last owner left open, then judge every pair once."""
        self._assigned_ns = None
        newest: dict[str, Opportunity] = {}
        for record in self._read_open() if self._new else ():
            try:
                message = decode(record.value)
            except UndecodableRecord:
                continue  # not ours to judge here: the decider reads this topic and puts it aside
            if isinstance(message, Opportunity):
                newest[message.opportunity_id] = message
        adopted = 0
        for opportunity in newest.values():
            partition = kafka.partition_of(opportunity.base, topics.TICK_PARTITIONS)
            if opportunity.phase != "closed" and partition in self._new:
                adopted += self._engine.adopt(opportunity)
        if adopted:
            log.info("adopted", opportunities=adopted)
        self._now_ns = max(self._now_ns, self._clock())
        self._publish(self._engine.evaluate_all(self._now_ns))

    def _publish(self, events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event, Opportunity):
                metrics.OPPORTUNITIES.labels(phase=event.phase).inc()
                self._out.publish(topics.OPPORTUNITIES, event.base, event.encode())
            else:
                if event.phase == "opened":
                    metrics.REJECTIONS.labels(reason=event.reasons[0].value).inc()
                self._out.publish(topics.REJECTIONS, event.base, event.encode())
