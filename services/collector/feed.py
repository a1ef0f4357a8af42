"""One connection's worth of books, without I/O: frames, REST answers and the clock in; what to publish and to do out.

The rule of the house: on any doubt the book is dropped, its health says why, and nothing is published for it until
a new snapshot is verified. A new connection is a new feed.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import NamedTuple

from services.collector.book import Book, Level
from services.collector.exchanges.base import (
    Acknowledged,
    Chain,
    Closing,
    Counter,
    Delta,
    Event,
    Exchange,
    Refused,
    Snapshot,
    Status,
    TradeSeen,
    Unsubscribed,
    parse_frame,
    parse_rest,
)
from services.collector.health import BookHealth
from services.collector.health import Event as HealthEvent
from shared.errors import LinkLost, SubscriptionRefused, UnknownSymbol
from shared.messages import BookState

PROOF_NS = 900_000_000
"""A live book's proof of life is repeated when the last one published is this old and a newer one is there."""

TIMER_NS = 100_000_000
"""How often silence is looked at; frames do it too, so that a proof goes out with the heartbeat that brings it."""

MAX_LEVELS = 5000
"""Levels kept a side where the exchange names no depth (far ones would pile up over a day)."""

MAX_BUFFERED = 5000
"""Diffs kept while a snapshot is on its way; more means that the snapshot does not come."""


class BookChanged(NamedTuple):
    """The published levels of a live book may have changed; best first."""

    symbol: str
    bids: list[Level]
    asks: list[Level]
    received_ns: int
    exchange_ns: int | None


class Traded(NamedTuple):
    """A new trade."""

    trade: TradeSeen
    symbol: str
    received_ns: int


class HealthChanged(NamedTuple):
    """A book's state, on a change or as proof of life."""

    symbol: str
    state: BookState
    reason: str | None
    since_ns: int
    alive_ns: int
    received_ns: int


class Send(NamedTuple):
    """Send this frame to the exchange."""

    frame: str


class Fetch(NamedTuple):
    """Fetch a snapshot by REST (native symbol) and bring it to `on_rest`."""

    native: str


class Reconnect(NamedTuple):
    """This connection is of no more use."""

    reason: str


Output = BookChanged | Traded | HealthChanged | Send | Fetch | Reconnect


@dataclass(slots=True)
class Counts:
    """What has gone through; `arb verify` prints it."""

    frames: int = 0
    snapshots: int = 0
    deltas: int = 0
    trades: int = 0
    gaps: int = 0
    checksum_ok: int = 0
    checksum_failed: int = 0
    crossed: int = 0
    duplicates: int = 0
    ignored: int = 0
    errors: int = 0

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


class _Tracked:
    """One book and what its recipe needs to remember."""

    __slots__ = (
        "book",
        "booked",
        "buffer",
        "depth",
        "health",
        "last_id",
        "last_trade",
        "native",
        "proved_ns",
        "snapshot_id",
        "symbol",
        "synced",
        "verified",
    )

    def __init__(self, symbol: str, native: str, depth: int | None, now_ns: int) -> None:
        self.symbol = symbol
        self.native = native
        self.depth = depth
        self.book = Book(depth)
        self.booked = False  # anything about a book has come (not trades only)
        self.health = BookHealth(now_ns)
        self.last_id = 0
        self.snapshot_id = 0
        self.last_trade = -1
        self.buffer: list[Delta] = []
        self.synced = False  # a snapshot is applied and nothing has been missed since
        self.verified = False  # the subscription has brought data
        self.proved_ns = 0  # the last proof of life that was published


class Feed:
    """All books of one connection.

    Args:
        symbols: Native to canonical names; None takes every symbol that comes, by `exchange.canonical` (verify).
        depth: Subscribed levels a side; 0 or None: all (where the exchange acknowledges one, that counts).
        levels: Levels published.
        max_silence_ns: Without proof of life for so long a book is stale; None: never (recordings).
    """

    def __init__(
        self,
        exchange: Exchange,
        symbols: dict[str, str] | None,
        depth: int | None,
        levels: int,
        max_silence_ns: int | None,
        now_ns: int,
    ) -> None:
        self.exchange = exchange
        self.counts = Counts()
        self.alive_ns = now_ns
        self._depth = depth or None
        self._levels = levels
        self._max_silence_ns = max_silence_ns
        self._open = symbols is None
        self._next_look_ns = now_ns + TIMER_NS
        self._sequence: int | None = None
        self._tracked: dict[str, _Tracked] = {}
        for native, symbol in (symbols or {}).items():
            self._track(native, symbol, now_ns)

    # ------------------------------------------------ in

    def on_connected(self, now_ns: int) -> list[Output]:
        """The socket is open and the subscriptions are about to be sent."""
        self.alive_ns = now_ns
        self._sequence = None
        outputs: list[Output] = []
        for tracked in self._tracked.values():
            outputs += self._health(tracked, HealthEvent.CONNECTED, now_ns, "waiting for a snapshot")
            if self.exchange.chain is Chain.UPDATE_IDS:
                outputs.append(Fetch(tracked.native))  # at once: an unknown symbol shows itself by REST only
        return outputs

    def on_frame(self, frame: bytes | str, now_ns: int) -> list[Output]:
        """Take in one frame.

        Raises:
            BadFrame: the frame is not what the protocol allows: reconnect.
            UnknownSymbol, SubscriptionRefused: the exchange said no: give up.
            LinkLost: the exchange announces the end of the connection.
        """
        self.alive_ns = now_ns
        self.counts.frames += 1
        outputs: list[Output] = []
        events = parse_frame(self.exchange, frame)
        useful = False
        for event in events:
            kind = type(event)
            if kind is Delta:
                useful = True
                outputs += self._on_delta(event, now_ns)  # type: ignore[arg-type]  # narrowed by `kind`: the hot path
            elif kind is Counter:
                outputs += self._on_counter(event, now_ns)  # type: ignore[arg-type]
            else:
                useful = isinstance(event, Snapshot | TradeSeen) or useful
                outputs += self._on_rare(event, now_ns)
        if not useful:
            self.counts.ignored += 1
        if now_ns >= self._next_look_ns:
            outputs += self.on_timer(now_ns)
        return outputs

    def on_rest(self, native: str, body: bytes | str, now_ns: int) -> list[Output]:
        """Take in a snapshot that was fetched.

        Raises:
            BadFrame: it is none.
        """
        self.counts.frames += 1
        return self._on_snapshot(parse_rest(self.exchange, native, body), now_ns)

    def on_proof(self, now_ns: int) -> list[Output]:
        """The link answered our ping."""
        self.alive_ns = now_ns
        return self.on_timer(now_ns)

    def on_timer(self, now_ns: int) -> list[Output]:
        """Look at silence, and repeat proofs of life that are due."""
        self._next_look_ns = now_ns + TIMER_NS
        outputs: list[Output] = []
        silent_ns = now_ns - self.alive_ns
        for tracked in self._tracked.values():
            state = tracked.health.state
            if state == "live":
                if self._max_silence_ns is not None and silent_ns > self._max_silence_ns:
                    words = f"no proof of life for {silent_ns // 1_000_000} ms"
                    outputs += self._health(tracked, HealthEvent.SILENT, now_ns, words)
                elif self.alive_ns - tracked.proved_ns >= PROOF_NS:
                    outputs.append(self._told(tracked, now_ns))
            elif state == "stale" and tracked.synced and silent_ns <= (self._max_silence_ns or silent_ns):
                outputs += self._health(tracked, HealthEvent.PROOF, now_ns, None)
        return outputs

    def on_lost(self, now_ns: int, reason: str) -> list[Output]:
        """The connection is gone: no book of it can be trusted."""
        outputs: list[Output] = []
        for tracked in self._tracked.values():
            outputs += self._drop(tracked, HealthEvent.LOST, now_ns, reason)
        return outputs

    # ------------------------------------------------ looking

    def unverified(self) -> list[str]:
        """Canonical symbols whose subscription has not brought a book yet."""
        return [tracked.symbol for tracked in self._tracked.values() if not tracked.verified]

    def books(self) -> Iterator[tuple[str, BookState, Book]]:
        """Canonical symbol, state and book wherever anything about a book has come."""
        for tracked in self._tracked.values():
            if tracked.booked:
                yield tracked.symbol, tracked.health.state, tracked.book

    # ------------------------------------------------ one event

    def _on_rare(self, event: Event, now_ns: int) -> list[Output]:
        match event:
            case TradeSeen():
                return self._on_trade(event, now_ns)
            case Snapshot():
                return self._on_snapshot(event, now_ns)
            case Acknowledged(native, depth):
                tracked = self._find(native, now_ns)
                if tracked is not None:
                    tracked.booked = True
                    tracked.depth = depth or tracked.depth
                return []
            case Unsubscribed(native):
                tracked = self._find(native, now_ns)
                return [] if tracked is None else self._drop(tracked, HealthEvent.DROPPED, now_ns, "unsubscribed")
            case Status(online, words):
                if online:
                    return []
                outputs: list[Output] = []
                for tracked in self._tracked.values():
                    outputs += self._drop(tracked, HealthEvent.HALTED, now_ns, f"exchange is {words}")
                return outputs
            case Refused(native, words):
                if native is not None:
                    raise UnknownSymbol(self.exchange.name, self.symbol_of(native), words)
                raise SubscriptionRefused(self.exchange.name, words)
            case Closing(words):
                raise LinkLost(f"{self.exchange.name} announced the end of the connection: {words}")
        raise AssertionError(event)

    def _on_counter(self, counter: Counter, now_ns: int) -> list[Output]:
        expected, self._sequence = self._sequence, counter.number + 1
        if expected is None or counter.number == expected:
            return []
        if counter.number < expected:
            words = f"frame number {counter.number} again, {expected} was next"
        else:
            words = f"frame number {counter.number}, {expected} was next"
        self.counts.gaps += 1
        outputs: list[Output] = []
        for tracked in self._tracked.values():
            outputs += self._drop(tracked, HealthEvent.GAP, now_ns, words)
        return [*outputs, Reconnect(words)]

    def _on_trade(self, trade: TradeSeen, now_ns: int) -> list[Output]:
        tracked = self._find(trade.symbol, now_ns)
        if tracked is None:
            return []
        number = int(trade.trade_id)
        self.counts.trades += 1
        if number <= tracked.last_trade:
            self.counts.duplicates += 1
            return []
        tracked.last_trade = number
        return [] if trade.replayed else [Traded(trade, tracked.symbol, now_ns)]

    def _on_snapshot(self, snapshot: Snapshot, now_ns: int) -> list[Output]:
        tracked = self._find(snapshot.symbol, now_ns)
        if tracked is None:
            return []
        self.counts.snapshots += 1
        tracked.booked = True
        depth = tracked.depth
        if self.exchange.truncates and depth is None:
            depth = tracked.depth = max(len(snapshot.bids), len(snapshot.asks))
        tracked.book = Book(depth if self.exchange.truncates else MAX_LEVELS)
        fault = self._apply_snapshot(tracked, snapshot)
        if fault is not None:
            return self._doubt(tracked, fault, now_ns)
        tracked.synced = True
        tracked.last_id = tracked.snapshot_id = snapshot.last_id
        if self.exchange.chain is Chain.UPDATE_IDS:
            return self._catch_up(tracked, now_ns)
        return self._verified(tracked, now_ns, snapshot.exchange_ns)

    def _catch_up(self, tracked: _Tracked, now_ns: int) -> list[Output]:
        """Binance, steps 3 to 5: the buffered diffs must bracket the snapshot."""
        buffered, tracked.buffer = tracked.buffer, []
        if buffered and buffered[0].first_id > tracked.last_id + 1:
            # The snapshot is older than the stream: another one, and what came meanwhile stays.
            tracked.buffer, tracked.synced = buffered, False
            return [Fetch(tracked.native)]
        outputs: list[Output] = []
        for delta in buffered:
            if delta.last_id > tracked.last_id:
                outputs = self._chained(tracked, delta, now_ns)
                if not tracked.synced:
                    return outputs
        if buffered and tracked.health.state != "live":
            # All diffs were older than the snapshot: they prove that the stream flows.
            outputs = self._verified(tracked, now_ns, None)
        return outputs

    def _on_delta(self, delta: Delta, now_ns: int) -> list[Output]:
        tracked = self._find(delta.symbol, now_ns)
        if tracked is None:
            return []
        self.counts.deltas += 1
        if self.exchange.chain is Chain.UPDATE_IDS:
            if not tracked.synced:
                return self._buffer(tracked, delta, now_ns)
            if delta.last_id <= tracked.last_id:
                if tracked.health.state != "live":
                    return self._verified(tracked, now_ns, None)  # superseded, but the stream shows itself
                self.counts.duplicates += delta.last_id > tracked.snapshot_id  # older ones are merely superseded
                return []
            return self._chained(tracked, delta, now_ns)
        if not tracked.synced:
            tracked.booked = True
            return []  # on its way while we wait for the snapshot
        return self._applied(tracked, delta, now_ns)

    def _buffer(self, tracked: _Tracked, delta: Delta, now_ns: int) -> list[Output]:
        first = not tracked.buffer
        tracked.booked = True
        tracked.buffer.append(delta)
        if len(tracked.buffer) > MAX_BUFFERED:
            tracked.buffer = []
            raise LinkLost(f"{self.exchange.name}: no usable snapshot of {tracked.symbol} came")
        return [Fetch(tracked.native)] if first else []

    def _chained(self, tracked: _Tracked, delta: Delta, now_ns: int) -> list[Output]:
        if delta.first_id > tracked.last_id + 1:
            self.counts.gaps += 1
            words = f"update {delta.first_id} came, {tracked.last_id + 1} was next"
            outputs = self._drop(tracked, HealthEvent.GAP, now_ns, words)
            return outputs + self._buffer(tracked, delta, now_ns)
        tracked.last_id = delta.last_id
        return self._applied(tracked, delta, now_ns)

    def _applied(self, tracked: _Tracked, delta: Delta, now_ns: int) -> list[Output]:
        book = tracked.book
        try:
            touched = book.apply(delta.bids, delta.asks, self._levels, delta.bid_tokens, delta.ask_tokens)
        except ValueError as error:
            return self._doubt(tracked, (HealthEvent.GAP, str(error)), now_ns)
        fault = self._fault(book, delta.checksum)
        if fault is not None:
            return self._doubt(tracked, fault, now_ns)
        if tracked.health.state != "live":
            return self._verified(tracked, now_ns, delta.exchange_ns)
        return [self._changed(tracked, now_ns, delta.exchange_ns)] if touched else []

    # ------------------------------------------------ verdicts on a book

    def _apply_snapshot(self, tracked: _Tracked, snapshot: Snapshot) -> tuple[HealthEvent, str] | None:
        try:
            tracked.book.replace(snapshot.bids, snapshot.asks, snapshot.bid_tokens, snapshot.ask_tokens)
        except ValueError as error:
            return HealthEvent.GAP, str(error)
        return self._fault(tracked.book, snapshot.checksum)

    def _fault(self, book: Book, checksum: int | None) -> tuple[HealthEvent, str] | None:
        if checksum is not None and self.exchange.checksum is not None:
            ours = self.exchange.checksum(book)
            if ours != checksum:
                self.counts.checksum_failed += 1
                return HealthEvent.CHECKSUM, f"checksum {ours}, the exchange says {checksum}"
            self.counts.checksum_ok += 1
        words = book.fault()
        if words is not None:
            self.counts.crossed += 1
            return HealthEvent.CROSSED, words
        return None

    def _doubt(self, tracked: _Tracked, fault: tuple[HealthEvent, str], now_ns: int) -> list[Output]:
        """The book is wrong: drop it, say so, and ask for a new snapshot."""
        event, words = fault
        if event is HealthEvent.GAP:
            self.counts.gaps += 1
        outputs = self._drop(tracked, event, now_ns, words)
        if self.exchange.resubscribe is not None:
            depth = tracked.depth or self._depth or 0
            return outputs + [Send(frame) for frame in self.exchange.resubscribe(tracked.native, depth)]
        if self.exchange.chain is Chain.UPDATE_IDS:
            return [*outputs, Fetch(tracked.native)]
        return [*outputs, Reconnect(f"{tracked.symbol}: {words}")]

    def _drop(self, tracked: _Tracked, event: HealthEvent, now_ns: int, words: str) -> list[Output]:
        tracked.synced = False
        tracked.buffer = []
        tracked.book = Book(tracked.depth if self.exchange.truncates else MAX_LEVELS)
        return self._health(tracked, event, now_ns, words)

    def _verified(self, tracked: _Tracked, now_ns: int, exchange_ns: int | None) -> list[Output]:
        tracked.verified = True
        outputs = self._health(tracked, HealthEvent.VERIFIED, now_ns, None)
        return [*outputs, self._changed(tracked, now_ns, exchange_ns)]

    def _changed(self, tracked: _Tracked, now_ns: int, exchange_ns: int | None) -> BookChanged:
        tracked.proved_ns = now_ns  # a book is itself a proof of life
        bids, asks = tracked.book.bids.top(self._levels), tracked.book.asks.top(self._levels)
        return BookChanged(tracked.symbol, bids, asks, now_ns, exchange_ns)

    def _health(self, tracked: _Tracked, event: HealthEvent, now_ns: int, reason: str | None) -> list[Output]:
        return [self._told(tracked, now_ns)] if tracked.health.on(event, now_ns, reason) else []

    def _told(self, tracked: _Tracked, now_ns: int) -> HealthChanged:
        tracked.proved_ns = self.alive_ns
        health = tracked.health
        return HealthChanged(tracked.symbol, health.state, health.reason, health.since_ns, self.alive_ns, now_ns)

    # ------------------------------------------------ names

    def _find(self, native: str, now_ns: int) -> _Tracked | None:
        tracked = self._tracked.get(native)
        if tracked is None and self._open:
            tracked = self._track(native, self.exchange.canonical(native), now_ns)
            tracked.health.on(HealthEvent.CONNECTED, now_ns, "waiting for a snapshot")
        return tracked

    def _track(self, native: str, symbol: str, now_ns: int) -> _Tracked:
        tracked = self._tracked[native] = _Tracked(symbol, native, self._depth, now_ns)
        return tracked

    def symbol_of(self, native: str) -> str:
        """Canonical name of a native one, as far as it is known."""
        tracked = self._tracked.get(native)
        return tracked.symbol if tracked is not None else native
