"""The detector without Kafka and clock: messages and moments in, opportunities and rejections out.

A tick is compared with the other exchanges' books of its own coin only, so its cost does not grow with the number
of symbols. Same messages in the same order at the same moments: same output, byte for byte.
"""

from collections.abc import Callable
from typing import Any

from services.detector.books import HeldBook, Key, Rates
from services.detector.context import Trades
from services.detector.lifecycle import Event, Lifecycle, Pair
from services.detector.verdict import MS, Judge
from shared import metrics
from shared.messages import Opportunity
from shared.settings import Settings

TIMER_NS = 50_000_000
"""Between messages time is moved on this often."""

NOTHING: list[Event] = []


class Engine:
    """All state of one detector. Not thread-safe: one thread owns it."""

    def __init__(self, settings: Settings) -> None:
        detector = settings.detector
        self._exchanges = settings.exchanges
        self._rates = Rates(detector.rate_exchanges, detector.max_silence_ms * MS)
        self._judge = Judge(settings, self._rates)
        self._lifecycle = Lifecycle(detector, self._judge)
        self._books: dict[Key, HeldBook] = {}
        self._by_base: dict[str, list[HeldBook]] = {}
        self._trades: dict[str, Trades] = {}
        self._pairs: dict[tuple[Key, Key], Pair] = {}

    def on_message(self, message: dict[str, Any], now_ns: int, *, silent: bool = False) -> list[Event]:
        """Take in a `book`, `trade`, `health` or `rate`.

        Args:
            silent: Only take it in (a new owner reading back): nothing is judged.

        Raises:
            KeyError, TypeError, ValueError: a field is missing or wrong: the record is not one of ours.
        """
        kind = message["kind"]
        if kind == "book":
            book = self._newer(message)
            if book is None:
                return NOTHING
            book.on_book(message)
            return NOTHING if silent else self._judge_book(book, now_ns, message["received_ns"])
        if kind == "trade":
            book = self._newer(message)
            if book is not None:
                self._trades.setdefault(book.base, Trades()).add(message["received_ns"], message["taker_side"])
            return NOTHING
        if kind == "health":
            book = self._newer(message)
            if book is None:
                return NOTHING
            was_usable = self._judge.usable(book, now_ns)  # a live one may have been silent for too long
            book.on_health(message)
            if silent or (was_usable and book.state == "live"):
                return NOTHING
            return self._judge_book(book, now_ns, message["received_ns"])
        if kind == "rate":
            self._rates.on_rate(message)  # judged by the next tick or the timer: rates move slowly
        return NOTHING

    def on_timer(self, now_ns: int) -> list[Event]:
        """Time has moved on: judge all that is open or pending."""
        events: list[Event] = []
        for pair in list(self._pairs.values()):
            events += self._step(pair, now_ns, now_ns)
        return events

    def evaluate_all(self, now_ns: int) -> list[Event]:
        """Judge every pair once: a new owner's first look."""
        events: list[Event] = []
        for book in list(self._books.values()):
            events += self._judge_book(book, now_ns, now_ns)
        return events + self.on_timer(now_ns)

    def adopt(self, message: Opportunity) -> bool:
        """Take over an opportunity that another owner left open; whether its exchanges are configured here."""
        books = [self._book(leg.exchange, leg.symbol) for leg in (message.buy, message.sell)]
        buy, sell = books
        if buy is None or sell is None:
            return False
        pair = self._pairs.setdefault((buy.key, sell.key), Pair(buy, sell))
        pair.opportunity, pair.adopted = message, True
        return True

    def drop(self, owned: Callable[[str], bool]) -> None:
        """Forget every base asset that is not ours any more: its new owner goes on."""
        for base in [base for base in self._by_base if not owned(base)]:
            for book in self._by_base.pop(base):
                del self._books[book.key]
            self._trades.pop(base, None)
            for key in [key for key, pair in self._pairs.items() if pair.buy.base == base]:
                del self._pairs[key]

    def open_opportunities(self) -> list[Opportunity]:
        """What is open now."""
        return [pair.opportunity for pair in self._pairs.values() if pair.opportunity is not None]

    # ------------------------------------------------ inside

    def _book(self, exchange: str, symbol: str) -> HeldBook | None:
        key = (exchange, symbol)
        book = self._books.get(key)
        if book is None:
            settings = self._exchanges.get(exchange)
            if settings is None:
                return None  # an exchange that this detector has no fees for
            book = self._books[key] = HeldBook(exchange, symbol, settings)
            self._by_base.setdefault(book.base, []).append(book)
        return book

    def _newer(self, message: dict[str, Any]) -> HeldBook | None:
        """The book a message is about, if it is newer than what is held."""
        book = self._books.get((message["exchange"], message["symbol"])) or self._book(
            message["exchange"], message["symbol"]
        )
        if book is None:
            return None
        sequence = message["sequence"]
        if sequence <= book.sequence:
            metrics.TICKS_OLD.labels(exchange=book.exchange).inc()
            return None
        book.sequence = sequence
        return book

    def _judge_book(self, book: HeldBook, now_ns: int, event_ns: int) -> list[Event]:
        """Compare one book with the other exchanges' books of its coin, in both directions."""
        peers = self._by_base[book.base]
        events: list[Event] | None = None
        pairs = self._pairs
        bid, ask, quote = book.best_bid, book.best_ask, book.quote
        usable = self._judge.usable(book, now_ns)
        for peer in peers:
            if peer.exchange == book.exchange:
                continue
            same = peer.quote == quote
            for buy, sell, crossing in (
                (book, peer, peer.best_bid > ask if same else None),
                (peer, book, bid > peer.best_ask if same else None),
            ):
                pair = pairs.get((buy.key, sell.key)) if pairs else None
                if pair is None:
                    if crossing is None:
                        crossing = self._judge.crosses(buy, sell, now_ns)
                    if not crossing or not usable or not self._judge.usable(peer, now_ns):
                        continue
                    pair = pairs[(buy.key, sell.key)] = Pair(buy, sell)
                elif crossing is False and pair.gone_ns is not None:
                    continue  # a rejection that waits for its end: the timer gives it
                found = self._step(pair, now_ns, event_ns)
                if found:
                    events = found if events is None else events + found
        return NOTHING if events is None else events

    def _step(self, pair: Pair, now_ns: int, event_ns: int) -> list[Event]:
        trades = self._trades.setdefault(pair.buy.base, Trades())
        events = self._lifecycle.step(pair, now_ns, event_ns, trades)
        if pair.idle():
            self._pairs.pop((pair.buy.key, pair.sell.key), None)
            self._judge.forget(pair.buy, pair.sell)
        return events
