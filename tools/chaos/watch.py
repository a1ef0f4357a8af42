"""What a reader sees while things break: what is published, when, and which books are live."""

import itertools
import threading
import time
from dataclasses import dataclass, field

from shared import kafka, topics
from shared.errors import ArbiterError, UndecodableRecord
from shared.messages import BookTick, HealthTick, Opportunity, RateTick, decode, read_decided, read_tick
from shared.settings import KafkaSettings
from tools.chaos.ledger import Place, digest

FRESH_NS = 5_000_000_000
"""A book whose collector has gone says nothing more: so long it is taken as it was last."""


@dataclass
class Sight:
    """One opportunity as seen: its `opened_ns`, when its opening and its decision came (monotonic seconds)."""

    opened_ns: int
    opened_at: float
    decided_at: float | None = None


@dataclass
class _Seen:
    places: dict[Place, int] = field(default_factory=dict)
    sights: dict[str, Sight] = field(default_factory=dict)
    decisions_at: list[float] = field(default_factory=list)
    decided: set[str] = field(default_factory=set)
    waiting: set[str] = field(default_factory=set)
    alive_ns: dict[tuple[str, str], int] = field(default_factory=dict)
    ticks: int = 0


class Watch:
    """Reads ticks, opportunities and decisions in a thread of its own, from now on."""

    def __init__(self, settings: KafkaSettings) -> None:
        names = [*topics.tick_topics(), topics.FX_RATES, topics.OPPORTUNITIES, topics.DECISIONS]
        self._reader = kafka.Reader(kafka.reader(settings, "chaos"), names, None)
        self._seen = _Seen()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._error: ArbiterError | None = None
        self._thread = threading.Thread(target=self._run, name="chaos-watch", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                records = self._reader.read(1000, 0.05)
                with self._lock:
                    for record in records:
                        self._take(record, time.monotonic())
        except ArbiterError as error:
            self._error = error

    def _take(self, record: kafka.Record, now: float) -> None:
        seen = self._seen
        if record.topic.startswith("tick-data-") or record.topic == topics.FX_RATES:
            seen.ticks += 1
            self._tick(record.value)
            return
        seen.places[(record.topic, record.partition, record.offset)] = digest(record.value)
        if record.topic == topics.DECISIONS:
            if (decided := read_decided(record.value)) is None:
                return  # the ledger tells of it
            seen.decisions_at.append(now)
            identity = decided.opportunity_id
            seen.decided.add(identity)
            if (sight := seen.sights.get(identity)) is not None and sight.decided_at is None:
                sight.decided_at = now
                seen.waiting.discard(identity)
            return
        try:
            message = decode(record.value)
        except UndecodableRecord:
            return
        if isinstance(message, Opportunity) and message.phase == "opened" and message.opportunity_id not in seen.sights:
            decided = message.opportunity_id in seen.decided  # another topic, and it may come first
            seen.sights[message.opportunity_id] = Sight(message.opened_ns, now, now if decided else None)
            if not decided:
                seen.waiting.add(message.opportunity_id)

    def _tick(self, value: bytes | None) -> None:
        try:
            tick = read_tick(value)
        except UndecodableRecord:
            return
        key = (tick.exchange, tick.symbol)
        if isinstance(tick, HealthTick | RateTick):
            self._seen.alive_ns[key] = tick.received_ns if tick.state == "live" else 0
        elif isinstance(tick, BookTick) and self._seen.alive_ns.get(key):
            self._seen.alive_ns[key] = tick.received_ns

    # ------------------------------------------------ asked from the main thread

    def check(self) -> None:
        """Raises:
        BrokerUnavailable, TopicMismatch: reading ended by it.
        """
        if self._error is not None:
            raise self._error

    def live(self) -> int:
        """Books and rates that are live now."""
        with self._lock:
            now_ns = time.time_ns()
            return sum(now_ns - at < FRESH_NS for at in self._seen.alive_ns.values())

    def forget(self, exchange: str) -> None:
        """Its collector starts anew: what the one before said of its books is no sign of life any more."""
        with self._lock:
            for key in self._seen.alive_ns:
                if key[0] == exchange:
                    self._seen.alive_ns[key] = 0

    def decided_since(self, opened_ns: int) -> int:
        """Opportunities opened since then (by their own time) that have a decision."""
        with self._lock:
            return sum(one.decided_at is not None and one.opened_ns > opened_ns for one in self._seen.sights.values())

    def first_decided(self, opened_ns: int) -> float | None:
        """When the first decision came on an opportunity that opened after this (monotonic)."""
        with self._lock:
            found = [one.decided_at for one in self._seen.sights.values() if one.opened_ns > opened_ns]
        return min((at for at in found if at is not None), default=None)

    def decided(self) -> set[str]:
        """Opportunities whose decision was seen."""
        with self._lock:
            return set(self._seen.decided)

    def counts(self) -> tuple[int, int, int]:
        """Ticks, opportunities opened, of them undecided."""
        with self._lock:
            return self._seen.ticks, len(self._seen.sights), len(self._seen.waiting)

    def places(self) -> dict[Place, int]:
        with self._lock:
            return dict(self._seen.places)

    def longest_gap_s(self, since: float, until: float) -> float:
        """The longest time without a decision between two moments (monotonic)."""
        with self._lock:
            inside = [at for at in self._seen.decisions_at if since < at < until]
        edges = [since, *inside, until]
        return max(after - before for before, after in itertools.pairwise(edges))

    def longest_wait_s(self, since: float, until: float) -> float:
        """The longest time from an opening to its decision, of those opened between two moments (monotonic)."""
        with self._lock:
            waits = [
                (one.decided_at or time.monotonic()) - one.opened_at
                for one in self._seen.sights.values()
                if since <= one.opened_at < until
            ]
        return max(waits, default=0.0)

    def close(self) -> None:
        self._stop.set()
        self._thread.join(10.0)
        self._reader.close()
