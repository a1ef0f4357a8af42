"""One book of one connection, from snapshot to live and back. Pure: events and the clock in, outputs out.

The rule of the house: on any doubt the book is dropped, its health says why, and nothing is published for it until a
new snapshot is verified. The recipes differ in where the snapshot comes from (socket, or REST joined to the diffs),
in how an update is checked (`Exchange.follows`, checksum), and in what is truncated; all of that is data here.
"""

import math
from dataclasses import asdict, dataclass

from services.collector.book import Book, Level
from services.collector.exchanges.base import Delta, Exchange, Snapshot, Step, Top, TradeSeen
from services.collector.health import BookHealth
from services.collector.health import Event as HealthEvent
from services.collector.outputs import BookChanged, Fetch, HealthChanged, Output, Resubscribe, Traded
from shared.errors import LinkLost

PROOF_NS = 900_000_000
"""A live book's proof of life is repeated when the last one published is this old and a newer one is there."""

MAX_LEVELS = 5000
"""Levels kept a side of a book that a REST snapshot shows in part: far ones would pile up. Whole books are never cut:
what is cut off does not come again."""

MAX_BUFFERED = 5000
"""Diffs kept while a snapshot is on its way; more means that the snapshot does not come."""

RECENT_TRADES = 1000
"""Trade ids remembered where they have no order."""

CALM_NS = 60_000_000_000
"""A book that was not doubted for so long is subscribed again at once; before, ever more slowly."""

MAX_RETRY_NS = 30_000_000_000

LOOK_AGAIN_NS = 1_000_000_000
"""From noticing that the price nears the end of what a snapshot showed to asking for another one."""

AHEAD_NS = 5_000_000_000
"""The faster top may be ahead of its own book for so long; then the book's stream is dead."""

MOVES_WITHIN_NS = 5_000_000_000
"""A fresh snapshot was newer than the stream: within so long the stream must move too, or it is dead."""


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
    tops: int = 0
    tops_wrong: int = 0
    trade_gaps: int = 0
    corrected: int = 0

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Timing:
    """When a keeper loses patience, in ns. None: never (recordings)."""

    first_data_ns: int | None = None
    refresh_ns: int | None = None
    max_silence_ns: int | None = None


class Keeper:
    """One book and what its recipe needs to remember.

    Args:
        depth: Subscribed levels a side; None: all, or what the first snapshot has.
        levels: Levels published.
        counts: Shared by the keepers of a feed.
    """

    __slots__ = (
        "_ahead_ns",
        "_applied",
        "_audit",
        "_by_time",
        "_counts",
        "_deadline_ns",
        "_doubted_ns",
        "_doubts",
        "_edges",
        "_exchange",
        "_exchange_ns",
        "_follows",
        "_joins",
        "_late",
        "_levels",
        "_missed_trades",
        "_most",
        "_moves_by_ns",
        "_order",
        "_proved_ns",
        "_proving",
        "_recent",
        "_refresh_ns",
        "_retry_ns",
        "_timing",
        "_top",
        "_tops_trusted",
        "_unchained",
        "attempts",
        "book",
        "booked",
        "buffer",
        "depth",
        "ended",
        "halted",
        "health",
        "last_id",
        "last_trade",
        "native",
        "symbol",
        "synced",
        "verified",
    )

    def __init__(
        self,
        exchange: Exchange,
        symbol: str,
        native: str,
        depth: int | None,
        levels: int,
        timing: Timing,
        counts: Counts,
        now_ns: int,
    ) -> None:
        self.symbol = symbol
        self.native = native
        self.depth = depth
        self.book = Book(depth)
        self.booked = False  # anything about a book has come (not trades only)
        self.health = BookHealth(now_ns)
        self.last_id = 0
        self.last_trade = -1
        self.buffer: list[Delta] = []
        self.synced = False  # a snapshot is applied and nothing has been missed since
        self.verified = False  # the subscription has brought a book
        self.halted: str | None = None
        self.ended = False  # we have ended its subscriptions
        self.attempts = 0  # subscriptions that brought nothing, in a row
        self._exchange = exchange
        self._follows = exchange.follows
        self._joins = exchange.snapshot_url is not None
        self._most = MAX_LEVELS if self._joins else None
        self._by_time = exchange.by_time
        self._unchained = exchange.unchained
        self._levels = levels
        self._timing = timing
        self._counts = counts
        self._order = 0
        self._applied: Delta | None = None  # the last update since the snapshot
        self._exchange_ns = 0  # the exchange's time of the book
        self._top: Top | None = None
        self._tops_trusted = True
        self._proving = False  # a trade of this connection was seen: the next one must follow it
        self._missed_trades = 0
        self._recent: dict[str, None] = {}
        self._proved_ns = 0  # the last proof of life that was published
        self._deadline_ns: int | None = None
        self._retry_ns: int | None = None
        self._doubts = 0
        self._doubted_ns = -CALM_NS
        self._refresh_ns: int | None = None
        self._audit: list[Delta] | None = None
        self._moves_by_ns: int | None = None
        self._edges = (-math.inf, math.inf)
        self._late = False
        self._ahead_ns = 0  # since when the faster top has been ahead of the book

    # ------------------------------------------------ the connection

    def on_connected(self, now_ns: int) -> list[Output]:
        """The subscriptions are about to be sent."""
        self._expect(now_ns)
        outputs = self._to(HealthEvent.CONNECTED, now_ns, "waiting for a snapshot", now_ns)
        return outputs + self.halt(self.halted, now_ns) if self.halted is not None else outputs

    def on_lost(self, now_ns: int, reason: str) -> list[Output]:
        """The connection is gone."""
        self._deadline_ns = self._retry_ns = None
        return self._drop(HealthEvent.LOST, now_ns, reason)

    def on_unsubscribed(self, now_ns: int) -> list[Output]:
        """The exchange says that it stops; of a book that is in doubt that is our own doing, and the reason stays."""
        if not self.synced:
            return []
        self._expect(now_ns)
        return self._drop(HealthEvent.DROPPED, now_ns, "unsubscribed")

    def halt(self, words: str | None, now_ns: int) -> list[Output]:
        """It is not traded now: nothing is published until `resume`."""
        self.halted = words
        self._deadline_ns = self._retry_ns = None
        return self._drop(HealthEvent.HALTED, now_ns, words or "halted")

    def resume(self, now_ns: int) -> list[Output]:
        """It is traded again."""
        self.halted = None
        outputs = self._drop(HealthEvent.DROPPED, now_ns, "trading again, waiting for a snapshot")
        if not self.ended:
            return outputs + self._again(now_ns)
        self.ended = False  # the feed subscribes it anew
        self._expect(now_ns)
        return outputs

    def doubt(self, words: str, now_ns: int) -> list[Output]:
        """Something outside this book's own updates shows that some were missed."""
        return self._doubt(HealthEvent.GAP, words, now_ns)

    # ------------------------------------------------ time

    def on_timer(self, now_ns: int, alive_ns: int, silent: str | None, late: bool = False) -> list[Output]:
        """Look at silence, deadlines, and proofs of life that are due.

        Args:
            silent: Why the link proves nothing now; None: it does.
            late: Whether that is because what it brings is old: then no update makes the book live again.
        """
        state = self.health.state
        self._late = late
        if state == "live":
            if silent is not None:
                return self._to(HealthEvent.SILENT, now_ns, silent, alive_ns)
            outputs: list[Output] = [self.told(now_ns, alive_ns)] if alive_ns - self._proved_ns >= PROOF_NS else []
            if self._top is not None and now_ns - self._ahead_ns > AHEAD_NS and self._ahead_ns:
                words = "the faster top goes on, the book's own stream does not"
                return [*self._doubt(HealthEvent.GAP, words, now_ns), Resubscribe(self.native)]
            if self._moves_by_ns is not None and now_ns >= self._moves_by_ns:
                words = "the stream is silent, a fresh snapshot is not"
                return [*self._doubt(HealthEvent.GAP, words, now_ns), Resubscribe(self.native)]
            if self._refresh_ns is not None and now_ns >= self._refresh_ns:
                self._refresh_ns, self._audit = None, []
                outputs.append(Fetch(self.native))
            return outputs
        if state == "stale":
            if silent is not None or not self.synced:
                return []
            return [*self._to(HealthEvent.PROOF, now_ns, None, alive_ns), self._changed(now_ns, None)]
        if self._retry_ns is not None and now_ns >= self._retry_ns:
            return self._again(now_ns)
        if self._deadline_ns is not None and now_ns >= self._deadline_ns:
            self.attempts += 1
            return [*self._again(now_ns), Resubscribe(self.native)] if self._joins else self._again(now_ns)
        return []

    def on_clock_set(self, step_ns: int) -> None:
        """Our clock was set: everything that waits goes on waiting as long as it would have."""
        self._proved_ns += step_ns
        self._doubted_ns += step_ns
        for name in ("_deadline_ns", "_retry_ns", "_refresh_ns", "_moves_by_ns"):
            moment_ns = getattr(self, name)
            if moment_ns is not None:
                setattr(self, name, moment_ns + step_ns)

    def _expect(self, now_ns: int) -> None:
        """The subscription must bring a book before the deadline; each time that it did not, it gets longer."""
        first_data_ns = self._timing.first_data_ns
        if first_data_ns is not None:
            self._deadline_ns = now_ns + first_data_ns * (1 << min(self.attempts, 4))

    def _again(self, now_ns: int) -> list[Output]:
        self._retry_ns = None
        self._expect(now_ns)
        return [Fetch(self.native)] if self._joins else [Resubscribe(self.native)]

    # ------------------------------------------------ updates

    def on_snapshot(self, snapshot: Snapshot, now_ns: int) -> list[Output]:
        """A whole book, asked for or not: it replaces what there is."""
        self._counts.snapshots += 1
        self.booked = True
        if self.halted is not None:
            return []
        if self._audit is not None:
            return self._audited(snapshot, now_ns)
        if self._joins and self.synced and self.health.state == "live":
            return []  # asked for twice: the book is further already
        if snapshot.exchange_ns is not None and snapshot.exchange_ns < self._exchange_ns:
            return self.doubt("a snapshot came that is older than the updates before it", now_ns)
        depth = self.depth
        truncates = self._exchange.truncates
        if truncates and depth is None:
            depth = self.depth = max(len(snapshot.bids), len(snapshot.asks))
        self.book = Book(depth if truncates else self._most)
        self.synced = False
        try:
            self.book.replace(snapshot.bids, snapshot.asks, snapshot.bid_tokens, snapshot.ask_tokens)
        except ValueError as error:
            return self._doubt(HealthEvent.GAP, str(error), now_ns)
        fault = self._fault(snapshot.checksum)
        if fault is not None:
            return self._doubt(*fault, now_ns)
        self.synced = True
        if self._joins:
            self._edges = self._edges_of(snapshot)
        self.last_id = snapshot.last_id
        self._order, self._applied = snapshot.order, None
        self._exchange_ns = snapshot.exchange_ns or 0
        if self._joins:
            return self._join(now_ns)
        return self._verified(now_ns, snapshot.exchange_ns)

    def _edges_of(self, snapshot: Snapshot) -> tuple[float, float]:
        """Half way between the best and the worst price of a side that was cut off."""
        low, high = -math.inf, math.inf
        if self.depth is not None and len(snapshot.bids) >= self.depth:
            prices = [price for price, _ in snapshot.bids]
            low = (max(prices) + min(prices)) / 2
        if self.depth is not None and len(snapshot.asks) >= self.depth:
            prices = [price for price, _ in snapshot.asks]
            high = (max(prices) + min(prices)) / 2
        return low, high

    def _join(self, now_ns: int) -> list[Output]:
        """A REST snapshot and the diffs that were buffered: they must bracket it."""
        buffered, self.buffer = self.buffer, []
        if buffered and buffered[0].first_id > self.last_id + 1:
            # The snapshot is older than the stream: another one, and what came meanwhile stays.
            self.buffer, self.synced = buffered, False
            return [Fetch(self.native)]
        outputs: list[Output] = []
        for delta in buffered:
            if delta.last_id > self.last_id:
                outputs += [out for out in self._update(delta, now_ns) if not isinstance(out, BookChanged)]
                if not self.synced:
                    return outputs
        if not buffered:
            return outputs
        if self.health.state != "live":
            # All diffs were older than the snapshot: they prove that the stream flows.
            return self._verified(now_ns, None)
        return [*outputs, self._changed(now_ns, buffered[-1].exchange_ns)]

    def on_delta(self, delta: Delta, now_ns: int) -> list[Output]:
        """Changes of the book."""
        self._counts.deltas += 1
        if self.synced:
            return self._update(delta, now_ns)
        self.booked = True
        if self._joins and self.halted is None:
            return self._buffer(delta)
        if delta.exchange_ns is not None and delta.exchange_ns > self._exchange_ns:
            self._exchange_ns = delta.exchange_ns  # the snapshot that we wait for must not be older
        return []

    def _buffer(self, delta: Delta) -> list[Output]:
        first = not self.buffer
        self.buffer.append(delta)
        if len(self.buffer) > MAX_BUFFERED:
            self.buffer = []
            raise LinkLost(f"{self._exchange.name}: no usable snapshot of {self.symbol} came")
        return [Fetch(self.native)] if first and self._retry_ns is None else []

    def _update(self, delta: Delta, now_ns: int) -> list[Output]:
        step = self._follows(self.last_id, delta)
        if step is not Step.APPLY:
            before = self._applied
            if self._joins and before is None:
                step = self._bracket(delta)
            elif before is not None and (delta.first_id, delta.last_id) == (before.first_id, before.last_id):
                self._counts.duplicates += step is Step.GAP
                step = Step.IGNORE  # the same once more
            if step is not Step.APPLY:
                return self._unfit(step, delta, now_ns)
        if delta.exchange_ns is not None:
            late_ns = self._exchange_ns - delta.exchange_ns
            if late_ns > 0 and self._by_time:
                words = f"an update came {late_ns // 1_000_000} ms after a newer one"
                return self._doubt(HealthEvent.GAP, words, now_ns)
            self._exchange_ns = delta.exchange_ns
        self._applied = delta
        self.last_id = delta.last_id
        self._order = delta.order
        if self._joins:
            self._moves_by_ns = None
            if self._audit is not None:
                self._note(delta, now_ns)
        try:
            touched = self.book.apply(delta.bids, delta.asks, self._levels, delta.bid_tokens, delta.ask_tokens)
        except ValueError as error:
            return self._doubt(HealthEvent.GAP, str(error), now_ns)
        bid_keys, ask_keys = self.book.bids.keys, self.book.asks.keys
        if delta.checksum is not None or not bid_keys or not ask_keys or bid_keys[-1] >= -ask_keys[-1]:
            fault = self._fault(delta.checksum)
            if fault is not None:
                return self._doubt(*fault, now_ns)
        if self._top is not None:
            self._ahead_ns = now_ns  # the book moves
            if self._top.order <= delta.order:
                wrong = self._outdated(self._top)
                if wrong is not None:
                    return self._doubt(HealthEvent.GAP, wrong, now_ns)
                touched = True
        if self.health.state != "live":
            return [] if self._late else self._verified(now_ns, delta.exchange_ns)
        if self._joins:
            self._watch_edges(now_ns)
        return [self._changed(now_ns, delta.exchange_ns)] if touched else []

    def _watch_edges(self, now_ns: int) -> None:
        """A REST snapshot ends somewhere; beyond, all is unknown until it changes. Look again before we get there."""
        bid, ask = self.book.bids.keys[-1], -self.book.asks.keys[-1]
        if not self._edges[0] < bid < ask < self._edges[1] and self._audit is None:
            self._edges = (-math.inf, math.inf)  # told once
            self._refresh_ns = now_ns + LOOK_AGAIN_NS

    def _unfit(self, step: Step, delta: Delta, now_ns: int) -> list[Output]:
        if step is Step.GAP:
            words = f"update {delta.first_id} came after {self.last_id}"
            outputs = self._doubt(HealthEvent.GAP, words, now_ns)
            if not self._joins:
                return outputs
            buffered = self._buffer(delta)  # the snapshot is asked for already, or will be
            return outputs if any(isinstance(out, Fetch) for out in outputs) else outputs + buffered
        if self._joins and self.health.state != "live":
            return self._verified(now_ns, None)  # superseded, but the stream shows itself
        return []

    def _note(self, delta: Delta, now_ns: int) -> None:
        """Kept beside while a second snapshot is on its way."""
        assert self._audit is not None
        self._audit.append(delta)
        if len(self._audit) > MAX_BUFFERED:
            self._audit = None
            self._plan_refresh(now_ns)

    def _bracket(self, delta: Delta) -> Step:
        """The first diff after a REST snapshot: older ones are superseded, this one must contain the next id."""
        if delta.last_id <= self.last_id:
            return Step.IGNORE
        return Step.APPLY if delta.first_id <= self.last_id + 1 else Step.GAP

    # ------------------------------------------------ the faster top

    def on_top(self, top: Top, now_ns: int) -> list[Output]:
        """Best bid and ask of a faster channel: shown over the book until the book has caught up with it."""
        self._counts.tops += 1
        known, live = self._top, self.health.state == "live"
        if not self._tops_trusted or (known is not None and top.order <= known.order):
            return []
        (bid, bid_size), (ask, ask_size) = top.bid, top.ask
        if not (0 < bid < ask < math.inf and 0 < bid_size < math.inf and 0 < ask_size < math.inf):
            self._counts.crossed += 1
            return self._doubt(HealthEvent.CROSSED, f"top {top.bid} and {top.ask}", now_ns) if live else []
        if live and top.order <= self._order:
            wrong = self._outdated(top)
            return [] if wrong is None else self._doubt(HealthEvent.GAP, wrong, now_ns)
        self._top = top
        if not live:
            return []  # shown with the book that comes, if it is still newer then
        bids, asks = self.book.bids.best(self._levels), self.book.asks.best(self._levels)
        if (top.bid, top.ask) == (bids[0], asks[0]):
            self._ahead_ns = 0
            if known is None:
                return []  # nothing new
        else:
            self._ahead_ns = self._ahead_ns or now_ns
        return [self._changed(now_ns, top.exchange_ns)]

    def _outdated(self, top: Top) -> str | None:
        """The book has caught up: at the same place both must show the same. Words if they do not."""
        self._top, self._ahead_ns = None, 0
        if top.order != self._order:
            return None
        book = self.book
        bid, ask = book.bids.levels[book.bids.keys[-1]], book.asks.levels[book.asks.keys[-1]]
        if (bid, ask) == (top.bid, top.ask):
            return None
        self._counts.tops_wrong += 1
        self._tops_trusted = False  # whichever of both was wrong: no more of them on this connection
        return f"at {top.order} the book has {bid} and {ask}, the top {top.bid} and {top.ask}"

    # ------------------------------------------------ trades

    def on_trade(self, trade: TradeSeen, now_ns: int) -> list[Output]:
        """A trade, once; its number shows whether some were missed."""
        counts = self._counts
        counts.trades += 1
        number = trade.number
        if number is None:
            if trade.trade_id in self._recent:
                counts.duplicates += 1
                return []
            self._recent[trade.trade_id] = None
            if len(self._recent) > RECENT_TRADES:
                del self._recent[next(iter(self._recent))]
            return [Traded(trade, self.symbol, now_ns)]
        last, proving = self.last_trade, self._proving
        if number <= last:
            counts.duplicates += 1
            return []
        missing = number - trade.fills - last if last >= 0 else 0
        self.last_trade, self._proving, self._missed_trades = number, True, 0
        outputs: list[Output] = [] if trade.replayed else [Traded(trade, self.symbol, now_ns)]
        if missing > 0:
            counts.trade_gaps += 1
            if proving and self._unchained and self.synced:
                outputs += self.doubt(f"{missing} trades before {number} are missing", now_ns)
        return outputs

    def had(self, trade: TradeSeen) -> bool:
        """Whether this trade has come."""
        return trade.trade_id in self._recent if trade.number is None else trade.number <= self.last_trade

    def on_last_trade(self, number: int, now_ns: int) -> list[Output]:
        """A heartbeat names the newest trade: if we do not have it by the next heartbeat either, frames are missing."""
        if not self._proving or number <= self.last_trade:
            self._missed_trades = 0
            return []
        self._missed_trades += 1
        if self._missed_trades < 2 or not self.synced:
            return []
        self._missed_trades, self._proving = 0, False
        self._counts.trade_gaps += 1
        return self.doubt(f"the last trade is {number}, ours {self.last_trade}", now_ns)

    # ------------------------------------------------ a second look

    def _audited(self, snapshot: Snapshot, now_ns: int) -> list[Output]:
        """A routine REST snapshot of a live book: it corrects levels that no diff mentions, and proves the others."""
        assert self._audit is not None
        since = [delta for delta in self._audit if delta.last_id > snapshot.last_id]
        if snapshot.last_id < self.last_id and (not since or since[0].first_id > snapshot.last_id + 1):
            return [Fetch(self.native)]  # older than what we noted down
        self._audit = None
        self._plan_refresh(now_ns)
        fresh = Book(MAX_LEVELS)
        try:
            fresh.replace(snapshot.bids, snapshot.asks)
            for delta in since:
                fresh.apply(delta.bids, delta.asks)
        except ValueError as error:
            return self._doubt(HealthEvent.GAP, str(error), now_ns)
        behind = snapshot.last_id > self.last_id
        levels = self._levels
        same = fresh.bids.top(levels) == self.book.bids.top(levels) and (
            fresh.asks.top(levels) == self.book.asks.top(levels)
        )
        if not behind and not same:
            self._counts.corrected += 1
            return self._doubt(HealthEvent.GAP, "a fresh snapshot contradicts the book", now_ns)
        self.book = fresh
        self._edges = self._edges_of(snapshot)
        words = fresh.fault()
        if words is not None:
            self._counts.crossed += 1
            return self._doubt(HealthEvent.CROSSED, words, now_ns)
        if not behind:
            return []
        self.last_id = self._order = snapshot.last_id
        self._applied = None
        self._moves_by_ns = now_ns + MOVES_WITHIN_NS
        return [self._changed(now_ns, None)]

    def _plan_refresh(self, now_ns: int) -> None:
        if self._joins and self._timing.refresh_ns is not None:
            self._refresh_ns = now_ns + self._timing.refresh_ns

    # ------------------------------------------------ verdicts

    def _fault(self, checksum: int | None) -> tuple[HealthEvent, str] | None:
        book = self.book
        compute = self._exchange.checksum
        if checksum is not None and compute is not None:
            ours = compute(book)
            if ours != checksum:
                self._counts.checksum_failed += 1
                return HealthEvent.CHECKSUM, f"checksum {ours}, the exchange says {checksum}"
            self._counts.checksum_ok += 1
        bids, asks = book.bids.keys, book.asks.keys
        if bids and asks and bids[-1] < -asks[-1]:
            return None
        self._counts.crossed += 1
        return HealthEvent.CROSSED, book.fault() or "crossed"

    def _doubt(self, event: HealthEvent, words: str, now_ns: int) -> list[Output]:
        """The book is wrong: drop it, say so, and ask for a new snapshot: at once, then ever more slowly."""
        if event is HealthEvent.GAP:
            self._counts.gaps += 1
        outputs = self._drop(event, now_ns, words)
        if now_ns - self._doubted_ns > CALM_NS:
            self._doubts = 0
        self._doubts += 1
        self._doubted_ns = now_ns
        if self._doubts == 1:
            return outputs + self._again(now_ns)
        self._retry_ns = now_ns + min(MAX_RETRY_NS, 250_000_000 << min(self._doubts, 10))
        self._expect(self._retry_ns)
        return outputs

    def _drop(self, event: HealthEvent, now_ns: int, words: str) -> list[Output]:
        self.synced = False
        self.buffer = []
        self._audit = self._refresh_ns = self._moves_by_ns = self._top = None
        self._exchange_ns = 0
        self.book = Book(self.depth if self._exchange.truncates else self._most)
        return self._to(event, now_ns, words, now_ns)

    def _verified(self, now_ns: int, exchange_ns: int | None) -> list[Output]:
        self.verified = True
        self.attempts = 0
        self._deadline_ns = self._retry_ns = None
        self._plan_refresh(now_ns)
        outputs = self._to(HealthEvent.VERIFIED, now_ns, None, now_ns)
        return [*outputs, self._changed(now_ns, exchange_ns)]

    def _changed(self, now_ns: int, exchange_ns: int | None) -> BookChanged:
        self._proved_ns = now_ns  # a book is itself a proof of life
        book, count = self.book, self._levels
        bids, asks = book.bids.best(count), book.asks.best(count)
        top = self._top
        if top is not None:
            if top.order <= self._order:
                self._top = None
            else:
                bids, asks = _over(top.bid, bids, 1.0, count), _over(top.ask, asks, -1.0, count)
        return BookChanged(self.symbol, bids, asks, now_ns, exchange_ns)

    def _to(self, event: HealthEvent, now_ns: int, reason: str | None, alive_ns: int) -> list[Output]:
        return [self.told(now_ns, alive_ns)] if self.health.on(event, now_ns, reason) else []

    def told(self, now_ns: int, alive_ns: int) -> HealthChanged:
        """The book's state as a message."""
        self._proved_ns = alive_ns
        health = self.health
        return HealthChanged(self.symbol, health.state, health.reason, health.since_ns, alive_ns, now_ns)

    def announce(self, now_ns: int, alive_ns: int) -> list[Output]:
        """All that a reader who has heard nothing of this connection must know."""
        outputs: list[Output] = [self.told(now_ns, alive_ns)]
        if self.health.state == "live":
            outputs.append(self._changed(now_ns, None))
        return outputs


def _over(best: Level, levels: list[Level], sign: float, count: int) -> list[Level]:
    """The faster best price over the book's levels: those better than it are gone, its own has its size."""
    limit = best[0] * sign
    return [best, *[level for level in levels if level[0] * sign < limit]][:count]
