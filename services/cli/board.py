"""What the demo has seen: fed with every message, asked for the screen and for the report. Pure."""

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

from shared import topics
from shared.messages import AnyMessage, Book, Decision, Health, Opportunity, Rate, Rejection, Trade

MS = 1_000_000
LAST = 12
TOLERANCE_NS = 500 * MS
"""Between a gap in the simulator's log and what was published about it: the way of a frame, and the settings."""

LONG_NS = 500 * MS
"""Gaps at least this long must be found."""


@dataclass(slots=True)
class BookLine:
    """One line of the screen's first table."""

    exchange: str
    symbol: str
    state: str = "syncing"
    reason: str | None = None
    bid: float | None = None
    ask: float | None = None
    alive_ns: int = 0


@dataclass(slots=True)
class Span:
    """When an opportunity was open; `closed_ns` None while it is."""

    pair: tuple[str, str, str, str]
    opened_ns: int
    closed_ns: int | None = None


@dataclass(slots=True)
class Report:
    """What `arb demo --json` prints."""

    broker: str
    broker_why: str
    seconds: float = 0.0
    ticks: dict[str, int] = field(default_factory=dict)
    books_live: dict[str, int] = field(default_factory=dict)
    opportunities: dict[str, int] = field(default_factory=dict)
    rejections: dict[str, int] = field(default_factory=dict)
    decisions: dict[str, dict[str, int]] = field(default_factory=dict)
    truth: dict[str, int] | None = None
    latency_ms: dict[str, dict[str, float | None]] = field(default_factory=dict)
    cost_usd: str = "0"
    failures: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


class Board:
    """Counts and the last of everything.

    Args:
        persistence_ms: `detector.persistence_ms`: wanted waiting, which is no latency.
    """

    def __init__(self, exchanges: list[str], persistence_ms: int) -> None:
        self._persistence_ns = persistence_ms * MS
        self.ticks: Counter[str] = Counter(dict.fromkeys(exchanges, 0))
        self.books: dict[tuple[str, str], BookLine] = {}
        self.open: dict[str, Opportunity] = {}
        self.verdicts: deque[Opportunity | Rejection] = deque(maxlen=LAST)
        self.decided: deque[Decision] = deque(maxlen=LAST)
        self.spans: dict[str, Span] = {}
        self.phases: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.modes: Counter[str] = Counter()
        self.latencies_ms: list[float] = []
        self.cost_usd = 0.0
        self._rejecting: dict[str, set[str]] = {}

    def take(self, topic: str, message: AnyMessage, now_ns: int) -> None:
        """Take in one message, read at `now_ns`."""
        if topic.startswith("tick-data-") or topic == topics.FX_RATES:
            self._tick(message)
        elif isinstance(message, Opportunity):
            self._opportunity(message, now_ns)
        elif isinstance(message, Rejection):
            self._rejection(message)
        elif isinstance(message, Decision):
            self.decided.append(message)
            self.outcomes[message.outcome] += 1
            self.modes[message.mode] += 1
            self.cost_usd += float(message.panel.cost_usd)

    def _tick(self, message: AnyMessage) -> None:
        if not isinstance(message, Book | Trade | Health | Rate):
            return
        if not isinstance(message, Health):
            self.ticks[message.exchange] += 1
        if isinstance(message, Trade):
            return
        key = (message.exchange, message.symbol)
        line = self.books.setdefault(key, BookLine(*key))
        if isinstance(message, Health):
            line.state, line.reason, line.alive_ns = message.state, message.reason, message.alive_ns
            return
        line.alive_ns = message.received_ns
        if isinstance(message, Rate):
            line.state, line.bid, line.ask = message.state, message.bid, message.ask
        elif message.bids and message.asks:
            line.state, line.bid, line.ask = "live", message.bids[0][0], message.asks[0][0]

    def _opportunity(self, message: Opportunity, now_ns: int) -> None:
        self.phases[message.phase] += 1
        if message.phase == "closed":
            self.open.pop(message.opportunity_id, None)
            self.verdicts.append(message)
            if (span := self.spans.get(message.opportunity_id)) is not None:
                span.closed_ns = message.detected_ns
            return
        self.open[message.opportunity_id] = message
        if message.opportunity_id not in self.spans:
            buy, sell = message.buy, message.sell
            pair = (buy.exchange, buy.symbol, sell.exchange, sell.symbol)
            self.spans[message.opportunity_id] = Span(pair, message.opened_ns)
        if message.phase == "opened":
            self.verdicts.append(message)
            self.latencies_ms.append((now_ns - message.opened_ns - self._persistence_ns) / MS)

    def _rejection(self, message: Rejection) -> None:
        if message.phase == "closed":
            self._rejecting.pop(message.rejection_id, None)
            return
        known = self._rejecting.setdefault(message.rejection_id, set())
        new = {reason.value for reason in message.reasons} - known
        known.update(new)
        self.reasons.update(new)
        self.verdicts.append(message)

    def live(self) -> dict[str, int]:
        """Live books (and rates) by exchange."""
        counts = dict.fromkeys(self.ticks, 0)
        for line in self.books.values():
            counts[line.exchange] = counts.get(line.exchange, 0) + (line.state == "live")
        return counts

    def compare(self, truth: list[dict[str, Any]], ready_ns: int, stop_ns: int) -> dict[str, int]:
        """Gaps that were really there, against what was published.

        A gap counts where it lasted longer than half a second between `ready_ns` and `stop_ns`. An opportunity is
        false if no gap of its pair, of any length, was there at its time.
        """
        found = considered = 0
        spans = list(self.spans.values())
        for gap in truth:
            lasted_ns = min(gap["end_ns"], stop_ns) - max(gap["start_ns"], ready_ns)
            if lasted_ns > LONG_NS:
                considered += 1
                found += any(_overlap(gap, span) for span in spans)
        false = sum(not any(_overlap(gap, span) for gap in truth) for span in spans)
        return {"gaps": considered, "found": found, "false": false}

    def fill(self, report: Report) -> None:
        """Write the counts into a report."""
        report.ticks = dict(self.ticks)
        report.opportunities = {phase: self.phases[phase] for phase in ("opened", "closed")}
        report.rejections = dict(self.reasons)
        report.decisions = {"outcome": dict(self.outcomes), "mode": dict(self.modes)}
        report.latency_ms = {"frame_to_opportunity": percentiles(self.latencies_ms)}
        report.cost_usd = f"{self.cost_usd:.6f}"


def percentiles(samples: list[float]) -> dict[str, float | None]:
    """p50 and p99 by rank; None without samples."""
    ordered = sorted(samples)
    if not ordered:
        return {"p50": None, "p99": None}
    return {
        name: round(ordered[int(share * (len(ordered) - 1) + 0.5)], 1) for name, share in (("p50", 0.5), ("p99", 0.99))
    }


def _overlap(gap: dict[str, Any], span: Span) -> bool:
    buy, sell = gap["buy"], gap["sell"]
    if span.pair != (buy["exchange"], buy["symbol"], sell["exchange"], sell["symbol"]):
        return False
    closed_ns = span.closed_ns if span.closed_ns is not None else gap["end_ns"]
    return bool(span.opened_ns <= gap["end_ns"] + TOLERANCE_NS and closed_ns >= gap["start_ns"] - TOLERANCE_NS)
