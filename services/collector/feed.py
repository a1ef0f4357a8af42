"""One connection's worth of books, without I/O: frames, REST answers and the clock in; what to publish and to do out.

A feed knows what concerns all books of its connection: the frame counter, silence, lag, the exchange's own state. What
concerns one book is decided by its keeper. A new connection is a new feed.
"""

from collections.abc import Callable, Iterator, Mapping

from services.collector.book import Book
from services.collector.clock import FeedLag
from services.collector.exchanges.base import (
    MALFORMED,
    Acknowledged,
    Closing,
    Counter,
    Delta,
    Event,
    Exchange,
    LastTrade,
    Limited,
    Refused,
    Snapshot,
    Status,
    Top,
    TradeSeen,
    Unsubscribed,
    parse_rest,
)
from services.collector.keeper import Counts, Keeper, Timing
from services.collector.outputs import Output, Reconnect, Replace, Resubscribe, Send, Traded
from shared.errors import BadFrame, LinkLost, RateLimited, SubscriptionRefused, UnknownSymbol
from shared.messages import BookState

TIMER_NS = 100_000_000
"""How often silence is looked at; frames do it too, so that a proof goes out with the heartbeat that brings it."""

MAX_ATTEMPTS = 3
"""When no book of a connection has come after so many subscriptions, the connection is made again."""


class Feed:
    """All books of one connection.

    Args:
        symbols: Native to canonical names; None takes every symbol that comes, by `exchange.canonical` (verify).
        depth: Subscribed levels a side; 0 or None: all (where the exchange acknowledges one, that counts).
        levels: Levels published.
        timing: When to lose patience.
        halted: Native names that are not traded now, with the exchange's word for it.
        proven: Native names whose books have come before: if one of these is refused, it stops alone.
        fast_tops: Whether the faster tops are subscribed, too.
    """

    def __init__(
        self,
        exchange: Exchange,
        symbols: Mapping[str, str] | None,
        depth: int | None,
        levels: int,
        timing: Timing,
        now_ns: int,
        halted: Mapping[str, str] | None = None,
        proven: frozenset[str] = frozenset(),
        fast_tops: bool = False,
    ) -> None:
        self.exchange = exchange
        self.counts = Counts()
        self.lag = FeedLag()
        self.alive_ns = now_ns
        self._parse = exchange.parse
        self._depth = depth or None
        self._levels = levels
        self._timing = timing
        self._proven = proven
        self._fast_tops = fast_tops
        self._open = symbols is None
        self._next_look_ns = now_ns + TIMER_NS
        self._sequence: int | None = None
        self._keepers: dict[str, Keeper] = {}
        self._offline: str | None = None  # the exchange as a whole does not trade: its words
        self._halted = dict(halted or {})
        for native, symbol in (symbols or {}).items():
            keeper = self._track(native, symbol, now_ns)
            keeper.halted = self._halted.get(native)
            keeper.ended = keeper.halted is not None  # it is not subscribed at all

    # ------------------------------------------------ in

    def on_connected(self, now_ns: int) -> list[Output]:
        """The socket is open and the subscriptions are about to be sent."""
        self.alive_ns = now_ns
        self._sequence = None
        return self._all(lambda keeper: keeper.on_connected(now_ns))

    def on_frame(self, frame: bytes | str, now_ns: int) -> list[Output]:
        """Take in one frame.

        Raises:
            BadFrame: the frame is not what the protocol allows: reconnect.
            UnknownSymbol, SubscriptionRefused: the exchange said no: give up.
            RateLimited: the exchange asks us to wait.
            LinkLost: the connection is of no more use.
        """
        self.alive_ns = now_ns
        counts = self.counts
        counts.frames += 1
        try:
            events = self._parse(frame)
        except MALFORMED as error:
            raise BadFrame(self.exchange.name, frame, error) from None
        if len(events) == 1 and now_ns < self._next_look_ns:
            event = events[0]
            if isinstance(event, Delta) and type(event.symbol) is str and event.symbol in self._keepers:
                # nearly all frames
                if event.exchange_ns is not None and (event.bids or event.asks):
                    self.lag.seen(now_ns, event.exchange_ns)
                found = self._keepers[event.symbol].on_delta(event, now_ns)
                return self._joined(found) if len(found) > 1 else found  # one alone is a book
        outputs: list[Output] = []
        useful = False
        for event in events:
            if not isinstance(getattr(event, "symbol", None), str | None):
                raise BadFrame(self.exchange.name, frame, "a symbol that is no text")
            if isinstance(event, Delta):
                useful = True
                keeper = self._keepers.get(event.symbol) or self._find(event.symbol, now_ns)
                if event.exchange_ns is not None and (event.bids or event.asks):  # a keepalive's time is no sending
                    self.lag.seen(now_ns, event.exchange_ns)
                if keeper is not None:
                    found = keeper.on_delta(event, now_ns)
                    if found:
                        outputs = outputs + found if outputs else found
            elif isinstance(event, Top):
                useful = True
                keeper = self._keepers.get(event.symbol)
                if keeper is not None:
                    outputs += keeper.on_top(event, now_ns)
                elif self._open:
                    counts.tops += 1  # a recording of tops alone is a recording of no book
            elif isinstance(event, Counter):
                outputs += self._on_counter(event.number, now_ns)
            else:
                useful = isinstance(event, Snapshot | TradeSeen) or useful
                outputs += self._on_rare(event, now_ns)
        if not useful:
            counts.ignored += 1
        if now_ns >= self._next_look_ns:
            outputs = outputs + self.on_timer(now_ns)
        return self._joined(outputs)

    def on_rest(self, native: str, body: bytes | str, now_ns: int) -> list[Output]:
        """Take in a snapshot that was fetched.

        Raises:
            BadFrame: it is none.
        """
        self.counts.frames += 1
        keeper = self._find(native, now_ns)
        snapshot = parse_rest(self.exchange, native, body)
        return [] if keeper is None else self._joined(keeper.on_snapshot(snapshot, now_ns))

    def on_proof(self, now_ns: int) -> list[Output]:
        """The link answered our ping."""
        self.alive_ns = now_ns
        return self.on_timer(now_ns)

    def on_timer(self, now_ns: int) -> list[Output]:
        """Look at silence and deadlines, and repeat proofs of life that are due."""
        self._next_look_ns = now_ns + TIMER_NS
        silent, late = self._silent(now_ns)
        outputs = self._joined(self._all(lambda keeper: keeper.on_timer(now_ns, self.alive_ns, silent, late)))
        wanted = [keeper for keeper in self._keepers.values() if keeper.halted is None]
        if wanted and all(keeper.attempts >= MAX_ATTEMPTS for keeper in wanted):
            names = ", ".join(keeper.symbol for keeper in wanted)
            outputs.append(Reconnect(f"no book of {names} after {MAX_ATTEMPTS} subscriptions"))
        return outputs

    def on_clock_set(self, step_ns: int) -> None:
        """Our clock was set forward (or back: negative): ages go on as if it had not been."""
        self.alive_ns += step_ns
        self._next_look_ns += step_ns
        self.lag.forget()
        for keeper in self._keepers.values():
            keeper.on_clock_set(step_ns)

    def on_lost(self, now_ns: int, reason: str) -> list[Output]:
        """The connection is gone: no book of it can be trusted."""
        return self._all(lambda keeper: keeper.on_lost(now_ns, reason))

    def doubt(self, native: str, words: str, now_ns: int) -> list[Output]:
        """Something that the feed cannot see says that this book is wrong."""
        return self._joined(self._keepers[native].doubt(words, now_ns))

    def on_halted(self, halted: Mapping[str, str], now_ns: int) -> list[Output]:
        """The exchange's metadata names the books that are not traded now; the others are."""
        self._halted = dict(halted)
        return self._settled(now_ns)

    def refused(self, native: str, words: str, now_ns: int) -> list[Output]:
        """The exchange refuses a book: one that came before stops alone.

        Raises:
            UnknownSymbol: it never came: the settings are wrong.
        """
        keeper = self._keepers.get(native)
        if keeper is None or not (native in self._proven or keeper.verified):
            raise UnknownSymbol(self.exchange.name, self.symbol_of(native), words)
        self._halted[native] = f"refused: {words}"
        return keeper.halt(self._halted[native], now_ns)

    def _settled(self, now_ns: int) -> list[Output]:
        """A book is traded if neither the exchange as a whole nor its metadata says otherwise."""
        outputs: list[Output] = []
        for native, keeper in self._keepers.items():
            listed = self._halted.get(native)
            words = self._offline or listed
            if words is not None and keeper.halted is None:
                outputs += keeper.halt(words, now_ns)
            if listed is not None and not keeper.ended:
                keeper.ended = True
                outputs += [Send(frame) for frame in self.exchange.unsubscribe([native], self._depth or 0)]
            if words is None and keeper.halted is not None:
                ended = keeper.ended
                outputs += keeper.resume(now_ns)
                if ended:
                    frames = self.exchange.subscribe([native], self._depth or 0, self._fast_tops)
                    outputs += [Send(frame) for frame in frames]
        return self._joined(outputs)

    def adopt(self, before: "Feed") -> None:
        """Go on with the trades of an earlier connection: none twice, and what was missed between is counted."""
        known = {keeper.symbol: keeper for keeper in before._keepers.values()}
        for keeper in self._keepers.values():
            if keeper.symbol in known and before.exchange is self.exchange:
                keeper.last_trade = max(keeper.last_trade, known[keeper.symbol].last_trade)

    def is_new(self, traded: Traded) -> bool:
        """Whether this feed has not had that trade (another feed of the same exchange has)."""
        keeper = next((k for k in self._keepers.values() if k.symbol == traded.symbol), None)
        return keeper is None or not keeper.had(traded.trade)

    def covers(self, other: "Feed") -> bool:
        """Whether every book that is live there is live here, too."""
        live = {keeper.symbol for keeper in self._keepers.values() if keeper.health.state == "live"}
        return all(k.symbol in live for k in other._keepers.values() if k.health.state == "live")

    # ------------------------------------------------ looking

    def announce(self, now_ns: int) -> list[Output]:
        """Everything about every book, for readers who have heard another feed so far."""
        return self._all(lambda keeper: keeper.announce(now_ns, self.alive_ns))

    def halted(self) -> frozenset[str]:
        """Native names that are not traded now."""
        return frozenset(native for native, keeper in self._keepers.items() if keeper.halted is not None)

    def unverified(self) -> list[str]:
        """Canonical symbols whose subscription has not brought a book yet (halted ones are not waited for)."""
        return [k.symbol for k in self._keepers.values() if not k.verified and k.halted is None]

    def verified(self) -> frozenset[str]:
        """Native names whose books have come."""
        return frozenset(native for native, keeper in self._keepers.items() if keeper.verified)

    def all_live(self) -> bool:
        """Whether every book that is traded is live."""
        return all(k.health.state == "live" for k in self._keepers.values() if k.halted is None)

    def books(self) -> Iterator[tuple[str, BookState, Book]]:
        """Canonical symbol, state and book wherever anything about a book has come."""
        for keeper in self._keepers.values():
            if keeper.booked:
                yield keeper.symbol, keeper.health.state, keeper.book

    def live_book(self, native: str) -> Book | None:
        """The book of a native name, if it is live."""
        keeper = self._keepers.get(native)
        return keeper.book if keeper is not None and keeper.health.state == "live" else None

    def symbol_of(self, native: str) -> str:
        """Canonical name of a native one, as far as it is known."""
        keeper = self._keepers.get(native)
        return keeper.symbol if keeper is not None else native

    # ------------------------------------------------ one event

    def _on_rare(self, event: Event, now_ns: int) -> list[Output]:
        match event:
            case TradeSeen():
                keeper = self._find(event.symbol, now_ns)
                return [] if keeper is None else keeper.on_trade(event, now_ns)
            case Snapshot():
                keeper = self._find(event.symbol, now_ns)
                return [] if keeper is None else keeper.on_snapshot(event, now_ns)
            case LastTrade(native, number):
                keeper = self._keepers.get(native)
                return [] if keeper is None else keeper.on_last_trade(number, now_ns)
            case Acknowledged(native, depth):
                keeper = self._find(native, now_ns)
                if keeper is not None:
                    keeper.booked = True
                    keeper.depth = depth or keeper.depth
                return []
            case Unsubscribed(native):
                keeper = self._find(native, now_ns)
                return [] if keeper is None else keeper.on_unsubscribed(now_ns)
            case Status(online, words):
                return self._on_status(online, f"exchange is {words}", now_ns)
            case Refused(native, words):
                return self._on_refused(native, words, now_ns)
            case Limited(words, wait_s):
                raise RateLimited(self.exchange.name, words, wait_s)
            case Closing(words):
                return [Replace(f"{self.exchange.name} announced the end of the connection: {words}")]
        raise AssertionError(event)

    def _on_counter(self, number: int, now_ns: int) -> list[Output]:
        expected, self._sequence = self._sequence, number + 1
        if expected is None or number == expected:
            return []
        words = f"frame number {number} came, {expected} was next"
        outputs: list[Output] = []
        for keeper in self._keepers.values():
            if keeper.synced or keeper.health.state in ("live", "stale"):
                outputs += keeper.doubt(words, now_ns)
        if not outputs:
            self.counts.gaps += 1
        return outputs

    def _on_status(self, online: bool, words: str, now_ns: int) -> list[Output]:
        self._offline = None if online else words
        return self._settled(now_ns)

    def _on_refused(self, native: str | None, words: str, now_ns: int) -> list[Output]:
        if native is not None:
            return self.refused(native, words, now_ns)
        name = self.exchange.name
        if self._proven or any(keeper.verified for keeper in self._keepers.values()):
            raise LinkLost(f"{name}: {words}", "refused")
        raise SubscriptionRefused(name, words)

    # ------------------------------------------------ helpers

    def _silent(self, now_ns: int) -> tuple[str | None, bool]:
        """Why the link proves nothing now: it is silent, or what it brings is old (then also True)."""
        most_ns = self._timing.max_silence_ns
        if most_ns is None:
            return None, False
        silent_ns = now_ns - self.alive_ns
        if silent_ns > most_ns:
            return f"no proof of life for {silent_ns // 1_000_000} ms", False
        lag_ns = self.lag.lag_ns(now_ns)
        if lag_ns is not None and lag_ns > most_ns:
            return f"the feed is {lag_ns // 1_000_000} ms behind", True
        return None, False

    def _joined(self, outputs: list[Output]) -> list[Output]:
        """Books to be subscribed again become frames, all in one go."""
        for out in outputs:
            if type(out) is Resubscribe:
                break
        else:
            return outputs
        natives = list(dict.fromkeys(out.native for out in outputs if isinstance(out, Resubscribe)))
        keeper = self._keepers[natives[0]]
        frames = self.exchange.resubscribe(natives, keeper.depth or self._depth or 0)
        return [*(out for out in outputs if type(out) is not Resubscribe), *(Send(frame) for frame in frames)]

    def _all(self, act: Callable[[Keeper], list[Output]]) -> list[Output]:
        outputs: list[Output] = []
        for keeper in self._keepers.values():
            outputs += act(keeper)
        return outputs

    def _find(self, native: str, now_ns: int) -> Keeper | None:
        keeper = self._keepers.get(native)
        if keeper is None and self._open:
            keeper = self._track(native, self.exchange.canonical(native), now_ns)
            keeper.on_connected(now_ns)
        return keeper

    def _track(self, native: str, symbol: str, now_ns: int) -> Keeper:
        keeper = self._keepers[native] = Keeper(
            self.exchange, symbol, native, self._depth, self._levels, self._timing, self.counts, now_ns
        )
        return keeper
