"""The detector without Kafka and clock: messages and moments in, opportunities, rejections and outcomes out.

A tick is compared with the other exchanges' books of its own coin only, and a gap is looked at again only when one of
its books changes or time alone may change it, so the cost of a tick does not grow with the number of symbols nor of
open gaps. Same messages in the same order at the same moments: same output, byte for byte.

Routes of three orders are cycles in the graph of rates whose nodes are cash, a bridge coin and the coin: the coin's
books against each other, with the bridge's book between cash and the one that is quoted in the bridge coin.
"""

import heapq
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from itertools import count

from services.detector.books import HeldBook, Key, Rates, check_rate, pair_crosses, tops_of
from services.detector.coin import Coin
from services.detector.gap import Gap
from services.detector.lifecycle import Lifecycle
from services.detector.outcomes import Outcomes
from services.detector.plain import NEVER_NS
from services.detector.quiet import Quiet
from services.detector.verdict import MS, Judge
from shared import metrics
from shared.messages import BookTick, DelayedEdge, HealthTick, Opportunity, RateTick, Rejection, Tick, TradeTick
from shared.settings import Settings
from shared.symbols import CASH, base_of, is_canonical, split

Event = Opportunity | Rejection | DelayedEdge

TIMER_NS = 50_000_000
"""Between messages time is moved on this often."""

NOTHING: list[Event] = []


class Engine:
    """All state of one detector. Not thread-safe: one thread owns it.

    Args:
        owned: Which base assets are judged; the books of others are only held (bridge coins that another instance
            judges). None: all.
    """

    def __init__(self, settings: Settings, owned: Callable[[str], bool] | None = None) -> None:
        detector = settings.detector
        self._exchanges = settings.exchanges
        self._owned = owned
        self._rates = Rates(detector.rate_exchanges, detector.max_silence_ms * MS)
        self._rates_seen = 0
        self._judge = Judge(settings, self._rates)
        self._lifecycle = Lifecycle(detector, self._judge)
        self._outcomes = Outcomes(detector.outcome_delays_ms, self._judge)
        self._quiet = Quiet(self._judge.gates)
        self._books: dict[Key, HeldBook] = {}
        self._coins: dict[str, Coin] = {}
        self._open: dict[str, Coin] = {}
        self._due: list[tuple[int, int, Gap]] = []
        self._order = count()
        self._bridges = frozenset(detector.bridges) if detector.routes else frozenset[str]()
        self.crossings = {"opened": 0, "accepted": 0, "rejected": 0}
        """Gross crossings seen, and what became of those that are over."""

    def take_quiet(self, values: list[bytes | None], at: int, now_ns: int, sure_ns: int) -> tuple[int, int]:
        """Take in quiet ticks (see `quiet`) from `values[at]` on; where the first other record is, and the moment.

        Args:
            now_ns: The newest moment so far.
            sure_ns: A tick that was received later may be from the future: it is left to the caller.
        """
        until_ns = min(self._outcomes.next_ns, NEVER_NS)  # an opening may say any moment
        return self._quiet.take(values, at, now_ns, sure_ns, until_ns, self._rates.version)

    def on_message(self, tick: Tick, now_ns: int, *, silent: bool = False) -> list[Event]:
        """Take in a `book`, `trade`, `health` or `rate`.

        Args:
            silent: Only take it in (a new owner reading back): nothing is judged.

        Raises:
            UndecodableRecord, ValueError, ArithmeticError: something in it is wrong: the record is not one of ours.
        """
        # All that may be refused is read before anything changes.
        kind = type(tick)
        if kind is RateTick:
            check_rate(tick)  # type: ignore[arg-type]  # by `kind`
            events = self._outcomes_until(now_ns)
            self._rates.on_rate(tick, now_ns)  # type: ignore[arg-type]  # judged by the timer
            return events
        book = self._books.get((tick.exchange, tick.symbol)) or self._book(tick.exchange, tick.symbol)
        if book is None:
            return NOTHING
        tops = terms = None
        if kind is BookTick:
            tops = tops_of(tick)  # type: ignore[arg-type]  # by `kind`
        elif kind is HealthTick:
            terms = book.terms_of(tick)  # type: ignore[arg-type]  # by `kind`
        events = self._outcomes_until(now_ns)
        if tick.sequence <= book.sequence:
            metrics.TICKS_OLD.labels(exchange=book.exchange).inc()
            return events
        coin = book.coin
        if tops is not None:
            book.put(tick.received_ns, *tops)
            crossing = coin.moved(book, self._rates.version)
        elif terms is not None:
            was_usable = self._judge.usable(book, now_ns)  # a live one may have been silent for too long
            version = book.version
            book.on_health(tick, terms)  # type: ignore[arg-type]  # by `kind`
            # A mere proof of life brings nothing new, but what is open rests on it (skew).
            crossing = not (was_usable and book.state == "live" and version == book.version)
        else:
            crossing = False
            coin.trades.add(tick.received_ns, tick.taker_side)  # type: ignore[union-attr]  # by `kind`
        book.sequence = tick.sequence
        if kind is not TradeTick:
            coin.has_moved = True
        if silent or not coin.owned or kind is TradeTick or not (crossing or book.gaps or coin.bridged):
            return events
        judged = self._judge_book(coin, book, now_ns, tick.received_ns, crossing=crossing)
        return [*events, *judged] if events else judged

    def on_timer(self, now_ns: int) -> list[Event]:
        """Time has moved on: judge what it, a rate or a bridge's book may have changed."""
        events: list[Event] = list(self._outcomes.until(now_ns))
        self._rates.renew(now_ns)
        moved = self._moved_bridges()
        if moved or self._rates.version != self._rates_seen:
            for bridge in moved:
                bridge.has_moved = False
            for coin in self._coins.values():
                if coin.bridged and coin.owned:
                    for book in coin.books:
                        if book.quote in self._bridges:
                            events += self._judge_book(coin, book, now_ns, None)
        if self._rates.version != self._rates_seen:
            seen, self._rates_seen = self._rates_seen, self._rates.version
            for coin in self._coins.values():
                if coin.owned and coin.crosses_converted(self._rates.version):
                    for book in coin.books:
                        events += self._judge_peers(coin, book, now_ns, None)
            for coin in list(self._open.values()):
                for gap in list(coin.gaps.values()):
                    if any(book.fx.version > seen for book in gap.books):
                        events += self._look(coin, gap, now_ns, None)
        due = self._due
        while due and due[0][0] <= now_ns:
            at_ns, _, gap = heapq.heappop(due)
            if gap.due_ns == at_ns:
                events += self._look(gap.buy.coin, gap, now_ns, None)
        return events

    def evaluate_all(self, now_ns: int) -> list[Event]:
        """Judge every pair of books once: a new owner's first look."""
        self._rates.renew(now_ns)
        self._rates_seen = self._rates.version
        events: list[Event] = list(self._outcomes.until(now_ns))
        for coin in self._coins.values():
            if coin.owned:
                for book in coin.books:
                    events += self._judge_book(coin, book, now_ns, None)
        for coin in list(self._open.values()):
            for gap in list(coin.gaps.values()):
                events += self._step(coin, gap, now_ns, None)
        return events

    def adopt(self, message: Opportunity, now_ns: int) -> list[Event]:
        """Take over an opportunity that another owner left open; ignored if it is not about what is configured here.

        Of two that are open about one gap the second stays, and the first ends.
        """
        gap = self._gap_of(message)
        if gap is None:
            return []
        gap = self._known(gap.buy.coin, gap)
        left, gap.opportunity = gap.opportunity, message
        gap.adopted = gap.accepted = True
        gap.looked_ns, gap.integral = message.detected_ns, message.integral_bps_s
        if left is None:
            return []
        return [left.changed(phase="closed", close_reason="handover", detected_ns=now_ns)]

    def expect(self, opened: Opportunity, published: Collection[int]) -> None:
        """Compute the outcomes of another owner's opening, but those delays (ms) that it has published."""
        gap = self._gap_of(opened)
        if gap is not None:
            self._outcomes.expect(gap, opened, published)

    def own(self, owned: Callable[[str], bool]) -> None:
        """From now on judge these base assets, and forget all others (but bridge coins) without a word."""
        self._owned = owned
        lost = [base for base in self._coins if not owned(base)]
        self._outcomes.drop(lost)
        for base in lost:
            coin = self._coins[base]
            for gap in coin.gaps.values():
                gap.due_ns = 0  # its entry in the heap means nothing any more
            coin.gaps.clear()
            for book in coin.books:
                book.gaps.clear()
            self._open.pop(base, None)
            if base not in self._bridges:
                for book in self._coins.pop(base).books:
                    del self._books[book.key]
                    self._quiet.forget(*book.key)
        for base, coin in self._coins.items():
            coin.owned = owned(base)

    def open_opportunities(self) -> list[Opportunity]:
        """What is open now."""
        gaps = [gap for coin in self._open.values() for gap in coin.gaps.values()]
        return [gap.opportunity for gap in gaps if gap.opportunity is not None]

    def books(self) -> Counter[tuple[str, str]]:
        """How many books are held, by exchange and state."""
        return Counter((book.exchange, book.state) for book in self._books.values())

    def open_gaps(self) -> dict[str, int]:
        """How many verdicts are open now, by kind."""
        gaps = [gap for coin in self._open.values() for gap in coin.gaps.values()]
        return {
            "opportunity": sum(gap.opportunity is not None for gap in gaps),
            "rejection": sum(gap.rejection is not None for gap in gaps),
        }

    def is_idle(self) -> bool:
        """Nothing is open, pending or expected: time alone changes nothing."""
        return not self._open and not self._moved_bridges() and self._outcomes.next_ns == NEVER_NS

    # ------------------------------------------------ inside

    def _moved_bridges(self) -> list[Coin]:
        """Bridge coins whose books have changed since the timer looked."""
        found = (self._coins.get(base) for base in self._bridges)
        return [coin for coin in found if coin is not None and coin.has_moved]

    def _book(self, exchange: str, symbol: str) -> HeldBook | None:
        settings = self._exchanges.get(exchange)
        if settings is None:
            return None  # an exchange that this detector has no fees for
        base, quote = split(symbol)
        owned = self._owned is None or self._owned(base)
        if not owned and base not in self._bridges:
            return None  # it only shares its partition with a bridge coin
        book = self._books[(exchange, symbol)] = HeldBook(exchange, symbol, settings, self._rates.fx(quote))
        coin = self._coins.get(base)
        if coin is None:
            coin = self._coins[base] = Coin(base, owned=owned, bridge=base in self._bridges)
        coin.hold(book, bridged=quote in self._bridges)
        if coin.bridge:
            self._rates.hold_bridge(book)
        self._quiet.know(exchange, symbol, book)
        return book

    def _gap_of(self, message: Opportunity) -> Gap | None:
        """The gap that a message is about; None if it is none of ours: another exchange, or names that do not fit."""
        books = []
        for leg in (message.buy, message.sell, *(message.legs or ())):
            if not is_canonical(leg.symbol):
                return None
            books.append(self._books.get((leg.exchange, leg.symbol)) or self._book(leg.exchange, leg.symbol))
        if None in books or not all(base_of(leg.symbol) == message.base for leg in (message.buy, message.sell)):
            return None
        buy, sell, *legs = (book for book in books if book is not None)
        gap = Gap(buy, sell, next((book for book in legs if book is not buy and book is not sell), None))
        return gap.buy.coin.gaps.get(gap.key, gap)

    def _known(self, coin: Coin, gap: Gap) -> Gap:
        held = coin.gaps.get(gap.key)
        if held is None:
            held = coin.gaps[gap.key] = gap
            gap.buy.gaps.append(gap)
            gap.sell.gaps.append(gap)
            self._open[coin.base] = coin
            self.crossings["opened"] += 1
        return held

    def _judge_book(
        self, coin: Coin, book: HeldBook, now_ns: int, event_ns: int | None, *, crossing: bool = True
    ) -> list[Event]:
        """Judge what is open between one book and the others of its coin, and what crosses it now, if anything."""
        events: list[Event] = []
        for gap in tuple(book.gaps):
            if gap.gone_ns is None or self._judge.crosses(gap):  # else a rejection that waits for its end: the timer
                events += self._look(coin, gap, now_ns, event_ns)
        if crossing:
            events += self._judge_peers(coin, book, now_ns, event_ns)
        if coin.bridged:
            events += self._judge_cycles(coin, book, now_ns, event_ns)
        return events

    def _judge_peers(self, coin: Coin, book: HeldBook, now_ns: int, event_ns: int | None) -> list[Event]:
        """New crossings with books of other exchanges, in both directions."""
        events: list[Event] = []
        for peer in coin.books:
            if peer.exchange == book.exchange or (
                peer.quote != book.quote and not (book.quote in CASH and peer.quote in CASH)
            ):
                continue  # quoted in a coin: by way of a bridge only
            for buy, sell in ((book, peer), (peer, book)):
                if pair_crosses(buy, sell) and (buy.key, sell.key, None) not in coin.gaps:
                    events += self._step(coin, self._known(coin, Gap(buy, sell)), now_ns, event_ns)
        return events

    def _judge_cycles(self, coin: Coin, book: HeldBook, now_ns: int, event_ns: int | None) -> list[Event]:
        """New routes of three orders through one of the coin's books."""
        events: list[Event] = []
        for new in self._cycles(coin, book):
            if new.key not in coin.gaps and self._judge.crosses(new):
                events += self._step(coin, self._known(coin, new), now_ns, event_ns)
        return events

    def _cycles(self, coin: Coin, book: HeldBook) -> Iterable[Gap]:
        """Where to buy the coin, where to sell it, and the bridge's book: on one exchange or two."""
        for peer in coin.books:
            quotes = (book.quote, peer.quote)
            through = [quote for quote in quotes if quote in self._bridges]
            if len(through) != 1 or not any(quote in CASH for quote in quotes) or through[0] not in self._coins:
                continue
            places = (book.exchange, peer.exchange)
            for bridge in self._coins[through[0]].books:
                if bridge.exchange in places and bridge.quote in CASH:
                    yield Gap(book, peer, bridge)
                    yield Gap(peer, book, bridge)

    def _look(self, coin: Coin, gap: Gap, now_ns: int, event_ns: int | None) -> list[Event]:
        """Judge a gap that is there already, if it is not certain that it stays as it is."""
        if not self._quiet.stays(gap, now_ns):
            return self._step(coin, gap, now_ns, event_ns)
        self._await(gap, now_ns)
        return NOTHING

    def _step(self, coin: Coin, gap: Gap, now_ns: int, event_ns: int | None) -> list[Event]:
        events: list[Event] = list(self._lifecycle.step(gap, now_ns, event_ns, coin.trades))
        for event in events:
            if event.kind == "opportunity" and event.phase == "opened":
                self._outcomes.expect(gap, event)
        if gap.idle():
            if coin.gaps.pop(gap.key, None) is not None:
                gap.buy.gaps.remove(gap)
                gap.sell.gaps.remove(gap)
                outcome = "accepted" if gap.accepted else "rejected"
                self.crossings[outcome] += 1
                metrics.CROSSINGS.labels(outcome=outcome).inc()
                if not coin.gaps:
                    del self._open[coin.base]
            gap.due_ns = 0
        else:
            self._await(gap, now_ns)
        return events

    def _await(self, gap: Gap, now_ns: int) -> None:
        """Look at it again when time alone may change something."""
        due_ns = max(self._lifecycle.due_ns(gap, now_ns), now_ns + 1)  # time must pass, whatever is due
        if due_ns < gap.due_ns or gap.due_ns <= now_ns:
            gap.due_ns = due_ns
            if due_ns < NEVER_NS:
                heapq.heappush(self._due, (due_ns, next(self._order), gap))

    def _outcomes_until(self, now_ns: int) -> list[Event]:
        return list(self._outcomes.until(now_ns)) if now_ns > self._outcomes.next_ns else NOTHING
